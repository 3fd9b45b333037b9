package keypool_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// candidates are keys as a pool offers them: in configured order, of one priority.
func candidates(indexes ...int) []*keypool.KeyMetadata {
	offered := make([]*keypool.KeyMetadata, len(indexes))
	for i, index := range indexes {
		offered[i] = &keypool.KeyMetadata{Index: index, Weight: 1 + index, Priority: keypool.PriorityNormal, Headroom: 0.5}
	}
	return offered
}

// Every strategy must pass. A new one is tested by being in the table.
func TestSelectorConformance(t *testing.T) {
	require.Equal(t, []string{"least_loaded", "random", "round_robin", "weighted"}, keypool.Strategies())
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			selector := func(t *testing.T) keypool.KeySelector {
				s, err := keypool.NewSelector(strategy)
				require.NoError(t, err)
				return s
			}
			t.Run("is called by its name", func(t *testing.T) {
				assert.Equal(t, strategy, selector(t).Name())
				assert.Equal(t, strategy, newPool(t, strategy).GetStats().Strategy)
			})
			t.Run("refuses to choose from nothing", func(t *testing.T) {
				got, err := selector(t).Select(nil)
				require.Error(t, err)
				assert.Nil(t, got)
			})
			t.Run("takes the only candidate", func(t *testing.T) {
				s := selector(t)
				for _, index := range []int{3, 0, 3, 7, 7} {
					only := candidates(index)
					got, err := s.Select(only)
					require.NoError(t, err)
					assert.Same(t, only[0], got)
				}
			})
			t.Run("chooses what is offered and leaves it as it is", func(t *testing.T) {
				s := selector(t)
				for _, indexes := range [][]int{{0, 1, 2, 3}, {1, 3}, {0, 2}, {5, 6, 90}, {0}, {2, 3}} {
					for range 50 {
						offered := candidates(indexes...)
						before := slices.Clone(offered)
						got, err := s.Select(offered)
						require.NoError(t, err)
						assert.Contains(t, before, got)
						assert.Equal(t, candidates(indexes...), offered, "order and content")
					}
				}
			})
			t.Run("starves no equal", func(t *testing.T) {
				s := selector(t)
				seen := map[int]bool{}
				for range 1000 {
					got, err := s.Select(candidates(0, 1, 2, 3))
					require.NoError(t, err)
					seen[got.Index] = true
				}
				assert.Len(t, seen, 4)
			})
			t.Run("copes with values no pool offers", func(t *testing.T) {
				offered := candidates(0, 1)
				offered[0].Weight, offered[1].Weight = 0, -5
				got, err := selector(t).Select(offered)
				require.NoError(t, err)
				assert.Contains(t, offered, got)
			})
			t.Run("pools do not share its state", func(t *testing.T) {
				a, b := selector(t), selector(t)
				if a == b {
					assert.Zero(t, a, "a shared selector must have no state")
				}
			})
		})
	}
}

func TestAnEmptyStrategyIsLeastLoaded(t *testing.T) {
	s, err := keypool.NewSelector("")
	require.NoError(t, err)
	assert.Equal(t, keypool.StrategyLeastLoaded, s.Name())
	_, err = keypool.NewSelector("Round_Robin")
	assert.ErrorContains(t, err, "unknown")
}

func TestFairShares(t *testing.T) {
	for _, strategy := range []string{keypool.StrategyLeastLoaded, keypool.StrategyRoundRobin} {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(3, 50, 0, 0)
				p := newPool(t, strategy, keys...)
				got := map[string]int{}
				for range 120 {
					got[getKey(t, p)]++
				}
				for _, id := range ids {
					assert.InDelta(t, 40, got[id], 4, "key %s", id)
				}
			})
		})
	}
}

// Each choice moves the turn on by exactly one: a Select called twice for one
// choice would skip keys, and a refusal or another's home must not move it.
func TestRoundRobinTakesExactTurns(t *testing.T) {
	keys, ids := keysOf(4, plenty, plenty, plenty)
	p := newPool(t, keypool.StrategyRoundRobin, keys...)
	turns := func(n int) (got []int) {
		for range n {
			got = append(got, slices.Index(ids, getKey(t, p)))
		}
		return got
	}
	assert.Equal(t, []int{0, 1, 2, 3, 0, 1, 2, 3}, turns(8))
	p.MarkKeyExhausted(ids[1], time.Hour)
	assert.Equal(t, []int{0, 2, 3, 0, 2, 3}, turns(6), "the others keep their order")
	p.MarkKeyExhausted(ids[3], time.Hour)
	assert.Equal(t, []int{0, 2, 0, 2, 0}, turns(5))

	home := turn(t, p, talk(1, 40_000)) // key 2
	for range 3 {
		assert.Equal(t, home, turn(t, p, talk(1, 40_000)))
	}
	_, err := p.Acquire(context.Background(), keypool.Demand{Exclude: ids})
	require.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
	assert.Equal(t, []int{0, 2}, turns(2), "homes and refusals take no turn")
}

func TestAKeyThatReturnsTakesItsOldTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, 0, 0, 0)
		p := newPool(t, keypool.StrategyRoundRobin, keys...)
		p.MarkKeyExhausted(ids[1], 10*time.Second)
		assert.Equal(t, []string{ids[0], ids[2], ids[0]}, []string{getKey(t, p), getKey(t, p), getKey(t, p)})
		time.Sleep(10 * time.Second)
		assert.Equal(t, []string{ids[1], ids[2], ids[0]}, []string{getKey(t, p), getKey(t, p), getKey(t, p)})
	})
}

// shares are each key's percentage of n choices.
func shares(t *testing.T, p *keypool.KeyPool, ids []string, n int) []float64 {
	got := make([]float64, len(ids))
	for range n {
		got[slices.Index(ids, getKey(t, p))] += 100 / float64(n)
	}
	return got
}

func TestRandomDrawsEvenly(t *testing.T) {
	keys, ids := keysOf(5, 0, 0, 0)
	assert.InDeltaSlice(t, []float64{20, 20, 20, 20, 20}, shares(t, newPool(t, keypool.StrategyRandom, keys...), ids, 20_000), 2)
}

func TestWeightedDrawsInProportion(t *testing.T) {
	keys, ids := keysOf(4, 0, 0, 0)
	keys[1].Weight, keys[2].Weight, keys[3].Weight = new(2), new(3), new(14) // the first is 1
	p := newPool(t, keypool.StrategyWeighted, keys...)
	assert.InDeltaSlice(t, []float64{5, 10, 15, 70}, shares(t, p, ids, 20_000), 2)
	p.MarkKeyExhausted(ids[3], time.Hour)
	assert.InDeltaSlice(t, []float64{100. / 6, 200. / 6, 300. / 6, 0}, shares(t, p, ids, 20_000), 2, "without the heaviest")
}

// Unlike keys drain together: each is chosen in proportion to its scarcest limit.
func TestLeastLoadedFollowsTheScarcestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := []keypool.KeyConfig{keyOf(0, 1000, 100_000, 80_000), keyOf(1, 1000, 300_000, 1_000_000)}
		p := newPool(t, keypool.StrategyLeastLoaded, keys...)
		got := map[string]int{}
		for range 100 {
			got[acquire(t, p, keypool.Demand{Class: "opus-5", Bytes: 4_000, MaxTokens: 400}).KeyID()]++
		}
		assert.InDelta(t, 25, got[keys[0].ID()], 1, "100k of 400k input")
		assert.InDelta(t, 75, got[keys[1].ID()], 1)
	})
}

// A key that is emptier but large may take a request that would drain the other.
func TestLeastLoadedLooksPastTheRequest(t *testing.T) {
	for _, tc := range []struct {
		name         string
		small, large keypool.KeyConfig
		spend        keypool.Usage // of the large one
		d            keypool.Demand
	}{
		{"input", keyOf(0, 0, 10_000, 0), keyOf(1, 0, 100_000, 0), keypool.Usage{Input: 20_000}, keypool.Demand{Class: opus, Bytes: 20_000}},
		{"output", keyOf(0, 0, 0, 1000), keyOf(1, 0, 0, 10_000), keypool.Usage{Output: 2000}, keypool.Demand{Class: opus, MaxTokens: 128_000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, keypool.StrategyLeastLoaded, tc.small, tc.large)
				acquire(t, p, keypool.Demand{Class: opus, Exclude: []string{tc.small.ID()}}).Settle(tc.spend)
				assert.Equal(t, tc.small.ID(), acquire(t, p, keypool.Demand{Class: opus, MaxTokens: 1}).KeyID(), "a small request goes where more is left")
				assert.Equal(t, tc.large.ID(), acquire(t, p, tc.d).KeyID(), "a large one where it leaves more")
			})
		})
	}
}

func TestPriorities(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(4, 10, 0, 0)
				keys[0].Priority, keys[2].Priority = new(keypool.PriorityLow), new(keypool.PriorityHigh)
				keys[3].Priority = new(keypool.PriorityNormal) // as the omitted one of keys[1]
				p := newPool(t, strategy, keys...)
				for i := range 10 {
					require.Equal(t, ids[2], getKey(t, p), "request %d: high first", i)
				}
				normal := map[string]int{}
				for range 20 {
					normal[getKey(t, p)]++
				}
				require.Equal(t, map[string]int{ids[1]: 10, ids[3]: 10}, normal, "then the normal ones")
				for i := range 10 {
					require.Equal(t, ids[0], getKey(t, p), "request %d: low when no other can serve", i)
				}
				time.Sleep(6 * time.Second) // one request refills everywhere
				assert.Equal(t, ids[2], getKey(t, p))
				_, err := p.Acquire(context.Background(), keypool.Demand{Exclude: ids[1:]})
				require.NoError(t, err, "what is excluded leaves room for lower ones")
			})
		})
	}
}
