package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/provider"
)

// pairs is a directory of a certificate that changes, and the pool that trusts all of
// its certificates.
type pairs struct {
	t         *testing.T
	cert, key string
	trusted   *x509.CertPool
	serial    int64
}

func newPairs(t *testing.T) *pairs {
	t.Helper()
	dir := t.TempDir()
	return &pairs{t: t, cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key"), trusted: x509.NewCertPool()}
}

// make returns a new self-signed pair, and its serial number.
func (p *pairs) make(from, until time.Time) (cert, key []byte, serial int64) {
	p.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(p.t, err)
	p.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(p.serial), Subject: pkix.Name{CommonName: "cc-relay test"},
		NotBefore: from, NotAfter: until, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(p.t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(p.t, err)
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	p.trusted.AppendCertsFromPEM(cert)
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), p.serial
}

// renew puts a new pair in place and returns its serial number.
func (p *pairs) renew() int64 {
	p.t.Helper()
	cert, key, serial := p.make(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	p.put(p.cert, cert)
	p.put(p.key, key)
	return serial
}

// put replaces a file as a whole, as programs that renew certificates do.
func (p *pairs) put(path string, data []byte) {
	p.t.Helper()
	require.NoError(p.t, os.WriteFile(path+".new", data, 0o600))
	require.NoError(p.t, os.Rename(path+".new", path))
}

// troubles are what a certificate reports.
type troubles struct {
	mu   sync.Mutex
	all  []string
	cert *certificate
}

func (r *troubles) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, err.Error())
}

func (r *troubles) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.all...)
}

// soon lets the next handshake look at the files again.
func (r *troubles) soon() { r.cert.checked.Store(0) }

func (p *pairs) load() *troubles {
	p.t.Helper()
	r := &troubles{}
	var err error
	r.cert, err = newCertificate(p.cert, p.key, r.report)
	require.NoError(p.t, err)
	return r
}

// serveTLS serves h behind cert, and returns the listener's address.
func serveTLS(t *testing.T, cert *certificate, h http.Handler) string {
	t.Helper()
	l, err := listen("127.0.0.1:0", cert, nil)
	require.NoError(t, err)
	server := newServer(h, config.Default().Server.Limits, zerolog.Nop())
	server.HTTP2 = http2Bounds(100, time.Second)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}

// dial makes a handshake and returns the open connection.
func (p *pairs) dial(address string, cfg *tls.Config) (*tls.Conn, error) {
	cfg.RootCAs = p.trusted
	conn, err := tls.Dial("tcp", address, cfg)
	if err == nil {
		p.t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, err
}

// shown is the serial number of the certificate that address shows.
func (p *pairs) shown(address string) int64 {
	p.t.Helper()
	conn, err := p.dial(address, &tls.Config{})
	require.NoError(p.t, err)
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// get asks over an open HTTP/1.1 connection.
func get(t *testing.T, conn net.Conn) string {
	t.Helper()
	_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })

func TestACertificateIsRenewedUnderOpenConnections(t *testing.T) {
	p := newPairs(t)
	first := p.renew()
	r := p.load()
	address := serveTLS(t, r.cert, hello)
	open, err := p.dial(address, &tls.Config{})
	require.NoError(t, err)
	assert.Equal(t, "HTTP/1.1", get(t, open))

	second := p.renew()
	assert.Equal(t, first, p.shown(address), "files are not looked at more than once a second")
	r.soon()
	assert.Equal(t, second, p.shown(address))
	assert.Equal(t, "HTTP/1.1", get(t, open), "the old connection goes on")
	third := p.renew()
	require.NoError(t, r.cert.Reload())
	assert.Equal(t, third, p.shown(address), "after Reload, at once")
	assert.Empty(t, r.told())
}

func TestABrokenPairKeepsTheOldAndIsToldOnce(t *testing.T) {
	p := newPairs(t)
	first := p.renew()
	r := p.load()
	address := serveTLS(t, r.cert, hello)
	was := r.cert.NotAfter()

	cert, key, _ := p.make(time.Now().Add(-time.Hour), time.Now().Add(2*time.Hour))
	p.put(p.cert, cert) // its key comes later
	for range 3 {
		r.soon()
		assert.Equal(t, first, p.shown(address))
	}
	require.Len(t, r.told(), 1)
	assert.Contains(t, r.told()[0], "the old certificate stays in use: key "+p.key+" of certificate "+p.cert)
	require.ErrorContains(t, r.cert.Reload(), "is not the key of the certificate")
	assert.Len(t, r.told(), 1, "Reload returns its error")
	assert.Equal(t, was, r.cert.NotAfter())

	require.NoError(t, os.Remove(p.key))
	r.soon()
	assert.Equal(t, first, p.shown(address))
	require.Len(t, r.told(), 2)
	assert.Contains(t, r.told()[1], "no such file")

	p.put(p.key, key)
	r.soon()
	assert.NotEqual(t, first, p.shown(address))
	assert.Len(t, r.told(), 2)
	assert.WithinDuration(t, time.Now().Add(2*time.Hour), r.cert.NotAfter(), time.Minute)
}

// A key that others may read, and a file that is none, are not used by a handshake
// either, and hold nothing up.
func TestAPairIsReadAsTheConfigurationReadsIt(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, key string)
		says  string
	}{
		"a key for all to read": {func(t *testing.T, key string) { require.NoError(t, os.Chmod(key, 0o644)) }, "may be used by other users"},
		"a pipe": {func(t *testing.T, key string) {
			require.NoError(t, os.Remove(key))
			require.NoError(t, syscall.Mkfifo(key, 0o600))
		}, "is not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPairs(t)
			first := p.renew()
			r := p.load()
			address := serveTLS(t, r.cert, hello)
			p.renew()
			tt.spoil(t, p.key)
			r.soon()
			assert.Equal(t, first, p.shown(address))
			require.Len(t, r.told(), 1)
			assert.Contains(t, r.told()[0], tt.says)
			require.ErrorContains(t, r.cert.Reload(), tt.says)
			last := p.renew()
			r.soon()
			assert.Equal(t, last, p.shown(address))
		})
	}
}

