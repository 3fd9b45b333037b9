package e2e_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// wiretap stands between a client and the relay and copies what passes, byte for
// byte, so that a test knows what the client really sent and got.
type wiretap struct {
	addr, target string

	mu    sync.Mutex
	conns []*tapped // guarded by mu
}

// tapped is one connection. Bytes are recorded before they are passed on: what
// either side has seen is there.
type tapped struct {
	client net.Conn

	mu       sync.Mutex
	up, down bytes.Buffer // guarded by mu
}

// exchange is one request of the client and its answer, bodies read.
type exchange struct {
	Request  *http.Request
	Body     []byte
	Response *http.Response
	Answer   []byte
}

func tap(t *testing.T, target string) *wiretap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wiretap{addr: l.Addr().String(), target: target}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // the listener is closed
			}
			open.Go(func() { w.carry(client) })
		}
	})
	t.Cleanup(func() {
		assert.NoError(t, l.Close())
		w.hangUp() // clients keep idle connections
		open.Wait()
	})
	return w
}

func (w *wiretap) url() string { return "http://" + w.addr }

// carry passes both directions until either side closes.
func (w *wiretap) carry(client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", w.target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	c := &tapped{client: client}
	w.mu.Lock()
	w.conns = append(w.conns, c)
	w.mu.Unlock()

	ended := make(chan struct{}, 2)
	pass := func(dst, src net.Conn, record *bytes.Buffer) {
		_, _ = io.Copy(dst, io.TeeReader(src, &lockedWriter{&c.mu, record})) // either side may hang up
		ended <- struct{}{}
	}
	go pass(server, client, &c.up)
	go pass(client, server, &c.down)
	<-ended
	_, _ = client.Close(), server.Close()
	<-ended
}

func (w *wiretap) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.client.Close() // most are closed already
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// exchanges returns what has passed, connection by connection, each in order.
// Every request must have a complete answer.
func (w *wiretap) exchanges(t *testing.T) []exchange {
	t.Helper()
	w.mu.Lock()
	conns := append([]*tapped(nil), w.conns...)
	w.mu.Unlock()
	var all []exchange
	for _, c := range conns {
		all = append(all, c.parse(t)...)
	}
	return all
}

func (c *tapped) parse(t *testing.T) []exchange {
	t.Helper()
	c.mu.Lock()
	up, down := bytes.Clone(c.up.Bytes()), bytes.Clone(c.down.Bytes())
	c.mu.Unlock()
	requests, answers := bufio.NewReader(bytes.NewReader(up)), bufio.NewReader(bytes.NewReader(down))
	var all []exchange
	for {
		req, err := http.ReadRequest(requests)
		if err == io.EOF { //nolint:errorlint // ReadRequest returns it bare between requests
			return all
		}
		require.NoError(t, err, "request %d of a connection", len(all))
		e := exchange{Request: req}
		e.Body, err = io.ReadAll(req.Body)
		require.NoError(t, err, "body of request %d", len(all))
		e.Response, err = http.ReadResponse(answers, req)
		require.NoError(t, err, "answer %d of a connection", len(all))
		e.Answer, err = io.ReadAll(e.Response.Body)
		require.NoError(t, err, "body of answer %d", len(all))
		all = append(all, e)
	}
}
