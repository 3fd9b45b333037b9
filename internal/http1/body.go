package http1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

// kind is how a body ends.
type kind int

const (
	fixed kind = iota
	untilClose
	inChunks
)

// body is the body of an answer. It has one reader; Close may come from anywhere,
// also while a read is blocked, and ends that.
type body struct {
	c     *conn
	ctx   context.Context
	kind  kind
	left  uint64 // bytes to come: of the body, or of the chunk
	at    place  // in chunks
	waste int64  // what chunks took beyond their data
	last  bool   // the connection ends with it
	state atomic.Int32
	err   error // of a read, sticky
}

// States of a body: whoever leaves open decides what becomes of the connection.
const (
	open int32 = iota
	ended
	closed
)

// place is what comes next in chunks.
type place int

const (
	chunkSize place = iota
	chunkData
	chunkEnd
	trailers
)

// Read returns what one read of the connection brought, with io.EOF as soon as
// the body is known to be complete: then the connection serves others. A body
// that breaks off is an error, io.ErrUnexpectedEOF if the connection just ended.
// Once the request's context is done that is context.Cause of it, and after Close
// it is http.ErrBodyReadAfterClose.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.state.Load() == closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.next(p)
	if err != nil {
		b.err = b.end(err)
	}
	return n, b.err
}

// Close gives up what is not read yet, and the connection with it. It never fails.
func (b *body) Close() error {
	if b.state.CompareAndSwap(open, closed) {
		b.c.drop()
	}
	return nil
}

// end ends the use of the connection, once, and says what the reader is told.
func (b *body) end(err error) error {
	if errors.Is(err, io.EOF) {
		if b.state.CompareAndSwap(open, ended) {
			b.c.finish(!b.last)
			return io.EOF
		}
		return http.ErrBodyReadAfterClose
	}
	if !b.state.CompareAndSwap(open, closed) {
		return http.ErrBodyReadAfterClose
	}
	b.c.drop()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return err
}

// next reads once; io.EOF means that the body is complete.
func (b *body) next(p []byte) (int, error) {
	switch b.kind {
	case inChunks:
		return b.nextOfChunks(p)
	case untilClose:
		n, err := b.c.take(p)
		if err != nil && !errors.Is(err, io.EOF) {
			err = unexpected(err)
		}
		return n, err
	}
	n, err := b.c.take(p[:min(uint64(len(p)), b.left)])
	b.left -= uint64(n)
	switch {
	case b.left == 0:
		return n, io.EOF
	case err != nil:
		return n, unexpected(err)
	}
	return n, nil
}

// nextOfChunks reads as many chunks as have come and fit, and waits only while
// there is nothing to return.
func (b *body) nextOfChunks(p []byte) (n int, err error) {
	for {
		var ok bool
		switch b.at {
		case chunkSize:
			ok, err = b.readSize(n == 0)
		case chunkEnd:
			ok, err = b.readEnd(n == 0)
		case trailers:
			if ok, err = b.readTrailers(n == 0); ok {
				return n, io.EOF
			}
		case chunkData:
			if n == len(p) || (n > 0 && b.c.r == b.c.w) {
				return n, nil
			}
			var one int
			one, err = b.readData(p[n:])
			n += one
			ok = true
		}
		if err != nil || !ok {
			return n, err
		}
	}
}

// readData reads data of a chunk. Where little is asked for or left, more than
// that is read from the connection: the end of the chunk comes along.
func (b *body) readData(p []byte) (int, error) {
	p = p[:min(uint64(len(p)), b.left)]
	if b.c.r == b.c.w && len(p) < bufSize {
		if err := b.c.fill(false); err != nil {
			return 0, unexpected(err)
		}
	}
	n, err := b.c.take(p)
	if err != nil {
		return n, unexpected(err)
	}
	if b.left -= uint64(n); b.left == 0 {
		b.at = chunkEnd
	}
	return n, nil
}

// Bounds of what chunks may take beyond their data, as in net/http: a server that
// sends each byte as a chunk is within them, endless extensions are not.
const (
	freeWaste = 16
	maxWaste  = 16 << 10
)

func (b *body) readSize(wait bool) (bool, error) {
	line, ok, err := b.c.line(bufSize, wait)
	if err != nil || !ok {
		return false, err
	}
	n := 0 // digits, nearly always all there is but CR LF
	for n < len(line) && isHex[line[n]] {
		n++
	}
	if rest := line[n:]; len(rest) != 2 || rest[0] != '\r' {
		if len(line) < 2 || bytes.IndexByte(line, '\r') != len(line)-2 { // stricter than in heads
			return false, errors.New("http1: a chunk's line does not end in CR LF")
		}
		size, _, _ := bytes.Cut(bytes.TrimRight(line[:len(line)-2], " \t"), []byte(";"))
		n = len(size)
	}
	if b.left, ok = hexadecimal(line[:n]); !ok {
		return false, errors.New("http1: a chunk's size is not a number")
	}
	b.waste = max(0, b.waste+int64(len(line))-freeWaste-2*int64(min(b.left, maxWaste)))
	if b.waste > maxWaste {
		return false, errors.New("http1: the answer's chunks are nearly all overhead")
	}
	b.at = chunkData
	if b.left == 0 {
		b.at = trailers
	}
	return true, nil
}

// isHex tells the digits of a chunk's size.
var isHex = func() (is [256]bool) {
	for _, c := range []byte("0123456789abcdefABCDEF") {
		is[c] = true
	}
	return is
}()

func hexadecimal(s []byte) (n uint64, ok bool) {
	for _, c := range s {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		n = n<<4 | uint64(c)
	}
	return n, 0 < len(s) && len(s) <= 16
}

func (b *body) readEnd(wait bool) (bool, error) {
	for b.c.w-b.c.r < 2 {
		if !wait {
			return false, nil
		}
		if err := b.c.fill(false); err != nil {
			return false, unexpected(err)
		}
	}
	if string(b.c.buf[b.c.r:b.c.r+2]) != "\r\n" {
		return false, errors.New("http1: a chunk is longer than its size")
	}
	b.c.r += 2
	b.at = chunkSize
	return true, nil
}

// readTrailers reads what follows the last chunk, and drops it.
func (b *body) readTrailers(wait bool) (bool, error) {
	block, ok, err := b.c.block(bufSize, wait)
	if err != nil || !ok {
		return false, err
	}
	_, err = canonicalize(block)
	if !bytes.HasSuffix(b.c.buf[:b.c.r], []byte("\r\n")) || bytes.Count(block, []byte("\r\n")) != bytes.Count(block, []byte("\n")) {
		err = errors.New("http1: a line after the last chunk does not end in CR LF")
	}
	return err == nil, err
}
