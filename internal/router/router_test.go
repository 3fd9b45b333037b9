package router_test

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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

func namesOf(plan []*router.Upstream) []string {
	var names []string
	for _, u := range plan {
		names = append(names, u.Provider.Name())
	}
	return names
}

func TestStrategies(t *testing.T) {
	assert.Equal(t, []string{"failover"}, router.Strategies())
	for _, strategy := range append(router.Strategies(), "") {
		r, err := router.New(strategy, upstreams("a", "b"))
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{"a", "b"}, namesOf(r.Plan("m", time.Now())))
	}
	r, err := router.New("roulette", upstreams("a"))
	require.EqualError(t, err, `router: strategy "roulette" is unknown; write one of failover`)
	assert.Nil(t, r)
}

func TestPlan(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		lacking []string
		model   string
		at      time.Duration
		want    []string
	}{
		"configured order":                 {nil, "m", 0, []string{"a", "b", "c"}},
		"one lacks the model":              {[]string{"b"}, "m", time.Minute, []string{"a", "c"}},
		"just before it is forgotten":      {[]string{"b"}, "m", 10*time.Minute - 1, []string{"a", "c"}},
		"after ten minutes":                {[]string{"b"}, "m", 10 * time.Minute, []string{"a", "b", "c"}},
		"another model":                    {[]string{"b"}, "n", 0, []string{"a", "b", "c"}},
		"no model":                         {[]string{"a", "b", "c"}, "", 0, []string{"a", "b", "c"}},
		"all lack it: asking beats giving": {[]string{"a", "b", "c"}, "m", 0, []string{"a", "b", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			ups := upstreams("a", "b", "c")
			r, err := router.New(router.StrategyFailover, ups)
			require.NoError(t, err)
			for _, u := range ups {
				for _, n := range tt.lacking {
					if u.Provider.Name() == n {
						u.Miss("m", now)
						u.Miss("", now)
					}
				}
			}
			assert.Equal(t, tt.want, namesOf(r.Plan(tt.model, now.Add(tt.at))))
			assert.Equal(t, []string{"a", "b", "c"}, namesOf(r.Upstreams()), "the plan is a copy")
		})
	}
	t.Run("no upstreams", func(t *testing.T) {
		r, err := router.New("", nil)
		require.NoError(t, err)
		assert.Empty(t, r.Plan("m", now))
	})
}

// A strategy may reorder the plan; that must not reach the next request.
func TestPlansAreIndependent(t *testing.T) {
	r, err := router.New("", upstreams("a", "b"))
	require.NoError(t, err)
	plan := r.Plan("m", time.Now())
	plan[0], plan[1] = plan[1], plan[0]
	assert.Equal(t, []string{"a", "b"}, namesOf(r.Plan("m", time.Now())))
}

// Model names come from clients: only so many are remembered.
func TestMissingModelsAreBounded(t *testing.T) {
	now := time.Now()
	u := &router.Upstream{}
	assert.False(t, u.Lacks("model-0", now))
	for n := range 1001 {
		u.Miss("model-"+strconv.Itoa(n), now)
	}
	assert.False(t, u.Lacks("model-0", now), "the oldest is forgotten")
	assert.True(t, u.Lacks("model-1", now))
	assert.True(t, u.Lacks("model-1000", now))
	u.Miss("model-1", now.Add(time.Minute))
	assert.True(t, u.Lacks("model-1", now.Add(10*time.Minute)), "the last refusal counts")
}

func TestRouterIsSafeForConcurrentUse(t *testing.T) {
	ups := upstreams("a", "b")
	r, err := router.New("", ups)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 200 {
				ups[n%2].Miss(strconv.Itoa(i), time.Now())
				assert.NotEmpty(t, r.Plan(strconv.Itoa(i), time.Now()))
			}
		})
	}
	wg.Wait()
}
