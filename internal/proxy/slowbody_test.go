package proxy_test

import (
	"bufio"
	"context"
	"fmt"
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

// overPipe serves a relay's handler inside a bubble and returns the client's end.
func overPipe(t *testing.T, rt http.RoundTripper) net.Conn {
	t.Helper()
	live := newLive(t, setup{upstreams: []upstream{memory(rt)}}, newLogs().logger())
	l := newPipeListener("relay.test")
	srv := &http.Server{Handler: proxy.NewHandler(live, newLogs().logger()), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // until the cleanup closes it
	}()
	client, err := l.dial(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = client.Close()
		_ = srv.Close()
		<-done
	})
	return client
}

const postHead = "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nAnthropic-Version: 2023-06-01\r\nX-Api-Key: " + aliceToken + "\r\n"

// A client that falls silent in its body is told so, and loses its connection.
func testClientsThatFallSilentInTheirBody(t *testing.T) {
	body := ask(opus, false)
	for name, wire := range map[string]string{
		"declared": postHead + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body[:20]),
		"chunked":  postHead + "Transfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n",
		"nothing":  postHead + "Content-Length: 10\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := overPipe(t, roundTrip(func(*http.Request) (*http.Response, error) { panic("the provider was asked") }))
				start := time.Now()
				_, err := io.WriteString(c, wire)
				require.NoError(t, err)
				in := bufio.NewReader(c)
				resp, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				requireError(t, readReply(resp), 408, "invalid_request_error")
				_, err = in.ReadByte()
				require.ErrorIs(t, err, io.EOF, "the connection stays open")
				assert.InDelta(t, 30, time.Since(start).Seconds(), 8.5, "between three quarters of the time and all of it, and a second")
			})
		})
	}
}

// A client that is slow but steady is served, and its provider may take longer
// than a body may be silent.
func testSlowBodiesAndSlowProviders(t *testing.T) {
	body := ask(opus, false) + strings.Repeat(" ", 300_000)
	for name, test := range map[string]struct {
		framing, end string
		times        int // on one connection: no deadline of the first is left for the second
	}{
		"declared":     {fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)), "", 2},
		"in one chunk": {fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n", len(body)), "\r\n0\r\n\r\n", 1}, // which ends the connection
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := answering("application/json", func() io.Reader { return strings.NewReader(message) })
				c := overPipe(t, roundTrip(func(r *http.Request) (*http.Response, error) {
					time.Sleep(9 * time.Minute)
					if r.Context().Err() != nil {
						return nil, context.Cause(r.Context())
					}
					return answer(r)
				}))
				in := bufio.NewReader(c)
				for range test.times {
					_, err := io.WriteString(c, postHead+test.framing)
					require.NoError(t, err)
					for i := 0; i < len(body); i += 25_000 {
						time.Sleep(20 * time.Second)
						_, err = io.WriteString(c, body[i:min(i+25_000, len(body))])
						require.NoError(t, err)
					}
					_, err = io.WriteString(c, test.end)
					require.NoError(t, err)
					resp, err := http.ReadResponse(in, nil)
					require.NoError(t, err)
					requireServed(t, readReply(resp), false)
					time.Sleep(4 * time.Minute)
				}
			})
		})
	}
}
