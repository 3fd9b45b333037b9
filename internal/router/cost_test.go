package router_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/price"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
)

// pooled are upstreams with a pool of one key without limits each.
func pooled(tb require.TestingT, names ...string) []*router.Upstream {
	ups := upstreams(names...)
	for _, u := range ups {
		pool, err := keypool.NewKeyPool(u.Provider.Name(), keypool.PoolConfig{Keys: []keypool.KeyConfig{{Key: secret.New("sk-test")}}})
		require.NoError(tb, err)
		u.Pool = pool
	}
	return ups
}

// ownPrices go before the built-in ones.
func ownPrices(tb testing.TB) *price.Table {
	free := 0.0
	rate := func(f float64) *float64 { return &f }
	prices, err := price.NewTable([]price.Price{
		{Model: "glm-5.3", Input: 1.4, Output: 4.4}, // to write: 1.75, for an hour 2.8; to read: 0.14
		{Model: "glm-5.3", Provider: "zai", Input: 0.6, Output: 2.2, CacheWrite: &free, CacheWriteLong: &free, CacheRead: rate(0.11)},
		{Model: "local/*"},
		{Model: "claude-opus-5-5", Provider: "reseller", Input: 3, Output: 15}, // to write: 3.75, for an hour 6; to read: 0.3
		{Model: "*", Provider: "flat", Input: 2, Output: 2, CacheWrite: rate(2), CacheWriteLong: rate(2), CacheRead: rate(2)},
		{Model: "wide", Input: 1, Output: 4},
		{Model: "wide", PromptOver: 8000, Input: 4, Output: 16},
	})
	require.NoError(tb, err)
	return prices
}

const (
	opus    = "claude-opus-5-5"
	five    = 5 * time.Minute
	hour    = time.Hour
	unknown = -1
)

// demand is a request of that many bytes, of which the provider may have those up to
// each mark in its cache. New pools take 4 bytes for a token, and expect an answer
// of 400 tokens.
func demand(bytes, maxTokens int, marks ...keypool.Mark) keypool.Demand {
	for i := range marks {
		marks[i].Hash = uint64(marks[i].Bytes)
	}
	return keypool.Demand{Bytes: bytes, MaxTokens: maxTokens, Prefix: marks}
}

// cache has an upstream answer a request that writes its prompt to the cache.
func cache(tb testing.TB, u *router.Upstream, d keypool.Demand, bytes int) {
	tb.Helper()
	i := slices.IndexFunc(d.Prefix, func(m keypool.Mark) bool { return m.Bytes == bytes })
	mark := d.Prefix[i]
	mark.Life = five
	lease, err := u.Pool.Acquire(context.Background(), keypool.Demand{Class: d.Class, Model: d.Model, Bytes: bytes, Prefix: []keypool.Mark{mark}})
	require.NoError(tb, err)
	lease.Answered(http.StatusOK, nil)
	lease.Settle(keypool.Usage{}) // nothing is learned of the length of answers
}

