package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/auth"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/simulator"
)

// outOf are the keys of a provider that are out for a model, or for all, and why.
func (r *relay) outOf(name, model string) map[string]keypool.Reason {
	out := map[string]keypool.Reason{}
	for _, up := range r.live.Router.Upstreams() {
		if up.Provider.Name() != name {
			continue
		}
		for _, c := range up.Pool.GetStats().Classes {
			for _, k := range c.Keys {
				if (c.Class == keypool.ClassOf(model) || c.Class == keypool.ClassAny) && k.State == keypool.StateDead {
					out[k.ID] = k.Reason
				}
			}
		}
	}
	return out
}

// forbids is how a provider may forbid a request: by status or in a stream.
var forbids = map[string]simulator.Fault{
	"403":             status(403),
	"403, a page":     {Kind: simulator.FaultHTML, Status: 403},
	"first":           errorFirst("permission_error", "not this"),
	"in the middle":   {Kind: simulator.FaultErrorEvent, ErrorType: "permission_error", AfterEvents: 3},
	"another code":    coded(403, "feature_not_enabled"),
	"said in a text":  worded(403, "organization_on_hold"),
	"no error at all": bodied(403, `{"details":{"error_code":"organization_on_hold"}}`),
}

// What one client asks for may be forbidden as often as it likes: that says nothing of
// the keys that all use.
func TestOneClientCannotForbidAKey(t *testing.T) {
	leakFree(t)
	for name, f := range forbids {
		t.Run(name, func(t *testing.T) {
			a := newSim(t, "a", 2, f)
			r := relayOf(t, a)
			for n := range 30 {
				c := call{header: ofSession("session " + itoa(n)), body: cached(opus, "prompt "+itoa(n), true)}
				assert.NotContains(t, r.do(c).body, "message_stop")
			}
			assert.Empty(t, r.outOf("a", opus))
			require.NoError(t, a.SetFaults(nil))
			got := r.do(call{token: bobToken, body: ask(opus, true)})
			requireServed(t, got, true)
			assert.Equal(t, "1", got.header.Get("X-Cc-Relay-Attempts"))
		})
	}
	t.Run("nobody can where all are one", func(t *testing.T) {
		a := newSim(t, "a", 1, status(403))
		r := newRelay(t, setup{clients: []auth.ClientConfig{}, upstreams: []upstream{a.upstream}})
		for _, token := range []string{"one", "two", "three"} {
			assert.Equal(t, 403, r.do(call{token: token, header: ofSession(token), body: ask(opus, false)}).status)
		}
		assert.Empty(t, r.outOf("a", opus))
	})
}

// Two clients that are forbidden one after the other are a sign, for this class alone,
// and an account's own code is one at once.
func TestWhatTakesAKeyOutAfterAll(t *testing.T) {
	leakFree(t)
	alice, bob := call{body: ask(opus, false)}, call{token: bobToken, body: ask(opus, false)}
	everySecond := status(403) // from the first on
	everySecond.Every = 2
	for name, tt := range map[string]struct {
		faults []simulator.Fault
		calls  []call
		out    bool
	}{
		"two clients":            {faults(status(403)), []call{alice, bob}, true},
		"of many of one":         {faults(status(403)), []call{alice, alice, alice, bob}, true},
		"a success between":      {faults(everySecond), []call{alice, bob, bob, alice}, false},
		"success of the second":  {faults(everySecond), []call{alice, bob, alice, bob}, false},
		"other calls between":    {faults(simulator.Fault{Kind: simulator.FaultStatus, Status: 403, Path: "/v1/messages"}), []call{alice, {path: "/v1/messages/count_tokens", body: ask(opus, false)}, {method: "GET", path: "/v1/models"}, bob}, true},
		"another model between":  {faults(everySecond), []call{alice, {body: ask(haiku, false)}, bob}, true},
		"another class":          {faults(status(403)), []call{alice, {token: bobToken, body: ask(haiku, false)}}, false},
		"an account on hold":     {faults(coded(403, "organization_on_hold")), []call{alice}, true},
		"an account's billing":   {faults(coded(403, "linked_organization_billing_unavailable")), []call{alice}, true},
		"an account's own keys":  {faults(coded(403, "cmek_key_unreachable")), []call{alice}, true},
		"an account, in a frame": {faults(simulator.Fault{Kind: simulator.FaultErrorEvent, ErrorType: "permission_error", ErrorCode: "organization_on_hold"}), []call{{body: ask(opus, false)}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newSim(t, "a", 1, tt.faults...)
			r := relayOf(t, a)
			for _, c := range tt.calls {
				r.do(c)
			}
			if !tt.out {
				assert.Empty(t, r.outOf("a", opus))
				return
			}
			require.Len(t, r.outOf("a", opus), 1)
			for _, why := range r.outOf("a", opus) {
				assert.Equal(t, keypool.ReasonForbidden, why)
			}
			require.NoError(t, a.SetFaults(nil))
			before := len(a.Seen())
			assert.Equal(t, 502, r.do(alice).status)
			assert.Len(t, a.Seen(), before, "the key is not asked")
			requireServed(t, r.do(call{body: ask(haiku, false)}), false)
		})
	}
}

