package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
	"cc-relay/internal/router"
)

// What the first provider of these tests says must never reach a client.
var (
	firstHead  = strings.NewReplacer("msg_1", "msg_first", `"role"`, `"model":"first-model","role"`, `"input_tokens":11`, `"input_tokens":4444`).Replace(headFrame)
	secondHead = strings.NewReplacer("msg_1", "msg_second", `"role"`, `"model":"second-model","role"`, `"input_tokens":11`, `"input_tokens":22`).Replace(headFrame)
	second     = secondHead + blockFrame + deltaFrame + usageFrame + stopFrame
	secondJSON = `{"type":"message","id":"msg_second","model":"second-model","content":[],"usage":{"input_tokens":22,"output_tokens":7}}`
)

// servesSecond is the answer that the client is to get.
func servesSecond(w http.ResponseWriter, _ *http.Request, q asked) {
	w.Header().Set("Request-Id", "req_second")
	w.Header().Set("Anthropic-Second", "yes")
	if !q.stream {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, secondJSON)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, second)
}

// first begins to answer, and goes on so.
func first(then act, frames ...string) act {
	return func(w http.ResponseWriter, r *http.Request, q asked) {
		w.Header().Set("Anthropic-First", "yes")
		sends(then, frames...)(w, r, q)
	}
}

// pings keeps a stream alive without saying anything.
func pings(every time.Duration, times int, then act) act {
	return func(w http.ResponseWriter, r *http.Request, q asked) {
		for range times {
			select {
			case <-time.After(every):
				_, _ = io.WriteString(w, pingFrame)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
		then(w, r, q)
	}
}

// writes goes on with these bytes.
func writes(then act, text string) act {
	return func(w http.ResponseWriter, r *http.Request, q asked) {
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
		if then != nil {
			then(w, r, q)
		}
	}
}

func errorFrame(kind string) string {
	return frameOf("error", `{"type":"error","error":{"type":"`+kind+`","message":"first"}}`)
}

// Until the first content nothing is final: what fails before it moves on, and the
// client sees one clean answer, that of the second provider.
func testFailuresBeforeContent(t *testing.T) {
	const timeout = 5 * time.Second
	for name, tt := range map[string]struct {
		play act
		json bool          // not a stream
		took time.Duration // until the client has its answer
	}{
		"error, overloaded":            {play: first(nil, firstHead, errorFrame("overloaded_error"))},
		"error, api_error":             {play: first(nil, firstHead, pingFrame, errorFrame("api_error"))},
		"error, rate limit":            {play: first(nil, firstHead, errorFrame("rate_limit_error"))},
		"error, authentication":        {play: first(nil, firstHead, errorFrame("authentication_error"))},
		"error, permission":            {play: first(nil, firstHead, errorFrame("permission_error"))},
		"error, billing":               {play: first(nil, firstHead, errorFrame("billing_error"))},
		"error of no shape":            {play: first(nil, firstHead, frameOf("error", "oops"))},
		"error and more after it":      {play: first(nil, firstHead, errorFrame("overloaded_error")+blockFrame+stopFrame)},
		"cut after the headers":        {play: first(hangsUp)},
		"cut after message_start":      {play: first(hangsUp, firstHead)},
		"cut after a ping":             {play: first(hangsUp, firstHead, pingFrame)},
		"cut inside message_start":     {play: first(hangsUp, firstHead[:30])},
		"cut inside the first content": {play: first(hangsUp, firstHead, blockFrame[:len(blockFrame)-1])},
		"empty":                        {play: first(nil)},
		"only comments":                {play: first(nil, ":\n\n", ": nothing\n\n")},
		"ends after message_start":     {play: first(nil, firstHead)},
		"malformed at once":            {play: first(nil, "data: {oops\n\n", firstHead, blockFrame, stopFrame)},
		"malformed message_start":      {play: first(nil, "event: message_start\ndata: {\"type\":\n\n", blockFrame, stopFrame)},
		"malformed in the middle":      {play: first(nil, firstHead+"data: oops\n\n"+blockFrame+stopFrame)},
		"cut in a long frame":          {play: first(nil, firstHead[:20]+strings.Repeat("x", 60<<10))},
		"silent":                       {play: silent, took: timeout},
		"silent after the headers":     {play: first(silent), took: timeout},
		"silent after message_start":   {play: first(silent, firstHead), took: timeout},
		"silent in a frame":            {play: first(silent, firstHead, blockFrame[:10]), took: timeout},
		"pings, and nothing else":      {play: first(pings(time.Second, 1000, nil), firstHead), took: timeout},
		"first content too late":       {play: first(after(timeout+time.Millisecond, writes(nil, blockFrame+stopFrame)), firstHead), took: timeout},
		"JSON, an error":               {json: true, play: jsonOf(`{"type":"error","error":{"type":"overloaded_error","message":"first"}}`, nil)},
		"JSON, cut":                    {json: true, play: jsonOf(`{"type":"message","id":"msg_first",`, hangsUp)},
		"JSON, ends early":             {json: true, play: jsonOf(`{"type":"message","id":"msg_first",`, nil)},
		"JSON, malformed":              {json: true, play: jsonOf(`{"type":"message","id":"msg_first"]`, nil)},
		"JSON, empty":                  {json: true, play: jsonOf("", nil)},
		"JSON, silent":                 {json: true, play: jsonOf(`{"type":"message",`, silent), took: timeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", tt.play), net.actor(t, "b", servesSecond)
				a.FirstTokenTimeout, a.ResponseTimeout = timeout, timeout
				r := net.cast(t, router.Config{}, a, b)
				start := time.Now()
				got := r.do(call{body: ask(opus, !tt.json)})
				assert.Equal(t, tt.took, time.Since(start), "time until the client has its answer")
				require.NoError(t, got.err)
				require.Equal(t, 200, got.status)
				want := second
				if tt.json {
					want = secondJSON
				}
				assert.Equal(t, want, got.body)
				assert.Equal(t, "req_second", got.header.Get("Request-Id"))
				assert.Equal(t, "yes", got.header.Get("Anthropic-Second"))
				assert.Empty(t, got.header.Get("Anthropic-First"))
				assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
				assert.Equal(t, "2", got.header.Get("X-Cc-Relay-Attempts"))
				assert.Equal(t, "b", got.record["upstream"])
				assert.Equal(t, "served", got.record["outcome"])
				assert.InDelta(t, 22, got.record["input_tokens"], 0)
				assert.InDelta(t, 7, got.record["output_tokens"], 0)
				assert.Len(t, a.got(), 1)
			})
		})
	}
}

