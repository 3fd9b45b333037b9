package keypool

import (
	"fmt"
	"iter"
	"math"
	"time"

	"cc-relay/internal/ratelimit"
	"cc-relay/internal/secret"
)

// maxClasses bounds the classes a pool remembers. Unknown models are classes of
// their own and their names come from clients.
const maxClasses = 256

// maxWeight bounds a key's weight, so that sums of weights cannot overflow.
const maxWeight = 1000

// key is one credential. Its buckets hang on its owner. It stays the same one as long
// as it is configured.
type key struct {
	id     string
	secret secret.Value

	// What the configuration says. Guarded by KeyPool.mu, as all that follows.
	index        int
	limits       ratelimit.Limits // where each class starts
	priority     int
	weight       int
	organization string // the operator's name for it; "" = none

	since int  // number of the configuration that brought it
	gone  bool // not configured any more: serves what is in flight and nothing else
	off   bool // the operator has taken it out

	owner     *owner
	told      bool   // an answer has named the organization
	workspace string // the provider's id of it; "" until an answer has told
	scope     int    // of the prompt cache that the key's requests fill
	dead      outage
	cool      coolDown
}

// class is one model class in one pool: a slot for each key, in configured order.
type class struct {
	name     string
	slots    []*slot
	gone     []*slot   // of keys that were removed while requests are in flight
	inFlight int       // leases not settled
	waiting  int       // requests in queues
	used     time.Time // last choice
	dry      bool      // the last choice was a refusal

	ratio    float64 // tokens a byte of prompt, as far as answers have told
	output   float64 // tokens that six of ten answers stay below
	reserve  bool    // the provider takes max_tokens in advance
	ballot   ballot
	coldLast time.Time // when a request that starts cold looked for a key last,
	// and since when none found one; zero while they do
	coldSince time.Time
	weights   []float64 // of the slots, for drawing; nil: to be computed
	weight    float64   // their sum
}

// slot is one key for one class, and stays the same one as long as either is there.
type slot struct {
	meta          KeyMetadata
	buckets       *buckets
	key           *key
	inFlight      int              // leases of this key not settled
	held          ratelimit.Tokens // by them
	outstanding   float64          // of the output predicted for them
	blocked       outage
	forbade       bool   // a 403 came, and no success since
	forbadeClient string // whose
}

