package keypool

import (
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"cc-relay/internal/ratelimit"
	"cc-relay/internal/secret"
)

// maxClasses bounds the classes a pool remembers. Unknown models are classes of
// their own and their names come from clients.
const maxClasses = 256

// maxWeight bounds a key's weight, so that sums of weights cannot overflow.
const maxWeight = 1000

// key is one credential. Its buckets hang on its owner.
type key struct {
	id       string
	index    int
	secret   secret.Value
	limits   ratelimit.Limits // configured, where each class starts
	priority int
	weight   int

	owner *owner // guarded by KeyPool.mu, as what follows
	dead  outage
	cool  coolDown
}

// buckets are one owner's limits for one class.
type buckets struct {
	learned bool // headers have told a limit
	limiter *ratelimit.TokenBucketLimiter
	cool    coolDown
}

// class is one model class in one pool: a slot for each key, in configured order.
type class struct {
	name     string
	slots    []slot
	inFlight int       // leases not settled
	used     time.Time // last choice
	dry      bool      // the last choice was a refusal
}

// slot is one key for one class.
type slot struct {
	meta          KeyMetadata
	buckets       *buckets
	key           *key
	inFlight      int              // leases of this key not settled
	held          ratelimit.Tokens // by them
	blocked       outage
	forbade       bool   // a 403 came, and no success since
	forbadeClient string // whose
}

func newKeys(configs []KeyConfig) ([]*key, error) {
	if len(configs) == 0 {
		return []*key{{id: "keyless", priority: PriorityNormal, weight: 1, owner: &owner{}}}, nil
	}
	keys := make([]*key, 0, len(configs))
	seen := make(map[string]int, len(configs))
	owners := make(map[string]*owner)
	for i, c := range configs {
		k, err := newKey(i, c)
		if err != nil {
			return nil, fmt.Errorf("keys[%d]: %w", i, err)
		}
		if first, dup := seen[k.id]; dup {
			return nil, fmt.Errorf("keys[%d] is the same key as keys[%d]; list a key once", i, first)
		}
		seen[k.id] = i
		if o, ok := owners[c.Organization]; ok && c.Organization != "" {
			if err := o.share(k.limits); err != nil {
				return nil, fmt.Errorf("keys[%d]: organization %s: %w", i, c.Organization, err)
			}
			k.owner = o
		}
		owners[c.Organization] = k.owner
		keys = append(keys, k)
	}
	return keys, nil
}

