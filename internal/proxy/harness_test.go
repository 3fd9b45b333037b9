package proxy_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
	"cc-relay/internal/simulator"
)

// Tokens of the two clients every relay here knows, unless a test says otherwise.
const (
	aliceToken = "relay-token-alice-3f9c1d7e5b2a4860"
	bobToken   = "relay-token-bob-8e6d4c2b0a197f53"
)

const (
	opus  = "claude-opus-5-5"
	haiku = "claude-haiku-5-5"
)

// patient is how long a test waits for something that must happen.
const patient = 10 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	// Tests here wait more than they work.
	if err := flag.Set("test.parallel", "64"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// leakFree fails the test if goroutines of it are left once its cleanups are done.
// Call it first. Tests that call it must not run in parallel; their subtests may.
func leakFree(t testing.TB) {
	running := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, running) })
}

// keyOf is the nth key of a provider, from 1.
func keyOf(name string, n int) string { return fmt.Sprintf("sk-test-%s-%d-c0ffee5eed1e55", name, n) }

// sim is a simulated provider on a loopback socket.
type sim struct {
	*simulator.Simulator
	upstream
}

// newSim starts a provider with n keys, each of an organization of its own and
// without limits.
func newSim(t testing.TB, name string, n int, faults ...simulator.Fault) *sim {
	return startSim(t, name, n, simulator.Config{Faults: faults})
}

func startSim(t testing.TB, name string, n int, cfg simulator.Config) *sim {
	t.Helper()
	s := &sim{upstream: upstream{Config: provider.Config{Name: name}}}
	for i := 1; i <= n; i++ {
		s.keys = append(s.keys, keyOf(name, i))
		cfg.Organizations = append(cfg.Organizations, simulator.Organization{
			ID: fmt.Sprintf("org-%s-%d", name, i), Keys: []simulator.Key{{Key: keyOf(name, i)}},
		})
	}
	cfg.KeepBodies = true
	cfg.Answers.MedianTokens = cmp.Or(cfg.Answers.MedianTokens, 12)
	var err error
	s.Simulator, err = simulator.New(cfg)
	require.NoError(t, err)
	s.BaseURL = serve(t, s.Simulator)
	return s
}

// serve puts an upstream's handler on a loopback socket.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

// upstream is a provider as the relay is told of it.
type upstream struct {
	provider.Config
	keys      []string
	limits    keypool.KeyConfig // of each key
	maxWait   time.Duration     // of its pool; 0: tests of refusals see them at once
	transport http.RoundTripper // nil: a real one
}

// setup describes a relay.
type setup struct {
	proxy.Config
	clients   []auth.ClientConfig // nil: alice and bob
	upstreams []upstream
	routes    router.Config
	own       bool   // passthrough
	pipes     *pipes // nil: loopback sockets
}

// relay is a running relay and everything it wrote.
type relay struct {
	t       testing.TB
	url     string
	handler *proxy.Handler
	live    *proxy.Live
	patient time.Duration // how long its clients are
	server  *httptest.Server
	client  *http.Transport
	log     *logs
}

// relayOf starts a relay before these providers.
func relayOf(t testing.TB, sims ...*sim) *relay {
	var s setup
	for _, one := range sims {
		s.upstreams = append(s.upstreams, one.upstream)
	}
	return newRelay(t, s)
}

// newRelay starts a relay on a loopback socket, configured as cmd/cc-relay does
// it. At the end of the test every lease must have been settled.
func newRelay(t testing.TB, s setup) *relay {
	t.Helper()
	r := &relay{t: t, log: newLogs(), client: &http.Transport{DisableCompression: true}, patient: patient}
	r.live = newLive(t, s, r.log.logger())
	r.handler = proxy.NewHandler(r.live, r.log.logger())
	if s.pipes == nil {
		r.server = httptest.NewUnstartedServer(r.handler)
	} else {
		r.server = s.pipes.server("relay.test", r.handler)
		r.client.DialContext, r.client.MaxIdleConnsPerHost = s.pipes.dial, 256
		r.patient = time.Hour
	}
	r.server.Config.BaseContext = func(net.Listener) context.Context { return r.handler.Context() }
	r.server.Config.DisableGeneralOptionsHandler = true
	r.server.Config.MaxHeaderBytes = 64 << 10
	r.server.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	r.server.Start()
	r.url = r.server.URL
	t.Cleanup(r.close)
	return r
}

