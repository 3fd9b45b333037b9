package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
	"cc-relay/internal/simulator"
)

// Credentials of users, such as Anthropic gives them.
const (
	ownKey   = "sk-ant-api03-CANARY-8f2e6b1d"
	ownToken = "sk-ant-oat01-CANARY-5c7a9e3f"
)

// anthropics makes a provider Anthropic's.
func anthropics(u upstream) upstream {
	u.Origin = provider.OriginAnthropic
	return u
}

// passing is a relay before these providers that lets own credentials pass.
func passing(t testing.TB, ups ...upstream) *relay {
	return newRelay(t, setup{own: true, upstreams: ups})
}

// ownCalls are the credentials that pass, as clients send them.
var ownCalls = map[string]http.Header{
	"a key":                        {"X-Api-Key": {ownKey}},
	"a key as bearer":              {"Authorization": {"Bearer " + ownKey}},
	"a subscription":               {"Authorization": {"Bearer " + ownToken}},
	"in lower case":                {"Authorization": {"bearer " + ownToken}},
	"a key in both, as a helper's": {"X-Api-Key": {ownKey}, "Authorization": {"Bearer " + ownKey}},
	"a key and a subscription":     {"X-Api-Key": {ownKey}, "Authorization": {"Bearer " + ownToken}},
}

// asOwn is a call with such a credential and nothing else.
func asOwn(header http.Header, body string) call { return call{token: "-", header: header, body: body} }

// With a credential of their own, clients talk to the provider themselves: it and
// all that belongs to it arrive as they were sent.
func TestOwnCredentialsPass(t *testing.T) {
	leakFree(t)
	const body = " {\"model\": \"claude-opus-5-5\",\n\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\"}], \"future\":1e400}\n"
	up := newRaw(t, "a", sayAndKeep(jsonHead+"Content-Length: 45\r\n\r\n"+`{"type":"message","usage":{"input_tokens":1}}`))
	r := passing(t, anthropics(up.upstream))
	for name, header := range ownCalls {
		t.Run(name, func(t *testing.T) {
			c := asOwn(header.Clone(), body)
			c.path = "/v1/messages?beta=true&x=%20y"
			c.header["Anthropic-Beta"] = []string{"oauth-2025-04-20,context-management-2025-06-27, new", "second-line"}
			c.header["X-Claude-Code-Session-Id"] = []string{"session"}
			c.header["Cookie"] = []string{"no=business"}
			got := r.do(c)
			require.Equal(t, 200, got.status, got.body)
			seen := <-up.requests
			assert.Equal(t, body, seen.body)
			line, head, _ := strings.Cut(seen.head, "\r\n")
			assert.Equal(t, "POST /v1/messages?beta=true&x=%20y HTTP/1.1", line)
			want := []string{"Anthropic-Beta: oauth-2025-04-20,context-management-2025-06-27, new", "Anthropic-Beta: second-line", "Anthropic-Version: 2023-06-01"}
			for name, values := range header {
				want = append(want, name+": "+values[0])
			}
			var lines []string
			for _, line := range strings.Split(head, "\r\n") {
				if name, _, _ := strings.Cut(line, ":"); strings.HasPrefix(name, "Anthropic-") || name == "Authorization" || name == "X-Api-Key" || name == "Cookie" {
					lines = append(lines, line)
				}
			}
			assert.ElementsMatch(t, want, lines)
			assert.Equal(t, true, got.record["own_credential"])
			assert.Empty(t, got.record["client"])
			assert.Empty(t, got.record["key_id"])
			assert.Equal(t, "a", got.record["upstream"])
		})
	}
	assert.NotContains(t, r.log.String(), "CANARY")
}

