package http1_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// readHead reads the head of a request and none of its body.
func (p *peer) readHead() {
	for {
		line, err := p.in.ReadString('\n')
		if !assert.NoError(p.t, err) || line == "\r\n" {
			return
		}
	}
}

// A server may refuse a request it has not read, and neither read on nor close.
func TestRefusalsWhileTheRequestIsSent(t *testing.T) {
	const refusal = "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!"
	for at, over := range networks {
		for name, then := range map[string]func(p *peer){
			"and waits":   func(*peer) {},
			"after a 100": func(*peer) {},
			"and closes":  func(p *peer) { _ = p.Close() },
		} {
			t.Run(at+" "+name, func(t *testing.T) {
				judged := make(chan struct{})
				s := newServer(t, over, func(p *peer) {
					p.readHead()
					if name == "after a 100" {
						p.say("HTTP/1.1 100 Continue\r\n\r\n")
					}
					p.say(refusal)
					then(p)
					<-judged
					p.untilClosed()
				}, func(p *peer) { p.serve(ok); p.untilClosed() })
				req, opened, closed := post(t, large)
				var got reply
				withinPatience(t, func() { got = do(t, s, req) })
				close(judged)
				require.NoError(t, got.err)
				assert.Equal(t, 413, got.StatusCode)
				assert.Equal(t, "no!", got.body)
				assert.EqualValues(t, 1, opened.Load(), "bodies")
				assert.EqualValues(t, 1, closed.Load(), "closed bodies")
				s.requireOK(t)
				assert.EqualValues(t, 2, s.dials.Load(), "the connection holds half a request")
			})
		}
	}
}

// What is no refusal does not stop the request.
func TestAnswersWhileTheRequestIsSent(t *testing.T) {
	for at, over := range networks {
		for name, early := range map[string]string{
			"interim": "HTTP/1.1 103 Early Hints\r\n\r\n",
			"final":   "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
		} {
			t.Run(at+" "+name, func(t *testing.T) {
				s := newServer(t, over, func(p *peer) {
					p.readHead()
					p.say(early)
					body := make([]byte, len(large))
					_, err := io.ReadFull(p.in, body)
					assert.NoError(p.t, err)
					assert.True(p.t, string(body) == large, "the body is another")
					p.say(strings.TrimPrefix(ok, early))
					p.serve(ok)
					p.untilClosed()
				})
				req, _, _ := post(t, large)
				got := do(t, s, req)
				require.NoError(t, got.err)
				assert.Equal(t, "ok", got.body)
				s.requireOK(t)
				assert.EqualValues(t, 1, s.dials.Load(), "connections")
			})
		}
	}
}

// A refusal that comes when all is sent costs no connection.
func TestRefusalsOfWholeRequests(t *testing.T) {
	for at, over := range networks {
		t.Run(at, func(t *testing.T) {
			const limited = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
			s := newServer(t, over, func(p *peer) {
				for range 3 {
					p.serve(limited)
				}
				p.untilClosed()
			})
			for range 3 {
				req, _, _ := post(t, large)
				got := do(t, s, req)
				require.NoError(t, got.err)
				assert.Equal(t, 429, got.StatusCode)
			}
			assert.EqualValues(t, 1, s.dials.Load(), "connections")
		})
	}
}

// A server that closes without reading may still have said why.
func TestConnectionsThatBreakWhileTheRequestIsSent(t *testing.T) {
	s := newServer(t, overTCP, func(p *peer) {
		p.readHead()
		_ = p.Conn.(*net.TCPConn).SetLinger(0)
	})
	req, _, closed := post(t, large)
	got := do(t, s, req)
	require.ErrorContains(t, got.err, "http1: connection lost")
	assert.EqualValues(t, 1, closed.Load(), "closed bodies")
}

var errEnough = errors.New("enough")

// Whatever a request waits for, the end of its context ends that: with its cause,
// and with the connection.
func TestCancellation(t *testing.T) {
	for at, over := range networks {
		for name, tt := range map[string]struct {
			body   string
			script func(p *peer, reached func(), gone <-chan struct{})
		}{
			"writing a head": {"", func(p *peer, reached func(), _ <-chan struct{}) {
				if at != "pipe" { // a socket takes a head without a reader
					p.request()
				}
				reached()
				p.untilClosed()
			}},
			"writing a body": {large, func(p *peer, reached func(), gone <-chan struct{}) {
				p.readHead()
				reached()
				<-gone // before that, it reads nothing
				p.untilClosed()
			}},
			"waiting for the answer": {"hello", func(p *peer, reached func(), _ <-chan struct{}) {
				p.request()
				reached()
				p.untilClosed()
			}},
			"reading the head": {"hello", func(p *peer, reached func(), _ <-chan struct{}) {
				p.serve("HTTP/1.1 200 OK\r\nContent-Le")
				reached()
				p.untilClosed()
			}},
			"reading the body": {"hello", func(p *peer, reached func(), _ <-chan struct{}) {
				p.serve("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
				reached()
				p.untilClosed()
			}},
			"reading chunks": {large, func(p *peer, reached func(), _ <-chan struct{}) {
				p.serve("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
				reached()
				p.untilClosed()
			}},
		} {
			t.Run(at+" "+name, func(t *testing.T) {
				reached, gone := make(chan struct{}), make(chan struct{})
				s := newServer(t, over, func(p *peer) { tt.script(p, func() { close(reached) }, gone) },
					func(p *peer) { p.serve(ok); p.untilClosed() })
				req, opened, closed := post(t, tt.body)
				if tt.body == "" {
					_ = req.Body.Close()
					req.Body, req.Method = nil, "GET"
				}
				ctx, cancel := context.WithCancelCause(context.Background())
				go func() {
					<-reached
					cancel(errEnough)
				}()
				var got reply
				withinPatience(t, func() { got = do(t, s, req.WithContext(ctx)) })
				close(gone)
				require.ErrorIs(t, got.err, errEnough)
				assert.Equal(t, opened.Load(), closed.Load(), "closed bodies")
				s.requireOK(t)
				assert.EqualValues(t, 2, s.dials.Load(), "connections")
			})
		}
	}
}

func TestCancellationBeforeAConnection(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	dialing := make(chan struct{})
	s := newServer(t, func(*testing.T) (net.Conn, net.Conn) { // stands for a dialer that fails as its context ends
		close(dialing)
		<-ctx.Done()
		client, far := net.Pipe()
		return client, far
	}, func(p *peer) { p.untilClosed() })
	go func() {
		<-dialing
		cancel(errEnough)
	}()
	for range 2 { // the second one does not even dial
		req, _, closed := post(t, "hello")
		require.ErrorIs(t, do(t, s, req.WithContext(ctx)).err, errEnough)
		assert.EqualValues(t, 1, closed.Load(), "closed bodies")
	}
	assert.EqualValues(t, 1, s.dials.Load(), "connections")
}

// A context that ends when the answer has been read harms nobody.
func TestCancellationAfterTheEnd(t *testing.T) {
	s := newServer(t, overTCP, func(p *peer) {
		for range 20 {
			p.serve(ok)
		}
		p.untilClosed()
	})
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		require.NoError(t, do(t, s, newRequest(t, "GET", nil).WithContext(ctx)).err)
		cancel()
	}
	assert.EqualValues(t, 1, s.dials.Load(), "connections")
}
