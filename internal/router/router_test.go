package router_test

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
)

// named is a provider of which only the name matters.
type named string

func (n named) Name() string { return string(n) }
func (n named) NewRequest(context.Context, *provider.Call, string) (*http.Request, error) {
	panic("the router sends nothing")
}

func upstreams(names ...string) []*router.Upstream {
	var list []*router.Upstream
	for _, n := range names {
		list = append(list, &router.Upstream{Provider: named(n)})
	}
	return list
}

// route is a router over upstreams a, b, c and d.
func route(tb testing.TB, cfg router.Config) *router.Router {
	tb.Helper()
	return routeOver(tb, cfg, upstreams("a", "b", "c", "d"))
}

func routeOver(tb testing.TB, cfg router.Config, ups []*router.Upstream) *router.Router {
	tb.Helper()
	r, err := router.New(cfg, ups, keypool.ClassOf, nil)
	require.NoError(tb, err)
	return r
}

// ask is a request for a model, now.
func ask(model string) *router.Query {
	return &router.Query{Model: model, Class: keypool.ClassOf(model), Now: time.Now()}
}

// nameOf is a target as a rule writes it.
func nameOf(c router.Candidate) string {
	if c.Model == "" {
		return c.Upstream.Provider.Name()
	}
	return c.Upstream.Provider.Name() + "/" + c.Model
}

func namesOf(list []router.Candidate) []string {
	var names []string
	for _, c := range list {
		names = append(names, nameOf(c))
	}
	return names
}

// plan is the plan of a request that some rule is for.
func plan(tb testing.TB, r *router.Router, q *router.Query) router.Plan {
	tb.Helper()
	p, err := r.Plan(q)
	require.NoError(tb, err)
	return p
}

// way is the candidates of a request for a model, nil where no rule is for it.
func way(tb testing.TB, r *router.Router, q *router.Query) []string {
	tb.Helper()
	p, err := r.Plan(q)
	if err != nil {
		var unreachable *router.UnreachableError
		require.ErrorAs(tb, err, &unreachable)
		assert.Equal(tb, q.Model, unreachable.Model)
		assert.Empty(tb, p)
		return nil
	}
	return namesOf(p.Candidates)
}

func TestWithoutRulesAllUpstreamsServe(t *testing.T) {
	r := route(t, router.Config{})
	assert.Equal(t, []string{"a", "b", "c", "d"}, way(t, r, ask("m")))
	assert.Equal(t, []string{"a", "b", "c", "d"}, way(t, r, ask("")))
	assert.True(t, r.RetryUnknown)
	assert.NotNil(t, r.Budget)
	var names []string
	for _, u := range r.Upstreams() {
		names = append(names, u.Provider.Name())
	}
	assert.Equal(t, []string{"a", "b", "c", "d"}, names)
	assert.Empty(t, way(t, routeOver(t, router.Config{}, nil), ask("m")))

	off := false
	assert.False(t, route(t, router.Config{RetryUnknown: &off}).RetryUnknown)
}

