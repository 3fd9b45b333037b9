package http1_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/http1"
)

// A server that closes between two requests, or speaks unasked, is noticed before
// a request is lost to it; what it said unasked is never an answer.
func TestIdleConnectionsThatAreNoLongerGood(t *testing.T) {
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for at, over := range networks {
		for name, after := range map[string]func(p *peer){
			"closed": func(*peer) {},
			"reset": func(p *peer) {
				conn := p.Conn
				if secure, ok := conn.(*tls.Conn); ok {
					conn = secure.NetConn()
				}
				if tcp, ok := conn.(*net.TCPConn); ok {
					_ = tcp.SetLinger(0)
				}
				_ = conn.Close()
			},
			"an answer to nothing": func(p *peer) { _, _ = io.WriteString(p, forged) },
		} {
			t.Run(at+" "+name, func(t *testing.T) {
				done := make(chan struct{})
				s := newServer(t, over, func(p *peer) {
					p.serve(ok)
					if at == "pipe" { // whose writes wait for a reader
						_ = p.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
					}
					after(p)
					_ = p.Close()
					close(done)
				}, func(p *peer) { p.serve(ok); p.untilClosed() })
				s.requireOK(t)
				<-done
				req, opened, closed := post(t, "hello")
				got := do(t, s, req)
				require.NoError(t, got.err)
				assert.Equal(t, "ok", got.body)
				assert.EqualValues(t, 2, s.dials.Load(), "connections")
				assert.EqualValues(t, 1, opened.Load(), "bodies")
				assert.EqualValues(t, 1, closed.Load(), "closed bodies")
			})
		}
	}
}

// Bytes behind an answer are not the next answer, wherever they were when the
// first one was complete.
func TestNobodySplitsAnswers(t *testing.T) {
	const forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
	for at, over := range networks {
		for name, answer := range map[string]string{
			"content length": ok,
			"chunks":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
			"no body":        "HTTP/1.1 204 No Content\r\n\r\n",
		} {
			for what, garbage := range map[string]string{"an answer": forged, "a line end": "\r\n", "one byte": "x"} {
				t.Run(at+" "+name+" "+what, func(t *testing.T) {
					s := newServer(t, over, func(p *peer) {
						p.request()
						// A pipe's writer waits for whoever has stopped reading.
						_ = p.SetWriteDeadline(time.Now().Add(time.Second))
						_, _ = io.WriteString(p, answer+garbage)
						p.untilClosed()
					}, func(p *peer) { p.serve(ok); p.untilClosed() })
					first := s.get(t)
					require.NoError(t, first.err)
					s.requireOK(t)
					assert.EqualValues(t, 2, s.dials.Load(), "connections")
				})
			}
		}
	}
}

// gather holds back what is written, to send it in one packet.
type gather struct {
	net.Conn
	held []byte
	hold bool
}

func (g *gather) Write(p []byte) (int, error) {
	if g.hold {
		g.held = append(g.held, p...)
		return len(p), nil
	}
	return g.Conn.Write(p)
}

// TLS may have read the next record along with the last one.
func TestNobodySplitsAnswersInRecords(t *testing.T) {
	over := func(t *testing.T) (net.Conn, net.Conn) {
		client, far := overTCP(t)
		return tls.Client(client, clientTLS(t)), tls.Server(&gather{Conn: far}, serverTLS(t))
	}
	s := newServer(t, over, func(p *peer) {
		p.request()
		packet := p.Conn.(*tls.Conn).NetConn().(*gather)
		packet.hold = true
		p.say(ok)
		p.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
		packet.hold = false
		_, err := packet.Write(packet.held)
		assert.NoError(p.t, err)
		p.untilClosed()
	}, func(p *peer) { p.serve(ok); p.untilClosed() })
	s.requireOK(t)
	s.requireOK(t)
	assert.EqualValues(t, 2, s.dials.Load(), "connections")
}

