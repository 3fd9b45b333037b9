package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/admin"
	"cc-relay/internal/messages"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		require.NoError(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got))
}

// Times of day are the same everywhere. It is done before anything runs that tells one.
func init() { time.Local = time.UTC }

const testToken = "0123456789abcdef0123456789abcdef"

// fakeAdmin answers as a relay's admin listener does, and keeps what it was asked.
type fakeAdmin struct {
	*httptest.Server
	t       *testing.T
	answers map[string]any // by method and path

	mu    sync.Mutex
	asked []string // guarded by mu: method, path and body
}

func newFakeAdmin(t *testing.T, answers map[string]any) *fakeAdmin {
	t.Helper()
	unconfigured(t)
	t.Setenv(tokenVariable, testToken)
	f := &fakeAdmin{t: t, answers: answers}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeAdmin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.asked = append(f.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
	f.mu.Unlock()
	status, answer := http.StatusOK, f.answers[r.Method+" "+r.URL.Path]
	switch {
	case r.Header.Get("Authorization") != "Bearer "+testToken:
		status, answer = http.StatusUnauthorized, refusal("unauthorized", "no token, or a wrong one")
	case answer == nil:
		status, answer = http.StatusNotFound, refusal("not_found", "there is no key "+r.URL.Path)
	}
	if refused, ok := answer.(admin.ErrorBody); ok && status == http.StatusOK {
		status = http.StatusForbidden
		answer = refused
	}
	if text, ok := answer.(string); ok {
		_, _ = io.WriteString(w, text)
		return
	}
	data, err := json.Marshal(answer)
	assert.NoError(f.t, err)
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

func (f *fakeAdmin) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.asked) == 0 {
		return ""
	}
	return f.asked[len(f.asked)-1]
}

// command runs cc-relay against f.
func (f *fakeAdmin) command(args ...string) (code int, stdout, stderr string) {
	f.t.Helper()
	return command(f.t, append(args, "--admin", f.URL)...)
}

