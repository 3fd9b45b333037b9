package proxy_test

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/http1"
	"cc-relay/internal/provider"
	"cc-relay/internal/simulator"
)

// pipes is a network without sockets, for relays and providers inside a bubble:
// the same HTTP as ever, and time passes only while all of them wait.
type pipes struct {
	mu sync.Mutex
	at map[string]*pipeListener // by host
}

func newPipes() *pipes { return &pipes{at: map[string]*pipeListener{}} }

// server is an unstarted server that others reach under this host.
func (p *pipes) server(host string, h http.Handler) *httptest.Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[host] = newPipeListener(host)
	return &httptest.Server{Listener: p.at[host], Config: &http.Server{Handler: h, ErrorLog: stdlog.New(io.Discard, "", 0)}}
}

// dial has the signature of http.Transport.DialContext.
func (p *pipes) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	l := p.at[host]
	p.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("nobody listens at %s", host)
	}
	return l.dial(ctx)
}

// pipeListener accepts connections that are pipes.
type pipeListener struct {
	host   string
	conn   chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipeListener(host string) *pipeListener {
	l := &pipeListener{host: host, conn: make(chan net.Conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conn <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.close()
	return nil
}

func (l *pipeListener) Addr() net.Addr { return hostAddr(l.host) }

type hostAddr string

func (hostAddr) Network() string  { return "pipe" }
func (a hostAddr) String() string { return string(a) }

// owner is an organization of a simulated provider with one key of this number.
func owner(name string, n int, limits simulator.Limits) simulator.Organization {
	return simulator.Organization{ID: "org-" + name + "-" + itoa(n), Limits: limits, Keys: []simulator.Key{{Key: keyOf(name, n)}}}
}

// sim starts a provider on the pipes, with the keys of its organizations. The
// relay reaches it by the transport that it uses in earnest.
func (p *pipes) sim(t testing.TB, name string, cfg simulator.Config) *sim {
	t.Helper()
	s := p.handler(t, name, nil)
	for _, o := range cfg.Organizations {
		for _, k := range o.Keys {
			s.keys = append(s.keys, k.Key)
		}
	}
	cfg.KeepBodies = true
	if cfg.MaxRecords == 0 {
		cfg.MaxRecords = 100_000
	}
	var err error
	s.Simulator, err = simulator.New(cfg)
	require.NoError(t, err)
	s.serve(s.Simulator)
	return &s.sim
}

// piped is a provider on the pipes that is told later what it serves.
type piped struct {
	sim
	mu sync.Mutex
	h  http.Handler
}

// handler starts a provider on the pipes that answers as h does.
func (p *pipes) handler(t testing.TB, name string, h http.Handler) *piped {
	t.Helper()
	s := &piped{h: h}
	host := name + ".test"
	srv := p.server(host, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		h := s.h
		s.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	srv.Start()
	transport := http1.NewTransport(http1.Config{
		Dial: p.dial,
		Fallback: roundTrip(func(r *http.Request) (*http.Response, error) {
			return nil, fmt.Errorf("not sent by http1: %s %s", r.Method, r.URL)
		}),
	})
	t.Cleanup(srv.Close)
	t.Cleanup(transport.CloseIdleConnections) // first: the server waits for its connections
	s.upstream = upstream{Config: provider.Config{Name: name, BaseURL: "http://" + host}, transport: transport}
	return s
}

func (s *piped) serve(h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.h = h
}

// relay starts a relay on the pipes before these providers.
func (p *pipes) relay(t testing.TB, sims ...*sim) *relay {
	s := setup{pipes: p}
	for _, one := range sims {
		s.upstreams = append(s.upstreams, one.upstream)
	}
	return newRelay(t, s)
}