// All else that is unknown is refused, and no provider sees it: it may be a relay
// token with a slip of the pen.
func TestOtherCredentialsDoNotPass(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	a.upstream = anthropics(a.upstream)
	on, off := passing(t, a.upstream), newRelay(t, setup{upstreams: []upstream{a.upstream}})
	refuse := func(t *testing.T, r *relay, h http.Header) {
		t.Helper()
		for _, target := range []string{"POST /v1/messages", "POST /v1/messages/count_tokens", "GET /v1/models", "GET /v1/models/x"} {
			c := asOwn(h, ask(opus, false))
			c.method, c.path, _ = strings.Cut(target, " ")
			got := r.do(c)
			requireError(t, got, 401, "authentication_error")
			assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
			assert.NotContains(t, got.record, "own_credential")
			assert.Empty(t, got.record["upstream"])
		}
	}
	for name, h := range map[string]http.Header{
		"a subscription as a key":        {"X-Api-Key": {ownToken}},
		"an admin key":                   {"X-Api-Key": {"sk-ant-admin01-CANARY"}},
		"an admin key as bearer":         {"Authorization": {"Bearer sk-ant-admin01-CANARY"}},
		"a session":                      {"Authorization": {"Bearer sk-ant-sid01-CANARY"}},
		"a beginning":                    {"X-Api-Key": {"sk-ant-"}},
		"in capitals":                    {"X-Api-Key": {"SK-ANT-API03-CANARY"}},
		"after something else":           {"X-Api-Key": {"x" + ownKey}},
		"quoted":                         {"X-Api-Key": {`"` + ownKey + `"`}},
		"bearer in x-api-key":            {"X-Api-Key": {"Bearer " + ownKey}},
		"another vendor's":               {"X-Api-Key": {"sk-proj-CANARY"}},
		"a provider's key":               {"X-Api-Key": {keyOf("a", 1)}},
		"a token cut short":              {"X-Api-Key": {aliceToken[:20]}},
		"a token and more":               {"Authorization": {"Bearer " + aliceToken + "0"}},
		"another scheme":                 {"Authorization": {"Basic " + ownKey}},
		"no scheme":                      {"Authorization": {ownToken}},
		"none":                           {},
		"in another header":              {"X-Goog-Api-Key": {ownKey}, "Cookie": {"key=" + ownKey}, "Proxy-Authorization": {"Bearer " + ownToken}},
		"beside an unknown one":          {"X-Api-Key": {aliceToken[:20]}, "Authorization": {"Bearer " + ownToken}},
		"beside an unknown bearer":       {"X-Api-Key": {ownKey}, "Authorization": {"Bearer " + aliceToken[:20]}},
		"beside another scheme":          {"X-Api-Key": {ownKey}, "Authorization": {"Basic " + aliceToken}},
		"a subscription twice, as a key": {"X-Api-Key": {ownToken}, "Authorization": {"Bearer " + ownToken}},
		"beside an empty one":            {"X-Api-Key": {""}, "Authorization": {"Bearer " + ownToken}},
		"a key beside an empty bearer":   {"X-Api-Key": {ownKey}, "Authorization": {"Bearer "}},
		"a list":                         {"Authorization": {"Basic " + aliceToken + ", Bearer " + ownToken}},
	} {
		t.Run(name, func(t *testing.T) { refuse(t, on, h) })
	}
	t.Run("off", func(t *testing.T) {
		for name, h := range ownCalls {
			t.Run(name, func(t *testing.T) { refuse(t, off, h) })
		}
	})
	t.Run("one header twice", func(t *testing.T) {
		for _, h := range []http.Header{{"X-Api-Key": {ownKey, ownKey}}, {"Authorization": {"Bearer " + ownToken, "Bearer " + ownToken}}, {"X-Api-Key": {ownKey, aliceToken}}} {
			requireError(t, on.do(asOwn(h, ask(opus, false))), 400, "invalid_request_error")
		}
	})
	assert.Empty(t, a.Seen(), "the provider was asked")
	assert.NotContains(t, on.log.String()+off.log.String(), "CANARY")
}

// A relay token is what counts wherever it is; what else the client sends is its own
// business and stays here.
func TestARelayTokenComesBeforeAnOwnCredential(t *testing.T) {
	leakFree(t)
	up := newRaw(t, "a", sayAndKeep(jsonHead+"Content-Length: 45\r\n\r\n"+`{"type":"message","usage":{"input_tokens":1}}`))
	r := passing(t, anthropics(up.upstream))
	for name, h := range map[string]http.Header{
		"as a key":    {"X-Api-Key": {aliceToken}, "Authorization": {"Bearer " + ownToken}},
		"as bearer":   {"X-Api-Key": {ownKey}, "Authorization": {"Bearer " + aliceToken}},
		"before keys": {"X-Api-Key": {aliceToken}, "Authorization": {"Bearer " + ownKey}},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.do(asOwn(h, ask(opus, false)))
			require.Equal(t, 200, got.status, got.body)
			assert.Equal(t, "alice", got.record["client"])
			assert.NotContains(t, got.record, "own_credential")
			assert.NotEmpty(t, got.record["key_id"])
			seen := <-up.requests
			assert.Contains(t, seen.head, "\r\nX-Api-Key: "+keyOf("a", 1))
			assert.NotContains(t, seen.head, "Authorization")
			assert.NotContains(t, seen.head, "CANARY")
			assert.NotContains(t, seen.head, aliceToken)
		})
	}
}

