package proxy_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
	"cc-relay/internal/secret"
)

func testBodiesReachTheProviderByteForByte(t *testing.T) {
	leakFree(t)
	up := newRaw(t, "a", sayAndKeep(jsonHead+"Content-Length: 45\r\n\r\n"+`{"type":"message","usage":{"input_tokens":1}}`))
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for name, body := range map[string]string{
		"plain":           ask(opus, false),
		"unknown fields":  `{"model":"claude-next","future":{"a":[1,{"b":null}]},"messages":[{"role":"system","content":[{"type":"hologram","x":1}]}]}`,
		"odd white space": " \r\n\t{ \"model\" :\n\t\"claude-opus-5-5\" , \"messages\":[ ] }\r\n\r\n ",
		"unicode":         `{"messages":[{"role":"user","content":"naïve 漢字 🙂 \u00e9 \ud83d\ude42 \/ \b"}],"model":"claude-opus-5-5"}`,
		"half surrogate":  `{"messages":[{"role":"user","content":"\ud83d"}],"model":"claude-opus-5-5"}`,
		"big numbers":     `{"model":"claude-opus-5-5","seed":123456789012345678901234567890,"x":1.0000000000000000001,"y":-0,"z":1E400}`,
		"escaped model":   `{"model":"claude\u002dopus-5-5","messages":[]}`,
		"fields inside":   `{"model":"claude-opus-5-5","messages":[{"model":"x","model":"y","stream":"no"}]}`,
		"large":           `{"model":"claude-opus-5-5","messages":[{"role":"user","content":"` + strings.Repeat("x7 ", 400_000) + `"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunked := range []bool{false, true} {
				c := call{body: body}
				if chunked {
					c = call{body: ""}
				}
				req := r.request(c)
				if chunked {
					req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), -1
				}
				resp, err := r.client.RoundTrip(req)
				require.NoError(t, err)
				got := readReply(resp)
				require.Equal(t, 200, got.status, got.body)
				seen := <-up.requests
				assert.Equal(t, body, seen.body, "chunked: %t", chunked)
				r.log.next(t)
			}
		})
	}
}

// clientHeaders are headers of a client that is up to no good as well.
const clientHeaders = "X-Api-Key: " + aliceToken + "\r\n" +
	"Authorization: Bearer sk-ant-somebody-elses\r\n" +
	"anthropic-version: 2026-10-21\r\n" +
	"Anthropic-Beta: one-2026-01-01,two-2026-01-01\r\n" +
	"anthropic-beta: three-2026-01-01\r\n" +
	"Anthropic-Dangerous-Direct-Browser-Access: true\r\n" +
	"anthropic-next-thing: yes\r\n" +
	"x-claude-code-session-id: 0f4d2c1e\r\n" +
	"X-Claude-Code-Agent-Id: ab12\r\n" +
	"X-Stainless-Retry-Count: 2\r\n" +
	"X-App: cli\r\n" +
	"User-Agent: claude-cli/2.1.330 (external, cli)\r\n" +
	"Accept: application/json\r\n" +
	"Content-Type: application/json\r\n" +
	// None of these may pass:
	"Connection: keep-alive, x-api-key, anthropic-version, authorization\r\n" +
	"Accept-Encoding: gzip, br, zstd\r\n" +
	"Cookie: session=1\r\n" +
	"Proxy-Authorization: Basic c2VjcmV0\r\n" +
	"X-Goog-Api-Key: g\r\n" +
	"X-Forwarded-For: 10.0.0.1\r\n" +
	"X-Forwarded-Host: evil\r\n" +
	"X_Forwarded_For: 10.0.0.1\r\n" +
	"Forwarded: for=10.0.0.1\r\n" +
	"X-Real-Ip: 10.0.0.1\r\n" +
	"Idempotency-Key: abc\r\n" +
	"X-Cc-Relay-Key: forged\r\n" +
	"Origin: http://relay\r\n" +
	"Sec-Fetch-Site: same-origin\r\n" +
	"Referer: http://relay/\r\n" +
	"Te: trailers\r\n" +
	"Trailer: X-Api-Key\r\n" +
	"Expect: 100-continue\r\n" +
	"Range: bytes=0-1\r\n" +
	"Host: relay\r\n"

// forwardedHeaders is what of them a provider gets.
func forwardedHeaders() http.Header {
	return http.Header{
		"Anthropic-Version":                         {"2026-10-21"},
		"Anthropic-Beta":                            {"one-2026-01-01,two-2026-01-01", "three-2026-01-01"},
		"Anthropic-Dangerous-Direct-Browser-Access": {"true"},
		"Anthropic-Next-Thing":                      {"yes"},
		"X-Claude-Code-Session-Id":                  {"0f4d2c1e"},
		"X-Claude-Code-Agent-Id":                    {"ab12"},
		"X-Stainless-Retry-Count":                   {"2"},
		"X-App":                                     {"cli"},
		"User-Agent":                                {"claude-cli/2.1.330 (external, cli)"},
		"Accept":                                    {"application/json"},
		"Content-Type":                              {"application/json"},
		// The relay's own:
		"Accept-Encoding": {"identity"},
	}
}

func TestWhatTheProviderSees(t *testing.T) {
	leakFree(t)
	for name, tt := range map[string]struct {
		cfg    provider.Config
		prefix string      // of the path at the provider
		want   http.Header // over forwardedHeaders
	}{
		"x-api-key": {provider.Config{}, "", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
		"bearer":    {provider.Config{Auth: "bearer"}, "", http.Header{"Authorization": {"Bearer " + keyOf("a", 1)}}},
		"extra headers": {
			provider.Config{Headers: map[string]secret.Value{"x-tenant": secret.New("blue"), "anthropic-beta": secret.New("ours-1"), "User-Agent": secret.New("relay")}}, "",
			http.Header{"X-Api-Key": {keyOf("a", 1)}, "X-Tenant": {"blue"}, "Anthropic-Beta": {"ours-1"}, "User-Agent": {"relay"}},
		},
		"prefix":              {provider.Config{BaseURL: "/some/gateway"}, "/some/gateway", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
		"prefix and slash":    {provider.Config{BaseURL: "/some/gateway/"}, "/some/gateway", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
		"/v1":                 {provider.Config{BaseURL: "/v1"}, "", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
		"/v1/":                {provider.Config{BaseURL: "/v1/"}, "", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
		"prefix and /v1":      {provider.Config{BaseURL: "/llm/v1"}, "/llm", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
		"a name like /v1":     {provider.Config{BaseURL: "/apiv1"}, "/apiv1", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
		"a slash and no more": {provider.Config{BaseURL: "/"}, "", http.Header{"X-Api-Key": {keyOf("a", 1)}}},
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan *http.Request, 1)
			url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				seen <- r
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"type":"message","usage":{"input_tokens":1}}`)
			}))
			tt.cfg.Name, tt.cfg.BaseURL = "a", url+tt.cfg.BaseURL
			r := newRelay(t, setup{upstreams: []upstream{{Config: tt.cfg, keys: []string{keyOf("a", 1)}}}})
			body := ask(opus, false)
			got, _ := r.talk("POST /v1/messages?beta=true&x=%2F%20+y HTTP/1.1\r\n"+clientHeaders+"Content-Length: "+itoa(len(body))+"\r\n\r\n"+body, 2)
			require.Len(t, got, 2)
			require.Equal(t, 100, got[0].status, "the body was asked for")
			require.Equal(t, 200, got[1].status, got[1].body)

			req := <-seen
			want := forwardedHeaders()
			want["Content-Length"] = []string{itoa(len(body))}
			for h, v := range tt.want {
				want[h] = v
			}
			assert.Equal(t, want, req.Header)
			assert.Equal(t, tt.prefix+"/v1/messages?beta=true&x=%2F%20+y", req.RequestURI)
			assert.Equal(t, strings.TrimPrefix(url, "http://"), req.Host)
			assert.Empty(t, req.TransferEncoding, "the body is sent with its length")
			assert.Empty(t, req.Trailer)
		})
	}
}

