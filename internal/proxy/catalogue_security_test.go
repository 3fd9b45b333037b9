package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
)

// securityRow is a requirement of the catalogue and the tests that prove it here.
type securityRow struct {
	id    string
	tests []func(*testing.T)
}

// securityRows are those that the way of a request must keep.
var securityRows = []securityRow{
	{"S05", []func(*testing.T){testRefusalsComeBeforeTheBody, testRefusalsAreUniform}},
	{"S07", []func(*testing.T){testBrowsers}},
	{"S14", []func(*testing.T){testNoSecretComesOut}},
	{"S15", []func(*testing.T){TestWhatTheProviderSees, TestNoAnswerToAnOwnCredential}},
	{"S16", []func(*testing.T){testResponseHeaders, testSecretsInErrorBodies, TestWhatCountsAsASecret}},
	{"S17", []func(*testing.T){testRedirects}},
	{"S18", []func(*testing.T){testClientsChooseNoAddress}},
	{"S19", []func(*testing.T){TestProvidersOverTLS}},
	{"S23", []func(*testing.T){TestPromptsAreNotLogged, TestThePoolTellsNothingOfPrompts}},
	{"S24", []func(*testing.T){TestRecordsCannotBeForged, testLogsCannotBeForged}},
	{"S25", []func(*testing.T){testMalformedRequestsNeverReachAProvider, testChunkedRequestsAreServedOnceAndClosed}},
	{"S26", []func(*testing.T){testPathsMatchExactly, TestOtherMethodsAreRefused, testProxyFormsAreRefusedAndClosed}},
	{"S28", []func(*testing.T){testBodiesThatAreRefused, testBodiesReachTheProviderByteForByte}},
	{"S29", []func(*testing.T){testAnswersDoNotCross, TestABodyIsNotReusedBeforeItsLastReader, TestBodiesOfOtherRequestsDoNotShow}},
	{"S30", []func(*testing.T){testStreamsPassByteForByte, testAnswersPassByteForByte}},
	{"S31", []func(*testing.T){testForwardingHeadersAreNotTrusted}},
}

// strangeHosts are addresses that a client may try to make the relay call.
func strangeHosts(decoy string) []string {
	_, port, _ := strings.Cut(strings.TrimPrefix(decoy, "http://"), ":")
	return []string{
		strings.TrimPrefix(decoy, "http://"), "0.0.0.0:" + port, "[::]:" + port, "[::ffff:127.0.0.1]:" + port, "127.0.0.1.:" + port, "localhost.:" + port,
		"169.254.169.254", "user:pass@127.0.0.1:" + port, "127.0.0.1:" + port + "#", "127.0.0.1:" + port + "/x?", "2130706433:" + port, "0x7f.1:" + port, "127.1:" + port,
	}
}

// Whatever a client writes, wherever: requests go to the configured address.
func testClientsChooseNoAddress(t *testing.T) {
	leakFree(t)
	var called atomic.Int32
	decoy := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Add(1) }))
	var mu sync.Mutex
	sent := map[string]int{}
	rt := roundTrip(func(r *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		mu.Lock()
		sent[r.URL.Scheme+"://"+r.URL.Host+r.URL.EscapedPath()+" as "+r.Host]++
		mu.Unlock()
		return &http.Response{
			StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: -1, Request: r,
			Body: io.NopCloser(strings.NewReader(`{"type":"message","usage":{"input_tokens":1}}`)),
		}, nil
	})
	up := memory(rt)
	up.BaseURL = "https://provider.example/prefix"
	r := newRelay(t, setup{upstreams: []upstream{up}})
	served := 0
	for _, host := range strangeHosts(decoy) {
		addressed := "http://" + host + "/v1/messages"
		var calls []call
		for _, name := range []string{
			"X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Forwarded", "X-Original-Url", "X-Rewrite-Url", "X-Host", "X-Upstream", "X-Base-Url", "X-Target-Url",
			"X-Http-Host-Override", "Proxy", "Proxy-Connection", "Referer", "Destination", "Location", "Alt-Svc", "X-Cc-Relay-Provider", "Anthropic-Base-Url", "X-Claude-Code-Base-Url",
		} {
			calls = append(calls, call{header: http.Header{name: {addressed}}}, call{header: http.Header{name: {host}}})
		}
		for _, path := range []string{"?url=" + addressed, "?base_url=" + addressed, "?host=" + host, "@" + host, "/@" + host, "/..//" + host, "%2f%2f" + host, "%23" + host, "/%2e%2e/%2e%2e/x"} {
			calls = append(calls, call{path: strings.ReplaceAll("/v1/messages"+path, "#", "%23")})
		}
		for _, field := range []string{"base_url", "api_base", "url", "endpoint", "provider", "host", "proxy"} {
			calls = append(calls, call{body: strings.Replace(ask(opus, false), "{", fmt.Sprintf("{%q:%q,", field, addressed), 1)})
		}
		for _, model := range []string{addressed, host + "/" + opus, "../../" + opus, "//" + host + "/" + opus} {
			calls = append(calls, call{body: ask(model, false)}, call{method: "GET", path: "/v1/models/" + strings.NewReplacer("#", "%23", "?", "%3f").Replace(model)})
		}
		calls = append(calls, call{host: "relay", header: http.Header{"X-Forwarded-Host": {host}}})
		for _, c := range calls {
			if c.body == "" && c.method == "" {
				c.body = ask(opus, false)
			}
			if r.send(c).status == 200 {
				served++
			}
		}
		r.talk("POST "+addressed+" HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer "+aliceToken+"\r\nContent-Length: 0\r\n\r\n", 1)
		r.talk("POST /v1/messages HTTP/1.1\r\nHost: "+host+"\r\nAuthorization: Bearer "+aliceToken+"\r\nContent-Length: 0\r\n\r\n", 1)
	}
	assert.Zero(t, called.Load(), "somebody else was called")
	assert.Greater(t, served, 500, "most requests are served, and so prove something")
	mu.Lock()
	defer mu.Unlock()
	for to, n := range sent {
		assert.Contains(t, []string{
			"https://provider.example/prefix/v1/messages as provider.example", "https://provider.example/prefix/v1/models as provider.example",
		}, strings.TrimSuffix(to, " as ")+map[bool]string{true: " as provider.example"}[strings.HasSuffix(to, " as ")], "%d times", n)
	}
}

