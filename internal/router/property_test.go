package router_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

// naive is the first rule for a request, by the letter of what Rule says; nil if none.
func naive(cfg router.Config, asked, client string) *router.Rule {
	model := asked
	for cfg.Aliases[model] != "" {
		model = cfg.Aliases[model]
	}
	fits := func(patterns []string, name string) bool {
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool {
			return regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(p), `\*`, ".*") + "$").MatchString(name)
		})
	}
	for i, r := range cfg.Rules {
		forClient := len(r.Clients) == 0 || slices.Contains(r.Clients, client)
		forClass := r.Class == "" || r.Class == keypool.ClassOf(model)
		if forClient && forClass && (fits(r.Match, model) || fits(r.Match, asked)) {
			return &cfg.Rules[i]
		}
	}
	if len(cfg.Default) > 0 {
		return &router.Rule{Targets: cfg.Default}
	}
	if len(cfg.Rules) == 0 {
		return &router.Rule{Targets: []string{"a", "b", "c"}}
	}
	return nil
}

// Whatever the rules and whatever happened before, reloads included, a plan has each
// target of the rule at most once, nobody else, nobody who drains, whose breaker is
// open or who lacks the model, and everybody who is left.
func TestPlansKeepToTheRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			model := rapid.SampledFrom([]string{"claude-opus-5-5", "claude-opus-5", "claude-haiku-5-5", "m", "n", "x/y", "alias", "chain"})
			pattern := rapid.OneOf(model, rapid.SampledFrom([]string{"*", "claude-*", "*-5", "*opus*5", "m*", "*/*"}))
			target := rapid.SampledFrom([]string{"a", "b", "c", "a/m", "b/m", "c/claude-opus-5-5", "c/x/y"})
			targets := rapid.SliceOfNDistinct(target, 1, 4, rapid.ID)
			strategy := rapid.SampledFrom(append(router.Strategies(), ""))
			client := rapid.SampledFrom([]string{"", "dev", "ci"})
			rule := rapid.Custom(func(t *rapid.T) router.Rule {
				r := router.Rule{
					Match: rapid.SliceOfN(pattern, 0, 2).Draw(t, "match"), Targets: targets.Draw(t, "targets"), Strategy: strategy.Draw(t, "strategy"),
					Class:   rapid.SampledFrom([]string{"", "", "opus-5-5", "m"}).Draw(t, "class"),
					Clients: rapid.SliceOfN(client, 0, 1).Draw(t, "clients"),
				}
				if len(r.Match) == 0 && r.Class == "" {
					r.Match = []string{"*5"}
				}
				if rapid.Bool().Draw(t, "weighted") {
					r.Weights = rapid.SliceOfN(rapid.IntRange(1, 5), len(r.Targets), len(r.Targets)).Draw(t, "weights")
				}
				return r
			})
			cfg := router.Config{
				Strategy: strategy.Draw(t, "strategy"), Rules: rapid.SliceOfN(rule, 0, 4).Draw(t, "rules"),
				Aliases: map[string]string{"alias": "claude-opus-5-5", "chain": "alias"},
			}
			if rapid.Bool().Draw(t, "has a default") {
				cfg.Default = targets.Draw(t, "default")
			}
			ups := pooled(t, "a", "b", "c")
			r, err := router.New(cfg, ups, keypool.ClassOf, nil)
			require.NoError(t, err)

			settled := map[uint64]string{}
			until := map[uint64]time.Time{}
			old := slices.Clone(ups) // what requests under way still have
			pick := rapid.Map(rapid.IntRange(0, 5), func(i int) *router.Upstream { return slices.Concat(ups, old)[i] })
			t.Repeat(map[string]func(*rapid.T){
				"hold": func(t *rapid.T) {
					pick.Draw(t, "upstream").Lane(keypool.ClassOf(model.Draw(t, "model"))).Hold(
						rapid.SampledFrom([]health.State{health.Open, health.Closed}).Draw(t, "state"), rapid.SampledFrom([]time.Duration{0, time.Second, time.Minute}).Draw(t, "for"))
				},
				"fail":  func(t *rapid.T) { fail(pick.Draw(t, "upstream"), keypool.ClassOf(model.Draw(t, "model"))) },
				"lacks": func(t *rapid.T) { pick.Draw(t, "upstream").Miss(model.Draw(t, "model"), time.Now()) },
				"drain": func(t *rapid.T) { pick.Draw(t, "upstream").SetDraining(rapid.Bool().Draw(t, "on")) },
				"reload": func(t *rapid.T) {
					before := r
					old, ups = ups, renewed(ups)
					r, err = router.New(cfg, ups, keypool.ClassOf, nil)
					require.NoError(t, err)
					r.Inherit(before)
				},
				"load": func(t *rapid.T) { pick.Draw(t, "upstream").Begin() },
				"wait": func(t *rapid.T) {
					time.Sleep(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 10 * time.Minute}).Draw(t, "for"))
				},
				"settle": func(t *rapid.T) {
					c := rapid.Uint64Range(1, 3).Draw(t, "conversation")
					u := pick.Draw(t, "upstream")
					settled[c], until[c] = u.Provider.Name(), time.Now().Add(time.Minute)
					r.Settle(c, u, "", time.Minute, time.Now())
				},
				"observe": func(t *rapid.T) {
					lane := pick.Draw(t, "upstream").Lane(keypool.ClassOf(model.Draw(t, "model")))
					lane.Observe(time.Duration(rapid.IntRange(0, 5).Draw(t, "took"))*time.Second, time.Now())
				},
				"plan": func(t *rapid.T) {
					q := ask(model.Draw(t, "model"))
					q.Client, q.Conversation = client.Draw(t, "client"), rapid.Uint64Range(0, 3).Draw(t, "conversation")
					home := settled[q.Conversation]
					if !time.Now().Before(until[q.Conversation]) {
						home = ""
					}
					check(t, r, naive(cfg, q.Model, q.Client), q, home)
				},
			})
		})
	})
}

