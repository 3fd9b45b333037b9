package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/simulator"
)

// shares counts what providers without a network get, in order.
type shares struct {
	mu  sync.Mutex
	got []string
}

func (s *shares) add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, name)
}

// of is how many of the requests from the nth on a provider got.
func (s *shares) of(name string, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := 0
	for _, g := range s.got[n:] {
		if g == name {
			count++
		}
	}
	return count
}

func (s *shares) all() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

// provider serves everything, after a pause.
func (s *shares) provider(name string, pause func()) upstream {
	up := memory(nil)
	up.Name, up.keys = name, []string{keyOf(name, 1)}
	stream := answering("text/event-stream", func() io.Reader { return strings.NewReader(wholeStream) })
	whole := answering("application/json", func() io.Reader { return strings.NewReader(message) })
	up.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		s.add(name)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if pause != nil {
			pause()
		}
		if strings.Contains(string(body), `"stream":true`) {
			return stream(r)
		}
		return whole(r)
	})
	return up
}

// serves relays a request and checks that it was served.
func serves(t testing.TB, h *proxy.Handler, stream bool) {
	w := &discard{header: http.Header{}}
	h.ServeHTTP(w, aliceRequest(ask(opus, stream)))
	if w.n != len(message) && w.n != len(wholeStream) {
		t.Errorf("the answer has %d bytes", w.n)
	}
}

// relayed is a handler before providers that serve everything at once.
func relayed(t testing.TB, routes router.Config, names ...string) (*proxy.Handler, *shares) {
	got := &shares{}
	s := setup{routes: routes}
	for _, name := range names {
		s.upstreams = append(s.upstreams, got.provider(name, nil))
	}
	return proxy.NewHandler(newLive(t, s, zerolog.Nop()), zerolog.Nop()), got
}

// Strategies that take turns are exact, after any number of requests.
func TestTurnsAreExact(t *testing.T) {
	const most = 300
	for name, tt := range map[string]struct {
		strategy string
		weights  []int
		share    []float64
	}{
		"no strategy":           {"", nil, []float64{1, 0, 0}},
		"failover":              {router.StrategyFailover, nil, []float64{1, 0}},
		"round_robin, 2":        {router.StrategyRoundRobin, nil, []float64{1. / 2, 1. / 2}},
		"round_robin, 3":        {router.StrategyRoundRobin, nil, []float64{1. / 3, 1. / 3, 1. / 3}},
		"weighted, none given":  {router.StrategyWeighted, nil, []float64{1. / 2, 1. / 2}},
		"weighted, 3:1":         {router.StrategyWeighted, []int{3, 1}, []float64{.75, .25}},
		"weighted, 5:3:2":       {router.StrategyWeighted, []int{5, 3, 2}, []float64{.5, .3, .2}},
		"weighted, 1:1:98":      {router.StrategyWeighted, []int{1, 1, 98}, []float64{.01, .01, .98}},
		"least_loaded, no load": {router.StrategyLeastLoaded, nil, []float64{1. / 3, 1. / 3, 1. / 3}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			names := []string{"a", "b", "c"}[:len(tt.share)]
			routes := router.Config{Strategy: tt.strategy, Default: names, Weights: tt.weights}
			h, got := relayed(t, routes, names...)
			for n := range most {
				serves(t, h, n%2 == 0)
				for i, one := range names {
					require.InDelta(t, tt.share[i]*float64(n+1), got.of(one, 0), 1, "requests at %s after %d", one, n+1)
				}
			}
			t.Run("side by side", func(t *testing.T) {
				var wg sync.WaitGroup
				for range 6 {
					wg.Go(func() {
						for range most / 6 {
							serves(t, h, true)
						}
					})
				}
				wg.Wait()
				if tt.strategy == router.StrategyLeastLoaded {
					return // there is a load now
				}
				for i, one := range names {
					assert.InDelta(t, tt.share[i]*2*most, got.of(one, 0), 1, "requests at %s", one)
				}
			})
		})
	}
}

