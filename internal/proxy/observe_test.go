package proxy_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"cc-relay/internal/health"
	"cc-relay/internal/metrics"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/trace"
)

// observed is a relay with everything on that looks at requests.
type observed struct {
	*relay
	tracer *trace.Tracer
	mu     sync.Mutex
	spans  []*otlp.Span
	raw    strings.Builder // what the collector was sent
}

func observe(t *testing.T, r *relay, propagate bool) *observed {
	o := &observed{relay: r}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		var msg collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &msg); err != nil {
			t.Errorf("the collector got %v", err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.raw.Write(body)
		for _, rs := range msg.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				o.spans = append(o.spans, ss.Spans...)
			}
		}
	}))
	t.Cleanup(srv.Close)
	var err error
	o.tracer, err = trace.New(trace.Config{Endpoint: srv.URL, Sample: 1, Propagate: propagate}, "1", nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = o.tracer.Close(context.Background()) })
	r.live.Metrics, r.live.Trace = metrics.New(metrics.Options{}), o.tracer
	r.handler.Swap(r.live)
	return o
}

// scrape is what Prometheus gets.
func (o *observed) scrape() string {
	w := httptest.NewRecorder()
	o.live.Metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var ours []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "cc_relay_") && !strings.Contains(line, "_bucket{") {
			ours = append(ours, line)
		}
	}
	return strings.Join(ours, "")
}

// sentSpans is what the collector was sent, as it was sent.
func (o *observed) sentSpans() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.raw.String()
}

func (o *observed) explain(t *testing.T, got reply) proxy.Account {
	t.Helper()
	a, ok := o.handler.Explain(got.header.Get("X-Cc-Relay-Request-Id"))
	require.True(t, ok, "no account of the request")
	return a
}

func attributes(s *otlp.Span) map[string]string {
	m := map[string]string{}
	for _, kv := range s.Attributes {
		m[kv.Key] = strings.Trim(kv.Value.String()[strings.Index(kv.Value.String(), ":")+1:], `"`)
	}
	return m
}

// The trace of a request that a second provider served arrives whole, below the span
// of the client that asked for it.
func TestTheTraceOfARequestWithOneFailover(t *testing.T) {
	a, b := newSim(t, "a", 1, key(1, status(529))), newSim(t, "b", 1)
	for name, propagate := range map[string]bool{"kept": false, "handed on": true} {
		t.Run(name, func(t *testing.T) {
			o := observe(t, relayOf(t, a, b), propagate)
			const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
			got := o.do(call{body: ask(opus, true), header: http.Header{"Traceparent": {parent}, "Tracestate": {"x=1"}, "Baggage": {"user=secret"}}})
			require.Equal(t, 200, got.status)
			require.NoError(t, o.tracer.Close(context.Background()))
			require.Len(t, o.spans, 3)
			byKind := map[otlp.Span_SpanKind][]*otlp.Span{}
			for _, s := range o.spans {
				byKind[s.Kind] = append(byKind[s.Kind], s)
				assert.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", hex.EncodeToString(s.TraceId))
			}
			server, tries := byKind[otlp.Span_SPAN_KIND_SERVER], byKind[otlp.Span_SPAN_KIND_CLIENT]
			require.Len(t, server, 1)
			require.Len(t, tries, 2)
			root := server[0]
			assert.Equal(t, "00f067aa0ba902b7", hex.EncodeToString(root.ParentSpanId))
			assert.Contains(t, attributes(root)["cc_relay.request_id"], "req_relay_")
			for i, want := range []struct{ upstream, verdict string }{{"a", "overloaded"}, {"b", "served"}} {
				assert.Equal(t, root.SpanId, tries[i].ParentSpanId)
				assert.Equal(t, want.verdict, attributes(tries[i])["cc_relay.verdict"], "%v", attributes(tries[i]))
				assert.LessOrEqual(t, root.StartTimeUnixNano, tries[i].StartTimeUnixNano)
				assert.GreaterOrEqual(t, root.EndTimeUnixNano, tries[i].EndTimeUnixNano)
			}
			seen := b.Seen()
			head := seen[len(seen)-1].Header
			assert.Empty(t, head["Baggage"])
			assert.Empty(t, head["Tracestate"])
			if propagate {
				assert.Equal(t, "00-4bf92f3577b34da6a3ce929d0e0e4736-"+hex.EncodeToString(tries[1].SpanId)+"-01", head.Get("Traceparent"))
			} else {
				assert.Empty(t, head["Traceparent"])
			}
		})
	}
}