// Prices are in US$, reckoned from the price lists by hand. For "half is cached":
// 5000 tokens read at 0.20, 5000 written at 5 and 400 of answer at 20 US$ per million
// are 0.001 + 0.025 + 0.008.
func TestCost(t *testing.T) {
	mark := func(bytes int, life time.Duration) keypool.Mark { return keypool.Mark{Bytes: bytes, Life: life} }
	tiny, short, plain, oneWord := demand(400, 100), demand(4000, 0), demand(40_000, 0), demand(40_000, 1)
	edge, over, large := demand(400_000, 0), demand(400_004, 0), demand(480_000, 0)
	wide8k, wideOver := demand(32_000, 0), demand(32_004, 0)
	turn := demand(40_000, 0, mark(40_000, five), mark(36_000, 0), mark(20_000, 0), mark(8000, 0))
	long := demand(40_000, 0, mark(40_000, hour), mark(36_000, 0), mark(20_000, 0), mark(8000, 0))
	tools := demand(40_000, 0, mark(20_000, hour), mark(8000, 0))
	brief, small := demand(8000, 0, mark(8000, five), mark(4000, 0)), demand(3000, 0, mark(3000, five))
	mixed := demand(60_000, 0, mark(60_000, five), mark(40_000, hour), mark(8000, hour))
	huge := demand(480_000, 0, mark(480_000, five), mark(400_000, 0), mark(200_000, 0))

	type offer struct {
		target string
		cost   float64
	}
	type warm map[string]int // target → bytes that are cached there
	for _, tt := range []struct {
		name, model string
		demand      keypool.Demand
		warm        warm
		offers      []offer // in configured order
	}{
		{"the cheaper of two models", opus, plain, nil, []offer{{"anthropic/claude-opus-5", 0.06}, {"anthropic", 0.048}}},
		{"the cheaper provider of one model", opus, plain, nil, []offer{{"anthropic", 0.048}, {"reseller", 0.036}}},
		{"the cheapest of three", opus, plain, nil, []offer{{"anthropic", 0.048}, {"reseller", 0.036}, {"anthropic/claude-sonnet-5-5", 0.024}}},
		{"another vendor", opus, plain, nil, []offer{{"anthropic", 0.048}, {"zai/glm-5.3", 0.00688}}},
		{"a vendor with a price of its own", opus, plain, nil, []offer{{"other/glm-5.3", 0.01576}, {"zai/glm-5.3", 0.00688}}},
		{"what is free", opus, plain, nil, []offer{{"zai/glm-5.3", 0.00688}, {"local/local/qwen", 0}, {"flat", 0.0208}}},
		{"fable and opus", opus, plain, nil, []offer{{"anthropic/claude-fable-5-2", 0.096}, {"anthropic/claude-fable-5", 0.12}, {"anthropic", 0.048}}},
		{"one price for all tokens, for a long answer", opus, short, nil, []offer{{"anthropic/claude-sonnet-5-5", 0.006}, {"flat", 0.0028}}},
		{"and for a long prompt", opus, plain, nil, []offer{{"anthropic/claude-sonnet-5-5", 0.024}, {"flat", 0.0208}}},
		{"an answer of one word", opus, oneWord, nil, []offer{{"flat", 0.020002}, {"anthropic/claude-sonnet-5-5", 0.02001}, {"anthropic", 0.04002}}},
		{"an answer of one word, old sonnet", opus, oneWord, nil, []offer{{"anthropic/claude-sonnet-4-6", 0.030015}, {"anthropic", 0.04002}, {"reseller", 0.030015}}},
		{"a tiny request", opus, tiny, nil, []offer{{"anthropic", 0.0024}, {"anthropic/claude-haiku-4-5", 0.0006}, {"zai/glm-5.3", 0.00028}}},
		{"haiku", opus, plain, nil, []offer{{"anthropic/claude-haiku-4-5", 0.012}, {"anthropic/claude-haiku-5-5", 0.0012}}},
		{"haiku under its threshold", opus, edge, nil, []offer{{"anthropic/claude-haiku-4-5", 0.102}, {"anthropic/claude-haiku-5-5", 0.0102}, {"zai/glm-5.3", 0.06088}}},
		{"haiku just over it", opus, over, nil, []offer{{"anthropic/claude-haiku-5-5", 0.0510005}, {"zai/glm-5.3", 0.0608806}, {"anthropic/claude-haiku-4-5", 0.102001}}},
		{"haiku far over it", opus, large, nil, []offer{{"anthropic/claude-haiku-4-5", 0.122}, {"anthropic/claude-haiku-5-5", 0.061}}},
		{"a threshold not reached", opus, wide8k, nil, []offer{{"other/wide", 0.0096}, {"anthropic/claude-sonnet-5-5", 0.02}}},
		{"a threshold reached", opus, wideOver, nil, []offer{{"other/wide", 0.038404}, {"anthropic/claude-sonnet-5-5", 0.020002}}},
		{"a threshold reached, of three", opus, wideOver, nil, []offer{{"other/wide", 0.038404}, {"anthropic/claude-opus-5", 0.050005}, {"anthropic", 0.040004}}},
		{"unknown last", opus, plain, nil, []offer{{"other/nobody", unknown}, {"anthropic", 0.048}}},
		{"unknown last, of three", opus, plain, nil, []offer{{"other/nobody", unknown}, {"anthropic", 0.048}, {"reseller", 0.036}}},
		{"unknown in the middle", opus, plain, nil, []offer{{"anthropic", 0.048}, {"other/nobody", unknown}, {"reseller", 0.036}}},
		{"two unknown, in order", opus, plain, nil, []offer{{"other/nobody", unknown}, {"zai/nothing", unknown}, {"anthropic", 0.048}}},
		{"all unknown, in order", opus, plain, nil, []offer{{"other/nobody", unknown}, {"zai/nothing", unknown}, {"other/never", unknown}}},
		{"unknown after the dearest", opus, large, nil, []offer{{"other/nobody", unknown}, {"anthropic/claude-fable-5", 1.22}}},
		{"equal, in order", opus, plain, nil, []offer{{"anthropic/claude-opus-5", 0.06}, {"anthropic/claude-opus-4-8", 0.06}}},
		{"equal, in the other order", opus, plain, nil, []offer{{"anthropic/claude-opus-4-8", 0.06}, {"anthropic/claude-opus-5", 0.06}}},
		{"equal before a dearer one", opus, plain, nil, []offer{{"anthropic/claude-fable-5", 0.12}, {"anthropic/claude-sonnet-5", 0.024}, {"anthropic/claude-sonnet-5-5", 0.024}}},
		{"equal and free, in order", opus, plain, nil, []offer{{"local/local/b", 0}, {"local/local/a", 0}}},
		{"equal providers, in order", "glm-5.9", plain, nil, []offer{{"zai", unknown}, {"other", unknown}}},
		{"a cache is written, 5 minutes", opus, turn, nil, []offer{{"anthropic", 0.058}, {"reseller", 0.0435}}},
		{"a cache is written for an hour", opus, long, nil, []offer{{"anthropic", 0.088}, {"reseller", 0.066}}},
		{"a write that costs more than it saves now", opus, turn, nil, []offer{{"flat", 0.0208}, {"anthropic/claude-sonnet-5-5", 0.029}}},
		{"a write for an hour is dearer still", opus, long, nil, []offer{{"anthropic/claude-sonnet-4-6", 0.066}, {"anthropic", 0.088}}},
		{"a write for 5 minutes is not", opus, turn, nil, []offer{{"anthropic", 0.058}, {"anthropic/claude-sonnet-4-6", 0.0435}}},
		{"a provider that writes for nothing", opus, turn, nil, []offer{{"anthropic/claude-haiku-4-5", 0.0145}, {"zai/glm-5.3", 0.00088}}},
		{"and for an hour", opus, long, nil, []offer{{"other/glm-5.3", 0.02976}, {"zai/glm-5.3", 0.00088}}},
		{"a part is written, the rest is not", opus, tools, nil, []offer{{"anthropic/claude-sonnet-4-6", 0.051}, {"anthropic/claude-sonnet-5", 0.034}}},
		{"a part is written for an hour, against one price", opus, tools, nil, []offer{{"flat", 0.0208}, {"anthropic/claude-sonnet-5-5", 0.034}}},
		{"too short to be written", opus, small, nil, []offer{{"anthropic/claude-sonnet-5", 0.0055}, {"anthropic/claude-sonnet-5-5", 0.005875}}},
		{"too short for haiku 4.5 to be written", opus, brief, nil, []offer{{"anthropic/claude-haiku-4-5", 0.004}, {"other/glm-5.3", 0.00526}}},
		{"the last of several breakpoints", opus, mixed, nil, []offer{{"reseller", 0.06225}, {"anthropic", 0.083}}},
		{"all but the last turn is cached", opus, turn, warm{"anthropic": 36000}, []offer{{"reseller", 0.0435}, {"anthropic", 0.0148}}},
		{"the same, of three", opus, turn, warm{"anthropic": 36000}, []offer{{"reseller", 0.0435}, {"backup/claude-sonnet-5-5", 0.029}, {"anthropic", 0.0148}}},
		{"a dearer model that has it cached", opus, turn, warm{"anthropic": 40000}, []offer{{"backup/claude-sonnet-5-5", 0.029}, {"anthropic", 0.01}}},
		{"opus 5 has it", opus, turn, warm{"backup/claude-opus-5": 36000}, []offer{{"anthropic", 0.058}, {"backup/claude-opus-5", 0.02075}}},
		{"half is cached", opus, turn, warm{"anthropic": 20000}, []offer{{"reseller", 0.0435}, {"anthropic", 0.034}}},
		{"a fifth is cached, too little", opus, turn, warm{"anthropic": 8000}, []offer{{"anthropic", 0.0484}, {"reseller", 0.0435}}},
		{"both have it", opus, turn, warm{"anthropic": 36000, "reseller": 36000}, []offer{{"anthropic", 0.0148}, {"reseller", 0.01245}}},
		{"the one has more", opus, turn, warm{"anthropic": 36000, "reseller": 20000}, []offer{{"reseller", 0.02625}, {"anthropic", 0.0148}}},
		{"cached, but dearer all the same", opus, turn, warm{"anthropic/claude-fable-5": 36000}, []offer{{"anthropic/claude-fable-5", 0.0415}, {"backup/claude-sonnet-5-5", 0.029}}},
		{"fable with all of it", opus, turn, warm{"backup/claude-fable-5-2": 40000}, []offer{{"anthropic/claude-sonnet-4-6", 0.0435}, {"backup/claude-fable-5-2", 0.018}}},
		{"for an hour, most is cached", opus, long, warm{"anthropic": 36000}, []offer{{"backup/claude-sonnet-5-5", 0.044}, {"anthropic", 0.0178}}},
		{"for an hour, half is cached", opus, long, warm{"anthropic": 20000}, []offer{{"anthropic", 0.049}, {"backup/claude-sonnet-5-5", 0.044}}},
		{"tools are cached", opus, tools, warm{"anthropic": 20000}, []offer{{"reseller", 0.051}, {"anthropic", 0.029}}},
		{"tools in part", opus, tools, warm{"anthropic": 8000}, []offer{{"reseller", 0.051}, {"anthropic", 0.0524}}},
		{"a cache of another vendor", opus, turn, warm{"backup/claude-haiku-4-5": 36000}, []offer{{"backup/claude-haiku-4-5", 0.00415}, {"zai/glm-5.3", 0.00088}}},
		{"two caches of other vendors", opus, turn, warm{"other/glm-5.3": 40000}, []offer{{"other/glm-5.3", 0.00316}, {"zai/glm-5.3", 0.00088}}},
		{"opus 4.6 caches long prompts only", opus, brief, warm{"anthropic/claude-opus-4-6": 8000, "backup/claude-opus-5": 8000}, []offer{{"anthropic/claude-opus-4-6", 0.02}, {"backup/claude-opus-5", 0.011}}},
		{"one price for all, whatever is cached", opus, turn, warm{"flat": 40000}, []offer{{"flat", 0.0208}, {"backup/claude-opus-5", 0.0725}}},
		{"cached at one, unknown at another", opus, turn, warm{"other/nobody": 40000, "anthropic": 40000}, []offer{{"other/nobody", unknown}, {"reseller", 0.0435}, {"anthropic", 0.01}}},
		{"a long prompt, cached, over the threshold", opus, huge, warm{"anthropic/claude-haiku-4-5": 480000}, []offer{{"anthropic/claude-haiku-4-5", 0.014}, {"backup/claude-haiku-5-5", 0.076}}},
		{"a long prompt, more of it cached", opus, huge, warm{"backup/claude-haiku-5-5": 200000, "anthropic/claude-haiku-4-5": 400000}, []offer{{"backup/claude-haiku-5-5", 0.04725}, {"anthropic/claude-haiku-4-5", 0.037}}},
		{"breakpoints of both lives, some cached", opus, mixed, warm{"anthropic": 40000}, []offer{{"reseller", 0.06225}, {"anthropic", 0.035}}},
		{"what is asked for is another model", "claude-sonnet-4-6", turn, warm{"anthropic": 36000}, []offer{{"anthropic", 0.01245}, {"backup/claude-opus-5", 0.0725}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ups := pooled(t, "anthropic", "backup", "reseller", "zai", "flat", "local", "other")
			prices, cfg := ownPrices(t), router.Config{Strategy: "cost"}
			for _, o := range tt.offers {
				cfg.Default = append(cfg.Default, o.target)
			}
			for _, o := range tt.offers {
				name, model, _ := strings.Cut(o.target, "/")
				if model == "" {
					model = tt.model
				}
				u := ups[slices.IndexFunc(ups, func(u *router.Upstream) bool { return u.Provider.Name() == name })]
				d := tt.demand
				d.Class, d.Model = keypool.ClassOf(model), model
				if bytes := tt.warm[o.target]; bytes > 0 {
					cache(t, u, d, bytes)
				}
				f := u.Pool.Forecast(time.Now(), d)
				cost, known := prices.Cost(name, model, price.Tokens(f))
				require.Equal(t, o.cost != unknown, known, o.target)
				if known {
					require.Equal(t, price.Nanodollars(math.Round(o.cost*1e9)), cost, o.target)
				}
			}
			r, err := router.New(cfg, ups, keypool.ClassOf, prices)
			require.NoError(t, err)

			slices.SortStableFunc(tt.offers, func(a, b offer) int {
				switch {
				case a.cost == b.cost:
					return 0
				case a.cost != unknown && (b.cost == unknown || a.cost < b.cost):
					return -1
				}
				return 1
			})
			want := make([]string, len(tt.offers))
			for i, o := range tt.offers {
				want[i] = o.target
			}
			q := ask(tt.model)
			q.Demand = tt.demand
			q.Demand.Class, q.Demand.Model = q.Class, tt.model
			for range 3 { // asking changes nothing
				assert.Equal(t, want, way(t, r, q))
			}
		})
	}
}

