package simulator

import (
	"slices"
	"time"
)

// Kind is one of the three limits.
type Kind string

// The kinds of limits, all counted a minute.
const (
	Requests     Kind = "requests"
	InputTokens  Kind = "input tokens"
	OutputTokens Kind = "output tokens"
)

// Totals counts requests and tokens since the start. Scripted faults that answer
// before admission are in none of them.
type Totals struct {
	Offered  int // requests that came to the limits: Admitted + Refused
	Admitted int
	Refused  int // genuine 429s

	Input     int // input_tokens
	CacheRead int
	Written   int // cache_creation_input_tokens
	Output    int
}

func (t *Totals) admit(u Usage) {
	t.Admitted++
	t.Input += u.Input
	t.CacheRead += u.CacheRead
	t.Written += u.Written()
}

// served is what counts towards one kind of limit.
func (t Totals) served(k Kind) int {
	switch k {
	case InputTokens:
		return t.Input + t.Written
	case OutputTokens:
		return t.Output
	}
	return t.Admitted
}

// Account is one organization and model class in a Snapshot.
type Account struct {
	Org, Class string
	Limits     Limits
	Levels     Levels
	Totals
}

// Snapshot is the state of the whole provider at a moment.
type Snapshot struct {
	Start, At  time.Time
	StartLevel float64 // share of each capacity that was there at Start
	// Accounts has a row for every organization and every class that any of them
	// was asked for: an idle organization is part of what the pool could have used.
	Accounts []Account
}

// Snapshot copies totals and levels at now, organizations in configured order,
// classes by name.
func (c *Core) Snapshot(now time.Time) Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Snapshot{Start: c.start, At: now, StartLevel: c.startLevel}
	classes := c.classesLocked()
	for _, org := range c.order {
		for _, class := range classes {
			a := c.account(org, class)
			s.Accounts = append(s.Accounts, Account{Org: org.ID, Class: class, Limits: a.limits, Levels: a.levels(now), Totals: a.totals})
		}
	}
	return s
}

func (c *Core) classesLocked() []string {
	var classes []string
	for _, org := range c.order {
		for class := range org.accounts {
			if !slices.Contains(classes, class) {
				classes = append(classes, class)
			}
		}
	}
	slices.Sort(classes)
	return classes
}

// Capacity is how much of what the provider could give was used.
type Capacity struct {
	Kind      Kind // the pool's tightest limit; "" when no kind is limited everywhere
	Served    int  // tokens or requests that counted towards it, over all organizations
	Available int  // levels at the start plus refill since, over all organizations
}

// Used is Served over Available: 1 is all there was, and a little more is possible
// because output and huge prompts may leave a debt. 0 without a limit.
func (c Capacity) Used() float64 {
	if c.Available == 0 {
		return 0
	}
	return float64(c.Served) / float64(c.Available)
}

// Capacity sums one class over all organizations, used or idle, for each kind of
// limit, and answers for the kind whose share used is highest: the limit the pool
// runs into first. Available is the sum of start level · limit + limit · elapsed
// minutes; refill that fell on a full bucket counts, because better use would not
// have wasted it. A kind that some organization does not limit is left out, for
// the pool cannot run out of it. Refused requests serve nothing.
func (s Snapshot) Capacity(class string) Capacity {
	var tightest Capacity
	for _, k := range []Kind{Requests, InputTokens, OutputTokens} {
		c, ok := s.capacity(class, k)
		if ok && (tightest.Kind == "" || c.Used() > tightest.Used()) {
			tightest = c
		}
	}
	return tightest
}

func (s Snapshot) capacity(class string, k Kind) (Capacity, bool) {
	minutes := s.At.Sub(s.Start).Minutes()
	c := Capacity{Kind: k}
	for _, a := range s.Accounts {
		if a.Class != class {
			continue
		}
		limit := a.Limits.of(k)
		if limit == 0 {
			return Capacity{}, false
		}
		c.Served += a.served(k)
		c.Available += int(float64(limit) * (s.StartLevel + minutes))
	}
	return c, c.Available > 0
}