func newKey(index int, c KeyConfig) (*key, error) {
	k := &key{id: c.ID(), index: index, secret: c.Key, priority: PriorityNormal, weight: 1,
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
	return max(s.key.dead.wait(now), s.blocked.wait(now), s.key.cool.wait(now), s.buckets.cool.wait(now))
}

// holdable is what the demand may hold of what is there.
func (s *slot) holdable(now time.Time, d Demand) ratelimit.Tokens {
	u := s.buckets.limiter.UsageAt(now)
	output := heldOutput
	if d.MaxTokens > 0 {
		output = min(output, d.MaxTokens)
	}
	return ratelimit.Tokens{Input: atMost(d.Input, u.Limits.ITPM, u.Input), Output: atMost(output, u.Limits.OTPM, u.Output)}
}

func atMost(estimate, limit int, level float64) int {
	if limit == 0 {
		return max(0, estimate)
	}
	return max(0, min(estimate, int(level)))
}

// take debits the slot. The caller has seen under the same lock that there is room.
func (s *slot) take(now time.Time, held ratelimit.Tokens) error {
	if !s.buckets.limiter.AllowAt(now, held) {
		return ErrAllKeysExhausted
	}
	s.key.dead.probe(now)
	s.blocked.probe(now)
	return nil
}

// learn merges an answer's headers into limiter and metadata.
func (s *slot) learn(now time.Time, seen rateHeaders) {
	switch s.meta.Class {
	case ClassModels:
		return
	case ClassCountTokens: // tokens in its headers are those of other classes
		none := triple{limit: unseen, remaining: unseen}
		seen.input, seen.output = none, none
	}
	l := s.buckets.limiter
	limits := l.UsageAt(now).Limits
	changed := limits
	for _, t := range []struct {
		seen  triple
		limit *int
		reset *time.Time
	}{
		{seen.requests, &changed.RPM, &s.meta.RequestsReset},
		{seen.input, &changed.ITPM, &s.meta.InputReset},
		{seen.output, &changed.OTPM, &s.meta.OutputReset},
	} {
		if t.seen.limit != unseen {
			*t.limit = t.seen.limit
		}
		if t.seen.reset > 0 {
			*t.reset = now.Add(t.seen.reset)
		}
	}
	if changed != limits {
		s.buckets.learned = true
		l.SetLimitAt(now, changed)
	}
	l.LowerAt(now, ratelimit.Levels{Requests: seen.requests.remaining, Input: seen.input.remaining, Output: seen.output.remaining})
}

// view is the slot's metadata as of now.
func (s *slot) view(now time.Time) KeyMetadata {
	u := s.buckets.limiter.UsageAt(now)
	m := s.meta
	m.Limits = u.Limits
	m.Remaining = ratelimit.Limits{RPM: floor(u.Requests), ITPM: floor(u.Input), OTPM: floor(u.Output)}
	m.InFlight = s.inFlight
	room, _, _ := s.buckets.limiter.RoomAt(now, ratelimit.Tokens{})
	m.Headroom = headroom(room, u.InFlight)
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

func (s *slot) state(now time.Time, u ratelimit.Usage) (State, time.Time, Reason) {
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
	if len(p.classes) >= maxClasses && !p.forgetClassLocked() {
		return p.classLocked(ClassAny, now) // every class is busy: share one
	}
	c := &class{name: name, slots: make([]slot, len(p.keys)), used: now}
	for i, k := range p.keys {
		c.slots[i] = slot{
			meta: KeyMetadata{ID: k.id, Class: name, Index: i, Priority: k.priority, Weight: k.weight},
			key:  k,
		}
		if c.slots[i].buckets = c.bucketsOf(k.owner); c.slots[i].buckets == nil {
			c.slots[i].buckets = &buckets{limiter: ratelimit.NewTokenBucketLimiter(k.owner.limitsFor(name))}
		}
	}
	p.classes[name] = c
	return c
}

// forgetClassLocked drops the class that was idle longest. It reports whether there was one.
func (p *KeyPool) forgetClassLocked() bool {
	var oldest *class
	for _, c := range p.classes {
		if c.name != ClassAny && c.inFlight == 0 && (oldest == nil || c.used.Before(oldest.used)) {
			oldest = c
		}
	}
	if oldest == nil {
		return false
	}
	delete(p.classes, oldest.name)
	return true
}

// turn records the outcome of a choice and reports whether the class has just run dry.
func (c *class) turn(err error) bool {
	was := c.dry
	c.dry = err != nil
	return c.dry && !was
}

// outage takes a key out until a live request shows that it works. The zero
// outage is none.
type outage struct {
	reason  Reason
	since   time.Time
	next    time.Time     // when one request may try
	pause   time.Duration // between tries
	probing bool          // a try is under way, or its answer said nothing
}

const (
	firstPause = 5 * time.Minute
	spentPause = time.Hour
	longPause  = time.Hour
)

func (o *outage) active() bool { return o.reason != "" }

func (o *outage) wait(now time.Time) time.Duration {
	if !o.active() {
		return 0
	}
	return max(0, o.next.Sub(now))
}

// strike starts the outage, or lengthens it when a probe failed; late answers to
// requests sent before it began change nothing. A probe that failed for another
// reason starts with that reason's pause. It reports whether the outage began.
func (o *outage) strike(now time.Time, why Reason) bool {
	began := !o.active()
	if !began && !o.probing {
		return false
	}
	if began {
		o.since = now
	}
	switch {
	case why == o.reason:
		o.pause = min(2*o.pause, longPause)
	case why == ReasonSpent:
		o.pause = spentPause
	default:
		o.pause = firstPause
	}
	o.reason, o.probing, o.next = why, false, now.Add(o.pause)
	return began
}

// probe notes that a request tries the key; no other does until the pause is over.
func (o *outage) probe(now time.Time) {
	if o.active() {
		o.probing, o.next = true, now.Add(o.pause)
	}
}

// forgive ends the outage if a request sent at this time, and answered well, was
// a probe of it. It reports whether it did. One sent at the very moment it began
// was none: probes come later, and clocks are coarse.
func (o *outage) forgive(sent time.Time) bool {
	if !o.active() || !sent.After(o.since) {
		return false
	}
	*o = outage{}
	return true
}

// coolDown keeps a key from serving for a time. The zero coolDown is none.
type coolDown struct {
	until   time.Time
	last    time.Time // when the last one began
	strikes int       // without a named time, since the last success
}

const (
	firstCool    = time.Second
	longestGuess = time.Minute
	longestCool  = time.Hour // then a request tries, whatever the provider said
	repeatWithin = 10 * time.Second
)

func (c *coolDown) wait(now time.Time) time.Duration {
	if !now.Before(c.until) { // most keys, and cheaper than Sub from the zero time
		return 0
	}
	return c.until.Sub(now)
}

// repeated reports whether the last cool-down ended and began less than 10 s ago:
// it was too short.
func (c *coolDown) repeated(now time.Time) bool {
	return !c.last.IsZero() && !now.Before(c.until) && now.Sub(c.last) < repeatWithin
}

// start cools for d, at most 1 h; 0 or less stands for 1 s, doubling to 60 s. What
// comes while already cooling answers a request sent before: a guess does not
// double, and no time shortens a longer one. It returns how long the cool-down
// lasts from now.
func (c *coolDown) start(now time.Time, d time.Duration) time.Duration {
	running := now.Before(c.until)
	if d <= 0 {
		if running {
			return c.until.Sub(now)
		}
		d = min(firstCool<<min(c.strikes, 6), longestGuess)
		c.strikes++
	}
	if !running {
		c.last = now
	}
	if until := now.Add(min(d, longestCool)); until.After(c.until) {
		c.until = until
	}
	return c.until.Sub(now)
}

// join takes over a cool-down of the same owner that lasts longer.
func (c *coolDown) join(other coolDown) {
	if other.until.After(c.until) {
		*c = other
	}
}

// forgive makes the next guess short again. A running cool-down runs out: the
// success may be older than the refusal.
func (c *coolDown) forgive(now time.Time) {
	if !now.Before(c.until) {
		c.strikes = 0
	}
}

// homes remembers which key a conversation used last, so that its next turn
// finds the prompt cache and the thinking of its organization again.
type homes struct {
	lru *simplelru.LRU[uint64, home]
}

type home struct {
	key    int // index in the pool
	prompt int // estimated tokens of the last prompt: what the next one repeats
	used   time.Time
}

// A home is kept for the life of a prompt cache entry, and only so many of them.
const (
	maxHomes = 10_000
	homeLife = 5 * time.Minute
)

func newHomes() *homes {
	lru, err := simplelru.NewLRU[uint64, home](maxHomes, nil)
	if err != nil { // only for a size that is not positive
		panic(err)
	}
	return &homes{lru: lru}
}

// get returns the index of the conversation's key, or -1.
func (h *homes) get(conversation uint64, now time.Time) int {
	if conversation == 0 {
		return -1
	}
	at, ok := h.lru.Get(conversation)
	if !ok || now.Sub(at.used) > homeLife {
		return -1
	}
	return at.key
}

// cached is how many tokens of the conversation's next prompt the key's prompt
// cache is likely to hold: those of the last one, if the key is its home.
func (h *homes) cached(conversation uint64, key int, now time.Time) int {
	if h.get(conversation, now) != key {
		return 0
	}
	at, _ := h.lru.Peek(conversation)
	return at.prompt
}

func (h *homes) set(conversation uint64, at home) { h.lru.Add(conversation, at) }
