package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
)

// A provider may answer before it has read the request. Its answer counts, the
// connection is not used again, and what of the request was still being sent does
// not show in the next one.
func testEarlyAnswers(t *testing.T) {
	leakFree(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	bodies := make(chan string, 100)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			answerEarly(c, n%2 == 0, bodies)
		}
	}()
	up := upstream{Config: provider.Config{Name: "a", BaseURL: "http://" + l.Addr().String()}, keys: []string{keyOf("a", 1)}}
	r := newRelay(t, setup{upstreams: []upstream{up}})
	t.Cleanup(func() { // before the relay is closed: its connections end first
		_ = l.Close()
		<-served
	})
	large := strings.Replace(ask(opus, false), "hello", strings.Repeat("large ", 3<<20), 1)
	small := strings.Replace(ask(opus, false), "hello", strings.Repeat("small ", 1000), 1)
	for range 5 {
		got := r.do(call{body: large})
		require.NoError(t, got.err)
		require.Equal(t, http.StatusRequestEntityTooLarge, got.status, got.body)
		assert.Equal(t, mistake, got.body)

		requireServed(t, r.do(call{body: small}), false)
		assert.Equal(t, small, <-bodies)
	}
}

// answerEarly answers one request of a connection, at once or when it has read it.
func answerEarly(c net.Conn, early bool, bodies chan<- string) {
	defer func() { _ = c.Close() }()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	if early {
		_, _ = io.WriteString(c, lengthy("413 Too Large", jsonType+"Connection: close\r\n", mistake))
		_, _ = io.Copy(io.Discard, c) // so that no reset overtakes the answer
		return
	}
	body, _ := io.ReadAll(req.Body)
	bodies <- string(body)
	_, _ = io.WriteString(c, lengthy("200 OK", jsonType, message))
}
