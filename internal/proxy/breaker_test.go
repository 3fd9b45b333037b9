package proxy_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/router"
)

// Five failures in a row close the way to a provider, for the class that failed.
func TestABreakerIsForOneProviderAndOneClass(t *testing.T) {
	for name, fail := range map[string]act{
		"529":        answers(529),
		"500":        answers(500),
		"504":        answers(504),
		"hangs up":   hangsUp,
		"is silent":  silent,
		"cut":        sends(hangsUp, headFrame),
		"an error":   sends(nil, headFrame, frameOf("error", `{"type":"error","error":{"type":"overloaded_error","message":"busy"}}`)),
		"says bogus": sends(nil, "data: {oops\n\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", byModel(opus, fail, well)), net.actor(t, "b", well)
				a.FirstTokenTimeout = 100 * time.Millisecond
				r := net.cast(t, router.Config{}, a, b)
				assert.Equal(t, map[string]int{"b": 8}, tally(t, r, 8, call{body: ask(opus, true)}))
				assert.Len(t, a.got(), 5, "requests to the one that fails")
				assert.Equal(t, map[string]int{"a": 8}, tally(t, r, 8, call{body: ask(haiku, true)}))
				assert.Equal(t, map[string]int{"b": 1}, tally(t, r, 1, call{body: ask(opus, true)}))
			})
		})
	}
	t.Run("not of four in a row", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a, b := net.actor(t, "a", nil), net.actor(t, "b", well)
			r := net.cast(t, router.Config{}, a, b)
			for range 4 { // two of four fail
				a.fares(well)
				assert.Equal(t, map[string]int{"a": 4}, tally(t, r, 4, call{body: ask(opus, true)}))
				a.fares(answers(529))
				assert.Equal(t, map[string]int{"b": 4}, tally(t, r, 4, call{body: ask(opus, true)}))
				time.Sleep(10 * time.Second) // what was is forgotten
			}
			assert.Len(t, a.got(), 32)
		})
	})
}

// What the request or the key is to blame for does not count against a provider.
func TestWhatOpensNoBreaker(t *testing.T) {
	const times = 12
	for name, tt := range map[string]struct {
		play   act
		status int // what the client gets
	}{
		"400":                  {answers(400), 400},
		"404":                  {answers(404), 404},
		"408":                  {answers(408), 408},
		"413":                  {answers(413), 413},
		"422":                  {answers(422), 422},
		"400 as first frame":   {sends(nil, frameOf("error", `{"type":"error","error":{"type":"invalid_request_error","message":"no"}}`)), 400},
		"400 in a later frame": {sends(nil, startFrame, frameOf("error", `{"type":"error","error":{"type":"invalid_request_error","message":"no"}}`)), 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", tt.play), net.actor(t, "b", well)
				r := net.cast(t, router.Config{}, a, b)
				for range times {
					require.Equal(t, tt.status, r.do(call{body: ask(opus, true)}).status)
				}
				a.fares(well)
				assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, call{body: ask(opus, true)}))
				assert.Empty(t, b.got())
				shown := 1
				if tt.status == 200 {
					shown += times
				}
				r.requireSamples(t, "a", shown, 0)
			})
		})
	}
	// Keys that are refused one after the other; the last one serves.
	for _, code := range []int{401, 402, 403, 429} {
		t.Run(itoa(code), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", nil), net.actor(t, "b", well)
				for n := 2; n <= times; n++ {
					a.keys = append(a.keys, keyOf("a", n))
				}
				a.fares(func(w http.ResponseWriter, r *http.Request, q asked) {
					if q.key == keyOf("a", times) {
						well(w, r, q)
						return
					}
					answers(code)(w, r, q)
				})
				r := net.cast(t, router.Config{}, a, b)
				assert.Equal(t, map[string]int{"a": 3}, tally(t, r, 3, call{body: ask(opus, true)}))
				assert.Greater(t, len(a.got()), times, "all keys were tried")
				assert.Empty(t, b.got())
				r.requireSamples(t, "a", 3, 0)
			})
		})
	}
}

