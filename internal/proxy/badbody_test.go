package proxy_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
)

func testBodiesThatAreRefused(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for name, body := range map[string]string{
		"empty":                 "",
		"white space":           "   ",
		"no object":             `["claude"]`,
		"cut":                   `{"model":"claude-opus-5-5","messages":[{"role":"us`,
		"two objects":           ask(opus, false) + ask(opus, false),
		"no model":              `{"messages":[]}`,
		"empty model":           `{"model":""}`,
		"model is a number":     `{"model":5}`,
		"model is null":         `{"model":null}`,
		"stream is a string":    `{"model":"claude-opus-5-5","stream":"true"}`,
		"max_tokens negative":   `{"model":"claude-opus-5-5","max_tokens":-1}`,
		"max_tokens far beyond": `{"model":"claude-opus-5-5","max_tokens":99999999999999999999}`,
		"NUL":                   "{\"model\":\"claude-opus-5-5\",\"x\":\"\x00\"}",
		"byte order mark":       "\ufeff" + ask(opus, false),
		"a model not in UTF-8":  "{\"model\":\"claude-opus-5-5\xff\"}",
		"a name not in UTF-8":   "{\"model\":\"claude-opus-5-5\",\"str\xc0\xafeam\":true}",
		"deep":                  `{"model":"claude-opus-5-5","x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}",
		"gzip":                  "\x1f\x8b\x08\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) { requireRefused(t, r, body) })
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

// Text that the relay does not read is the provider's to judge: it passes as it is,
// and so does the refusal, which is held against nobody.
func testTextThatIsNotUTF8(t *testing.T) {
	leakFree(t)
	a, b := newRaw(t, "a", sayAndKeep(lengthy("400 Bad Request", jsonType, mistake))), newSim(t, "b", 1)
	r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}})
	for name, text := range map[string]string{"a byte that is none": "a\xff", "overlong": "\xc0\xaf", "a surrogate": "\xed\xa0\x80", "cut": "\xe2\x82"} {
		t.Run(name, func(t *testing.T) {
			body := strings.Replace(ask(opus, false), "hello", text, 1)
			got := r.do(call{body: body})
			assert.Equal(t, 400, got.status)
			assert.Equal(t, mistake, got.body)
			assert.InDelta(t, 1, got.record["attempts"], 0)
			assert.Equal(t, body, a.requireNext(t).body)
		})
	}
	assert.Empty(t, b.Seen())
	assert.Empty(t, r.outOf("a", opus))
}

// What two readers could read differently is refused, so that the relay and the
// provider never do.
func testAmbiguousBodies(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for name, body := range map[string]string{
		"model twice":              `{"model":"claude-opus-5-5","model":"claude-haiku-5-5"}`,
		"model twice, the same":    `{"model":"claude-opus-5-5","model":"claude-opus-5-5"}`,
		"model twice, by case":     `{"model":"claude-opus-5-5","Model":"claude-haiku-5-5"}`,
		"model twice, escaped":     `{"model":"claude-opus-5-5","m\u006fdel":"claude-haiku-5-5"}`,
		"only a case variant":      `{"Model":"claude-opus-5-5"}`,
		"a case beyond ASCII":      `{"model":"claude-opus-5-5","\u017ftream":true}`,
		"stream twice":             `{"model":"claude-opus-5-5","stream":true,"stream":false}`,
		"max_tokens in upper case": `{"model":"claude-opus-5-5","MAX_TOKENS":5}`,
		"messages twice":           `{"model":"claude-opus-5-5","messages":[],"messages":[{"role":"user","content":"x"}]}`,
		"a field of nobody's":      `{"model":"claude-opus-5-5","future":1,"Future":2}`,
	} {
		t.Run(name, func(t *testing.T) { requireRefused(t, r, body) })
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

// requireRefused checks that a body is refused for its own sake, on all paths that
// take one.
func requireRefused(t *testing.T, r *relay, body string) {
	t.Helper()
	for _, path := range []string{"/v1/messages", "/v1/messages/count_tokens"} {
		got := r.do(call{path: path, body: body})
		e := requireError(t, got, 400, "invalid_request_error")
		assert.Equal(t, got.header.Get("Request-Id"), e.RequestID)
		assert.Equal(t, "refused", got.record["outcome"])
		assert.False(t, got.closed, "the body was read, so the connection can be used again")
	}
}

func testBodiesOverTheLimit(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	exact := ask(opus, false)
	r := newRelay(t, setup{Config: proxy.Config{MaxBodyBytes: int64(len(exact))}, upstreams: []upstream{a.upstream}})
	post := "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nAnthropic-Version: 2023-06-01\r\nX-Api-Key: " + aliceToken + "\r\n"
	chunk := func(body string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(body), body) }
	for name, tt := range map[string]struct {
		wire string
		ok   bool
	}{
		"exactly, declared":     {post + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(exact), exact), true},
		"exactly, chunked":      {post + "Transfer-Encoding: chunked\r\n\r\n" + chunk(exact) + "0\r\n\r\n", true},
		"one more, declared":    {post + fmt.Sprintf("Content-Length: %d\r\n\r\n%s ", len(exact)+1, exact), false},
		"one more, chunked":     {post + "Transfer-Encoding: chunked\r\n\r\n" + chunk(exact+" ") + "0\r\n\r\n", false},
		"declared, not sent":    {post + "Content-Length: 9999999999\r\n\r\n", false},
		"chunked without end":   {post + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat(chunk(exact), 100), false},
		"declared, and awaited": {post + "Expect: 100-continue\r\nContent-Length: 9999999999\r\n\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some take the second for which a body is still read
			got, closed := r.talk(tt.wire, 1)
			require.Len(t, got, 1)
			if tt.ok {
				requireServed(t, got[0], false)
				return
			}
			requireError(t, got[0], 413, "request_too_large")
			assert.True(t, closed, "the connection stays open")
		})
	}
	t.Cleanup(func() { assert.Len(t, a.Seen(), 2, "requests at the provider") })
}

func testBodiesThatEndEarly(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	post := "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nX-Api-Key: " + aliceToken + "\r\n"
	for name, wire := range map[string]string{
		"declared": post + fmt.Sprintf("Content-Length: 1000\r\n\r\n%s", ask(opus, false)),
		"chunked":  post + "Transfer-Encoding: chunked\r\n\r\n1000\r\n" + ask(opus, false),
		"nothing":  post + "Content-Length: 1000\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
			require.NoError(t, err)
			defer func() { _ = c.Close() }()
			require.NoError(t, c.SetDeadline(time.Now().Add(patient)))
			_, err = io.WriteString(c, wire)
			require.NoError(t, err)
			require.NoError(t, c.(*net.TCPConn).CloseWrite())
			answer, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.True(t, strings.HasPrefix(string(answer), "HTTP/1.1 400 "), "answer: %q", answer)
			assert.Contains(t, string(answer), "invalid_request_error")
			rec := r.log.next(t)
			assert.Equal(t, "refused", rec["outcome"])
			assert.InDelta(t, 0, rec["attempts"], 0)
		})
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}
