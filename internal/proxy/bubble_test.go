package proxy_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/proxy"
	"cc-relay/internal/simulator"
)

// simulated is a transport that asks a simulator without a network, for tests in
// which time passes.
func simulated(s *simulator.Simulator) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		_ = r.Body.Close()
		in := r.Clone(r.Context())
		in.Body = io.NopCloser(bytes.NewReader(body))
		w, whole := httptest.NewRecorder(), false
		func() {
			defer func() { _ = recover() }() // how a handler breaks its connection
			s.ServeHTTP(w, in)
			whole = true
		}()
		resp := w.Result()
		if !whole {
			resp.Body = io.NopCloser(io.MultiReader(resp.Body, iotest.ErrReader(io.ErrUnexpectedEOF)))
		}
		return resp, nil
	}
}

var unlimited keypool.KeyConfig

// bubble is a relay inside a synctest bubble, before one simulator.
type bubble struct {
	*simulator.Simulator
	handler *proxy.Handler
	pool    *keypool.KeyPool
	log     *logs
}

func newBubble(t *testing.T, keys int, limits keypool.KeyConfig, f ...simulator.Fault) *bubble {
	t.Helper()
	cfg := simulator.Config{Faults: f}
	up := memory(nil)
	up.keys = nil
	for i := 1; i <= keys; i++ {
		up.keys = append(up.keys, keyOf("a", i))
		cfg.Organizations = append(cfg.Organizations, simulator.Organization{ID: "org-" + itoa(i), Keys: []simulator.Key{{Key: keyOf("a", i)}}})
	}
	s, err := simulator.New(cfg)
	require.NoError(t, err)
	up.transport = simulated(s)
	up.limits = limits
	b := &bubble{Simulator: s, log: newLogs()}
	live := newLive(t, setup{upstreams: []upstream{up}}, b.log.logger())
	b.handler, b.pool = proxy.NewHandler(live, b.log.logger()), live.Router.Upstreams()[0].Pool
	return b
}

func (b *bubble) ask(body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, aliceRequest(body))
	return w
}