// A provider may repeat what a client wrote. Words about money take no key out unless
// it is the provider that speaks them.
func TestClientsCannotSpeakOfMoney(t *testing.T) {
	leakFree(t)
	wordings := []string{"Your credit balance is too low", "You have reached your specified API usage limits", "You have reached your specified workspace API usage limits"}
	said := func(status int, kind, message string) simulator.Fault {
		return simulator.Fault{Kind: simulator.FaultStatus, Status: status, Body: fmt.Sprintf(`{"type":"error","error":{"type":%q,"message":%q}}`, kind, message)}
	}
	for i, w := range wordings {
		for name, f := range map[string]simulator.Fault{
			"400, after a path":       worded(400, "messages.0.content: "+w),
			"400, a field of that":    worded(400, w+": Extra inputs are not permitted"),
			"400, a path of that":     worded(400, w+".0.x: Extra inputs are not permitted"),
			"400, quoted":             worded(400, `"`+w+`" is no role`),
			"400, after a space":      worded(400, " "+w),
			"400, after a line":       worded(400, "\n"+w),
			"400, in lower case":      worded(400, strings.ToLower(w)),
			"400, cut short":          worded(400, w[:len(w)-1]),
			"400, as api_error":       said(400, "api_error", w),
			"400, as rate limit":      said(400, "rate_limit_error", w),
			"400, as a type":          said(400, w, w),
			"400, no error":           bodied(400, `{"type":"message","error":{"type":"invalid_request_error","message":"`+w+`"}}`),
			"400, deeper":             bodied(400, `{"type":"error","error":{"type":"invalid_request_error","message":"x","inner":{"message":"`+w+`"}}}`),
			"400, as text":            bodied(400, w),
			"400, with a code":        bodied(400, `{"type":"error","error":{"type":"invalid_request_error","message":"x","details":{"error_code":"enforced_spend_limit_reached"}}}`),
			"413":                     said(413, "invalid_request_error", w),
			"422":                     said(422, "invalid_request_error", w),
			"404":                     worded(404, w),
			"404, a model of that":    worded(404, "model: "+w),
			"403":                     worded(403, w),
			"429":                     worded(429, w),
			"429, another code":       bodied(429, `{"type":"error","error":{"type":"rate_limit_error","message":"`+w+`","details":{"error_code":"ramp_limit_exceeded"}}}`),
			"429, a code in words":    worded(429, `"details":{"error_code":"enforced_spend_limit_reached"}`),
			"429, a code outside":     bodied(429, `{"type":"error","error":{"type":"rate_limit_error","message":"x"},"details":{"error_code":"enforced_spend_limit_reached"}}`),
			"429, a code elsewhere":   bodied(429, `{"type":"error","error":{"type":"rate_limit_error","message":"x","error_code":"enforced_spend_limit_reached"}}`),
			"500":                     worded(500, w),
			"529":                     worded(529, w),
			"first":                   errorFirst("invalid_request_error", "messages.0: "+w),
			"first, as rate limit":    errorFirst("rate_limit_error", w),
			"first, as api_error":     errorFirst("api_error", w),
			"in the middle":           {Kind: simulator.FaultErrorEvent, ErrorType: "invalid_request_error", Message: "messages.0: " + w, AfterEvents: 3},
			"in the middle, as other": {Kind: simulator.FaultErrorEvent, ErrorType: "api_error", Message: w, AfterEvents: 3},
		} {
			t.Run(fmt.Sprintf("%d, %s", i+1, name), func(t *testing.T) {
				a := newSim(t, "a", 1, f)
				r := relayOf(t, a)
				for n := range 3 {
					r.do(call{header: ofSession(itoa(n)), body: ask(opus, n%2 == 0)})
				}
				assert.Empty(t, r.outOf("a", opus))
				require.NotEmpty(t, a.Seen())
			})
		}
	}
	t.Run("as a model, as a text, as an answer", func(t *testing.T) {
		a := startSim(t, "a", 1, simulator.Config{Reply: func(req simulator.Request) simulator.Reply {
			return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: req.UserText}}}
		}})
		r := relayOf(t, a)
		for _, w := range wordings {
			assert.Equal(t, 404, r.do(call{body: ask(w, false)}).status)
			error := `{"type":"error","error":{"type":"invalid_request_error","message":"` + w + `"}}`
			for _, text := range []string{w, error, "event: error\ndata: " + error + "\n\n"} {
				for _, stream := range []bool{false, true} {
					c := saying(aliceToken, "x")
					c.body = strings.Replace(ask(opus, stream), `"hello"`, fmt.Sprintf("%q", text), 1)
					got := r.do(c)
					require.Equal(t, 200, got.status)
					assert.Equal(t, "served", got.record["outcome"])
				}
			}
		}
		assert.Empty(t, r.outOf("a", opus))
	})
	t.Run("but the provider can", func(t *testing.T) {
		for _, w := range wordings {
			r := relayOf(t, newSim(t, "a", 1, worded(400, w+". More of it.")))
			requireError(t, r.do(call{body: ask(opus, false)}), 429, "billing_error")
			assert.Len(t, r.outOf("a", opus), 1)
		}
	})
}

