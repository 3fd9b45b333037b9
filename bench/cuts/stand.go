package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
)

const (
	// patience is how long anybody waits for what must happen.
	patience = 30 * time.Second
	// silence is how long the relay bears a provider that stalls.
	silence = 250 * time.Millisecond
)

// stand is a relay of its own between two providers, for one request after the other.
type stand struct {
	golden    []string
	log       *records
	handler   *proxy.Handler
	server    *httptest.Server
	client    *http.Client
	providers []*upstream
	ways      []*provider.Transport

	live *proxy.Live
	left int // requests that live still serves

	mu    sync.Mutex
	now   *turn // guarded by mu
	reuse bool  // guarded by mu; see upstream.garbage
}

// turn is one request and what the providers play for it.
type turn struct {
	seed, number uint64
	rng          *rand.Rand
	stream       bool
	two          bool // there is a second provider
	fresh        bool // neither pool nor breaker knows anything yet
	how          string
	plays        []*play
}

// text is what its client says.
func (t *turn) text() string { return fmt.Sprintf(`"case %d"`, t.number) }

func (t *turn) String() string {
	var ways []string
	for _, p := range t.plays {
		ways = append(ways, fmt.Sprintf("%s, %s, %d of %d bytes", p.how, p.framing, len(p.sent), len(p.full)))
	}
	return fmt.Sprintf("-seed %d -case %d: stream %v, two providers %v, fresh %v: %s", t.seed, t.number, t.stream, t.two, t.fresh, strings.Join(ways, "; then "))
}

func newRand(seed, number uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, number)) }

// newStand starts one. Close it.
func newStand(golden []string) (*stand, error) {
	s := &stand{golden: golden, log: &records{all: make(chan record, 100)}}
	for _, name := range []string{"a", "b"} {
		up, err := newUpstream(name, s.next, s.reused)
		if err != nil {
			s.close()
			return nil, err
		}
		s.providers = append(s.providers, up)
		way, err := provider.NewTransport(provider.Config{Name: name, BaseURL: "http://" + up.listener.Addr().String()})
		if err != nil {
			s.close()
			return nil, err
		}
		s.ways = append(s.ways, way)
	}
	live, err := s.newLive(true, false)
	if err != nil {
		s.close()
		return nil, err
	}
	s.handler = proxy.NewHandler(live, zerolog.New(s.log).Level(zerolog.InfoLevel))
	s.server = httptest.NewUnstartedServer(s.handler)
	s.server.Config.BaseContext = func(net.Listener) context.Context { return s.handler.Context() }
	s.server.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	s.server.Start()
	s.client = &http.Client{Transport: &http.Transport{DisableCompression: true}}
	return s, nil
}

func (s *stand) close() {
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	if s.server != nil {
		s.server.Close()
	}
	for _, w := range s.ways {
		w.CloseIdleConnections()
	}
	for _, u := range s.providers {
		u.close()
	}
}

// finish checks what must be true once all is over.
func (s *stand) finish() error {
	s.server.Close() // waits for its requests
	if n := s.handler.Active(); n != 0 {
		return fmt.Errorf("%d requests still active at the end", n)
	}
	if n := len(s.log.all); n != 0 {
		return fmt.Errorf("%d access records too many", n)
	}
	return nil
}

// newLive is a configuration as cmd/cc-relay builds it, whose pools and breakers
// know nothing. Providers that stall get little time.
func (s *stand) newLive(two, stalls bool) (*proxy.Live, error) {
	clients, err := auth.NewClients(nil)
	if err != nil {
		return nil, err
	}
	var ups []*router.Upstream
	for i, u := range s.providers {
		if i == 1 && !two {
			break
		}
		cfg := provider.Config{Name: u.name, BaseURL: "http://" + u.listener.Addr().String()}.WithDefaults()
		if stalls {
			cfg.IdleTimeout, cfg.FirstTokenTimeout, cfg.ResponseTimeout = silence, silence, silence
		}
		prov, err := provider.New(cfg)
		if err != nil {
			return nil, err
		}
		up := &router.Upstream{
			Provider: prov, Transport: s.ways[i], Origin: cfg.Origin, HealthCheck: cfg.HealthCheck,
			FirstTokenTimeout: cfg.FirstTokenTimeout, ResponseTimeout: cfg.ResponseTimeout, IdleTimeout: cfg.IdleTimeout,
		}
		never := time.Duration(0)
		up.Pool, err = keypool.NewKeyPool(u.name, keypool.PoolConfig{MaxWait: &never, Keys: []keypool.KeyConfig{{Key: secret.New("sk-cuts-" + u.name)}}})
		if err != nil {
			return nil, err
		}
		ups = append(ups, up)
	}
	live := &proxy.Live{Clients: clients}
	live.Router, err = router.New(router.Config{}, ups, keypool.ClassOf, nil)
	return live, err
}