// leaves sends a call and leaves after this time.
func (r *relay) leaves(c call, after time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	if resp, err := r.client.RoundTrip(r.request(c).WithContext(ctx)); err == nil {
		readReply(resp)
	}
	<-r.log.records
}

// A client that leaves says nothing about the provider, and one that reads slowly
// neither.
func TestClientsOpenNoBreaker(t *testing.T) {
	const times = 8
	for name, tt := range map[string]struct {
		play   act
		stream bool
		shown  int
	}{
		"leaves before the headers":       {silent, true, 0},
		"leaves before the headers, JSON": {silent, false, 0},
		"leaves before content":           {sends(silent, headFrame), true, 0},
		"leaves in the middle":            {sends(silent, startFrame, deltaFrame), true, times},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", tt.play), net.actor(t, "b", well)
				r := net.cast(t, router.Config{}, a, b)
				for range times {
					r.leaves(call{body: ask(opus, tt.stream)}, time.Second)
				}
				a.fares(well)
				assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, call{body: ask(opus, true)}))
				assert.Empty(t, b.got(), "nobody is asked for a client that is gone")
				r.requireSamples(t, "a", tt.shown+1, 0)
			})
		})
	}
	for name, pause := range map[string]time.Duration{
		"reads slowly":  20 * time.Second,
		"does not read": 40 * time.Second, // longer than a write may take
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.actor(t, "a", sends(nil, headFrame, blockFrame, deltaFrame, usageFrame, stopFrame))
				a.IdleTimeout = 10 * time.Second
				r := net.cast(t, router.Config{}, a)
				for range times {
					func() {
						defer func() { _ = recover() }() // how a request ends whose client is gone
						r.handler.ServeHTTP(&slowClient{sink: sink{header: http.Header{}}, pause: pause}, aliceRequest(ask(opus, true)))
					}()
				}
				assert.Len(t, a.got(), times)
				s := r.lane("a", opus).Status()
				assert.Zero(t, s.Failures)
				assert.Equal(t, health.Closed, s.State)
			})
		})
	}
}

// While a breaker is open, one request at a time finds out whether the provider is
// back, each time after twice as long.
func TestProbes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a, b := net.actor(t, "a", answers(529)), net.actor(t, "b", well)
		r := net.cast(t, router.Config{}, a, b)
		for range 500 {
			got := r.do(call{body: ask(opus, false)})
			require.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
			time.Sleep(500 * time.Millisecond)
		}
		seen := a.got()
		require.Len(t, seen, 5+6)
		for i, want := range []int{5, 10, 20, 40, 60, 60} {
			gap := seen[5+i].at.Sub(seen[4+i].at)
			assert.InDelta(t, want, gap.Seconds(), 0.5, "probe %d came %v after the one before", i+1, gap)
		}
	})
}

func TestOneProbeAtATime(t *testing.T) {
	open := func(t *testing.T) (*relay, *actor, *actor) {
		net := newPipes()
		a, b := net.actor(t, "a", answers(529)), net.actor(t, "b", well)
		r := net.cast(t, router.Config{}, a, b)
		tally(t, r, 6, call{body: ask(opus, false)})
		require.Len(t, a.got(), 5)
		time.Sleep(5 * time.Second)
		return r, a, b
	}
	t.Run("of many at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a, _ := open(t)
			a.fares(after(time.Second, well))
			many := make([]call, 50)
			for i := range many {
				many[i].body = ask(opus, i%2 == 0)
			}
			at := map[string]int{}
			for _, one := range crowd(r, many...) {
				at[one.header.Get("X-Cc-Relay-Provider")]++
			}
			assert.Equal(t, map[string]int{"a": 1, "b": 49}, at)
		})
	})
	t.Run("who leaves gives the place back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a, _ := open(t)
			a.fares(silent)
			r.leaves(call{body: ask(opus, true)}, 100*time.Millisecond)
			a.fares(well)
			assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, call{body: ask(opus, true)}))
		})
	})
	t.Run("what the client is to blame for gives it back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a, _ := open(t)
			a.fares(answers(400))
			require.Equal(t, 400, r.do(call{body: ask(opus, true)}).status)
			a.fares(well)
			assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, call{body: ask(opus, true)}))
		})
	})
}

