package proxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
)

// requireLeft checks what is left of a request whose client is gone.
func requireLeft(t *testing.T, r *relay, up *stepper, b *sim) record {
	t.Helper()
	up.requireGone(t)
	rec := r.log.next(t)
	assert.Equal(t, "client_gone", rec["outcome"])
	assert.InDelta(t, 499, rec["status"], 0)
	assert.Empty(t, r.inFlight(), "leases")
	assert.Empty(t, b.Seen(), "nobody is asked for a client that is gone")
	return rec
}

// wayToLeave is how a client ends a connection.
var wayToLeave = map[string]func(*net.TCPConn){
	"close":      func(c *net.TCPConn) { _ = c.Close() },
	"half-close": func(c *net.TCPConn) { _ = c.CloseWrite() },
	"reset":      func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
}

// leaves lets a client leave while its answer is awaited, or in the middle of it.
func leaves(t *testing.T, leave func(*net.TCPConn), before bool) {
	body := ask(opus, true)
	up, b := newStepper(t, "a"), newSim(t, "b", 1)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream, b.upstream}})
	c := r.dial()
	_, err := io.WriteString(c, postOf(body))
	require.NoError(t, err)
	if before {
		up.send(t, ": nothing to show\n\n") // the provider has the request
	} else {
		up.send(t, startFrame+deltaFrame)
		_, err = io.ReadFull(c, make([]byte, len(startFrame+deltaFrame)))
		require.NoError(t, err)
	}
	leave(c)
	rec := requireLeft(t, r, up, b)
	assert.Equal(t, true, rec["partial"])
	if !before {
		assert.InDelta(t, 11, rec["input_tokens"], 0)
		assert.InDelta(t, 1, rec["output_tokens"], 0)
	}
}

func testClientLeavesInTheMiddle(t *testing.T) {
	leakFree(t)
	for _, name := range []string{"close", "reset"} {
		t.Run(name, func(t *testing.T) { leaves(t, wayToLeave[name], false) })
	}
}

// A client that says it will send no more is taken for gone, also where it would
// read on: Go's server cannot tell the two apart.
func testClientHalfCloses(t *testing.T) {
	leakFree(t)
	t.Run("before the first byte", func(t *testing.T) { leaves(t, wayToLeave["half-close"], true) })
	t.Run("in the middle", func(t *testing.T) { leaves(t, wayToLeave["half-close"], false) })
}

func testClientLeavesBeforeTheFirstByte(t *testing.T) {
	leakFree(t)
	for _, name := range []string{"close", "reset"} {
		t.Run(name, func(t *testing.T) { leaves(t, wayToLeave[name], true) })
	}
	t.Run("while its answer is awaited, not streamed", func(t *testing.T) {
		up, b := newStepper(t, "a"), newSim(t, "b", 1)
		r := newRelay(t, setup{upstreams: []upstream{up.upstream, b.upstream}})
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			resp, err := r.client.RoundTrip(r.request(call{body: ask(opus, false)}).WithContext(ctx))
			if err == nil {
				_ = resp.Body.Close()
			}
			left <- err
		}()
		up.send(t, ":\n\n")
		cancel()
		require.Error(t, <-left)
		requireLeft(t, r, up, b)
	})
	t.Run("in the pause before a second try", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBubble(t, 1, unlimited, status(529))
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // the pause is 250 to 500
			defer cancel()
			assert.PanicsWithValue(t, http.ErrAbortHandler, func() {
				b.handler.ServeHTTP(&sink{header: http.Header{}}, aliceRequest(ask(opus, true)).WithContext(ctx))
			})
			assert.Equal(t, "client_gone", b.log.next(t)["outcome"])
			assert.Len(t, b.Seen(), 1)
		})
	})
}

// What a client has left of the prompt was perhaps counted, so it stays taken.
func TestWhatAClientLeavesIsHeldToBeUsed(t *testing.T) {
	leakFree(t)
	up := newStepper(t, "a")
	up.limits.ITPMLimit = 1_000_000
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{})
	body := strings.Replace(ask(opus, true), "hello", strings.Repeat("hello ", 100_000), 1)
	go func() {
		defer close(left)
		resp, err := r.client.RoundTrip(r.request(call{body: body}).WithContext(ctx))
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	up.send(t, ":\n\n")
	cancel()
	<-left
	r.log.next(t)
	for _, c := range r.live.Router.Upstreams()[0].Pool.GetStats().Classes {
		if c.Class == "opus-5-5" {
			// 16,667 refill in a second.
			assert.InDelta(t, 1_000_000-len(body)/4, c.Remaining.ITPM, 100_000, "input level")
		}
	}
}

// A client that does not read cannot keep a key or its provider's stream.
func testAClientThatDoesNotRead(t *testing.T) {
	leakFree(t)
	gone := make(chan struct{})
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, startFrame)
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat(deltaFrame, 100)); err != nil {
				break
			}
		}
		close(gone)
	}))
	up := upstream{keys: []string{keyOf("a", 1)}}
	up.Name, up.BaseURL = "a", url
	r := newRelay(t, setup{Config: proxy.Config{WriteTimeout: 200 * time.Millisecond}, upstreams: []upstream{up}})
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	body := ask(opus, true)
	_, err = io.WriteString(c, "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nX-Api-Key: "+aliceToken+"\r\nContent-Length: "+itoa(len(body))+"\r\n\r\n"+body)
	require.NoError(t, err)
	rec := r.log.next(t)
	assert.Equal(t, "client_gone", rec["outcome"])
	assert.Equal(t, true, rec["partial"])
	assert.Empty(t, r.inFlight())
	select {
	case <-gone:
	case <-time.After(time.Second):
		assert.Fail(t, "the provider goes on for nobody")
	}
}