// jsonOf is the beginning of a JSON answer, or all of it.
func jsonOf(body string, then act) act {
	return func(w http.ResponseWriter, r *http.Request, q asked) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Request-Id", "req_first")
		w.Header().Set("Anthropic-First", "yes")
		writes(then, body)(w, r, q)
	}
}

// The client has the first content at the moment in which the provider sends it, and
// all that was held with it.
func TestHoldingDelaysNothing(t *testing.T) {
	const late = 1234567 * time.Microsecond
	for name, alone := range map[string]bool{"one provider": true, "two providers": false} {
		for begins, held := range map[string]string{"with message_start": headFrame, "with pings": headFrame + pingFrame + ":\n\n", "at once": ""} {
			t.Run(name+", "+begins, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := newPipes()
					a, b := net.actor(t, "a", sends(after(late, writes(after(late, writes(nil, deltaFrame+stopFrame)), blockFrame)), held)), net.actor(t, "b", well)
					actors := []*actor{a, b}
					if alone {
						actors = actors[:1]
					}
					r := net.cast(t, router.Config{}, actors...)
					start := time.Now()
					resp := r.open(t.Context(), call{body: ask(opus, true)})
					assert.Equal(t, late, time.Since(start), "the status comes with the first content")
					read(t, resp, held+blockFrame)
					assert.Equal(t, late, time.Since(start), "content_block_start")
					read(t, resp, deltaFrame)
					assert.Equal(t, 2*late, time.Since(start), "the next frame")
					read(t, resp, stopFrame)
					_, err := resp.Body.Read(make([]byte, 1))
					require.ErrorIs(t, err, io.EOF)
					r.log.next(t)
				})
			})
		}
	}
	t.Run("an answer without content", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a := net.actor(t, "a", sends(after(late, writes(after(late, writes(nil, stopFrame)), usageFrame)), headFrame))
			r := net.cast(t, router.Config{}, a, net.actor(t, "b", well))
			start := time.Now()
			resp := r.open(t.Context(), call{body: ask(opus, true)})
			read(t, resp, headFrame+usageFrame)
			assert.Equal(t, late, time.Since(start))
			read(t, resp, stopFrame)
			assert.Equal(t, 2*late, time.Since(start))
			r.log.next(t)
		})
	})
}

