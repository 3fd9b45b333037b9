package trace_test

import (
	"encoding/hex"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	otlp "go.opentelemetry.io/proto/slim/otlp/trace/v1"

	"cc-relay/internal/trace"
)

const (
	traceID  = "0af7651916cd43dd8448eb211c80319c"
	parentID = "b7ad6b7169203331"
	sampled  = "00-" + traceID + "-" + parentID + "-01"
)

// twoAttempts is a request whose first attempt was limited.
func twoAttempts(tr *trace.Tracer, h http.Header, at time.Time) (traceparents []string) {
	span := tr.Start(h, at, "POST", "/v1/messages")
	first := span.Attempt(at.Add(10 * time.Millisecond))
	first.End(trace.AttemptResult{
		End: at.Add(50 * time.Millisecond), Kind: "anthropic", Upstream: "main", Host: "api.anthropic.com", Port: 443,
		KeyID: "key-1", Class: "sonnet", Model: "claude-sonnet-4-5", Verdict: "limited", Status: 429, Error: "limited",
	})
	second := span.Attempt(at.Add(60 * time.Millisecond))
	second.End(trace.AttemptResult{
		End: at.Add(900 * time.Millisecond), Kind: "bedrock", Upstream: "aws", Host: "bedrock.example", Port: 8443,
		KeyID: "key-2", Class: "sonnet", Model: "claude-sonnet-4-5", ResponseModel: "claude-sonnet-4-5-20250929", Verdict: "served", Status: 200,
		Tokens: trace.Tokens{Input: 1000, CacheRead: 700, CacheWrite: 200, Output: 50},
	})
	span.End(trace.Result{
		End: at.Add(time.Second), RequestID: "req_relay_1", Client: "ann", Model: "claude-sonnet-4-5", Class: "sonnet", KeyID: "key-2",
		Upstream: "aws", Verdict: "served", Outcome: "served", Attempts: 2, Wait: 1500 * time.Millisecond, Status: 200,
	})
	return []string{first.Traceparent(), second.Traceparent()}
}

func TestTheWholeTraceOfARequest(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Propagate: true, Headers: secrets("x-team", "blue")}, nil)
	at := time.Now()
	handed := twoAttempts(tr, header(sampled), at)
	closed(t, tr)

	require.Equal(t, 1, rec.count())
	req := rec.requests[0]
	assert.Equal(t, "POST /v1/traces application/x-protobuf blue cc-relay/1.2.3",
		strings.Join([]string{req.Method, req.URL.Path, req.Header.Get("Content-Type"), req.Header.Get("X-Team"), req.Header.Get("User-Agent")}, " "))
	about := rec.got[0].ResourceSpans[0]
	assert.Equal(t, map[string]any{"service.name": "cc-relay", "service.version": version}, values(about.Resource.Attributes))
	assert.Equal(t, "https://opentelemetry.io/schemas/1.43.0", about.SchemaUrl)

	spans := rec.spans()
	require.Len(t, spans, 3)
	first, second, server := spans[0], spans[1], spans[2]
	for _, s := range spans {
		assert.Equal(t, traceID, hex.EncodeToString(s.TraceId), s.Name)
		assert.Len(t, s.SpanId, 8)
		assert.Empty(t, s.Events)
		assert.Empty(t, s.TraceState)
	}
	assert.Equal(t, parentID, hex.EncodeToString(server.ParentSpanId))
	assert.Equal(t, server.SpanId, first.ParentSpanId)
	assert.Equal(t, server.SpanId, second.ParentSpanId)
	assert.NotEqual(t, first.SpanId, second.SpanId)
	assert.Equal(t, []uint32{0x101, 0x101, 0x301}, []uint32{first.Flags, second.Flags, server.Flags})
	assert.Equal(t, []string{
		"00-" + traceID + "-" + hex.EncodeToString(first.SpanId) + "-01",
		"00-" + traceID + "-" + hex.EncodeToString(second.SpanId) + "-01",
	}, handed)

	assert.Equal(t, "POST /v1/messages", server.Name)
	assert.Equal(t, otlp.Span_SPAN_KIND_SERVER, server.Kind)
	assert.Nil(t, server.Status)
	assert.Equal(t, uint64(at.UnixNano()), server.StartTimeUnixNano)
	assert.Equal(t, uint64(time.Second), server.EndTimeUnixNano-server.StartTimeUnixNano)
	assert.Equal(t, map[string]any{
		"http.request.method": "POST", "http.route": "/v1/messages", "http.response.status_code": int64(200),
		"gen_ai.request.model": "claude-sonnet-4-5",
		"cc_relay.request_id":  "req_relay_1", "cc_relay.client": "ann", "cc_relay.class": "sonnet", "cc_relay.key_id": "key-2",
		"cc_relay.upstream": "aws", "cc_relay.verdict": "served", "cc_relay.outcome": "served",
		"cc_relay.attempts": int64(2), "cc_relay.wait_ms": int64(1500),
	}, values(server.Attributes))

	assert.Equal(t, "chat claude-sonnet-4-5", first.Name)
	assert.Equal(t, otlp.Span_SPAN_KIND_CLIENT, first.Kind)
	assert.Equal(t, otlp.Status_STATUS_CODE_ERROR, first.Status.GetCode())
	assert.Empty(t, first.Status.GetMessage())
	assert.Equal(t, map[string]any{
		"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "claude-sonnet-4-5",
		"server.address": "api.anthropic.com", "server.port": int64(443),
		"http.request.method": "POST", "http.response.status_code": int64(429), "error.type": "limited",
		"cc_relay.upstream": "main", "cc_relay.key_id": "key-1", "cc_relay.class": "sonnet", "cc_relay.verdict": "limited",
	}, values(first.Attributes))

	assert.Nil(t, second.Status)
	assert.Equal(t, map[string]any{
		"gen_ai.operation.name": "chat", "gen_ai.provider.name": "aws.bedrock",
		"gen_ai.request.model": "claude-sonnet-4-5", "gen_ai.response.model": "claude-sonnet-4-5-20250929",
		"gen_ai.usage.input_tokens": int64(1000), "gen_ai.usage.cache_read.input_tokens": int64(700),
		"gen_ai.usage.cache_creation.input_tokens": int64(200), "gen_ai.usage.output_tokens": int64(50),
		"server.address": "bedrock.example", "server.port": int64(8443),
		"http.request.method": "POST", "http.response.status_code": int64(200),
		"cc_relay.upstream": "aws", "cc_relay.key_id": "key-2", "cc_relay.class": "sonnet", "cc_relay.verdict": "served",
	}, values(second.Attributes))
}

