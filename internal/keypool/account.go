package keypool

import (
	"errors"
	"math"
	"slices"
	"time"
)

// Outcome is what a choice came to.
type Outcome string

// Outcomes of a choice.
const (
	OutcomeServed  Outcome = "served"  // with the key that was chosen
	OutcomeWait    Outcome = "wait"    // for the key that was chosen
	OutcomeRefused Outcome = "refused" // nothing was chosen
)

// Why says why a key was chosen or was not.
type Why string

// Why a key was chosen or was not: of several reasons the first of these, and of
// those that end by themselves the one that takes longest.
const (
	WhyChosen   Why = "chosen"
	WhyExcluded Why = "excluded" // the request has tried it already
	WhyOff      Why = "off"      // by the operator
	WhyDead     Why = "dead"     // refused by the provider, until the next probe
	WhyTooLarge Why = "too_large"

	WhyCooling    Why = "cooling"
	WhyQueue      Why = "queue"       // others wait for it and come first, or so many that no more may
	WhyTrying     Why = "trying"      // others are finding out what it admits
	WhyNoRequests Why = "no_requests" // the bucket has too little, as with the next two
	WhyNoInput    Why = "no_input"
	WhyNoOutput   Why = "no_output"

	// These had room for the request.
	WhyNotHome       Why = "not_home" // the conversation goes back to the key that was chosen
	WhyLowerPriority Why = "lower_priority"
	WhyNotDrawn      Why = "not_drawn" // chance took another, or of many keys this one was not looked at
	WhyLessRoom      Why = "less_room"
	WhyNotItsTurn    Why = "not_its_turn"
)

// accounted is how many keys an Account tells of: more than most pools have, and
// few enough to be read.
const accounted = 12

// Account is how one choice of a key was made, for whoever wants to know. One that is
// filled again uses the room of its keys again, and allocates nothing.
type Account struct {
	Class      string       `json:"class"`
	Strategy   string       `json:"strategy"`
	Outcome    Outcome      `json:"outcome"`
	Key        string       `json:"key,omitempty"`      // ID of the chosen one; "" = refused
	HomeKey    string       `json:"home_key,omitempty"` // ID of the conversation's home; "" = it has none
	Home       bool         `json:"home"`               // the chosen key is the conversation's home
	Probe      bool         `json:"probe,omitempty"`    // the chosen key is dead, and the request tries it
	WaitMS     int64        `json:"wait_ms,omitempty"`  // how long it is to wait for the chosen key at most, or is told to come again after
	WaitedMS   int64        `json:"waited_ms"`          // since the request arrived
	BudgetMS   int64        `json:"budget_ms"`          // how much longer it may wait
	Estimate   Estimate     `json:"estimate"`           // at the chosen key
	Considered int          `json:"considered"`         // keys of the pool
	Keys       []KeyAccount `json:"keys"`               // in configured order, at most 12: the chosen one, and of many the nearest to being chosen. Of a pool so large that keys are drawn they are those that were, if one of them served
}

// Estimate is what a request is expected to cost, in tokens.
type Estimate struct {
	Input  int `json:"input"`  // of the whole prompt
	Cached int `json:"cached"` // of it, read from the cache
	Output int `json:"output"`
}

// KeyAccount is one key as a choice saw it, before anything was taken for it.
type KeyAccount struct {
	ID       string    `json:"id"`
	Why      Why       `json:"why"`
	State    State     `json:"state"`
	Reason   Reason    `json:"reason,omitempty"` // why it is dead
	Until    time.Time `json:"until,omitzero"`   // when State is expected to end
	Priority int       `json:"priority"`

	Requests Room `json:"requests"`
	Input    Room `json:"input"`
	Output   Room `json:"output"`

	InFlight       int `json:"in_flight"`       // requests of this key
	ReservedInput  int `json:"reserved_input"`  // tokens that they hold
	ReservedOutput int `json:"reserved_output"` // and are expected to produce yet, or have reserved
	Ahead          int `json:"ahead"`           // requests that wait for it and have their turn before this one

	// For this request, zero where it may not use the key.
	Tokens   int     `json:"tokens"`   // of its prompt
	Cached   int     `json:"cached"`   // of them, in the key's cache
	Headroom float64 `json:"headroom"` // see KeyMetadata, with what the request takes
	WaitMS   int64   `json:"wait_ms"`  // until it could serve the request, rounded up
}

// Room is one bucket: its limit a minute and its level, 0 and 0 where no limit is known.
type Room struct {
	Limit int `json:"limit"`
	Level int `json:"level"`
}

