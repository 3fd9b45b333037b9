package proxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
)

// overHTTP2 has the relay's clients come over TLS by HTTP/2, on the same pipes, in a
// bubble.
func (r *relay) overHTTP2(t *testing.T, network *pipes) {
	t.Helper()
	srv := network.server("relay.test", r.handler)
	srv.Config.BaseContext = func(net.Listener) context.Context { return r.handler.Context() }
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(synctest.Wait) // of HTTP/2, Close does not wait for handlers
	t.Cleanup(srv.Close)
	var ok bool
	r.client, ok = srv.Client().Transport.(*http.Transport)
	require.True(t, ok)
	r.client.DialContext, r.client.TLSClientConfig.ServerName = network.dial, "example.com" // whose certificate it is
	t.Cleanup(r.client.CloseIdleConnections)
	r.url = srv.URL
}

// The write timeout is for what is being written. A deadline of HTTP/2 ends its stream
// also while nothing is, so none may be left between writes.
func TestLateAnswersArriveOverHTTP2(t *testing.T) {
	const late = 20 * time.Second
	rest := func(w http.ResponseWriter, _ *http.Request, _ asked) { _, _ = io.WriteString(w, usageFrame+stopFrame) }
	for name, tt := range map[string]struct {
		play   act
		stream bool
		want   string
		origin string
	}{
		"JSON":                         {after(late, well), false, message, ""},
		"a stream's first content":     {after(late, well), true, wholeStream, ""},
		"a stream that pauses":         {sends(after(late, rest), startFrame, deltaFrame), true, startFrame + deltaFrame + usageFrame + stopFrame, provider.OriginAnthropic},
		"a stream that pauses, and on": {sends(after(late, sends(after(late, rest), deltaFrame)), startFrame), true, startFrame + deltaFrame + usageFrame + stopFrame, provider.OriginAnthropic},
		"a stream with pings":          {sends(after(late, sends(after(late, rest), deltaFrame)), startFrame), true, startFrame + relayPing + deltaFrame + relayPing + usageFrame + stopFrame, ""},
		"an error":                     {after(late, answers(400)), false, `{"type":"error","error":{"type":"invalid_request_error","message":"as told"}}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := newPipes()
				a := network.actor(t, "a", tt.play)
				a.Origin = tt.origin
				r := newRelay(t, setup{Config: proxy.Config{WriteTimeout: 5 * time.Second}, upstreams: []upstream{a.upstream}, pipes: network})
				r.overHTTP2(t, network)
				for range 2 { // on one connection
					start := time.Now()
					resp := r.open(t.Context(), call{body: ask(opus, tt.stream)})
					require.Equal(t, 2, resp.ProtoMajor)
					got := readReply(resp)
					require.NoError(t, got.err)
					assert.Equal(t, tt.want, got.body)
					assert.GreaterOrEqual(t, time.Since(start), late)
					assert.NotEqual(t, "client_gone", r.log.next(t)["outcome"])
				}
			})
		})
	}
}

// Nor may it be missing while something is: who does not read any more is noticed.
func TestAClientThatDoesNotReadOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, s := newPipes(), &source{ended: make(chan time.Time, 1)}
		a := network.actor(t, "a", s.play)
		r := newRelay(t, setup{Config: proxy.Config{WriteTimeout: 5 * time.Second}, upstreams: []upstream{a.upstream}, pipes: network})
		r.overHTTP2(t, network)
		resp := r.open(t.Context(), call{body: ask(opus, true)})
		require.Equal(t, 2, resp.ProtoMajor)
		_, err := io.ReadFull(resp.Body, make([]byte, len(startFrame)))
		require.NoError(t, err)
		synctest.Wait() // the window of the stream is full
		start := time.Now()
		rec := <-r.log.records
		assert.Equal(t, "client_gone", rec["outcome"])
		assert.Equal(t, true, rec["partial"])
		assert.InDelta(t, 5, time.Since(start).Seconds(), 0.1, "when the relay gave up")
		assert.Less(t, (<-s.ended).Sub(start), 6*time.Second, "the provider goes on for nobody")
		assert.Empty(t, r.inFlight())
	})
}

// What is refused before its body was read ends its own stream, not the connection of
// all the others.
func TestARefusalOverHTTP2IsOneStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newPipes()
		a := network.actor(t, "a", well)
		r := newRelay(t, setup{upstreams: []upstream{a.upstream}, pipes: network})
		r.overHTTP2(t, network)
		var dials atomic.Int32
		dial := r.client.DialContext
		r.client.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, network, addr)
		}
		for range 3 {
			got := r.do(call{body: ask(opus, false), header: http.Header{"Content-Type": {"text/plain"}}})
			requireError(t, got, 415, "invalid_request_error")
			requireServed(t, r.do(call{body: ask(opus, false)}), false)
		}
		assert.EqualValues(t, 1, dials.Load(), "connections")
	})
}