// What is known changes from moment to moment.
func TestCostFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ups := pooled(t, "anthropic", "reseller", "zai")
		r, err := router.New(router.Config{Strategy: "cost", Default: []string{"reseller", "anthropic"}, Aliases: map[string]string{"best": opus}}, ups, keypool.ClassOf, ownPrices(t))
		require.NoError(t, err)
		q := func(model string) *router.Query {
			q := ask(model)
			q.Demand = demand(40_000, 0, keypool.Mark{Bytes: 40_000, Life: five}, keypool.Mark{Bytes: 36_000})
			return q
		}
		first := func() string { return plan(t, r, q(opus)).Candidates[0].Upstream.Provider.Name() }
		assert.Equal(t, "reseller", first())
		d := q(opus).Demand
		d.Class, d.Model = "opus-5-5", opus
		cache(t, ups[0], d, 36_000)
		assert.Equal(t, "anthropic", first())
		assert.Equal(t, []string{"anthropic/" + opus, "reseller/" + opus}, way(t, r, q("best")), "an alias is its model")
		ups[0].Lane("opus-5-5").Hold(health.Open, time.Second)
		assert.Equal(t, "reseller", first())
		time.Sleep(time.Second)
		assert.Equal(t, "anthropic", first())
		time.Sleep(five)
		assert.Equal(t, "reseller", first(), "the cache has forgotten")
	})
}

