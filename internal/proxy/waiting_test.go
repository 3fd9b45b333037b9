package proxy_test

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// perSecond is an organization that admits one request every so many seconds and
// has one left.
func perSecond(seconds int) (simulator.Limits, float64) {
	rpm := 60 / seconds
	return simulator.Limits{RPM: rpm}, 1 / float64(rpm)
}

// slowSim starts a provider with one key that admits a request every so many
// seconds; its pool waits for so long.
func (p *pipes) slowSim(t *testing.T, name string, seconds int, maxWait time.Duration, f ...simulator.Fault) *sim {
	t.Helper()
	limits, level := perSecond(seconds)
	s := p.sim(t, name, simulator.Config{Organizations: []simulator.Organization{owner(name, 1, limits)}, StartLevel: level, Faults: f})
	s.maxWait = maxWait
	return s
}

// waited is what the answer says of the time in the pool.
func waited(t *testing.T, got reply) time.Duration {
	t.Helper()
	ms, err := strconv.Atoi(got.header.Get("X-Cc-Relay-Wait-Ms"))
	require.NoError(t, err)
	return time.Duration(ms) * time.Millisecond
}

// statuses are what a provider answered, in order.
func (s *sim) statuses() []int {
	var all []int
	for _, rec := range s.Seen() {
		all = append(all, rec.Status)
	}
	return all
}

// A request for which the key has no room waits until it has, and the client
// notices nothing but the time.
func TestAFullKeyIsWaitedFor(t *testing.T) {
	for name, tt := range map[string]struct {
		limits   simulator.Limits
		level    float64 // at the start
		tokens   int     // of an answer
		min, max time.Duration
	}{
		"requests":      {simulator.Limits{RPM: 60}, 1. / 60, 10, time.Second, 1100 * time.Millisecond},
		"input tokens":  {simulator.Limits{ITPM: 60_000}, 0.05, 10, time.Second, 2500 * time.Millisecond},
		"output tokens": {simulator.Limits{OTPM: 60_000}, 1. / 60, 1500, time.Second, 2500 * time.Millisecond},
	} {
		for _, stream := range []bool{false, true} {
			t.Run(name+", stream="+strconv.FormatBool(stream), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := newPipes()
					a := net.sim(t, "a", simulator.Config{
						Organizations: []simulator.Organization{owner("a", 1, tt.limits)}, StartLevel: tt.level,
						Answers: simulator.Answers{MedianTokens: tt.tokens},
					})
					a.maxWait = 3 * time.Second
					r := net.relay(t, a)
					body := strings.Replace(cached(opus, "one", stream), `"max_tokens":64`, `"max_tokens":4000`, 1)
					body = strings.Replace(body, `,"cache_control":{"type":"ephemeral"}`, "", 1)
					first := r.do(call{body: body})
					requireServed(t, first, stream)
					assert.Zero(t, waited(t, first))

					start := time.Now()
					got := r.do(call{body: body})
					requireServed(t, got, stream)
					assert.GreaterOrEqual(t, waited(t, got), tt.min)
					assert.LessOrEqual(t, waited(t, got), tt.max)
					assert.Equal(t, waited(t, got), time.Since(start).Truncate(time.Millisecond), "nothing else took time")
					assert.InDelta(t, waited(t, got).Milliseconds(), got.record["wait_ms"], 1)
					assert.Equal(t, "1", got.header.Get("X-Cc-Relay-Attempts"))
					assert.Empty(t, got.header.Get("Retry-After"))
					assert.Equal(t, []int{200, 200}, a.statuses())
				})
			})
		}
	}
}

// What would take longer than max_wait is refused at once, with the time.
func TestTooLongAWaitIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		maxWait time.Duration
		waits   time.Duration // 0: refused
	}{
		"never": {0, 0},
		"3 s":   {3 * time.Second, 0},
		"9.9 s": {9900 * time.Millisecond, 0},
		"10 s":  {10 * time.Second, 10 * time.Second},
		"60 s":  {time.Minute, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.slowSim(t, "a", 10, tt.maxWait)
				r := net.relay(t, a)
				requireServed(t, r.do(call{body: ask(opus, false)}), false)
				start := time.Now()
				got := r.do(call{body: ask(opus, true)})
				assert.Equal(t, tt.waits, waited(t, got))
				assert.Equal(t, tt.waits, time.Since(start))
				if tt.waits > 0 {
					requireServed(t, got, true)
					return
				}
				requireError(t, got, 429, "rate_limit_error")
				assert.Equal(t, "10", got.header.Get("Retry-After"))
				assert.InDelta(t, 0, got.record["attempts"], 0)
				assert.Len(t, a.Seen(), 1, "the provider was asked for nothing")

				time.Sleep(10 * time.Second)
				got = r.do(call{body: ask(opus, false)})
				requireServed(t, got, false)
				assert.Zero(t, waited(t, got), "the time that was told is enough")
			})
		})
	}
}

