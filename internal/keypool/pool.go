// Package keypool decides which API key of one provider serves a request, and
// keeps each key inside its limits before anything is sent. A [KeyPool]
// coordinates a rate limiter per key and model class, a [KeySelector] and
// [KeyMetadata]. It sends nothing itself and knows nothing of other providers.
package keypool

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
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
	Left       int           // keys neither excluded nor dead; 0: waiting for RetryAfter helps nobody
	Reason     Reason        // why the keys are dead, where one is and none is left; ReasonSpent goes before the others
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("%v (provider %s, again in %s)", ErrAllKeysExhausted, e.Provider, e.RetryAfter.Round(time.Millisecond))
}

// Is makes errors.Is(err, ErrAllKeysExhausted) true.
func (e *ExhaustedError) Is(target error) bool { return target == ErrAllKeysExhausted }

// Demand is what one request needs of a key.
type Demand struct {
	Class        string   // model class, see ClassOf
	Input        int      // estimated tokens of the whole prompt
	MaxTokens    int      // the request's max_tokens; 0 = unknown
	Conversation uint64   // identity within its client, scoped by client; 0 = none, no home
	Exclude      []string // IDs of keys that this request must not use again
}

// heldOutput is how many output tokens a request holds until it is settled, at
// most: an answer's usual length. max_tokens is no measure, Claude Code always
// sends 128,000, and Anthropic counts only what is produced.
const heldOutput = 400

// KeyPool chooses keys and accounts for them. All methods are safe for
// concurrent use.
type KeyPool struct {
	provider string
	log      zerolog.Logger
	keys     []*key // configured order; the slice never changes
	byID     map[string]*key

	mu         sync.RWMutex
	selector   KeySelector       // guarded by mu, as all that follows
	classes    map[string]*class // never more than maxClasses
	homes      *homes
	free       []*hold        // settled, for reuse
	candidates []*KeyMetadata // scratch of choose
}

// NewKeyPool returns a pool of cfg's keys for the named provider. A pool without
// keys gets one that carries no credential and has no limits, so that callers
// need no special case. Errors: an unknown strategy, a key listed twice, a
// negative limit, a priority or weight out of range.
func NewKeyPool(provider string, cfg PoolConfig) (*KeyPool, error) {
	selector, err := NewSelector(cfg.Strategy)
	if err != nil {
		return nil, err
	}
	keys, err := newKeys(cfg.Keys)
	if err != nil {
		return nil, fmt.Errorf("keypool: provider %s: %w", provider, err)
	}
	p := &KeyPool{
		provider:   provider,
		log:        cfg.Logger.With().Str("provider", provider).Logger(),
		keys:       keys,
		byID:       make(map[string]*key, len(keys)),
		selector:   selector,
		classes:    make(map[string]*class),
		homes:      newHomes(),
		candidates: make([]*KeyMetadata, 0, len(keys)),
	}
	for _, k := range keys {
		p.byID[k.id] = k
	}
	p.classLocked(ClassAny, time.Now())
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
	choice, err := p.choose(now, c, Demand{})
	if err == nil {
		err = choice.take(now, ratelimit.Tokens{})
	}
	if err == nil {
		choice.buckets.limiter.SettleAt(now, ratelimit.Tokens{}, ratelimit.Tokens{})
	}
	turned := c.turn(err)
	p.mu.Unlock()
	if err != nil {
		p.logRefusal(ClassAny, turned, err)
		if errors.Is(err, ErrAllKeysExhausted) {
			err = ErrAllKeysExhausted
		}
		return "", "", err
	}
	p.logChoice(choice.meta.ID, ClassAny)
	return choice.meta.ID, p.keys[choice.meta.Index].secret.Reveal(), nil
}

// Acquire takes one request and holds the demand's tokens on the best key until
// the lease is settled. Choice and debit are one step: concurrent callers cannot
// be promised the same tokens. Errors: an *ExhaustedError, or ctx's error. It
// never waits.
func (p *KeyPool) Acquire(ctx context.Context, demand Demand) (Lease, error) {
	if err := ctx.Err(); err != nil {
		return Lease{}, err
	}
	now := time.Now()
	p.mu.Lock()
	c := p.classLocked(demand.Class, now)
	lease, err := p.acquireLocked(now, c, demand)
	turned := false
	if err == nil || len(demand.Exclude) == 0 { // what was excluded may serve others
		turned = c.turn(err)
	}
	p.mu.Unlock()
	if err != nil {
		p.logRefusal(demand.Class, turned, err)
		return Lease{}, err
	}
	p.logChoice(lease.key.id, demand.Class)
	return lease, nil
}

func (p *KeyPool) acquireLocked(now time.Time, c *class, demand Demand) (Lease, error) {
	prompt := demand.Input
	s, err := p.choose(now, c, demand)
	if err != nil {
		return Lease{}, err
	}
	demand.Input -= p.homes.cached(demand.Conversation, s.meta.Index, now)
	held := s.holdable(now, demand)
	if err := s.take(now, held); err != nil {
		return Lease{}, err
	}
	k := p.keys[s.meta.Index]
	if demand.Conversation != 0 {
		p.homes.set(demand.Conversation, home{key: k.index, prompt: prompt, used: now})
	}
	h := p.newHold()
	h.class, h.slot, h.held = c, s, held
	c.inFlight++
	s.inFlight++
	s.held.Input += held.Input
	s.held.Output += held.Output
	return Lease{pool: p, key: k, hold: h, generation: h.generation, at: now}, nil
}