// Where no token is asked for, an own credential passes and all others are served by
// the pool, whatever they are.
func TestOwnCredentialsWithoutClients(t *testing.T) {
	leakFree(t)
	for _, on := range []bool{true, false} {
		up := newRaw(t, "a", sayAndKeep(jsonHead+"Content-Length: 45\r\n\r\n"+`{"type":"message","usage":{"input_tokens":1}}`))
		r := newRelay(t, setup{own: on, clients: []auth.ClientConfig{}, upstreams: []upstream{anthropics(up.upstream)}})
		check := func(t *testing.T, h http.Header, own bool) {
			t.Helper()
			got := r.do(asOwn(h, ask(opus, false)))
			require.Equal(t, 200, got.status, got.body)
			head := (<-up.requests).head
			assert.Equal(t, own, strings.Contains(head, "CANARY"), head)
			assert.Equal(t, !own, strings.Contains(head, keyOf("a", 1)), head)
		}
		for name, h := range ownCalls {
			t.Run(fmt.Sprintf("%s, on=%t", name, on), func(t *testing.T) { check(t, h, on) })
		}
		for name, h := range map[string]http.Header{
			"none": {}, "any": {"X-Api-Key": {"anything"}}, "twice": {"X-Api-Key": {ownKey, ownKey}}, "a subscription as a key": {"X-Api-Key": {ownToken}},
			"beside any": {"X-Api-Key": {ownKey}, "Authorization": {"Bearer anything"}}, "an admin key": {"X-Api-Key": {"sk-ant-admin01-CANARY"}},
		} {
			t.Run(fmt.Sprintf("%s, on=%t", name, on), func(t *testing.T) { check(t, h, false) })
		}
	}
}

