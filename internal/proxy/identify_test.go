package proxy_test

import (
	"bufio"
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
)

func testWhoMayAsk(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	const foreign = "sk-ant-api03-somebody-elses"
	for name, tt := range map[string]struct {
		header http.Header
		status int
		client string
	}{
		"x-api-key":                         {http.Header{"X-Api-Key": {aliceToken}}, 200, "alice"},
		"bearer":                            {http.Header{"Authorization": {"Bearer " + bobToken}}, 200, "bob"},
		"bearer in lower case":              {http.Header{"Authorization": {"bearer " + bobToken}}, 200, "bob"},
		"both the same":                     {http.Header{"X-Api-Key": {aliceToken}, "Authorization": {"Bearer " + aliceToken}}, 200, "alice"},
		"foreign key in x-api-key":          {http.Header{"X-Api-Key": {foreign}, "Authorization": {"Bearer " + aliceToken}}, 200, "alice"},
		"foreign key as bearer":             {http.Header{"X-Api-Key": {aliceToken}, "Authorization": {"Bearer " + foreign}}, 200, "alice"},
		"another scheme beside":             {http.Header{"X-Api-Key": {aliceToken}, "Authorization": {"Basic Zm9vOmJhcg=="}}, 200, "alice"},
		"none":                              {nil, 401, ""},
		"empty":                             {http.Header{"X-Api-Key": {""}, "Authorization": {""}}, 401, ""},
		"unknown":                           {http.Header{"X-Api-Key": {"unheard-of"}}, 401, ""},
		"beginning of a token":              {http.Header{"X-Api-Key": {aliceToken[:20]}}, 401, ""},
		"a token and more":                  {http.Header{"X-Api-Key": {aliceToken + "0"}}, 401, ""},
		"other case":                        {http.Header{"X-Api-Key": {strings.ToUpper(aliceToken)}}, 401, ""},
		"the name of a client":              {http.Header{"X-Api-Key": {"alice"}}, 401, ""},
		"a provider's key":                  {http.Header{"X-Api-Key": {keyOf("a", 1)}}, 401, ""},
		"another scheme":                    {http.Header{"Authorization": {"Basic " + aliceToken}}, 401, ""},
		"no scheme":                         {http.Header{"Authorization": {aliceToken}}, 401, ""},
		"bearer without a token":            {http.Header{"Authorization": {"Bearer"}}, 401, ""},
		"bearer with spaces only":           {http.Header{"Authorization": {"Bearer   "}}, 401, ""},
		"both foreign":                      {http.Header{"X-Api-Key": {foreign}, "Authorization": {"Bearer " + foreign}}, 401, ""},
		"in another header":                 {http.Header{"X-Goog-Api-Key": {aliceToken}, "Cookie": {"token=" + aliceToken}, "Proxy-Authorization": {"Bearer " + aliceToken}}, 401, ""},
		"two clients":                       {http.Header{"X-Api-Key": {aliceToken}, "Authorization": {"Bearer " + bobToken}}, 400, ""},
		"x-api-key twice":                   {http.Header{"X-Api-Key": {aliceToken, bobToken}}, 400, ""},
		"x-api-key twice, the same":         {http.Header{"X-Api-Key": {aliceToken, aliceToken}}, 400, ""},
		"authorization twice, one foreign":  {http.Header{"Authorization": {"Bearer " + foreign, "Bearer " + aliceToken}}, 400, ""},
		"x-api-key twice, bearer all right": {http.Header{"X-Api-Key": {foreign, foreign}, "Authorization": {"Bearer " + aliceToken}}, 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, target := range []string{"POST /v1/messages", "POST /v1/messages/count_tokens", "GET /v1/models", "GET /v1/models/claude-opus-5-5"} {
				before := len(a.Seen())
				method, path, _ := strings.Cut(target, " ")
				c := call{method: method, path: path, token: "-", header: tt.header}
				if method == "POST" {
					c.body = ask(opus, false)
				}
				got := r.do(c)
				require.NoError(t, got.err)
				assert.Equal(t, tt.client, got.record["client"], target)
				if tt.status == 200 {
					assert.Equal(t, 200, got.status, "%s: %s", target, got.body)
					continue
				}
				assert.Len(t, a.Seen(), before, "%s: the provider was asked", target)
				if tt.status == 400 {
					requireError(t, got, 400, "invalid_request_error")
					continue
				}
				requireError(t, got, 401, "authentication_error")
				assert.Equal(t, "false", got.header.Get("X-Should-Retry"), "a client would ask ten times more")
				assert.Empty(t, got.header.Get("Retry-After"))
			}
		})
	}
}

// All who are turned away get the same answer, so that nobody learns from it.
func testRefusalsAreUniform(t *testing.T) {
	leakFree(t)
	r := relayOf(t, newSim(t, "a", 1))
	messages := map[string]bool{}
	for _, h := range []http.Header{nil, {"X-Api-Key": {"unheard-of"}}, {"Authorization": {"Basic x"}}, {"X-Api-Key": {aliceToken[:20]}}} {
		messages[requireError(t, r.do(call{token: "-", header: h, body: ask(opus, false)}), 401, "authentication_error").Error.Message] = true
	}
	assert.Len(t, messages, 1, "messages: %v", messages)
}

func TestWithoutClientsEveryoneMayAsk(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := newRelay(t, setup{clients: []auth.ClientConfig{}, upstreams: []upstream{a.upstream}})
	for _, h := range []http.Header{nil, {"X-Api-Key": {"anything"}}, {"Authorization": {"Bearer x", "Bearer y"}}} {
		requireServed(t, r.do(call{token: "-", header: h, body: ask(opus, false)}), false)
	}
	for _, rec := range a.Seen() {
		assert.Equal(t, []string{keyOf("a", 1)}, rec.Header["X-Api-Key"])
		assert.NotContains(t, rec.Header, "Authorization")
	}
}

// The body of a request that is refused anyway is not asked for, and nothing
// behind its head is taken for a request.
func testRefusalsComeBeforeTheBody(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for name, tt := range map[string]struct {
		head   string
		status int
	}{
		"no token":         {"POST /v1/messages HTTP/1.1\r\n", 401},
		"wrong token":      {"POST /v1/messages HTTP/1.1\r\nX-Api-Key: unheard-of\r\n", 401},
		"two tokens":       {"POST /v1/messages HTTP/1.1\r\nX-Api-Key: " + aliceToken + "\r\nAuthorization: Bearer " + bobToken + "\r\n", 400},
		"no such path":     {"POST /v1/complete HTTP/1.1\r\nX-Api-Key: " + aliceToken + "\r\n", 404},
		"another web page": {"POST /v1/messages HTTP/1.1\r\nSec-Fetch-Site: cross-site\r\nX-Api-Key: " + aliceToken + "\r\n", 403},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
			require.NoError(t, err)
			defer func() { _ = c.Close() }()
			require.NoError(t, c.SetDeadline(time.Now().Add(patient)))
			_, err = io.WriteString(c, tt.head+"Host: relay\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
			require.NoError(t, err)
			in := bufio.NewReader(c)
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			assert.True(t, strings.HasPrefix(line, fmt.Sprintf("HTTP/1.1 %d ", tt.status)), "first line: %q", line)
			rest, err := io.ReadAll(in)
			require.NoError(t, err, "the connection stays open")
			assert.Contains(t, string(rest), "Connection: close\r\n")
			assert.NotContains(t, string(rest), "HTTP/1.1 100")
		})
	}
	t.Cleanup(func() {
		assert.Empty(t, a.Seen(), "the provider was asked")
		requireServedStill(t, r)
	})
}
