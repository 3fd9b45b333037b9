package proxy

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"cc-relay/internal/messages"
)

var (
	errBodyTooLarge = errors.New("proxy: request body too large")
	errNoRoom       = errors.New("proxy: no room for the request body")
)

// keptBody bounds the buffers kept for reuse, and firstBody is what a body starts with.
const (
	keptBody  = 1 << 20
	firstBody = 64 << 10
)

var bodies = sync.Pool{New: func() any { return &body{} }}

// body is a request body in a buffer that is used again once its last reader is
// closed: a transport may still be sending it when the answer has been judged.
type body struct {
	buf   []byte
	msg   messages.Request // what it asks for, 2 KB
	refs  atomic.Int32
	room  *room
	taken int64 // of room
	spare [1]byte
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
	most    int // bytes of one read; 0: as many as there is place for
}

// newSteadyReader begins to count now.
func newSteadyReader(r *http.Request, now time.Time, rc *http.ResponseController, cfg *Config) *steadyReader {
	s := &steadyReader{Reader: r.Body, rc: rc, silence: cfg.BodyTimeout, rate: cfg.BodyRate, start: now, ends: now.Add(cfg.BodyTime)}
	if len(r.TransferEncoding) > 0 {
		// Within a chunk the server returns from a read when it is full, not when
		// something has come: what must be there before the deadline is what a client
		// that is fast enough sends in half of that time.
		s.most = max(1, int(min(float64(s.rate)*s.silence.Seconds()/2, firstBody)))
	}
	return s
}

func (s *steadyReader) Read(p []byte) (int, error) {
	if s.most > 0 && len(p) > s.most {
		p = p[:s.most]
	}
	now := s.start
	if !s.moved.IsZero() {
		now = time.Now()
	}
	if s.slow || now.Sub(s.moved) > s.silence/4 {
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
	whole := limit
	if size >= 0 {
		whole = size
	}
	first := min(whole, firstBody)
	if !held.take(first, 0, most) {
		return nil, errNoRoom
	}
	b := bodies.Get().(*body)
	b.refs.Store(1)
	b.room, b.taken = held, first
	b.buf = b.buf[:0]
	return b, b.fill(r, size, whole, most)
}

// fill reads up to whole bytes into what there is room for. More is taken where the body
// goes on: of one that says its size as much again, of others a little.
func (b *body) fill(r io.Reader, size, whole, most int64) error {
	for {
		got := int64(len(b.buf))
		if got == b.taken && got < whole {
			more := min(whole-got, got)
			if size < 0 {
				more = min(more, firstBody)
			}
			if !b.room.take(more, got, most) {
				return errNoRoom
			}
			b.taken += more
		}
		if n := int64(cap(b.buf)); n < b.taken {
			b.buf = append(make([]byte, 0, max(b.taken, min(whole, 2*n))), b.buf...)
		}
		into := b.buf[got:b.taken]
		if got == whole { // reading up to the end also lets the server notice a client that leaves
			into = b.spare[:]
		}
		n, err := r.Read(into)
		if n > 0 && got == whole {
			return errBodyTooLarge
		}
		b.buf = b.buf[:got+int64(n)]
		switch {
		case errors.Is(err, io.EOF):
			if int64(len(b.buf)) < size {
				return io.ErrUnexpectedEOF
			}
			return nil
		case err != nil:
			return err
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
		b.buf, b.msg = nil, messages.Request{} // which is parts of it
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