// The connection used last is the next one used: the others may grow old.
func TestTheLastUsedConnectionComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var served [3]int
		serve := func(n int) func(*peer) {
			return func(p *peer) {
				for {
					if _, err := http.ReadRequest(p.in); err != nil {
						return
					}
					served[n]++
					p.say(ok)
				}
			}
		}
		s := newServer(t, overPipe, serve(0), serve(1), serve(2))
		var open [3]*http.Response
		for n := range open {
			open[n], _ = s.RoundTrip(newRequest(t, "GET", nil))
		}
		for _, resp := range open {
			_, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
		}
		for range 5 {
			s.requireOK(t)
			time.Sleep(time.Second)
		}
		s.CloseIdleConnections()
		synctest.Wait()
		assert.Equal(t, [3]int{1, 1, 6}, served)
	})
}

// An idle connection lives for 90 s, then it is closed without a request.
func TestIdleConnectionsGrowOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var ends [2]time.Duration
		serve := func(n int) func(*peer) {
			return func(p *peer) {
				for {
					if _, err := http.ReadRequest(p.in); err != nil {
						ends[n] = time.Since(start)
						return
					}
					p.say(ok)
				}
			}
		}
		s := newServer(t, overPipe, serve(0), serve(1))
		first, err := s.RoundTrip(newRequest(t, "GET", nil).WithContext(t.Context()))
		require.NoError(t, err)
		s.requireOK(t) // on a second connection
		time.Sleep(30 * time.Second)
		_, err = io.ReadAll(first.Body)
		require.NoError(t, err)
		time.Sleep(200 * time.Second)
		synctest.Wait()
		assert.Equal(t, [2]time.Duration{120 * time.Second, 90 * time.Second}, ends)
	})
}

func TestIdleConnectionsAreBounded(t *testing.T) {
	const most = 512
	scripts := make([]func(*peer), most+3)
	for n := range scripts {
		scripts[n] = func(p *peer) { p.serve(ok); p.untilClosed() }
	}
	s := newServer(t, overPipe, scripts...)
	open := make([]*http.Response, len(scripts))
	for n := range open {
		var err error
		open[n], err = s.RoundTrip(newRequest(t, "GET", nil))
		require.NoError(t, err)
	}
	for _, resp := range open {
		_, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
	}
	assert.Equal(t, most, s.Idle())
	s.CloseIdleConnections()
	assert.Zero(t, s.Idle())
	assert.Equal(t, 1, s.other.closed, "the fallback's are closed too")
}

// Connections lead where they lead: scheme, name and port.
func TestHostsDoNotShareConnections(t *testing.T) {
	var dialed []string
	tr := http1.NewTransport(http1.Config{Dial: func(_ context.Context, scheme, addr string) (net.Conn, error) {
		dialed = append(dialed, scheme+" "+addr)
		return nil, errors.New("down")
	}})
	for _, url := range []string{
		"http://a.example", "https://a.example/x", "http://a.example:81", "http://b.example:", "http://[::1]/", "https://[::1]:8443", "http://127.0.0.1",
	} {
		req := newRequest(t, "GET", nil)
		req.URL = mustURL(url)
		require.EqualError(t, do(t, tr, req).err, "down")
	}
	assert.Equal(t, []string{
		"http a.example:80", "https a.example:443", "http a.example:81", "http b.example:80", "http [::1]:80", "https [::1]:8443", "http 127.0.0.1:80",
	}, dialed)
}

// failing is a connection that fails as planned.
type failing struct {
	net.Conn
	mu   sync.Mutex
	sent chan struct{} // closed when the second request was written
	plan
}

type plan struct {
	writes, reads int // until the one that fails; 0 = none
	wrote         int // bytes that the failing write takes
}

var errBroken = errors.New("broken")

func (f *failing) Write(p []byte) (int, error) {
	f.mu.Lock()
	f.writes--
	fails, part, second := f.writes == 0, min(f.wrote, len(p)), f.writes == -2
	f.mu.Unlock()
	if second {
		defer close(f.sent)
	}
	if fails {
		return part, errBroken
	}
	return f.Conn.Write(p)
}

func (f *failing) Read(p []byte) (int, error) {
	f.mu.Lock()
	f.reads--
	fails := f.reads == 0
	f.mu.Unlock()
	if fails {
		<-f.sent
		return 0, errBroken
	}
	return f.Conn.Read(p)
}

