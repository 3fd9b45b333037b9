package trace_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/trace"
)

// whole is what the relay does for a request with one attempt.
func whole(tr *trace.Tracer, h http.Header, at time.Time) {
	span := tr.Start(h, at, "POST", "/v1/messages")
	a := span.Attempt(at)
	_ = a.Traceparent()
	if a.Recording() {
		a.End(trace.AttemptResult{End: at, Kind: "anthropic", Upstream: "main", Host: "api.anthropic.com", Port: 443, KeyID: "key-1", Model: "claude-sonnet-4-5", Status: 200})
	}
	if span.Recording() {
		span.End(trace.Result{End: at, RequestID: "req_relay_1", Client: "ann", Model: "claude-sonnet-4-5", KeyID: "key-1", Attempts: 1, Status: 200})
	}
}

func TestTracingThatIsOffAllocatesNothing(t *testing.T) {
	h, at := header(sampled), time.Now()
	assert.Zero(t, testing.AllocsPerRun(100, func() { whole(nil, h, at) }))

	tr := start(t, trace.Config{Endpoint: "http://127.0.0.1:1"}, nil)
	assert.Zero(t, testing.AllocsPerRun(100, func() { whole(tr, nil, at) }), "not sampled")
}

func BenchmarkRequest(b *testing.B) {
	rec := newUnstarted(func(int, http.ResponseWriter) {})
	rec.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	rec.Start()
	defer rec.Close()
	for _, bc := range []struct {
		name string
		cfg  trace.Config
	}{
		{name: "off"},
		{name: "not sampled", cfg: trace.Config{Endpoint: rec.URL}},
		{name: "not sampled, handed on", cfg: trace.Config{Endpoint: rec.URL, Propagate: true}},
		{name: "traced", cfg: trace.Config{Endpoint: rec.URL, Sample: 1}},
		{name: "traced, handed on", cfg: trace.Config{Endpoint: rec.URL, Sample: 1, Propagate: true}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			tr, err := trace.New(bc.cfg, version, nil)
			require.NoError(b, err)
			h, at := http.Header{}, time.Now()
			b.ReportAllocs()
			for b.Loop() {
				whole(tr, h, at)
			}
			b.StopTimer()
			_ = tr.Close(b.Context())
			b.ReportMetric(float64(tr.Dropped())/float64(b.N), "dropped/op")
		})
	}
}

// Each step of a request where tracing is off.
func BenchmarkOff(b *testing.B) {
	var off *trace.Tracer
	h, at := http.Header{}, time.Now()
	b.Run("Start", func(b *testing.B) {
		for b.Loop() {
			off.Start(h, at, "POST", "/v1/messages")
		}
	})
	b.Run("Attempt", func(b *testing.B) {
		var s trace.Span
		for b.Loop() {
			s.Attempt(at)
		}
	})
	b.Run("End", func(b *testing.B) {
		var s trace.Span
		for b.Loop() {
			s.End(trace.Result{Client: "ann", Attempts: 1, Status: 200})
		}
	})
}