func check(t *rapid.T, r *router.Router, rule *router.Rule, q *router.Query, home string) {
	p, err := r.Plan(q)
	if rule == nil {
		var unreachable *router.UnreachableError
		require.ErrorAs(t, err, &unreachable)
		return
	}
	require.NoError(t, err)
	var all, known, want, open []string // targets
	shortest := time.Duration(-1)
	for _, target := range rule.Targets {
		name, model, _ := strings.Cut(target, "/")
		if model == "" {
			model = r.Alias(q.Model)
		}
		u := r.Upstreams()[strings.Index("abc", name)]
		if u.Draining() {
			continue
		}
		if !u.Lacks(model, q.Now) {
			known = append(known, name+"/"+model)
		}
		all = append(all, name+"/"+model)
	}
	if len(known) == 0 {
		known = all
	}
	wait := func(target string) time.Duration {
		name, model, _ := strings.Cut(target, "/")
		s := r.Upstreams()[strings.Index("abc", name)].Lane(keypool.ClassOf(model)).Status()
		if s.State != health.Open {
			return 0
		}
		return s.Until.Sub(q.Now)
	}
	for _, target := range known {
		if w := wait(target); w == 0 {
			want = append(want, target)
		} else if open = append(open, target); shortest < 0 || w < shortest {
			shortest = w
		}
	}
	if len(all) == 1 {
		want, open = all, nil
	}
	full := func(c router.Candidate) string { return c.Upstream.Provider.Name() + "/" + c.Asks(q.Model) }
	var got []string
	for _, c := range p.Candidates {
		got = append(got, full(c))
		require.Same(t, c.Upstream.Lane(keypool.ClassOf(c.Asks(q.Model))), c.Lane)
		require.Equal(t, c.Lane.Class, c.Class)
	}
	require.ElementsMatch(t, want, got, "the targets of the rule are %q", all)
	require.Len(t, p.Skipped, len(rule.Targets)-len(got))
	require.Equal(t, len(open) > 0, p.Resort != nil)
	if p.Resort != nil {
		require.Contains(t, open, full(*p.Resort))
		require.Equal(t, shortest, wait(full(*p.Resort)), "it is the least bad")
	}
	if len(all) < 2 || len(got) == 0 {
		return
	}
	serves := slices.ContainsFunc(p.Candidates, func(c router.Candidate) bool { return c.Upstream.Provider.Name() == home })
	for i, c := range p.Candidates {
		require.Equal(t, i == 0 && serves, c.Home())
	}
	if serves {
		assert.Equal(t, home, p.Candidates[0].Upstream.Provider.Name())
	}
}
