package main

import (
	"errors"
	"math/rand/v2"
	"time"

	"cc-relay/internal/simulator"
)

// provider is the simulated provider of one run, and what goes wrong with it.
type provider struct {
	core *simulator.Core
	orgs []string

	scenario scenario
	event    time.Duration // when it happens, from the start of the run; 0: never
	rng      *rand.Rand
	told     []bool // by key: an answer has told the policy of the event
	underWay []int  // by key
	tally    tally

	// Limits cannot be changed in a core. Where they are to be, core has none and
	// only keeps the caches, and the buckets are those of before or of after.
	before, after *simulator.Core
	carried       []*simulator.Call // in after, by key: for the output of answers begun before
}

// tally is what an event led to.
type tally struct {
	Denied   int // 401s
	Refusals int // 429s after the event
	InFlight int // requests under way, at the event, on the keys that it concerns
	Late     int // 401s and 429s of such keys to requests sent after the policy had been told
}

// refusal is an answer other than 200.
type refusal struct {
	status     int
	levels     simulator.Levels
	retryAfter time.Duration
}

// call is an admitted request.
type call struct {
	*simulator.Call
	buckets *simulator.Call // where they are not those of Call
	old     bool            // admitted before the limits were cut
	key     int
	p       *provider
}

func newProvider(pool Pool, sc scenario, event time.Duration, seed uint64) (*provider, error) {
	n := len(pool.Keys)
	p := &provider{
		scenario: sc, event: event, rng: rand.New(rand.NewPCG(seed, 0x70726f76)),
		told: make([]bool, n), underWay: make([]int, n), carried: make([]*simulator.Call, n),
	}
	var err error
	if sc.cuts == 0 {
		p.core, p.orgs, err = pool.core(epoch)
		return p, err
	}
	if p.core, p.orgs, err = (Pool{Name: pool.Name, Keys: make([]simulator.Limits, n)}).core(epoch); err != nil {
		return nil, err
	}
	if p.before, _, err = pool.core(epoch); err != nil {
		return nil, err
	}
	p.after, _, err = pool.cut(sc.cuts).core(epoch)
	return p, err
}

// concerns: the event is about key.
func (p *provider) concerns(key int) bool { return key < p.scenario.dies || key < p.scenario.cuts }

func (p *provider) happened(now time.Duration) bool { return p.event > 0 && now >= p.event }

// happen is called once, at the event.
func (p *provider) happen(now time.Duration) error {
	for k, n := range p.underWay {
		if p.concerns(k) {
			p.tally.InFlight += n
		}
	}
	for k := range p.carried {
		if p.after == nil {
			break
		}
		if err := p.carry(epoch.Add(now), k); err != nil {
			return err
		}
	}
	return nil
}

// carry lowers the new buckets of a key to what was left in the old ones.
func (p *provider) carry(now time.Time, key int) error {
	d := simulator.Demand{Org: p.orgs[key], Workspace: "w", Model: model}
	old, _, err := admit(p.before, now, d)
	if old == nil {
		return err // nothing was left: both are empty soon enough
	}
	probe, err := p.after.Admit(now, d)
	if err != nil {
		return err
	}
	have, left := probe.Levels(), old.Levels()
	d.Blocks = []simulator.Block{{Hash: 1, Tokens: max(have.Input.Remaining-max(left.Input.Remaining, 0), 0)}}
	if p.carried[key], err = p.after.Admit(now, d); err != nil {
		return err
	}
	p.carried[key].Produce(now, max(have.Output.Remaining-left.Output.Remaining, 0))
	return nil
}

// ask answers a call or a refusal.
func (p *provider) ask(now time.Duration, key int, d simulator.Demand) (*call, *refusal, error) {
	switch {
	case key < p.scenario.dies && p.happened(now):
		return nil, &refusal{status: 401}, nil
	case p.scenario.overloaded > 0 && p.rng.Float64() < p.scenario.overloaded:
		return nil, &refusal{status: 529}, nil
	}
	d.Org = p.orgs[key]
	at := epoch.Add(now)
	inner, refused, err := admit(p.core, at, d)
	if inner == nil {
		return nil, refused, err
	}
	c := &call{Call: inner, p: p, key: key, old: !p.happened(now)}
	if p.before != nil {
		core := p.before
		if p.happened(now) {
			core = p.after
		}
		d.Blocks = []simulator.Block{{Hash: 1, Tokens: inner.Usage().Uncached()}}
		if c.buckets, refused, err = admit(core, at, d); c.buckets == nil {
			return nil, refused, err
		}
	}
	p.underWay[key]++
	return c, nil, nil
}

func admit(core *simulator.Core, now time.Time, d simulator.Demand) (*simulator.Call, *refusal, error) {
	c, err := core.Admit(now, d)
	var full *simulator.Refused
	if errors.As(err, &full) {
		return nil, &refusal{status: 429, levels: full.Levels, retryAfter: full.RetryAfter}, nil
	}
	return c, nil, err
}

// answered counts an answer that has arrived; knew: its request was sent when the
// policy had been told of the event.
func (p *provider) answered(now time.Duration, key, status int, knew bool) {
	if !p.happened(now) {
		return
	}
	switch status {
	case 401:
		p.tally.Denied++
	case 429:
		p.tally.Refusals++
	}
	if knew && (status == 401 || status == 429) {
		p.tally.Late++
	}
}

// Levels are what the headers say.
func (c *call) Levels() simulator.Levels {
	if c.buckets != nil {
		return c.buckets.Levels()
	}
	return c.Call.Levels()
}

// Begin marks the first byte of the answer.
func (c *call) Begin(now time.Time) {
	c.Call.Begin(now)
	if c.buckets != nil {
		c.buckets.Begin(now)
	}
}

// Produce counts n tokens of output.
func (c *call) Produce(now time.Time, n int) {
	c.Call.Produce(now, n)
	if c.buckets != nil {
		c.buckets.Produce(now, n)
	}
	if carried := c.p.carried[c.key]; c.old && carried != nil {
		carried.Produce(now, n)
	}
}

// End ends the answer.
func (c *call) End(now time.Time) {
	c.Call.End(now)
	if c.buckets != nil {
		c.buckets.End(now)
	}
	c.p.underWay[c.key]--
}
