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
	"net/url"
	"os"
	"strings"
	"time"

	"cc-relay/internal/http1"
)

// Defaults of Config's durations.
const (
	DefaultDialTimeout       = 5 * time.Second
	DefaultFirstTokenTimeout = 120 * time.Second
	DefaultResponseTimeout   = 600 * time.Second
	DefaultIdleTimeout       = 330 * time.Second // of OriginAnthropic
	OtherIdleTimeout         = 240 * time.Second // of other origins, to whose streams the relay adds pings
)

// WithDefaults fills in what is not set.
func (c Config) WithDefaults() Config {
	if c.Kind == "" {
		c.Kind = KindAnthropic
	}
	if c.Auth == "" {
		c.Auth = AuthAPIKey
	}
	if c.Origin == "" {
		c.Origin = c.origin()
	}
	idle := OtherIdleTimeout
	if c.Origin == OriginAnthropic {
		idle = DefaultIdleTimeout
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&c.DialTimeout, DefaultDialTimeout},
		{&c.FirstTokenTimeout, DefaultFirstTokenTimeout},
		{&c.ResponseTimeout, DefaultResponseTimeout},
		{&c.IdleTimeout, idle},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	return c
}

func (c Config) origin() string {
	u, err := url.Parse(c.BaseURL)
	if err != nil {
		return c.Name
	}
	host := strings.ToLower(u.Hostname())
	if host == "anthropic.com" || strings.HasSuffix(host, ".anthropic.com") {
		return OriginAnthropic
	}
	if c.Name == OriginAnthropic { // the kind's name, where none is given
		return host
	}
	return c.Name
}

// ConnectError says that no connection came about, so that nothing of a request
// was sent: it may be sent elsewhere without being paid for twice.
type ConnectError struct{ err error }

func (e *ConnectError) Error() string { return fmt.Sprint("provider: cannot connect: ", e.err) }

// Unwrap returns what the dialer or the TLS handshake reported.
func (e *ConnectError) Unwrap() error { return e.err }

// Transport is the way to one upstream. It is safe for concurrent use.
type Transport struct {
	*http1.Transport
	made madeOf
}

// madeOf is all that a transport depends on.
type madeOf struct {
	baseURL     string // where its connections lead
	dialTimeout time.Duration
	ca          string // what is in the CA file; "" without one
}

// NewTransport returns a transport for cfg's upstream: certificates always
// verified, connections kept, no proxy from the environment, nothing unpacked on
// the way, redirects left to the caller, no connection to an address that is no
// provider's, see forbidden. It speaks HTTP/1.1; with a server that
// accepts HTTP/2 only, net/http speaks that. What fails before a connection stands
// is a *ConnectError. Error: a CA file that cannot be used; the system's roots are
// never a substitute for it.
func NewTransport(cfg Config) (*Transport, error) {
	var none *Transport
	return none.Renew(cfg)
}

// Renew returns the transport for a configuration that may have changed: t itself, with
// its connections, where all that a transport depends on is as it was, or else a new
// one. The CA file is read again: what is in it counts, not its name. t serves on in
// both cases; who puts another in its place closes its idle connections. Error: as
// NewTransport.
func (t *Transport) Renew(cfg Config) (*Transport, error) {
	cfg = cfg.WithDefaults()
	pem, roots, err := rootCAs(cfg)
	if err != nil {
		return nil, err
	}
	made := madeOf{cfg.BaseURL, cfg.DialTimeout, string(pem)}
	if t != nil && t.made == made {
		return t, nil
	}
	return &Transport{dialing(cfg.DialTimeout, roots), made}, nil
}

// dialing is a transport that trusts roots, nil: the system's.
func dialing(timeout time.Duration, roots *x509.CertPool) *http1.Transport {
	d := &dialer{Dialer: net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second, Control: refuseForbidden}}
	http1TLS, anyTLS := newTLS(roots, "http/1.1"), newTLS(roots, "h2", "http/1.1")
	return http1.NewTransport(http1.Config{
		Dial: func(ctx context.Context, scheme, addr string) (net.Conn, error) {
			if scheme == "https" {
				return d.dialTLS(ctx, addr, http1TLS)
			}
			return d.dial(ctx, "tcp", addr)
		},
		Fallback: redoFew{&http.Transport{
			DialContext: d.dial,
			DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return d.dialTLS(ctx, addr, anyTLS)
			},
			TLSClientConfig:        anyTLS,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    512, // the default of 2 means a handshake for nearly every request
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			// Requests share an HTTP/2 connection; one whose path has died silently
			// would take each new one with it until TCP gives up.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		}},
	})
}

// redoFew lets a request that an HTTP/2 server has not processed be sent once or
// twice more. net/http would do it seven times in a minute, while another provider
// could have served. Source: https://www.rfc-editor.org/rfc/rfc9113#section-8.7.
type redoFew struct{ *http.Transport }

// maxBodies is how many bodies net/http gets beside the first: it takes two of them
// for one request that moves from a connection that goes away.
const maxBodies = 2

var errRefused = errors.New("the server processes no request")

func (t redoFew) RoundTrip(req *http.Request) (*http.Response, error) {
	if body := req.GetBody; body != nil {
		n := 0
		req = req.WithContext(req.Context())
		req.GetBody = func() (io.ReadCloser, error) {
			if n++; n > maxBodies {
				return nil, &ConnectError{errRefused}
			}
			return body()
		}
	}
	return t.Transport.RoundTrip(req)
}

// rootCAs is the CA file and the pool of what is in it, nil for the system's.
func rootCAs(cfg Config) ([]byte, *x509.CertPool, error) {
	if cfg.CAFile == "" {
		return nil, nil, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, nil, fmt.Errorf("provider %s: ca_file: %w", cfg.Name, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("provider %s: ca_file %s holds no PEM certificate", cfg.Name, cfg.CAFile)
	}
	return pem, roots, nil
}

func newTLS(roots *x509.CertPool, protocols ...string) *tls.Config {
	return &tls.Config{
		RootCAs:            roots,
		MinVersion:         tls.VersionTLS12,
		NextProtos:         protocols,
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
	}
}

// dialer reports what fails as a *ConnectError.
type dialer struct{ net.Dialer }

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, &ConnectError{err}
	}
	return conn, nil
}

// dialTLS keeps connect and handshake together within the dialer's timeout.
func (d *dialer) dialTLS(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	raw, err := d.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, &ConnectError{errors.Join(err, raw.Close())}
	}
	own := cfg.Clone()
	own.ServerName = host
	conn := tls.Client(raw, own)
	if err := conn.HandshakeContext(ctx); err != nil {
		if refusesProtocols(err) {
			err = fmt.Errorf("%w: %w", http1.ErrNoHTTP1, err)
		}
		return nil, &ConnectError{errors.Join(err, raw.Close())}
	}
	return conn, nil
}

// refusesProtocols reports whether the server ended the handshake because it
// speaks none of the offered protocols. crypto/tls has no name for the alert that
// says so. Source: https://www.rfc-editor.org/rfc/rfc7301#section-3.2.
func refusesProtocols(err error) bool {
	remote, ok := errors.AsType[*net.OpError](err)
	return ok && remote.Op == "remote error" && remote.Err.Error() == "tls: no application protocol"
}