func TestWhatIsCountedOfARequest(t *testing.T) {
	a, b := newSim(t, "a", 1, key(1, status(529))), newSim(t, "b", 1)
	o := observe(t, relayOf(t, a, b), false)
	require.Equal(t, 200, o.do(call{body: ask(opus, true)}).status)
	require.Equal(t, 529, o.do(call{body: ask("acme-invented-model-9", false)}).status, "the second does not know it")
	require.Equal(t, 401, o.do(call{token: "unheard-of", body: ask(opus, true)}).status)
	text := o.scrape()
	for _, want := range []string{
		`cc_relay_requests_total{class="opus-5-5",client="alice",outcome="served",provider="b",status="200"} 1`,
		`cc_relay_requests_total{class="other",client="alice",outcome="failed",provider="a",status="529"} 1`,
		`cc_relay_requests_total{class="none",client="none",outcome="refused",provider="none",status="401"} 1`,
		`cc_relay_attempts_total{class="opus-5-5",provider="a",verdict="overloaded"} 1`,
		`cc_relay_attempts_total{class="opus-5-5",provider="b",verdict="served"} 1`,
		`cc_relay_tokens_total{class="opus-5-5",client="alice",kind="output",provider="b"} 12`,
		`cc_relay_time_to_first_token_seconds_count{class="opus-5-5",provider="b"} 1`,
	} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "invented")
	assert.Regexp(t, `cc_relay_event_lag_seconds_count [1-9]`, text)
	assert.Regexp(t, `cc_relay_overhead_seconds_count [1-9]`, text)
	total := o.handler.Totals()
	assert.Equal(t, proxy.Totals{Requests: 3, Served: 1, Failed: 1, Refused: 1, Failovers: 1, Input: total.Input, Output: 12}, total)
}

func TestAnAccountOfARequest(t *testing.T) {
	a, b := newSim(t, "a", 2, key(1, status(429))), newSim(t, "b", 1)
	o := observe(t, relayOf(t, a, b), false)
	body := strings.Replace(ask(opus, true), "hello", "the prompt 4711", 1)
	var got reply
	require.Eventually(t, func() bool { // until the first key was tried
		got = o.do(call{body: body, header: http.Header{"X-Claude-Code-Session-Id": {"session-4711"}}})
		return got.header.Get("X-Cc-Relay-Attempts") == "2"
	}, patient, time.Millisecond)
	acc := o.explain(t, got)
	assert.Equal(t, "alice", acc.Client)
	assert.Equal(t, opus, acc.Model)
	assert.Equal(t, "opus-5-5", acc.Class)
	assert.Equal(t, "default", acc.Rule)
	assert.Equal(t, router.StrategyFailover, acc.Strategy)
	assert.Equal(t, "served", acc.Outcome)
	assert.Equal(t, 200, acc.Status)
	assert.Positive(t, acc.TTFT)
	assert.Positive(t, acc.Overhead)
	assert.LessOrEqual(t, acc.Overhead, acc.TTFT)
	assert.Equal(t, 12, acc.Tokens.Output)
	require.Len(t, acc.Steps, 2)
	for i, want := range []string{"limited", "served"} {
		s := acc.Steps[i]
		assert.Equal(t, want, s.Verdict)
		require.NotNil(t, s.Choice)
		assert.Equal(t, s.Key, s.Choice.Key)
		assert.Equal(t, 2, s.Choice.Considered)
		assert.Len(t, s.Choice.Keys, 2)
	}
	assert.NotEqual(t, acc.Steps[0].Key, acc.Steps[1].Key)
	text, err := json.Marshal(acc)
	require.NoError(t, err)
	assert.NotContains(t, string(text), "4711", "prompt or session")
	again := o.do(call{body: body, header: http.Header{"X-Claude-Code-Session-Id": {"session-4711"}}})
	assert.Equal(t, acc.Conversation, o.explain(t, again).Conversation)
}