// With every breaker open there is one attempt for each request, at once and without
// a second one, and the client is told what came of it.
func TestEveryBreakerIsOpen(t *testing.T) {
	for name, tt := range map[string]struct {
		die    func(*actor)
		status int
		kind   string
	}{
		"529":                {func(a *actor) { a.fares(answers(529)) }, 529, "overloaded_error"},
		"500":                {func(a *actor) { a.fares(answers(500)) }, 500, "api_error"},
		"504":                {func(a *actor) { a.fares(answers(504)) }, 504, "timeout_error"},
		"hangs up":           {func(a *actor) { a.fares(hangsUp) }, 502, "api_error"},
		"connection refused": {func(a *actor) { a.refuses() }, 502, "api_error"},
	} {
		for _, alone := range []bool{false, true} {
			title := name + ", two providers"
			if alone {
				title = name + ", one provider"
			}
			t.Run(title, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					net := newPipes()
					actors := []*actor{net.actor(t, "a", well), net.actor(t, "b", well)}
					if alone {
						actors = actors[:1]
					}
					r := net.cast(t, router.Config{}, actors...)
					sent := func() (n int) {
						for _, a := range actors {
							n += len(a.got())
						}
						return n
					}
					for _, a := range actors {
						tt.die(a)
					}
					for n := 0; !r.allOpen(actors); n++ {
						require.Less(t, n, 20, "the breakers do not open")
						r.do(call{body: ask(opus, true)})
					}
					for n := range 60 {
						probes := 0 // that are due
						for _, a := range actors {
							if r.lane(a.Name, opus).Status().State == health.HalfOpen {
								probes++
							}
						}
						before := sent()
						got := r.do(call{body: ask(opus, n%2 == 0)})
						requireError(t, got, tt.status, tt.kind)
						require.Equal(t, max(1, probes), sent()-before, "attempts of request %d", n)
						require.Equal(t, itoa(max(1, probes)), got.header.Get("X-Cc-Relay-Attempts"))
						require.Zero(t, waited(t, got), "wait for nothing, request %d", n)
						time.Sleep(time.Second / 2)
					}
				})
			})
		}
	}
}

// allOpen reports whether no breaker of these providers lets anybody in.
func (r *relay) allOpen(actors []*actor) bool {
	for _, a := range actors {
		if r.lane(a.Name, opus).Status().State != health.Open {
			return false
		}
	}
	return true
}

// Where everything has failed, the first provider that is back serves everybody:
// there is no one else whom the ramp could send them to.
func TestTheFirstToComeBackServesAll(t *testing.T) {
	for _, n := range []int{1, 2} {
		t.Run(itoa(n)+" providers", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				actors := []*actor{net.actor(t, "a", well), net.actor(t, "b", answers(529))}[:n]
				r := net.cast(t, router.Config{}, actors...)
				tally(t, r, 1, call{body: ask(opus, true)})
				actors[0].fares(answers(529))
				for !r.allOpen(actors) {
					r.do(call{body: ask(opus, true)})
				}
				actors[0].fares(well)
				back := time.Time{}
				for range 300 {
					got := r.do(call{body: ask(opus, true)})
					if got.status == 200 && back.IsZero() {
						back = time.Now()
					}
					if !back.IsZero() {
						require.Equal(t, 200, got.status, "%v after it was found to be back", time.Since(back))
					}
					time.Sleep(time.Second / 10)
				}
				require.False(t, back.IsZero(), "it was not found to be back")
			})
		})
	}
}
