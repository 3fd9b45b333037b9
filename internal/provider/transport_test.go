package provider_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
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
	"go.uber.org/goleak"

	"cc-relay/internal/provider"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sprint(format string, v any) string { return fmt.Sprintf(format, v) }

func newTransport(t *testing.T, cfg provider.Config) *provider.Transport {
	t.Helper()
	tr, err := provider.NewTransport(cfg)
	require.NoError(t, err)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func get(t *testing.T, rt http.RoundTripper, url string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	if err == nil {
		t.Cleanup(func() { _ = resp.Body.Close() })
	}
	return resp, err
}

// protocols are what a server speaks over TLS.
type protocols int

const (
	http1Only protocols = iota
	http2Only
	both
)

// tlsServer is a server with a certificate of its own, and the file to trust it
// by. It answers with its protocol and whether the handshake was a short one.
func tlsServer(t *testing.T, speaks protocols) (url, caFile string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprint(w, r.Proto, " ", r.TLS.DidResume, " ", string(b))
	}))
	srv.EnableHTTP2 = speaks != http1Only
	if speaks == http2Only {
		srv.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			cfg := srv.TLS.Clone()
			if !slices.Contains(hello.SupportedProtos, "h2") {
				cfg.NextProtos = []string{"other"} // with h2 alone, Go would let HTTP/1.1 in
			}
			return cfg, nil
		}}
	}
	srv.Config.ErrorLog = quietLog()
	srv.StartTLS()
	t.Cleanup(srv.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	require.NoError(t, os.WriteFile(caFile, cert, 0o600))
	return srv.URL, caFile
}

// post sends a body in memory and returns the answer.
func post(t *testing.T, rt http.RoundTripper, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader("body"))
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return string(b)
}

// HTTP/1.1 is spoken wherever it is understood, and HTTP/2 where nothing else is.
func TestTransportSpeaksWhatTheServerDoes(t *testing.T) {
	for name, tt := range map[string]struct {
		speaks protocols
		want   string
	}{
		"HTTP/1.1": {http1Only, "HTTP/1.1"},
		"HTTP/2":   {http2Only, "HTTP/2.0"},
		"both":     {both, "HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			url, caFile := tlsServer(t, tt.speaks)
			tr := newTransport(t, provider.Config{CAFile: caFile})
			for range 3 {
				assert.Equal(t, tt.want+" false body", post(t, tr, url))
			}
			// The next connection is made with a short handshake.
			tr.CloseIdleConnections()
			assert.Equal(t, tt.want+" true body", post(t, tr, url))
			tr.CloseIdleConnections()
		})
	}
}

func TestTransportTrustsOnlyWhatItIsTold(t *testing.T) {
	for name, speaks := range map[string]protocols{"HTTP/1.1": http1Only, "HTTP/2": http2Only} {
		url, caFile := tlsServer(t, speaks)
		t.Run("unknown authority, "+name, func(t *testing.T) {
			_, err := get(t, newTransport(t, provider.Config{}), url)
			requireConnectError(t, err, "x509")
		})
		t.Run("another name, "+name, func(t *testing.T) {
			_, err := get(t, newTransport(t, provider.Config{CAFile: caFile}), strings.Replace(url, "127.0.0.1", "localhost", 1))
			requireConnectError(t, err, "x509")
		})
	}
	t.Run("what is wrong is said", func(t *testing.T) {
		url, _ := tlsServer(t, both)
		_, err := get(t, newTransport(t, provider.Config{}), url)
		requireConnectError(t, err, "x509")
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		srv := httptest.NewUnstartedServer(http.NotFoundHandler())
		srv.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
		srv.Config.ErrorLog = quietLog()
		srv.StartTLS()
		t.Cleanup(srv.Close)
		caFile := filepath.Join(t.TempDir(), "ca.pem")
		require.NoError(t, os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600))
		_, err := get(t, newTransport(t, provider.Config{CAFile: caFile}), srv.URL)
		requireConnectError(t, err, "protocol version")
	})
}

func requireConnectError(t *testing.T, err error, says string) {
	t.Helper()
	var connect *provider.ConnectError
	require.ErrorAs(t, err, &connect)
	require.ErrorContains(t, err, says)
	require.Error(t, errors.Unwrap(connect))
}

func TestTransportFailsToConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed := l.Addr().String()
	require.NoError(t, l.Close())
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })

	for name, url := range map[string]string{
		"refused":           "http://" + closed,
		"refused, TLS":      "https://" + closed,
		"no such host":      "http://no-such-host.invalid",
		"no such host, TLS": "https://no-such-host.invalid",
		"silent handshake":  "https://" + silent.Addr().String(),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := get(t, newTransport(t, provider.Config{DialTimeout: 300 * time.Millisecond}), url)
			requireConnectError(t, err, "")
			assert.Less(t, time.Since(start), 5*time.Second)
		})
	}
}