// A request is sent again, once and on a new connection, where a kept connection
// took nothing of it, or where it costs nothing.
func TestSendingAgain(t *testing.T) {
	hangUp := func(p *peer) { p.serve(ok); p.request() } // closes instead of a second answer
	mumble := func(p *peer) { p.serve(ok); p.request(); p.say("HTT") }
	// Each request writes once; the read of an answer comes first, then one that looks
	// whether the connection is still good.
	for name, tt := range map[string]struct {
		first  func(*peer)
		fails  plan
		method string
		again  bool
	}{
		"POST, nothing written":      {hangUp, plan{writes: 2}, "POST", true},
		"POST, a byte written":       {hangUp, plan{writes: 2, wrote: 1}, "POST", false},
		"POST, no answer":            {hangUp, plan{}, "POST", false},
		"POST, reading fails":        {hangUp, plan{reads: 3}, "POST", false},
		"GET, nothing written":       {hangUp, plan{writes: 2}, "GET", true},
		"GET, a byte written":        {hangUp, plan{writes: 2, wrote: 1}, "GET", true},
		"GET, no answer":             {hangUp, plan{}, "GET", true},
		"GET, reading fails":         {hangUp, plan{reads: 3}, "GET", true},
		"HEAD, no answer":            {hangUp, plan{}, "HEAD", true},
		"DELETE, no answer":          {hangUp, plan{}, "DELETE", false},
		"GET, part of an answer":     {mumble, plan{}, "GET", false},
		"POST without body, nothing": {hangUp, plan{writes: 2}, "POST nothing", true},
		"POST without body, no more": {hangUp, plan{}, "POST nothing", false},
	} {
		t.Run(name, func(t *testing.T) {
			first := true
			over := func(t *testing.T) (net.Conn, net.Conn) {
				client, far := net.Pipe()
				if !first {
					return client, far
				}
				first = false
				return &failing{Conn: client, sent: make(chan struct{}), plan: tt.fails}, far
			}
			s := newServer(t, over, func(p *peer) {
				if tt.fails != (plan{}) {
					p.serve(ok)
					p.untilClosed()
					return
				}
				tt.first(p)
			}, func(p *peer) {
				_, body := p.request()
				if tt.method == "POST" {
					assert.Equal(p.t, "hello", body)
				}
				p.say("HTTP/1.1 204 No Content\r\n\r\n")
				p.untilClosed()
			})
			s.requireOK(t)
			req, opened, closed := post(t, "hello")
			if tt.method != "POST" {
				_ = req.Body.Close()
				req = newRequest(t, strings.TrimSuffix(tt.method, " nothing"), nil)
			}
			got := do(t, s, req)
			if tt.again {
				require.NoError(t, got.err)
				assert.Equal(t, 204, got.StatusCode)
				assert.EqualValues(t, 2, s.dials.Load(), "connections")
			} else {
				require.ErrorContains(t, got.err, "connection lost")
				assert.EqualValues(t, 1, s.dials.Load(), "connections")
			}
			assert.Equal(t, opened.Load(), closed.Load(), "each body is closed once")
		})
	}
}

// A new connection has no excuse, and a second failure ends it.
func TestSendingAgainHasAnEnd(t *testing.T) {
	refuse := func(p *peer) { p.request() }
	t.Run("a new connection", func(t *testing.T) {
		s := newServer(t, overPipe, refuse)
		require.ErrorContains(t, s.get(t).err, "connection lost while waiting for the answer")
		assert.EqualValues(t, 1, s.dials.Load(), "connections")
	})
	t.Run("the second one too", func(t *testing.T) {
		s := newServer(t, overPipe, func(p *peer) { p.serve(ok); p.request() }, refuse)
		s.requireOK(t)
		require.ErrorContains(t, s.get(t).err, "connection lost while waiting for the answer")
		assert.EqualValues(t, 2, s.dials.Load(), "connections")
	})
	t.Run("no second connection", func(t *testing.T) {
		s := newServer(t, overPipe, func(p *peer) { p.serve(ok); p.request() })
		s.requireOK(t)
		require.EqualError(t, s.get(t).err, "one connection too many")
	})
}