// The last thousand are kept, whatever is asked of the ones before, and refused
// strangers push nobody out.
func TestAThousandAccountsAreKept(t *testing.T) {
	live := newLive(t, setup{upstreams: []upstream{memory(answering("application/json", func() io.Reader { return strings.NewReader(message) }))}}, newLogs().logger())
	h := proxy.NewHandler(live, newLogs().logger())
	var ids []string
	for range 1100 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, aliceRequest(ask(opus, false)))
		require.Equal(t, 200, w.Code)
		ids = append(ids, w.Header().Get("X-Cc-Relay-Request-Id"))
		bad := aliceRequest(ask(opus, false))
		bad.Header.Set("X-Api-Key", "unheard-of")
		h.ServeHTTP(httptest.NewRecorder(), bad)
	}
	for i, id := range ids {
		_, ok := h.Explain(id)
		assert.Equal(t, i >= 100, ok, i)
	}
	_, ok := h.Explain("")
	assert.False(t, ok)
	recent := h.Recent(2000)
	require.Len(t, recent, 1000)
	assert.Equal(t, ids[1099], recent[0].ID)
	assert.Equal(t, ids[100], recent[999].ID)
	assert.Len(t, h.Recent(3), 3)
}

// Accounts of choices are used again. A request whose client has gone before anything
// was chosen shows an empty one, not what an earlier request chose.
func TestAChoiceThatWasNotMadeIsEmpty(t *testing.T) {
	live := newLive(t, setup{upstreams: []upstream{memory(answering("application/json", func() io.Reader { return strings.NewReader(message) }))}}, newLogs().logger())
	h := proxy.NewHandler(live, newLogs().logger())
	for range 1050 { // the last ones push the first out
		w := httptest.NewRecorder()
		h.ServeHTTP(w, aliceRequest(ask(opus, false)))
		require.Equal(t, 200, w.Code)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	for range 20 {
		assert.PanicsWithValue(t, http.ErrAbortHandler, func() { h.ServeHTTP(httptest.NewRecorder(), aliceRequest(ask(opus, false)).WithContext(gone)) })
		acc := h.Recent(1)[0]
		require.Equal(t, "client_gone", acc.Outcome)
		require.Len(t, acc.Steps, 1)
		text, err := json.Marshal(acc.Steps[0].Choice)
		require.NoError(t, err)
		require.JSONEq(t, `{"class":"","strategy":"","outcome":"","home":false,"waited_ms":0,"budget_ms":0,"estimate":{"input":0,"cached":0,"output":0},"considered":0,"keys":[]}`, string(text))
	}
}

// A breaker that would keep the request away is told of, where there is no other way too.
func TestADryRunMeetsAnOpenBreaker(t *testing.T) {
	r := relayOf(t, newSim(t, "a", 1))
	for state, want := range map[health.State]string{health.Open: "breaker_open", health.Closed: "serves"} {
		r.lane("a", opus).Hold(state, time.Hour)
		plan, err := r.handler.DryRun(proxy.Trial{Model: opus, Tokens: 1000, MaxTokens: 64, Client: "alice"})
		require.NoError(t, err)
		require.Len(t, plan.Steps, 1)
		assert.Equal(t, want, plan.Steps[0].Verdict)
	}
}

// A dry run tells where a request would go, and leaves everything as it was.
func TestADryRunChangesNothing(t *testing.T) {
	a, b := newSim(t, "a", 2), newSim(t, "b", 1)
	s := setup{upstreams: []upstream{a.upstream, b.upstream}, routes: router.Config{Strategy: router.StrategyRoundRobin}}
	r := newRelay(t, s)
	require.Equal(t, 200, r.do(call{body: ask(opus, false)}).status)
	var pools []any
	look := func() []any {
		pools = nil
		for _, up := range r.live.Router.Upstreams() {
			pools = append(pools, up.Pool.GetStats())
		}
		return pools
	}
	before := look()
	plan, err := r.handler.DryRun(proxy.Trial{Model: opus, Tokens: 1000, MaxTokens: 64, Client: "alice"})
	require.NoError(t, err)
	require.Len(t, plan.Steps, 2)
	for range 5 {
		next, err := r.handler.DryRun(proxy.Trial{Model: opus, Tokens: 1000, MaxTokens: 64, Client: "alice"})
		require.NoError(t, err)
		assert.Equal(t, plan.Steps[0].Provider, next.Steps[0].Provider)
		assert.Equal(t, plan.Steps[0].Key, next.Steps[0].Key)
	}
	assert.Equal(t, "serves", plan.Steps[0].Verdict)
	assert.InDelta(t, 1000, plan.Steps[0].Choice.Estimate.Input, 1)
	after := look()
	assert.Len(t, after, len(before))
	assert.Empty(t, r.handler.Recent(10)[1:], "a dry run is no request")
	got := r.do(call{body: ask(opus, false)})
	assert.Equal(t, plan.Steps[0].Provider, got.header.Get("X-Cc-Relay-Provider"), "it did not keep its word")
	assert.Equal(t, plan.Steps[0].Key, got.header.Get("X-Cc-Relay-Key"))
}