// slowClient takes its time for each write. In a bubble that time is exact.
type slowClient struct {
	sink
	pause    time.Duration
	deadline time.Time
}

func (s *slowClient) SetWriteDeadline(t time.Time) error {
	s.deadline = t
	return nil
}

func (s *slowClient) Write(p []byte) (int, error) {
	time.Sleep(s.pause)
	if time.Now().After(s.deadline) {
		return 0, context.DeadlineExceeded
	}
	return s.sink.Write(p)
}

// The write timeout is for one write: however long an answer takes to come, and
// whatever it is in the end, there is time to write it.
func TestLateAnswersCanBeWritten(t *testing.T) {
	late := func(d time.Duration, status int, kind, body string) roundTrip {
		return func(r *http.Request) (*http.Response, error) {
			_ = r.Body.Close()
			select {
			case <-time.After(d):
			case <-r.Context().Done():
				return nil, context.Cause(r.Context())
			}
			return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, ContentLength: -1, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
		}
	}
	for name, tt := range map[string]struct {
		transport roundTrip
		status    int
	}{
		"served":       {late(100*time.Second, 200, "application/json", message), 200},
		"client error": {late(100*time.Second, 400, "application/json", mistake), 400},
		"a page":       {late(100*time.Second, 400, "text/html", "<html>"), 400},
		"failed":       {late(100*time.Second, 500, "text/html", "<html>"), 500},
		"exhausted":    {late(100*time.Second, 429, "text/html", "<html>"), 429},
		"too late":     {late(time.Hour, 200, "", ""), 504},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				live := newLive(t, setup{upstreams: []upstream{memory(tt.transport)}}, newLogs().logger())
				w := &slowClient{sink: sink{header: http.Header{}}, pause: 20 * time.Second}
				proxy.NewHandler(live, newLogs().logger()).ServeHTTP(w, aliceRequest(ask(opus, false)))
				assert.Equal(t, tt.status, w.status)
				assert.NotEmpty(t, w.body.String(), "the answer could not be written")
			})
		})
	}
	t.Run("refused, after a body that took long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			live := newLive(t, setup{upstreams: []upstream{memory(nil)}}, newLogs().logger())
			w := &slowClient{sink: sink{header: http.Header{}}, pause: 20 * time.Second}
			req := aliceRequest("")
			req.Body, req.ContentLength = io.NopCloser(slowly{strings.NewReader("{}")}), -1
			proxy.NewHandler(live, newLogs().logger()).ServeHTTP(w, req)
			assert.Equal(t, 400, w.status)
			assert.NotEmpty(t, w.body.String(), "the answer could not be written")
		})
	})
}

// The time a client takes is not the provider's silence.
func testASlowClientIsNotASilentProvider(t *testing.T) {
	long := `{"type":"message","pad":"` + strings.Repeat("x", 16<<20) + `"}`
	for name, tt := range map[string]struct{ kind, body string }{
		"stream":    {"text/event-stream", wholeStream},
		"long JSON": {"application/json", long},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := memory(answering(tt.kind, func() io.Reader { return strings.NewReader(tt.body) }))
				up.IdleTimeout, up.FirstTokenTimeout, up.ResponseTimeout = time.Second, time.Second, time.Second
				up.transport = endsWithContext(up.transport)
				live := newLive(t, setup{upstreams: []upstream{up}}, newLogs().logger())
				w := &slowClient{sink: sink{header: http.Header{}}, pause: 20 * time.Second}
				proxy.NewHandler(live, newLogs().logger()).ServeHTTP(w, aliceRequest(ask(opus, tt.kind != "application/json")))
				assert.Equal(t, 200, w.status)
				assert.True(t, tt.body == w.body.String(), "got %d bytes, want %d: %.300s", w.body.Len(), len(tt.body), w.body.String())
			})
		})
	}
	t.Run("and a provider behind one can still be silent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			silent := answering("text/event-stream", func() io.Reader {
				return io.MultiReader(strings.NewReader(startFrame), slowly{strings.NewReader(stopFrame)})
			})
			up := memory(endsWithContext(silent))
			up.IdleTimeout = 7 * time.Second
			live := newLive(t, setup{upstreams: []upstream{up}}, newLogs().logger())
			w := &slowClient{sink: sink{header: http.Header{}}, pause: 20 * time.Second}
			start := time.Now()
			proxy.NewHandler(live, newLogs().logger()).ServeHTTP(w, aliceRequest(ask(opus, true)))
			assert.Contains(t, w.body.String(), "fell silent")
			assert.InDelta(t, 20+7+20, time.Since(start).Seconds(), 0.2, "written, silent, written")
			time.Sleep(time.Hour) // the silent read ends inside the bubble
		})
	})
}

// endsWithContext makes the reads of a body end with its request, as a real
// transport does.
func endsWithContext(rt http.RoundTripper) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		resp, err := rt.RoundTrip(r)
		if err == nil {
			resp.Body = &contextBody{ctx: r.Context(), r: resp.Body}
		}
		return resp, err
	}
}

type contextBody struct {
	ctx context.Context
	r   io.Reader
}

func (b *contextBody) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	buf := make([]byte, len(p))
	go func() {
		n, err := b.r.Read(buf)
		done <- result{n, err}
	}()
	select {
	case <-b.ctx.Done():
		return 0, context.Cause(b.ctx)
	case got := <-done:
		if b.ctx.Err() != nil {
			return 0, context.Cause(b.ctx)
		}
		return copy(p, buf[:got.n]), got.err
	}
}

func (b *contextBody) Close() error { return nil }

// slowly takes 100 s for each read.
type slowly struct{ io.Reader }

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Second)
	return s.Reader.Read(p)
}
