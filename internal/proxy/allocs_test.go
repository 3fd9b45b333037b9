//go:build !race

package proxy_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/metrics"
)

// Counting a request allocates nothing.
func TestMetricsAllocateNothing(t *testing.T) {
	allocs := func(m *metrics.Metrics) float64 {
		h, req := countedHandler(t, m)
		body, sent := &reused{}, []byte(ask(opus, false))
		w := &discard{header: http.Header{}}
		return testing.AllocsPerRun(2000, func() {
			body.Reset(sent)
			req.Body = body
			clear(w.header)
			h.ServeHTTP(w, req)
		})
	}
	assert.InDelta(t, allocs(nil), allocs(metrics.New(metrics.Options{})), 0.5)
}