// ownAnswers are what a provider may say to an own credential, on the wire.
var ownAnswers = map[string]struct {
	status, contentType, headers, body string
	stream                             bool
}{
	"JSON":     {"200 OK", "application/json", "Anthropic-Ratelimit-Requests-Remaining: 7\r\n", `{"type":"message","usage":{"input_tokens":1}}`, false},
	"a stream": {"200 OK", "text/event-stream", "Anthropic-Ratelimit-Unified-5h-Utilization: 0.5\r\n", wholeStream, true},
	"429": {"429 Too Many Requests", "application/json", "Retry-After: 4000\r\nAnthropic-Ratelimit-Unified-Status: rejected\r\nAnthropic-Ratelimit-Requests-Limit: 50\r\n",
		`{"type":"error","error":{"type":"rate_limit_error","message":"usage limit reached"},"request_id":"req_own"}`, true},
	"429, spent":      {"429 Too Many Requests", "application/json", "", `{"type":"error","error":{"type":"rate_limit_error","message":"x","details":{"error_code":"enforced_spend_limit_reached"}}}`, true},
	"401":             {"401 Unauthorized", "application/json", "X-Should-Retry: true\r\n", `{"type":"error","error":{"type":"authentication_error","message":"OAuth token has expired"}}`, true},
	"403":             {"403 Forbidden", "application/json", "", `{"type":"error","error":{"type":"permission_error","message":"not yours"}}`, true},
	"404, model":      {"404 Not Found", "application/json", "", `{"type":"error","error":{"type":"not_found_error","message":"model: claude-opus-5-5"}}`, true},
	"400, no credit":  {"400 Bad Request", "application/json", "", `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}`, true},
	"400, odd JSON":   {"400 Bad Request", "application/json", "", "{ \"detail\" : [1e400] }\n", false},
	"529":             {"529 Overloaded", "application/json", "Retry-After: 9\r\n", `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, true},
	"500":             {"500 Internal Server Error", "application/json", "", `{"type":"error","error":{"type":"api_error","message":"x"}}`, false},
	"a page":          {"502 Bad Gateway", "text/html", "", "<html>edge</html>", true},
	"plain text":      {"503 Service Unavailable", "text/plain; charset=utf-8", "", "try later", false},
	"200, an error":   {"200 OK", "application/json", "", `{"type":"error","error":{"type":"overloaded_error","message":"x"}}`, false},
	"first, an error": {"200 OK", "text/event-stream", "", frameOf("error", `{"type":"error","error":{"type":"overloaded_error","message":"x"}}`), true},
	"then an error":   {"200 OK", "text/event-stream", "", headFrame + frameOf("error", `{"type":"error","error":{"type":"rate_limit_error","message":"x"}}`), true},
}

// What comes back is the client's alone: as it is, once, with its limits, and no
// other provider is asked.
func TestAnswersToOwnCredentialsPass(t *testing.T) {
	leakFree(t)
	t.Run("all", func(t *testing.T) {
		for name, tt := range ownAnswers {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				a := newRaw(t, "a", say("HTTP/1.1 "+tt.status+"\r\nContent-Type: "+tt.contentType+"\r\nRequest-Id: req_own\r\nAnthropic-Organization-Id: org-own\r\n"+
					"Anthropic-Workspace-Id: wrkspc-own\r\nAnthropic-Priority-Input-Tokens-Limit: 5\r\n"+tt.headers+lengthOf(tt.body)+"\r\n"+tt.body))
				a.limits = keypool.KeyConfig{RPMLimit: 50, ITPMLimit: 50_000, OTPMLimit: 10_000} // not for this client
				b := newSim(t, "b", 1)
				r := passing(t, anthropics(a.upstream), anthropics(b.upstream))
				lease, err := r.live.Router.Upstreams()[0].Pool.Acquire(t.Context(), keypool.Demand{Class: keypool.ClassOf(opus)})
				require.NoError(t, err)
				lease.Settle(keypool.Usage{}) // now the pool has limits to tell
				got := r.do(asOwn(http.Header{"Authorization": {"Bearer " + ownToken}}, ask(opus, tt.stream)))
				require.NoError(t, got.err)
				assert.Equal(t, tt.status[:3], itoa(got.status))
				assert.Equal(t, tt.body, got.body)
				want := map[string]string{
					"Content-Type": tt.contentType, "Request-Id": "req_own", "Anthropic-Organization-Id": "org-own", "Anthropic-Workspace-Id": "wrkspc-own",
					"Anthropic-Priority-Input-Tokens-Limit": "5", "X-Cc-Relay-Provider": "a", "X-Cc-Relay-Attempts": "1",
				}
				for line := range strings.Lines(tt.headers) {
					name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
					want[name] = value
				}
				for name, value := range want {
					assert.Equal(t, []string{value}, got.header[name], name)
				}
				for name := range got.header {
					if strings.HasPrefix(name, "Anthropic-") {
						assert.Contains(t, want, name, "nobody else's limits")
					}
				}
				assert.Equal(t, 1, a.calls())
				assert.Empty(t, b.Seen(), "another provider was asked")
				assert.NotContains(t, r.log.String(), "CANARY")
			})
		}
	})
}

func lengthOf(body string) string { return fmt.Sprintf("Content-Length: %d\r\n", len(body)) }

// What is no answer at all is told as ever, and nobody else is asked.
func TestNoAnswerToAnOwnCredential(t *testing.T) {
	leakFree(t)
	for name, tt := range map[string]struct {
		play   func(net.Conn, int) bool // nil: nobody listens
		status int
		kind   string
	}{
		"unreachable":    {nil, 502, "api_error"},
		"hangs up":       {say(""), 502, "api_error"},
		"silent":         {func(c net.Conn, _ int) bool { _, _ = c.Read(make([]byte, 1)); return false }, 504, "timeout_error"},
		"redirects":      {say("HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"), 502, "api_error"},
		"a page":         {say("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"), 502, "api_error"},
		"cut JSON":       {say(jsonHead + "Content-Length: 100\r\n\r\n" + `{"type":"mess`), 502, "api_error"},
		"no JSON":        {say(jsonHead + "Content-Length: 4\r\n\r\n{\"a\""), 502, "api_error"},
		"a cut error":    {say("HTTP/1.1 529 Overloaded\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n" + `{"type":"err`), 529, "overloaded_error"},
		"of no length":   {say("HTTP/1.1 529 Overloaded\r\nContent-Type: application/json\r\n\r\n" + `{"type":"err`), 529, "overloaded_error"},
		"a cut page":     {say("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 100\r\n\r\n<html>"), 502, "api_error"},
		"a long page":    {say("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n" + strings.Repeat("x", 70_000)), 502, "api_error"},
		"an empty error": {say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), 401, "authentication_error"},
	} {
		t.Run(name, func(t *testing.T) {
			up := upstream{keys: []string{keyOf("a", 1)}}
			up.Name = "a"
			if tt.play == nil {
				up.BaseURL = nowhereURL(t)
			} else {
				up = newRaw(t, "a", tt.play).upstream
			}
			up.ResponseTimeout = 300 * time.Millisecond
			b := newSim(t, "b", 1)
			r := passing(t, anthropics(up), anthropics(b.upstream))
			requireError(t, r.do(asOwn(http.Header{"X-Api-Key": {ownKey}}, ask(opus, false))), tt.status, tt.kind)
			assert.Empty(t, b.Seen(), "another provider was asked")
			assert.NotContains(t, r.log.String(), "CANARY")
		})
	}
}