// What fails once the request was sent is no failure to connect: it may have been
// served, and paid for.
func TestALostConnectionIsNoConnectError(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	t.Cleanup(srv.Close)
	_, err := get(t, newTransport(t, provider.Config{}), srv.URL)
	require.Error(t, err)
	var connect *provider.ConnectError
	assert.NotErrorAs(t, err, &connect)
}

func TestTransportRefusesACAFileItCannotUse(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, []byte("not a certificate"), 0o600))
	for _, file := range []string{empty, filepath.Join(t.TempDir(), "missing.pem"), t.TempDir()} {
		tr, err := provider.NewTransport(provider.Config{Name: "main", CAFile: file})
		require.ErrorContains(t, err, "provider main: ca_file")
		assert.Nil(t, tr)
	}
}

// A reload keeps the connections of a provider for which nothing has changed, and
// trusts what is in the CA file now.
func TestRenew(t *testing.T) {
	url, caFile := tlsServer(t, both)
	other := certificate(t)
	otherFile := filepath.Join(t.TempDir(), "other.pem")
	require.NoError(t, os.WriteFile(otherFile, other, 0o600))
	same, err := os.ReadFile(caFile)
	require.NoError(t, err)
	cfg := provider.Config{Name: "main", BaseURL: url, CAFile: caFile}
	for name, tt := range map[string]struct {
		change func(cfg *provider.Config)
		want   bool // the same transport
	}{
		"nothing":                {func(*provider.Config) {}, true},
		"what is no matter here": {func(cfg *provider.Config) { cfg.IdleTimeout, cfg.Origin, cfg.Name = time.Second, "x", "renamed" }, true},
		"a default that is written out": {func(cfg *provider.Config) {
			cfg.DialTimeout = provider.DefaultDialTimeout
		}, true},
		"the same in another file": {func(cfg *provider.Config) {
			cfg.CAFile = filepath.Join(t.TempDir(), "copy.pem")
			require.NoError(t, os.WriteFile(cfg.CAFile, same, 0o600))
		}, true},
		"the address":      {func(cfg *provider.Config) { cfg.BaseURL = "https://example.com" }, false},
		"the dial timeout": {func(cfg *provider.Config) { cfg.DialTimeout = time.Second }, false},
		"no CA file":       {func(cfg *provider.Config) { cfg.CAFile = "" }, false},
		"another CA file":  {func(cfg *provider.Config) { cfg.CAFile = otherFile }, false},
	} {
		t.Run(name, func(t *testing.T) {
			old, changed := newTransport(t, cfg), cfg
			tt.change(&changed)
			got, err := old.Renew(changed)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got == old)
			got.CloseIdleConnections()
		})
	}
	t.Run("what is in the CA file", func(t *testing.T) {
		old := newTransport(t, cfg)
		assert.Equal(t, "HTTP/1.1 false body", post(t, old, url))
		require.NoError(t, os.WriteFile(caFile, other, 0o600))
		got, err := old.Renew(cfg)
		require.NoError(t, err)
		_, err = get(t, got, url)
		requireConnectError(t, err, "x509")
		assert.Equal(t, "HTTP/1.1 false body", post(t, old, url), "requests under way are served on")
	})
	t.Run("a CA file that cannot be used any more", func(t *testing.T) {
		old := newTransport(t, cfg)
		for _, broken := range []func() error{
			func() error { return os.WriteFile(caFile, []byte("not a certificate"), 0o600) },
			func() error { return os.WriteFile(caFile, nil, 0o600) },
			func() error { return os.Remove(caFile) },
		} {
			require.NoError(t, broken())
			got, err := old.Renew(cfg)
			require.ErrorContains(t, err, "provider main: ca_file")
			assert.Nil(t, got)
		}
	})
}

// certificate is one that signed no server's.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// The environment of whoever starts the relay decides nothing.
func TestTransportIgnoresProxyVariables(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	tr := newTransport(t, provider.Config{})
	for name, body := range map[string]io.Reader{"in memory": nil, "not in memory": io.NopCloser(strings.NewReader("body"))} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(scheme+", "+name, func(t *testing.T) {
				req, err := http.NewRequestWithContext(t.Context(), "POST", scheme+"://no-such-host.invalid", body)
				require.NoError(t, err)
				_, err = tr.RoundTrip(req)
				requireConnectError(t, err, "no-such-host.invalid")
				assert.NotContains(t, err.Error(), "127.0.0.1:1", "the proxy was asked")
			})
		}
	}
}

func TestTransportNeitherFollowsNorUnpacks(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Asked", r.Header.Get("Accept-Encoding"))
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(http.StatusTemporaryRedirect)
		_, _ = io.WriteString(w, "\x1f\x8b raw")
	}))
	t.Cleanup(srv.Close)
	resp, err := get(t, newTransport(t, provider.Config{}), srv.URL)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusTemporaryRedirect, resp.StatusCode)
	assert.Equal(t, "\x1f\x8b raw", string(body))
	assert.Empty(t, resp.Header.Get("X-Asked"), "the transport asks for no encoding by itself")
}

func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }
