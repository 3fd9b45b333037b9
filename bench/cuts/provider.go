package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
)

// upstream is a provider that plays what it is told, byte by byte.
type upstream struct {
	name     string
	listener *net.TCPListener
	next     func(name, asked string) *play // what to play for this body; nil: it comes too late

	mu    sync.Mutex
	conns map[*net.TCPConn]bool
	wg    sync.WaitGroup

	garbage func() // a connection was used again although more came on it than was announced
}

func newUpstream(name string, next func(name, asked string) *play, garbage func()) (*upstream, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	u := &upstream{name: name, listener: l, next: next, garbage: garbage, conns: map[*net.TCPConn]bool{}}
	u.wg.Go(u.accept)
	return u, nil
}

func (u *upstream) accept() {
	for {
		c, err := u.listener.AcceptTCP()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.conns[c] = true
		u.mu.Unlock()
		u.wg.Go(func() { u.converse(c) })
	}
}

func (u *upstream) converse(c *net.TCPConn) {
	defer func() {
		u.mu.Lock()
		delete(u.conns, c)
		u.mu.Unlock()
		_ = c.Close()
	}()
	in := bufio.NewReader(c)
	for spoilt := false; ; {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		asked, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if spoilt {
			u.garbage()
		}
		p := u.next(u.name, string(asked))
		if p == nil || !p.perform(c) {
			return
		}
		spoilt = p.how == tooShort
	}
}

func (u *upstream) close() {
	_ = u.listener.Close()
	u.mu.Lock()
	for c := range u.conns {
		_ = c.Close()
	}
	u.mu.Unlock()
	u.wg.Wait()
}
