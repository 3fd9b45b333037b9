package router_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/router"
)

func TestStrategies(t *testing.T) {
	assert.Equal(t, []string{"cost", "failover", "latency", "least_loaded", "round_robin", "shuffle", "weighted_round_robin"}, router.Strategies())
}

// Every strategy gives each target once, whichever are away, and a plan of its own.
func TestEveryStrategyGivesAllTargets(t *testing.T) {
	for _, strategy := range append(router.Strategies(), "") {
		t.Run(strategy, func(t *testing.T) {
			ups := pooled(t, "a", "b", "c", "d")
			r := routeOver(t, router.Config{Strategy: strategy}, ups)
			for away := range 16 {
				var there []string
				for i, u := range ups {
					u.Lane("m").Hold(health.Open, time.Duration(away>>i&1)*time.Hour)
					if away>>i&1 == 0 {
						there = append(there, u.Provider.Name())
					}
				}
				for range 5 {
					require.ElementsMatch(t, there, way(t, r, ask("m")))
				}
			}
		})
	}
}

// firsts are the first targets of n plans in a row, each of one letter.
func firsts(tb testing.TB, r *router.Router, n int) string {
	tb.Helper()
	var all strings.Builder
	for range n {
		all.WriteString(way(tb, r, ask("m"))[0])
	}
	return all.String()
}

func TestAStrategyOfItsOwn(t *testing.T) {
	r := route(t, router.Config{
		Strategy: "round_robin", Default: []string{"a", "b"},
		Rules: []router.Rule{
			{Match: []string{"f"}, Targets: []string{"a", "b"}, Strategy: "failover"},
			{Match: []string{"r"}, Targets: []string{"a", "b"}},
		},
	})
	for range 3 {
		assert.Equal(t, []string{"a", "b"}, way(t, r, ask("f")))
	}
	assert.Equal(t, []string{"a", "b"}, way(t, r, ask("r")))
	assert.Equal(t, "abab", firsts(t, r, 4), "each rule counts its own turns")
	assert.Equal(t, []string{"b", "a"}, way(t, r, ask("r")))
}

func TestRoundRobin(t *testing.T) {
	ups := upstreams("a", "b", "c", "d")
	r := routeOver(t, router.Config{Strategy: "round_robin"}, ups)
	assert.Equal(t, []string{"a", "b", "c", "d"}, way(t, r, ask("m")))
	assert.Equal(t, []string{"b", "c", "d", "a"}, way(t, r, ask("m")))
	assert.Equal(t, []string{"c", "d", "a", "b"}, way(t, r, ask("m")))
	assert.Equal(t, []string{"d", "a", "b", "c"}, way(t, r, ask("m")))
	assert.Equal(t, "abcdabcd", firsts(t, r, 8))

	ups[1].Lane("m").Hold(health.Open, time.Hour)
	assert.Equal(t, "acdacdacd", firsts(t, r, 9), "those that are there take turns")
	ups[3].Lane("m").Hold(health.Open, time.Hour)
	assert.Equal(t, "acacac", firsts(t, r, 6))
	ups[0].Lane("m").Hold(health.Open, time.Hour)
	assert.Equal(t, "ccc", firsts(t, r, 3))
	for _, u := range ups {
		u.Lane("m").Hold(health.Closed, 0)
	}
	assert.Equal(t, "dabcd", firsts(t, r, 5))
}

func TestWeightedRoundRobin(t *testing.T) {
	weighted := func(ups []*router.Upstream, weights ...int) *router.Router {
		return routeOver(t, router.Config{Strategy: "weighted_round_robin", Weights: weights}, ups)
	}
	r := weighted(upstreams("a", "b", "c"), 5, 1, 1)
	assert.Equal(t, strings.Repeat("aabacaa", 3), firsts(t, r, 21))
	assert.Equal(t, []string{"a", "b", "c"}, way(t, r, ask("m")))
	assert.Equal(t, []string{"a", "b", "c"}, way(t, r, ask("m")))
	assert.Equal(t, []string{"b", "c", "a"}, way(t, r, ask("m")), "the others follow in order")

	assert.Equal(t, "abcabc", firsts(t, weighted(upstreams("a", "b", "c")), 6), "1 each")
	assert.Equal(t, "babbab", firsts(t, weighted(upstreams("a", "b"), 1, 2), 6))

	for _, weights := range [][]int{{1000, 1, 1}, {3, 2, 5}, {7, 7, 1}} {
		sum := weights[0] + weights[1] + weights[2]
		got := firsts(t, weighted(upstreams("a", "b", "c"), weights...), 2*sum)
		for i, name := range []string{"a", "b", "c"} {
			assert.Equal(t, 2*weights[i], strings.Count(got, name), "%v: exact over a round", weights)
		}
	}

	ups := upstreams("a", "b", "c")
	r = weighted(ups, 5, 1, 2)
	ups[0].Lane("m").Hold(health.Open, time.Hour)
	assert.Equal(t, "cbccbc", firsts(t, r, 6), "by weight among those that are there")
	ups[0].Lane("m").Hold(health.Closed, 0)
	got := firsts(t, r, 80)
	assert.Equal(t, [3]int{50, 10, 20}, [3]int{strings.Count(got, "a"), strings.Count(got, "b"), strings.Count(got, "c")})
	assert.NotContains(t, got, "aaaaaaa", "nobody catches up on what it missed")
}

