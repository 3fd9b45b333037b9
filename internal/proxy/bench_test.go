package proxy_test

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"cc-relay/internal/metrics"
	"cc-relay/internal/proxy"
)

// discard is a client that reads everything and keeps nothing.
type discard struct {
	header http.Header
	n      int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Flush()              {}
func (d *discard) Write(p []byte) (int, error) {
	d.n += len(p)
	return len(p), nil
}

// reused is a request body that can be read again.
type reused struct{ bytes.Reader }

func (r *reused) Close() error { return nil }

// BenchmarkMetrics is one small request, not counted and counted.
func BenchmarkMetrics(b *testing.B) {
	for _, bm := range []struct {
		name string
		m    *metrics.Metrics
	}{{"off", nil}, {"on", metrics.New(metrics.Options{})}} {
		b.Run("metrics="+bm.name, func(b *testing.B) {
			h, req := countedHandler(b, bm.m)
			body, sent := &reused{}, []byte(ask(opus, false))
			w := &discard{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(sent)
				req.Body = body
				clear(w.header)
				h.ServeHTTP(w, req)
			}
		})
	}
}

func countedHandler(tb testing.TB, m *metrics.Metrics) (*proxy.Handler, *http.Request) {
	answer := func() io.Reader { return strings.NewReader(message) }
	live := newLive(tb, setup{upstreams: []upstream{memory(answering("application/json", answer))}}, zerolog.Nop())
	live.Metrics = m
	return proxy.NewHandler(live, zerolog.New(io.Discard).Level(zerolog.InfoLevel)), aliceRequest(ask(opus, false))
}

// BenchmarkHandler is one request from client to provider and back, without a
// network: what the relay itself costs.
func BenchmarkHandler(b *testing.B) {
	small := ask(opus, false)
	large := strings.Replace(ask(opus, false), "hello", strings.Repeat("lorem ipsum \\\"dolor\\\" ", 200<<10/22), 1)
	fifty := startFrame + strings.Repeat(deltaFrame, 47) + usageFrame + stopFrame
	for _, bm := range []struct{ name, body, kind, answer string }{
		{"small JSON", small, "application/json", message},
		{"200 KB body", large, "application/json", message},
		{"50 events", ask(opus, true), "text/event-stream", fifty},
		{"50 events, read one by one", ask(opus, true), "one by one", fifty},
	} {
		b.Run(bm.name, func(b *testing.B) {
			answer := func() io.Reader { return strings.NewReader(bm.answer) }
			kind := bm.kind
			if kind == "one by one" {
				kind = "text/event-stream"
				var cuts []int
				for at := 0; at < len(fifty); at += len(deltaFrame) {
					cuts = append(cuts, at)
				}
				reads := inPieces([]byte(fifty), cuts...).left
				answer = func() io.Reader { return &pieces{left: slices.Clone(reads)} }
			}
			live := newLive(b, setup{upstreams: []upstream{memory(answering(kind, answer))}}, zerolog.Nop())
			h := proxy.NewHandler(live, zerolog.New(io.Discard).Level(zerolog.InfoLevel))
			req := aliceRequest(bm.body)
			body, sent := &reused{}, []byte(bm.body)
			w := &discard{header: http.Header{}}
			b.SetBytes(int64(len(bm.body) + len(bm.answer)))
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(sent)
				req.Body = body
				clear(w.header)
				w.n = 0
				h.ServeHTTP(w, req)
				if w.n != len(bm.answer) {
					b.Fatalf("got %d bytes, want %d", w.n, len(bm.answer))
				}
			}
		})
	}
}