// crowded is a relay without a network before a provider that knows three models.
type crowded struct {
	*router.Upstream
	handler *proxy.Handler
	broken  bool // it fails for those
}

func newCrowded(t *testing.T, routes router.Config) *crowded {
	t.Helper()
	c := &crowded{}
	live := newLive(t, setup{routes: routes, upstreams: []upstream{memory(roundTrip(func(r *http.Request) (*http.Response, error) {
		var body []byte
		if r.Body != nil {
			body, _ = io.ReadAll(r.Body)
			_ = r.Body.Close()
		}
		status, said := 200, `{"type":"message","usage":{"input_tokens":5,"output_tokens":5}}`
		switch {
		case !strings.Contains(string(body), `"model":"claude-`):
			status, said = 404, `{"type":"error","error":{"type":"not_found_error","message":"model: unknown"}}`
		case c.broken:
			status, said = 500, `{"type":"error","error":{"type":"api_error","message":"broken"}}`
		}
		return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: -1, Request: r, Body: io.NopCloser(strings.NewReader(said))}, nil
	}))}}, zerolog.Nop())
	c.Upstream, c.handler = live.Router.Upstreams()[0], proxy.NewHandler(live, zerolog.Nop())
	return c
}

func (c *crowded) ask(model string) int {
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, aliceRequest(ask(model, false)))
	return w.Code
}

// invents asks for models from one number to before another.
func (c *crowded) invents(t *testing.T, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		require.Equal(t, 404, c.ask(invented(n)))
	}
}

// invented is the name of a model that nobody has heard of, each a class of its own.
func invented(n int) string { return fmt.Sprintf("invented-%d-%s", n, strings.Repeat("x", 100)) }

func (c *crowded) lane(class string) *router.Lane {
	for _, l := range c.Lanes() {
		if l.Class == class {
			return l
		}
	}
	return nil
}

// Whatever models clients invent, what is remembered of them is bounded.
func TestInventedModelsFillNoMemory(t *testing.T) {
	c := newCrowded(t, router.Config{})
	const many = 1500
	c.invents(t, 0, many)
	assert.Len(t, c.Lanes(), 256, "classes with a breaker")
	assert.LessOrEqual(t, len(c.Pool.GetStats().Classes), 256, "classes with limits")
	now := time.Now()
	assert.True(t, c.Lacks(invented(many-1), now))
	assert.True(t, c.Lacks(invented(many-1000), now))
	assert.False(t, c.Lacks(invented(many-1001), now), "of a thousand models it is known that they are unknown")
	for n := range 300 { // by their path, too
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/v1/models/"+invented(n), nil)
		r.Host = "relay"
		r.Header.Set("X-Api-Key", aliceToken)
		c.handler.ServeHTTP(w, r)
	}
	assert.Len(t, c.Lanes(), 256)
	assert.LessOrEqual(t, len(c.Pool.GetStats().Classes), 256)
	c.handler.Stop()
	require.Eventually(t, func() bool { return c.InFlight() == 0 }, patient, time.Millisecond)
}