// A lone provider whose answer has begun is waited for when its time is up a second
// time: the client gets what there is, and then all that comes, as it comes.
func TestALoneProviderIsWaitedFor(t *testing.T) {
	const timeout, idle = 10 * time.Second, 60 * time.Second
	for name, tt := range map[string]struct {
		play    act           // of its second attempt, from the beginning
		shown   string        // at the timeout
		rest    string        // after that
		comes   time.Duration // when all of it has come, from the timeout on
		outcome string
	}{
		"content comes":            {sends(after(30*time.Second, writes(nil, blockFrame+deltaFrame+usageFrame+stopFrame)), headFrame), headFrame, blockFrame + deltaFrame + usageFrame + stopFrame, 20 * time.Second, "served"},
		"everything comes":         {sends(after(30*time.Second, writes(nil, wholeStream))), "", wholeStream, 20 * time.Second, "served"},
		"in the middle of a frame": {sends(after(30*time.Second, writes(nil, blockFrame[20:]+stopFrame)), headFrame, blockFrame[:20]), headFrame, blockFrame + stopFrame, 20 * time.Second, "served"},
		"an answer without any":    {sends(after(30*time.Second, writes(nil, stopFrame)), headFrame), headFrame, stopFrame, 20 * time.Second, "served"},
		"pings for long":           {sends(pings(50*time.Second, 5, writes(nil, blockFrame+stopFrame)), headFrame), headFrame, strings.Repeat(pingFrame, 5) + blockFrame + stopFrame, 240 * time.Second, "served"},
		"its own error":            {sends(after(30*time.Second, writes(nil, errorFrame("overloaded_error"))), headFrame), headFrame, errorFrame("overloaded_error"), 20 * time.Second, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.actor(t, "a", nil)
				a.fares(func(w http.ResponseWriter, r *http.Request, q asked) {
					if len(a.got()) == 1 {
						first(silent, firstHead)(w, r, q)
						return
					}
					tt.play(w, r, q)
				})
				a.FirstTokenTimeout, a.IdleTimeout, a.Origin = timeout, idle, provider.OriginAnthropic
				r := net.cast(t, router.Config{}, a)
				resp := r.open(t.Context(), call{body: ask(opus, true)})
				asked := a.got()
				require.Len(t, asked, 2)
				assert.Equal(t, timeout, time.Since(asked[1].at), "it is shown when the time of the second attempt is up")
				assert.Equal(t, "req_parts", resp.Header.Get("Request-Id"))
				assert.Equal(t, "2", resp.Header.Get("X-Cc-Relay-Attempts"))
				shown := time.Now()
				read(t, resp, tt.shown)
				assert.Equal(t, shown, time.Now())
				rest, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				assert.Equal(t, tt.rest, string(rest))
				assert.Equal(t, tt.comes, time.Since(shown), "the time of the rest")
				assert.Equal(t, tt.outcome, r.log.next(t)["outcome"])
			})
		})
	}
	t.Run("pings are passed on as they come", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a := net.actor(t, "a", sends(pings(15*time.Second, 4, writes(nil, blockFrame+stopFrame)), headFrame))
			a.FirstTokenTimeout, a.IdleTimeout, a.Origin = timeout, idle, provider.OriginAnthropic
			r := net.cast(t, router.Config{}, a)
			resp := r.open(t.Context(), call{body: ask(opus, true)})
			began := a.got()[1].at
			read(t, resp, headFrame)
			for n := range 4 {
				read(t, resp, pingFrame)
				assert.Equal(t, time.Duration(n+1)*15*time.Second, time.Since(began), "ping %d", n+1)
			}
			read(t, resp, blockFrame+stopFrame)
			r.log.next(t)
		})
	})
	t.Run("silence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a := net.actor(t, "a", sends(pings(50*time.Second, 3, silent), headFrame))
			a.FirstTokenTimeout, a.IdleTimeout, a.Origin = timeout, idle, provider.OriginAnthropic
			r := net.cast(t, router.Config{}, a)
			got := r.do(call{body: ask(opus, true)})
			requireCut(t, got, headFrame+strings.Repeat(pingFrame, 3), "api_error")
			assert.Contains(t, got.body, "fell silent")
			assert.Equal(t, 150*time.Second+idle, time.Since(a.got()[1].at), "from its last ping on")
		})
	})
	t.Run("not where another provider is left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a, b := net.actor(t, "a", first(silent, firstHead)), net.actor(t, "b", sends(after(30*time.Second, writes(nil, blockFrame+stopFrame)), headFrame))
			for _, one := range []*actor{a, b} {
				one.FirstTokenTimeout, one.IdleTimeout, one.Origin = timeout, idle, provider.OriginAnthropic
			}
			r := net.cast(t, router.Config{}, a, b)
			got := r.do(call{body: ask(opus, true)})
			require.NoError(t, got.err)
			assert.Equal(t, headFrame+blockFrame+stopFrame, got.body)
			assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
			assert.Len(t, a.got(), 1)
			assert.Len(t, b.got(), 1)
		})
	})
	t.Run("not without headers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a := net.actor(t, "a", silent)
			a.FirstTokenTimeout = timeout
			r := net.cast(t, router.Config{}, a)
			requireError(t, r.do(call{body: ask(opus, true)}), 504, "timeout_error")
			assert.Len(t, a.got(), 2)
		})
	})
}