// Long answers make the price of output count.
func TestCostLearnsTheLengthOfAnswers(t *testing.T) {
	ups := pooled(t, "a", "b")
	prices, err := price.NewTable([]price.Price{{Model: "m", Provider: "a", Input: 1, Output: 10}, {Model: "m", Provider: "b", Input: 2, Output: 5}})
	require.NoError(t, err)
	r, err := router.New(router.Config{Strategy: "cost"}, ups, keypool.ClassOf, prices)
	require.NoError(t, err)
	q := ask("m")
	q.Demand = demand(40_000, 0) // 10,000 tokens: a is cheaper up to 2000 of output
	assert.Equal(t, []string{"a", "b"}, way(t, r, q))
	for _, u := range ups {
		for range 200 {
			lease, err := u.Pool.Acquire(context.Background(), keypool.Demand{Class: "m", Bytes: 40_000})
			require.NoError(t, err)
			lease.Answered(http.StatusOK, nil)
			lease.Settle(keypool.Usage{Input: 10_000, Output: 4000})
		}
	}
	assert.Equal(t, []string{"b", "a"}, way(t, r, q))
	q.Demand.MaxTokens = 1000
	assert.Equal(t, []string{"a", "b"}, way(t, r, q), "unless the request says that its answer is short")
}

// Without a table of its own, a router has the built-in prices.
func TestCostWithBuiltInPrices(t *testing.T) {
	ups := pooled(t, "a")
	r := routeOver(t, router.Config{Strategy: "cost", Default: []string{"a/nobody", "a/claude-opus-5", "a/claude-haiku-5-5", "a/claude-sonnet-5-5"}}, ups)
	q := ask("m")
	q.Demand = demand(40_000, 0)
	assert.Equal(t, "[a/claude-haiku-5-5 a/claude-sonnet-5-5 a/claude-opus-5 a/nobody]", fmt.Sprint(way(t, r, q)))
}
