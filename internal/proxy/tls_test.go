package proxy_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// overTLS puts a simulated provider behind TLS. One that speaks HTTP/2 speaks
// nothing else, since the relay asks for HTTP/1.1 first.
func overTLS(t *testing.T, s *sim, major int) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, major, r.ProtoMajor, "protocol")
		s.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	if major == 2 {
		srv.EnableHTTP2 = true
		srv.TLS = &tls.Config{GetConfigForClient: refuseHTTP1}
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.BaseURL, s.CAFile = srv.URL, filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	require.NoError(t, os.WriteFile(s.CAFile, cert, 0o600))
}

// refuseHTTP1 ends the handshake with who does not offer HTTP/2. Left to itself
// crypto/tls lets those in without a protocol.
func refuseHTTP1(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if slices.Contains(hello.SupportedProtos, "h2") {
		return nil, nil
	}
	return &tls.Config{NextProtos: []string{"nothing"}, GetCertificate: noCertificate}, nil
}

// noCertificate is never called: the protocol is refused before.
func noCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }

func TestProvidersOverTLS(t *testing.T) {
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
		"reset before the headers": {faults(simulator.Fault{Kind: simulator.FaultReset}), func(t *testing.T, got reply, a, b *sim) {
			requireServed(t, got, true)
			assert.Len(t, a.Seen(), 1, "it may have been paid for, so it is not sent there again")
			assert.Len(t, b.Seen(), 1)
		}},
		"reset in the middle": {faults(simulator.Fault{Kind: simulator.FaultCut, AfterEvents: 4}), func(t *testing.T, got reply, a, b *sim) {
			require.NoError(t, got.err)
			assert.Equal(t, 1, strings.Count(got.body, "event: error\n"))
			assert.NotContains(t, got.body, "message_stop")
			assert.Empty(t, b.Seen())
		}},
	} {
		for _, major := range []int{1, 2} {
			t.Run(name+", HTTP/"+itoa(major), func(t *testing.T) {
				a, b := newSim(t, "a", 1, tt.fault...), newSim(t, "b", 1)
				overTLS(t, a, major)
				r := relayOf(t, a, b)
				tt.check(t, r.do(call{body: long}), a, b)
			})
		}
	}
	for _, major := range []int{1, 2} {
		t.Run("a client leaves, HTTP/"+itoa(major), func(t *testing.T) {
			a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultStall, AfterEvents: 3})
			overTLS(t, a, major)
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
}