// A lone provider that has become slow for everybody: who waits goes on waiting, or
// is asked for once more, and gets the answer.
func TestManyWaitForASlowProvider(t *testing.T) {
	for name, apart := range map[string]time.Duration{"all at once": 0, "one after the other": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.actor(t, "a", well)
				a.FirstTokenTimeout, a.Origin = 120*time.Second, provider.OriginAnthropic
				r := net.cast(t, router.Config{}, a)
				tally(t, r, 1, call{body: ask(opus, true)})
				a.fares(sends(after(200*time.Second, writes(nil, blockFrame+stopFrame)), headFrame))
				got := make([]reply, 60)
				var wg sync.WaitGroup
				for i := range got {
					wg.Go(func() { got[i] = r.do(call{body: ask(opus, true)}) })
					time.Sleep(apart)
				}
				wg.Wait()
				for _, one := range got {
					require.Equal(t, 200, one.status)
					assert.Equal(t, headFrame+blockFrame+stopFrame, one.body)
				}
			})
		})
	}
}

// 64 KiB are held at most: beyond, the answer is the client's whatever comes.
func TestHowMuchIsHeld(t *testing.T) {
	pad := func(n int) string { // a comment of so many bytes
		return ":" + strings.Repeat("x", n-3) + "\n\n"
	}
	for name, tt := range map[string]struct {
		held  int
		shown bool
	}{
		"64 KiB":        {64 << 10, false},
		"one byte more": {64<<10 + 1, true},
		"1 MiB":         {1 << 20, true},
	} {
		for what, then := range map[string]act{"cut": hangsUp, "error": writes(nil, errorFrame("overloaded_error")), "silence": silent} {
			t.Run(name+", then "+what, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					net := newPipes()
					held := headFrame + pad(tt.held-len(headFrame))
					if what == "error" && !tt.shown {
						held = headFrame + pad(tt.held-len(headFrame)-len(errorFrame("overloaded_error")))
					}
					a, b := net.actor(t, "a", sends(then, held)), net.actor(t, "b", servesSecond)
					a.FirstTokenTimeout, a.IdleTimeout = 5*time.Second, 5*time.Second
					r := net.cast(t, router.Config{}, a, b)
					got := r.do(call{body: ask(opus, true)})
					if !tt.shown {
						assert.Equal(t, second, got.body)
						return
					}
					assert.Equal(t, "a", got.header.Get("X-Cc-Relay-Provider"))
					assert.Equal(t, "broken", got.record["outcome"])
					assert.True(t, strings.HasPrefix(got.body, held), "what was held is shown")
					assert.Contains(t, got.body, "event: error\n")
					assert.NotContains(t, got.body, "message_stop")
					assert.Empty(t, b.got())
				})
			})
		}
	}
	t.Run("a frame of it is not cut in two", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			long := headFrame + strings.Repeat(pingFrame, 3000)
			a := net.actor(t, "a", sends(after(time.Second, writes(nil, blockFrame+stopFrame)), long))
			r := net.cast(t, router.Config{}, a)
			got := r.do(call{body: ask(opus, true)})
			assert.Equal(t, long+blockFrame+stopFrame, got.body)
		})
	})
}

// A connection that was lost before any status may have been paid for.
func TestRetryUnknown(t *testing.T) {
	no, yes := false, true
	for name, tt := range map[string]struct {
		retry *bool
		play  act
		moves bool
	}{
		"by default":              {nil, hangsUp, true},
		"allowed":                 {&yes, hangsUp, true},
		"forbidden":               {&no, hangsUp, false},
		"forbidden, but a status": {&no, first(hangsUp, firstHead), true},
		"forbidden, but a 500":    {&no, answers(500), true},
		"forbidden, but silence":  {&no, silent, true},
	} {
		for _, stream := range []bool{true, false} {
			t.Run(name+", stream "+map[bool]string{true: "yes", false: "no"}[stream], func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					net := newPipes()
					a, b := net.actor(t, "a", tt.play), net.actor(t, "b", servesSecond)
					r := net.cast(t, router.Config{RetryUnknown: tt.retry}, a, b)
					got := r.do(call{body: ask(opus, stream)})
					if tt.moves {
						assert.Equal(t, 200, got.status)
						assert.Len(t, b.got(), 1)
						return
					}
					requireError(t, got, 502, "api_error")
					assert.Empty(t, b.got())
					r.requireSamples(t, "a", 0, 1)
				})
			})
		}
	}
	t.Run("forbidden to a lone provider", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a := net.actor(t, "a", hangsUp)
			r := net.cast(t, router.Config{RetryUnknown: &no}, a)
			requireError(t, r.do(call{body: ask(opus, true)}), 502, "api_error")
			assert.Len(t, a.got(), 1)
		})
	})
	t.Run("forbidden where another has no room yet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a, b := net.actor(t, "a", func(w http.ResponseWriter, r *http.Request, q asked) {
				w.Header().Set("Retry-After", "1")
				answers(429)(w, r, q)
			}), net.actor(t, "b", hangsUp)
			r := net.cast(t, router.Config{RetryUnknown: &no}, a, b)
			got := r.do(call{body: ask(opus, true)})
			assert.NotEqual(t, 200, got.status)
			assert.Len(t, a.got(), 1, "no wait for a provider that is merely full")
			assert.Len(t, b.got(), 1)
		})
	})
	t.Run("once only", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a, b, c := net.actor(t, "a", hangsUp), net.actor(t, "b", hangsUp), net.actor(t, "c", well)
			r := net.cast(t, router.Config{}, a, b, c)
			requireError(t, r.do(call{body: ask(opus, true)}), 502, "api_error")
			assert.Empty(t, c.got())
		})
	})
}

