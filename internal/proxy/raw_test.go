package proxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
)

// rawRequest is one request as it came over the wire to a raw upstream.
type rawRequest struct {
	head string // request line and headers, up to the empty line
	body string
}

// rawUpstream is a provider that plays exact bytes.
type rawUpstream struct {
	upstream
	requests chan rawRequest
	wg       sync.WaitGroup
}

// newRaw starts a provider that reads each request whole and calls play, which
// returns whether the connection is to be kept. n counts requests from 1.
func newRaw(t testing.TB, name string, play func(c net.Conn, n int) (keep bool)) *rawUpstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	u := &rawUpstream{requests: make(chan rawRequest, 1000)}
	u.upstream = upstream{Config: provider.Config{Name: name, BaseURL: "http://" + l.Addr().String()}, keys: []string{keyOf(name, 1)}}
	var (
		mu    sync.Mutex
		n     int
		conns []net.Conn
	)
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		n++
		return n
	}
	u.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			u.wg.Go(func() { u.converse(c, play, count) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		u.wg.Wait()
	})
	return u
}

func (u *rawUpstream) converse(c net.Conn, play func(net.Conn, int) bool, count func() int) {
	defer func() { _ = c.Close() }()
	var wire bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &wire))
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		head, _, _ := strings.Cut(wire.String(), "\r\n\r\n")
		wire.Reset()
		u.requests <- rawRequest{head: head, body: string(body)}
		if !play(c, count()) {
			return
		}
	}
}

// calls is how many requests came until now.
func (u *rawUpstream) calls() int { return len(u.requests) }

// say plays bytes and closes the connection.
func say(text string) func(net.Conn, int) bool {
	return func(c net.Conn, _ int) bool {
		_, _ = io.WriteString(c, text)
		return false
	}
}

// sayAndKeep plays bytes and keeps the connection open.
func sayAndKeep(text string) func(net.Conn, int) bool {
	return func(c net.Conn, _ int) bool {
		_, _ = io.WriteString(c, text)
		return true
	}
}

const (
	sseHead  = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nRequest-Id: req_raw\r\n\r\n"
	jsonHead = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRequest-Id: req_raw\r\n"
)

// frameOf is one SSE frame.
func frameOf(event, data string) string { return "event: " + event + "\ndata: " + data + "\n\n" }

// Frames of a small stream.
var (
	headFrame  = frameOf("message_start", `{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"usage":{"input_tokens":11,"output_tokens":1}}}`)
	blockFrame = frameOf("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
	startFrame = headFrame + blockFrame // what is shown: all before content is held back
	pingFrame  = frameOf("ping", `{"type":"ping"}`)
	deltaFrame = frameOf("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"so far"}}`)
	usageFrame = frameOf("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}`)
	stopFrame  = frameOf("message_stop", `{"type":"message_stop"}`)
)

// wholeStream is a complete answer.
var wholeStream = startFrame + pingFrame + deltaFrame + usageFrame + stopFrame

// talk writes bytes to the relay as they are and reads answers until the relay
// closes the connection or as many have come as wanted. It reports whether the
// connection was closed.
func (r *relay) talk(wire string, want int) (got []reply, closed bool) {
	r.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	require.NoError(r.t, err)
	defer func() { _ = c.Close() }()
	require.NoError(r.t, c.SetDeadline(time.Now().Add(patient)))
	_, err = io.WriteString(c, wire)
	require.NoError(r.t, err)
	in := bufio.NewReader(c)
	for len(got) < want {
		method, _, _ := strings.Cut(wire, " ")
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return got, isClosed(err)
		}
		got = append(got, readReply(resp))
	}
	if !got[len(got)-1].closed {
		return got, false
	}
	_, err = in.ReadByte()
	return got, isClosed(err)
}

// isClosed tells an end of the connection from a timeout.
func isClosed(err error) bool {
	var timeout net.Error
	return err != nil && (!errors.As(err, &timeout) || !timeout.Timeout())
}