func (s *stand) reused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reuse = true
}

// next is what a provider plays now: the first to be asked cuts its answer, and those
// after it often do.
func (s *stand) next(name, asked string) *play {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.now
	if !strings.Contains(asked, t.text()) {
		return nil
	}
	how := t.how
	if len(t.plays) > 0 {
		how = whole
		if t.rng.IntN(3) == 0 {
			how = chooseCut(t.rng, t.stream)
		}
		if how == stall && t.how != stall { // the relay would wait for minutes
			how = rst
		}
	}
	id := fmt.Sprintf("%d_%s%d", t.number, name, len(t.plays))
	full := newJSON(t.rng, id)
	if t.stream {
		full = newStream(t.rng, s.golden, id)
	}
	p := newPlay(newRand(t.rng.Uint64(), 0), t.stream, full, how)
	t.plays = append(t.plays, p)
	return p
}

// run plays one request, checks all there is to check, and returns how it ended.
func (s *stand) run(ctx context.Context, seed, number uint64) (*turn, result, error) {
	rng := newRand(seed, number)
	t := &turn{seed: seed, number: number, rng: rng, stream: rng.IntN(4) > 0, two: rng.IntN(2) == 0}
	t.how = chooseCut(rng, t.stream)
	if rng.IntN(50) == 0 {
		t.how = whole
	}
	lasts := 1 + rng.IntN(8) // requests in a row, so that pools and breakers learn
	if s.left == 0 || t.how == stall || len(s.live.Router.Upstreams()) == 2 != t.two {
		live, err := s.newLive(t.two, t.how == stall)
		if err != nil {
			return t, result{}, err
		}
		s.handler.Swap(live)
		s.live, s.left, t.fresh = live, lasts, true
		if t.how == stall {
			s.left = 1
		}
	}
	s.left--
	s.mu.Lock()
	s.now, s.reuse = t, false
	s.mu.Unlock()
	got, err := s.ask(ctx, t)
	if err != nil {
		return t, result{}, err
	}
	if got.record, err = s.log.next(); err != nil {
		return t, result{}, err
	}
	if got.status == http.StatusTooManyRequests { // a key cools, and all would be refused
		s.left = 0
	}
	s.mu.Lock()
	plays, reuse := t.plays, s.reuse
	s.mu.Unlock()
	if reuse {
		return t, result{}, errors.New("a connection was used again on which more had come than was announced")
	}
	if t.how == stall && len(plays) < got.attempts {
		return t, result{end: endSlow}, s.settled()
	}
	res, err := judge(t, plays, got)
	return t, res, errors.Join(err, s.settled())
}

// reply is what a client got.
type reply struct {
	status   int
	header   http.Header
	body     string
	err      error // why the body broke off
	attempts int
	record   record
}

func (s *stand) ask(ctx context.Context, t *turn) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body := fmt.Sprintf(`{"model":"claude-opus-5-5","max_tokens":64,"stream":%v,"messages":[{"role":"user","content":%s}]}`, t.stream, t.text())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.server.URL+"/v1/messages", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no answer at all: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if ctx.Err() != nil {
		return nil, errors.New("the answer did not end")
	}
	got := &reply{status: resp.StatusCode, header: resp.Header, body: string(text), err: err}
	got.attempts, _ = strconv.Atoi(resp.Header.Get("X-Cc-Relay-Attempts"))
	return got, nil
}

// settled says why not all leases have been given back.
func (s *stand) settled() error {
	for _, up := range s.live.Router.Upstreams() {
		for _, c := range up.Pool.GetStats().Classes {
			if c.InFlight != 0 {
				return fmt.Errorf("%d leases of provider %s never settled", c.InFlight, up.Provider.Name())
			}
		}
	}
	return nil
}

// record is what the relay's log says of a request.
type record struct {
	Message    string
	Outcome    string
	Partial    *bool
	Attempts   int
	Input      int `json:"input_tokens"`
	CacheWrite int `json:"cache_write_tokens"`
	CacheRead  int `json:"cache_read_tokens"`
	Output     int `json:"output_tokens"`
}

// records takes the relay's log.
type records struct{ all chan record }

// Write takes one line.
func (r *records) Write(p []byte) (int, error) {
	var rec record
	if err := json.Unmarshal(p, &rec); err != nil {
		return 0, err
	}
	if rec.Message == "request" {
		r.all <- rec
	}
	return len(p), nil
}

// next is the one record of the request that has just been answered.
func (r *records) next() (record, error) {
	select {
	case rec := <-r.all:
		if len(r.all) > 0 {
			return rec, errors.New("more than one access record")
		}
		return rec, nil
	case <-time.After(patience):
		return record{}, errors.New("no access record")
	}
}