func TestNoUserAgentIsMadeUp(t *testing.T) {
	leakFree(t)
	up := newRaw(t, "a", sayAndKeep(jsonHead+"Content-Length: 45\r\n\r\n"+`{"type":"message","usage":{"input_tokens":1}}`))
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	require.Equal(t, 200, r.do(call{body: ask(opus, false), header: http.Header{"User-Agent": nil}}).status)
	seen := <-up.requests
	assert.NotContains(t, strings.ToLower(seen.head), "user-agent:")
	assert.True(t, strings.HasPrefix(seen.head, "POST /v1/messages HTTP/1.1\r\n"), seen.head)
}

// Each attempt sends the request whole, whatever the one before has read of it.
func TestEveryAttemptSendsTheSameBody(t *testing.T) {
	leakFree(t)
	early := newRaw(t, "a", say("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"))
	b := newSim(t, "b", 2, key(1, status(429)))
	r := newRelay(t, setup{upstreams: []upstream{early.upstream, b.upstream}})
	body := `{"model":"claude-opus-5-5","max_tokens":5,"messages":[{"role":"user","content":"` + strings.Repeat("long ", 100_000) + `"}]}`
	requireServed(t, r.do(call{body: body}), false)
	assert.Equal(t, body, (<-early.requests).body)
	require.Equal(t, []string{"key-1", "key-2"}, b.keysSeen())
	for _, rec := range b.Seen() {
		assert.Equal(t, body, string(rec.Body))
	}
}

