package provider

import (
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
				return bodyConn{tcp}, nil
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

// bodyConn writes a request body that is in memory in one go. The transport
// would copy it through a buffer of 32 KiB, a system call each: a tenth of what a
// 200 KB request costs.
type bodyConn struct{ *net.TCPConn }

// ReadFrom implements io.ReaderFrom, which the transport uses for bodies.
func (c bodyConn) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	body, ok := limited.R.(InMemory)
	if !ok || body.Remaining() != limited.N {
		return c.TCPConn.ReadFrom(r)
	}
	n, err := body.WriteTo(c.TCPConn)
	limited.N -= n
	return n, err
}

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