// A second body is asked for only where it is needed, and one that cannot be had,
// or that another transport has to send, is no loss.
func TestTheSecondBody(t *testing.T) {
	for name, tt := range map[string]struct {
		second func() (io.ReadCloser, error) // nil: as the first
		says   string
	}{
		"for another transport": {nil, "the fallback was asked"},
		"not to be had":         {func() (io.ReadCloser, error) { return nil, errors.New("gone") }, "broken"},
		"not in memory":         {func() (io.ReadCloser, error) { return io.NopCloser(onlyReader{}), nil }, "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			var other fallback
			client, far := net.Pipe()
			answers := make(chan struct{})
			go func() {
				defer close(answers)
				p := &peer{far, t, bufio.NewReader(far)}
				p.serve(ok)
				p.untilClosed()
			}()
			dials := 0
			tr := http1.NewTransport(http1.Config{Fallback: &other, Dial: func(context.Context, string, string) (net.Conn, error) {
				if dials++; dials > 1 {
					return nil, http1.ErrNoHTTP1
				}
				return &failing{Conn: client, sent: make(chan struct{}), plan: plan{writes: 2}}, nil
			}})
			require.NoError(t, do(t, tr, newRequest(t, "GET", nil)).err)
			req, opened, closed := post(t, "hello")
			first := req.Body
			if tt.second != nil {
				req.GetBody = tt.second
			}
			require.ErrorContains(t, do(t, tr, req).err, tt.says)
			<-answers
			assert.EqualValues(t, 1, closed.Load(), "closed bodies")
			if tt.second == nil {
				require.Len(t, other.got, 1)
				assert.NotSame(t, first, other.got[0].Body)
				assert.Same(t, first, req.Body, "the caller's request is not changed")
				assert.EqualValues(t, 2, opened.Load(), "bodies")
			}
		})
	}
}

// A body that is given up takes its connection along, also while it is read.
func TestClosingABodyEarly(t *testing.T) {
	for at, over := range networks {
		for name, head := range map[string]string{
			"content length": "Content-Length: 100\r\n\r\nhello",
			"chunks":         "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
			"until close":    "\r\nhello",
		} {
			t.Run(at+" "+name, func(t *testing.T) {
				s := newServer(t, over, func(p *peer) {
					p.serve("HTTP/1.1 200 OK\r\n" + head)
					p.untilClosed()
				}, func(p *peer) { p.serve(ok); p.untilClosed() })
				resp, err := s.RoundTrip(newRequest(t, "GET", nil))
				require.NoError(t, err)
				_, err = io.ReadFull(resp.Body, make([]byte, 5))
				require.NoError(t, err)
				ended := make(chan error)
				go func() {
					_, err := resp.Body.Read(make([]byte, 10))
					ended <- err
				}()
				require.NoError(t, resp.Body.Close())
				require.NoError(t, resp.Body.Close(), "closing again")
				assert.Equal(t, http.ErrBodyReadAfterClose, <-ended)
				_, err = resp.Body.Read(make([]byte, 10))
				assert.Equal(t, http.ErrBodyReadAfterClose, err)
				s.requireOK(t)
			})
		}
	}
}

// Requests from all sides, some of which give up, share what is left over.
func TestConcurrentUse(t *testing.T) {
	srv := newHTTPServer(t)
	tr := http1.NewTransport(http1.Config{Dial: dialTCP(srv)})
	t.Cleanup(tr.CloseIdleConnections)
	var running sync.WaitGroup
	for n := range 8 {
		running.Go(func() {
			for i := range 60 {
				req, opened, closed := post(t, large[:(i*n*997)%100_000+1])
				ctx, cancel := context.WithCancel(req.Context())
				if i%5 == 4 {
					go cancel()
				}
				resp, err := tr.RoundTrip(req.WithContext(ctx))
				if err == nil {
					if i%7 == 6 {
						_, err = io.CopyN(io.Discard, resp.Body, 1)
					} else {
						var body []byte
						body, err = io.ReadAll(resp.Body)
						assert.True(t, err != nil || int64(len(body)) == req.ContentLength, "the answer is not whole")
					}
					_ = resp.Body.Close()
				}
				assert.True(t, err == nil || errors.Is(err, context.Canceled), "error: %v", err)
				assert.Equal(t, opened.Load(), closed.Load(), "closed bodies")
				cancel()
			}
		})
	}
	running.Wait()
}
