package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
	"cc-relay/internal/secret"
	"cc-relay/internal/simulator"
)

const extraHeaderSecret = "tenant-secret-77f1d0c2b3"

// canaries are all secrets of a run, in every form in which they could come out.
func canaries() []string {
	return []string{aliceToken, bobToken, extraHeaderSecret, keyOf("a", 1), keyOf("a", 2), keyOf("b", 1)}
}

// found are the canaries in a text.
func found(text string) []string {
	var list []string
	for _, c := range canaries() {
		if strings.Contains(text, c) {
			list = append(list, c)
		}
	}
	return list
}

// corpus is everything that came out of relays.
type corpus struct {
	mu   sync.Mutex
	text strings.Builder
}

func (c *corpus) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(&c.text, format+"\n", args...)
}

// reply takes all of an answer that a client can see.
func (c *corpus) reply(name string, got reply) {
	c.add("%s: %d %v %s %v", name, got.status, got.header, got.body, got.err)
}

// loud makes a fault say all secrets wherever a provider could say them.
func loud(f simulator.Fault) simulator.Fault {
	said := "you sent " + strings.Join(canaries(), " and ")
	f.Message = strings.TrimSpace(f.Message + " " + said)
	headers := map[string]string{
		"Anthropic-Debug": said, "X-Should-Retry": said, "Set-Cookie": "key=" + said, "Location": "http://127.0.0.1:1/" + keyOf("a", 1),
		"X-Api-Key": keyOf("a", 1), "Www-Authenticate": said, "Server": said,
	}
	for k, v := range f.Headers {
		headers[k] = v
	}
	f.Headers = headers
	switch {
	case f.Kind == simulator.FaultHTML, f.Kind == simulator.FaultStatus && f.Body != "" && !strings.HasPrefix(f.Body, "{"):
		f.Body = "<html>" + said + "</html>"
	case f.Body != "" && strings.HasSuffix(strings.TrimSpace(f.Body), "}"):
		f.Body = strings.TrimSuffix(strings.TrimSpace(f.Body), "}") + `,"said":"` + said + `"}`
	}
	return f
}

// secretScenario makes a relay with the canaries in it and does something with it.
type secretScenario func(t *testing.T, out *corpus)

// withSecrets configures every place that can hold a secret.
func withSecrets(ups ...upstream) setup {
	s := setup{}
	for _, u := range ups {
		u.Headers = map[string]secret.Value{"X-Tenant": secret.New(extraHeaderSecret)}
		s.upstreams = append(s.upstreams, u)
	}
	return s
}

// through sends calls of all kinds through a relay and keeps what comes back.
func through(t *testing.T, out *corpus, name string, s setup, calls ...call) {
	r := newRelay(t, s)
	r.live.Secrets = nil
	for _, c := range canaries() {
		r.live.Secrets = append(r.live.Secrets, secret.New(c))
	}
	o := observe(t, r, true)
	for _, c := range calls {
		out.reply(name, r.do(c))
	}
	out.add("%s: log: %s", name, r.log)
	accounts, err := json.Marshal(r.handler.Recent(len(calls)))
	require.NoError(t, err)
	require.NoError(t, o.tracer.Close(context.Background()))
	out.add("%s: metrics: %s\naccounts: %s\ntraces: %s", name, o.scrape(), accounts, o.sentSpans())
}

func bothCredentials(token string) http.Header {
	return http.Header{"X-Api-Key": {token}, "Authorization": {"Bearer " + token}, "Cookie": {"token=" + token}}
}

// troubleScenarios are all rows of the table, with providers that say secrets.
func troubleScenarios() map[string]secretScenario {
	list := map[string]secretScenario{}
	for name, tr := range troubles {
		for _, stream := range []bool{false, true} {
			for _, after := range []int{0, 3} {
				list[fmt.Sprintf("%s, stream=%t, after=%d", name, stream, after)] = func(t *testing.T, out *corpus) {
					f := loud(tr.fault)
					f.AfterEvents = after
					a, b := newSim(t, "a", 2, f), newSim(t, "b", 1, loud(status(403)))
					a.FirstTokenTimeout, a.ResponseTimeout, a.IdleTimeout = 150*time.Millisecond, 150*time.Millisecond, 150*time.Millisecond
					c := call{token: bobToken, header: bothCredentials(bobToken), body: ask(opus, stream)}
					through(t, out, name, withSecrets(a.upstream, b.upstream), c, c)
				}
			}
		}
	}
	return list
}