// The first provider of Anthropic's is asked, whatever the rules say of the model.
func TestOwnCredentialsFollowNoRule(t *testing.T) {
	leakFree(t)
	own := simulator.Config{Organizations: []simulator.Organization{{ID: "own", Keys: []simulator.Key{{Key: ownKey, Name: "own"}}}}}
	a, b, last := newSim(t, "a", 1), startSim(t, "b", 1, own), newSim(t, "c", 1)
	r := newRelay(t, setup{
		own: true, upstreams: []upstream{a.upstream, anthropics(b.upstream), anthropics(last.upstream)},
		routes: router.Config{Rules: []router.Rule{{Match: []string{"claude-*"}, Targets: []string{"a/big-model"}}}, Aliases: map[string]string{opus: "big-model"}},
	})
	h := http.Header{"X-Api-Key": {ownKey}}
	for _, path := range []string{"/v1/messages?beta=true", "/v1/messages/count_tokens"} {
		c := asOwn(h, ask(opus, false))
		c.path = path
		require.Equal(t, 200, r.do(c).status)
		seen := b.Seen()[len(b.Seen())-1]
		assert.Equal(t, path, seen.Target)
		assert.Equal(t, c.body, string(seen.Body))
		assert.Equal(t, "own", seen.Key)
	}
	for path, want := range map[string]string{"/v1/models?limit=1&after_id=" + haiku: `"has_more":`, "/v1/models/" + opus: `"id":"` + opus + `"`} {
		got := r.do(call{method: "GET", path: path, token: "-", header: h})
		require.Equal(t, 200, got.status, got.body)
		assert.Contains(t, got.body, want)
		seen := b.Seen()[len(b.Seen())-1]
		assert.Equal(t, path, seen.Target, "the list is the provider's own")
		assert.Equal(t, "own", seen.Key)
	}
	assert.Empty(t, a.Seen())
	assert.Empty(t, last.Seen())
	t.Run("nobody is Anthropic's", func(t *testing.T) {
		r := passing(t, a.upstream)
		requireError(t, r.do(asOwn(h, ask(opus, false))), 502, "api_error")
		assert.Empty(t, a.Seen())
	})
}

// The pool, the breakers and the homes learn nothing of it, good or bad.
func TestOwnCredentialsTeachNothing(t *testing.T) {
	leakFree(t)
	own := simulator.Organization{ID: "own", Limits: simulator.Limits{RPM: 100, ITPM: 100_000, OTPM: 10_000}, Keys: []simulator.Key{{Key: ownToken, Name: "own"}}}
	a, b := startSim(t, "a", 2, simulator.Config{Organizations: []simulator.Organization{own}}), newSim(t, "b", 1)
	r := passing(t, anthropics(a.upstream), anthropics(b.upstream))
	up := r.live.Router.Upstreams()[0]
	before := up.Pool.GetStats()
	turn := asOwn(ofSession("one"), cached(opus, "one", true))
	turn.header["Authorization"] = []string{"Bearer " + ownToken}
	trouble := func(f simulator.Fault) []simulator.Fault {
		f.Key = "own"
		return faults(f)
	}
	for _, f := range []simulator.Fault{
		status(429), limit429("60"), status(401), status(402), status(403), coded(403, "organization_on_hold"), status(404), worded(404, "model: "+opus), status(500), status(529),
		errorFirst("overloaded_error", ""), {Kind: simulator.FaultReset}, {Kind: simulator.FaultCut, AfterEvents: 3}, {Kind: simulator.FaultNoStop, AfterEvents: 3},
		{Kind: simulator.FaultDelay, Delay: time.Millisecond},
	} {
		require.NoError(t, a.SetFaults(trouble(f)))
		for range 6 { // more than open a breaker
			r.do(turn)
		}
	}
	assert.Equal(t, before, up.Pool.GetStats())
	snapshot := up.Pool.Snapshot()
	assert.Empty(t, snapshot.Homes)
	assert.Empty(t, snapshot.Prefixes)
	for _, k := range snapshot.Keys {
		assert.Empty(t, k.Organization)
	}
	assert.Empty(t, up.Lanes())
	assert.Zero(t, up.InFlight())
	assert.Len(t, a.Seen(), 15*6, "once each")
	assert.Empty(t, b.Seen())
	assert.NotContains(t, r.log.String(), "CANARY")
	assert.NotContains(t, r.log.String(), "attempt failed")

	require.NoError(t, a.SetFaults(nil))
	got := r.do(call{header: ofSession("one"), body: cached(opus, "one", true)})
	requireServed(t, got, true)
	assert.Equal(t, "a", got.header.Get("X-Cc-Relay-Provider"))
}

