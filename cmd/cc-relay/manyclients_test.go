package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// beforeTimeout is less than the 10 s that a client has for its headers: whoever is
// served within it did not wait for others to be sent away.
const beforeTimeout = 9 * time.Second

// throng are clients that connect at once.
type throng []net.Conn

func (p *process) throng(n int) throng {
	p.t.Helper()
	conns := make(throng, n)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if assert.NoError(p.t, err) {
				conns[i] = c
			}
		})
	}
	wg.Wait()
	require.False(p.t, p.t.Failed())
	p.t.Cleanup(conns.leave)
	return conns
}

func (conns throng) leave() {
	for _, c := range conns {
		_ = c.Close()
	}
}

// served is how long it takes until a request of somebody else has its whole answer.
func (p *process) served(client *http.Client) time.Duration {
	p.t.Helper()
	start := time.Now()
	resp, err := client.Post(p.url+"/v1/messages", "application/json",
		strings.NewReader(`{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"hi"}]}`))
	require.NoError(p.t, err)
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	require.Equal(p.t, firstHalf+secondHalf, string(got))
	return time.Since(start)
}

// testSlowHeaders: a thousand clients that never come to the end of their headers are
// sent away in time, and nobody else notices them.
func testSlowHeaders(t *testing.T) {
	t.Parallel() // it waits
	up := newSlowProvider(t)
	close(up.release)
	up.keys = make(chan string, 10_000)
	p := up.serve(t)
	others := newClient(t)
	p.served(others)
	before := p.files()

	start := time.Now()
	conns := p.throng(1000)
	const head = "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nX-Slow: "
	var wg sync.WaitGroup
	took := make([]time.Duration, len(conns))
	for i, c := range conns {
		wg.Go(func() {
			_ = c.SetReadDeadline(start.Add(2 * patience))
			done := make(chan struct{})
			go func() {
				defer close(done)
				said, _ := io.ReadAll(c) // a reset is an end, too
				took[i] = time.Since(start)
				if len(said) > 0 {
					assert.True(t, strings.HasPrefix(string(said), "HTTP/1.1 4"), "%s", said)
				}
			}()
			for n := 0; ; n++ { // a byte a second
				select {
				case <-done:
					return
				case <-time.After(time.Second):
					_, _ = io.WriteString(c, string(head[n%len(head)]))
				}
			}
		})
	}
	slowestOther := time.Duration(0)
	for time.Since(start) < 8*time.Second {
		slowestOther = max(slowestOther, p.served(others))
		time.Sleep(100 * time.Millisecond)
	}
	wg.Wait()
	assert.Less(t, slowestOther, beforeTimeout, "how long another client waited")
	for _, d := range took {
		assert.Greater(t, d, beforeTimeout, "a client that had time left was sent away")
		assert.Less(t, d, patience, "a slow client was kept")
	}
	p.served(others)
	p.requireFiles(before)
	p.signal()
	p.endsWell()
}

// ask sends a request over a connection, and returns the status of the answer, which
// must contain says.
func askAt(t *testing.T, c net.Conn, request, says string) int {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	_, err := io.WriteString(c, request)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Contains(t, string(text), says)
	return resp.StatusCode
}

// testMoreConnectionsThanFiles: more clients connect than the relay may have files
// open. Who streams goes on, who was there first is served, for half of the files are
// kept for providers, and when the throng has gone everybody is served by the same
// process.
func testMoreConnectionsThanFiles(t *testing.T) {
	const files, clients = 64, 1000
	up := newSlowProvider(t)
	up.keys = make(chan string, 10_000)
	config := filepath.Join(t.TempDir(), "relay.yaml")
	text := fmt.Sprintf("admin: {listen: \"off\"}\nproviders:\n  - {base_url: %q, keys: [{key: \"${UPSTREAM_KEY}\"}]}\n", up.URL)
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	p := startCommand(t, []string{"UPSTREAM_KEY=sk-ant-upstream"}, "/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, files),
		os.Args[0], "serve", "--listen", "127.0.0.1:0", "--config", config)
	open := p.post()
	half(t, open)
	before := p.files()

	first := p.throng(1)[0] // who is there before the others has a connection
	assert.Equal(t, http.StatusOK, askAt(t, first, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", "ok"))
	conns := p.throng(clients)
	assert.Equal(t, http.StatusOK, askAt(t, first, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", "ok"))
	close(up.release)
	const post = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 45\r\n\r\n" + `{"model":"claude-sonnet-5-5","max_tokens":10}`
	assert.Equal(t, http.StatusOK, askAt(t, first, post, "message_stop"), "there is a file left for a connection to the provider")
	rest, err := io.ReadAll(open.Body)
	require.NoError(t, err)
	assert.Equal(t, secondHalf, string(rest), "the stream was hurt")

	conns.leave()
	p.requireFiles(before) // it has noticed that they left
	others := newClient(t)
	for range 20 {
		assert.Less(t, p.served(others), beforeTimeout)
	}
	p.requireFiles(before)
	p.signal()
	p.endsWell()
	assert.NotContains(t, p.logged(), "sk-ant-")
}

// requireFiles waits until no more is open than there was; a few may be kept
// connections.
func (p *process) requireFiles(before int) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.files() <= before+4 }, patience, 50*time.Millisecond, "files are left open")
}