func newLive(t testing.TB, s setup, log zerolog.Logger) *proxy.Live {
	t.Helper()
	if s.clients == nil {
		s.clients = []auth.ClientConfig{
			{Name: "alice", Token: secret.New(aliceToken)},
			{Name: "bob", Token: secret.New(bobToken)},
		}
	}
	clients, err := auth.NewClients(s.clients)
	require.NoError(t, err)
	live := &proxy.Live{Config: s.Config, Clients: clients, Hosts: auth.NewHosts([]string{"relay", "relay.test"})}
	for _, c := range s.clients {
		live.Secrets = append(live.Secrets, c.Token)
	}
	var ups []*router.Upstream
	for _, u := range s.upstreams {
		ups = append(ups, u.start(t, log))
		for _, k := range u.keys {
			live.Secrets = append(live.Secrets, secret.New(k))
		}
	}
	live.Passthrough = s.own
	live.Router, err = router.New(s.routes, ups, keypool.ClassOf, nil)
	require.NoError(t, err)
	return live
}

func (u upstream) start(t testing.TB, log zerolog.Logger) *router.Upstream {
	t.Helper()
	cfg := u.WithDefaults()
	prov, err := provider.New(cfg)
	require.NoError(t, err)
	pool := keypool.PoolConfig{Logger: log, MaxWait: &u.maxWait}
	for _, k := range u.keys {
		one := u.limits
		one.Key = secret.New(k)
		pool.Keys = append(pool.Keys, one)
	}
	up := &router.Upstream{
		Provider: prov, Transport: u.transport, Origin: cfg.Origin, HealthCheck: cfg.HealthCheck,
		FirstTokenTimeout: cfg.FirstTokenTimeout, ResponseTimeout: cfg.ResponseTimeout, IdleTimeout: cfg.IdleTimeout,
	}
	up.Pool, err = keypool.NewKeyPool(cfg.Name, pool)
	require.NoError(t, err)
	if up.Transport == nil {
		transport, err := provider.NewTransport(cfg)
		require.NoError(t, err)
		t.Cleanup(transport.CloseIdleConnections)
		up.Transport = transport
	}
	return up
}

// close ends the relay and checks that it gave back what it had taken, and told no
// secret.
func (r *relay) close() {
	r.client.CloseIdleConnections()
	r.handler.Stop()
	r.server.Close()
	assert.Zero(r.t, r.handler.Active(), "requests still active")
	assert.Empty(r.t, r.inFlight(), "leases never settled, by provider and class")
	log := r.log.String()
	for _, secret := range r.live.Secrets {
		if text := secret.Reveal(); len(text) >= 8 { // else it is nobody's secret
			assert.NotContains(r.t, log, text, "a secret is in the log")
		}
	}
}

// inFlight counts unsettled leases by provider and class, where there are any.
func (r *relay) inFlight() map[string]int {
	open := map[string]int{}
	for _, up := range r.live.Router.Upstreams() {
		for _, c := range up.Pool.GetStats().Classes {
			if c.InFlight != 0 {
				open[up.Provider.Name()+" "+c.Class] = c.InFlight
			}
		}
	}
	return open
}

// logs keeps what the relay logs, at every level.
type logs struct {
	mu      sync.Mutex
	text    bytes.Buffer
	records chan record // one for each request
}

// record is the access record of a request.
type record map[string]any

func newLogs() *logs { return &logs{records: make(chan record, 10_000)} }

func (l *logs) logger() zerolog.Logger { return zerolog.New(l).Level(zerolog.TraceLevel) }

// Write takes one line.
func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	var rec record
	if err := json.Unmarshal(p, &rec); err != nil {
		return 0, fmt.Errorf("log line %q: %w", p, err)
	}
	if rec["message"] == "request" {
		l.records <- rec
	}
	return len(p), nil
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// next waits for the record of the next request that ends. Its lease is settled by then.
func (l *logs) next(t testing.TB) record {
	t.Helper()
	select {
	case rec := <-l.records:
		return rec
	case <-time.After(patient):
		require.FailNow(t, "no access record came", "log so far:\n%s", l)
		return nil
	}
}