func testOwnCertificateAndClock(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		from, until time.Time
		want        string
	}{
		"expired": {now.Add(-48 * time.Hour), now.Add(-24 * time.Hour),
			`^certificate \S+ expired at 20\S+Z, and the clock of this machine says 20\S+Z; if that is wrong set the clock, otherwise renew the certificate$`},
		"not valid yet": {now.Add(24 * time.Hour), now.Add(48 * time.Hour),
			`^certificate \S+ is not valid before 20\S+Z, and the clock of this machine says 20\S+Z; if that is wrong set the clock, otherwise use another certificate$`},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPairs(t)
			cert, key, _ := p.make(tc.from, tc.until)
			p.put(p.cert, cert)
			p.put(p.key, key)
			_, err := newCertificate(p.cert, p.key, nil)
			require.Error(t, err)
			assert.Regexp(t, tc.want, err.Error())
		})
	}
}

func TestVersionsOfTLS(t *testing.T) {
	p := newPairs(t)
	p.renew()
	address := serveTLS(t, p.load().cert, hello)
	for version, welcome := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			_, err := p.dial(address, &tls.Config{MinVersion: version, MaxVersion: version})
			if welcome {
				assert.NoError(t, err)
				return
			}
			assert.ErrorContains(t, err, "protocol version not supported")
		})
	}
}

func TestVersionsOfHTTP(t *testing.T) {
	p := newPairs(t)
	p.renew()
	address := serveTLS(t, p.load().cert, hello)
	for want, protocols := range map[string]func(*http.Protocols){
		"HTTP/2.0": func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) },
		"HTTP/1.1": func(p *http.Protocols) { p.SetHTTP1(true) },
	} {
		t.Run(want, func(t *testing.T) {
			var offered http.Protocols
			protocols(&offered)
			client := p.client(&offered)
			resp, err := client.Get("https://" + address)
			require.NoError(t, err)
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			assert.Equal(t, want, string(body))
		})
	}
	t.Run("no TLS", func(t *testing.T) {
		resp, err := http.Get("http://" + address)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
	})
}

// client trusts all pairs and speaks these protocols.
func (p *pairs) client(protocols *http.Protocols) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.trusted}, Protocols: protocols}
	p.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func onlyHTTP2() *http.Protocols {
	var p http.Protocols
	p.SetHTTP2(true)
	return &p
}

// More requests than a connection may have open go to other connections.
func TestHTTP2IsBounded(t *testing.T) {
	const all = 250
	p := newPairs(t)
	p.renew()
	var mu sync.Mutex
	open := map[string]int{} // requests by connection
	var came sync.WaitGroup
	came.Add(all)
	address := serveTLS(t, p.load().cert, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" {
			return
		}
		mu.Lock()
		open[r.RemoteAddr]++
		mu.Unlock()
		came.Done()
		came.Wait()
	}))
	client := p.client(onlyHTTP2())
	client.Timeout = patience
	resp, err := client.Get("https://" + address + "/first") // the client learns the bound
	require.NoError(t, err)
	_ = resp.Body.Close()
	var wg sync.WaitGroup
	for range all {
		wg.Go(func() {
			resp, err := client.Get("https://" + address)
			if assert.NoError(t, err) {
				_ = resp.Body.Close()
			}
		})
	}
	wg.Wait()
	assert.GreaterOrEqual(t, len(open), 3, "connections")
	for conn, n := range open {
		assert.LessOrEqual(t, n, 100, conn)
	}
}