// Whatever goes wrong inside the relay, the credential is not written down.
func TestOwnCredentialsAreNotLogged(t *testing.T) {
	leakFree(t)
	for name, rt := range map[string]roundTrip{
		"a panic": func(r *http.Request) (*http.Response, error) { panic(fmt.Sprint(r.Header)) },
		"an error that quotes the request": func(r *http.Request) (*http.Response, error) {
			_ = r.Body.Close()
			return nil, fmt.Errorf("cannot send %v", r.Header)
		},
		"an answer that quotes it": func(r *http.Request) (*http.Response, error) {
			_ = r.Body.Close()
			return &http.Response{StatusCode: 500, Header: http.Header{"Anthropic-Said": r.Header["Authorization"]}, ContentLength: -1, Body: io.NopCloser(strings.NewReader(fmt.Sprint(r.Header)))}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := passing(t, anthropics(memory(rt)))
			c := asOwn(http.Header{"X-Api-Key": {ownKey}, "Authorization": {"Bearer " + ownToken}}, ask(opus, false))
			got := r.do(c)
			assert.GreaterOrEqual(t, got.status, 500)
			require.Contains(t, r.log.String(), `"own_credential":true`)
			assert.NotContains(t, r.log.String(), "CANARY")
		})
	}
	t.Run("refused", func(t *testing.T) {
		r := passing(t, anthropics(newSim(t, "a", 1).upstream))
		for _, c := range []call{
			{path: "/nowhere"}, {method: "PUT"}, {body: "{"}, {body: `{"model":"` + ownKey + `"`}, {header: http.Header{"Sec-Fetch-Site": {"cross-site"}}},
			{header: http.Header{"Upgrade": {"h2c"}}},
		} {
			c.token = "-"
			if c.header == nil {
				c.header = http.Header{}
			}
			c.header.Set("Authorization", "Bearer "+ownToken)
			assert.GreaterOrEqual(t, r.do(c).status, 400)
		}
		assert.NotContains(t, r.log.String(), "CANARY")
	})
	t.Run("draining", func(t *testing.T) {
		a := newSim(t, "a", 1)
		r := passing(t, anthropics(a.upstream))
		r.handler.Drain()
		requireError(t, r.do(asOwn(http.Header{"X-Api-Key": {ownKey}}, ask(opus, false))), 529, "overloaded_error")
		assert.Empty(t, a.Seen())
	})
}

// A stream passes while it comes, and ends with its client.
func TestOwnStreams(t *testing.T) {
	leakFree(t)
	up := newStepper(t, "a")
	r := passing(t, anthropics(up.upstream))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	answered := make(chan *http.Response, 1)
	go func() {
		answered <- r.open(ctx, asOwn(http.Header{"Authorization": {"Bearer " + ownToken}}, ask(opus, true)))
	}()
	up.send(t, headFrame)
	resp := <-answered
	read(t, resp, headFrame) // at once: there is nowhere else to go
	up.send(t, pingFrame)
	read(t, resp, pingFrame)
	up.send(t, blockFrame+deltaFrame)
	read(t, resp, blockFrame+deltaFrame)
	leave()
	up.requireGone(t)
	assert.Equal(t, "client_gone", r.log.next(t)["outcome"])
}