// controls are what moves a terminal or ends a line.
var controls = []string{"\n", "\r", "\r\n", "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u0085", "\u2028", "\x00", "\x08\x08", "\x7f", "%0d%0a", "\\n"}

// A line of the log is one line of printable characters, whatever clients and providers say.
func testLogsCannotBeForged(t *testing.T) {
	leakFree(t)
	const forged = `{"level":"info","message":"request","client":"root"}`
	for _, c := range controls {
		text := "x" + c + forged + c
		quoted := strings.NewReplacer("\n", `\n`, "\r", `\r`, "\x1b", `\u001b`, "\x07", `\u0007`, "\x00", `\u0000`, "\x08", `\b`, `"`, `\"`).Replace(text)
		for _, f := range []struct {
			name string
			up   *rawUpstream
		}{
			{"error body", newRaw(t, "a", say("HTTP/1.1 400 "+strings.NewReplacer("\n", " ", "\r", " ", "\x00", " ").Replace(text)+"\r\nContent-Type: application/json\r\nContent-Length: "+itoa(len(quoted)+62)+
				"\r\n\r\n"+`{"type":"error","error":{"type":"`+"x"+`","message":"`+quoted+`"        }}`))},
			{"error event", newRaw(t, "a", say(sseHead+startFrame+frameOf("error", `{"type":"error","error":{"type":"`+quoted+`","message":"`+quoted+`"}}`)))},
			{"no answer", newRaw(t, "a", say(text+"\r\n\r\n"))},
		} {
			t.Run(fmt.Sprintf("%q, %s", c, f.name), func(t *testing.T) {
				t.Parallel() // each waits before it tries again
				r := newRelay(t, setup{upstreams: []upstream{f.up.upstream}})
				for _, c := range []call{
					{body: `{"model":"` + quoted + `","stream":true,"messages":[]}`},
					{body: ask(opus, true), header: http.Header{"X-Claude-Code-Session-Id": {strings.Map(visible, text)}, "User-Agent": {strings.Map(visible, text)}}},
					{method: "GET", path: "/v1/models/" + escapedPath(text)},
					{path: "/" + escapedPath(text), body: "{}"},
				} {
					r.send(c)
				}
				r.handler.Stop()
				for line := range strings.Lines(r.log.String()) {
					line = strings.TrimSuffix(line, "\n")
					assert.NotContains(t, line, `"client":"root"`)
					for _, char := range line {
						if char < ' ' || char >= 0x7f && char < 0xa0 || char == '\u2028' || char == '\u2029' {
							assert.Failf(t, "a control character is in the log", "%q in %q", char, line)
							break
						}
					}
				}
				require.NotEmpty(t, r.log.String())
			})
		}
	}
}

func visible(r rune) rune {
	if r < ' ' || r == 0x7f {
		return '?'
	}
	return r
}

func escapedPath(text string) (path string) {
	for _, b := range []byte(text) {
		path += fmt.Sprintf("%%%02X", b)
	}
	return path
}

