package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"cc-relay/internal/config"
	"cc-relay/internal/proxy"
)

// Connections beyond the bounds that are still answered: enough for probes to get
// through, and for clients to be told why the relay does not serve them. So few of one
// source that it does not take them from the others.
const (
	spare          = 64
	sparePerSource = 8
)

// sendBuffer is how much the kernel holds for a client that does not read, of which
// it makes twice as much: a thousand of them at its own most would take gigabytes.
const sendBuffer = 128 << 10

// unread is how many bytes a client may send while one write to it waits. Of bodies no
// more than http2Bounds has room for comes meanwhile, as the client does not read that
// there is more; the rest is for the heads of requests, and for what TLS adds. net/http
// bounds the answers that it queues, but SETTINGS that wait for theirs share one: a
// client that reads none of them would be heard until WriteByteTimeout, for as much CPU
// time as it has frames to send.
const unread = 4 * connectionBuffer

var errUnread = errors.New("the client sends and does not read")

// crowd counts the connections of a listener, in all and by source.
type crowd struct {
	net.Listener
	bounds   func() (total, perSource int) // in force now
	patience func() time.Duration          // with a client that acknowledges nothing

	mu      sync.Mutex
	total   seats
	sources map[netip.Prefix]*seats
}

// seats are the connections within and beyond the bounds.
type seats struct{ within, beyond int }

// newCrowd bounds what l accepts. What is beyond spare is closed at once.
func newCrowd(l net.Listener, bounds func() (total, perSource int), patience func() time.Duration) *crowd {
	return &crowd{Listener: l, bounds: bounds, patience: patience, sources: map[netip.Prefix]*seats{}}
}

// Accept returns the next connection that is to be answered.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if seated, ok := c.enter(conn); ok {
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetWriteBuffer(sendBuffer) // what it refuses does not matter
				_ = noticeVanished(tcp, c.patience())
			}
			return seated, nil
		}
		_ = conn.Close()
	}
}

func (c *crowd) enter(conn net.Conn) (*seated, bool) {
	most, mostOfOne := c.bounds()
	from := sourceOf(conn.RemoteAddr())
	c.mu.Lock()
	defer c.mu.Unlock()
	source := c.sources[from]
	if source == nil {
		source = &seats{}
	}
	s := &seated{Conn: conn, crowd: c, from: from}
	switch {
	case c.total.within < most && source.within < mostOfOne:
		c.total.within++
		source.within++
	case c.total.beyond < spare && source.beyond < sparePerSource:
		s.beyond = true
		c.total.beyond++
		source.beyond++
	default:
		return nil, false
	}
	c.sources[from] = source
	return s, true
}

func (c *crowd) leave(s *seated) {
	c.mu.Lock()
	defer c.mu.Unlock()
	source := c.sources[s.from]
	if s.beyond {
		c.total.beyond--
		source.beyond--
	} else {
		c.total.within--
		source.within--
	}
	if *source == (seats{}) {
		delete(c.sources, s.from)
	}
}

// seated is a connection that is counted until it is closed.
type seated struct {
	net.Conn
	crowd  *crowd
	from   netip.Prefix
	beyond bool
	closed atomic.Bool

	writing atomic.Bool  // a write is under way
	heard   atomic.Int64 // bytes read since it began
}

// Read ends the connection of a client that sends more than unread bytes while a write
// to it waits.
func (s *seated) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if s.writing.Load() && s.heard.Add(int64(n)) > unread {
		_ = s.Close()
		return n, errUnread
	}
	return n, err
}

// Write is called by one goroutine at a time.
func (s *seated) Write(p []byte) (int, error) {
	s.heard.Store(0)
	s.writing.Store(true)
	defer s.writing.Store(false)
	return s.Conn.Write(p)
}

func (s *seated) Close() error {
	if !s.closed.Swap(true) {
		s.crowd.leave(s)
	}
	return s.Conn.Close()
}

// CloseWrite ends the answers: where requests are left unread, net/http has the client
// read an answer to its end before the connection is reset.
func (s *seated) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// connContext marks the connections beyond the bounds; it is an http.Server's.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if s, ok := conn.(*seated); ok && s.beyond {
		return proxy.Crowded(ctx)
	}
	return ctx
}

// sourceOf is who connects: an IPv4 address, or the /64 of an IPv6 one, which is what
// one customer of a provider has. The zero Prefix: it has no IP address.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	from, _ := addr.Prefix(bits) // the only errors are of the number of bits
	return from
}

// adminConnections is how many the admin listener may have: within what connectionBounds
// leaves for others.
const adminConnections = 64

// connectionBounds are those of the configuration, and of the files that the process
// may open: each request may need one more connection, to a provider.
func connectionBounds(l config.Limits, files uint64) (total, perSource int) {
	const others = 128 // logs, state, probes, the admin listener
	free := files - min(others, files/2)
	return int(min(uint64(l.Connections), free/2)), int(l.ConnectionsPerSource)
}
