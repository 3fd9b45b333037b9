package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDrain(t *testing.T) {
	leakFree(t)
	up := newStepper(t, "a")
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	answered := make(chan *http.Response, 1)
	go func() { answered <- r.open(ctx, call{body: ask(opus, true)}) }()
	up.send(t, startFrame)
	resp := <-answered
	read(t, resp, startFrame)
	assert.EqualValues(t, 1, r.handler.Active())

	r.handler.Drain()
	for _, c := range []call{
		{body: ask(opus, true)},
		{path: "/v1/messages/count_tokens", body: ask(opus, false)},
		{method: "GET", path: "/v1/models"},
	} {
		got := r.do(c)
		requireError(t, got, 529, "overloaded_error")
		assert.True(t, got.closed, "the connection stays open")
	}
	ready := r.do(call{method: "GET", path: "/readyz", token: "-"})
	assert.Equal(t, 503, ready.status)
	assert.Equal(t, "draining\n", ready.body)
	assert.Equal(t, 200, r.do(call{method: "GET", path: "/livez", token: "-"}).status)
	requireError(t, r.do(call{token: "unheard-of", body: ask(opus, true)}), 401, "authentication_error")

	up.send(t, deltaFrame+stopFrame)
	close(up.frames)
	read(t, resp, deltaFrame+stopFrame)
	_, err := resp.Body.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, "served", r.log.next(t)["outcome"])
}

// When the time to drain is over, open streams end with an error event each.
func TestStop(t *testing.T) {
	leakFree(t)
	for name, tt := range map[string]struct {
		sent    string // by the provider before the relay stops
		shown   string // of it
		aborted bool
	}{
		"between frames":       {startFrame + deltaFrame, startFrame + deltaFrame, false},
		"inside a frame":       {startFrame + deltaFrame[:20], startFrame, false},
		"inside a shown frame": {startFrame + "data: " + strings.Repeat("x", 100<<10), startFrame + "data: " + strings.Repeat("x", 60<<10), true},
	} {
		t.Run(name, func(t *testing.T) {
			up, b := newStepper(t, "a"), newSim(t, "b", 1)
			r := newRelay(t, setup{upstreams: []upstream{up.upstream, b.upstream}})
			go up.send(t, tt.sent)
			resp := r.open(t.Context(), call{body: ask(opus, true)})
			read(t, resp, tt.shown)
			r.handler.Drain()
			r.handler.Stop()
			rest := readReply(resp)
			up.requireGone(t)
			rest.record, rest.body = r.log.next(t), tt.shown+rest.body
			assert.Equal(t, "broken", rest.record["outcome"])
			assert.Empty(t, b.Seen())
			if tt.aborted {
				require.Error(t, rest.err, "the stream looks complete")
				return
			}
			requireCut(t, rest, tt.shown, "overloaded_error")
		})
	}
	t.Run("before the first frame", func(t *testing.T) {
		up, b := newStepper(t, "a"), newSim(t, "b", 1)
		r := newRelay(t, setup{upstreams: []upstream{up.upstream, b.upstream}})
		answered := make(chan reply, 1)
		go func() { answered <- r.send(call{body: ask(opus, true)}) }()
		up.send(t, pingFrame)
		r.handler.Stop()
		requireError(t, <-answered, 529, "overloaded_error")
		up.requireGone(t)
		r.log.next(t)
		assert.Empty(t, b.Seen())
	})
}

func TestAPanicEndsOneRequest(t *testing.T) {
	leakFree(t)
	said := fmt.Sprintf("key %s, body %s", keyOf("a", 1), "prompt text")
	for name, tt := range map[string]struct {
		transport roundTrip
		aborted   bool
	}{
		"in the transport": {transport: func(*http.Request) (*http.Response, error) { panic(said) }},
		"before the first frame": {transport: func(r *http.Request) (*http.Response, error) {
			_ = r.Body.Close()
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(panicking{said})}, nil
		}},
		"in the middle of a stream": {aborted: true, transport: func(r *http.Request) (*http.Response, error) {
			_ = r.Body.Close()
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(io.MultiReader(strings.NewReader(startFrame), panicking{said}))}, nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			first := true
			rest := answering("text/event-stream", func() io.Reader { return strings.NewReader(wholeStream) })
			r := newRelay(t, setup{upstreams: []upstream{memory(roundTrip(func(req *http.Request) (*http.Response, error) {
				if first {
					first = false
					return tt.transport(req)
				}
				return rest(req)
			}))}})
			got := r.do(call{body: ask(opus, true)})
			if tt.aborted {
				require.Error(t, got.err)
			} else {
				requireError(t, got, 500, "api_error")
			}
			assert.Equal(t, "panic", got.record["outcome"])
			assert.Empty(t, r.inFlight(), "leases")
			assert.Contains(t, r.log.String(), "drain_test.go", "the log says where")
			assert.NotContains(t, r.log.String(), keyOf("a", 1))
			assert.NotContains(t, r.log.String(), "prompt text")
			requireServed(t, r.do(call{body: ask(opus, true)}), true)
		})
	}
}

type panicking struct{ said string }

func (p panicking) Read([]byte) (int, error) { panic(p.said) }
