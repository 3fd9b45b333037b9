package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
)

// upstreamHeaders are all kinds of headers a provider may send.
var upstreamHeaders = http.Header{
	"Request-Id":                              {"req_upstream"},
	"Retry-After":                             {"7"},
	"X-Should-Retry":                          {"true"},
	"Anthropic-Ratelimit-Requests-Limit":      {"1000"},
	"Anthropic-Ratelimit-Requests-Remaining":  {"999"},
	"Anthropic-Ratelimit-Unified-Status":      {"allowed"},
	"Anthropic-Priority-Input-Tokens-Limit":   {"10"},
	"Anthropic-Fast-Input-Tokens-Limit":       {"10"},
	"Anthropic-Organization-Id":               {"org-of-the-key"},
	"Anthropic-Workspace-Id":                  {"wrkspc-of-the-key"},
	"Anthropic-Next-Thing":                    {"one", "two"},
	"Anthropic-Echo":                          {"you sent " + keyOf("a", 1)},
	"Anthropic-Echo-Token":                    {"fine", aliceToken},
	"Set-Cookie":                              {"session=1"},
	"Server":                                  {"nginx"},
	"Via":                                     {"1.1 edge"},
	"Cf-Ray":                                  {"abc"},
	"X-Api-Key":                               {keyOf("a", 1)},
	"Authorization":                           {"Bearer " + keyOf("a", 1)},
	"X-Cc-Relay-Key":                          {"forged"},
	"Cache-Control":                           {"public, max-age=60"},
	"Location":                                {"https://example.com/"},
	"Access-Control-Allow-Origin":             {"*"},
	"Alt-Svc":                                 {`h3=":443"`},
	"Strict-Transport-Security":               {"max-age=1"},
	"Connection":                              {"keep-alive, anthropic-next-thing"},
	"Trailer":                                 {"Anthropic-Late"},
	"Www-Authenticate":                        {"Bearer"},
	"Content-Security-Policy":                 {"default-src 'none'"},
	"Anthropic-Ratelimit-Output-Tokens-Reset": {"2026-11-23T16:00:00Z"},
	"Anthropic-Ratelimit-Input-Tokens-Limit":  {"2000"},
	"Anthropic-Ratelimit-Something-Not-Invented-So-Far": {"1"},
}

// requirePoolLimits checks the limits of the pool, as far as upstreamHeaders
// tell them: with one key they are the key's.
func requirePoolLimits(t *testing.T, got http.Header) {
	t.Helper()
	assert.Equal(t, "1000", got.Get("Anthropic-Ratelimit-Requests-Limit"))
	assert.Equal(t, "999", got.Get("Anthropic-Ratelimit-Requests-Remaining"))
	assert.Equal(t, "2000", got.Get("Anthropic-Ratelimit-Input-Tokens-Limit"))
	for _, kind := range []string{"Requests", "Input-Tokens"} {
		name := "Anthropic-Ratelimit-" + kind + "-Reset"
		reset, err := time.Parse(time.RFC3339, got.Get(name))
		require.NoError(t, err, name)
		assert.WithinDuration(t, time.Now(), reset, 5*time.Second, name)
	}
}

// shownHeaders is what of them a client gets, besides the relay's own.
var shownHeaders = http.Header{
	"Request-Id":           {"req_upstream"},
	"Retry-After":          {"7"},
	"X-Should-Retry":       {"true"},
	"Anthropic-Next-Thing": {"one", "two"},
	"Cache-Control":        {"no-store"},
}

func headersOnTheWire(h http.Header) string {
	var b strings.Builder
	for name, values := range h {
		for _, v := range values {
			fmt.Fprintf(&b, "%s: %s\r\n", name, v)
		}
	}
	return b.String()
}

func testResponseHeaders(t *testing.T) {
	leakFree(t)
	for name, tt := range map[string]struct{ first, kind, body string }{
		"stream":       {"200 OK", "text/event-stream; charset=utf-8", wholeStream},
		"JSON":         {"200 OK", "application/json", `{"type":"message","usage":{"input_tokens":1}}`},
		"client error": {"400 Bad Request", "application/json", `{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: too large"}}`},
		"forbidden":    {"403 Forbidden", "application/json", `{"type":"error","error":{"type":"permission_error","message":"not for you"}}`},
	} {
		for _, hide := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, hide=%t", name, hide), func(t *testing.T) {
				wire := fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: %s\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nAnthropic-Late: %s\r\n\r\n",
					tt.first, tt.kind, headersOnTheWire(upstreamHeaders), len(tt.body), tt.body, keyOf("a", 1))
				up := newRaw(t, "a", say(wire))
				r := newRelay(t, setup{upstreams: []upstream{up.upstream}, Config: proxy.Config{HideRelay: hide}})
				got := r.do(call{body: ask(opus, strings.HasPrefix(tt.kind, "text"))})
				require.NoError(t, got.err)
				assert.Equal(t, tt.first[:3], fmt.Sprint(got.status))
				assert.Equal(t, tt.body, got.body)

				want := shownHeaders.Clone()
				want["Content-Type"] = []string{tt.kind}
				if got.header.Get("Content-Length") != "" {
					want["Content-Length"] = []string{itoa(len(tt.body))}
				}
				want["Date"] = got.header["Date"]
				if !hide {
					want["X-Cc-Relay-Provider"] = []string{"a"}
					want["X-Cc-Relay-Key"] = []string{r.live.Router.Upstreams()[0].Pool.Keys()[0].ID}
					want["X-Cc-Relay-Attempts"] = []string{"1"}
					assert.Less(t, waited(t, got), time.Second) // what a busy machine takes
					want["X-Cc-Relay-Wait-Ms"] = got.header["X-Cc-Relay-Wait-Ms"]
					want["X-Cc-Relay-Request-Id"] = []string{got.record["request_id"].(string)}
				}
				if tt.first == "200 OK" {
					requirePoolLimits(t, got.header)
					for _, kind := range []string{"Requests", "Input-Tokens"} {
						for _, what := range []string{"Limit", "Remaining", "Reset"} {
							name := "Anthropic-Ratelimit-" + kind + "-" + what
							want[name] = got.header[name]
						}
					}
				}
				assert.Equal(t, want, got.header)
			})
		}
	}
}

// Errors the relay makes itself carry its request id twice, so that a client's
// own log leads to the relay's record.
func TestHeadersOfTheRelaysOwnErrors(t *testing.T) {
	leakFree(t)
	for _, hide := range []bool{false, true} {
		t.Run(fmt.Sprintf("hide=%t", hide), func(t *testing.T) {
			r := newRelay(t, setup{upstreams: []upstream{newSim(t, "a", 1, status(401)).upstream}, Config: proxy.Config{HideRelay: hide}})
			for name, got := range map[string]reply{
				"refused": r.do(call{token: "unheard of"}),
				"failed":  r.do(call{body: ask(opus, false)}),
			} {
				id := got.record["request_id"].(string)
				assert.Regexp(t, `^req_relay_[0-9a-f]{24}$`, id, name)
				assert.Equal(t, id, got.header.Get("Request-Id"), name)
				assert.Equal(t, !hide, got.header.Get("X-Cc-Relay-Request-Id") == id, name)
				assert.Contains(t, got.body, `"request_id":"`+id+`"`, name)
				assert.Equal(t, !hide && name == "failed", got.header.Get("X-Cc-Relay-Attempts") == "1", name)
			}
		})
	}
}