func refusal(code, message string) admin.ErrorBody {
	return admin.ErrorBody{Error: admin.ErrorDetail{Code: code, Message: message}}
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// emptyStats are those of a relay that has just started.
func emptyStats() admin.Stats {
	return admin.Stats{At: noon, Status: admin.Status{Status: admin.Healthy, Reasons: []admin.Reason{}, Version: "v1.0.0", StartedAt: noon},
		Providers: []admin.Provider{{Name: "anthropic", Strategy: "least_loaded", Keys: admin.KeyCounts{Total: 1, Available: 1}, Breakers: []admin.Breaker{},
			Classes: []admin.Class{{Keys: []admin.KeyClass{{ID: "0a1b2c3d4e5f", State: "available"}}}}}}}
}

// fullStats have one of everything.
func fullStats() admin.Stats {
	limits := admin.Amounts{RPM: 1000, ITPM: 2_000_000, OTPM: 400_000}
	key := func(id, state, reason string, for_ time.Duration, left admin.Amounts, open int) admin.KeyClass {
		k := admin.KeyClass{ID: id, State: state, Reason: reason, Limits: limits, Remaining: left, InFlight: open}
		if for_ > 0 {
			k.Until = noon.Add(for_)
		}
		return k
	}
	keys := []admin.KeyClass{
		key("0a1b2c3d4e5f", "available", "", 0, admin.Amounts{RPM: 987, ITPM: 1_650_000, OTPM: 88_123}, 3),
		key("1b2c3d4e5f60", "exhausted", "", 12*time.Second, admin.Amounts{RPM: 400, ITPM: -12_000, OTPM: 30_000}, 12),
		key("2c3d4e5f6071", "cooling", "", 95*time.Second, admin.Amounts{RPM: 1000, ITPM: 1_000_000, OTPM: 400_000}, 0),
		key("3d4e5f607182", "dead", "unauthorized", 59*time.Minute, admin.Amounts{RPM: 1000, ITPM: 2_000_000, OTPM: 400_000}, 0),
		key("4e5f60718293", "off", "", 0, admin.Amounts{RPM: 1000, ITPM: 2_000_000, OTPM: 400_000}, 0),
	}
	return admin.Stats{
		At: noon,
		Status: admin.Status{
			Status: admin.Degraded, Version: "v1.4.0", StartedAt: noon.Add(-27 * time.Hour),
			Reasons: []admin.Reason{
				{Code: "keys_dead", Provider: "anthropic", Message: "1 of 5 keys of anthropic is refused by the provider: check it there, or remove it from the configuration"},
				{Code: "reload_failed", Message: "the last reload failed: config.yaml:3: unknown field"},
				{Code: "breaker_open", Provider: "bedrock", Message: "it fails for sonnet, and is left alone until 12:00:43"},
			},
			LastReload: &admin.LastReload{At: noon.Add(-time.Minute), Error: "config.yaml:3: unknown field"},
		},
		UptimeSeconds: 27 * 3600, InFlight: 15,
		Totals: admin.Totals{Requests: 12345, Succeeded: 12300, Failed: 45, Failovers: 120, InputTokens: 1_234_567, OutputTokens: 560_000,
			CacheReadTokens: 98_765_432, CacheWriteTokens: 220_000},
		Providers: []admin.Provider{
			{Name: "anthropic", Strategy: "least_loaded", InFlight: 15, Keys: admin.KeyCounts{Total: 5, Available: 1, Exhausted: 1, Cooling: 1, Dead: 1, Off: 1},
				Breakers: []admin.Breaker{{Class: "sonnet", State: "closed"}},
				Classes: []admin.Class{
					{Class: "", Keys: keys},
					{Class: "claude-haiku-4", Limits: limits, Remaining: limits, Keys: keys[:1]},
					{Class: "sonnet", Limits: admin.Amounts{RPM: 4000, ITPM: 8_000_000, OTPM: 1_600_000}, Remaining: admin.Amounts{RPM: 3387, ITPM: 4_638_000, OTPM: 918_123}, InFlight: 15, Keys: keys},
				}},
			{Name: "bedrock", Strategy: "round_robin", Draining: true, Keys: admin.KeyCounts{Total: 1, Available: 1},
				Breakers: []admin.Breaker{{Class: "sonnet", State: "open", Until: noon.Add(43 * time.Second)}, {Class: "opus", State: "closed", Forced: true, Until: noon.Add(10 * time.Minute)}, {Class: "haiku", State: "half_open"}},
				Classes:  []admin.Class{{Class: "sonnet", Keys: []admin.KeyClass{{ID: "5f6071829304", State: "available"}}}}},
		},
	}
}

func TestStatusIsReadable(t *testing.T) {
	down := emptyStats()
	down.Status.Status = admin.Down
	down.Reasons = []admin.Reason{{Code: "no_provider", Message: "no provider can serve a request now"}}
	down.Providers[0].Keys = admin.KeyCounts{}
	down.Providers[0].Classes = nil
	for name, stats := range map[string]admin.Stats{"empty": emptyStats(), "full": fullStats(), "down": down} {
		for _, width := range []int{60, 80, 160} {
			t.Run(fmt.Sprintf("%s at %d", name, width), func(t *testing.T) {
				v := statusView{screen: screen{width: width}, stats: stats, address: "http://127.0.0.1:8788"}
				got := v.render()
				golden(t, fmt.Sprintf("status_%s_%d", name, width), got)
				for line := range strings.Lines(string(got)) {
					assert.LessOrEqual(t, ansi.StringWidth(strings.TrimSuffix(line, "\n")), width, line)
				}
				colored := statusView{screen: screen{width: width, color: true}, stats: stats, address: "http://127.0.0.1:8788"}
				assert.Equal(t, string(got), ansi.Strip(string(colored.render())), "with colours")
			})
		}
	}
}

// Each key is shown, whether or not anything was asked for, and lists of models are
// nothing that was.
func TestStatusLeavesListsOut(t *testing.T) {
	stats := emptyStats()
	keys := stats.Providers[0].Classes[0].Keys
	show := func(classes ...string) string {
		stats.Providers[0].Classes = nil
		for _, name := range classes {
			stats.Providers[0].Classes = append(stats.Providers[0].Classes, admin.Class{Class: name, Keys: keys})
		}
		v := statusView{screen: screen{width: 80}, stats: stats}
		return string(v.render())
	}
	assert.Equal(t, show(""), show("", "models"))
	assert.Contains(t, show("", "models"), keys[0].ID)
	assert.Equal(t, show("sonnet"), show("", "models", "sonnet"))
	assert.Contains(t, show("", "models", "sonnet"), "  sonnet\n    "+keys[0].ID)
}

func TestStatusEndsWithWhatItSays(t *testing.T) {
	for word, want := range map[string]int{admin.Healthy: 0, admin.Degraded: 3, admin.Down: 4} {
		t.Run(word, func(t *testing.T) {
			stats := fullStats()
			stats.Status.Status = word
			f := newFakeAdmin(t, map[string]any{"GET /api/v1/stats": stats})
			code, stdout, stderr := f.command("status")
			assert.Equal(t, want, code)
			assert.Empty(t, stderr)
			assert.Contains(t, stdout, word)
			assert.NotContains(t, stdout, "\x1b", "not a terminal")

			code, stdout, stderr = f.command("status", "--json")
			assert.Equal(t, want, code)
			assert.Empty(t, stderr)
			var got admin.Stats
			require.NoError(t, json.Unmarshal([]byte(stdout), &got))
			assert.Equal(t, stats, got)
		})
	}
}

func TestWhoCannotBeAsked(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	nobody := "http://" + closed.Addr().String()
	f := newFakeAdmin(t, map[string]any{})
	stranger := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(stranger.Close)
	clients := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		messages.WriteError(w, http.StatusNotFound, messages.NotFound, "cc-relay serves POST /v1/messages", "req_1")
	}))
	t.Cleanup(clients.Close)
	wrong, empty := filepath.Join(t.TempDir(), "wrong"), filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(wrong, []byte("not-the-token\n"), 0o600))
	require.NoError(t, os.WriteFile(empty, []byte("\n"), 0o600))
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"not running":       {[]string{"--admin", nobody}, "no relay answers at " + nobody + ": start one with `cc-relay serve`"},
		"no socket":         {[]string{"--admin", "unix:/none/relay.sock"}, "no relay answers at unix:/none/relay.sock"},
		"wrong token":       {[]string{"--admin", f.URL, "--token-file", wrong}, "refused the token of " + wrong},
		"empty token file":  {[]string{"--admin", f.URL, "--token-file", empty}, "holds no token: it should be one line"},
		"no token file":     {[]string{"--admin", f.URL, "--token-file", "none"}, "none: no such file"},
		"another program":   {[]string{"--admin", stranger.URL}, "does not answer like the admin listener of a relay (status 404)"},
		"the clients' port": {[]string{"--admin", clients.URL}, "does not answer like the admin listener of a relay (status 404)"},
		"HOST:PORT":         {[]string{"--admin", strings.TrimPrefix(stranger.URL, "http://")}, stranger.URL + " does not answer like the admin listener"},
		"not an address":    {[]string{"--admin", "a b"}, "give HOST:PORT, a URL such as https://relay.example:8788, or unix:/PATH"},
		"password in it":    {[]string{"--admin", "http://a:secret@127.0.0.1:1"}, "--admin is not an address"},
		"in clear":          {[]string{"--admin", "http://relay.example.com:8788"}, "the token would go to relay.example.com:8788 in clear"},
		"no such setup":     {[]string{"--config", "none.yaml"}, "none.yaml"},
		"an argument":       {[]string{"now"}, "now"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := command(t, append([]string{"status"}, tc.args...)...)
			assert.Equal(t, 1, code)
			assert.Empty(t, stdout)
			assert.Contains(t, stderr, tc.want)
			assert.NotContains(t, stderr, testToken)
			assert.NotContains(t, stderr, "not-the-token")
			assert.NotContains(t, stderr, "secret")
			assert.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		})
	}
}

