package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// An upstream that does not close after message_stop holds nobody up, and is not
// used again.
func testTheEndIsMessageStop(t *testing.T) {
	leakFree(t)
	conns := make(chan net.Addr, 2)
	up := newRaw(t, "a", func(c net.Conn, n int) bool {
		conns <- c.RemoteAddr()
		head := strings.Replace(sseHead, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
		return sayAndKeep(fmt.Sprintf("%s%x\r\n%s\r\n", head, len(wholeStream), wholeStream))(c, n)
	})
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for range 2 {
		start := time.Now()
		got := r.do(call{body: ask(opus, true)})
		require.NoError(t, got.err)
		assert.Equal(t, wholeStream, got.body)
		assert.Less(t, time.Since(start), 2*time.Second)
		assert.Equal(t, "served", got.record["outcome"])
	}
	assert.NotEqual(t, <-conns, <-conns, "the connection is used again")
}

// A stream that ends well leaves its connection for the next request.
func TestConnectionsToTheProviderAreKept(t *testing.T) {
	leakFree(t)
	conns := make(chan net.Conn, 5)
	up := newRaw(t, "a", func(c net.Conn, _ int) bool {
		conns <- c
		head := strings.Replace(sseHead, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
		_, _ = io.WriteString(c, fmt.Sprintf("%s%x\r\n%s\r\n0\r\n\r\n", head, len(wholeStream), wholeStream))
		return true
	})
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for range 5 {
		requireServedRaw(t, r.do(call{body: ask(opus, true)}))
	}
	first := <-conns
	for range 4 {
		assert.Equal(t, first.RemoteAddr(), (<-conns).RemoteAddr(), "another connection to the provider")
	}
}

func requireServedRaw(t *testing.T, got reply) {
	t.Helper()
	require.NoError(t, got.err)
	require.Equal(t, wholeStream, got.body)
}

// stepper is a provider that sends one frame each time it is told to.
type stepper struct {
	upstream
	frames chan string
	gone   chan struct{} // closed when the request was cancelled
}

func newStepper(t testing.TB, name string) *stepper {
	t.Helper()
	s := &stepper{frames: make(chan string), gone: make(chan struct{}, 1)}
	s.keys = []string{keyOf(name, 1)}
	s.Name = name
	s.BaseURL = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case frame, more := <-s.frames:
				if !more {
					return
				}
				_, _ = io.WriteString(w, frame)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				s.gone <- struct{}{}
				return
			}
		}
	}))
	return s
}

// send gives the provider a frame to send.
func (s *stepper) send(t testing.TB, frame string) {
	t.Helper()
	select {
	case s.frames <- frame:
	case <-time.After(patient):
		require.FailNow(t, "the provider was not asked")
	}
}

// requireGone checks that the provider's request ends within a second.
func (s *stepper) requireGone(t testing.TB) {
	t.Helper()
	select {
	case <-s.gone:
	case <-time.After(time.Second):
		assert.Fail(t, "the provider goes on for nobody")
	}
}

// read reads exactly these bytes of a stream.
func read(t testing.TB, resp *http.Response, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	_, err := io.ReadFull(resp.Body, buf)
	require.NoError(t, err)
	require.Equal(t, want, string(buf))
}

// Each event reaches the client before the provider sends the next.
func TestEventsAreNotHeldBack(t *testing.T) {
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
	for i := range 20 {
		frame := strings.Replace(deltaFrame, "so far", itoa(i), 1)
		if i%5 == 0 {
			frame = pingFrame
		}
		up.send(t, frame)
		read(t, resp, frame)
	}
	t.Run("but half a frame is", func(t *testing.T) {
		up.send(t, deltaFrame+deltaFrame[:10])
		read(t, resp, deltaFrame)
		up.send(t, deltaFrame[10:])
		read(t, resp, deltaFrame)
	})
	up.send(t, stopFrame)
	close(up.frames)
	read(t, resp, stopFrame)
	_, err := resp.Body.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, "served", r.log.next(t)["outcome"])
}

func TestASilentStreamIsEnded(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultStall, AfterEvents: 3})
	a.IdleTimeout = 100 * time.Millisecond
	b := newSim(t, "b", 1)
	r := relayOf(t, a, b)
	got := r.do(call{body: ask(opus, true)})
	require.NoError(t, got.err)
	assert.Equal(t, 4, strings.Count(got.body, "event: "))
	assert.Contains(t, got.body, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"provider a fell silent\"}")
	assert.Equal(t, "broken", got.record["outcome"])
	assert.Equal(t, "timed_out", got.record["verdict"])
	assert.Empty(t, b.Seen())
}

// Long answers that are no stream are passed on while they come.
func TestVeryLongJSON(t *testing.T) {
	leakFree(t)
	long := `{"type":"message","usage":{"input_tokens":3,"output_tokens":4},"pad":"` + strings.Repeat("x", 17<<20) + `"}`
	for name, tt := range map[string]struct {
		wire string
		ok   bool
	}{
		"declared":        {lengthy("200 OK", jsonType, long), true},
		"undeclared":      {"HTTP/1.1 200 OK\r\n" + jsonType + "\r\n" + long, true},
		"undeclared, cut": {"HTTP/1.1 200 OK\r\n" + jsonType + "\r\n" + long[:len(long)-2], false},
		"declared as cut": {lengthy("200 OK", jsonType, long[:len(long)-1]), false},
		"declared, cut":   {"HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 99999999\r\n\r\n" + long, false},
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", say(tt.wire))
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			got := r.do(call{body: ask(opus, false)})
			assert.Equal(t, 200, got.status)
			if tt.ok {
				require.NoError(t, got.err)
				assert.Equal(t, len(long), len(got.body)) //nolint:testifylint // not 17 MiB in the output
				assert.True(t, got.body == long, "the body was changed")
				return
			}
			require.Error(t, got.err, "a cut answer looks complete")
			assert.Equal(t, "broken", got.record["outcome"])
		})
	}
}