func TestOff(t *testing.T) {
	off, err := trace.New(trace.Config{Sample: math.NaN()}, version, nil)
	require.NoError(t, err)
	require.Nil(t, off)
	for name, span := range map[string]trace.Span{"nil Tracer": off.Start(header(sampled), time.Now(), "POST", "/v1/messages"), "zero Span": {}} {
		a := span.Attempt(time.Now())
		assert.Empty(t, a.Traceparent(), name)
		assert.False(t, span.Recording(), name)
		assert.False(t, a.Recording(), name)
		a.End(trace.AttemptResult{})
		span.End(trace.Result{})
	}
	assert.Zero(t, off.Dropped())
	closed(t, off)
}

func TestSampling(t *testing.T) {
	const unsampled = "00-" + traceID + "-" + parentID + "-00"
	for name, tc := range map[string]struct {
		sample    float64
		propagate bool
		header    http.Header
		recording bool
		handed    string // the end of it
	}{
		"root, all":                         {sample: 1, recording: true},
		"root, none":                        {sample: 0},
		"root, all, handed on":              {sample: 1, propagate: true, recording: true, handed: "-03"},
		"root, none, handed on":             {sample: 0, propagate: true, handed: "-02"},
		"parent says yes":                   {sample: 0, header: header(sampled), recording: true},
		"parent says no":                    {sample: 1, header: header(unsampled)},
		"parent says yes, handed on":        {sample: 0, propagate: true, header: header(sampled), recording: true, handed: "-01"},
		"parent says no, handed on":         {sample: 1, propagate: true, header: header(unsampled), handed: "-00"},
		"an invalid parent is no parent":    {sample: 1, propagate: true, header: header(unsampled + "!"), recording: true, handed: "-03"},
		"two parents are none":              {sample: 1, propagate: true, header: header(unsampled, unsampled), recording: true, handed: "-03"},
		"unknown flags are not handed on":   {propagate: true, header: header(sampled[:53] + "ff"), recording: true, handed: "-03"},
		"random bit of the parent survives": {propagate: true, header: header(sampled[:53] + "02"), handed: "-02"},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newReceiver(t, nil)
			tr := start(t, trace.Config{Endpoint: rec.URL, Sample: tc.sample, Propagate: tc.propagate}, nil)
			span := tr.Start(tc.header, time.Now(), "POST", "/v1/messages")
			a := span.Attempt(time.Now())
			handed := a.Traceparent()
			assert.Equal(t, tc.recording, span.Recording())
			assert.Equal(t, tc.recording, a.Recording())
			assert.Equal(t, tc.handed != "", handed != "", handed)
			assert.True(t, strings.HasSuffix(handed, tc.handed), "%s ends in %s", handed, tc.handed)
			a.End(trace.AttemptResult{})
			span.End(trace.Result{})
			closed(t, tr)
			assert.Equal(t, tc.recording, len(rec.spans()) == 2)
		})
	}
}