// relayConfig writes a configuration with this admin section and a state directory.
func relayConfig(t *testing.T, adminSection string) (file, stateDir string) {
	t.Helper()
	unconfigured(t)
	t.Setenv(tokenVariable, "")
	stateDir = t.TempDir()
	file = filepath.Join(t.TempDir(), "config.yaml")
	text := "server: {state_dir: " + stateDir + "}\nadmin: " + adminSection + "\nproviders: [{keys: [{key: sk-ant-test}]}]\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file, stateDir
}

func TestTheConfigurationSaysWhereAndHow(t *testing.T) {
	f := newFakeAdmin(t, map[string]any{"GET /api/v1/stats": emptyStats()})
	_, port, err := net.SplitHostPort(f.Listener.Addr().String())
	require.NoError(t, err)
	for name, listen := range map[string]string{"loopback": "127.0.0.1:" + port, "every address": "0.0.0.0:" + port} {
		t.Run(name, func(t *testing.T) {
			file, dir := relayConfig(t, `{listen: "`+listen+`", insecure_cleartext: true, allowed_hosts: [relay.example.com]}`)
			code, _, stderr := command(t, "status", "-c", file)
			assert.Equal(t, 1, code)
			assert.Contains(t, stderr, "there is no "+filepath.Join(dir, "admin.token"))
			for _, token := range []string{"viewer.token", "admin.token"} {
				require.NoError(t, os.WriteFile(filepath.Join(dir, token), []byte(testToken+"\n"), 0o600))
				code, _, stderr = command(t, "status", "-c", file)
				assert.Zero(t, code, stderr)
				require.NoError(t, os.Remove(filepath.Join(dir, token)))
			}
		})
	}
	for name, tc := range map[string]struct{ section, want string }{
		"off":         {"{listen: off}", "the admin listener is off in the configuration: set admin.listen"},
		"port chosen": {`{listen: "127.0.0.1:0"}`, "admin.listen has port 0"},
	} {
		t.Run(name, func(t *testing.T) {
			file, _ := relayConfig(t, tc.section)
			code, _, stderr := command(t, "status", "-c", file)
			assert.Equal(t, 1, code)
			assert.Contains(t, stderr, tc.want)
		})
	}
}