func TestRules(t *testing.T) {
	rules := []router.Rule{
		{Match: []string{"claude-opus-5-5"}, Clients: []string{"ci"}, Targets: []string{"d"}},
		{Match: []string{"claude-opus-5-5", "m"}, Targets: []string{"a", "b"}},
		{Match: []string{"claude-opus-*"}, Class: "opus-4", Targets: []string{"c"}},
		{Match: []string{"claude-opus-*"}, Targets: []string{"a"}},
		{Class: "haiku-5-5", Clients: []string{"ci", "dev"}, Targets: []string{"b/small", "a"}},
		{Match: []string{"*[1m]", "x*y*z"}, Targets: []string{"c/vendor/large"}},
		{Class: "acme-1", Targets: []string{"d"}},
	}
	for _, tt := range []struct {
		client, model string
		want          []string // with no default
	}{
		{"", "claude-opus-5-5", []string{"a", "b"}},
		{"dev", "claude-opus-5-5", []string{"a", "b"}},
		{"ci", "claude-opus-5-5", []string{"d"}},
		{"", "m", []string{"a", "b"}},
		{"ci", "m", []string{"a", "b"}},
		{"", "claude-opus-4-8", []string{"c"}},
		{"", "claude-opus-5", []string{"a"}},
		{"", "claude-opus-", []string{"a"}},
		{"", "claude-opus", nil},
		{"", "Claude-opus-5", nil},
		{"ci", "claude-haiku-5-5", []string{"b/small", "a"}},
		{"dev", "claude-haiku-5-5@20261001", []string{"b/small", "a"}},
		{"", "claude-haiku-5-5", nil},
		{"x", "claude-haiku-5-5", nil},
		{"", "claude-sonnet-5[1m]", []string{"c/vendor/large"}},
		{"", "claude-opus-5[1m]", []string{"a"}},
		{"", "xyz", []string{"c/vendor/large"}},
		{"", "x1y2z", []string{"c/vendor/large"}},
		{"", "xzy", nil},
		{"", "acme-1", []string{"d"}},
		{"", "mm", nil},
		{"", "", nil},
	} {
		t.Run(tt.client+" "+tt.model, func(t *testing.T) {
			q := ask(tt.model)
			q.Client = tt.client
			assert.Equal(t, tt.want, way(t, route(t, router.Config{Rules: rules}), q))
			if tt.want == nil {
				tt.want = []string{"d/any", "a"}
			}
			assert.Equal(t, tt.want, way(t, route(t, router.Config{Rules: rules, Default: []string{"d/any", "a"}}), q))
		})
	}
	assert.Equal(t, []string{"d/any", "a"}, way(t, route(t, router.Config{Default: []string{"d/any", "a"}}), ask("m")), "a default without rules")
}

// Counting tokens and listing models have limits of their own, not models of their own.
func TestCallsOfAnotherClass(t *testing.T) {
	r := route(t, router.Config{
		Rules: []router.Rule{
			{Class: "opus-5-5", Targets: []string{"a", "b/claude-haiku-5-5"}},
			{Class: keypool.ClassCountTokens, Targets: []string{"c"}},
		},
		Aliases: map[string]string{"best": "claude-opus-5-5"},
	})
	for _, class := range []string{keypool.ClassCountTokens, keypool.ClassModels} {
		for _, model := range []string{"claude-opus-5-5", "best"} {
			q := ask(model)
			q.Class = class
			p := plan(t, r, q)
			require.Len(t, p.Candidates, 2)
			for _, c := range p.Candidates {
				assert.Equal(t, class, c.Class, model)
				assert.Equal(t, class, c.Lane.Class, model)
			}
			assert.Equal(t, "claude-opus-5-5", p.Candidates[0].Asks("claude-opus-5-5"))
			assert.Len(t, r.Targets(model, class, ""), 2)
		}
	}
}

func TestClassesOfCandidates(t *testing.T) {
	r := route(t, router.Config{
		Default: []string{"a", "b/claude-haiku-5-5", "c/acme"},
		Aliases: map[string]string{"best": "claude-opus-5-5"},
	})
	for _, asked := range []string{"claude-opus-5-5", "best"} {
		p := plan(t, r, ask(asked))
		require.Len(t, p.Candidates, 3)
		for i, want := range []struct{ class, asks string }{{"opus-5-5", "claude-opus-5-5"}, {"haiku-5-5", "claude-haiku-5-5"}, {"acme", "acme"}} {
			c := p.Candidates[i]
			assert.Equal(t, want.class, c.Class)
			assert.Equal(t, want.asks, c.Asks(asked))
			assert.Same(t, c.Upstream.Lane(want.class), c.Lane)
			assert.Equal(t, want.class, c.Lane.Class)
			assert.Equal(t, 1, c.Weight)
			assert.False(t, c.Home())
		}
	}
}

