package proxy_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/auth"
)

// Loopback is no wall: a page of another site, open in a browser on this machine, can
// send requests to it.
func testBrowsers(t *testing.T) {
	up := newSim(t, "a", 1)
	r := relayOf(t, up)
	r.live.Hosts = auth.NewHosts([]string{"relay.example"})
	r.live.Origins = []string{"vscode-webview://panel", "https://app.example"}
	r.handler.Swap(r.live)
	json := http.Header{"Content-Type": {"application/json"}}
	for name, tt := range map[string]struct {
		host   string
		header http.Header
		want   int
	}{
		"a client":                      {"", json, 200},
		"by localhost":                  {"localhost:8787", json, 200},
		"by a configured name":          {"relay.example:8787", json, 200},
		"a name led here":               {"evil.example", json, 403},
		"a name led here, with a port":  {"evil.example:8787", json, 403},
		"a name that looks like ours":   {"localhost.evil.example", json, 403},
		"a script of another site":      {"", http.Header{"Content-Type": {"application/json"}, "Origin": {"https://evil.example"}}, 403},
		"a script of no site":           {"", http.Header{"Content-Type": {"application/json"}, "Origin": {"null"}}, 403},
		"without asking, cross-site":    {"", http.Header{"Content-Type": {"text/plain"}, "Sec-Fetch-Site": {"cross-site"}, "Sec-Fetch-Mode": {"no-cors"}}, 403},
		"of the same site, other port":  {"", http.Header{"Content-Type": {"application/json"}, "Sec-Fetch-Site": {"same-site"}}, 403},
		"a form of an old browser":      {"", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, 415},
		"a form with a file":            {"", http.Header{"Content-Type": {"multipart/form-data; boundary=x"}}, 415},
		"a form in plain text":          {"", http.Header{"Content-Type": {"text/plain"}}, 415},
		"a blob without a type":         {"", http.Header{"Content-Type": nil}, 415},
		"a web view that is configured": {"", http.Header{"Content-Type": {"application/json"}, "Origin": {"https://app.example"}, "Sec-Fetch-Site": {"cross-site"}}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(up.Seen())
			got := r.do(call{host: tt.host, header: tt.header, body: ask(opus, false)})
			assert.Equal(t, tt.want, got.status, got.body)
			for h := range got.header {
				assert.NotContains(t, h, "Access-Control-")
			}
			if tt.want != 200 {
				assert.Equal(t, before, len(up.Seen()), "the provider has seen it")
			}
		})
	}
}