func TestAskingOverASocket(t *testing.T) {
	f := newFakeAdmin(t, map[string]any{"GET /api/v1/stats": emptyStats()})
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := listen(unixScheme+path, nil, nil)
	require.NoError(t, err)
	server := &http.Server{Handler: f}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	code, _, stderr := command(t, "status", "--admin", unixScheme+path)
	assert.Zero(t, code, stderr)
}

// The certificate of the configuration is trusted as it is, and no other.
func TestAskingOverTLS(t *testing.T) {
	f := newFakeAdmin(t, map[string]any{"GET /api/v1/stats": emptyStats()})
	p := newPairs(t)
	p.renew()
	address := serveTLS(t, p.load().cert, f)
	file, dir := relayConfig(t, fmt.Sprintf("{listen: %q, tls: {cert_file: %s, key_file: %s}}", address, p.cert, p.key))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "admin.token"), []byte(testToken+"\n"), 0o600))
	code, _, stderr := command(t, "status", "-c", file)
	assert.Zero(t, code, stderr)

	asked := f.last()
	p.renew() // another relay's, as far as the one that listens is concerned
	other := newPairs(t)
	other.renew()
	file, dir = relayConfig(t, fmt.Sprintf("{listen: %q, tls: {cert_file: %s, key_file: %s}}", address, other.cert, other.key))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "admin.token"), []byte(testToken+"\n"), 0o600))
	f.mu.Lock()
	f.asked = nil
	f.mu.Unlock()
	code, _, stderr = command(t, "status", "-c", file)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "certificate")
	assert.Empty(t, f.last(), "asked before: %s", asked)
}