// Names that no rule leads anywhere leave nothing behind.
func TestModelsOutOfReachLeaveNothing(t *testing.T) {
	c := newCrowded(t, router.Config{Rules: []router.Rule{to("claude-*", "a")}})
	require.Equal(t, 200, c.ask(opus))
	lanes, classes := len(c.Lanes()), len(c.Pool.GetStats().Classes)
	c.invents(t, 0, 600)
	assert.Len(t, c.Lanes(), lanes)
	assert.Len(t, c.Pool.GetStats().Classes, classes)
	assert.False(t, c.Lacks(invented(0), time.Now()))
}

// An open breaker is not lost by inventing models, short of as many as there are
// places for classes, all since a request of its own class came.
func TestInventedModelsKeepABreakerOpen(t *testing.T) {
	c := newCrowded(t, router.Config{})
	c.broken = true
	for range 5 {
		c.ask(opus)
	}
	lane := c.lane("opus-5-5")
	require.Equal(t, health.Open, lane.Status().State)
	lane.Hold(health.Open, time.Hour) // the test may take longer than 5 s
	cool := func() keypool.State {
		for _, class := range c.Pool.GetStats().Classes {
			if class.Class == "haiku-5-5" {
				return class.Keys[0].State
			}
		}
		return "forgotten"
	}
	c.Pool.MarkClassExhausted(c.Pool.Keys()[0].ID, "haiku-5-5", time.Hour)

	c.invents(t, 0, 200)
	assert.Same(t, lane, c.lane("opus-5-5"))
	assert.Equal(t, keypool.StateCooling, cool(), "nor is what keys are told of their limits")
	c.invents(t, 200, 255)
	assert.Same(t, lane, c.lane("opus-5-5"), "255 others have room beside it")
	c.ask(opus) // whoever asks for it keeps it
	c.invents(t, 1000, 1255)
	assert.Same(t, lane, c.lane("opus-5-5"))
	c.invents(t, 1255, 1256)
	assert.Nil(t, c.lane("opus-5-5"), "that is the bound")
}

// A session for each request is a conversation for each; what is remembered of them is
// bounded, and real ones are not lost to a few.
func TestInventedSessionsFillNoMemory(t *testing.T) {
	leakFree(t)
	a, b := newSim(t, "a", 2), newSim(t, "b", 1)
	r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}})
	turn := call{header: ofSession("real"), body: cached(opus, "real", false)}
	requireServed(t, r.do(turn), false)
	for n := range 300 {
		c := call{token: bobToken, header: ofSession("invented-" + itoa(n)), body: cached(opus, "invented", false)}
		requireServed(t, r.do(c), false)
	}
	assert.Len(t, r.live.Router.Upstreams()[0].Pool.Snapshot().Homes, 301)
	before := len(a.Seen())
	requireServed(t, r.do(turn), false)
	require.Len(t, a.Seen(), before+1)
	assert.Equal(t, a.Seen()[0].Key, a.Seen()[before].Key, "it is still at home")
}

// The bound at the router; the pool's is the same.
func TestHomesAreBounded(t *testing.T) {
	const bound = 100_000
	live := newLive(t, setup{upstreams: []upstream{newSim(t, "a", 1).upstream, newSim(t, "b", 1).upstream}}, zerolog.Nop())
	up := live.Router.Upstreams()[1]
	now := time.Now()
	at := func(conversation uint64) string {
		plan, err := live.Router.Plan(&router.Query{Model: opus, Class: "opus-5-5", Client: "bob", Conversation: conversation, Now: now})
		require.NoError(t, err)
		return plan.Candidates[0].Upstream.Provider.Name()
	}
	for n := range uint64(bound) {
		live.Router.Settle(n+1, up, "", time.Hour, now)
	}
	assert.Equal(t, "b", at(1)) // and now it is the youngest
	live.Router.Settle(bound+1, up, "", time.Hour, now)
	assert.Equal(t, "b", at(1))
	assert.Equal(t, "a", at(2), "forgotten")
	assert.Equal(t, "b", at(3))
}
