package router_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

// seen is what can be told of a plan.
type seen struct {
	candidates     []string
	resort         string
	skipped        []router.Skip
	rule, strategy string
	home           bool
	err            error
}

func see(p router.Plan, err error) seen {
	s := seen{candidates: namesOf(p.Candidates), skipped: p.Skipped, rule: p.Rule, strategy: p.Strategy, home: p.Home, err: err}
	if p.Resort != nil {
		s.resort = nameOf(*p.Resort)
	}
	if p.Strategy == router.StrategyShuffle && !p.Home {
		slices.Sort(s.candidates) // two draws are never the same
	}
	return s
}

// state is what an upstream knows, those classes last that were seen last.
func state(u *router.Upstream) (classes []string, lanes []router.LaneStatus) {
	for _, l := range u.Lanes() {
		classes = append(classes, l.Class)
	}
	return classes, u.Health()
}

// A router that is looked at plans as one that is not, and what is seen is the plan
// that comes next.
func TestPreviewsChangeNothing(t *testing.T) {
	model := rapid.SampledFrom([]string{"claude-opus-5-5", "claude-haiku-5-5", "m", "n", "best"})
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			strategy := rapid.SampledFrom(router.Strategies()).Draw(t, "strategy")
			targets := []string{"a", "b/m", "c", "a/n"}
			if strategy == router.StrategyLatency {
				targets = targets[:2] // of two, none is drawn
			}
			cfg := router.Config{
				Strategy: strategy, Default: targets, Aliases: map[string]string{"best": "claude-opus-5-5"},
				Rules: []router.Rule{{Match: []string{"n"}, Clients: []string{"ci"}, Targets: []string{"b"}}, {Match: []string{"m"}, Targets: []string{"c", "a"}, Weights: []int{3, 2}}},
			}
			quiet, looked := pooled(t, "a", "b", "c"), pooled(t, "a", "b", "c")
			q1, err := router.New(cfg, quiet, keypool.ClassOf, nil)
			require.NoError(t, err)
			q2, err := router.New(cfg, looked, keypool.ClassOf, nil)
			require.NoError(t, err)

			request := func(t *rapid.T) *router.Query {
				q := planned(model.Draw(t, "model"))
				q.Client = rapid.SampledFrom([]string{"", "ci"}).Draw(t, "client")
				q.Conversation = rapid.Uint64Range(0, 3).Draw(t, "conversation")
				return q
			}
			both := func(t *rapid.T, do func(*router.Upstream)) {
				i := rapid.IntRange(0, 2).Draw(t, "upstream")
				do(quiet[i])
				do(looked[i])
			}
			seconds := rapid.Map(rapid.IntRange(0, 30), func(n int) time.Duration { return time.Duration(n) * time.Second })
			t.Repeat(map[string]func(*rapid.T){
				"": func(t *rapid.T) {
					for i := range quiet {
						classes1, lanes1 := state(quiet[i])
						classes2, lanes2 := state(looked[i])
						require.Equal(t, classes1, classes2)
						require.Equal(t, lanes1, lanes2)
					}
				},
				"preview": func(t *rapid.T) { _, _ = q2.Preview(request(t)) },
				"plan": func(t *rapid.T) {
					q := request(t)
					preview := see(q2.Preview(q))
					want := see(q1.Plan(q))
					require.Equal(t, want, preview)
					require.Equal(t, want, see(q2.Plan(q)))
				},
				"settle": func(t *rapid.T) {
					c, i := rapid.Uint64Range(1, 3).Draw(t, "conversation"), rapid.IntRange(0, 2).Draw(t, "home")
					q1.Settle(c, quiet[i], "", time.Minute, time.Now())
					q2.Settle(c, looked[i], "", time.Minute, time.Now())
				},
				"force": func(t *rapid.T) {
					class, s := rapid.SampledFrom([]string{"", "m", "opus-5-5"}).Draw(t, "class"), rapid.SampledFrom([]health.State{health.Open, health.Closed}).Draw(t, "state")
					d := seconds.Draw(t, "for")
					both(t, func(u *router.Upstream) { u.Force(class, s, d) })
				},
				"drain": func(t *rapid.T) {
					on := rapid.Bool().Draw(t, "on")
					both(t, func(u *router.Upstream) { u.SetDraining(on) })
				},
				"fail": func(t *rapid.T) {
					class := keypool.ClassOf(model.Draw(t, "model"))
					both(t, func(u *router.Upstream) { fail(u, class) })
				},
				"lacks": func(t *rapid.T) {
					m := model.Draw(t, "model")
					both(t, func(u *router.Upstream) { u.Miss(m, time.Now()) })
				},
				"load": func(t *rapid.T) { both(t, (*router.Upstream).Begin) },
				"observe": func(t *rapid.T) {
					class, took := keypool.ClassOf(model.Draw(t, "model")), seconds.Draw(t, "took")
					both(t, func(u *router.Upstream) { u.Lane(class).Observe(took, time.Now()) })
				},
				"wait": func(t *rapid.T) { time.Sleep(time.Nanosecond + seconds.Draw(t, "for")) },
			})
		})
	})
}

// What is looked at is kept alive by requests alone.
func TestPreviewsKeepNothingAlive(t *testing.T) {
	ups := upstreams("a", "b")
	r := routeOver(t, router.Config{}, ups)
	now := time.Now()
	for c := uint64(1); c <= 100_000; c++ {
		r.Settle(c, ups[1], "", time.Hour, now)
	}
	q := ask("m")
	q.Conversation = 1
	p, err := r.Preview(q)
	require.NoError(t, err)
	assert.True(t, p.Home)
	assert.Empty(t, ups[0].Lanes())
	r.Settle(100_001, ups[1], "", time.Hour, now)
	assert.False(t, plan(t, r, q).Home, "it was the oldest")
}

func TestPreviewOfWhatCannotBeReached(t *testing.T) {
	r := route(t, router.Config{Rules: []router.Rule{{Match: []string{"m"}, Targets: []string{"a"}}}})
	_, err := r.Preview(ask("n"))
	var unreachable *router.UnreachableError
	require.ErrorAs(t, err, &unreachable)
	assert.Equal(t, []string{"m"}, unreachable.Reachable)
}