// choose is the whole decision and changes nothing but the turn of the selector:
// the conversation's home if it can serve, else the selector's pick among the
// keys of the highest priority that can, else a refusal with the shortest wait.
// The caller holds mu for writing.
func (p *KeyPool) choose(now time.Time, c *class, demand Demand) (*slot, error) {
	home := p.homes.get(demand.Conversation, now)
	available := p.candidates[:0]
	shortest, probe := never, never
	left, reason := 0, Reason("")
	need := ratelimit.Tokens{Input: demand.Input, Output: min(demand.MaxTokens, heldOutput)}
	for i := range c.slots {
		s := &c.slots[i]
		if slices.Contains(demand.Exclude, s.meta.ID) {
			continue
		}
		why := s.dead()
		if why == "" {
			left++
		} else if reason != ReasonSpent {
			reason = why
		}
		room, inFlight, open := s.buckets.limiter.RoomAt(now, need)
		if !open || s.barred(now) > 0 {
			wait := s.wait(now, s.buckets.limiter.UsageAt(now))
			if why != "" {
				probe = min(probe, wait)
			} else {
				shortest = min(shortest, wait)
			}
			continue
		}
		if i == home {
			return s, nil
		}
		s.meta.InFlight = s.inFlight
		s.meta.Headroom = headroom(room, inFlight)
		if len(available) > 0 && s.meta.Priority > available[0].Priority {
			available = available[:0]
		}
		if len(available) == 0 || s.meta.Priority == available[0].Priority {
			available = append(available, &s.meta)
		}
	}
	if len(available) == 0 {
		if left > 0 {
			reason = ""
		} else {
			shortest = probe
		}
		if shortest == never { // every key is excluded
			shortest = 0
		}
		return nil, &ExhaustedError{Provider: p.provider, RetryAfter: shortest, Left: left, Reason: reason}
	}
	chosen, err := p.selector.Select(available)
	if err != nil {
		return nil, fmt.Errorf("selector %s: %w", p.selector.Name(), err)
	}
	if !slices.Contains(available, chosen) {
		return nil, fmt.Errorf("keypool: selector %s chose a key that was not offered", p.selector.Name())
	}
	return &c.slots[chosen.Index], nil
}

// headroom is the smallest (level − demand)/limit over the buckets with a known
// limit. Without any it falls with the requests in flight, from one half: a key
// nobody knows is worth a try before one that is more than half spent.
func headroom(room float64, inFlight int) float64 {
	if math.IsInf(room, 1) {
		return 0.5 - 0.2*float64(inFlight)
	}
	return room
}

// never is longer than any wait.
const never = time.Duration(math.MaxInt64)

// GetEarliestResetTime is how long until some key can serve one request of class
// "" again, over cool-downs and buckets; 0 when one can now, and with only dead
// keys the time to the next probe.
func (p *KeyPool) GetEarliestResetTime() time.Duration {
	now := time.Now()
	p.mu.RLock()
	defer p.mu.RUnlock()
	c := p.classes[ClassAny]
	earliest, probe := never, never
	for i := range c.slots {
		s := &c.slots[i]
		wait := s.wait(now, s.buckets.limiter.UsageAt(now))
		if s.dead() != "" && wait > 0 {
			probe = min(probe, wait)
		} else {
			earliest = min(earliest, wait)
		}
	}
	if earliest == never {
		return probe
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
	organization := organizationOf(h)
	now := time.Now()
	p.mu.Lock()
	k, ok := p.byID[keyID]
	var sibling *key
	if ok {
		sibling = p.joinLocked(now, k, organization)
		p.classLocked(class, now).slots[k.index].learn(now, seen)
	}
	p.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: %s", ErrKeyNotFound, keyID)
	}
	if sibling != nil {
		p.log.Warn().Str("key_id", keyID).Str("same_as", sibling.id).Msg("two keys belong to one organization; its limits are counted once, so the second adds no capacity")
	}
	return nil
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
// with 429. Where limits are known the buckets already say when the key has room
// again, and retryAfter is only what that one request would have had to wait:
// the class then cools for at most 1 s, and for the full retryAfter on a second
// refusal within 10 s. Without known limits it cools for retryAfter at once; 0
// or less is handled as in MarkKeyExhausted. Unknown IDs are ignored.
func (p *KeyPool) MarkClassExhausted(keyID, class string, retryAfter time.Duration) {
	p.cool(keyID, class, func(k *key, now time.Time) time.Duration {
		b := p.classLocked(class, now).slots[k.index].buckets
		known := b.limiter.UsageAt(now).Limits != ratelimit.Limits{}
		if known && retryAfter > 0 && !b.cool.repeated(now) {
			retryAfter = min(retryAfter, time.Second)
		}
		return b.cool.start(now, retryAfter)
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
		p.log.Warn().Str("key_id", keyID).Str("class", class).Dur("for_ms", cooling).Msg("key cools down")
	}
}

// MarkKeyDead takes a key out for all classes: the provider refuses the
// credential, or its account has nothing left to spend. One live request tries
// it again after the time that belongs to the reason. Unknown IDs are ignored.
func (p *KeyPool) MarkKeyDead(keyID string, why Reason) {
	now := time.Now()
	p.mu.Lock()
	k, ok := p.byID[keyID]
	news := ok && k.dead.strike(now, why)
	p.mu.Unlock()
	if news {
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
		s := &p.classLocked(class, now).slots[k.index]
		second := s.forbade && s.forbadeClient != client
		s.forbade, s.forbadeClient = true, client
		if account || second || s.blocked.active() {
			news = s.blocked.strike(now, ReasonForbidden)
		}
	}
	p.mu.Unlock()
	if news {
		p.log.Warn().Str("key_id", keyID).Str("class", class).Msg("key may not serve this class; check the model access of its account")
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