func TestShareOfRoots(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 0.25}, nil)
	const n = 40_000
	var yes int
	for range n {
		if tr.Start(nil, time.Now(), "POST", "/v1/messages").Recording() {
			yes++
		}
	}
	assert.InDelta(t, 0.25, float64(yes)/n, 0.02)
}

func TestRootsHaveNoParentAndIdsOfTheirOwn(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
	oneRequest(tr)
	oneRequest(tr)
	closed(t, tr)
	spans := rec.spans()
	require.Len(t, spans, 2)
	assert.NotEqual(t, spans[0].TraceId, spans[1].TraceId)
	for _, s := range spans {
		assert.Empty(t, s.ParentSpanId)
		assert.Equal(t, uint32(0x103), s.Flags)
		assert.Len(t, s.TraceId, 16)
		assert.LessOrEqual(t, s.StartTimeUnixNano, s.EndTimeUnixNano)
	}
}

// hostile are values that are no traceparent.
var hostile = []string{
	"", "-", "00", strings.Repeat("-", 55), strings.Repeat("0", 55), strings.Repeat("\x00", 55),
	"00-00000000000000000000000000000000-b7ad6b7169203331-01",
	"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
	"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	"0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
	"00-0af7651916cd43dd8448eb211c80319c-B7AD6B7169203331-01",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nx: y",
	"00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
	"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	"00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331_01",
	"00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-001",
	"00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-001",
	" " + sampled, sampled + " ", sampled + "," + sampled, sampled + "\x00",
	"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
	"zz-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	"00-０af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
	strings.Repeat("a", 1<<20), sampled + strings.Repeat("-", 1<<20), "\xff\xfe", "<script>", "${jndi:ldap://x}",
}

func TestAHostileTraceparentBeginsANewTrace(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1, Propagate: true}, nil)
	for _, value := range hostile {
		handed := tr.Start(header(value), time.Now(), "POST", "/v1/messages").Attempt(time.Now()).Traceparent()
		assert.Regexp(t, `^00-[0-9a-f]{32}-[0-9a-f]{16}-03$`, handed, "%.80q", value)
		assert.NotContains(t, handed, traceID, "%.80q", value)
	}
}

func TestLaterVersionsOfTraceparentAreReadAsVersion00(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 0, Propagate: true}, nil)
	for _, value := range []string{"01" + sampled[2:], "cc" + sampled[2:] + "-what-comes-then", "fe" + sampled[2:] + "-"} {
		handed := tr.Start(header(value), time.Now(), "POST", "/v1/messages").Attempt(time.Now()).Traceparent()
		assert.Regexp(t, "^00-"+traceID+"-[0-9a-f]{16}-01$", handed, value)
	}
}

// wellFormed is a traceparent as the standard has it, with room for what later versions
// put behind. Source: https://www.w3.org/TR/trace-context/#traceparent-header.
var wellFormed = regexp.MustCompile(`^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-(?s:.*))?$`)

// FuzzTraceparent: a well formed traceparent is gone on with, trace and known flags as
// they are, and any other begins a new trace; a span of the relay's own is handed on in
// both cases, as version 00.
func FuzzTraceparent(f *testing.F) {
	f.Add(sampled)
	f.Add("01" + sampled[2:] + "-later")
	f.Add(sampled[:len(sampled)-2] + "ff")
	for _, value := range hostile {
		f.Add(value[:min(len(value), 200)])
	}
	tr, err := trace.New(trace.Config{Endpoint: "http://127.0.0.1:1", Propagate: true}, version, nil)
	require.NoError(f, err)
	f.Cleanup(func() { _ = tr.Close(f.Context()) })
	f.Fuzz(func(t *testing.T, value string) {
		handed := tr.Start(header(value), time.Now(), "", "").Attempt(time.Now()).Traceparent()
		got := wellFormed.FindStringSubmatch(handed)
		require.NotNil(t, got, handed)
		require.Equal(t, "00", got[1])
		require.Empty(t, got[5])
		require.NotEqual(t, strings.Repeat("0", 32), got[2])
		require.NotEqual(t, strings.Repeat("0", 16), got[3])
		in := wellFormed.FindStringSubmatch(value)
		if in == nil || in[1] == "ff" || in[1] == "00" && in[5] != "" || strings.Trim(in[2], "0") == "" || strings.Trim(in[3], "0") == "" {
			require.NotContains(t, value, got[2], "a new trace")
			require.Equal(t, "02", got[4], "of random id, not sampled")
			return
		}
		require.Equal(t, in[2], got[2])
		require.NotEqual(t, in[3], got[3], "the span is the relay's")
		flags, err := hex.DecodeString(in[4])
		require.NoError(t, err)
		require.Equal(t, hex.EncodeToString([]byte{flags[0] & 3}), got[4])
	})
}

