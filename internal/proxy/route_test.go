package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
)

func TestAnswersReachTheClient(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream=%t", stream), func(t *testing.T) {
			got := r.do(call{path: "/v1/messages?beta=true", body: ask(opus, stream)})
			requireServed(t, got, stream)
			assert.False(t, got.closed, "the connection can be used again")
			seen := a.Seen()[len(a.Seen())-1]
			assert.Equal(t, "/v1/messages?beta=true", seen.Target)
			assert.Equal(t, "served", got.record["outcome"])
		})
	}
	t.Run("count_tokens", func(t *testing.T) {
		got := r.do(call{path: "/v1/messages/count_tokens?beta=true", body: ask(opus, true)})
		assert.Equal(t, http.StatusOK, got.status)
		assert.Regexp(t, `^{"input_tokens":\d+}$`, got.body)
		assert.Equal(t, "/v1/messages/count_tokens?beta=true", a.Seen()[len(a.Seen())-1].Target)
	})
	for path, want := range map[string]string{
		"/v1/models?limit=2&after_id=claude-haiku-5-5": `"has_more":true`,
		"/v1/models/claude-opus-5-5?beta=true":         `"id":"claude-opus-5-5"`,
	} {
		t.Run("GET "+path, func(t *testing.T) {
			got := r.do(call{method: "GET", path: path})
			assert.Equal(t, http.StatusOK, got.status)
			assert.Contains(t, got.body, want)
			assert.Equal(t, "/v1/models?limit=1000", a.Seen()[len(a.Seen())-1].Target, "the list is the relay's own")
			assert.Equal(t, "no-store", got.header.Get("Cache-Control"))
		})
	}
}

// Counting tokens has a limit of its own: what happens to it must not touch messages.
func TestCountTokensIsAClassOfItsOwn(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	fail := status(429)
	fail.Path, fail.Headers = "/v1/messages/count_tokens", map[string]string{"Retry-After": "30"}
	require.NoError(t, a.SetFaults(faults(fail)))
	r := relayOf(t, a)

	requireError(t, r.do(call{path: "/v1/messages/count_tokens", body: ask(opus, false)}), 429, "rate_limit_error")
	requireServed(t, r.do(call{body: ask(opus, false)}), false)
	requireError(t, r.do(call{path: "/v1/messages/count_tokens", body: ask(haiku, false)}), 429, "rate_limit_error")
	assert.Len(t, a.Seen(), 2, "a class that cools down is not asked again, whatever the model")
}