// lateReader is a transport that answers before it has read the request, and
// reads on afterwards.
type lateReader struct {
	goOn chan struct{}
	done sync.WaitGroup
	mu   sync.Mutex
	read []string
}

func (l *lateReader) RoundTrip(r *http.Request) (*http.Response, error) {
	l.done.Go(func() {
		<-l.goOn
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		_ = r.Body.Close() // as some transports do
		l.mu.Lock()
		defer l.mu.Unlock()
		if err == nil {
			l.read = append(l.read, string(body))
		}
	})
	return &http.Response{
		StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: -1, Request: r,
		Body: io.NopCloser(strings.NewReader(`{"type":"message","usage":{"input_tokens":1}}`)),
	}, nil
}

// A buffer must not serve the next request while a transport still reads it.
func TestABodyIsNotReusedBeforeItsLastReader(t *testing.T) {
	leakFree(t)
	synctest.Test(t, func(t *testing.T) {
		late := &lateReader{goOn: make(chan struct{})}
		live := newLive(t, setup{upstreams: []upstream{memory(late)}}, newLogs().logger())
		serve := handlerFunc(live, zerolog.Nop())
		var sent []string
		for i := range 20 {
			body := `{"model":"claude-opus-5-5","n":` + itoa(i) + `,"pad":"` + strings.Repeat(itoa(i%10), 2000) + `"}`
			sent = append(sent, body)
			require.Equal(t, 200, serve(body).Code)
		}
		close(late.goOn)
		late.done.Wait()
		assert.ElementsMatch(t, sent, late.read)
	})
}

// A buffer that was used by a long request must not leak into a short one.
func TestBodiesOfOtherRequestsDoNotShow(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	long := `{"model":"claude-opus-5-5","max_tokens":1,"messages":[{"role":"user","content":"` + strings.Repeat("secret ", 20_000) + `"}]}`
	short := ask(opus, false)
	for _, body := range []string{long, short, long, short} {
		requireServed(t, r.do(call{body: body}), false)
		seen := a.Seen()
		assert.True(t, bytes.Equal([]byte(body), seen[len(seen)-1].Body), "got %d bytes, want %d", len(seen[len(seen)-1].Body), len(body))
	}
}
