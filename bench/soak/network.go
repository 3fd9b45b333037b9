package main

import (
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// network is a TCP relay before a provider whose connections can be troubled.
type network struct {
	listener net.Listener
	target   string

	mu     sync.Mutex // guards links
	links  []*link
	all    sync.WaitGroup
	broken atomic.Int64 // connections that were broken off
}

func newNetwork(target string) (*network, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n := &network{listener: l, target: target}
	n.all.Go(n.accept)
	return n, nil
}

func (n *network) addr() string { return n.listener.Addr().String() }

// close ends all connections, also those that are on their way to links.
func (n *network) close() {
	_ = n.listener.Close()
	over := make(chan struct{})
	go func() {
		n.all.Wait()
		close(over)
	}()
	for {
		n.mu.Lock()
		for _, l := range n.links {
			l.close()
		}
		n.mu.Unlock()
		select {
		case <-over:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (n *network) accept() {
	for {
		near, err := n.listener.Accept()
		if err != nil {
			return
		}
		n.all.Go(func() { n.carry(near) })
	}
}

// carry joins a connection of the relay to one of the provider until either ends.
func (n *network) carry(near net.Conn) {
	far, err := net.Dial("tcp", n.target)
	if err != nil {
		_ = near.Close()
		return
	}
	l := &link{near: near.(*net.TCPConn), far: far.(*net.TCPConn), over: make(chan struct{})}
	n.mu.Lock()
	n.links = append(n.links, l)
	n.mu.Unlock()
	n.all.Go(func() { l.pump(l.far, l.near) })
	l.pump(l.near, l.far)
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.links {
		if n.links[i] == l {
			n.links[i] = n.links[len(n.links)-1]
			n.links = n.links[:len(n.links)-1]
			return
		}
	}
}

// trouble does one of the faults to one of the connections, any of both.
func (n *network) trouble(rng *rand.Rand) {
	n.mu.Lock()
	if len(n.links) == 0 {
		n.mu.Unlock()
		return
	}
	l := n.links[rng.IntN(len(n.links))]
	n.mu.Unlock()
	switch rng.IntN(5) {
	case 0:
		l.calm(&l.delay, 20+rng.Int64N(300)) // ms before each part
	case 1:
		l.calm(&l.width, 1<<10+rng.Int64N(16<<10)) // bytes a second
	case 2:
		n.broken.Add(1)
		l.close()
	case 3:
		n.broken.Add(1)
		_ = l.near.SetLinger(0) // closed with a reset
		l.close()
	case 4: // silent for a while, then closed
		n.broken.Add(1)
		l.held.Store(true)
		time.AfterFunc(2*time.Second, l.close)
	}
}

// link is one connection through the network.
type link struct {
	near, far *net.TCPConn
	delay     atomic.Int64 // ms
	width     atomic.Int64 // bytes a second; 0: unbounded
	held      atomic.Bool  // nothing passes, and neither end hears of the other's
	once      sync.Once
	over      chan struct{} // closed with it
}

// calm sets a trouble that passes.
func (l *link) calm(trouble *atomic.Int64, to int64) {
	trouble.Store(to)
	time.AfterFunc(5*time.Second, func() { trouble.Store(0) })
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.over)
		_ = l.near.Close()
		_ = l.far.Close()
	})
}

func (l *link) pump(to, from *net.TCPConn) {
	defer l.close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !l.held.Load() {
			time.Sleep(time.Duration(l.delay.Load()) * time.Millisecond)
			if !l.send(to, buf[:n]) {
				return
			}
		}
		if err != nil {
			if l.held.Load() {
				<-l.over
			}
			return
		}
	}
}

func (l *link) send(to *net.TCPConn, b []byte) bool {
	for len(b) > 0 {
		n := len(b)
		if width := l.width.Load(); width > 0 {
			n = min(n, max(1, int(width/20)))
			time.Sleep(50 * time.Millisecond)
		}
		if _, err := to.Write(b[:n]); err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}
