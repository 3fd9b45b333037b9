package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

func TestSourceOf(t *testing.T) {
	for addr, want := range map[string]string{
		"10.1.2.3:99":                "10.1.2.3/32",
		"[::ffff:10.1.2.3]:99":       "10.1.2.3/32",
		"[2001:db8:1:2:3:4:5:6]:99":  "2001:db8:1:2::/64",
		"[2001:db8:1:2::]:1":         "2001:db8:1:2::/64",
		"[fe80::1%lo]:99":            "fe80::/64",
		"[2001:db8:1:3:3:4:5:6]:100": "2001:db8:1:3::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		require.NoError(t, err)
		assert.Equal(t, want, sourceOf(a).String(), addr)
	}
	assert.False(t, sourceOf(&net.UnixAddr{Name: "/run/a"}).IsValid())
}

func TestConnectionBounds(t *testing.T) {
	l := config.Default().Server.Limits
	for files, want := range map[uint64]int{64: 16, 256: 64, 1024: 448, 20_000: 9936, 1 << 20: 20_000, 1<<63 - 1: 20_000} {
		total, perSource := connectionBounds(l, files)
		assert.Equal(t, want, total, "%d files", files)
		assert.Equal(t, 10_000, perSource)
	}
}

// told is a connection that says from where it is.
type told struct {
	net.Conn
	from string
}

func (c told) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.from)
	return a
}

func TestCrowd(t *testing.T) {
	most, mostOfOne := 4, 2
	c := newCrowd(nil, func() (total, perSource int) { return most, mostOfOne }, nil)
	comes := func(from string) (*seated, bool) {
		here, there := net.Pipe()
		t.Cleanup(func() { _, _ = here.Close(), there.Close() })
		return c.enter(told{here, from})
	}
	within := func(from string) *seated {
		s, ok := comes(from)
		require.True(t, ok)
		assert.False(t, s.beyond, from)
		return s
	}
	first := within("10.0.0.1:1")
	within("10.0.0.1:2")
	for range sparePerSource { // its own bound is reached
		s, ok := comes("10.0.0.1:3")
		require.True(t, ok)
		assert.True(t, s.beyond)
	}
	_, ok := comes("10.0.0.1:4")
	assert.False(t, ok, "what is beyond is bounded, too")
	within("[2001:db8::1]:1")
	last := within("[2001:db8::ffff]:1")
	s, ok := comes("10.0.0.2:1")
	require.True(t, ok, "another source gets an answer when all is full")
	assert.True(t, s.beyond)

	require.NoError(t, first.Close())
	_ = first.Close() // leaves once
	within("10.0.0.2:2")
	_, ok = comes("10.0.0.3:1")
	require.True(t, ok)
	require.NoError(t, last.Close())
	most = 5 // as after a reload
	within("10.0.0.3:2")
	within("10.0.0.3:3")
	s, ok = comes("10.0.0.4:1")
	require.True(t, ok)
	assert.True(t, s.beyond)
	assert.Equal(t, 5, c.total.within)
}

func TestAClientThatSendsAndDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(nil, func() (total, perSource int) { return 1, 1 }, nil)
		here, there := net.Pipe()
		s, ok := c.enter(told{here, "10.0.0.1:1"})
		require.True(t, ok)
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, struct{ io.Reader }{s})
			ended <- err
		}()
		sends := func(bytes int) error {
			_, err := there.Write(make([]byte, bytes))
			synctest.Wait() // until it is counted
			return err
		}
		wrote := make(chan error, 1)
		writes := func() {
			go func() {
				_, err := s.Write([]byte("answer"))
				wrote <- err
			}()
			synctest.Wait()
		}

		require.NoError(t, sends(3*unread), "no write waits")
		for range 3 { // each write counts anew
			writes()
			require.NoError(t, sends(unread))
			_, err := io.ReadFull(there, make([]byte, len("answer")))
			require.NoError(t, err)
			require.NoError(t, <-wrote)
		}
		require.NoError(t, sends(3*unread), "no write waits any more")
		assert.Equal(t, 1, c.total.within)

		writes()
		require.NoError(t, sends(unread))
		assert.Error(t, sends(64<<10))
		assert.ErrorIs(t, <-ended, errUnread)
		assert.ErrorIs(t, <-wrote, io.ErrClosedPipe)
		assert.Zero(t, c.total.within)
	})
}

// C26: more connections than may be. Running streams go on, probes are answered, a
// client that comes on top is told why it is not served or its connection is closed, and
// when there is room again it is served, without a restart.
func testCrowds(t *testing.T) {
	end := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, firstHalf)
		w.(http.Flusher).Flush()
		select {
		case <-end:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, secondHalf)
	}))
	t.Cleanup(up.Close)
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "server: { limits: { connections: 10 } }\nproviders: [ { name: up, base_url: '" + up.URL + "', keys: [ { key: sk-ant-crowd } ] } ]\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	p := startServe(t, nil, "--config", file)
	addr := strings.TrimPrefix(p.url, "http://")

	running := p.post()
	require.Equal(t, 200, running.StatusCode)
	idle := make([]net.Conn, 0, 40)
	for range cap(idle) { // nine of them fill it
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		idle = append(idle, conn)
	}
	_ = idle[len(idle)-1].SetReadDeadline(time.Now().Add(patience))
	_, err := idle[len(idle)-1].Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the last one is closed; by then all have been let in or not")
	beyond := 0
	for _, conn := range idle[9:] {
		if resp := ask(conn, "POST /v1/messages", sayHello); resp != nil {
			beyond++
			assert.Equal(t, 529, resp.StatusCode)
			assert.NotEmpty(t, resp.Header.Get("Retry-After"))
			assert.True(t, resp.Close)
		}
	}
	assert.Equal(t, sparePerSource, beyond, "connections beyond the bound that were answered")
	// Their places are free again.
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close() }()
		resp := ask(conn, "GET /livez", "")
		return resp != nil && resp.StatusCode == http.StatusOK && resp.Close
	}, patience, 10*time.Millisecond, "a probe while all is full")

	for _, conn := range idle {
		_ = conn.Close()
	}
	close(end)
	body, err := io.ReadAll(running.Body)
	require.NoError(t, err)
	assert.Contains(t, string(body), "message_stop", "the stream that ran")
	require.Eventually(t, func() bool {
		resp := p.post()
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusOK
	}, patience, 10*time.Millisecond, "when there is room again")
	p.signal()
	p.endsWell()
}

const sayHello = `{"model":"claude-opus-5-5","max_tokens":1,"stream":true,"messages":[{"role":"user","content":"hello"}]}`

// ask sends a request and returns its answer, nil where there is none.
func ask(conn net.Conn, line, body string) *http.Response {
	_ = conn.SetDeadline(time.Now().Add(patience))
	head := line + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAnthropic-Version: 2023-06-01\r\n"
	if body != "" {
		head += "Content-Length: " + strconv.Itoa(len(body)) + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"+body); err != nil {
		return nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil
	}
	_ = resp.Body.Close()
	return resp
}