func TestProbesNeedNoToken(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for _, probe := range []string{"HEAD /", "GET /", "HEAD /api/hello", "GET /api/hello", "GET /livez", "HEAD /livez", "GET /readyz", "HEAD /readyz"} {
		for _, token := range []string{"-", "a token nobody has"} {
			t.Run(probe+" with token "+token, func(t *testing.T) {
				method, path, _ := strings.Cut(probe, " ")
				got := r.do(call{method: method, path: path, token: token})
				require.NoError(t, got.err)
				assert.Equal(t, http.StatusOK, got.status)
				assert.Equal(t, "no-store", got.header.Get("Cache-Control"))
				if method == "GET" {
					assert.Equal(t, "ok\n", got.body)
				}
				assert.Equal(t, "debug", got.record["level"], "probes do not fill the log")
			})
		}
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

func TestReadyNeedsAKey(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1, status(401))
	r := relayOf(t, a)
	require.Equal(t, 200, r.do(call{method: "GET", path: "/readyz"}).status)
	require.Equal(t, 502, r.do(call{body: ask(opus, false)}).status)
	got := r.do(call{method: "GET", path: "/readyz", token: "-"})
	assert.Equal(t, http.StatusServiceUnavailable, got.status)
	assert.Equal(t, "no usable key\n", got.body)
	assert.Equal(t, 200, r.do(call{method: "GET", path: "/livez"}).status, "the process itself lives")
}

func testPathsMatchExactly(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for _, target := range []string{
		"POST //v1/messages", "POST /v1//messages", "POST /v1/messages/", "POST /v1/messages.", "POST /V1/messages", "POST /v1/Messages",
		"POST /v1%2fmessages", "POST /v1/%6dessages", "POST /v1/messages%2fcount_tokens", "POST /v1/messages%00", "POST /v1/messages%3fbeta=true",
		"POST /v1/../v1/messages", "POST /v1/x/../messages", "POST /v1/messages/..", "POST /v1/./messages", "POST /v1/messages;x=1", "POST /proxy/v1/messages",
		"POST /v1/messages/batches", "GET /v1/files", "GET /admin", "GET /v1/../admin", "GET /metrics", "GET /debug/pprof/", "POST /api/event_logging/batch",
		"GET /v1/models/", "GET /v1/models/.", "GET /v1/models/..", "GET /v1/models/%2e%2e", "GET /v1/models/a/b", "GET /v1/models/a%2fb", "GET /v1/models/%2e%2e%2fmessages",
		"GET /favicon.ico", "OPTIONS /nothing",
	} {
		t.Run(target, func(t *testing.T) {
			got, _ := r.talk(target+" HTTP/1.1\r\nHost: relay\r\nContent-Length: 0\r\nAuthorization: Bearer "+aliceToken+"\r\n\r\n", 1)
			require.Len(t, got, 1)
			requireError(t, got[0], 404, "not_found_error")
			assert.Empty(t, got[0].header.Get("Location"), "clients take a redirect for a failure")
			r.log.next(t)
		})
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

func TestOtherMethodsAreRefused(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for target, allow := range map[string]string{
		"GET /v1/messages": "POST", "PUT /v1/messages": "POST", "DELETE /v1/messages": "POST", "OPTIONS /v1/messages": "POST", "BREW /v1/messages": "POST",
		"GET /v1/messages/count_tokens": "POST", "POST /v1/models": "GET", "DELETE /v1/models/claude-opus-5-5": "GET", "POST /api/hello": "HEAD, GET", "POST /readyz": "GET, HEAD",
	} {
		t.Run(target, func(t *testing.T) {
			method, path, _ := strings.Cut(target, " ")
			got := r.do(call{method: method, path: path})
			requireError(t, got, 405, "invalid_request_error")
			assert.Equal(t, allow, got.header.Get("Allow"))
			assert.NotContains(t, got.header, "Access-Control-Allow-Origin")
		})
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

// Whoever talks to the relay as to a proxy, or wants another protocol, is refused
// and disconnected: what else the connection holds must not be served.
func testProxyFormsAreRefusedAndClosed(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	auth := "Authorization: Bearer " + aliceToken + "\r\n"
	for name, tt := range map[string]struct {
		head   string
		status int
	}{
		"CONNECT":                     {"CONNECT api.anthropic.com:443 HTTP/1.1\r\nHost: api.anthropic.com:443\r\n" + auth, 405},
		"CONNECT with a path":         {"CONNECT /v1/messages HTTP/1.1\r\nHost: relay\r\n" + auth, 405},
		"TRACE":                       {"TRACE / HTTP/1.1\r\nHost: relay\r\n" + auth, 405},
		"absolute form":               {"GET http://api.anthropic.com/v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n" + auth, 405},
		"absolute form of the relay":  {"GET http://relay/livez HTTP/1.1\r\nHost: relay\r\n" + auth, 405},
		"OPTIONS *":                   {"OPTIONS * HTTP/1.1\r\nHost: relay\r\n" + auth, 405},
		"WebSocket on a probe":        {"GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + auth, 400},
		"WebSocket on messages":       {"GET /v1/messages HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + auth, 400},
		"h2c on models":               {"GET /v1/models HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + auth, 400},
		"WebSocket on nothing":        {"GET /chat HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + auth, 400},
		"WebSocket without a token":   {"GET /v1/models HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 400},
		"HTTP/2 with prior knowledge": {"PRI * HTTP/2.0\r\n", 405},
	} {
		t.Run(name, func(t *testing.T) {
			wire := tt.head + "\r\nGET /livez HTTP/1.1\r\nHost: relay\r\n\r\n"
			got, closed := r.talk(wire, 2)
			require.Len(t, got, 1, "the request behind it was served")
			assert.True(t, closed, "the connection stays open")
			requireError(t, got[0], tt.status, "invalid_request_error")
			assert.Empty(t, got[0].header.Get("Upgrade"))
			r.log.next(t)
		})
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

func testMalformedRequestsNeverReachAProvider(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	post := "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nAuthorization: Bearer " + aliceToken + "\r\n"
	body := ask(opus, false)
	for name, wire := range map[string]string{
		"two content lengths":      post + fmt.Sprintf("Content-Length: %d\r\nContent-Length: 5\r\n\r\n%s", len(body), body),
		"negative content length":  post + "Content-Length: -1\r\n\r\n" + body,
		"unknown transfer coding":  post + "Transfer-Encoding: xchunked\r\n\r\n" + body,
		"space before the colon":   post + fmt.Sprintf("Content-Length : %d\r\n\r\n%s", len(body), body),
		"NUL in a header":          post + fmt.Sprintf("X-A: a\x00b\r\nContent-Length: %d\r\n\r\n%s", len(body), body),
		"headers over the limit":   post + "X-A: " + strings.Repeat("a", 80<<10) + "\r\n\r\n",
		"chunk size that is none":  post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body + "\r\n0\r\n\r\n",
		"no host":                  "POST /v1/messages HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
		"two hosts":                "POST /v1/messages HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
		"a chunk larger than said": post + "Transfer-Encoding: chunked\r\n\r\n5\r\n" + body + "\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, closed := r.talk(wire+"GET /livez HTTP/1.1\r\nHost: relay\r\n\r\n", 2)
			require.Len(t, got, 1, "the bytes behind it were served as a request")
			assert.True(t, closed, "the connection stays open")
			assert.GreaterOrEqual(t, got[0].status, 400)
			assert.Less(t, got[0].status, 502)
		})
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

// A chunked request may carry a second length that the server has dropped.
func testChunkedRequestsAreServedOnceAndClosed(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	body := ask(opus, false)
	for name, length := range map[string]string{"chunked": "", "chunked and a length": "Content-Length: 5\r\n"} {
		t.Run(name, func(t *testing.T) {
			before := len(a.Seen())
			wire := "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nAnthropic-Version: 2023-06-01\r\nX-Api-Key: " + aliceToken + "\r\n" + length +
				fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
			got, closed := r.talk(wire+wire, 2)
			require.Len(t, got, 1)
			requireServed(t, got[0], false)
			assert.True(t, closed, "the connection stays open")
			assert.Equal(t, "served", r.log.next(t)["outcome"])
			seen := a.Seen()[before:]
			require.Len(t, seen, 1, "requests at the provider")
			assert.Equal(t, body, string(seen[0].Body))
			assert.Equal(t, fmt.Sprint(len(body)), seen[0].Header.Get("Content-Length"), "the provider gets a length")
		})
	}
}

func TestOtherWebPagesAreRefused(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for name, tt := range map[string]struct {
		header http.Header
		status int
	}{
		"cross-site":                   {http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		"same-site":                    {http.Header{"Sec-Fetch-Site": {"same-site"}}, 403},
		"foreign origin":               {http.Header{"Origin": {"https://example.com"}}, 403},
		"origin null":                  {http.Header{"Origin": {"null"}}, 403},
		"cross-site with a good token": {http.Header{"Sec-Fetch-Site": {"cross-site"}, "X-Api-Key": {aliceToken}}, 403},
		"same-origin":                  {http.Header{"Sec-Fetch-Site": {"same-origin"}}, 200},
		"none":                         {http.Header{"Sec-Fetch-Site": {"none"}}, 200},
		"no browser":                   {nil, 200},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.do(call{header: tt.header, body: ask(opus, false)})
			if tt.status == 200 {
				requireServed(t, got, false)
				return
			}
			requireError(t, got, tt.status, "permission_error")
			assert.NotContains(t, got.header, "Access-Control-Allow-Origin")
		})
	}
	assert.Len(t, a.Seen(), 3, "requests at the provider")
}

func TestSwapChangesWhatTheNextRequestMeets(t *testing.T) {
	leakFree(t)
	a, b := newSim(t, "a", 1), newSim(t, "b", 1)
	r := relayOf(t, a)
	requireServed(t, r.do(call{body: ask(opus, false)}), false)
	next := newLive(t, setup{upstreams: []upstream{b.upstream}, Config: proxy.Config{HideRelay: true}}, r.log.logger())
	r.handler.Swap(next)
	got := r.do(call{body: ask(opus, false)})
	requireServed(t, got, false)
	assert.Empty(t, got.header.Get("X-Cc-Relay-Provider"))
	assert.Equal(t, []string{"key-1"}, b.keysSeen())
	assert.Len(t, a.Seen(), 1)
}