// Preview is what Acquire would decide now, and changes nothing: it takes nothing,
// is no turn of the selector's and no use of a home, and logs nothing. A class
// never asked for is judged as new. Where keys are drawn, Acquire may draw others.
func (p *KeyPool) Preview(now time.Time, d Demand) Account {
	var a Account
	if d.Arrived.IsZero() {
		d.Arrived = now
	}
	p.mu.Lock() // decide writes scratch space
	defer p.mu.Unlock()
	c := p.peekClass(d.Class, now)
	if d.Tokens > 0 {
		d.Bytes = int(math.Ceil(float64(d.Tokens) / c.ratio))
	}
	d.least = c.leastCached(d.Model)
	coldLast, coldSince := c.coldLast, c.coldSince
	t, turns := p.selector.(turning)
	last := 0
	if turns {
		last = *t.cursor()
	}
	dec := p.decide(now, c, &d, nil)
	c.coldLast, c.coldSince = coldLast, coldSince
	if turns {
		*t.cursor() = last
	}
	p.account(now, c, &d, &dec, nil, &a)
	if dec.wait > 0 && p.fullLocked(&d) {
		a.refuse(p.refusal(c, &d, &dec.view))
	}
	return a
}

// peekClass is what classLocked would return, without making it the pool's.
func (p *KeyPool) peekClass(name string, now time.Time) *class {
	if c, ok := p.classes[name]; ok {
		return c
	}
	if len(p.classes) >= maxClasses && p.idleClass() == nil {
		return p.classes[ClassAny]
	}
	return p.newClass(name, now)
}

// account fills the account of a choice. The caller holds mu for writing,
// and has taken nothing for it yet.
func (p *KeyPool) account(now time.Time, c *class, d *Demand, dec *decision, own *waiter, a *Account) {
	if a.Keys == nil {
		a.Keys = make([]KeyAccount, 0, min(accounted, len(c.slots)))
	}
	*a = Account{Keys: a.Keys[:0], Class: c.name, Strategy: p.selector.Name(), Outcome: OutcomeServed, WaitMS: ms(dec.wait),
		WaitedMS: max(0, now.Sub(d.Arrived)).Milliseconds(), BudgetMS: max(0, p.budget(now, c, d)).Milliseconds(), Considered: len(c.slots)}
	hits := !p.affinityOff && len(d.Prefix) > 0
	if hits && len(p.views) == 0 { // else they are filled
		p.prefixes.fill(p.hits, d.Prefix, d.least, now)
	}
	home := p.homeOf(now, c, d)
	if home >= 0 {
		a.HomeKey = c.slots[home].key.id
	}
	if dec.err != nil {
		a.refuse(dec.err)
	} else {
		v := &dec.view
		a.Key, a.Home, a.Probe = c.slots[v.index].key.id, v.index == home, v.dead
		if dec.wait > 0 {
			a.Outcome = OutcomeWait
		}
		a.Estimate = Estimate{Input: int(v.cached + v.uncached), Cached: int(v.cached)}
	}
	if a.Estimate.Input == 0 {
		a.Estimate.Input = int(float64(d.Bytes) * c.ratio)
	}
	a.Estimate.Output = int(c.predicted(d))
	drew := p.sampled && dec.err == nil && dec.wait == 0 && slices.Contains(p.drawn, dec.view.index)
	for i, s := range c.slots {
		if drew && !slices.Contains(p.drawn, i) {
			continue // nobody looked at it, and looking at all would take longer than the choice
		}
		bytes := 0
		if hits {
			bytes = p.hits[s.key.scope]
		}
		p.accountKey(a.room(), now, c, i, bytes, d, dec, own, home)
		a.shorten()
	}
}

// refuse makes the account that of a refusal.
func (a *Account) refuse(err error) {
	a.Outcome, a.Key, a.Home, a.Probe, a.WaitMS = OutcomeRefused, "", false, false, 0
	var exhausted *ExhaustedError
	if errors.As(err, &exhausted) {
		a.WaitMS = ms(exhausted.RetryAfter)
	}
	for i := range a.Keys {
		if k := &a.Keys[i]; k.Why == WhyChosen {
			k.Why = WhyQueue
		}
	}
}

// room is where the next key goes.
func (a *Account) room() *KeyAccount {
	a.Keys = append(a.Keys, KeyAccount{})
	return &a.Keys[len(a.Keys)-1]
}

// shorten leaves out the least of the keys, where they are too many.
func (a *Account) shorten() {
	if len(a.Keys) <= accounted {
		return
	}
	least := len(a.Keys) - 1
	for j := range a.Keys[:accounted] {
		if a.Keys[j].less(&a.Keys[least]) {
			least = j
		}
	}
	a.Keys = slices.Delete(a.Keys, least, least+1)
}