// A wait may be longer than a write to the client may take.
func TestTheLongestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.slowSim(t, "a", 60, time.Minute)
		r := net.relay(t, a)
		for range 2 { // on one connection
			requireServed(t, r.do(call{body: ask(opus, true)}), true)
		}
		got := r.do(call{body: ask(opus, true)})
		requireServed(t, got, true)
		assert.Equal(t, time.Minute, waited(t, got))
		assert.Equal(t, []int{200, 200, 200}, a.statuses())
	})
}

// crowd sends requests one after the other without waiting for their answers, and
// returns these in the order of the requests.
func crowd(r *relay, calls ...call) []reply {
	got := make([]reply, len(calls))
	var wg sync.WaitGroup
	for i, c := range calls {
		wg.Go(func() { got[i] = r.send(c) })
		synctest.Wait() // it has its place in the queue
	}
	wg.Wait()
	return got
}

// saying is a request with this text.
func saying(token, text string) call {
	return call{token: token, body: strings.Replace(ask(opus, false), "hello", text, 1)}
}

// said are the texts of the requests that a provider has seen, in order.
func (s *sim) said(texts ...string) []string {
	var list []string
	for _, rec := range s.Seen() {
		at := slices.IndexFunc(texts, func(text string) bool { return strings.Contains(string(rec.Body), `"`+text+`"`) })
		if at >= 0 {
			list = append(list, texts[at])
		}
	}
	return list
}

// Who waits is served in turn; who would have to wait too long is told so at once
// and costs the others nothing.
func TestWaitersAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.slowSim(t, "a", 1, 3*time.Second)
		r := net.relay(t, a)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		start := time.Now()
		got := crowd(r, saying(aliceToken, "one"), saying(aliceToken, "two"), saying(aliceToken, "three"), saying(aliceToken, "four"), saying(aliceToken, "five"))
		assert.Equal(t, 3*time.Second, time.Since(start))
		for i, want := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
			requireServed(t, got[i], false)
			assert.Equal(t, want, waited(t, got[i]), "request %d", i+1)
		}
		for _, refused := range got[3:] {
			requireError(t, refused, 429, "rate_limit_error")
			assert.Equal(t, "4", refused.header.Get("Retry-After"), "the others go first")
			assert.Zero(t, waited(t, refused))
		}
		assert.Equal(t, []string{"one", "two", "three"}, a.said("one", "two", "three", "four", "five"))
		assert.Equal(t, []int{200, 200, 200, 200}, a.statuses())
	})
}

// A client that asks for much does not put itself before another.
func TestClientsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.slowSim(t, "a", 1, 5*time.Second)
		r := net.relay(t, a)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		got := crowd(r, saying(aliceToken, "a1"), saying(aliceToken, "a2"), saying(aliceToken, "a3"), saying(bobToken, "b1"))
		for _, one := range got {
			requireServed(t, one, false)
		}
		assert.Equal(t, []string{"a1", "b1", "a2", "a3"}, a.said("a1", "a2", "a3", "b1"))
	})
}

// Who leaves while waiting gives up the place, and the provider never hears of it.
func TestAWaitingClientThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.slowSim(t, "a", 1, 3*time.Second)
		r := net.relay(t, a)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := r.client.RoundTrip(r.request(saying(aliceToken, "leaves")).WithContext(ctx))
			assert.ErrorIs(t, err, context.Canceled)
		}()
		synctest.Wait()
		stays := make(chan reply)
		go func() { stays <- r.send(saying(aliceToken, "stays")) }()
		time.Sleep(500 * time.Millisecond)
		cancel()
		rec := r.log.next(t)
		assert.Equal(t, "client_gone", rec["outcome"])
		assert.InDelta(t, 0, rec["attempts"], 0)
		assert.InDelta(t, 500, rec["wait_ms"], 1)

		got := <-stays
		requireServed(t, got, false)
		assert.Equal(t, time.Second, waited(t, got), "it has the place of the one that left")
		assert.Equal(t, []string{"stays"}, a.said("leaves", "stays"))
	})
}

// A relay that stops tells those who wait.
func TestStoppingEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.slowSim(t, "a", 10, time.Minute)
		r := net.relay(t, a)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		got := make(chan reply)
		go func() { got <- r.send(call{body: ask(opus, true)}) }()
		time.Sleep(2 * time.Second)
		r.handler.Stop()
		requireError(t, <-got, 529, "overloaded_error")
		assert.Len(t, a.Seen(), 1)
	})
}

// What a client asks of the limits while it waits is not held up.
func TestWaitingIsPerClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.slowSim(t, "a", 10, time.Minute)
		r := net.relay(t, a)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		waits := make(chan reply)
		go func() { waits <- r.send(call{body: ask(opus, false)}) }()
		synctest.Wait()
		for name, c := range map[string]call{
			"another model": {body: ask(haiku, false)},
			"count_tokens":  {path: "/v1/messages/count_tokens", body: ask(opus, false)},
			"models":        {method: http.MethodGet, path: "/v1/models"},
		} {
			got := r.send(c)
			assert.Equal(t, 200, got.status, name)
			assert.Zero(t, waited(t, got), name)
		}
		requireServed(t, <-waits, false)
	})
}