// sseProvider sends an answer's frames one by one, each when it is told to.
func sseProvider(t *testing.T, next <-chan string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost { // the relay asks for models
			http.NotFound(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case frame, more := <-next:
				if !more {
					return
				}
				_, _ = io.WriteString(w, frame)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func frame(event, data string) string { return "event: " + event + "\ndata: " + data + "\n\n" }

func TestAStreamComesThroughHTTP2FrameByFrame(t *testing.T) {
	p := newPairs(t)
	p.renew()
	next := make(chan string)
	cfg := config.Default()
	cfg.Server.State = config.StateOff
	cfg.Providers = []config.Provider{{Config: provider.Config{Name: "slow", BaseURL: sseProvider(t, next)}.WithDefaults()}}
	parts, err := newRunning(&cfg, zerolog.Nop(), nil)
	require.NoError(t, err)
	l, err := listen("127.0.0.1:0", p.load().cert, nil)
	require.NoError(t, err)
	r := startOn(l, parts)
	t.Cleanup(func() { r.drain(time.Second, nil) })

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+r.addr()+"/v1/messages",
		strings.NewReader(`{"model":"claude-sonnet-4-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"`+strings.Repeat("x", 300<<10)+`"}]}`))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	frames := []string{
		frame("message_start", `{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"model":"claude-sonnet-4-5","usage":{"input_tokens":1,"output_tokens":1}}}`) +
			frame("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`),
		frame("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}`),
		frame("content_block_stop", `{"type":"content_block_stop","index":0}`),
		frame("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}`) +
			frame("message_stop", `{"type":"message_stop"}`),
	}
	go func() { next <- frames[0] }()
	resp, err := p.client(onlyHTTP2()).Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	assert.Equal(t, "HTTP/2.0", resp.Proto)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	for i, want := range frames { // the next is sent only when this one has come
		got := make([]byte, len(want))
		_, err := io.ReadFull(resp.Body, got)
		require.NoError(t, err, "frame %d", i)
		assert.Equal(t, want, string(got))
		if i+1 < len(frames) {
			next <- frames[i+1]
		}
	}
	close(next)
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Empty(t, rest)
}

func TestASocketIsItsOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "relay.sock")
	l, err := listen(unixScheme+path, nil, nil)
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())
	server := newServer(hello, config.Default().Server.Limits, zerolog.Nop())
	go func() { _ = server.Serve(l) }()
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	assert.Equal(t, "HTTP/1.1", get(t, conn))
	require.NoError(t, server.Close())
	assert.NoFileExists(t, path)
}

func TestWhatIsInTheSocketsPlace(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, path string)
		want    string // in the error; "": none
	}{
		"nothing":            {func(*testing.T, string) {}, ""},
		"a socket left over": {leaveSocket, ""},
		"a relay that runs":  {serveSocket, "is in use by another program; choose another address"},
		"a file":             {leaveFile, "there is a file that is no socket; move it away, or choose another path"},
		"a link to a socket": {linkSocket, "no socket"},
		"no such directory":  {func(t *testing.T, path string) { require.NoError(t, os.Remove(filepath.Dir(path))) }, "no such file or directory"},
		"a directory":        {func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) }, "no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d", "relay.sock")
			require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
			tc.prepare(t, path)
			before, _ := os.Lstat(path)
			l, err := listen(unixScheme+path, nil, nil)
			if tc.want == "" {
				require.NoError(t, err)
				require.NoError(t, l.Close())
				return
			}
			require.ErrorContains(t, err, tc.want)
			assert.Contains(t, err.Error(), unixScheme+path)
			after, _ := os.Lstat(path)
			assert.True(t, same(before, after), "was %v, is %v", before, after)
		})
	}
}

func leaveSocket(t *testing.T, path string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func serveSocket(t *testing.T, path string) {
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
}

func leaveFile(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) }

func linkSocket(t *testing.T, path string) {
	leaveSocket(t, path+"2")
	require.NoError(t, os.Symlink(path+"2", path))
}

func TestAddressesThatCannotBe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	_, err = listen(l.Addr().String(), nil, nil)
	require.ErrorContains(t, err, l.Addr().String()+" is in use by another program; choose another address")
	assert.True(t, errors.Is(err, syscall.EADDRINUSE))
	for _, address := range []string{"unix:", "unix:@relay"} {
		_, err := listen(address, nil, nil)
		assert.ErrorContains(t, err, fmt.Sprintf("cannot listen on %s: a socket needs a path", address))
	}
	_, err = newCertificate("none.crt", "none.key", nil)
	assert.ErrorContains(t, err, "certificate none.crt: cannot be read: no such file or directory")
}
