// Package keypool decides which API key of one provider serves a request, and
// keeps each key inside its limits before anything is sent. A [KeyPool]
// coordinates a rate limiter per key and model class, a [KeySelector] and
// [KeyMetadata]. It sends nothing itself and knows nothing of other providers.
package keypool

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/ratelimit"
)

// ErrAllKeysExhausted says that no key can serve the request now. Acquire
// returns it inside an *ExhaustedError that knows how long to wait.
var ErrAllKeysExhausted = errors.New("keypool: all keys exhausted")

// ErrKeyNotFound says that the pool has no key with the given ID.
var ErrKeyNotFound = errors.New("keypool: key not found")

// ExhaustedError is a refusal with the time until the same demand could be
// served, if nothing else takes what refills. errors.Is finds it to be
// ErrAllKeysExhausted.
type ExhaustedError struct {
	Provider   string
	RetryAfter time.Duration // until the first key that Demand does not exclude; of dead keys, until the next probe
	Left       int           // keys neither excluded nor dead nor off; 0: waiting for RetryAfter helps nobody
	Off        int           // keys that the operator has taken out
	Reason     Reason        // why the keys are dead, where one is and none is left; ReasonSpent goes before the others
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("%v (provider %s, again in %s)", ErrAllKeysExhausted, e.Provider, e.RetryAfter.Round(time.Millisecond))
}

// Is makes errors.Is(err, ErrAllKeysExhausted) true.
func (e *ExhaustedError) Is(target error) bool { return target == ErrAllKeysExhausted }

// Demand is what one request needs of a key.
type Demand struct {
	Class        string // model class, see Classes
	Model        string // as asked for; tells how short a prompt may be to be cached
	Client       string // who asks: clients take turns where requests wait
	Bytes        int    // of the whole prompt; its tokens are estimated from it
	Tokens       int    // of the whole prompt, for Preview alone: instead of Bytes where above 0
	MaxTokens    int    // the request's max_tokens; 0 = unknown
	Conversation uint64 // identity of the conversation, scoped by client; 0 = none, no home
	Prefix       []Mark // where the prompt may be found in a cache, longest first; none = it asks for no caching
	// Stays: the conversation goes back to the key that served it last where that is
	// free, though nothing of it is cached there: what its organization alone can read
	// (thinking, a container) would be lost elsewhere.
	Stays bool
	// Tools: its next turn may have to.
	Tools bool
	// OpenTools: and it waits a moment for that key, for it is in the middle of a turn.
	OpenTools bool
	Arrived   time.Time // when the request came: its one budget of waiting counts from here; zero = now
	Exclude   []string  // IDs of keys that this request must not use again
	// OnlyHome: refuse rather than wait for a key where nothing of the prompt is
	// cached, because another provider may serve at once.
	OnlyHome bool
	// Account, where not nil, is filled with how the choice was made. While the
	// request waits it is made again; what is there when Acquire returns is the last.
	Account *Account

	bare  bool // one request and nothing else: GetKey's
	least int  // bytes a prompt must have for the provider to cache it
}

// KeyPool chooses keys and accounts for them. All methods are safe for
// concurrent use.
type KeyPool struct {
	provider string
	log      zerolog.Logger
	onDead   func(keyID string, why Reason) // nil: nobody is told

	mu           sync.RWMutex
	keys         []*key // configured order; guarded by mu, as all that follows
	byID         map[string]*key
	off          map[string]bool // IDs of the keys that the operator has switched off, also of those that are gone
	maxWait      time.Duration
	maxWaiting   int
	affinityOff  bool
	sampled      bool // there are too many keys to look at all of them
	applied      int  // configurations so far
	selector     KeySelector
	classes      map[string]*class // never more than maxClasses
	homes        *homes
	prefixes     *prefixes
	retired      []int  // scopes of which something may still be known, though no key has them
	seq          uint64 // of dispatches
	order        uint64 // of arrivals in queues
	waiting      int    // requests in queues
	waitingBytes int
	free         []*hold // settled, for reuse

	// Scratch of decide.
	candidates []*KeyMetadata
	views      []view
	levels     ratelimit.Buckets
	drawn      []int
	hits       []int // bytes of the prompt cached, by scope
}