func TestWhatClientsWriteIsBoundedAndValid(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
	long, broken := strings.Repeat("ä", 1<<16), "claude\xff\xfe-\xf0\x9f"
	span := tr.Start(http.Header{"Baggage": {"user=ann"}, "Tracestate": {"a=b"}}, time.Now(), "BREW\n", "")
	span.Attempt(time.Now()).End(trace.AttemptResult{Operation: "count_tokens", Model: long, ResponseModel: broken, Host: long, Error: broken})
	span.End(trace.Result{Model: broken, Client: long, RequestID: long})
	closed(t, tr)

	spans := rec.spans()
	require.Len(t, spans, 2)
	assert.Equal(t, "HTTP", spans[1].Name)
	assert.Equal(t, "_OTHER", values(spans[1].Attributes)["http.request.method"])
	assert.Equal(t, "claude-", values(spans[1].Attributes)["gen_ai.request.model"])
	assert.True(t, strings.HasPrefix(spans[0].Name, "count_tokens ää"), spans[0].Name)
	for _, s := range spans {
		assert.Empty(t, s.TraceState)
		for key, value := range values(s.Attributes) {
			if text, ok := value.(string); ok {
				assert.LessOrEqual(t, len(text), 128, key)
				assert.True(t, utf8.ValidString(text), key)
				assert.NotContains(t, text, "user=ann", key)
			}
		}
	}
}

func TestErrorType(t *testing.T) {
	for name, tc := range map[string]struct {
		request *trace.Result
		attempt *trace.AttemptResult
		want    any // error.type; nil: no error
	}{
		"request served":               {request: &trace.Result{Status: 200}},
		"request of a client at fault": {request: &trace.Result{Status: 429}},
		"request that failed":          {request: &trace.Result{Status: 502}, want: "502"},
		"request that broke":           {request: &trace.Result{Status: 200, Error: "broken"}, want: "broken"},
		"attempt served":               {attempt: &trace.AttemptResult{Status: 200}},
		"attempt refused":              {attempt: &trace.AttemptResult{Status: 404}, want: "404"},
		"attempt without an answer":    {attempt: &trace.AttemptResult{Error: "timed_out"}, want: "timed_out"},
		"attempt broken off":           {attempt: &trace.AttemptResult{Status: 200, Error: "failed"}, want: "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newReceiver(t, nil)
			tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
			span := tr.Start(nil, time.Now(), "GET", "/v1/models")
			if tc.request != nil {
				span.End(*tc.request)
			} else {
				span.Attempt(time.Now()).End(*tc.attempt)
			}
			closed(t, tr)
			s := rec.spans()[0]
			assert.Equal(t, tc.want, values(s.Attributes)["error.type"])
			assert.Equal(t, tc.want != nil, s.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR)
		})
	}
}

// The set of attributes is closed: one more is a decision about what leaves the process.
func TestEveryAttribute(t *testing.T) {
	rec := newReceiver(t, nil)
	tr := start(t, trace.Config{Endpoint: rec.URL, Sample: 1}, nil)
	twoAttempts(tr, nil, time.Now())
	closed(t, tr)
	all := map[string]any{}
	for _, s := range rec.spans() {
		maps.Copy(all, values(s.Attributes))
	}
	assert.Equal(t, []string{
		"cc_relay.attempts", "cc_relay.class", "cc_relay.client", "cc_relay.key_id", "cc_relay.outcome", "cc_relay.request_id",
		"cc_relay.upstream", "cc_relay.verdict", "cc_relay.wait_ms", "error.type", "gen_ai.operation.name", "gen_ai.provider.name",
		"gen_ai.request.model", "gen_ai.response.model", "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_read.input_tokens",
		"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "http.request.method", "http.response.status_code", "http.route",
		"server.address", "server.port",
	}, slices.Sorted(maps.Keys(all)))
}