// Many clients at once, each with a mark that the provider says back: nobody gets
// another's.
func testAnswersDoNotCross(t *testing.T) {
	leakFree(t)
	echo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		_, rest, _ := strings.Cut(string(body), "MARK-")
		mark, _, _ := strings.Cut(rest, "-END")
		text := strings.Repeat("MARK-"+mark+"-END ", 20)
		if !strings.Contains(string(body), `"stream":true`) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"type":"message","content":[{"type":"text","text":%q}],"usage":{"input_tokens":1,"output_tokens":1}}`, text)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, startFrame)
		for range 10 {
			_, _ = io.WriteString(w, frameOf("content_block_delta", fmt.Sprintf(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%q}}`, text)))
			w.(http.Flusher).Flush()
		}
		_, _ = io.WriteString(w, usageFrame+stopFrame)
	}))
	r := newRelay(t, setup{upstreams: []upstream{{Config: provider.Config{Name: "a", BaseURL: echo}, keys: []string{keyOf("a", 1), keyOf("a", 2)}, maxWait: patient}}})
	r.client.MaxIdleConnsPerHost = 8 // connections are used again, by others
	var all sync.WaitGroup
	for client := range 32 {
		all.Go(func() {
			token := []string{aliceToken, bobToken}[client%2]
			for n := range 30 {
				own := fmt.Sprintf("MARK-%d-%d-END", client, n)
				body := strings.Replace(ask(opus, n%3 > 0), "hello", own+strings.Repeat(" long", 1<<(n%12)), 1)
				got := r.send(call{token: token, body: body, header: http.Header{"X-Claude-Code-Session-Id": {"the same for all"}}})
				if !assert.Equal(t, 200, got.status, got.body) || !assert.NoError(t, got.err) {
					return
				}
				assert.Equal(t, "no-store", got.header.Get("Cache-Control"))
				assert.Equal(t, strings.Count(got.body, "MARK-"), strings.Count(got.body, own), "another's answer")
				assert.NotZero(t, strings.Count(got.body, own))
			}
		})
	}
	all.Wait()
}

// What a provider says in an answer is what the client gets, byte for byte, even where
// it looks like a key: it is the model's.
func testAnswersPassByteForByte(t *testing.T) {
	leakFree(t)
	for name, text := range map[string]string{
		"odd spaces":      `{ "type" : "message" , "content":[],"usage":{"input_tokens":1}  }` + "\n\n",
		"escapes":         `{"type":"message","content":[{"type":"text","text":"\u00e9\/\ud83d\ude00 é/😀 \u2028"}],"usage":{"input_tokens":1}}`,
		"a key in it":     `{"type":"message","content":[{"type":"text","text":"` + keyOf("a", 1) + `"}],"usage":{"input_tokens":1}}`,
		"unknown members": `{"zeta":1e400,"type":"message","future":{"a":[1,2,{"b":null}]},"usage":{"input_tokens":1,"later":0.10}}`,
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", say(jsonHead+"Content-Length: "+itoa(len(text))+"\r\n\r\n"+text))
			got := newRelay(t, setup{upstreams: []upstream{up.upstream}}).do(call{body: ask(opus, false)})
			assert.Equal(t, 200, got.status)
			assert.Equal(t, text, got.body)
		})
	}
}

// Where a request says it comes from proves nothing and goes nowhere.
func testForwardingHeadersAreNotTrusted(t *testing.T) {
	leakFree(t)
	seen := make(chan http.Header, 1)
	up := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		seen <- r.Header
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"type":"message","usage":{"input_tokens":1}}`)
	}))
	r := newRelay(t, setup{upstreams: []upstream{{Config: provider.Config{Name: "a", BaseURL: up}, keys: []string{keyOf("a", 1)}}}})
	for _, name := range []string{
		"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Client-Cert", "X-Forwarded-User", "X-Forwarded-Email", "Forwarded", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip",
		"Cf-Connecting-Ip", "X-Remote-User", "Remote-User", "X_forwarded_for", "X-Original-Forwarded-For", "X-Cluster-Client-Ip", "Via", "X-Ssl-Client-Verify",
	} {
		for _, value := range []string{"127.0.0.1", "::1", "alice", "for=127.0.0.1;host=localhost;proto=https", "SUCCESS"} {
			got := r.do(call{token: "-", body: ask(opus, false), header: http.Header{name: {value}}})
			requireError(t, got, 401, "authentication_error")
		}
		got := r.do(call{body: ask(opus, false), header: http.Header{name: {"203.0.113.7"}}})
		require.Equal(t, 200, got.status)
		for to, values := range <-seen {
			assert.NotContains(t, strings.Join(values, " "), "203.0.113.7", "%s came as %s", name, to)
		}
		assert.NotContains(t, fmt.Sprint(got.record), "203.0.113.7", name)
	}
	assert.Empty(t, seen)
	direct := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(ask(opus, false)))
	direct.RemoteAddr, direct.Host = "127.0.0.1:1", "127.0.0.1"
	direct.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	r.handler.ServeHTTP(rec, direct)
	assert.Equal(t, 401, rec.Code, "nor does the address itself stand for a token")
}
