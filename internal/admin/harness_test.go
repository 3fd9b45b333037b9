package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cc-relay/internal/admin"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
	"cc-relay/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// named is a provider that is only called by its name.
type named struct {
	provider.Provider
	name string
}

func (n named) Name() string { return n.name }

// Keys that must never be seen anywhere. The providers have the last one both.
const (
	keyA, keyB, keyBoth = "sk-ant-api03-canary-AAAA", "sk-ant-api03-canary-BBBB", "sk-ant-api03-canary-both"
	dataToken           = "client-token-canary-1234"
)

func idOf(key string) string { return keypool.KeyConfig{Key: secret.New(key)}.ID() }

// logged is a log that many may write to.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}
func (l *logged) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.text.String() }

// world is a handler with a relay behind it whose actions are noted, not done, where
// the relay's parts do not offer them.
type world struct {
	*admin.Handler
	t             *testing.T
	dir           *state.Dir
	admin, viewer string
	one, two      *router.Upstream
	log           *logged

	mu       sync.Mutex
	did      []string
	draining map[*router.Upstream]bool
	stopping bool
	fail     error // of actions
	reload   *admin.LastReload
}

func pool(t *testing.T, name string, keys ...string) *keypool.KeyPool {
	cfg := keypool.PoolConfig{}
	for _, k := range keys {
		cfg.Keys = append(cfg.Keys, keypool.KeyConfig{Key: secret.New(k), RPMLimit: 100, ITPMLimit: 10_000, OTPMLimit: 1000})
	}
	p, err := keypool.NewKeyPool(name, cfg)
	require.NoError(t, err)
	return p
}

func openDir(t *testing.T, path string) *state.Dir {
	dir, err := state.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

// newWorld returns a world whose configuration change has changed.
func newWorld(t *testing.T, change ...func(*admin.Config)) *world {
	w := &world{t: t, dir: openDir(t, filepath.Join(t.TempDir(), "state")), draining: map[*router.Upstream]bool{}, log: &logged{}}
	w.one = &router.Upstream{Provider: named{name: "one"}, Pool: pool(t, "one", keyA, keyBoth)}
	w.two = &router.Upstream{Provider: named{name: "two"}, Pool: pool(t, "two", keyB, keyBoth)}
	cfg := admin.Config{Dir: w.dir, AllowedHosts: []string{"relay.example"}, Pprof: true, Log: zerolog.New(w.log), Relay: w.parts()}
	for _, c := range change {
		c(&cfg)
	}
	h, err := admin.New(cfg)
	require.NoError(t, err)
	t.Cleanup(h.Close)
	w.Handler, w.admin, w.viewer = h, w.file("admin.token"), w.file("viewer.token")
	return w
}

func (w *world) note(format string, args ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	w.did = append(w.did, fmt.Sprintf(format, args...))
	return nil
}

func (w *world) parts() admin.Relay {
	name := func(up *router.Upstream) string { return up.Provider.Name() }
	return admin.Relay{
		Version: "1.2.3", StartedAt: time.Now().Add(-time.Minute),
		Upstreams:   func() []*router.Upstream { w.mu.Lock(); defer w.mu.Unlock(); return []*router.Upstream{w.one, w.two} },
		DisableKey:  func(up *router.Upstream, id string) error { return w.note("off %s %s", name(up), id) },
		EnableKey:   func(up *router.Upstream, id string) error { return w.note("on %s %s", name(up), id) },
		Stopping:    func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.stopping },
		Draining:    func(up *router.Upstream) bool { w.mu.Lock(); defer w.mu.Unlock(); return w.draining[up] },
		SetDraining: func(up *router.Upstream, on bool) { w.mu.Lock(); defer w.mu.Unlock(); w.draining[up] = on },
		ForceBreaker: func(up *router.Upstream, class string, s health.State, d time.Duration) {
			if class != "" {
				up.Lane(class).Hold(s, d)
			}
			_ = w.note("force %s %q %s %s", name(up), class, s, d)
		},
		Reserved:   func(*keypool.KeyMetadata) admin.Tokens { return admin.Tokens{Input: 7, Output: 3} },
		Totals:     func() admin.Totals { return admin.Totals{Requests: 5} },
		LastReload: func() *admin.LastReload { return w.reload },
		Reload: func(context.Context) (admin.Reload, error) {
			return admin.Reload{Changed: []string{"providers"}, NeedsRestart: []string{"server.listen"}}, w.note("reload")
		},
		Requests: func(limit int) any { return []int{limit} },
		Explain:  func(id string) (any, bool) { return map[string]string{"id": id, "key": keyA}, id == "r1" },
		DryRun: func(_ context.Context, q admin.DryRunRequest) (any, error) {
			if q.Model == "nowhere" {
				return nil, errors.New("no rule leads there")
			}
			return map[string]any{"asked": q, "note": keyB}, nil
		},
		Config:     func() ([]byte, error) { return []byte("key: " + keyA + "\n"), nil },
		ConfigDiff: func(context.Context) (admin.ConfigDiff, error) { return admin.ConfigDiff{}, nil },
		Metrics: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(rw, "up 1 %s", r.Header.Get("Authorization"))
		}),
		Scrub: strings.NewReplacer(keyA, "[redacted]", keyB, "[redacted]", keyBoth, "[redacted]", dataToken, "[redacted]").Replace,
	}
}

func (w *world) done() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.did
}

func (w *world) path(name string) string { return filepath.Join(w.dir.Path(), name) }

func (w *world) file(name string) string {
	data, err := os.ReadFile(w.path(name))
	require.NoError(w.t, err)
	return strings.TrimSpace(string(data))
}

// audit is the records of the audit; torn lines are left out.
func (w *world) audit() []admin.Record {
	data, err := os.ReadFile(w.path("audit.log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(w.t, err)
	var all []admin.Record
	for line := range strings.Lines(string(data)) {
		var r admin.Record
		if json.Unmarshal([]byte(line), &r) == nil {
			all = append(all, r)
		}
	}
	return all
}

// request is one to the handler: from loopback, with a token unless it is "".
func request(method, path, token, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host, r.RemoteAddr = "127.0.0.1:8788", "127.0.0.1:5555"
	if body == "" {
		r.Body = http.NoBody
	} else {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

func (w *world) do(method, path, token, body string, headers ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	return w.send(request(method, path, token, body, headers...))
}

func (w *world) send(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, r)
	return rec
}

// refused asserts a refusal.
func refused(t *testing.T, rec *httptest.ResponseRecorder, status int, code string, msgAndArgs ...any) {
	t.Helper()
	var body admin.ErrorBody
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &body), "body: %s", rec.Body)
	assert.Equal(t, status, rec.Code, msgAndArgs...)
	assert.Equal(t, code, body.Error.Code, msgAndArgs...)
	assert.NotEmpty(t, body.Error.Message, msgAndArgs...)
}

func answered[T any](t *testing.T, rec *httptest.ResponseRecorder) T {
	t.Helper()
	require.Equal(t, http.StatusOK, rec.Code, "body: %s", rec.Body)
	var v T
	dec := json.NewDecoder(rec.Body)
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&v))
	return v
}