// call is a client's request. The zero call is a POST /v1/messages of alice.
type call struct {
	method, path string
	token        string // "" alice's; "-" none
	header       http.Header
	body         string
	host         string // "": the relay's address
}

// reply is what a client got.
type reply struct {
	status int
	header http.Header
	body   string
	err    error // that ended the body, if it did not end well
	closed bool  // the connection is not to be used again
	record record
}

func (r *relay) request(c call) *http.Request {
	r.t.Helper()
	body := io.Reader(nil)
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	req, err := http.NewRequest(cmp.Or(c.method, http.MethodPost), r.url+cmp.Or(c.path, "/v1/messages"), body)
	require.NoError(r.t, err)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("Content-Type", "application/json")
	if c.token != "-" {
		req.Header.Set("Authorization", "Bearer "+cmp.Or(c.token, aliceToken))
	}
	for name, values := range c.header {
		req.Header[name] = values
	}
	req.Host = c.host
	return req
}

// do sends a call, reads its answer whole and waits for its access record.
func (r *relay) do(c call) reply {
	r.t.Helper()
	got := r.send(c)
	got.record = r.log.next(r.t)
	return got
}

// send is do without the record, for calls that run side by side.
func (r *relay) send(c call) reply {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), r.patient)
	defer cancel()
	resp, err := r.client.RoundTrip(r.request(c).WithContext(ctx))
	if err != nil {
		return reply{err: err}
	}
	return readReply(resp)
}

func readReply(resp *http.Response) reply {
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return reply{status: resp.StatusCode, header: resp.Header, body: string(body), err: err, closed: resp.Close}
}

// open sends a call and returns once the status is there, for streams that are
// read bit by bit. The body is closed when the test ends.
func (r *relay) open(ctx context.Context, c call) *http.Response {
	r.t.Helper()
	resp, err := r.client.RoundTrip(r.request(c).WithContext(ctx))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// ask is the body of a short request for one model.
func ask(model string, stream bool) string {
	return fmt.Sprintf(`{"model":%q,"max_tokens":64,"stream":%t,"messages":[{"role":"user","content":"hello"}]}`, model, stream)
}

// errorBody is an error of the Messages API.
type errorBody struct {
	Type  string `json:"type"`
	Error struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	} `json:"error"`
	RequestID string `json:"request_id"`
}

// requireError checks that the reply is an error of the API's shape and returns it.
func requireError(t testing.TB, got reply, status int, kind string) errorBody {
	t.Helper()
	require.NoError(t, got.err)
	require.Equal(t, status, got.status, "status; body: %s", got.body)
	var e errorBody
	require.NoError(t, json.Unmarshal([]byte(got.body), &e), "body: %s", got.body)
	require.Equal(t, "error", e.Type, "body: %s", got.body)
	require.Equal(t, kind, e.Error.Type, "error type; body: %s", got.body)
	require.NotEmpty(t, e.Error.Message, "error message")
	require.Equal(t, "application/json", got.header.Get("Content-Type"))
	require.Equal(t, "no-store", got.header.Get("Cache-Control"))
	require.NotEmpty(t, got.header.Get("Request-Id"), "every error has a request-id")
	return e
}

// requireServed checks that the reply is a whole answer, streamed or not.
func requireServed(t testing.TB, got reply, stream bool) {
	t.Helper()
	require.NoError(t, got.err)
	require.Equal(t, http.StatusOK, got.status, "status; body: %s", got.body)
	if stream {
		require.Contains(t, got.header.Get("Content-Type"), "text/event-stream")
		require.True(t, strings.HasSuffix(got.body, "data: {\"type\":\"message_stop\"}\n\n"), "the stream does not end with message_stop: %s", got.body)
		require.NotContains(t, got.body, "event: error")
		return
	}
	var m struct {
		Type  string          `json:"type"`
		Usage json.RawMessage `json:"usage"`
	}
	require.NoError(t, json.Unmarshal([]byte(got.body), &m), "body: %s", got.body)
	require.Equal(t, "message", m.Type, "body: %s", got.body)
	require.NotEmpty(t, m.Usage, "body: %s", got.body)
}

// keysSeen are the names of the keys the provider was called with, in order.
func (s *sim) keysSeen() []string {
	names := []string{}
	for _, rec := range s.Seen() {
		names = append(names, rec.Key)
	}
	return names
}
