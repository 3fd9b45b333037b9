package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errBodyTooLarge = errors.New("proxy: request body too large")
	errNoRoom       = errors.New("proxy: no room for the request body")
)

// keptBody bounds the buffers kept for reuse, and firstBody is what a body of
// unknown length starts with.
const (
	keptBody  = 1 << 20
	firstBody = 64 << 10
)

var bodies = sync.Pool{New: func() any { return &body{} }}

// body is a request body in a buffer that is used again once its last reader is
// closed: a transport may still be sending it when the answer has been judged.
type body struct {
	buf   []byte
	refs  atomic.Int32
	room  *room
	taken int64 // of room
}

// steadyReader reads from a client that must neither fall silent nor trickle: each
// read that brings something moves the deadline on, not more often than it has to.
type steadyReader struct {
	io.Reader
	rc      *http.ResponseController
	silence time.Duration
	rate    int64 // bytes a second
	start   time.Time
	ends    time.Time // the body, whatever its rate
	moved   time.Time
	slow    bool // it is the rate that sets the deadline
	got     int64
}

func newSteadyReader(r io.Reader, rc *http.ResponseController, cfg *Config) *steadyReader {
	now := time.Now()
	return &steadyReader{Reader: r, rc: rc, silence: cfg.BodyTimeout, rate: cfg.BodyRate, start: now, ends: now.Add(cfg.BodyTime)}
}

func (s *steadyReader) Read(p []byte) (int, error) {
	if now := time.Now(); s.slow || now.Sub(s.moved) > s.silence/4 {
		s.moved = now
		_ = s.rc.SetReadDeadline(s.deadline(now)) // a writer without deadlines is a test's
	}
	n, err := s.Reader.Read(p)
	s.got += int64(n)
	return n, err
}

func (s *steadyReader) deadline(now time.Time) time.Time {
	next := now.Add(s.silence)
	earned := time.Duration(float64(s.got) / float64(s.rate) * float64(time.Second))
	due := s.start.Add(s.silence + earned)
	if s.slow = due.Before(next); s.slow {
		next = due
	}
	if s.ends.Before(next) {
		next = s.ends
	}
	return next
}

// stop takes the deadline away: the server goes on reading to notice a client
// that leaves.
func (s *steadyReader) stop() {
	if !s.moved.IsZero() {
		_ = s.rc.SetReadDeadline(time.Time{})
	}
}

// readBody reads a body of the declared size (-1: unknown) whole, or nothing of
// it if that is over the limit or there is no room for it among most bytes. Room is
// taken as the body comes: what a client only announces takes none from others. The body
// is owned by the caller until release, also with an error.
func readBody(r io.Reader, size, limit int64, held *room, most int64) (*body, error) {
	if size > limit {
		return nil, errBodyTooLarge
	}
	first := min(limit, firstBody)
	if size >= 0 {
		first = min(size, firstBody)
	}
	if !held.take(first, 0, most) {
		return nil, errNoRoom
	}
	b := bodies.Get().(*body)
	b.refs.Store(1)
	b.room, b.taken = held, first
	b.buf = b.buf[:0]
	if size < 0 {
		return b, b.readUnknown(r, limit, most)
	}
	return b, b.readKnown(r, size, most)
}

// readKnown doubles what it takes room for, and memory where the buffer is too small.
func (b *body) readKnown(r io.Reader, size, most int64) error {
	for {
		if int64(cap(b.buf)) < b.taken {
			b.buf = append(make([]byte, 0, b.taken), b.buf...)
		}
		got := len(b.buf)
		b.buf = b.buf[:b.taken]
		n, err := io.ReadFull(r, b.buf[got:])
		b.buf = b.buf[:got+n]
		switch {
		case err != nil && got > 0 && errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case b.taken == size:
			// Reading up to the end is what lets the server notice a client that leaves.
			_, err = io.Copy(io.Discard, r)
			return err
		}
		more := min(size-b.taken, b.taken)
		if !b.room.take(more, b.taken, most) {
			return errNoRoom
		}
		b.taken += more
	}
}

func (b *body) readUnknown(r io.Reader, limit, most int64) error {
	if cap(b.buf) == 0 {
		b.buf = make([]byte, 0, firstBody)
	}
	for {
		if len(b.buf) == cap(b.buf) {
			b.buf = append(b.buf, 0)[:len(b.buf)]
		}
		n, err := r.Read(b.buf[len(b.buf):cap(b.buf)])
		b.buf = b.buf[:len(b.buf)+n]
		switch {
		case int64(len(b.buf)) > limit:
			return errBodyTooLarge
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case int64(len(b.buf)) > b.taken:
			more := max(firstBody, int64(len(b.buf))-b.taken)
			if !b.room.take(more, b.taken, most) {
				return errNoRoom
			}
			b.taken += more
		}
	}
}

func (b *body) bytes() []byte { return b.buf }

// lend keeps the buffer until rc, a reader of it, is closed as well.
func (b *body) lend(rc io.ReadCloser) io.ReadCloser {
	b.refs.Add(1)
	return &lent{ReadCloser: rc, body: b}
}

func (b *body) release() {
	if b.refs.Add(-1) > 0 {
		return
	}
	b.room.give(b.taken)
	b.room, b.taken = nil, 0
	if cap(b.buf) > keptBody {
		b.buf = nil
	}
	bodies.Put(b)
}

// lent is a reader of a body. Closing it more than once releases once.
type lent struct {
	io.ReadCloser
	body   *body
	closed atomic.Bool
}

// WriteTo writes the rest whole, which spares a transport a copy.
func (l *lent) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, l.ReadCloser) }

func (l *lent) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	err := l.ReadCloser.Close()
	l.body.release()
	return err
}
