package proxy_test

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	stdlog "log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
	"cc-relay/internal/simulator"
)

func gzipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(s))
	_ = w.Close()
	return b.String()
}

// lengthy is an answer with a content-length that fits.
func lengthy(status, headers, body string) string {
	return fmt.Sprintf("HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s", status, headers, len(body), body)
}

const (
	jsonType = "Content-Type: application/json\r\n"
	message  = `{"type":"message","usage":{"input_tokens":3,"output_tokens":4}}`
	mistake  = `{"type":"error","error":{"type":"invalid_request_error","message":"no"}}`
)

// wireTrouble is exact bytes of a provider that has gone wrong below HTTP's surface,
// and what the client gets when this provider is all there is.
type wireTrouble struct {
	wire   string
	open   bool // the provider keeps the connection open
	status int
	kind   string // "": the answer passes
	asked  int
}

// wireTroubles are such troubles by their row of the catalogue of faults.
var wireTroubles = map[string]map[string]wireTrouble{
	"U06": {
		"retry-after as a date": {
			lengthy("429 Slow", "Date: Mon, 23 Nov 2026 16:00:00 GMT\r\nRetry-After: Mon, 23 Nov 2026 16:00:42 GMT\r\n", ""), false, 429, "rate_limit_error", 1,
		},
	},
	"U11": {
		"overloaded before content":       {sseHead + headFrame + frameOf("error", `{"type":"error","error":{"type":"overloaded_error","message":"busy"}}`), false, 529, "overloaded_error", 2},
		"pings, then overloaded":          {sseHead + pingFrame + ": c\n\n" + frameOf("error", `{"type":"error","error":{"type":"overloaded_error","message":"busy"}}`), false, 529, "overloaded_error", 2},
		"an error event of no shape":      {sseHead + frameOf("error", `{"oops":1}`), false, 502, "api_error", 2},
		"an error event without its name": {sseHead + "data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"busy\"}}\n\n", false, 529, "overloaded_error", 2},
	},
	"U14": {
		"a stream of nothing":           {sseHead, false, 502, "api_error", 2},
		"a stream of pings":             {sseHead + pingFrame + ": comment\n\n" + pingFrame, false, 502, "api_error", 2},
		"a first frame without its end": {sseHead + strings.TrimSuffix(startFrame, "\n"), false, 502, "api_error", 2},
		"cut before content":            {sseHead + headFrame + pingFrame, false, 502, "api_error", 2},
	},
	"U22": {
		"gzip":                {lengthy("200 OK", jsonType+"Content-Encoding: gzip\r\n", gzipped(message)), false, 502, "api_error", 2},
		"gzip stream":         {lengthy("200 OK", "Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n", gzipped(wholeStream)), false, 502, "api_error", 2},
		"gzip, but it is not": {lengthy("200 OK", jsonType+"Content-Encoding: gzip\r\n", message), false, 502, "api_error", 2},
		"identity, said":      {lengthy("200 OK", jsonType+"Content-Encoding: identity\r\n", message), false, 200, "", 1},
		"gzip, 429":           {lengthy("429 Too Many Requests", jsonType+"Content-Encoding: gzip\r\n", gzipped(message)), false, 429, "rate_limit_error", 1},
		"gzip, 400":           {lengthy("400 Bad Request", jsonType+"Content-Encoding: gzip\r\n", gzipped(mistake)), false, 400, "invalid_request_error", 1},
		"gzip, 500":           {lengthy("500 Oh", jsonType+"Content-Encoding: gzip\r\n", gzipped(mistake)), false, 500, "api_error", 2},
		"gzip, cut":           {"HTTP/1.1 200 OK\r\n" + jsonType + "Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n" + gzipped(message)[:20], false, 502, "api_error", 2},
		"a bomb":              {lengthy("200 OK", jsonType+"Content-Encoding: gzip\r\n", gzipped(strings.Repeat(" ", 5<<20))), false, 502, "api_error", 2},
	},
	"U23": {
		"switching protocols":    {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", true, 502, "api_error", 2},
		"101 without an upgrade": {"HTTP/1.1 101 Switching Protocols\r\n\r\n", true, 502, "api_error", 2},
		"103 before":             {"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + lengthy("200 OK", jsonType, message), false, 200, "", 1},
		"100 before":             {"HTTP/1.1 100 Continue\r\n\r\n" + lengthy("200 OK", jsonType, message), false, 200, "", 1},
		"103 without end":        {strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </"+strings.Repeat("x", 1000)+">\r\n\r\n", 200), true, 502, "api_error", 2},
	},
	"U24": {
		"not HTTP":                {"SSH-2.0-OpenSSH_9.9\r\n", false, 502, "api_error", 2},
		"HTTP/0.9":                {"<html>hello</html>", false, 502, "api_error", 2},
		"status that is none":     {"HTTP/1.1 abc Fine\r\n\r\n", false, 502, "api_error", 2},
		"headers cut":             {"HTTP/1.1 200 OK\r\nContent-Type: appl", false, 502, "api_error", 2},
		"headers of 100 KiB":      {"HTTP/1.1 200 OK\r\nX-Pad: " + strings.Repeat("x", 100<<10) + "\r\n" + jsonType + "\r\n", false, 502, "api_error", 2},
		"body shorter than said":  {"HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 1000\r\n\r\n" + message, false, 502, "api_error", 2},
		"two lengths":             {"HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + message, false, 502, "api_error", 2},
		"negative length":         {"HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: -1\r\n\r\n" + message, false, 502, "api_error", 2},
		"chunk size that is none": {jsonHead + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + message, false, 502, "api_error", 2},
		"unknown transfer coding": {jsonHead + "Transfer-Encoding: xchunked\r\n\r\n" + message, false, 502, "api_error", 2},
		"a length of zero":        {"HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 0\r\n\r\n", false, 502, "api_error", 2},
		"chunks and a length":     {"HTTP/1.1 200 OK\r\n" + jsonType + "Transfer-Encoding: chunked\r\nContent-Length: " + itoa(len(message)) + "\r\n\r\n3e\r\n" + message + "\r\n0\r\n\r\n", false, 502, "api_error", 2},
		"a header in a header":    {lengthy("200 OK", jsonType+"X-A: a\rContent-Length: 3\r\n", message), false, 502, "api_error", 2},
		"NUL in a header":         {lengthy("200 OK", jsonType+"X-A: \x00\r\n", message), false, 502, "api_error", 2},
		"a folded header":         {lengthy("200 OK", jsonType+"X-A: a\r\n Content-Length: 3\r\n", message), false, 502, "api_error", 2},
	},
	"U26": {
		"too large, and it does not listen": {lengthy("413 Too Large", jsonType, mistake), false, 413, "", 1},
	},
	"U30": {
		"429 that never ends":           {"HTTP/1.1 429 Slow\r\nContent-Length: 100\r\nRetry-After: 9\r\n\r\n{", true, 429, "rate_limit_error", 1},
		"400 that never ends":           {"HTTP/1.1 400 Bad\r\n" + jsonType + "\r\n{", true, 400, "invalid_request_error", 1},
		"500 that never ends":           {"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\n", true, 500, "api_error", 2},
		"an error of 65 KiB":            {lengthy("400 Bad Request", jsonType, mistake[:len(mistake)-3]+strings.Repeat("x", 65<<10)+`"}}`), false, 400, "invalid_request_error", 1},
		"an error of 64 KiB less one":   {lengthy("400 Bad Request", jsonType, mistake[:len(mistake)-3]+strings.Repeat("x", 64<<10-len(mistake)-1)+`"}}`), false, 400, "", 1},
		"an error without end":          {"HTTP/1.1 500 Oh\r\n" + jsonType + "Content-Length: 99999999\r\n\r\n" + strings.Repeat("x", 1<<20), false, 500, "api_error", 2},
		"a client error that is cut":    {"HTTP/1.1 400 Bad Request\r\n" + jsonType + "Content-Length: 99999\r\n\r\n" + mistake[:20], false, 400, "invalid_request_error", 1},
		"a client error without a body": {lengthy("400 Bad Request", "", ""), false, 400, "invalid_request_error", 1},
		"a page, 500":                   {lengthy("500 Oh", "Content-Type: text/html\r\n", "<html>"+keyOf("a", 1)), false, 500, "api_error", 2},
		"a page, 413":                   {lengthy("413 Too Large", "Content-Type: text/html\r\n", "<html>"+keyOf("a", 1)), false, 413, "request_too_large", 1},
		"binary, 400":                   {lengthy("400 Bad Request", "", "\x00\xff\xfe"+keyOf("a", 1)), false, 400, "invalid_request_error", 1},
	},
	"U31": {
		"not JSON":                         {lengthy("200 OK", jsonType, "hello"), false, 502, "api_error", 2},
		"JSON, but said to be text":        {lengthy("200 OK", "Content-Type: text/plain\r\n", message), false, 502, "api_error", 2},
		"no content type":                  {lengthy("200 OK", "", message), false, 502, "api_error", 2},
		"JSON with a charset":              {lengthy("200 OK", "Content-Type: Application/JSON; charset=utf-8\r\n", message), false, 200, "", 1},
		"SSE for a request without stream": {sseHead + wholeStream, false, 200, "", 1},
	},
	"": {
		"error object of no shape":       {lengthy("200 OK", jsonType, `{"type":"error"}`), false, 502, "api_error", 2},
		"data that is not JSON":          {sseHead + "data: [DONE]\n\n" + wholeStream, false, 502, "api_error", 2},
		"malformed before content":       {sseHead + headFrame + "data: {oops\n\n" + blockFrame + wholeStream, false, 502, "api_error", 2},
		"malformed as the first content": {sseHead + headFrame + "event: content_block_start\ndata: {oops\n\n" + wholeStream, false, 502, "api_error", 2},
	},
}

func TestWireTroubles(t *testing.T) { wireTroublesOf("")(t) }

// wireTroublesOf is the test of a row: with the only provider, and where another one
// is left, which makes most of them invisible.
func wireTroublesOf(row string) func(*testing.T) {
	return func(t *testing.T) {
		leakFree(t)
		t.Run("all", func(t *testing.T) {
			for name, tt := range wireTroubles[row] {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					tt.meetAlone(t)
				})
				if tt.kind == "" || tt.kind == "invalid_request_error" || tt.kind == "request_too_large" {
					continue
				}
				t.Run(name+", and another provider", func(t *testing.T) {
					t.Parallel()
					tt.meetWithAnother(t)
				})
			}
		})
	}
}

func (tt wireTrouble) play() func(net.Conn, int) bool {
	if tt.open {
		return sayAndKeep(tt.wire)
	}
	return say(tt.wire)
}

func (tt wireTrouble) stream() bool { return strings.Contains(tt.wire, "event-stream") }

// A good answer behind a bad one, on a connection of its own, is served as ever.
func (tt wireTrouble) meetAlone(t *testing.T) {
	play := tt.play()
	up := newRaw(t, "a", func(c net.Conn, n int) bool {
		if n > tt.asked {
			return say(lengthy("200 OK", jsonType, message))(c, n)
		}
		return play(c, n)
	})
	up.FirstTokenTimeout, up.ResponseTimeout = 5*time.Second, 5*time.Second
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	got := r.do(call{body: ask(opus, tt.stream())})
	assert.Equal(t, tt.asked, up.calls(), "requests at the provider")
	if tt.kind != "" {
		requireError(t, got, tt.status, tt.kind)
		assert.Less(t, len(got.body), 1000, "the provider's body is not passed on: %.100s", got.body)
	} else {
		require.NoError(t, got.err)
		assert.Equal(t, tt.status, got.status)
		_, want, _ := strings.Cut(tt.wire, "\r\n\r\n")
		assert.True(t, strings.HasSuffix(want, got.body) && len(got.body) > 60, "body: %.200s", got.body)
	}
	if tt.status != 429 { // then its only key rests
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
	}
}

func (tt wireTrouble) meetWithAnother(t *testing.T) {
	up, b := newRaw(t, "a", tt.play()), newSim(t, "b", 1)
	up.FirstTokenTimeout, up.ResponseTimeout = 5*time.Second, 5*time.Second
	r := newRelay(t, setup{upstreams: []upstream{up.upstream, b.upstream}})
	requireServed(t, r.do(call{body: ask(opus, tt.stream())}), tt.stream())
	assert.Equal(t, 1, up.calls())
}

// A redirect is a failure: the request with its key goes nowhere else.
func testRedirects(t *testing.T) {
	leakFree(t)
	target, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	came := make(chan net.Conn, 10)
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := target.Accept()
			if err != nil {
				return
			}
			came <- c
		}
	}()
	t.Run("all", func(t *testing.T) {
		for _, code := range []int{301, 302, 303, 307, 308, 304, 300} {
			t.Run(itoa(code), func(t *testing.T) {
				t.Parallel()
				a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultRedirect, Status: code, Location: "http://" + target.Addr().String() + "/v1/messages"})
				r := relayOf(t, a)
				got := r.do(call{body: ask(opus, false)})
				requireError(t, got, 502, "api_error")
				assert.Empty(t, got.header.Get("Location"))
				assert.Len(t, a.Seen(), 2)
			})
		}
	})
	_ = target.Close()
	<-accepted
	assert.Empty(t, came, "connections at the target")
}