// One move for what is broken, four attempts in all, in whatever order.
func TestAttemptsOfMixedKinds(t *testing.T) {
	for name, tt := range map[string]struct {
		plays string // of the providers, in order
		asked string // how often each
		want  int
	}{
		"busy, busy, busy, busy, well":        {"529 529 529 529 well", "1 1 1 1 0", 529},
		"busy, busy, busy, well":              {"529 529 529 well", "1 1 1 1", 200},
		"broken, well":                        {"500 well", "1 1", 200},
		"broken, broken, well":                {"500 500 well", "1 1 0", 500},
		"busy, broken, busy, well":            {"529 500 529 well", "1 1 1 1", 200},
		"busy, broken, broken, well":          {"529 500 500 well", "1 1 1 0", 529},
		"broken, busy, busy, busy, well":      {"500 529 529 529 well", "1 1 1 1 0", 529},
		"cut, silent, well":                   {"cut silent well", "1 1 0", 504},
		"lost, busy, well":                    {"lost 529 well", "1 1 1", 200},
		"refused, refused, busy, 401, well":   {"refused refused 529 401 well", "1 1 1 1 1", 200},
		"limited, broken, broken":             {"429 500 500", "1 1 1", 429},
		"limited for a while, broken, broken": {"429-1s 500 500", "1 1 1", 429},
		"limited for a while, broken":         {"429-1s 500", "1 2", 429},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				var actors []*actor
				for i, p := range strings.Fields(tt.plays) {
					a := net.actor(t, string(rune('a'+i)), well)
					a.FirstTokenTimeout = 5 * time.Second
					switch p {
					case "well":
					case "cut":
						a.fares(first(hangsUp, firstHead))
					case "silent":
						a.fares(silent)
					case "lost":
						a.fares(hangsUp)
					case "refused":
						a.refuses()
					case "429-1s":
						a.fares(func(w http.ResponseWriter, r *http.Request, q asked) {
							w.Header().Set("Retry-After", "1")
							answers(429)(w, r, q)
						})
					default:
						code := map[string]int{"529": 529, "500": 500, "401": 401, "429": 429}[p]
						a.fares(answers(code))
					}
					actors = append(actors, a)
				}
				r := net.cast(t, router.Config{}, actors...)
				got := r.do(call{body: ask(opus, true)})
				assert.Equal(t, tt.want, got.status)
				var asked []string
				for _, a := range actors {
					asked = append(asked, itoa(len(a.got())))
				}
				assert.Equal(t, tt.asked, strings.Join(asked, " "), "requests at each provider")
			})
		})
	}
}