func TestAliases(t *testing.T) {
	r := route(t, router.Config{
		Rules: []router.Rule{
			{Match: []string{"fast"}, Clients: []string{"ci"}, Targets: []string{"d"}},
			{Match: []string{"claude-haiku-*"}, Targets: []string{"a", "b/small"}},
			{Class: "opus-5-5", Targets: []string{"b"}},
			{Match: []string{"sm*"}, Class: "opus-5-5", Targets: []string{"c"}},
			{Match: []string{"named"}, Targets: []string{"c"}},
		},
		Aliases: map[string]string{
			"fast": "quick", "quick": "claude-haiku-5-5", "smart": "claude-opus-5-5", "named": "unknown", "lost": "unknown",
			"claude-haiku-9": "claude-haiku-5-5",
		},
	})
	for _, tt := range []struct {
		client, model string
		want          []string
	}{
		{"", "claude-haiku-5-5", []string{"a", "b/small"}},
		{"", "quick", []string{"a/claude-haiku-5-5", "b/small"}},
		{"", "fast", []string{"a/claude-haiku-5-5", "b/small"}},
		{"ci", "fast", []string{"d/claude-haiku-5-5"}},
		{"ci", "quick", []string{"a/claude-haiku-5-5", "b/small"}},
		{"", "smart", []string{"b/claude-opus-5-5"}},
		{"", "named", []string{"c/unknown"}},
		{"", "claude-haiku-9", []string{"a/claude-haiku-5-5", "b/small"}},
		{"", "lost", nil},
		{"", "unknown", nil},
	} {
		q := ask(tt.model)
		q.Client = tt.client
		assert.Equal(t, tt.want, way(t, r, q), "%s for %q", tt.model, tt.client)
	}
	for name, want := range map[string]string{"fast": "claude-haiku-5-5", "quick": "claude-haiku-5-5", "smart": "claude-opus-5-5", "x": "x", "": ""} {
		assert.Equal(t, want, r.Alias(name))
	}
}

func TestResolveAlias(t *testing.T) {
	aliases := map[string]string{"a": "b", "b": "c", "x": "y", "y": "z", "z": "y", "self": "self"}
	for name, tt := range map[string]struct {
		model string
		cycle []string
	}{
		"a": {"c", nil}, "c": {"c", nil}, "": {"", nil},
		"x":    {"", []string{"y", "z", "y"}},
		"y":    {"", []string{"y", "z", "y"}},
		"self": {"", []string{"self", "self"}},
	} {
		model, cycle := router.ResolveAlias(aliases, name)
		assert.Equal(t, tt.model, model, name)
		assert.Equal(t, tt.cycle, cycle, name)
	}
}

func TestUnreachable(t *testing.T) {
	r := route(t, router.Config{
		Rules: []router.Rule{
			{Match: []string{"claude-opus-*", "m"}, Targets: []string{"a"}},
			{Match: []string{"m", "n"}, Targets: []string{"b"}},
			{Class: "haiku-5-5", Targets: []string{"a"}},
			{Match: []string{"ci-*"}, Clients: []string{"ci"}, Targets: []string{"a"}},
			{Match: []string{"claude-haiku-4-5"}, Class: "opus-5", Targets: []string{"a"}},
		},
		Aliases: map[string]string{"best": "claude-opus-5-5", "mine": "ci-1", "none": "nothing"},
	})
	const all = "best, claude-opus-*, m, n, the models of class haiku-5-5"
	for client, want := range map[string]string{
		"":   "model: no rule of the relay leads this model anywhere; reachable are " + all,
		"ci": "model: no rule of the relay leads this model anywhere; reachable are best, ci-*, claude-opus-*, m, mine, n, the models of class haiku-5-5",
	} {
		q := ask("gpt-9")
		q.Client = client
		_, err := r.Plan(q)
		require.EqualError(t, err, want)
	}
	assert.Equal(t, []string{"best", "m", "n"}, r.Names(""))
	assert.Equal(t, []string{"best", "m", "mine", "n"}, r.Names("ci"))

	only := route(t, router.Config{
		Rules:   []router.Rule{{Match: []string{"m"}, Clients: []string{"ci"}, Targets: []string{"a"}}},
		Aliases: map[string]string{"best": "m"},
	})
	_, err := only.Plan(ask("m"))
	require.EqualError(t, err, "model: no rule of the relay is for this client; ask its operator for one")
	var unreachable *router.UnreachableError
	require.True(t, errors.As(err, &unreachable))
	assert.Empty(t, unreachable.Reachable)
	assert.Empty(t, only.Names(""))
}

