package provider_test

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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

func newTransport(t *testing.T, cfg provider.Config) *http.Transport {
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

// tlsServer is a server with a certificate of its own, and the file to trust it by.
func tlsServer(t *testing.T, h2 bool) (url, caFile string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	srv.EnableHTTP2 = h2
	srv.Config.ErrorLog = quietLog()
	srv.StartTLS()
	t.Cleanup(srv.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	require.NoError(t, os.WriteFile(caFile, cert, 0o600))
	return srv.URL, caFile
}

func TestTransportTrustsOnlyWhatItIsTold(t *testing.T) {
	for _, h2 := range []bool{true, false} {
		url, caFile := tlsServer(t, h2)
		t.Run(fmt.Sprintf("trusted, h2=%t", h2), func(t *testing.T) {
			tr := newTransport(t, provider.Config{CAFile: caFile})
			resp, err := get(t, tr, url)
			require.NoError(t, err)
			proto, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			assert.Equal(t, map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[h2], string(proto))
			tr.CloseIdleConnections()
		})
		t.Run(fmt.Sprintf("unknown authority, h2=%t", h2), func(t *testing.T) {
			_, err := get(t, newTransport(t, provider.Config{}), url)
			requireConnectError(t, err, "x509")
		})
		t.Run(fmt.Sprintf("another name, h2=%t", h2), func(t *testing.T) {
			_, err := get(t, newTransport(t, provider.Config{CAFile: caFile}), strings.Replace(url, "127.0.0.1", "127.0.0.2", 1))
			requireConnectError(t, err, "")
		})
	}
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

// The environment of whoever starts the relay decides nothing.
func TestTransportIgnoresProxyVariables(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	assert.Nil(t, newTransport(t, provider.Config{}).Proxy)
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

// inMemory is a body that counts how it is read.
type inMemory struct {
	*strings.Reader
	remaining int64
	pieces    int
}

func (b *inMemory) Read(p []byte) (int, error) {
	b.pieces++
	return b.Reader.Read(p)
}

func (b *inMemory) Remaining() int64 { return b.remaining }
func (b *inMemory) Close() error     { return nil }

func TestBodiesInMemoryAreWrittenWhole(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		got = fmt.Sprint(string(b), err)
	}))
	t.Cleanup(srv.Close)
	text := strings.Repeat("body ", 50_000)
	for name, tt := range map[string]struct {
		remaining int64
		whole     bool
	}{
		"whole": {int64(len(text)), true},
		"a body that has more than the request says": {int64(len(text)) + 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			body := &inMemory{Reader: strings.NewReader(text), remaining: tt.remaining}
			req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL, body)
			require.NoError(t, err)
			req.ContentLength = int64(len(text))
			resp, err := newTransport(t, provider.Config{}).RoundTrip(req)
			require.NoError(t, err)
			_ = resp.Body.Close()
			assert.Equal(t, text+"<nil>", got)
			assert.Equal(t, tt.whole, body.pieces == 0, "reads: %d", body.pieces)
		})
	}
}

func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }
