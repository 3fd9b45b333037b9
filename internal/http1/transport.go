// Package http1 is a client for HTTP/1.1 that spends little on a request: one
// connection serves one request at a time, and the goroutine that asks also
// writes and reads. What it does not do itself (HTTP/2, bodies that are not in
// memory, upgrades) it hands to another transport. It decides nothing about the
// answers and knows nothing about providers.
package http1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Connections without a request: how long they are kept, and how many of one host.
const (
	idleLife = 90 * time.Second
	maxIdle  = 512
)

// ErrNoHTTP1 is what Config.Dial wraps where the server does not speak HTTP/1.1.
var ErrNoHTTP1 = errors.New("http1: the server does not speak HTTP/1.1")

// Config is what a Transport needs from outside.
type Config struct {
	// Dial connects to host:port, for scheme https with TLS done and nothing but
	// http/1.1 negotiated. Required. Its errors reach the caller as they are; one
	// that wraps ErrNoHTTP1 sends this host's requests to Fallback from then on.
	Dial func(ctx context.Context, scheme, addr string) (net.Conn, error)
	// Fallback does what this transport does not. Required.
	Fallback http.RoundTripper
}

// Transport is an http.RoundTripper, safe for concurrent use. It follows no
// redirect, unpacks nothing, adds no header of its own but Host and
// Content-Length, drops trailers, knows no proxy, calls no httptrace hook and
// leaves Response.TLS nil.
type Transport struct {
	cfg Config

	mu    sync.Mutex
	hosts map[key]*host
	sweep *time.Timer // nil while nothing is idle
}

// key is what a connection leads to, as the URL says it.
type key struct{ scheme, host string }

// host is guarded by Transport.mu.
type host struct {
	idle    []*conn // the one used last at the end
	refuses bool    // does not speak HTTP/1.1
}

// NewTransport returns a transport without connections.
func NewTransport(cfg Config) *Transport {
	return &Transport{cfg: cfg, hosts: map[key]*host{}}
}

// RoundTrip implements http.RoundTripper. It returns when the head of the answer
// is there; by then the request's body is closed and will not be touched again.
// A body is sent by this transport if it is an io.WriterTo, the request has
// GetBody, which is how net/http marks what is in memory, and ContentLength is
// its length.
//
// A request is sent a second time, on a new connection, only where a kept
// connection failed and either no byte of the request was written, or it is a GET
// or HEAD and no byte of an answer came: net/http's own rule without its
// exception for requests that have an idempotency key. Source:
// https://pkg.go.dev/net/http#Transport.
//
// Errors: context.Cause of the request's context once that is done; what Dial
// returned; everything else means that a connection stood and the request may
// have been served.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	at, ok := ours(req)
	if !ok || t.refuses(at) {
		return t.cfg.Fallback.RoundTrip(req)
	}
	out := requests.Get().(*request)
	defer out.release()
	if err := out.prepare(req); err != nil {
		out.closeBody()
		return nil, err
	}
	ctx := req.Context()
	if ctx.Err() != nil {
		out.closeBody()
		return nil, context.Cause(ctx)
	}
	c := t.kept(at)
	for {
		if c == nil {
			var err error
			if c, err = t.dial(ctx, at); errors.Is(err, ErrNoHTTP1) {
				t.refuse(at)
				return t.cfg.Fallback.RoundTrip(out.again(req))
			} else if err != nil {
				out.closeBody()
				return nil, err
			}
		}
		resp, err := c.roundTrip(ctx, req, out)
		if err == nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !c.mayRepeat(req, out) || out.rewind(req) != nil {
			return nil, err
		}
		c = nil
	}
}