// NewKeyPool returns a pool of cfg's keys for the named provider. A pool without
// keys gets one that carries no credential and has no limits, so that callers
// need no special case. Errors: an unknown strategy, a key listed twice, a
// negative limit, a priority, weight or max_wait out of range.
func NewKeyPool(provider string, cfg PoolConfig) (*KeyPool, error) {
	next, err := newSettings(provider, cfg)
	if err != nil {
		return nil, err
	}
	p := &KeyPool{
		provider: provider,
		log:      cfg.Logger.With().Str("provider", provider).Logger(),
		onDead:   cfg.OnDead,
		off:      make(map[string]bool),
		classes:  make(map[string]*class),
		homes:    newHomes(),
		prefixes: newPrefixes(),
	}
	now := time.Now()
	p.classLocked(ClassAny, now)
	p.applyLocked(now, next)
	return p, nil
}

// GetKey takes one request from the best key of class "" and returns the key's
// ID and the key. Nothing needs to be returned. Errors: ErrAllKeysExhausted, or
// ctx's error. It never waits.
func (p *KeyPool) GetKey(ctx context.Context) (keyID, apiKey string, err error) {
	if err := ctx.Err(); err != nil {
		return "", "", err
	}
	now := time.Now()
	p.mu.Lock()
	c := p.classLocked(ClassAny, now)
	dec := p.decide(now, c, &Demand{bare: true, Arrived: now.Add(-LongestMaxWait)}, nil)
	var s *slot
	if dec.err == nil {
		s = c.slots[dec.view.index]
		s.buckets.limiter.AllowAt(now, ratelimit.Tokens{}) // decide has seen that there is room
		s.buckets.limiter.SettleAt(now, ratelimit.Tokens{}, ratelimit.Tokens{})
		s.probe(now)
	}
	turned := c.turn(dec.err)
	p.mu.Unlock()
	if dec.err != nil {
		p.logRefusal(ClassAny, turned, dec.err)
		if errors.Is(dec.err, ErrAllKeysExhausted) {
			return "", "", ErrAllKeysExhausted
		}
		return "", "", dec.err
	}
	p.logChoice(s.key.id, ClassAny)
	return s.key.id, s.key.secret.Reveal(), nil
}

// Acquire takes one request and holds the demand's tokens on the best key until
// the lease is settled. Choice and debit are one step: concurrent callers cannot
// be promised the same tokens. Where no key can serve now it waits in turn for the
// one that can soonest, at most PoolConfig.MaxWait from the demand's arrival.
// Errors: an *ExhaustedError with the time that this demand needs, or ctx's error.
func (p *KeyPool) Acquire(ctx context.Context, demand Demand) (Lease, error) {
	if err := ctx.Err(); err != nil {
		return Lease{}, err
	}
	if demand.Arrived.IsZero() {
		demand.Arrived = time.Now()
	}
	var turn Turn
	for {
		lease, wait, err := p.AcquireAt(time.Now(), demand, &turn)
		if err != nil || wait == 0 {
			if err == nil {
				p.logChoice(lease.key.id, demand.Class)
			} else {
				p.logRefusal(demand.Class, turn.turned, err)
			}
			return lease, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-turn.w.wake:
		case <-ctx.Done():
			timer.Stop()
			p.Leave(&turn)
			return Lease{}, ctx.Err()
		}
		timer.Stop()
	}
}

