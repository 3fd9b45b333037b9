package router_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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

// renewed are the upstreams of a reload that changed nothing.
func renewed(old []*router.Upstream) []*router.Upstream {
	list := make([]*router.Upstream, len(old))
	for i, u := range old {
		list[i] = u.Renew(&router.Upstream{Provider: u.Provider})
	}
	return list
}

// What is known of a provider outlives a reload, and what requests under way find out
// counts.
func TestRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := pooled(t, "a")[0]
		old.Origin, old.IdleTimeout = "x", time.Hour
		lane := old.Lane("m")
		lane.Observe(3*time.Second, time.Now())
		old.Begin()
		old.Miss("gone", time.Now())
		old.SetDraining(true)

		up := &router.Upstream{Provider: named("a"), Transport: http.DefaultTransport, Origin: "y"}
		require.Same(t, up, old.Renew(up))
		assert.Same(t, old.Pool, up.Pool)
		assert.Same(t, lane, up.Lane("m"))
		assert.EqualValues(t, 1, up.InFlight())
		assert.True(t, up.Lacks("gone", time.Now()))
		assert.True(t, up.Draining())
		assert.Equal(t, "y", up.Origin)
		assert.Zero(t, up.IdleTimeout, "settings are not taken over")
		assert.Equal(t, "x", old.Origin)

		old.Begin()
		fail(old, "n")
		old.Miss("lost", time.Now())
		up.SetDraining(false)
		assert.EqualValues(t, 2, up.InFlight())
		assert.Equal(t, health.Open, up.Lane("n").Status().State)
		assert.True(t, up.Lacks("lost", time.Now()))
		assert.False(t, old.Draining())
		old.End()
		old.End()
		assert.Zero(t, up.InFlight())
	})
}

// Also one that nobody has used yet, from many goroutines at once.
func TestTheFirstUseIsOne(t *testing.T) {
	for range 50 {
		old := &router.Upstream{}
		var wg sync.WaitGroup
		var up *router.Upstream
		lanes := make([]*router.Lane, 8)
		for i := range lanes {
			wg.Go(func() {
				old.Begin()
				lanes[i] = old.Lane("m")
			})
		}
		wg.Go(func() { up = old.Renew(&router.Upstream{}) })
		wg.Wait()
		assert.EqualValues(t, len(lanes), up.InFlight())
		for _, l := range lanes {
			require.Same(t, up.Lane("m"), l)
		}
	}
}

func TestTheNewestIsToldOfHealth(t *testing.T) {
	var told []string
	by := func(name string) func(string, health.State, health.State) {
		return func(class string, _, to health.State) { told = append(told, name+": "+class+" "+to.String()) }
	}
	old := &router.Upstream{OnHealth: by("old")}
	old.Lane("x")
	fail(old, "w")
	up := old.Renew(&router.Upstream{OnHealth: by("new")})
	fail(old, "x")
	fail(up, "y")
	up.Renew(&router.Upstream{})
	fail(old, "z")
	assert.Equal(t, []string{"old: w open", "new: x open", "new: y open"}, told)
}

func TestForget(t *testing.T) {
	u := &router.Upstream{}
	fail(u, "m")
	u.Miss("gone", time.Now())
	u.Begin()
	u.Force("held", health.Open, time.Hour)
	u.Forget()
	assert.Empty(t, u.Health())
	assert.Equal(t, health.Status{}, u.Lane("m").Status())
	assert.False(t, u.Lacks("gone", time.Now()))
	assert.EqualValues(t, 1, u.InFlight(), "requests are under way")
	assert.True(t, u.Lane("held").Status().Forced, "what an operator says is not learned")
}