func TestShuffle(t *testing.T) {
	const n = 20_000
	within := func(got int, share float64) {
		t.Helper()
		assert.InDelta(t, share, float64(got)/n, 0.02)
	}
	r := routeOver(t, router.Config{Strategy: "shuffle", Weights: []int{5, 3, 2}}, upstreams("a", "b", "c"))
	first, second := map[string]int{}, map[string]int{}
	for range n {
		plan := way(t, r, ask("m"))
		first[plan[0]]++
		if plan[0] == "a" {
			second[plan[1]]++
		}
	}
	within(first["a"], 0.5)
	within(first["b"], 0.3)
	within(first["c"], 0.2)
	within(second["b"], 0.5*0.6) // 3 of the 5 that are left
	within(second["c"], 0.5*0.4)

	ups := upstreams("a", "b", "c")
	r = routeOver(t, router.Config{Strategy: "shuffle"}, ups)
	ups[0].Lane("m").Hold(health.Open, time.Hour)
	first = map[string]int{}
	for range n {
		first[way(t, r, ask("m"))[0]]++
	}
	within(first["b"], 0.5)
	within(first["c"], 0.5)
}

func TestLeastLoaded(t *testing.T) {
	load := func(u *router.Upstream, n int) {
		for range n {
			u.Begin()
		}
		for range -n {
			u.End()
		}
	}
	ups := upstreams("a", "b", "c")
	r := routeOver(t, router.Config{Strategy: "least_loaded"}, ups)
	assert.Equal(t, "abcabc", firsts(t, r, 6), "all idle: in turn")
	load(ups[0], 1)
	assert.Equal(t, "bcbcbc", firsts(t, r, 6), "the turns of those that are equal are fair")
	load(ups[1], 3)
	load(ups[2], 2)
	for range 3 {
		assert.Equal(t, []string{"a", "c", "b"}, way(t, r, ask("m")))
	}
	load(ups[0], 2)
	for range 3 {
		assert.Equal(t, "c", way(t, r, ask("m"))[0])
	}
	ups[2].Lane("m").Hold(health.Open, time.Hour)
	assert.Equal(t, "abab", firsts(t, r, 4))

	ups = upstreams("a", "b", "c")
	r = routeOver(t, router.Config{Strategy: "least_loaded", Weights: []int{1, 2, 10}}, ups)
	load(ups[0], 1)
	load(ups[1], 2)
	load(ups[2], 9) // for its weight, the least
	assert.Equal(t, "ccc", firsts(t, r, 3))
	load(ups[2], 1) // now all have as many for their weight
	assert.Equal(t, "abcabc", firsts(t, r, 6))
	load(ups[2], 1)
	assert.Equal(t, "abab", firsts(t, r, 4))
	load(ups[0], 1)
	assert.Equal(t, []string{"b", "c", "a"}, way(t, r, ask("m")))
}

// Requests that are taken as fast as they are planned spread by weight.
func TestLeastLoadedFills(t *testing.T) {
	ups := upstreams("a", "b", "c")
	r := routeOver(t, router.Config{Strategy: "least_loaded", Weights: []int{1, 2, 3}}, ups)
	for range 600 {
		plan(t, r, ask("m")).Candidates[0].Upstream.Begin()
	}
	for i, want := range []float64{100, 200, 300} {
		assert.InDelta(t, want, ups[i].InFlight(), 1)
	}
}