// newKeys are the keys of a configuration, each with an owner of its own.
func newKeys(configs []KeyConfig) ([]*key, error) {
	if len(configs) == 0 {
		return []*key{{id: "keyless", priority: PriorityNormal, weight: 1, owner: &owner{}}}, nil
	}
	keys := make([]*key, 0, len(configs))
	seen := make(map[string]int, len(configs))
	organizations := make(map[string]*owner)
	for i, c := range configs {
		k, err := newKey(c)
		if err != nil {
			return nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
		if first, dup := seen[k.id]; dup {
			return nil, fmt.Errorf("keys[%d] is the same key as keys[%d]; list a key once", i, first)
		}
		seen[k.id] = i
		if o, ok := organizations[c.Organization]; ok && c.Organization != "" {
			if err := o.share(k.limits); err != nil {
				return nil, fmt.Errorf("keys[%d]: organization %s: %w", i, c.Organization, err)
			}
		} else {
			organizations[c.Organization] = &owner{limits: k.limits}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func newKey(c KeyConfig) (*key, error) {
	k := &key{id: c.ID(), secret: c.Key, priority: PriorityNormal, weight: 1, organization: c.Organization,
		limits: ratelimit.Limits{RPM: c.RPMLimit, ITPM: c.ITPMLimit, OTPM: c.OTPMLimit}}
	if c.Priority != nil {
		k.priority = *c.Priority
	}
	if c.Weight != nil {
		k.weight = *c.Weight
	}
	switch {
	case c.Key.IsZero():
		return nil, fmt.Errorf("key is empty")
	case k.priority < PriorityLow || k.priority > PriorityHigh:
		return nil, fmt.Errorf("priority %d is not 0 (low), 1 (normal) or 2 (high)", k.priority)
	case k.weight < 1 || k.weight > maxWeight:
		return nil, fmt.Errorf("weight %d is not within 1 and %d", k.weight, maxWeight)
	case k.limits.RPM < 0 || k.limits.ITPM < 0 || k.limits.OTPM < 0:
		return nil, fmt.Errorf("a limit is negative; write 0 where it is not known")
	}
	k.owner = &owner{limits: k.limits}
	return k, nil
}

// wait is how long until the key can take one request of the slot's class: over
// outages, cool-downs and buckets. A bucket with at least one token admits; what
// a prompt really costs is known only at the provider, which sees its cache.
func (s *slot) wait(now time.Time, u ratelimit.Usage) time.Duration {
	return max(s.barred(now), u.WaitFor(ratelimit.Tokens{Input: 1, Output: 1}))
}

// barred is how long outages and cool-downs keep the key from the class.
func (s *slot) barred(now time.Time) time.Duration {
	wait := max(s.key.cool.wait(now), s.buckets.cool.wait(now))
	if s.dead() != "" {
		wait = max(wait, s.key.dead.wait(now), s.blocked.wait(now))
	}
	return wait
}

// probe notes that a request tries a key that is out.
func (s *slot) probe(now time.Time) {
	s.key.dead.probe(now)
	s.blocked.probe(now)
}

// learn takes limits from an answer's headers, and lowers levels to what is left.
func (s *slot) learn(now time.Time, seen rateHeaders) {
	b := s.buckets
	seen = seen.of(s.meta.Class)
	limits := b.limiter.UsageAt(now).Limits
	changed := limits
	for i, limit := range []*int{&changed.RPM, &changed.ITPM, &changed.OTPM} {
		if t := [limitKinds]triple{seen.requests, seen.input, seen.output}[i]; t.limit != unseen {
			*limit = t.limit
			b.know[i], b.told[i] = known, true
		}
	}
	if changed != limits {
		b.limiter.SetLimitAt(now, changed)
	}
	b.limiter.LowerAt(now, ratelimit.Levels{Requests: seen.requests.remaining, Input: seen.input.remaining, Output: seen.output.remaining})
}

// note keeps when the buckets are full again, for those who look.
func (s *slot) note(now time.Time, seen rateHeaders) {
	for _, t := range []struct {
		reset time.Duration
		at    *time.Time
	}{
		{seen.requests.reset, &s.meta.RequestsReset},
		{seen.input.reset, &s.meta.InputReset},
		{seen.output.reset, &s.meta.OutputReset},
	} {
		if t.reset > 0 {
			*t.at = now.Add(t.reset)
		}
	}
}

// view is the slot's metadata as of now.
func (s *slot) view(now time.Time) KeyMetadata {
	u := s.buckets.limiter.UsageAt(now)
	m := s.meta
	m.Limits = u.Limits
	m.Remaining = ratelimit.Limits{RPM: floor(u.Requests), ITPM: floor(u.Input), OTPM: floor(u.Output)}
	m.InFlight = s.inFlight
	m.Reserved = s.reserved()
	b := s.buckets.limiter.BucketsAt(now)
	m.Headroom = headroom(&b, 1, 0, s.buckets.reserved)
	m.State, m.Until, m.Reason = s.state(now, u)
	return m
}

// dead is why the key is out for the slot's class; "" where it is not.
func (s *slot) dead() Reason {
	if s.key.dead.active() {
		return s.key.dead.reason
	}
	return s.blocked.reason
}

// usable reports whether the key may serve the slot's class, now or once it has refilled.
func (s *slot) usable() bool { return !s.key.off && s.dead() == "" }

// reserved is what the key's requests in flight hold of its buckets.
func (s *slot) reserved() ratelimit.Tokens {
	return ratelimit.Tokens{Input: s.held.Input, Output: max(s.held.Output, int(s.outstanding))}
}

func (s *slot) state(now time.Time, u ratelimit.Usage) (State, time.Time, Reason) {
	if s.key.off {
		return StateOff, time.Time{}, ""
	}
	if s.key.dead.active() {
		return StateDead, s.key.dead.next, s.key.dead.reason
	}
	if s.blocked.active() {
		return StateDead, s.blocked.next, s.blocked.reason
	}
	if cooling := max(s.key.cool.wait(now), s.buckets.cool.wait(now)); cooling > 0 {
		return StateCooling, now.Add(cooling), ""
	}
	if empty := s.wait(now, u); empty > 0 {
		return StateExhausted, now.Add(empty), ""
	}
	return StateAvailable, time.Time{}, ""
}

func floor(level float64) int { return int(math.Floor(level + 1e-6)) }

// classLocked returns the class, making it on first use. The caller holds mu for writing.
func (p *KeyPool) classLocked(name string, now time.Time) *class {
	if c, ok := p.classes[name]; ok {
		c.used = now
		return c
	}
	if len(p.classes) >= maxClasses {
		idle := p.idleClass()
		if idle == nil {
			return p.classLocked(ClassAny, now) // every class is busy: share one
		}
		delete(p.classes, idle.name)
	}
	c := p.newClass(name, now)
	p.classes[name] = c
	return c
}

func (p *KeyPool) newClass(name string, now time.Time) *class {
	c := &class{name: name, used: now, ratio: firstRatio, output: firstOutput}
	c.arrange(now, p.keys)
	return c
}

// arrange gives the class the slots of these keys, in their order, and makes those
// that it does not have.
func (c *class) arrange(now time.Time, keys []*key) {
	have := make(map[*key]*slot, len(c.slots))
	for _, s := range c.slots {
		have[s.key] = s
	}
	missing := 0
	for _, k := range keys {
		if have[k] == nil {
			missing++
		}
	}
	fresh := make([]slot, missing) // side by side: a choice reads them all
	c.slots = make([]*slot, len(keys))
	for i, k := range keys {
		s := have[k]
		if s == nil {
			s, fresh = &fresh[0], fresh[1:]
			s.key, s.meta.ID, s.meta.Class = k, k.id, c.name
		}
		s.meta.Index, s.meta.Priority, s.meta.Weight = i, k.priority, k.weight
		c.slots[i] = s
	}
	for _, s := range c.slots {
		if s.buckets != nil {
			continue
		}
		if s.buckets = c.bucketsOf(s.key.owner); s.buckets == nil {
			s.buckets = newBuckets(now, s.key.owner.limitsFor(c.name), c.name)
		}
	}
	c.weights = nil
}

// all are the slots of the configured keys, and those that still have requests in flight.
func (c *class) all() iter.Seq[*slot] {
	return func(yield func(*slot) bool) {
		for _, s := range c.slots {
			if !yield(s) {
				return
			}
		}
		for _, s := range c.gone {
			if !yield(s) {
				return
			}
		}
	}
}

// idleClass is the class that was idle longest, nil if none is.
func (p *KeyPool) idleClass() *class {
	var oldest *class
	for _, c := range p.classes {
		if c.name != ClassAny && c.inFlight == 0 && c.waiting == 0 && (oldest == nil || c.used.Before(oldest.used)) {
			oldest = c
		}
	}
	return oldest
}

// turn records the outcome of a choice and reports whether the class has just run dry.
func (c *class) turn(err error) bool {
	was := c.dry
	c.dry = err != nil
	return c.dry && !was
}