// AcquireAt is one step of Acquire at a given time: it returns a lease, or how
// long to wait before asking again with the same turn, or an error. Nothing but
// its arguments tells it the time, so that a simulator can drive it.
func (p *KeyPool) AcquireAt(now time.Time, demand Demand, turn *Turn) (Lease, time.Duration, error) {
	if demand.Arrived.IsZero() {
		demand.Arrived = now
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.classLocked(demand.Class, now)
	demand.least = c.leastCached(demand.Model)
	var queue *buckets
	if turn.w != nil {
		queue = turn.w.slot.buckets
	}
	dec := p.decide(now, c, &demand, turn.w)
	s := c.slots[dec.view.index]
	if demand.Account != nil {
		p.account(now, c, &demand, &dec, turn.w, demand.Account)
	}
	if dec.wait > 0 {
		if p.waitLocked(c, s, &demand, dec.view, turn) {
			if queue != nil && queue != s.buckets {
				queue.wakeNext()
			}
			return Lease{}, dec.wait, nil
		}
		dec.err = p.refusal(c, &demand, &dec.view)
		if demand.Account != nil {
			demand.Account.refuse(dec.err)
		}
	}
	p.leaveLocked(turn, dec.err == nil && queue == s.buckets)
	var lease Lease
	if dec.err == nil {
		lease, dec.err = p.dispatch(now, c, s, &demand, &dec.view)
	}
	if queue != nil {
		queue.wakeNext()
	}
	if dec.err == nil || len(demand.Exclude) == 0 && !demand.OnlyHome { // what was excluded may serve others
		turn.turned = c.turn(dec.err)
	}
	return lease, 0, dec.err
}

// Leave gives up a turn, for a client that has gone.
func (p *KeyPool) Leave(turn *Turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if turn.w == nil {
		return
	}
	queue := turn.w.slot.buckets
	p.leaveLocked(turn, false)
	queue.wakeNext()
}

// dispatch debits the key that was chosen.
func (p *KeyPool) dispatch(now time.Time, c *class, s *slot, d *Demand, v *view) (Lease, error) {
	b := s.buckets
	held := ratelimit.Tokens{Input: int(v.uncached)}
	if c.reserving() && b.know[outputLimit] == known {
		held.Output = d.MaxTokens
	}
	levels := b.limiter.BucketsAt(now)
	if levels.Input.Limit > 0 {
		held.Input = max(0, min(held.Input, int(levels.Input.Level)))
	}
	if levels.Output.Limit > 0 {
		held.Output = max(0, min(held.Output, int(levels.Output.Level)))
	}
	if !b.limiter.AllowAt(now, held) {
		return Lease{}, p.refusal(c, d, v)
	}
	s.probe(now)
	p.seq++
	h := p.newHold()
	h.class, h.slot, h.seq, h.at, h.held = c, s, p.seq, now, held
	h.bytes, h.maxTokens, h.oversized = d.Bytes, d.MaxTokens, v.oversized
	h.outstanding = c.predicted(d)
	b.reserved += h.outstanding
	b.unacked = append(b.unacked, h)
	b.dispatched(now, h)
	c.inFlight++
	s.inFlight++
	s.held.Input += held.Input
	s.held.Output += held.Output
	s.outstanding += h.outstanding
	p.settleIn(now, c, s, d, v, h)
	return Lease{pool: p, key: s.key, hold: h, generation: h.generation}, nil
}

// settleIn makes the key the conversation's home, where there is or may be something to
// come back to, and notes what the request will read and write there.
func (p *KeyPool) settleIn(now time.Time, c *class, s *slot, d *Demand, v *view, h *hold) {
	if p.affinityOff || len(d.Prefix) == 0 && !d.Stays && !d.Tools {
		return
	}
	at := home{key: s.key, used: now, life: cacheLife}
	n := 0
	for i := range d.Prefix {
		m := &d.Prefix[i]
		if h.read == 0 && v.cached > 0 && float64(m.Bytes)*c.ratio <= v.cached+0.5 {
			h.read = m.Hash
		}
		if m.Life == 0 || m.Bytes < d.least || n == len(h.writes) {
			continue
		}
		h.writes[n] = *m
		at.life = max(at.life, min(m.Life, longestLife))
		n++
	}
	p.homes.set(d.Conversation, at)
}

// leastCached is how many bytes a prompt must have for the provider to cache it.
func (c *class) leastCached(model string) int {
	if model == "" {
		model = c.name
	}
	return int(float64(minCacheable(model)) / c.ratio)
}

// GetEarliestResetTime is how long until some key can serve one request of class
// "" again, over cool-downs and buckets; 0 when one can now, and with only dead
// keys the time to the next probe. Keys that are off do not count; where all are, it is
// an hour: nobody knows.
func (p *KeyPool) GetEarliestResetTime() time.Duration {
	now := time.Now()
	p.mu.RLock()
	defer p.mu.RUnlock()
	c := p.classes[ClassAny]
	earliest, probe := never, never
	for _, s := range c.slots {
		if s.key.off {
			continue
		}
		wait := s.wait(now, s.buckets.limiter.UsageAt(now))
		if s.dead() != "" && wait > 0 {
			probe = min(probe, wait)
		} else {
			earliest = min(earliest, wait)
		}
	}
	if earliest == never {
		earliest = probe
	}
	if earliest == never {
		return longPause
	}
	return earliest
}

// UpdateKeyFromHeaders learns limits and levels of class "" from an answer's
// anthropic-ratelimit headers. See UpdateClassFromHeaders.
func (p *KeyPool) UpdateKeyFromHeaders(keyID string, h http.Header) error {
	return p.UpdateClassFromHeaders(keyID, ClassAny, h)
}

// UpdateClassFromHeaders learns limits and levels of one model class from an
// answer's anthropic-ratelimit-{requests,input-tokens,output-tokens}-{limit,remaining,reset}
// headers. A missing or unreadable header changes nothing. A limit replaces the
// one in force; remaining may lower a level but never raise it, because the
// answer is older than what was sent since. ClassCountTokens learns of requests
// only, and ClassModels nothing of limits. anthropic-organization-id tells whose
// key it is: keys of one organization share their limits from then on, with what
// they have in flight. Error: ErrKeyNotFound.
func (p *KeyPool) UpdateClassFromHeaders(keyID, class string, h http.Header) error {
	seen := parseRateHeaders(h)
	organization, workspace := organizationOf(h), workspaceOf(h)
	now := time.Now()
	p.mu.Lock()
	k, ok := p.byID[keyID]
	var sibling *key
	if ok {
		sibling = p.joinLocked(now, k, organization, workspace)
		c := p.classLocked(class, now)
		c.slots[k.index].learn(now, seen)
		c.slots[k.index].note(now, seen.of(class))
		c.weights = nil
	}
	p.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: %s", ErrKeyNotFound, keyID)
	}
	p.logSibling(keyID, sibling)
	return nil
}

