package keypool

import (
	"net/http"
	"slices"
	"time"

	"cc-relay/internal/ratelimit"
)

// Lease is one request's hold on a key, from its dispatch to its end. Settle it
// exactly when the request has ended, whatever ended it; the zero Lease holds
// nothing. A Lease may be copied; all copies are one hold, and calls after the
// first Settle do nothing. Safe for concurrent use. The methods that take a time
// do the work; the others read the clock once and call them.
type Lease struct {
	pool       *KeyPool
	key        *key
	hold       *hold
	generation uint64
}

// hold is what a lease keeps from others. It is reused after settlement, and its
// generation tells an old lease from a new one.
type hold struct {
	generation uint64
	class      *class
	slot       *slot
	seq        uint64    // of dispatch
	at         time.Time // of dispatch
	held       ratelimit.Tokens
	bytes      int
	maxTokens  int
	oversized  bool
	acked      bool // answered: the provider has seen it

	outstanding float64 // of the output predicted for it
	made        float64 // output tokens seen so far

	producedAt, promisedAt float64 // of its buckets, at dispatch
	expected               [2]float64
	guessed                bool

	writes [maxBreakpoints]Mark // what the provider will keep of its prompt
	read   uint64               // the longest prefix it is expected to find; 0 = none
}

// Usage is what a request cost, as far as its answer told.
type Usage struct {
	Input      int // tokens neither read from the cache nor written to it
	CacheWrite int
	CacheRead  int // counts towards no limit
	Output     int
	// Partial: the answer broke off, and Output is what had been seen by then.
	Partial bool
	// Unreported: nothing was told of the prompt, which the provider may have
	// counted: what was held for it stays taken.
	Unreported bool
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
	if l.key.gone && !slices.Contains(ids, l.key.id) {
		ids = append(ids, l.key.id)
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

// Oversized reports whether the prompt seems larger than any key's limit on input
// tokens a minute: its tokens, and the limit of the leased key, which is the
// largest. Its refusal says nothing about the key.
func (l Lease) Oversized() (tokens, limit int, oversized bool) {
	if l.pool == nil {
		return 0, 0, false
	}
	l.pool.mu.RLock()
	defer l.pool.mu.RUnlock()
	h := l.hold
	if h.generation != l.generation || !h.oversized {
		return 0, 0, false
	}
	return int(float64(h.bytes) * h.class.ratio), h.slot.buckets.limiter.GetUsage().Limits.ITPM, true
}

// Answered learns from the head of an answer, whatever its status: whose key it
// is, the limits and levels of the organization, and what its cache holds now.
func (l Lease) Answered(status int, h http.Header) { l.AnsweredAt(time.Now(), status, h) }

// AnsweredAt is Answered at a given time.
func (l Lease) AnsweredAt(now time.Time, status int, header http.Header) {
	if l.pool == nil {
		return
	}
	organization, workspace, seen := organizationOf(header), workspaceOf(header), parseRateHeaders(header)
	p := l.pool
	p.mu.Lock()
	h := l.hold
	if h.generation != l.generation {
		p.mu.Unlock()
		return
	}
	sibling := p.joinLocked(now, l.key, organization, workspace)
	b := h.slot.buckets
	b.acked(h)
	ok := status >= 200 && status < 300
	seen = seen.of(h.class.name)
	b.merge(now, h, seen)
	h.slot.note(now, seen)
	if ok {
		b.unnamed(seen)
		b.cool.recovered(now, h.seq)
		p.cached(h)
	}
	b.wakeNext()
	p.mu.Unlock()
	p.logSibling(l.key.id, sibling)
}

// cached notes what the provider keeps of a prompt that it has begun to answer.
func (p *KeyPool) cached(h *hold) {
	if h.slot.key.gone { // others may have its scope now
		return
	}
	scope := h.slot.key.scope
	if h.read != 0 {
		p.prefixes.read(h.read, scope, h.at)
	}
	for i := range h.writes {
		if m := &h.writes[i]; m.Life > 0 {
			p.prefixes.wrote(m.Hash, m.Life, scope, h.at)
		}
	}
}

// Produced counts n more output tokens, estimated as they pass. Settle corrects
// the sum.
func (l Lease) Produced(n int) { l.ProducedAt(time.Now(), n) }

// ProducedAt is Produced at a given time.
func (l Lease) ProducedAt(now time.Time, n int) {
	if l.pool == nil || n <= 0 {
		return
	}
	l.pool.mu.Lock()
	if h := l.hold; h.generation == l.generation {
		h.slot.buckets.made(now, h, float64(min(n, mostOutput)))
	}
	l.pool.mu.Unlock()
}

// Limited records that the provider refused the request with 429. Call it after
// Answered. retryAfter is what the answer named, 0 or less where it named nothing.
//
// Where the levels say the same wait, they also say which smaller request could
// be served before: the class then cools for at most 1 s, and for all of
// retryAfter on a second refusal within 10 s. Otherwise it cools for retryAfter,
// or, where none is named, for 1 s, doubling to 60 s until an answer succeeds;
// never for more than 1 h. A wait of more than a minute without headers is none of a
// bucket, and always counts in full. Until one does, only one request at a time tries.
// It returns how long the class cools; 0: it does not.
func (l Lease) Limited(retryAfter time.Duration) time.Duration {
	return l.LimitedAt(time.Now(), retryAfter)
}

// LimitedAt is Limited at a given time.
func (l Lease) LimitedAt(now time.Time, retryAfter time.Duration) time.Duration {
	if l.pool == nil {
		return 0
	}
	p := l.pool
	p.mu.Lock()
	h := l.hold
	if h.generation != l.generation || h.oversized {
		p.mu.Unlock()
		return 0
	}
	cooling := h.slot.buckets.limited(now, h.seq, float64(h.held.Input), h.covered(inputLimit), retryAfter)
	class := h.class.name
	p.mu.Unlock()
	p.logCooling(l.key.id, class, cooling)
	return cooling
}

func (h *hold) covered(kind int) bool { return h.slot.buckets.covered(kind, h.seq) }

// Settle ends the request: what was held is replaced by what was used, and the
// rest of the output that was predicted is free again. The zero Usage is that of
// a request that was not admitted; it gets back all it had taken. A bucket may go
// below zero.
func (l Lease) Settle(u Usage) { l.SettleAt(time.Now(), u) }

// SettleAt is Settle at a given time.
func (l Lease) SettleAt(now time.Time, u Usage) {
	if l.pool == nil {
		return
	}
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	h := l.hold
	if h.generation != l.generation {
		return
	}
	b := h.slot.buckets
	refused := u == Usage{}
	u = u.clamp()
	unanswered := !h.acked
	b.acked(h)
	h.release(h.outstanding)
	output := float64(u.Output)
	if u.Partial || u.Unreported {
		output = max(output, h.made)
	}
	settled := ratelimit.Tokens{Input: u.Input + u.CacheWrite, Output: int(output)}
	if u.Unreported || h.covered(inputLimit) { // the level shows what it really took
		settled.Input = h.held.Input
	}
	if unanswered && !refused {
		b.lose(h.seq, float64(settled.Input))
	}
	b.ended(now, h, output)
	if h.held.Output == 0 {
		settled.Output = 0
		b.made(now, h, output-h.made)
	} else if refused && h.covered(outputLimit) {
		settled.Output = h.held.Output
	}
	b.limiter.SettleAt(now, h.held, settled)
	if refused && !h.covered(requestLimit) {
		b.limiter.AdjustAt(now, -1, 0, 0)
	}
	if !u.Partial && !u.Unreported && !refused {
		h.class.learn(h.bytes, u)
	}
	b.wakeNext()
	l.pool.endLocked(h)
}

// release gives back a part of the output that was predicted.
func (h *hold) release(n float64) {
	b := h.slot.buckets
	h.outstanding -= n
	if h.slot.outstanding -= n; h.slot.outstanding < 1e-6 {
		h.slot.outstanding = 0
	}
	if b.reserved -= n; b.reserved < 1e-6 { // rounding must not add up
		b.reserved = 0
	}
}

// clamp bounds what is believed of a report.
func (u Usage) clamp() Usage {
	for _, n := range []*int{&u.Input, &u.CacheWrite, &u.CacheRead, &u.Output} {
		*n = min(max(0, *n), 100_000_000)
	}
	return u
}

func (p *KeyPool) endLocked(h *hold) {
	h.class.inFlight--
	h.slot.inFlight--
	h.slot.held.Input -= h.held.Input
	h.slot.held.Output -= h.held.Output
	if h.slot.key.gone && h.slot.inFlight == 0 {
		h.class.gone = slices.DeleteFunc(h.class.gone, func(s *slot) bool { return s == h.slot })
	}
	*h = hold{generation: h.generation + 1}
	p.free = append(p.free, h)
}

// Succeeded records an answer that shows that the provider accepts the key's
// credential and account for the class. What had taken the key out is forgiven
// at once, and the next guessed cool-down starts short again. An answer to a
// request sent before the outage began proves nothing and changes nothing, nor
// does a call after Settle.
func (l Lease) Succeeded() { l.SucceededAt(time.Now()) }

// SucceededAt is Succeeded at a given time.
func (l Lease) SucceededAt(now time.Time) {
	if l.pool == nil {
		return
	}
	l.pool.mu.Lock()
	back := false
	if h := l.hold; h.generation == l.generation {
		if l.key.dead.reason != ReasonSpent || !h.class.free() { // else it proves nothing
			back = l.key.dead.forgive(h.at)
		}
		back = h.slot.blocked.forgive(h.at) || back
		l.key.cool.forgive(now)
		h.slot.buckets.cool.forgive(now)
		h.slot.forbade = false
		if back { // also those that wait for another key
			l.pool.wakeAllLocked()
		}
	}
	l.pool.mu.Unlock()
	l.pool.logBack(back, l.key.id)
}

// Accepted records an answer that shows that the provider accepts the key's
// credential, whatever it makes of the request: a refused credential is forgiven as
// by Succeeded, and nothing else is.
func (l Lease) Accepted() {
	if l.pool == nil {
		return
	}
	l.pool.mu.Lock()
	back := l.hold.generation == l.generation && l.key.dead.reason == ReasonUnauthorized && l.key.dead.forgive(l.hold.at)
	if back {
		l.pool.wakeAllLocked()
	}
	l.pool.mu.Unlock()
	l.pool.logBack(back, l.key.id)
}

// logBack tells that a key is out no more.
func (p *KeyPool) logBack(back bool, keyID string) {
	if back {
		p.log.Info().Str("key_id", keyID).Msg("key serves again")
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