// A conversation stays where it is over a reload, where that is still to be had.
func TestInherit(t *testing.T) {
	at := func(r *router.Router, conversation uint64, model string) string {
		q := ask(model)
		q.Conversation = conversation
		p := plan(t, r, q)
		assert.Equal(t, p.Home, p.Candidates[0].Home())
		if !p.Home {
			return ""
		}
		return nameOf(p.Candidates[0])
	}
	ups := upstreams("a", "b", "c")
	old := routeOver(t, router.Config{Default: []string{"a", "b/x", "b/y", "c"}}, ups)
	for i, home := range []struct {
		at    int
		model string
	}{{1, "x"}, {1, "y"}, {2, "m"}, {0, ""}} {
		old.Settle(uint64(i+1), ups[home.at], home.model, time.Hour, time.Now())
	}
	for conversation, want := range []string{"", "b/x", "b/y", "c", "a"} {
		assert.Equal(t, want, at(old, uint64(conversation), "m"), "before")
	}

	next := renewed(ups[:2])
	next = append([]*router.Upstream{{Provider: named("c")}, {Provider: named("d")}}, next...) // another c
	r := routeOver(t, router.Config{Default: []string{"d", "c", "b/y", "a"}}, next)
	r.Inherit(old)
	for conversation, want := range []string{"", "", "b/y", "", "a"} {
		assert.Equal(t, want, at(r, uint64(conversation), "m"), "after")
	}
	assert.Same(t, old.Budget, r.Budget)

	old.Settle(5, ups[0], "", time.Hour, time.Now())
	assert.Equal(t, "a", at(r, 5, "m"), "a request that ends under the old configuration")
	r.Settle(5, next[3], "y", time.Hour, time.Now())
	assert.Equal(t, "b/y", at(r, 5, "m"), "and moves")
}

func TestDrain(t *testing.T) {
	ups := upstreams("a", "b", "c")
	r := routeOver(t, router.Config{Default: []string{"a", "b", "c/x"}, Rules: []router.Rule{{Match: []string{"one"}, Targets: []string{"b"}}}}, ups)
	q := ask("m")
	q.Conversation = 7
	r.Settle(7, ups[1], "", time.Hour, time.Now())
	ups[1].SetDraining(true)
	ups[1].Begin()

	p := plan(t, r, q)
	assert.Equal(t, []string{"a", "c/x"}, namesOf(p.Candidates))
	assert.False(t, p.Home, "the conversation moves")
	assert.Equal(t, []router.Skip{{Provider: "b", Model: "m", Class: "m", Why: router.Draining}}, p.Skipped)
	assert.Empty(t, ups[1].Lanes(), "what drains is not looked at")

	ups[0].Lane("m").Hold(health.Open, time.Hour)
	ups[2].Lane("x").Hold(health.Open, time.Minute)
	p = plan(t, r, q)
	assert.Empty(t, p.Candidates)
	assert.Equal(t, "c/x", nameOf(*p.Resort))

	ups[2].SetDraining(true)
	assert.Equal(t, []string{"a"}, way(t, r, q), "there is nothing to choose")
	ups[0].SetDraining(true)
	p = plan(t, r, q)
	assert.Empty(t, p.Candidates)
	assert.Nil(t, p.Resort)
	assert.Len(t, p.Skipped, 3)

	p = plan(t, r, ask("one"))
	assert.Empty(t, p.Candidates, "not even as the only one")
	assert.Nil(t, p.Resort)
	assert.Equal(t, []router.Skip{{Provider: "b", Model: "one", Class: "one", Why: router.Draining}}, p.Skipped)
	assert.EqualValues(t, 1, ups[1].InFlight(), "requests under way go on")

	ups[1].SetDraining(false)
	p = plan(t, r, q)
	assert.Equal(t, []string{"b"}, namesOf(p.Candidates))
}

func TestSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ups := upstreams("a", "b", "c", "d", "e")
		r := routeOver(t, router.Config{
			Strategy: "round_robin", Aliases: map[string]string{"best": "m"},
			Rules: []router.Rule{{Match: []string{"other"}, Targets: []string{"a"}}, {Match: []string{"m"}, Strategy: "weighted_round_robin", Targets: []string{"a", "b/x", "c", "d", "e"}}},
		}, ups)
		p := plan(t, r, ask("best"))
		assert.Nil(t, p.Skipped)
		assert.Equal(t, "models[1]", p.Rule)
		assert.Equal(t, "weighted_round_robin", p.Strategy)
		assert.Equal(t, "models[0]", plan(t, r, ask("other")).Rule)

		now := time.Now()
		ups[1].SetDraining(true)
		ups[2].Miss("m", now)
		fail(ups[3], "m")
		fail(ups[2], "m")
		ups[4].Force("m", health.Open, time.Hour)
		p = plan(t, r, ask("best"))
		assert.Equal(t, []string{"a/m"}, namesOf(p.Candidates))
		assert.Equal(t, []router.Skip{
			{"b", "x", "x", router.Draining, time.Time{}},
			{"c", "m", "m", router.LacksModel, now.Add(10 * time.Minute)},
			{"d", "m", "m", router.BreakerOpen, now.Add(5 * time.Second)},
			{"e", "m", "m", router.BreakerForced, now.Add(time.Hour)},
		}, p.Skipped)

		time.Sleep(5 * time.Second)
		_, ok := ups[3].Lane("m").Allow()
		require.True(t, ok)
		assert.Equal(t, router.Skip{"d", "m", "m", router.BreakerOpen, now.Add(65 * time.Second)}, plan(t, r, ask("m")).Skipped[2], "the probe's")

		for _, u := range []int{0, 3, 4} {
			ups[u].Miss("m", time.Now())
		}
		p = plan(t, r, ask("m"))
		assert.Len(t, p.Skipped, 3, "nobody for the lack of it, where all lack it")
	})
	p := plan(t, route(t, router.Config{}), ask("m"))
	assert.Equal(t, "default", p.Rule)
	assert.Equal(t, "failover", p.Strategy)
}

func TestForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		var u *router.Upstream
		u = &router.Upstream{OnHealth: func(class string, _, to health.State) {
			told = append(told, class+" "+to.String())
			_ = u.Health() // it may look
		}}
		state := func(class string) health.State { return u.Lane(class).Status().State }
		fail(u, "x")
		u.Lane("y")
		u.Force("x", health.Closed, time.Minute)
		assert.Equal(t, health.Closed, state("x"))
		assert.Equal(t, health.Status{}, u.Lane("y").Status(), "another class")

		u.Force("new", health.Open, time.Minute)
		assert.Equal(t, []router.LaneStatus{
			{Class: "new", Status: health.Status{State: health.Open, Forced: true, Until: time.Now().Add(time.Minute)}},
			{Class: "x", Status: health.Status{State: health.Closed, Forced: true, Until: time.Now().Add(time.Minute)}},
			{Class: "y"},
		}, u.Health())

		u.Force("", health.Open, 2*time.Minute)
		time.Sleep(time.Minute)
		for _, class := range []string{"x", "y", "new", "later"} {
			assert.Equal(t, health.Status{State: health.Open, Forced: true, Until: time.Now().Add(time.Minute)}, u.Lane(class).Status(), class)
		}
		u.Force("y", health.Closed, time.Hour)
		u.Unforce("x")
		u.Unforce("unseen")
		for range 256 {
			u.Lane(time.Now().String())
			time.Sleep(time.Nanosecond)
		}
		assert.Equal(t, health.Closed, state("y"), "classes that were forgotten meanwhile")
		assert.Equal(t, health.Closed, state("x"))
		assert.Equal(t, health.Closed, state("unseen"))
		assert.Equal(t, health.Open, state("new"))

		time.Sleep(time.Minute)
		assert.Equal(t, health.Status{}, u.Lane("new").Status())
		assert.Equal(t, health.Status{}, u.Lane("latest").Status())
		assert.True(t, u.Lane("y").Status().Forced)

		u.Force("", health.Open, time.Hour)
		u.Unforce("")
		assert.Equal(t, health.Status{}, u.Lane("y").Status())
		assert.Equal(t, health.Status{}, u.Lane("after").Status())
		u.Force("", health.Open, time.Hour)
		u.Force("", health.Open, 0)
		assert.Equal(t, health.Status{}, u.Lane("y").Status(), "no time takes it back")

		assert.Equal(t, []string{"x open", "x closed", "new open"}, told[:3])
		assert.Contains(t, told, "later open")
	})
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &router.Upstream{}
		assert.Empty(t, u.Health())
		u.Lane("b").Observe(time.Second, time.Now())
		fail(u, "a")
		time.Sleep(time.Hour)
		for range 2 {
			assert.Equal(t, []router.LaneStatus{
				{Class: "a", Status: health.Status{State: health.HalfOpen, Failures: 1, Samples: 5}},
				{Class: "b", Latency: time.Second},
			}, u.Health())
		}
	})
}