func (p *KeyPool) logSibling(keyID string, sibling *key) {
	if sibling != nil {
		p.log.Warn().Str("key_id", keyID).Str("same_as", sibling.id).Msg("two keys belong to one organization; its limits are counted once, so the second adds no capacity")
	}
}

// MarkKeyExhausted cools a key down for all classes: it serves nothing for
// retryAfter, at most 1 h; a cool-down under way is never cut short. A retryAfter
// of 0 or less means that the provider named no time: 1 s, doubling to 60 s with
// each further call until the key serves again. Unknown IDs are ignored.
func (p *KeyPool) MarkKeyExhausted(keyID string, retryAfter time.Duration) {
	p.cool(keyID, ClassAny, func(k *key, now time.Time) time.Duration {
		return k.cool.start(now, retryAfter)
	})
}

// MarkClassExhausted records that the provider refused a request of one class
// with 429, see Lease.Limited. Unknown IDs are ignored.
func (p *KeyPool) MarkClassExhausted(keyID, class string, retryAfter time.Duration) {
	p.cool(keyID, class, func(k *key, now time.Time) time.Duration {
		return p.classLocked(class, now).slots[k.index].buckets.limited(now, p.seq, 1, true, retryAfter)
	})
}

func (p *KeyPool) cool(keyID, class string, start func(*key, time.Time) time.Duration) {
	now := time.Now()
	p.mu.Lock()
	k, ok := p.byID[keyID]
	var cooling time.Duration
	if ok {
		cooling = start(k, now)
	}
	p.mu.Unlock()
	if ok {
		p.logCooling(keyID, class, cooling)
	}
}

func (p *KeyPool) logCooling(keyID, class string, cooling time.Duration) {
	p.log.Warn().Str("key_id", keyID).Str("class", class).Dur("for_ms", cooling).Msg("key cools down")
}