// However a request ends, its breaker hears of it once for each thing that happened:
// at commit, and again where a committed answer breaks.
func TestTheBreakerIsToldOnce(t *testing.T) {
	type told struct{ good, bad int }
	for name, tt := range map[string]struct {
		play   act
		json   bool
		first  told
		second told
	}{
		"served":                 {play: well, first: told{1, 0}},
		"served JSON":            {play: well, json: true, first: told{1, 0}},
		"client's mistake":       {play: answers(400)},
		"limited":                {play: answers(429), second: told{1, 0}},
		"dead key":               {play: answers(401), second: told{1, 0}},
		"forbidden":              {play: answers(403), second: told{1, 0}},
		"spent":                  {play: answers(402), second: told{1, 0}},
		"busy":                   {play: answers(529), first: told{0, 1}, second: told{1, 0}},
		"503":                    {play: answers(503), first: told{0, 1}, second: told{1, 0}},
		"broken":                 {play: answers(500), first: told{0, 1}, second: told{1, 0}},
		"moved":                  {play: answers(302), first: told{0, 1}, second: told{1, 0}},
		"silent":                 {play: silent, first: told{0, 1}, second: told{1, 0}},
		"lost":                   {play: hangsUp, first: told{0, 1}, second: told{1, 0}},
		"cut before content":     {play: first(hangsUp, firstHead), first: told{0, 1}, second: told{1, 0}},
		"busy before content":    {play: first(nil, errorFrame("overloaded_error")), first: told{0, 1}, second: told{1, 0}},
		"limited before content": {play: first(nil, errorFrame("rate_limit_error")), second: told{1, 0}},
		"mistake before content": {play: first(nil, errorFrame("invalid_request_error"))},
		"cut after content":      {play: sends(hangsUp, startFrame, deltaFrame), first: told{1, 1}},
		"silent after content":   {play: sends(silent, startFrame, deltaFrame), first: told{1, 1}},
		"ends after content":     {play: sends(nil, startFrame, deltaFrame), first: told{1, 1}},
		"busy after content":     {play: sends(nil, startFrame, errorFrame("overloaded_error")), first: told{1, 1}},
		"limited after content":  {play: sends(nil, startFrame, errorFrame("rate_limit_error")), first: told{1, 0}},
		"mistake after content":  {play: sends(nil, startFrame, errorFrame("invalid_request_error")), first: told{1, 0}},
		"cut with the content":   {play: sends(hangsUp, startFrame+deltaFrame[:9]), first: told{1, 1}},
		"JSON cut":               {play: jsonOf(`{"type":`, hangsUp), json: true, first: told{0, 1}, second: told{1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", tt.play), net.actor(t, "b", well)
				a.FirstTokenTimeout, a.IdleTimeout = time.Second, time.Second
				r := net.cast(t, router.Config{}, a, b)
				r.do(call{body: ask(opus, !tt.json)})
				r.requireSamples(t, "a", tt.first.good, tt.first.bad)
				r.requireSamples(t, "b", tt.second.good, tt.second.bad)
				assert.Empty(t, r.inFlight(), "leases")
			})
		})
	}
	// A lone provider whose answer was shown before it had content: its first attempt
	// has timed out, the second is judged by how it ends.
	for name, tt := range map[string]struct {
		then act
		good int
		bad  int
	}{
		"content comes":            {after(2*time.Second, writes(nil, blockFrame+stopFrame)), 1, 1},
		"content comes, and a cut": {after(2*time.Second, writes(hangsUp, blockFrame)), 1, 2},
		"a cut":                    {after(2*time.Second, hangsUp), 0, 2},
		"silence":                  {silent, 0, 2},
		"an error":                 {after(2*time.Second, writes(nil, errorFrame("overloaded_error"))), 0, 2},
		"the client's mistake":     {after(2*time.Second, writes(nil, errorFrame("invalid_request_error"))), 0, 1},
	} {
		t.Run("shown, then "+name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.actor(t, "a", sends(tt.then, headFrame))
				a.FirstTokenTimeout, a.IdleTimeout = time.Second, 5*time.Second
				r := net.cast(t, router.Config{}, a)
				got := r.do(call{body: ask(opus, true)})
				assert.Equal(t, 200, got.status)
				r.requireSamples(t, "a", tt.good, tt.bad)
			})
		})
	}
	t.Run("shown, then the client leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a := net.actor(t, "a", sends(silent, headFrame))
			a.FirstTokenTimeout = time.Second
			r := net.cast(t, router.Config{}, a)
			r.leaves(call{body: ask(opus, true)}, 10*time.Second)
			require.Len(t, a.got(), 2)
			r.requireSamples(t, "a", 0, 1)
		})
	})
}

// A wait that a provider names reaches the client in the form that clients read, or not
// at all.
func TestRetryAfterIsWholeSeconds(t *testing.T) {
	for told, want := range map[string]string{"0.4": "1", "7.2": "8", "3600": "3600", "Sat, 01 Jan 2000 00:00:20 GMT": "20", "soon": "", "-5": ""} {
		t.Run(told, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // it begins with the year 2000
				net := newPipes()
				a := net.actor(t, "a", func(w http.ResponseWriter, r *http.Request, q asked) {
					w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
					w.Header().Set("Retry-After", told)
					answers(503)(w, r, q)
				})
				r := net.cast(t, router.Config{}, a)
				assert.Equal(t, want, r.do(call{body: ask(opus, true)}).header.Get("Retry-After"))
			})
		})
	}
}