// A draw is right on the whole.
func TestShuffle(t *testing.T) {
	const all = 10_000
	for name, tt := range map[string]struct {
		weights []int
		share   []float64
	}{
		"alike": {nil, []float64{1. / 3, 1. / 3, 1. / 3}},
		"5:3:2": {[]int{5, 3, 2}, []float64{.5, .3, .2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			names := []string{"a", "b", "c"}[:len(tt.share)]
			h, got := relayed(t, router.Config{Strategy: router.StrategyShuffle, Default: names, Weights: tt.weights}, names...)
			for range all {
				serves(t, h, false)
			}
			for i, one := range names {
				share := float64(got.of(one, 0)) / all
				t.Logf("%s: %.4f of %.4f", one, share, tt.share[i])
				assert.InDelta(t, tt.share[i], share, 0.02, "share of %s", one)
			}
		})
	}
}

// The next request goes where the fewest are under way.
func TestLeastLoaded(t *testing.T) {
	for name, tt := range map[string]struct {
		weights []int
		first   [2]int // of 12 that nobody answers
		then    [2]int // of 4 more, when b has answered all of its own
	}{
		"alike": {nil, [2]int{6, 6}, [2]int{0, 4}},
		"3:1":   {[]int{3, 1}, [2]int{9, 3}, [2]int{1, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := &shares{}
				answerA, answerB := make(chan struct{}), make(chan struct{})
				a := got.provider("a", func() { <-answerA })
				b := got.provider("b", func() { <-answerB })
				routes := router.Config{Strategy: router.StrategyLeastLoaded, Default: []string{"a", "b"}, Weights: tt.weights}
				a.limits.ITPMLimit, b.limits.ITPMLimit = 1_000_000, 1_000_000
				a.limits.OTPMLimit, b.limits.OTPMLimit = 1_000_000, 1_000_000
				a.limits.RPMLimit, b.limits.RPMLimit = 1_000, 1_000
				h := proxy.NewHandler(newLive(t, setup{upstreams: []upstream{a, b}, routes: routes}, zerolog.Nop()), zerolog.Nop())
				var wg sync.WaitGroup
				crowd := func(n int) {
					for range n {
						wg.Go(func() { serves(t, h, true) })
						synctest.Wait()
					}
				}
				crowd(12)
				assert.Equal(t, tt.first, [2]int{got.of("a", 0), got.of("b", 0)}, "requests under way")
				for range tt.first[1] {
					answerB <- struct{}{}
				}
				synctest.Wait()
				crowd(4)
				assert.Equal(t, tt.then, [2]int{got.of("a", 12), got.of("b", 12)}, "the next requests")
				close(answerA)
				close(answerB)
				wg.Wait()
			})
		})
	}
	t.Run("a slow one and a fast one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			got := &shares{}
			a := got.provider("a", func() { time.Sleep(2 * time.Second) })
			b := got.provider("b", func() { time.Sleep(200 * time.Millisecond) })
			h := proxy.NewHandler(newLive(t, setup{upstreams: []upstream{a, b}, routes: router.Config{Strategy: router.StrategyLeastLoaded}}, zerolog.Nop()), zerolog.Nop())
			serves(t, h, true)
			serves(t, h, true)
			offerEvenly(t, h, 50, 40*time.Second)
			t.Logf("the slow one got %d of %d", got.of("a", 0), got.all())
			assert.InDelta(t, 1./11, float64(got.of("a", 0))/float64(got.all()), 0.02, "share of the one that is ten times as slow")
		})
	})
}

// offerEvenly sends so many streams a second for so long and returns when all are served.
func offerEvenly(t testing.TB, h *proxy.Handler, rate int, during time.Duration) {
	var wg sync.WaitGroup
	for range int(during.Seconds() * float64(rate)) {
		wg.Go(func() { serves(t, h, true) })
		time.Sleep(time.Second / time.Duration(rate))
	}
	wg.Wait()
}

