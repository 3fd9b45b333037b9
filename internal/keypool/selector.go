package keypool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Strategies of choosing a key; an empty PoolConfig.Strategy means StrategyLeastLoaded.
const (
	StrategyLeastLoaded = "least_loaded"
	StrategyRoundRobin  = "round_robin"
	StrategyRandom      = "random"
	StrategyWeighted    = "weighted"
)

// KeySelector chooses among keys that can serve. Select is called once for each
// choice, with at least one key, in configured order and all of one priority,
// while the pool is locked: it must not block, call the pool, or keep its
// argument or what that points to. It needs no locking of its own. An error, or
// a key that was not offered, refuses the request.
type KeySelector interface {
	Select(available []*KeyMetadata) (*KeyMetadata, error)
	Name() string
}

// errNothingOffered says that a selector was called without a key.
var errNothingOffered = errors.New("keypool: selector was offered no key")

// selectors is the table of strategies: a new one is a type and a line here.
var selectors = map[string]func() KeySelector{
	StrategyLeastLoaded: func() KeySelector { return &leastLoaded{turns{last: -1}} },
	StrategyRoundRobin:  func() KeySelector { return &roundRobin{turns{last: -1}} },
	StrategyRandom:      func() KeySelector { return random{} },
	StrategyWeighted:    func() KeySelector { return weighted{} },
}

// Strategies returns the names of all strategies, sorted.
func Strategies() []string {
	names := make([]string, 0, len(selectors))
	for name := range selectors {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// NewSelector returns a selector of the named strategy; "" means least_loaded.
func NewSelector(strategy string) (KeySelector, error) {
	if strategy == "" {
		strategy = StrategyLeastLoaded
	}
	build, ok := selectors[strategy]
	if !ok {
		return nil, fmt.Errorf("keypool: strategy %q is unknown; write one of %s", strategy, strings.Join(Strategies(), ", "))
	}
	return build(), nil
}

// turns is a cursor over the configured keys.
type turns struct{ last int } // Index of the key chosen last; -1 at first

func (t *turns) cursor() *int { return &t.last }

// turning are the selectors that remember whose turn it was: all they remember.
type turning interface{ cursor() *int }

// leastLoaded takes the key with the most headroom: the largest min over its
// buckets of (level − demand)/limit, so that unlike keys drain together and the
// scarcest bucket decides. Equals take turns.
type leastLoaded struct{ turns }

func (*leastLoaded) Name() string { return StrategyLeastLoaded }

func (s *leastLoaded) Select(available []*KeyMetadata) (*KeyMetadata, error) {
	if len(available) == 0 {
		return nil, errNothingOffered
	}
	best := available[0]
	for _, k := range available[1:] {
		if k.Headroom > best.Headroom || k.Headroom == best.Headroom && inTurn(k.Index, best.Index, s.last) {
			best = k
		}
	}
	s.last = best.Index
	return best, nil
}

// inTurn reports whether a comes before b when the turn passes on from last.
func inTurn(a, b, last int) bool {
	if (a > last) != (b > last) {
		return a > last
	}
	return a < b
}

// roundRobin gives each key its turn. Its cursor runs over the configured keys,
// so that a key that cannot serve for a while does not shift the others' turns.
type roundRobin struct{ turns }

func (*roundRobin) Name() string { return StrategyRoundRobin }

func (s *roundRobin) Select(available []*KeyMetadata) (*KeyMetadata, error) {
	if len(available) == 0 {
		return nil, errNothingOffered
	}
	next := available[0]
	for _, k := range available[1:] {
		if inTurn(k.Index, next.Index, s.last) {
			next = k
		}
	}
	s.last = next.Index
	return next, nil
}

// random draws evenly.
type random struct{}

func (random) Name() string { return StrategyRandom }

func (random) Select(available []*KeyMetadata) (*KeyMetadata, error) {
	if len(available) == 0 {
		return nil, errNothingOffered
	}
	return available[rand.IntN(len(available))], nil
}

// weighted draws in proportion to the keys' weights.
type weighted struct{}

func (weighted) Name() string { return StrategyWeighted }

func (weighted) Select(available []*KeyMetadata) (*KeyMetadata, error) {
	if len(available) == 0 {
		return nil, errNothingOffered
	}
	total := 0
	for _, k := range available {
		total += max(1, k.Weight)
	}
	draw := rand.IntN(total)
	for _, k := range available {
		if draw -= max(1, k.Weight); draw < 0 {
			return k, nil
		}
	}
	return available[len(available)-1], nil
}
