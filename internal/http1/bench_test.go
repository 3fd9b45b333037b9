package http1_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/http1"
)

// newHTTPServer is a server that answers with as many bytes as it got.
func newHTTPServer(t testing.TB) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, strings.Repeat("x", int(n)))
	}))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// dialTCP leads everywhere to addr.
func dialTCP(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
}

// cheapServer answers each request with the same bytes, and allocates nothing.
func cheapServer(b *testing.B, size int64) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	b.Cleanup(func() { _ = l.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300\r\nRequest-Id: req_1\r\n\r\n" + strings.Repeat("a", 300))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 64<<10)
				for {
					var got, head int64
					for head == 0 || got < head+size {
						n, err := c.Read(buf)
						if err != nil {
							return
						}
						if head == 0 {
							head = got + int64(bytes.Index(buf[:n], []byte("\r\n\r\n"))+4)
						}
						got += int64(n)
					}
					_, _ = c.Write(answer)
				}
			}()
		}
	}()
	return l.Addr().String()
}

// BenchmarkRoundTrip sends a body in memory and reads the answer, beside net/http.
func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{1 << 10, 200 << 10} {
		addr := cheapServer(b, int64(size))
		dial := dialTCP(addr)
		for _, tt := range []struct {
			name string
			http.RoundTripper
		}{
			{"http1", http1.NewTransport(http1.Config{Dial: dial})},
			{"net-http", &http.Transport{DisableCompression: true, DialContext: dial}},
		} {
			b.Run(strconv.Itoa(size>>10)+"KiB/"+tt.name, func(b *testing.B) {
				body := bytes.Repeat([]byte("x"), size)
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				buf := make([]byte, 4<<10)
				b.ReportAllocs()
				for b.Loop() {
					req, err := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/v1/messages", bytes.NewReader(body))
					require.NoError(b, err)
					resp, err := tt.RoundTrip(req)
					require.NoError(b, err)
					for err == nil {
						_, err = resp.Body.Read(buf)
					}
					require.Equal(b, io.EOF, err)
					_ = resp.Body.Close()
				}
			})
			tt.RoundTripper.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		}
	}
}