// nowhereURL is an address on which nobody listens.
func nowhereURL(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return "http://" + l.Addr().String()
}

func testProvidersThatCannotBeReached(t *testing.T) {
	leakFree(t)
	var asked atomic.Int32
	count := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	plain := serve(t, count)
	own, ownCA := serveTLS(t, count, time.Hour)
	expired, expiredCA := serveTLS(t, count, -time.Hour)
	for name, at := range map[string]provider.Config{
		"refused":                  {BaseURL: nowhereURL(t)},
		"TLS to plain":             {BaseURL: strings.Replace(plain, "http://", "https://", 1)},
		"no such host":             {BaseURL: "http://no-such-host.invalid"},
		"signed by itself":         {BaseURL: own},
		"another name":             {BaseURL: strings.Replace(own, "127.0.0.1", "localhost", 1), CAFile: ownCA},
		"a certificate that ended": {BaseURL: expired, CAFile: expiredCA},
	} {
		t.Run(name, func(t *testing.T) {
			down := upstream{Config: at, keys: []string{keyOf("a", 1), keyOf("a", 2), keyOf("a", 3), keyOf("a", 4)}}
			down.Name = "a"
			t.Run("alone: two connects, however many keys", func(t *testing.T) {
				r := newRelay(t, setup{upstreams: []upstream{down}})
				got := r.do(call{body: ask(opus, true)})
				requireError(t, got, 502, "api_error")
				assert.Equal(t, "2", got.header.Get("X-Cc-Relay-Attempts"))
				assert.Equal(t, "unreachable", got.record["verdict"])
				requirePause(t, got)
				for _, address := range []string{"127.0.0.1", "localhost", "invalid"} {
					assert.NotContains(t, got.body, address, "an internal address")
				}
			})
			t.Run("with another provider", func(t *testing.T) {
				b := newSim(t, "b", 1)
				r := newRelay(t, setup{upstreams: []upstream{down, b.upstream}})
				got := r.do(call{body: ask(opus, true)})
				requireServed(t, got, true)
				assert.Equal(t, "2", got.header.Get("X-Cc-Relay-Attempts"))
			})
		})
	}
	assert.Zero(t, asked.Load(), "requests that came through all the same")
}

// serveTLS is a server at 127.0.0.1 whose certificate lasts for so long, and the file
// to trust it by.
func serveTLS(t *testing.T, h http.Handler, lasts time.Duration) (url, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	from := time.Now().Add(-2 * time.Hour)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: time.Now().Add(lasts), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	require.NoError(t, err)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL, caFile
}

// Connections that are reused may turn out closed; nobody notices.
func testKeptConnectionsThatWereClosed(t *testing.T) {
	leakFree(t)
	closes := make(chan net.Conn, 10)
	up := newRaw(t, "a", func(c net.Conn, n int) bool {
		_, _ = c.Write([]byte(lengthy("200 OK", jsonType, message)))
		if n%2 == 1 {
			closes <- c // closed by the test, once the answer has arrived
		}
		return true
	})
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for range 5 {
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		_ = (<-closes).Close()
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
	}
	assert.Equal(t, 10, up.calls(), "nothing is sent twice")
}