// less reports whether k was further from being chosen than o.
func (k *KeyAccount) less(o *KeyAccount) bool {
	if x, y := k.Why.rank(), o.Why.rank(); x != y {
		return x > y
	}
	if k.WaitMS != o.WaitMS {
		return k.WaitMS > o.WaitMS
	}
	return k.Headroom < o.Headroom
}

// rank orders reasons from chosen to never.
func (w Why) rank() int {
	switch w {
	case WhyChosen:
		return 0
	case WhyNotHome, WhyLessRoom, WhyNotItsTurn, WhyNotDrawn:
		return 1
	case WhyLowerPriority:
		return 2
	case WhyTooLarge:
		return 4
	case WhyDead:
		return 5
	case WhyExcluded:
		return 6
	case WhyOff:
		return 7
	}
	return 3
}

func (p *KeyPool) accountKey(k *KeyAccount, now time.Time, c *class, i, cachedBytes int, d *Demand, dec *decision, own *waiter, home int) {
	s := c.slots[i]
	u := s.buckets.limiter.UsageAt(now)
	reserved := s.reserved()
	k.ID, k.Priority, k.InFlight, k.ReservedInput, k.ReservedOutput = s.key.id, s.key.priority, s.inFlight, reserved.Input, reserved.Output
	k.State, k.Until, k.Reason = s.state(now, u)
	k.Requests, k.Input, k.Output = Room{u.Limits.RPM, floor(u.Requests)}, Room{u.Limits.ITPM, floor(u.Input)}, Room{u.Limits.OTPM, floor(u.Output)}
	switch {
	case s.key.off:
		k.Why = WhyOff
		return
	case slices.Contains(d.Exclude, s.key.id):
		k.Why = WhyExcluded
		return
	}
	v := p.viewed(i)
	if v == nil {
		v = &view{}
		p.view(v, now, c, i, cachedBytes, d, own)
	}
	k.Tokens, k.Cached, k.Headroom, k.WaitMS = int(v.cached+v.uncached), int(v.cached), v.headroom, ms(v.wait)
	if !v.warm() {
		requests, _ := s.buckets.ahead(d.Client, own)
		k.Ahead = int(requests)
	}
	switch {
	case dec.err == nil && dec.view.index == i:
		k.Why = WhyChosen
	case v.dead && v.wait > 0:
		k.Why = WhyDead
	case v.wait > 0:
		k.Why = c.lacking(now, s, v, d)
	case v.oversized:
		k.Why = WhyTooLarge
	default:
		k.Why = p.passedOver(c, i, v, dec, home)
	}
}

// viewed is what the choice saw of a key; nil if it did not look.
func (p *KeyPool) viewed(i int) *view {
	for j := range p.views {
		if p.views[j].index == i {
			return &p.views[j]
		}
	}
	return nil
}

// lacking is what keeps a key from serving a request longest.
func (c *class) lacking(now time.Time, s *slot, v *view, d *Demand) Why {
	levels := s.buckets.limiter.BucketsAt(now)
	why, longest := WhyQueue, time.Duration(0) // unless it lacks something without those who wait
	for _, one := range [...]struct {
		why  Why
		wait time.Duration
	}{
		{WhyCooling, s.barred(now)},
		{WhyNoRequests, lack(&levels.Requests, 1)},
		{WhyNoInput, lack(&levels.Input, min(wantInput(&levels.Input, v.uncached), levels.Input.Capacity))},
		{WhyNoOutput, lack(&levels.Output, c.wantOutput(&levels.Output, d))},
		{WhyTrying, s.buckets.trial(now, 0)},
	} {
		if one.wait > longest {
			why, longest = one.why, one.wait
		}
	}
	return why
}

// passedOver is why a key that had room was not chosen.
func (p *KeyPool) passedOver(c *class, i int, v *view, dec *decision, home int) Why {
	chosen := &dec.view
	switch {
	case dec.err != nil:
		return WhyNotItsTurn // the selector failed
	case chosen.index == home && (dec.wait > 0 || len(p.views) == 0): // it was not compared with others
		return WhyNotHome
	case c.slots[i].key.priority < c.slots[chosen.index].key.priority:
		return WhyLowerPriority
	case p.sampled && slices.Contains(p.drawn, chosen.index) && !slices.Contains(p.drawn, i):
		return WhyNotDrawn
	}
	switch p.selector.Name() {
	case StrategyLeastLoaded:
		if v.headroom < chosen.headroom {
			return WhyLessRoom
		}
	case StrategyRandom, StrategyWeighted:
		return WhyNotDrawn
	}
	return WhyNotItsTurn
}

// ms is a wait in milliseconds, rounded up.
func ms(d time.Duration) int64 {
	return int64(math.Ceil(min(d, never/2).Seconds() * 1000))
}