// ours says what the request's connection leads to, and whether this transport
// can send the request.
func ours(req *http.Request) (key, bool) {
	u := req.URL
	if u == nil || req.Header == nil || u.Opaque != "" || (u.Scheme != "http" && u.Scheme != "https") {
		return key{}, false
	}
	if !plainHost(u.Host) || (req.Host != "" && !plainHost(req.Host)) {
		return key{}, false
	}
	if req.Method == http.MethodConnect || len(req.TransferEncoding) > 0 || len(req.Trailer) > 0 || len(req.Header["Upgrade"]) > 0 {
		return key{}, false
	}
	if hasBody(req) {
		if _, ok := req.Body.(io.WriterTo); !ok || req.GetBody == nil || req.ContentLength <= 0 {
			return key{}, false
		}
	}
	return key{u.Scheme, u.Host}, true
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

// addr is host:port, as for a dialer.
func (k key) addr() string {
	name := strings.TrimSuffix(k.host, ":")
	if _, _, err := net.SplitHostPort(name); err == nil {
		return name
	}
	port := "80"
	if k.scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(strings.Trim(name, "[]"), port)
}

func (t *Transport) dial(ctx context.Context, at key) (*conn, error) {
	nc, err := t.cfg.Dial(ctx, at.scheme, at.addr())
	if err == nil {
		return newConn(t, at, nc), nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, err
}

// atLocked returns the entry of a host. t.mu must be held.
func (t *Transport) atLocked(k key) *host {
	h := t.hosts[k]
	if h == nil {
		h = &host{}
		t.hosts[k] = h
	}
	return h
}

func (t *Transport) refuses(k key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[k]
	return h != nil && h.refuses
}

func (t *Transport) refuse(k key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.atLocked(k).refuses = true
}

// kept takes the connection used last that is still good; nil if there is none.
func (t *Transport) kept(k key) *conn {
	for {
		c := t.pop(k)
		if c == nil || (time.Since(c.idleSince) < idleLife && c.quiet()) {
			return c
		}
		c.close()
	}
}

func (t *Transport) pop(k key) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[k]
	if h == nil || len(h.idle) == 0 {
		return nil
	}
	last := len(h.idle) - 1
	c := h.idle[last]
	h.idle[last] = nil
	h.idle = h.idle[:last]
	return c
}

// keep takes a connection back whose answer has ended.
func (t *Transport) keep(c *conn) {
	c.reused, c.idleSince = true, time.Now()
	t.mu.Lock()
	h := t.atLocked(c.at)
	full := len(h.idle) >= maxIdle
	if !full {
		h.idle = append(h.idle, c)
		if t.sweep == nil {
			t.sweep = time.AfterFunc(idleLife, t.closeOld)
		}
	}
	t.mu.Unlock()
	if full {
		c.close()
	}
}

// closeOld closes what has been idle for too long, and comes again when the
// next one will have been.
func (t *Transport) closeOld() {
	now := time.Now()
	t.mu.Lock()
	old, next := []*conn(nil), time.Time{}
	for _, h := range t.hosts {
		n := 0
		for n < len(h.idle) && now.Sub(h.idle[n].idleSince) >= idleLife {
			n++
		}
		old = append(old, h.idle[:n]...)
		h.idle = append([]*conn(nil), h.idle[n:]...)
		if len(h.idle) > 0 && (next.IsZero() || h.idle[0].idleSince.Before(next)) {
			next = h.idle[0].idleSince
		}
	}
	t.sweep = nil
	if !next.IsZero() {
		t.sweep = time.AfterFunc(next.Add(idleLife).Sub(now), t.closeOld)
	}
	t.mu.Unlock()
	closeAll(old)
}

// CloseIdleConnections closes the connections that serve no request now, those
// of the fallback included.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	var all []*conn
	for _, h := range t.hosts {
		all = append(all, h.idle...)
		h.idle = nil
	}
	if t.sweep != nil {
		t.sweep.Stop()
		t.sweep = nil
	}
	t.mu.Unlock()
	closeAll(all)
	if f, ok := t.cfg.Fallback.(interface{ CloseIdleConnections() }); ok {
		f.CloseIdleConnections()
	}
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		c.close()
	}
}

// lost says that a connection broke that had stood.
func lost(doing string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("http1: connection lost while %s: %w", doing, err)
}
