package proxy_test

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/router"
)

// think is how long providers take before they answer, so that requests overlap.
const think = 20 * time.Millisecond

// One of two providers dies under load. Clients see nothing of it; it is probed
// soon after it has recovered and then gets its share back step by step.
func TestAProviderDiesUnderLoad(t *testing.T) {
	t.Parallel()
	const (
		rate = heavy
		dies = time.Second
		ramp = 10 * time.Second
		more = time.Second // of load, when all is well again
	)
	for name, tt := range map[string]struct {
		die   func(*actor)
		back  time.Duration // from the beginning, as the next two
		probe time.Duration // about when it is found to be back
		opens time.Duration // how long its breaker stays open by then
		lost  int           // requests that may meet the dead provider: until 5 have failed, and at each probe
	}{
		"529":                {func(a *actor) { a.fares(answers(529)) }, 2 * time.Second, 6 * time.Second, 5 * time.Second, 10},
		"500":                {func(a *actor) { a.fares(answers(500)) }, 2 * time.Second, 6 * time.Second, 5 * time.Second, 10},
		"connection refused": {func(a *actor) { a.refuses() }, 2 * time.Second, 6 * time.Second, 5 * time.Second, 10},
		"silence, and its first probe fails": {
			func(a *actor) { a.fares(silent) }, 11 * time.Second, 20 * time.Second, 10 * time.Second, 2*rate/2 + 10,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", after(think, well)), net.actor(t, "b", after(think, well))
				a.FirstTokenTimeout, a.ResponseTimeout = 2*time.Second, 2*time.Second
				r := net.cast(t, router.Config{Strategy: router.StrategyRoundRobin}, a, b)
				start := time.Now()
				died, recovered := start.Add(dies), start.Add(tt.back)
				time.AfterFunc(dies, func() { tt.die(a) })
				time.AfterFunc(tt.back, func() { a.fares(after(think, well)) })
				length := tt.probe + 10*think + ramp + more
				got := load(r, rate, length)
				assert.Empty(t, got.others, "what clients got instead of an answer")
				assert.Equal(t, int(length.Seconds()*rate), got.served)
				assert.LessOrEqual(t, a.between(died, recovered), tt.lost, "requests to the dead provider")

				first := a.after(t, recovered)
				t.Logf("first probe %v after the recovery; %d requests went to it while it was dead", first.Sub(recovered), a.between(died, recovered))
				assert.LessOrEqual(t, first.Sub(recovered), tt.opens, "first probe after the recovery")
				at := first.Add(think) // the probe was answered
				assert.Equal(t, 1, a.between(recovered, at), "probes")
				for i, percent := range []int{10, 25, 50, 100} {
					end := first.Add(think + time.Duration(i+1)*ramp/3)
					if percent == 100 {
						end = at.Add(more)
					}
					own := end.Sub(at).Seconds() * rate / 2 // requests whose turn it would be
					n := a.between(at, end)
					t.Logf("step of %d %%: %d of %.1f", percent, n, own)
					assert.InDelta(t, own*float64(percent)/100, n, 1.5, "requests in the step of %d %%", percent)
					at = end
				}
			})
		})
	}
}

// Where every provider fails, requests are not multiplied: what is sent once more
// comes out of the budget, a tenth of the requests and 3 a second.
func testEverythingFails(t *testing.T) {
	t.Parallel()
	const (
		rate   = heavy / 2
		during = 6 * time.Second
	)
	for name, tt := range map[string]struct {
		code     int
		strategy string
		held     bool          // the breakers, closed
		before   time.Duration // in which all is well
	}{
		"529 from the beginning":                 {529, router.StrategyFailover, false, 0},
		"500 after a while, by turns":            {500, router.StrategyRoundRobin, false, 2 * time.Second},
		"held, 529 from the beginning":           {529, router.StrategyFailover, true, 0},
		"held, 529 after a while":                {529, router.StrategyFailover, true, 2 * time.Second},
		"held, 500 from the beginning, by turns": {500, router.StrategyRoundRobin, true, 0},
		"held, 500 after a while, by turns":      {500, router.StrategyRoundRobin, true, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", after(think, well)), net.actor(t, "b", after(think, well))
				r := net.cast(t, router.Config{Strategy: tt.strategy}, a, b)
				if tt.held {
					r.holdClosed("a", "b")
				}
				start := time.Now()
				assert.Empty(t, load(r, rate, tt.before).others)
				a.fares(after(think, answers(tt.code)))
				b.fares(after(think, answers(tt.code)))
				got := load(r, rate, during)
				failed := int(during.Seconds() * rate)
				assert.Equal(t, failed, got.others[tt.code]+got.others[429], "what clients got: %v", got.others)
				if tt.before > 0 { // else two at a time find out what a provider admits, and others are told to wait
					assert.LessOrEqual(t, got.others[429], failed/20, "what clients got: %v", got.others)
				}

				sent := len(a.got()) + len(b.got())
				clients := int((tt.before + during).Seconds() * rate)
				most := 1.1*float64(clients) + 3*time.Since(start).Seconds() + 3
				if tt.before == 0 {
					most += 3 // that moved before the first failure of the other was known
				}
				t.Logf("%d requests at the providers for %d of clients, at most %.0f", sent, clients, most)
				assert.GreaterOrEqual(t, sent, clients, "each request has its attempt")
				assert.LessOrEqual(t, float64(sent), most, "requests at the providers")
			})
		})
	}
}

