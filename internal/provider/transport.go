package provider

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// Defaults of Config's durations.
const (
	DefaultDialTimeout       = 5 * time.Second
	DefaultFirstTokenTimeout = 120 * time.Second
	DefaultResponseTimeout   = 600 * time.Second
	DefaultIdleTimeout       = 330 * time.Second
)

// WithDefaults fills in what is not set.
func (c Config) WithDefaults() Config {
	if c.Kind == "" {
		c.Kind = KindAnthropic
	}
	if c.Auth == "" {
		c.Auth = AuthAPIKey
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&c.DialTimeout, DefaultDialTimeout},
		{&c.FirstTokenTimeout, DefaultFirstTokenTimeout},
		{&c.ResponseTimeout, DefaultResponseTimeout},
		{&c.IdleTimeout, DefaultIdleTimeout},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	return c
}

// ConnectError says that no connection came about, so that nothing of a request
// was sent: it may be sent elsewhere without being paid for twice.
type ConnectError struct{ err error }

func (e *ConnectError) Error() string { return "provider: cannot connect: " + e.err.Error() }

// Unwrap returns what the dialer or the TLS handshake reported.
func (e *ConnectError) Unwrap() error { return e.err }

// NewTransport returns a transport for cfg's upstream: certificates always
// verified, connections kept, no proxy from the environment, nothing unpacked on
// the way, redirects left to the caller. What fails before a connection stands is
// a *ConnectError. Error: a CA file that cannot be used; the system's roots are
// never a substitute for it.
func NewTransport(cfg Config) (*http.Transport, error) {
	cfg = cfg.WithDefaults()
	tlsConfig := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"h2", "http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("provider %s: ca_file: %w", cfg.Name, err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("provider %s: ca_file %s holds no PEM certificate", cfg.Name, cfg.CAFile)
		}
	}
	dialer := &net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, &ConnectError{err}
			}
			if tcp, ok := conn.(*net.TCPConn); ok {
				return &bodyConn{TCPConn: tcp}, nil
			}
			return conn, nil
		},
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialTLS(ctx, dialer, tlsConfig, network, addr, cfg.DialTimeout)
		},
		TLSClientConfig:        tlsConfig,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    512, // the default of 2 means a handshake for nearly every request
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		// Requests share an HTTP/2 connection; one whose path has died silently
		// would take each new one with it until TCP gives up.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}, nil
}

// bodyConn writes the headers of a request and a body that is in memory in one
// system call. The transport would send the headers by themselves and copy the
// body through a buffer of 32 KiB: a tenth of what a 200 KB request costs. Like
// any connection of a transport it has one writer at a time.
type bodyConn struct {
	*net.TCPConn
	head []byte // headers that wait for their body
}

// Write holds back the headers of a POST that come without a body: it follows.
func (c *bodyConn) Write(p []byte) (int, error) {
	if len(c.head) == 0 && bytes.HasPrefix(p, postPrefix) && bytes.Index(p, headEnd) == len(p)-len(headEnd) {
		c.head = append(c.head, p...)
		return len(p), nil
	}
	return c.writeAll(p)
}

var (
	postPrefix = []byte("POST ")
	headEnd    = []byte("\r\n\r\n")
)

// writeAll writes what was held back, and p.
func (c *bodyConn) writeAll(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.TCPConn.Write(p)
	}
	held := len(c.head)
	n, err := (&net.Buffers{c.head, p}).WriteTo(c.TCPConn)
	c.head = c.head[:0]
	return max(0, int(n)-held), err
}

// ReadFrom implements io.ReaderFrom, which the transport uses for bodies.
func (c *bodyConn) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if body, ok := limited.R.(InMemory); ok && body.Remaining() == limited.N {
			n, err := body.WriteTo(writerFunc(c.writeAll))
			limited.N -= n
			return n, err
		}
	}
	return io.Copy(writerFunc(c.writeAll), r)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// InMemory is a body that can be written whole. Remaining is what WriteTo would write, in bytes.
type InMemory interface {
	io.WriterTo
	Remaining() int64
}

func dialTLS(ctx context.Context, d *net.Dialer, cfg *tls.Config, network, addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, &ConnectError{err}
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &ConnectError{errors.Join(err, raw.Close())}
	}
	own := cfg.Clone()
	own.ServerName = host
	conn := tls.Client(raw, own)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, &ConnectError{errors.Join(err, raw.Close())}
	}
	return conn, nil
}