// idle counts how often its idle connections are closed.
type idle struct {
	http.RoundTripper
	closed int
}

func (i *idle) CloseIdleConnections() { i.closed++ }

func TestRetire(t *testing.T) {
	transport, other := &idle{}, &idle{}
	first := &router.Upstream{Transport: transport}
	first.Begin()
	second := first.Renew(&router.Upstream{Transport: transport})
	second.Begin()
	third := second.Renew(&router.Upstream{Transport: other})
	third.Begin()
	second.Retire()
	assert.Equal(t, 1, transport.closed, "what is idle now")
	second.End()
	assert.Equal(t, 1, transport.closed, "one of an earlier configuration uses it")
	first.End()
	assert.Equal(t, 2, transport.closed)
	first.Begin() // under the earlier configuration, another attempt
	first.End()
	assert.Equal(t, 3, transport.closed)
	third.End()
	assert.Zero(t, other.closed)

	for _, u := range []*router.Upstream{
		{},
		(&router.Upstream{}).Renew(&router.Upstream{}),
		(&router.Upstream{Transport: function(nil)}).Renew(&router.Upstream{Transport: function(nil)}),
		(&router.Upstream{Transport: other}).Renew(&router.Upstream{}),
	} {
		u.Begin()
		u.Retire()
		u.End()
	}
	assert.Zero(t, other.closed)
}

// A stream that goes on over a reload keeps its connection, which is closed with it.
func TestAStreamOutlivesItsTransport(t *testing.T) {
	closed, more := make(chan struct{}), make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "begun, ")
		_ = http.NewResponseController(w).Flush()
		<-more
		_, _ = io.WriteString(w, "and done")
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			close(closed)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	cfg := provider.Config{BaseURL: srv.URL}
	transport, err := provider.NewTransport(cfg)
	require.NoError(t, err)
	old := &router.Upstream{Transport: transport}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	require.NoError(t, err)
	old.Begin()
	resp, err := old.Transport.RoundTrip(req)
	require.NoError(t, err)
	cfg.DialTimeout = time.Second
	next, err := transport.Renew(cfg)
	require.NoError(t, err)
	up := old.Renew(&router.Upstream{Transport: next})
	old.Retire()
	assert.EqualValues(t, 1, up.InFlight())
	close(more)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, "begun, and done", string(body))
	select {
	case <-closed:
		t.Fatal("closed before the request's end")
	default:
	}
	old.End()
	<-closed
}

// function is a transport that cannot be compared.
type function func(*http.Request) (*http.Response, error)

func (f function) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A reload in the middle of everything loses no request and no conversation.
func TestReloadsUnderLoad(t *testing.T) {
	ups := pooled(t, "a", "b", "c")
	var mu sync.Mutex
	r := routeOver(t, router.Config{Strategy: "least_loaded"}, ups)
	live := func() *router.Router {
		mu.Lock()
		defer mu.Unlock()
		return r
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 300 {
				at := live()
				q := ask("m")
				q.Conversation = uint64(i % 7)
				p, err := at.Plan(q)
				if !assert.NoError(t, err) || !assert.NotEmpty(t, p.Candidates) {
					return
				}
				u := p.Candidates[0].Upstream
				u.Begin()
				_, _ = at.Preview(q)
				_ = u.Health()
				at.Settle(q.Conversation, u, "", time.Minute, q.Now)
				u.End()
			}
		})
	}
	wg.Go(func() {
		for i := range 100 {
			old := live()
			next, err := router.New(router.Config{Strategy: "least_loaded"}, renewed(old.Upstreams()), keypool.ClassOf, nil)
			if !assert.NoError(t, err) {
				return
			}
			next.Inherit(old)
			next.Upstreams()[0].SetDraining(i%2 == 0)
			next.Upstreams()[1].Force("", health.Closed, time.Duration(i%3)*time.Minute)
			mu.Lock()
			r = next
			mu.Unlock()
			old.Upstreams()[2].Retire()
		}
	})
	wg.Wait()
	for _, u := range r.Upstreams() {
		assert.Zero(t, u.InFlight())
	}
}
