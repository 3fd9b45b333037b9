package router

import (
	"net/http"
	"reflect"
	"sync/atomic"
)

// connections are a transport and how many requests use it, of however many Upstreams.
type connections struct {
	transport http.RoundTripper
	requests  atomic.Int64
	retired   atomic.Bool
}

func (c *connections) begin() { c.requests.Add(1) }

func (c *connections) end() {
	if c.requests.Add(-1) == 0 && c.retired.Load() {
		c.closeIdle()
	}
}

func (c *connections) retire() {
	c.retired.Store(true)
	c.closeIdle()
}

func (c *connections) closeIdle() {
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// sameTransport reports whether both are one; functions as transports never are.
func sameTransport(a, b http.RoundTripper) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && (a == nil || reflect.ValueOf(a).Comparable()) && a == b
}