// wireScenarios are providers that speak no proper HTTP.
func wireScenarios() map[string]secretScenario {
	list := map[string]secretScenario{}
	for _, row := range wireTroubles {
		for name, tt := range row {
			list["wire: "+name] = func(t *testing.T, out *corpus) {
				said := "X-Echo: " + keyOf("a", 1) + "\r\nAnthropic-Echo: " + aliceToken + "\r\n"
				up := newRaw(t, "a", say(strings.Replace(tt.wire, "\r\n", "\r\n"+said, 1)))
				up.FirstTokenTimeout = time.Second
				through(t, out, name, withSecrets(up.upstream), call{body: ask(opus, true)})
			}
		}
	}
	return list
}

// requestScenarios are clients that put secrets where none belong.
func requestScenarios() map[string]secretScenario {
	plain := func(c call) secretScenario {
		return func(t *testing.T, out *corpus) {
			through(t, out, "request", withSecrets(newSim(t, "a", 1).upstream), c)
		}
	}
	return map[string]secretScenario{
		"served":                 plain(call{body: ask(opus, true)}),
		"token in the path":      plain(call{path: "/" + aliceToken + "/v1/messages", body: ask(opus, true)}),
		"token in the query":     plain(call{path: "/v1/messages?key=" + aliceToken, body: ask(opus, true)}),
		"token as the model":     plain(call{body: ask(aliceToken, true)}),
		"token as a model's id":  plain(call{method: "GET", path: "/v1/models/" + aliceToken}),
		"token as the session":   plain(call{header: http.Header{"X-Claude-Code-Session-Id": {aliceToken}}, body: ask(opus, true)}),
		"token in a broken body": plain(call{body: `{"` + aliceToken + `":"` + aliceToken + `"`}),
		"token as a method":      plain(call{method: strings.ToUpper("GET"), path: "/v1/messages", header: http.Header{"X-Http-Method-Override": {aliceToken}}}),
		"two tokens":             plain(call{token: "-", header: http.Header{"X-Api-Key": {aliceToken}, "Authorization": {"Bearer " + bobToken}}, body: ask(opus, true)}),
		"a token and more":       plain(call{token: "-", header: http.Header{"X-Api-Key": {aliceToken + " " + bobToken}}, body: ask(opus, true)}),
		"a key as a token":       plain(call{token: keyOf("a", 1), body: ask(opus, true)}),
		"count_tokens and models": func(t *testing.T, out *corpus) {
			f := loud(status(500))
			through(t, out, "others", withSecrets(newSim(t, "a", 1, f).upstream),
				call{path: "/v1/messages/count_tokens", body: ask(opus, false)}, call{method: "GET", path: "/v1/models"}, call{method: "GET", path: "/readyz"})
		},
		"cannot be reached": func(t *testing.T, out *corpus) {
			down := upstream{Config: provider.Config{Name: "a", BaseURL: "http://" + keyOf("a", 1) + ".invalid/" + keyOf("a", 2)}, keys: []string{keyOf("a", 1)}}
			through(t, out, "down", withSecrets(down), call{body: ask(opus, true)})
		},
		"a header that cannot be sent": func(t *testing.T, out *corpus) {
			up := newSim(t, "a", 1).upstream
			s := withSecrets(up)
			s.upstreams[0].Headers["X-Tenant"] = secret.New(extraHeaderSecret + "\n")
			through(t, out, "header", s, call{body: ask(opus, true)})
		},
		"a panic": func(t *testing.T, out *corpus) {
			rt := roundTrip(func(r *http.Request) (*http.Response, error) { panic(fmt.Sprint(r.Header)) })
			through(t, out, "panic", withSecrets(memory(rt)), call{body: ask(opus, true)})
		},
		"an error that quotes the request": func(t *testing.T, out *corpus) {
			rt := roundTrip(func(r *http.Request) (*http.Response, error) {
				_ = r.Body.Close()
				return nil, fmt.Errorf("cannot send %v", r.Header)
			})
			through(t, out, "error", withSecrets(memory(rt)), call{body: ask(opus, true)})
		},
		"a stream that quotes the request": func(t *testing.T, out *corpus) {
			up := newRaw(t, "a", func(c net.Conn, _ int) bool {
				_, _ = io.WriteString(c, sseHead+startFrame+frameOf("error", `{"type":"error","error":{"type":"api_error","message":"`+strings.Join(canaries(), " ")+`"}}`))
				return false
			})
			through(t, out, "stream", withSecrets(up.upstream), call{body: ask(opus, true)})
		},
	}
}