func TestNamesWhereAllIsReachable(t *testing.T) {
	r := route(t, router.Config{
		Rules:   []router.Rule{{Match: []string{"m", "x*"}, Targets: []string{"a"}}, {Match: []string{"only"}, Clients: []string{"ci"}, Targets: []string{"a"}}},
		Default: []string{"b"},
		Aliases: map[string]string{"best": "anything", "m": "n"},
	})
	assert.Equal(t, []string{"best", "m"}, r.Names(""))
	assert.Equal(t, []string{"best", "m", "only"}, r.Names("ci"))
	assert.Empty(t, route(t, router.Config{}).Names(""))
}

func TestTargets(t *testing.T) {
	ups := upstreams("a", "b")
	r := routeOver(t, router.Config{
		Rules:   []router.Rule{{Match: []string{"claude-*"}, Targets: []string{"b/big", "a"}}},
		Aliases: map[string]string{"best": "claude-opus-5-5"},
	}, ups)
	for _, asked := range []string{"claude-opus-5-5", "best"} {
		ups[0].Miss("claude-opus-5-5", time.Now())
		ups[1].Lane("big").Hold(health.Open, time.Minute)
		assert.Equal(t, []router.Destination{
			{Upstream: ups[1], Model: "big", Named: true},
			{Upstream: ups[0], Model: "claude-opus-5-5"},
		}, r.Targets(asked, keypool.ClassOf(asked), ""), "health and what they lack is not looked at")
	}
	assert.Nil(t, r.Targets("m", "m", ""))
}

func TestMistakes(t *testing.T) {
	rule := func(r router.Rule) router.Config {
		return router.Config{Rules: []router.Rule{{Match: []string{"ok"}, Targets: []string{"a"}}, r}}
	}
	m := []string{"m"}
	for name, tt := range map[string]struct {
		cfg  router.Config
		want string
	}{
		"strategy":           {router.Config{Strategy: "roulette"}, `default: strategy "roulette" is unknown; write one of cost, failover, latency, least_loaded, round_robin, shuffle, weighted_round_robin`},
		"strategy of a rule": {rule(router.Rule{Match: m, Targets: m, Strategy: "x"}), `models[1]: strategy "x" is unknown; write one of cost, failover, latency, least_loaded, round_robin, shuffle, weighted_round_robin`},
		"cycle":              {router.Config{Aliases: map[string]string{"x": "y", "y": "x", "ok": "m"}}, "aliases: a cycle: "},
		"no targets":         {rule(router.Rule{Match: m}), "models[1]: no targets"},
		"for no model":       {rule(router.Rule{Targets: []string{"a"}}), "models[1]: for no model"},
		"pattern":            {rule(router.Rule{Match: []string{"a?"}, Targets: m}), "models[1]: match: only * stands for other characters; write it for ?"},
		"provider":           {rule(router.Rule{Match: m, Targets: []string{"a", "e/m"}}), `models[1]: target "e/m": there is no provider "e"`},
		"no provider":        {rule(router.Rule{Match: m, Targets: []string{"/m"}}), `models[1]: target "/m": names no provider; write PROVIDER or PROVIDER/MODEL`},
		"slash":              {rule(router.Rule{Match: m, Targets: []string{"a/"}}), `models[1]: target "a/": ends in a slash; write PROVIDER or PROVIDER/MODEL`},
		"wildcard":           {rule(router.Rule{Match: m, Targets: []string{"a/x*"}}), `models[1]: target "a/x*": a target's model is one name; * is for match`},
		"model of a target":  {rule(router.Rule{Match: m, Targets: []string{"a/x y"}}), `models[1]: target "a/x y": not a model's name; write up to 512 visible ASCII characters`},
		"twice":              {rule(router.Rule{Match: m, Targets: []string{"a", "b", "a"}}), `models[1]: target "a" is there twice`},
		"weights":            {rule(router.Rule{Match: m, Targets: []string{"a", "b"}, Weights: []int{1}}), "models[1]: 1 weights for 2 targets"},
		"no weight":          {rule(router.Rule{Match: m, Targets: []string{"a", "b"}, Weights: []int{1, 0}}), "models[1]: weight 0; write 1 to 1000"},
		"large weight":       {rule(router.Rule{Match: m, Targets: []string{"a"}, Weights: []int{1001}}), "models[1]: weight 1001; write 1 to 1000"},
		"default":            {router.Config{Default: []string{"a", "z"}}, `default: target "z": there is no provider "z"`},
		"weights of default": {router.Config{Weights: []int{1, 2}}, "default: 2 weights for 4 targets"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := router.New(tt.cfg, upstreams("a", "b", "c", "d"), keypool.ClassOf, nil)
			assert.Nil(t, r)
			require.ErrorContains(t, err, "router: "+tt.want)
		})
	}
}