// A provider that is well may be asked without the budget. Where it turns out to have no
// key, going back to the one that failed is a repeat like any other.
func TestAWellProviderWithoutAKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a, b := net.actor(t, "a", after(think, well)), net.actor(t, "b", well)
		r := net.cast(t, router.Config{}, a, b)
		off := r.live.Router.Upstreams()[1].Pool
		require.NoError(t, off.Disable(off.Keys()[0].ID))
		require.Empty(t, load(r, heavy, time.Second).others)
		count := make(chan int, 1)
		count <- 0
		a.fares(func(w http.ResponseWriter, r *http.Request, q asked) { // too few fail to open a breaker
			at := <-count + 1
			count <- at
			if at%3 == 0 {
				answers(529)(w, r, q)
				return
			}
			after(think, well)(w, r, q)
		})
		const during = 3 * time.Second
		start, before := time.Now(), len(a.got())
		got := load(r, heavy, during)
		clients, sent := int(during.Seconds()*heavy), len(a.got())-before
		most := 1.1*float64(clients) + 3*time.Since(start).Seconds() + 3 + 0.1*heavy // what was saved before
		t.Logf("%d requests at the provider for %d of clients, at most %.0f", sent, clients, most)
		assert.LessOrEqual(t, float64(sent), most)
		assert.Greater(t, got.served, clients*2/3, "what the budget allows is sent once more")
		assert.Empty(t, b.got())
	})
}

// dryBudget keeps the retry budget empty until the func that it returns is called.
func dryBudget(r *relay) (end func()) {
	done := make(chan struct{})
	go func() {
		for {
			for r.live.Router.Budget.Take() {
			}
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() { close(done) }
}

// A stream that has begun is not given up for a provider that has no key.
func TestABegunStreamIsNotGivenUpForNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a, b := net.actor(t, "a", nil), net.actor(t, "b", well)
		a.fares(func(w http.ResponseWriter, r *http.Request, _ asked) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, headFrame)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(6 * time.Second):
			case <-r.Context().Done():
				return
			}
			_, _ = io.WriteString(w, blockFrame+deltaFrame+usageFrame+stopFrame)
		})
		a.FirstTokenTimeout, a.IdleTimeout = 5*time.Second, 5*time.Second
		r := net.cast(t, router.Config{}, a, b)
		off := r.live.Router.Upstreams()[1].Pool
		require.NoError(t, off.Disable(off.Keys()[0].ID))
		end := dryBudget(r)
		got := r.do(call{body: ask(opus, true)})
		end()
		requireServed(t, got, true)
		assert.Len(t, a.got(), 1)
		synctest.Wait()
	})
}

// Where the one that may be asked without the budget has no key, the next after it that
// is not well is a repeat to pay for.
func TestTheThirdIsPaidFor(t *testing.T) {
	t.Parallel()
	for name, budget := range map[string]bool{"with": true, "without": false} {
		t.Run(name+" budget", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b, c := net.actor(t, "a", answers(529)), net.actor(t, "b", well), net.actor(t, "c", well)
				r := net.cast(t, router.Config{}, a, b, c)
				off := r.live.Router.Upstreams()[1].Pool
				require.NoError(t, off.Disable(off.Keys()[0].ID))
				r.holdClosed("a", "c") // what is held is not taken for well
				want := 200
				if !budget {
					want = 529
					for r.live.Router.Budget.Take() {
					}
				}
				assert.Equal(t, want, r.do(call{body: ask(opus, false)}).status)
			})
		})
	}
}

// The second in line has not been asked for anything when the first one dies: two
// requests find out what it admits, and the others wait for that.
func TestAColdProviderTakesOver(t *testing.T) {
	t.Parallel()
	for name, die := range map[string]func(*actor){
		"529":                func(a *actor) { a.fares(answers(529)) },
		"500":                func(a *actor) { a.fares(answers(500)) },
		"connection refused": func(a *actor) { a.refuses() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", after(think, well)), net.actor(t, "b", after(think, well))
				r := net.cast(t, router.Config{}, a, b)
				time.AfterFunc(time.Second, func() { die(a) })
				start := time.Now()
				got := load(r, heavy, 3*time.Second)
				assert.Empty(t, got.others, "what clients got instead of an answer")
				assert.Less(t, time.Since(start), 3*time.Second+10*think, "somebody waited long")
				assert.LessOrEqual(t, a.between(start.Add(time.Second), time.Now()), 10, "requests to the dead provider")
			})
		})
	}
}

// A provider that is well serves what others fail at, however little of the budget
// is left for those that are not.
func TestAWellProviderServesWhatOthersFailAt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		every := func(n int) act { // fails each nth request: too few to open a breaker
			count := make(chan int, 1)
			count <- 0
			return func(w http.ResponseWriter, r *http.Request, q asked) {
				at := <-count + 1
				count <- at
				if at%n == 0 {
					answers(529)(w, r, q)
					return
				}
				well(w, r, q)
			}
		}
		net := newPipes()
		a, b, c := net.actor(t, "a", every(3)), net.actor(t, "b", every(4)), net.actor(t, "c", well)
		r := net.cast(t, router.Config{}, a, b, c)
		got := load(r, heavy/2, 20*time.Second)
		t.Logf("a %d, b %d, c %d", len(a.got()), len(b.got()), len(c.got()))
		assert.Empty(t, got.others, "what clients got instead of an answer")
		assert.NotEmpty(t, c.got())
		assert.Less(t, len(b.got()), heavy/2*20/10+3*20+3+10, "what is sent once more to one that is not well")
	})
}
