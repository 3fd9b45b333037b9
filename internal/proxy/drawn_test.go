package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/proxy"
)

// What clients ask for beside messages is answered, and never with a redirect.
func testLegalPaths(t *testing.T) {
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	for _, target := range []string{
		"POST /v1/messages", "POST /v1/messages?beta=true", "POST /v1/messages?", "POST /v1/messages/count_tokens?beta=true",
		"HEAD /api/hello", "GET /api/hello", "HEAD /", "GET /v1/models?limit=1000", "GET /v1/models/claude-opus-5-5",
	} {
		t.Run(target, func(t *testing.T) {
			method, path, _ := strings.Cut(target, " ")
			c := call{method: method, path: path}
			if method == http.MethodPost {
				c.body = ask(opus, false)
			}
			got := r.do(c)
			require.NoError(t, got.err)
			assert.Equal(t, 200, got.status, got.body)
			if method == http.MethodPost {
				assert.Equal(t, strings.TrimSuffix(path, "?"), strings.TrimSuffix(a.Seen()[len(a.Seen())-1].Target, "?"))
			}
		})
	}
}

// Paths are drawn from the parts that matter. What is not a path of the table to the
// letter is 404 or malformed, and nothing is a redirect.
func testDrawnPaths(t *testing.T) {
	parts := []string{"/", "/", "v1", "messages", "models", "count_tokens", "api", "hello", "admin", "metrics", "debug", "pprof", "..", ".", "%2f", "%2F", "%2e", "%2e%2e", "%00", "%", "\\", ";", "a", "V1", "%6d", "livez", "readyz", "?", "#", "@", ":", "http:", "*", "%zz", "é"}
	exact := map[string]bool{"/v1/messages": true, "/v1/messages/count_tokens": true, "/v1/models": true, "/api/hello": true, "/": true, "/livez": true, "/readyz": true}
	serves, asked := answering("application/json", func() io.Reader { return strings.NewReader(message) }), 0
	live := newLive(t, setup{upstreams: []upstream{memory(roundTrip(func(r *http.Request) (*http.Response, error) {
		asked++
		if !exact[r.URL.Path] {
			return nil, fmt.Errorf("asked for %s", r.URL)
		}
		return serves(r)
	}))}}, zerolog.Nop())
	h := proxy.NewHandler(live, zerolog.Nop())
	t.Cleanup(h.Stop)
	rapid.Check(t, func(t *rapid.T) {
		target := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(parts), 0, 8).Draw(t, "parts"), "")
		method := rapid.SampledFrom([]string{"POST", "GET", "HEAD"}).Draw(t, "method")
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: relay\r\nX-Api-Key: " + aliceToken + "\r\nContent-Type: application/json\r\nContent-Length: " + itoa(len(ask(opus, false))) + "\r\n\r\n" + ask(opus, false))))
		if err != nil {
			return // the server refuses it
		}
		before, w := asked, &sink{header: http.Header{}}
		h.ServeHTTP(w, req)
		if w.status/100 == 3 || w.header.Get("Location") != "" {
			t.Fatalf("%s: a redirect, %d to %q", target, w.status, w.header.Get("Location"))
		}
		path, _, _ := strings.Cut(target, "?")
		id, model := strings.CutPrefix(path, "/v1/models/")
		switch {
		case exact[path]:
		case model && id != "" && !strings.Contains(id, "/"):
		case asked != before:
			t.Fatalf("%s: the provider was asked", target)
		case w.status/100 != 4:
			t.Fatalf("%s: status %d", target, w.status)
		}
	})
}