// Release lets a key serve again: it ends what keeps it out, cool-downs of its
// organization included, for all classes. What the provider says next counts as
// ever. A key that is off stays off. Error: ErrKeyNotFound.
func (p *KeyPool) Release(keyID string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.byID[keyID]
	if !ok {
		return fmt.Errorf("%w: %s", ErrKeyNotFound, keyID)
	}
	k.dead, k.cool = outage{}, coolDown{}
	for _, c := range p.classes {
		s := c.slots[k.index]
		s.blocked, s.forbade = outage{}, false
		s.buckets.cool.lift()
	}
	p.wakeAllLocked()
	return nil
}

// Reconsider ends what a provider's refusals of the keys themselves have brought about,
// for all keys and classes: it is to be called when they are shown to it in another way.
// Accounts without credit and cool-downs stay as they are.
func (p *KeyPool) Reconsider() {
	p.mu.Lock()
	defer p.mu.Unlock()
	refused := func(o *outage) bool { return o.active() && o.reason != ReasonSpent }
	for _, k := range p.keys {
		if refused(&k.dead) {
			k.dead = outage{}
		}
		for _, c := range p.classes {
			if s := c.slots[k.index]; refused(&s.blocked) {
				s.blocked, s.forbade = outage{}, false
			}
		}
	}
	p.wakeAllLocked()
}

// MarkKeyDead takes a key out for all classes: the provider refuses the
// credential, or its account has nothing left to spend. One live request tries
// it again after the time that belongs to the reason. Unknown IDs are ignored.
func (p *KeyPool) MarkKeyDead(keyID string, why Reason) { p.MarkKeyDeadAt(time.Now(), keyID, why) }

// MarkKeyDeadAt is MarkKeyDead at a given time.
func (p *KeyPool) MarkKeyDeadAt(now time.Time, keyID string, why Reason) {
	p.mu.Lock()
	k, ok := p.byID[keyID]
	news := ok && k.dead.strike(now, why)
	if news { // those that wait for it
		p.wakeAllLocked()
	}
	p.mu.Unlock()
	if news {
		p.tellDead(keyID, why)
		p.log.Warn().Str("key_id", keyID).Str("reason", string(why)).Msg("key is out; check it at the provider, or remove it from the configuration")
	}
}

// MarkKeyForbidden records a 403 that a request of one class met. Alone it says
// more about the request than about the key, so the key goes out for the class
// only when the provider blames the account, when requests of two different
// clients met it with no success between, or when the request was a probe.
// Unknown IDs are ignored.
func (p *KeyPool) MarkKeyForbidden(keyID, class, client string, account bool) {
	now := time.Now()
	p.mu.Lock()
	k, ok := p.byID[keyID]
	news := false
	if ok {
		s := p.classLocked(class, now).slots[k.index]
		second := s.forbade && s.forbadeClient != client
		s.forbade, s.forbadeClient = true, client
		if account || second || s.blocked.active() {
			news = s.blocked.strike(now, ReasonForbidden)
		}
		if news {
			p.wakeAllLocked()
		}
	}
	p.mu.Unlock()
	if news {
		p.tellDead(keyID, ReasonForbidden)
		p.log.Warn().Str("key_id", keyID).Str("class", class).Msg("key may not serve this class; check the model access of its account")
	}
}

func (p *KeyPool) tellDead(keyID string, why Reason) {
	if p.onDead != nil {
		p.onDead(keyID, why)
	}
}

func (p *KeyPool) logChoice(keyID, class string) {
	if e := p.log.Debug(); e != nil {
		e.Str("key_id", keyID).Str("class", class).Msg("key chosen")
	}
}

// logRefusal warns once when a class runs dry, not for every request it refuses.
func (p *KeyPool) logRefusal(class string, turned bool, err error) {
	level := zerolog.DebugLevel
	if turned {
		level = zerolog.WarnLevel
	}
	e := p.log.WithLevel(level).Str("class", class)
	var exhausted *ExhaustedError
	if errors.As(err, &exhausted) {
		e = e.Dur("retry_after_ms", exhausted.RetryAfter)
	}
	e.Err(err).Msg("no key can serve")
}
