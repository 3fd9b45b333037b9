package proxy_test

import (
	"context"
	"encoding/pem"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// overHTTP2 puts a simulated provider behind TLS and HTTP/2, as the real one is.
func overHTTP2(t *testing.T, s *sim) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, 2, r.ProtoMajor, "protocol")
		s.ServeHTTP(w, r)
	}))
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.BaseURL, s.CAFile = srv.URL, filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	require.NoError(t, os.WriteFile(s.CAFile, cert, 0o600))
}

func TestProvidersOverHTTP2(t *testing.T) {
	leakFree(t)
	long := strings.Replace(ask(opus, true), "hello", strings.Repeat("hello ", 200_000), 1)
	for name, tt := range map[string]struct {
		fault []simulator.Fault
		check func(t *testing.T, got reply, a, b *sim)
	}{
		"served": {nil, func(t *testing.T, got reply, a, b *sim) {
			requireServed(t, got, true)
			assert.Equal(t, long, string(a.Seen()[0].Body))
			assert.Empty(t, b.Seen())
		}},
		"429": {faults(status(429)), func(t *testing.T, got reply, a, b *sim) {
			requireServed(t, got, true)
			assert.Equal(t, long, string(b.Seen()[0].Body))
		}},
		"stream reset before the headers": {faults(simulator.Fault{Kind: simulator.FaultReset}), func(t *testing.T, got reply, a, b *sim) {
			requireServed(t, got, true)
			assert.Len(t, a.Seen(), 1, "it may have been paid for, so it is not sent there again")
			assert.Len(t, b.Seen(), 1)
		}},
		"stream reset in the middle": {faults(simulator.Fault{Kind: simulator.FaultCut, AfterEvents: 4}), func(t *testing.T, got reply, a, b *sim) {
			require.NoError(t, got.err)
			assert.Equal(t, 1, strings.Count(got.body, "event: error\n"))
			assert.NotContains(t, got.body, "message_stop")
			assert.Empty(t, b.Seen())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newSim(t, "a", 1, tt.fault...), newSim(t, "b", 1)
			overHTTP2(t, a)
			r := relayOf(t, a, b)
			tt.check(t, r.do(call{body: long}), a, b)
		})
	}
	t.Run("a client leaves", func(t *testing.T) {
		a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultStall, AfterEvents: 3})
		overHTTP2(t, a)
		r := relayOf(t, a)
		ctx, cancel := context.WithCancel(t.Context())
		resp := r.open(ctx, call{body: ask(opus, true)})
		_, err := io.ReadFull(resp.Body, make([]byte, 20))
		require.NoError(t, err)
		cancel()
		assert.Equal(t, "client_gone", r.log.next(t)["outcome"])
		require.Eventually(t, func() bool { return a.Seen()[0].ClientLeft }, time.Second, time.Millisecond, "the provider goes on for nobody")
	})
}