// Whatever goes wrong, and whoever says secrets: no key and no token comes out, in
// no log line, no header and no body.
func testNoSecretComesOut(t *testing.T) {
	leakFree(t)
	out := &corpus{}
	scenarios := 0
	t.Run("all", func(t *testing.T) {
		for _, list := range []map[string]secretScenario{troubleScenarios(), wireScenarios(), requestScenarios()} {
			for name, scenario := range list {
				scenarios++
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					scenario(t, out)
				})
			}
		}
	})
	text := out.text.String()
	require.Greater(t, scenarios, 200)
	for _, part := range []string{`"level":"debug"`, `"level":"warn"`, `"level":"error"`, `"message":"request"`, "event: error", "[redacted]", "x-should-retry", "X-Cc-Relay-Key"} {
		require.True(t, strings.Contains(strings.ToLower(text), strings.ToLower(part)), "the corpus has no %s: it proves little", part)
	}
	leaks := 0
	for line := range strings.Lines(text) {
		if hits := found(line); len(hits) > 0 && leaks < 5 {
			leaks++
			assert.Failf(t, "a secret came out", "%v in %.2000s", hits, line)
		}
	}

	t.Run("and a planted one is found", func(t *testing.T) {
		for _, c := range canaries() {
			assert.Equal(t, []string{c}, found(text+`{"level":"info","header":"Bearer `+c+`"}`))
		}
	})
}

// A reload brings keys that requests under way are given too, and takes others away that
// are still in use. Both are secrets to all requests from then on.
func TestSecretsOfOtherConfigurations(t *testing.T) {
	added, said := keyOf("a", 2), "said "+keyOf("a", 1)+" and "+keyOf("a", 2)
	live := func(rt http.RoundTripper, key string) *proxy.Live {
		up := memory(rt)
		up.keys = []string{key}
		return newLive(t, setup{upstreams: []upstream{up}}, newLogs().logger())
	}
	for name, answer := range map[string]struct {
		status     int
		kind, body string
	}{
		"error":       {400, "application/json", `{"type":"error","error":{"type":"invalid_request_error","message":"` + said + `"}}`},
		"error event": {200, "text/event-stream", startFrame + frameOf("error", `{"type":"error","error":{"type":"api_error","message":"`+said+`"}}`)},
	} {
		t.Run(name, func(t *testing.T) {
			var h *proxy.Handler
			reload := func() { h.Swap(live(nil, added)) }
			rt := roundTrip(func(r *http.Request) (*http.Response, error) {
				_, _ = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
				reload() // while the request is under way
				return &http.Response{
					StatusCode: answer.status, Header: http.Header{"Content-Type": {answer.kind}, "Anthropic-Debug": {added}, "Anthropic-Other": {"kept"}},
					ContentLength: -1, Request: r, Body: io.NopCloser(strings.NewReader(answer.body)),
				}, nil
			})
			h = proxy.NewHandler(live(rt, keyOf("a", 1)), newLogs().logger())
			require.Equal(t, added, h.Scrub(added), "it is not known yet")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, aliceRequest(ask(opus, true)))
			assert.Equal(t, answer.status, w.Code)
			assert.Contains(t, w.Body.String(), "said [redacted] and [redacted]")
			assert.Equal(t, "kept", w.Header().Get("Anthropic-Other"))
			assert.Empty(t, found(fmt.Sprint(w.Body, w.Header())))
			reload()
			assert.Equal(t, "said [redacted] and [redacted]", h.Scrub(said), "also what was removed two configurations ago")
		})
	}
}
