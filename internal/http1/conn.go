package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// maxInterim is how many answers with status 1xx may come before the final one,
// as in net/http.
const maxInterim = 5

// conn is a connection. Its one user is the goroutine that sends a request and
// reads the answer; only abort and close may be called by others.
type conn struct {
	t     *Transport
	at    key
	nc    net.Conn
	under net.Conn // below TLS; nc itself without
	sys   *socket  // nil where there is none, as in tests
	abort func()   // makes reads and writes end at once, for good

	buf    []byte
	r, w   int   // buf[r:w] is read and not yet used
	err    error // of a read, sticky
	heard  bool  // a byte came since the request
	reused bool

	stop      func() bool // of the current request's context
	idleSince time.Time
}

// past is a deadline that has passed.
var past = time.Unix(1, 0)

func newConn(t *Transport, at key, nc net.Conn) *conn {
	c := &conn{t: t, at: at, nc: nc, under: nc, buf: make([]byte, bufSize)}
	if secure, ok := nc.(*tls.Conn); ok {
		c.under = secure.NetConn()
	}
	if s, ok := c.under.(syscall.Conn); ok {
		c.sys = newSocket(s)
	}
	// Not the deadline of nc: it is the same, and TLS would say that it timed out.
	c.abort = func() { _ = c.under.SetDeadline(past) }
	return c
}

// close is abrupt: a farewell of TLS could block, and helps nobody here.
func (c *conn) close() { _ = c.under.Close() }

// quiet reports whether the server has neither closed an idle connection nor
// said anything on it. It does not wait.
func (c *conn) quiet() bool {
	if c.sys != nil && !c.sys.quiet() {
		return false
	}
	if c.sys != nil && c.nc == c.under {
		return true
	}
	// TLS may have read ahead, and a connection without a socket cannot be asked.
	_ = c.nc.SetReadDeadline(past)
	n, err := c.nc.Read(c.buf[:1])
	_ = c.nc.SetReadDeadline(time.Time{})
	timeout, ok := errors.AsType[net.Error](err)
	return n == 0 && ok && timeout.Timeout()
}

// roundTrip sends one request and returns its answer with the body to be read.
// With an error the connection is closed.
func (c *conn) roundTrip(ctx context.Context, req *http.Request, out *request) (*http.Response, error) {
	c.heard = false
	if ctx.Done() != nil {
		c.stop = context.AfterFunc(ctx, c.abort)
	}
	a, err := c.exchange(req, out)
	if err != nil {
		c.drop()
		return nil, err
	}
	a.Request = req
	last := a.Close || out.failed || req.Close
	if a.Body != nil {
		c.finish(!last)
		return &a.Response, nil
	}
	a.body.c, a.body.ctx, a.body.last = c, ctx, last
	a.Body = &a.body
	return &a.Response, nil
}

// exchange writes and reads. Where the write may block it reads at the same
// time: a server may refuse a request that it has not read, and wait for
// somebody to see that.
func (c *conn) exchange(req *http.Request, out *request) (*answer, error) {
	var early chan read
	if out.total() > c.room(out.total()) {
		early = make(chan read, 1)
		go c.readEarly(req.Method, early)
	}
	sendErr := out.send(c.nc)
	switch {
	case sendErr == nil:
	case !out.failed, c.reused && out.wrote == 0:
		c.close() // no answer is worth waiting for
	case !errors.Is(sendErr, os.ErrDeadlineExceeded): // a refusal or the context set that
		// What the server had to say before the connection broke is here by now.
		_ = c.under.SetReadDeadline(time.Now().Add(time.Second))
	}
	var got read
	if early != nil {
		if got = <-early; got.refused && sendErr == nil {
			_ = c.under.SetWriteDeadline(time.Time{}) // all was sent
		}
	} else {
		got.answer, got.err = c.answer(req.Method)
	}
	switch {
	case sendErr != nil && !out.failed:
		return nil, sendErr
	case got.err == nil:
		return got.answer, nil
	case out.failed:
		return nil, lost("sending the request", sendErr)
	}
	return nil, got.err
}

// room is how much can be written without a reader at the other end. size is
// what is to be written.
func (c *conn) room(size int64) int64 {
	switch {
	case c.sys == nil:
		return 0
	case size <= together:
		return together // what any socket takes
	}
	return c.sys.room()
}

// read is what reading the head of an answer came to.
type read struct {
	answer  *answer
	err     error
	refused bool // nothing more needs to be sent
}

// readEarly reads the head of an answer while the request is still being sent.
// An answer that is no success ends the sending: the server has seen enough.
func (c *conn) readEarly(method string, to chan<- read) {
	a, err := c.answer(method)
	refused := err != nil || a.StatusCode >= 300
	if refused {
		_ = c.under.SetWriteDeadline(past)
	}
	to <- read{a, err, refused}
}

// answer reads the head of the final answer.
func (c *conn) answer(method string) (*answer, error) {
	for range maxInterim + 1 {
		head, _, err := c.block(maxHead, true)
		if err != nil {
			return nil, err
		}
		a, err := parseAnswer(head, method)
		if err != nil {
			return nil, err
		}
		if a.StatusCode >= 200 || a.StatusCode == http.StatusSwitchingProtocols {
			return a, nil
		}
	}
	return nil, errors.New("http1: too many 1xx answers")
}

// mayRepeat reports whether a request that failed here may be sent once more:
// see Transport.RoundTrip.
func (c *conn) mayRepeat(req *http.Request, out *request) bool {
	if !c.reused || c.heard {
		return false
	}
	if out.failed && out.wrote == 0 {
		return true
	}
	return !hasBody(req) && (req.Method == "" || req.Method == http.MethodGet || req.Method == http.MethodHead)
}

// finish ends the use of the connection by an answer that is complete. Nobody
// else knows of bytes that came behind it: they would be taken for the next one.
func (c *conn) finish(keep bool) {
	stopped := c.stop == nil || c.stop()
	c.stop = nil
	if !keep || !stopped || c.err != nil || c.r != c.w {
		c.close()
		return
	}
	c.t.keep(c)
}

// drop ends the use of the connection by an answer that is not complete.
func (c *conn) drop() {
	if c.stop != nil {
		c.stop()
	}
	c.close()
}