func TestSplitTarget(t *testing.T) {
	for target, want := range map[string][2]string{"a": {"a", ""}, "a/m": {"a", "m"}, "a/v/m": {"a", "v/m"}, "a//m": {"a", "/m"}} {
		name, model, err := router.SplitTarget(target)
		require.NoError(t, err)
		assert.Equal(t, want, [2]string{name, model}, target)
	}
}

func TestModelsThatAreMissing(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		lacking []string
		model   string
		at      time.Duration
		want    []string
	}{
		"configured order":                 {nil, "m", 0, []string{"a", "b", "c/x"}},
		"one lacks the model":              {[]string{"b"}, "m", time.Minute, []string{"a", "c/x"}},
		"just before it is forgotten":      {[]string{"b"}, "m", 10*time.Minute - 1, []string{"a", "c/x"}},
		"after ten minutes":                {[]string{"b"}, "m", 10 * time.Minute, []string{"a", "b", "c/x"}},
		"another model":                    {[]string{"b"}, "n", 0, []string{"a", "b", "c/x"}},
		"no model":                         {[]string{"a", "b"}, "", 0, []string{"c/x"}},
		"an alias":                         {[]string{"a"}, "alias", 0, []string{"b/m", "c/x"}},
		"the model of the target":          {[]string{"c"}, "m", 0, []string{"a", "b"}},
		"all lack it: asking beats giving": {[]string{"a", "b", "c"}, "m", 0, []string{"a", "b", "c/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			ups := upstreams("a", "b", "c")
			r := routeOver(t, router.Config{Default: []string{"a", "b", "c/x"}, Aliases: map[string]string{"alias": "m"}}, ups)
			for _, u := range ups {
				for _, n := range tt.lacking {
					if u.Provider.Name() == n {
						u.Miss(map[string]string{"c": "x"}[n], now) // "" for the others
						u.Miss(cmp.Or(map[string]string{"c": "x"}[n], "m"), now)
					}
				}
			}
			q := ask(tt.model)
			q.Now = now.Add(tt.at)
			assert.Equal(t, tt.want, way(t, r, q))
		})
	}
	t.Run("the one target of a rule", func(t *testing.T) {
		ups := upstreams("a")
		ups[0].Miss("m", now)
		ups[0].Lane("m").Hold(health.Open, time.Hour)
		p := plan(t, routeOver(t, router.Config{}, ups), ask("m"))
		assert.Equal(t, []string{"a"}, namesOf(p.Candidates), "there is nothing to choose")
		assert.Nil(t, p.Resort)
	})
}

// fail opens the breaker of an upstream for a class by 5 failures.
func fail(u *router.Upstream, class string) {
	for range 5 {
		u.Lane(class).Try()(health.Failure)
	}
}

func TestOpenBreakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ups := upstreams("a", "b", "c")
		r := routeOver(t, router.Config{Default: []string{"a", "b", "c/x"}}, ups)
		at := func(candidates []string, resort string) {
			t.Helper()
			p := plan(t, r, ask("m"))
			assert.Equal(t, candidates, namesOf(p.Candidates))
			got := ""
			if p.Resort != nil {
				got = nameOf(*p.Resort)
			}
			assert.Equal(t, resort, got, "the resort")
		}
		at([]string{"a", "b", "c/x"}, "")
		ups[1].Lane("m").Hold(health.Open, 10*time.Second)
		at([]string{"a", "c/x"}, "b")
		ups[2].Lane("m").Hold(health.Open, time.Second)
		at([]string{"a", "c/x"}, "b") // that is another class than x's
		fail(ups[0], "m")             // for 5 s
		at([]string{"c/x"}, "a")
		ups[2].Lane("x").Hold(health.Open, 7*time.Second)
		at(nil, "a")
		ups[2].Lane("x").Hold(health.Open, 5*time.Second-1)
		at(nil, "c/x")

		time.Sleep(5 * time.Second) // c is let be, and a may be tried
		at([]string{"a", "c/x"}, "b")
		probe, ok := ups[0].Lane("m").Allow()
		require.True(t, ok)
		at([]string{"c/x"}, "b") // one tries a, for up to 60 s, and b is open for 5 s more
		probe(health.Success)
		at([]string{"a", "c/x"}, "b") // it gets more and more requests
		time.Sleep(5 * time.Second)
		at([]string{"a", "b", "c/x"}, "")
	})
}

// A plan without candidates, and one of what lacks the model.
func TestOpenAndMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ups := upstreams("a", "b", "c")
		r := routeOver(t, router.Config{}, ups)
		ups[0].Miss("m", time.Now())
		ups[1].Lane("m").Hold(health.Open, time.Minute)
		ups[2].Lane("m").Hold(health.Open, time.Hour)
		p := plan(t, r, ask("m"))
		assert.Empty(t, p.Candidates, "who lacks it is not asked even then")
		assert.Equal(t, "b", nameOf(*p.Resort))

		ups[1].Miss("m", time.Now())
		ups[2].Miss("m", time.Now())
		p = plan(t, r, ask("m"))
		assert.Equal(t, []string{"a"}, namesOf(p.Candidates), "where all lack it, whom the breakers let be")
		assert.Equal(t, "b", nameOf(*p.Resort))
	})
}

func TestHomes(t *testing.T) {
	for _, strategy := range router.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ups := pooled(t, "a", "b", "c")
				r := routeOver(t, router.Config{Strategy: strategy, Rules: []router.Rule{
					{Match: []string{"m", "n"}, Targets: []string{"a", "b", "c"}}, {Match: []string{"elsewhere"}, Targets: []string{"a", "b"}},
				}}, ups)
				q := func(conversation uint64, model string) *router.Query {
					q := ask(model)
					q.Conversation = conversation
					return q
				}
				for range 10 { // by chance or in turn, b would not always be first
					for _, home := range ups {
						r.Settle(7, home, "", time.Minute, time.Now())
						p := plan(t, r, q(7, "m"))
						require.Equal(t, nameOf(p.Candidates[0]), home.Provider.Name())
						require.True(t, p.Candidates[0].Home())
						require.ElementsMatch(t, []string{"a", "b", "c"}, namesOf(p.Candidates))
						require.False(t, p.Candidates[1].Home() || p.Candidates[2].Home())
					}
				}
				assert.True(t, plan(t, r, q(7, "n")).Candidates[0].Home(), "a conversation may change its model")
				assert.False(t, plan(t, r, q(7, "elsewhere")).Candidates[0].Home(), "no rule leads that to c")
				for _, other := range []uint64{0, 8} {
					assert.False(t, plan(t, r, q(other, "m")).Candidates[0].Home())
				}

				ups[2].Lane("m").Hold(health.Open, 10*time.Second)
				p := plan(t, r, q(7, "m"))
				assert.ElementsMatch(t, []string{"a", "b"}, namesOf(p.Candidates))
				assert.False(t, p.Candidates[0].Home())
				ups[2].Miss("n", time.Now())
				assert.False(t, plan(t, r, q(7, "n")).Candidates[0].Home(), "it does not know the model")

				time.Sleep(time.Minute - 1)
				assert.Equal(t, "c", nameOf(plan(t, r, q(7, "m")).Candidates[0]), "it may serve again")
				time.Sleep(time.Nanosecond)
				assert.False(t, plan(t, r, q(7, "m")).Candidates[0].Home(), "it is forgotten")
			})
		})
	}
}

func TestTheRestOfAHomesPlan(t *testing.T) {
	ups := upstreams("a", "b", "c", "d")
	r := routeOver(t, router.Config{}, ups)
	r.Settle(7, ups[2], "", time.Minute, time.Now())
	q := ask("m")
	q.Conversation = 7
	assert.Equal(t, []string{"c", "a", "b", "d"}, way(t, r, q))
}

