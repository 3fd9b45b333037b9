package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cc-relay/internal/http1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient is how long a test waits for something that must happen.
const patient = 10 * time.Second

// network makes the two ends of a connection.
type network func(t *testing.T) (client, server net.Conn)

// overPipe has no buffer: what one end writes, the other reads in the same pieces.
func overPipe(*testing.T) (net.Conn, net.Conn) { return net.Pipe() }

func overTCP(t *testing.T) (net.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	server, err := l.Accept()
	require.NoError(t, err)
	return client, server
}

func overTLS(t *testing.T) (net.Conn, net.Conn) {
	client, server := overTCP(t)
	return tls.Client(client, clientTLS(t)), tls.Server(server, serverTLS(t))
}

var networks = map[string]network{"pipe": overPipe, "TCP": overTCP, "TLS": overTLS}

// peer is the server's end of a connection.
type peer struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

// request reads one request and its body.
func (p *peer) request() (*http.Request, string) {
	req, err := http.ReadRequest(p.in)
	if !assert.NoError(p.t, err, "the server reads a request") {
		return nil, ""
	}
	body, err := io.ReadAll(req.Body)
	assert.NoError(p.t, err, "the server reads a body")
	return req, string(body)
}

func (p *peer) say(s string) {
	_, err := io.WriteString(p, s)
	assert.NoError(p.t, err, "the server answers")
}

// serve answers one request.
func (p *peer) serve(answer string) {
	p.request()
	p.say(answer)
}

// untilClosed reads until the client closes the connection.
func (p *peer) untilClosed() {
	_ = p.SetReadDeadline(time.Now().Add(patient))
	_, err := io.Copy(io.Discard, p.in)
	timeout, ok := errors.AsType[net.Error](err)
	assert.False(p.t, ok && timeout.Timeout(), "the client keeps the connection open")
}

// server is a transport whose nth connection leads to the nth script.
type server struct {
	*http1.Transport
	dials atomic.Int32
	other fallback
}

// fallback notes what it gets and answers nothing.
type fallback struct {
	got    []*http.Request
	closed int
}

var errFallback = errors.New("the fallback was asked")

func (f *fallback) RoundTrip(r *http.Request) (*http.Response, error) {
	f.got = append(f.got, r)
	return nil, errFallback
}

func (f *fallback) CloseIdleConnections() { f.closed++ }

// newServer starts a script for each connection that the transport dials. A
// script's connection is closed when it returns.
func newServer(t *testing.T, over network, scripts ...func(*peer)) *server {
	t.Helper()
	s := &server{}
	var running sync.WaitGroup
	s.Transport = http1.NewTransport(http1.Config{
		Fallback: &s.other,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			n := int(s.dials.Add(1))
			if n > len(scripts) {
				return nil, errors.New("one connection too many")
			}
			client, far := over(t)
			running.Go(func() {
				defer func() { _ = far.Close() }()
				scripts[n-1](&peer{far, t, bufio.NewReader(far)})
			})
			return client, nil
		},
	})
	t.Cleanup(func() {
		s.CloseIdleConnections()
		running.Wait()
	})
	return s
}

// reply is what came of a request.
type reply struct {
	*http.Response
	body string
	err  error // of the round trip, or of reading the body
}

// do sends a request and reads the answer to its end.
func do(t *testing.T, rt http.RoundTripper, req *http.Request) reply {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return reply{err: err}
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return reply{resp, string(body), err}
}

func (s *server) get(t *testing.T) reply { return do(t, s, newRequest(t, "GET", nil)) }

// requireOK checks that a kept or new connection serves.
func (s *server) requireOK(t *testing.T) {
	t.Helper()
	got := s.get(t)
	require.NoError(t, got.err)
	require.Equal(t, "ok", got.body)
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func newRequest(t *testing.T, method string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, "http://up.example/v1/messages?beta=true", body)
	require.NoError(t, err)
	return req
}

// memory is a body in memory that knows who touched it.
type memory struct {
	*bytes.Reader
	t      *testing.T
	closes *atomic.Int32
	closed atomic.Bool
}

func (m *memory) Read(p []byte) (int, error) {
	assert.False(m.t, m.closed.Load(), "a body is read after it was closed")
	return m.Reader.Read(p)
}

func (m *memory) WriteTo(w io.Writer) (int64, error) {
	assert.False(m.t, m.closed.Load(), "a body is read after it was closed")
	n, err := m.Reader.WriteTo(w)
	assert.False(m.t, m.closed.Load(), "a body was closed while it was read")
	return n, err
}

func (m *memory) Close() error {
	assert.False(m.t, m.closed.Swap(true), "a body is closed twice")
	m.closes.Add(1)
	return nil
}

// post is a request with a body in memory; opened and closed count its bodies.
func post(t *testing.T, body string) (req *http.Request, opened, closed *atomic.Int32) {
	opened, closed = new(atomic.Int32), new(atomic.Int32)
	open := func() (io.ReadCloser, error) {
		opened.Add(1)
		return &memory{Reader: bytes.NewReader([]byte(body)), t: t, closes: closed}, nil
	}
	req = newRequest(t, "POST", nil)
	req.Body, _ = open()
	req.GetBody, req.ContentLength = open, int64(len(body))
	return req, opened, closed
}

var large = strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB: more than any socket takes at once

// withinPatience fails the test if f takes too long.
func withinPatience(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patient):
		require.FailNow(t, "this takes too long")
	}
}
