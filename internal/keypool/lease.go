package keypool

import (
	"time"

	"cc-relay/internal/ratelimit"
)

// Lease is one request's hold on a key. Settle it exactly when the request has
// ended, whatever ended it; the zero Lease holds nothing. A Lease may be copied;
// all copies are one hold. Safe for concurrent use.
type Lease struct {
	pool       *KeyPool
	key        *key
	hold       *hold
	generation uint64
	at         time.Time // when it was acquired
}

// hold is what a lease keeps from others. It is reused after settlement, and its
// generation tells an old lease from a new one.
type hold struct {
	generation uint64
	class      *class
	slot       *slot
	held       ratelimit.Tokens
}

// KeyID is the leased key's ID, "" for the zero Lease.
func (l Lease) KeyID() string {
	if l.key == nil {
		return ""
	}
	return l.key.id
}

// OwnerKeys returns the IDs of all keys that share the leased key's organization,
// its own included: where one is at a limit of the organization, so are the
// others. nil for the zero Lease.
func (l Lease) OwnerKeys() []string {
	if l.pool == nil {
		return nil
	}
	l.pool.mu.RLock()
	defer l.pool.mu.RUnlock()
	var ids []string
	for _, k := range l.pool.keys {
		if k.owner == l.key.owner {
			ids = append(ids, k.id)
		}
	}
	return ids
}

// APIKey is the leased key itself, "" for the zero Lease and for a pool without keys.
func (l Lease) APIKey() string {
	if l.key == nil {
		return ""
	}
	return l.key.secret.Reveal()
}

// Held is what the lease holds of the buckets, zero once it is settled.
func (l Lease) Held() ratelimit.Tokens {
	if l.pool == nil {
		return ratelimit.Tokens{}
	}
	l.pool.mu.RLock()
	defer l.pool.mu.RUnlock()
	if l.hold.generation != l.generation {
		return ratelimit.Tokens{}
	}
	return l.hold.held
}

// Settle replaces what was held by what was used: uncached input tokens (those
// read from the prompt cache do not count) and output tokens. Zero returns all
// that was held, for a request that was refused or failed. A bucket may go below
// zero. A second call does nothing.
func (l Lease) Settle(used ratelimit.Tokens) {
	if l.pool == nil {
		return
	}
	now := time.Now()
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	h := l.hold
	if h.generation != l.generation {
		return
	}
	h.slot.buckets.limiter.SettleAt(now, h.held, used)
	h.class.inFlight--
	h.slot.inFlight--
	h.slot.held.Input -= h.held.Input
	h.slot.held.Output -= h.held.Output
	*h = hold{generation: h.generation + 1}
	l.pool.free = append(l.pool.free, h)
}

// Succeeded records an answer that shows that the provider accepts the key's
// credential and account for the class. What had taken the key out is forgiven
// at once, and the next guessed cool-down starts short again. An answer to a
// request sent before the outage began proves nothing and changes nothing, nor
// does a call after Settle.
func (l Lease) Succeeded() {
	if l.pool == nil {
		return
	}
	now := time.Now()
	l.pool.mu.Lock()
	back := false
	if h := l.hold; h.generation == l.generation {
		back = l.key.dead.forgive(l.at)
		back = h.slot.blocked.forgive(l.at) || back
		l.key.cool.forgive(now)
		h.slot.buckets.cool.forgive(now)
		h.slot.forbade = false
	}
	l.pool.mu.Unlock()
	if back {
		l.pool.log.Info().Str("key_id", l.key.id).Msg("key serves again")
	}
}

// newHold returns an unused hold. The caller holds mu for writing.
func (p *KeyPool) newHold() *hold {
	n := len(p.free)
	if n == 0 {
		return &hold{}
	}
	h := p.free[n-1]
	p.free = p.free[:n-1]
	return h
}