func TestNothingSettlesWithoutAConversation(t *testing.T) {
	ups := upstreams("a", "b")
	r := routeOver(t, router.Config{}, ups)
	r.Settle(0, ups[1], "", time.Minute, time.Now())
	assert.Equal(t, []string{"a", "b"}, way(t, r, ask("m")))

	one := upstreams("a")
	r = routeOver(t, router.Config{}, one)
	r.Settle(7, one[0], "m", time.Minute, time.Now())
	q := ask("m")
	q.Conversation = 7
	assert.False(t, plan(t, r, q).Candidates[0].Home(), "with one target there is nowhere else")
}

// One provider may be led to for two models: a conversation keeps its own.
func TestAHomeIsAModelToo(t *testing.T) {
	ups := upstreams("a", "b")
	r := routeOver(t, router.Config{Default: []string{"a/m1", "b", "a/m2"}}, ups)
	r.Settle(7, ups[0], "m2", time.Minute, time.Now())
	q := ask("m")
	q.Conversation = 7
	first := plan(t, r, q).Candidates[0]
	assert.True(t, first.Home())
	assert.Equal(t, "m2", first.Model)
}

// A conversation that goes on lives, and the oldest of very many is forgotten.
func TestHomesAreBounded(t *testing.T) {
	ups := upstreams("a", "b")
	r := routeOver(t, router.Config{}, ups)
	now := time.Now()
	at := func(conversation uint64) bool {
		q := ask("m")
		q.Conversation = conversation
		return plan(t, r, q).Candidates[0].Home()
	}
	for c := uint64(1); c <= 100_000; c++ {
		r.Settle(c, ups[1], "", time.Hour, now)
	}
	require.True(t, at(1))
	r.Settle(100_001, ups[1], "", time.Hour, now)
	assert.True(t, at(1), "it was looked for lately")
	assert.False(t, at(2))
	assert.True(t, at(100_001))
}

// What is done to one plan must not reach the next request.
func TestPlansAreIndependent(t *testing.T) {
	r := route(t, router.Config{})
	p := plan(t, r, ask("m"))
	p.Candidates[0], p.Candidates[1] = p.Candidates[1], p.Candidates[0]
	p.Candidates[2].Model = "x"
	assert.Equal(t, []string{"a", "b", "c", "d"}, way(t, r, ask("m")))
	assert.Len(t, r.Upstreams(), 4)
}

func TestOrigins(t *testing.T) {
	for want, origins := range map[bool][][]string{
		false: {{}, {"anthropic"}, {"anthropic", "anthropic"}},
		true:  {{"anthropic", "zai"}, {"anthropic", "anthropic", ""}},
	} {
		for _, list := range origins {
			ups := upstreams(make([]string, len(list))...)
			for i := range list {
				ups[i].Origin = list[i]
			}
			assert.Equal(t, want, routeOver(t, router.Config{}, ups).Origins(), "%q", list)
		}
	}
}

func TestRouterIsSafeForConcurrentUse(t *testing.T) {
	for _, strategy := range router.Strategies() {
		ups := pooled(t, "a", "b", "c")
		r := routeOver(t, router.Config{Strategy: strategy, Default: []string{"a", "b/x", "c"}}, ups)
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				for i := range 100 {
					q := ask(strconv.Itoa(i % 10))
					q.Conversation = uint64(i % 5)
					ups[n%2].Miss(strconv.Itoa(i%20), time.Now())
					p, err := r.Plan(q)
					if !assert.NoError(t, err) || !assert.NotEmpty(t, p.Candidates) {
						return
					}
					c := p.Candidates[0]
					c.Upstream.Begin()
					c.Lane.Observe(time.Second, time.Now())
					r.Settle(q.Conversation, c.Upstream, "", time.Minute, q.Now)
					c.Upstream.End()
					r.Names("")
				}
			})
		}
		wg.Wait()
		for _, u := range ups {
			assert.Zero(t, u.InFlight())
		}
	}
}