// A provider that is three times as slow as the others gets little. It is looked at
// now and then, and when it is fast again it has its share again soon.
func TestLatency(t *testing.T) {
	for n := 2; n <= 3; n++ {
		t.Run(fmt.Sprintf("1 of %d is slow", n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const fast, slow, rate = 300 * time.Millisecond, 900 * time.Millisecond, 30
				var mu sync.Mutex
				takes := fast
				got := &shares{}
				s := setup{routes: router.Config{Strategy: router.StrategyLatency}}
				s.upstreams = append(s.upstreams, got.provider("a", func() {
					mu.Lock()
					d := takes
					mu.Unlock()
					time.Sleep(d)
				}))
				for i := range n - 1 {
					s.upstreams = append(s.upstreams, got.provider(string(rune('b'+i)), func() { time.Sleep(fast) }))
				}
				for i := range s.upstreams {
					s.upstreams[i].maxWait = 3 * time.Second
				}
				h := proxy.NewHandler(newLive(t, s, zerolog.Nop()), zerolog.Nop())
				share := func(from int) float64 { return float64(got.of("a", from)) / float64(got.all()-from) }
				becomes := func(d time.Duration) {
					mu.Lock()
					defer mu.Unlock()
					takes = d
				}
				offerEvenly(t, h, rate, 20*time.Second)
				at := got.all()
				offerEvenly(t, h, rate, 20*time.Second)
				before := share(at)
				becomes(slow)
				at = got.all()
				offerEvenly(t, h, rate, time.Minute)
				slowed := share(at)
				becomes(fast)
				offerEvenly(t, h, rate, 30*time.Second)
				at = got.all()
				offerEvenly(t, h, rate, 20*time.Second)
				again := share(at)
				t.Logf("share of a: %.3f, when slow %.3f, when fast again %.3f", before, slowed, again)
				assert.Greater(t, before, 0.7/float64(n), "share while all are alike")
				assert.LessOrEqual(t, slowed, 0.15, "share while it is slow")
				assert.Greater(t, slowed, 0., "it is looked at now and then")
				assert.Greater(t, again, 0.7/float64(n), "share 30 s after it has become fast")
			})
		})
	}
}

// The cheapest provider serves, what is cached counted.
func TestCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Sonnet has half the price of opus; reading a cache costs a twentieth.
		net := newPipes()
		once := status(529)
		once.Nth = 2
		dear := net.sim(t, "dear", simulator.Config{Organizations: []simulator.Organization{owner("dear", 1, simulator.Limits{})}})
		cheap := net.sim(t, "cheap", simulator.Config{Organizations: []simulator.Organization{owner("cheap", 1, simulator.Limits{})}, Faults: faults(once)})
		unknown := net.sim(t, "unknown", simulator.Config{Organizations: []simulator.Organization{owner("unknown", 1, simulator.Limits{})}})
		r := newRelay(t, setup{pipes: net, upstreams: []upstream{unknown.upstream, dear.upstream, cheap.upstream}, routes: router.Config{
			Strategy: router.StrategyCost,
			Default:  []string{"unknown/claude-nobody-knows", "dear/" + opus, "cheap/" + sonnet},
		}})
		session := 0
		at := func(about string) string { // each of another conversation: none has a home
			session++
			got := r.do(call{header: ofSession(itoa(session)), body: cached("claude-any", about, true)})
			requireServed(t, got, true)
			return got.header.Get("X-Cc-Relay-Provider")
		}
		assert.Equal(t, "cheap", at("one"), "half the price")
		assert.Equal(t, "dear", at("two"), "the cheap one is overloaded, the next is dear; without a known price comes last")
		assert.Equal(t, "dear", at("two"), "here it is in the cache")
		assert.Equal(t, "cheap", at("one"), "and this one there")
		assert.Equal(t, "cheap", at("three"), "what is in no cache")
		time.Sleep(5 * time.Minute)
		assert.Equal(t, "cheap", at("two"), "nothing is in a cache any more")
		assert.Empty(t, unknown.Seen())
		assert.Equal(t, opus, dear.Seen()[0].Model)
		assert.Equal(t, sonnet, cheap.Seen()[0].Model)
	})
}
