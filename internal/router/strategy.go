package router

import (
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"cc-relay/internal/price"
)

// Names of the strategies.
const (
	StrategyFailover    = "failover"             // configured order
	StrategyRoundRobin  = "round_robin"          // each in turn
	StrategyWeighted    = "weighted_round_robin" // each in turn, by weight, evenly spread
	StrategyShuffle     = "shuffle"              // drawn by weight
	StrategyLeastLoaded = "least_loaded"         // fewest requests in flight for its weight
	StrategyLatency     = "latency"              // shortest time to the first content, of two drawn
	StrategyCost        = "cost"                 // cheapest for this request, cached prompt included
)

// strategy orders the candidates of one rule that can serve; there are at least
// one, in configured order. Where it is only looked at, the next order is as if it had
// not been; what is drawn is drawn again. Safe for concurrent use.
type strategy interface {
	order(q *Query, c []Candidate, looking bool)
}

// strategies is the table of orderings: a new one is a type and a line here. A
// constructor gets the number of targets of its rule.
var strategies = map[string]func(targets int, prices *price.Table) strategy{
	StrategyFailover:    func(int, *price.Table) strategy { return failover{} },
	StrategyRoundRobin:  func(int, *price.Table) strategy { return &roundRobin{} },
	StrategyWeighted:    func(n int, _ *price.Table) strategy { return &weighted{credit: make([]int, n)} },
	StrategyShuffle:     func(int, *price.Table) strategy { return shuffle{} },
	StrategyLeastLoaded: func(int, *price.Table) strategy { return &leastLoaded{} },
	StrategyLatency:     func(int, *price.Table) strategy { return fastest{} },
	StrategyCost:        func(_ int, p *price.Table) strategy { return cheapest{p} },
}

// Strategies returns the names of all strategies, sorted.
func Strategies() []string { return slices.Sorted(maps.Keys(strategies)) }

type failover struct{}

func (failover) order(*Query, []Candidate, bool) {}

// roundRobin takes the next target that can serve. Turns are counted by place among
// the configured targets, so that those that are there take turns while others are away.
type roundRobin struct {
	mu   sync.Mutex
	next int // the place after the one taken last
}

func (s *roundRobin) order(_ *Query, c []Candidate, looking bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	turn(c, s.next)
	if !looking {
		s.next = c[0].at + 1
	}
}

// turn puts the target at the place first, or else the next one that is there.
func turn(c []Candidate, place int) {
	first, _ := slices.BinarySearchFunc(c, place, func(c Candidate, at int) int { return c.at - at })
	rotate(c, first%len(c))
}

// rotate puts c[first] first and keeps the order around the ring.
func rotate(c []Candidate, first int) {
	slices.Reverse(c[:first])
	slices.Reverse(c[first:])
	slices.Reverse(c)
}

// weighted is smooth weighted round robin: each turn every target earns its weight,
// and the richest pays for all. Source: the commit message of nginx,
// https://github.com/nginx/nginx/commit/52327e0627f49dbda1e8db695e63a4b0af4448b1.
type weighted struct {
	mu     sync.Mutex
	credit []int // by place among the configured targets
}

func (s *weighted) order(_ *Query, c []Candidate, looking bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	best := 0
	for i := range c {
		if s.earned(&c[i]) > s.earned(&c[best]) {
			best = i
		}
	}
	if !looking {
		s.pay(c, best)
	}
	rotate(c, best)
}

// earned is what a target has with this turn.
func (s *weighted) earned(c *Candidate) int { return s.credit[c.at] + c.Weight }

func (s *weighted) pay(c []Candidate, best int) {
	total := 0
	for i := range c {
		s.credit[c[i].at] = s.earned(&c[i])
		total += c[i].Weight
	}
	s.credit[c[best].at] -= total
}

// shuffle draws an order in which each target comes first as often as its weight
// says. Source: P. Efraimidis, P. Spirakis, Weighted random sampling with a
// reservoir, 2006.
type shuffle struct{}

func (shuffle) order(_ *Query, c []Candidate, _ bool) {
	sortBy(c, func(c *Candidate) float64 { return rand.ExpFloat64() / float64(c.Weight) })
}

// sortBy sorts by a key taken once of each candidate, the least first.
func sortBy(c []Candidate, key func(*Candidate) float64) {
	type keyed struct {
		Candidate
		key float64
	}
	all := make([]keyed, len(c))
	for i := range c {
		all[i] = keyed{c[i], key(&c[i])}
	}
	slices.SortStableFunc(all, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	for i := range c {
		c[i] = all[i].Candidate
	}
}

// leastLoaded lets targets that are equally loaded take turns.
type leastLoaded struct {
	mu   sync.Mutex
	next int // the place after the one taken last
}

func (s *leastLoaded) order(_ *Query, c []Candidate, looking bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	turn(c, s.next)
	sortBy(c, func(c *Candidate) float64 { return float64(c.Upstream.InFlight()) / float64(c.Weight) })
	if !looking {
		s.next = c[0].at + 1
	}
}

// fastest takes the faster of two that are drawn: with the fastest of all, every
// request would go there until it is the slowest. The others follow by speed.
type fastest struct{}

func (fastest) order(q *Query, c []Candidate, looking bool) {
	sortBy(c, func(c *Candidate) float64 { return c.Lane.latency.expected(q.Now) })
	if n := len(c); n > 2 {
		a, b := rand.IntN(n), rand.IntN(n-1)
		if b >= a {
			b++
		}
		rotate(c[:min(a, b)+1], min(a, b))
	}
	if !looking {
		c[0].Lane.latency.chosen(q.Now)
	}
}

// cheapest takes the one with the lowest price of this request, as far as it can
// be told before: what of the prompt is cached there, and how long answers of the
// class have been. What has no known price comes last.
type cheapest struct{ prices *price.Table }

func (s cheapest) order(q *Query, c []Candidate, _ bool) {
	sortBy(c, func(c *Candidate) float64 {
		cost, ok := s.prices.Cost(c.Upstream.Provider.Name(), c.Asks(q.Model), c.forecast(q))
		if !ok {
			return math.Inf(1)
		}
		return float64(cost)
	})
}

// forecast is what the request would take at the candidate.
func (c *Candidate) forecast(q *Query) price.Tokens {
	d := q.Demand
	d.Class, d.Model = c.Class, c.Asks(q.Model)
	f := c.Upstream.Pool.Forecast(q.Now, d)
	return price.Tokens{Input: f.Input, CacheRead: f.CacheRead, CacheWrite: f.CacheWrite, CacheWriteLong: f.CacheWriteLong, Output: f.Output}
}
