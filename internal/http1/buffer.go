package http1

import (
	"bytes"
	"errors"
)

// Bounds of what is read. A buffer of 32 KiB would be no faster, and there is
// one for each connection.
const (
	bufSize = 4 << 10
	maxHead = 64 << 10
)

// fill reads once into the buffer. With grow the buffer may become larger than
// it is; otherwise a full one is an error.
func (c *conn) fill(grow bool) error {
	if c.err != nil {
		return c.err
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
		if len(c.buf) > bufSize {
			c.buf = make([]byte, bufSize)
		}
	}
	if c.w == len(c.buf) && c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	if c.w == len(c.buf) {
		if !grow {
			return errTooLong
		}
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	c.heard = c.heard || n > 0
	if c.err = err; n > 0 {
		return nil
	}
	return err
}

var errTooLong = errors.New("http1: a line or block of the answer is too long")

// take reads what is there: what is buffered, or one read of the connection.
func (c *conn) take(p []byte) (int, error) {
	const small = 512 // for less a system call each is too much
	if c.r == c.w {
		if c.err != nil {
			return 0, c.err
		}
		if len(p) >= small {
			n, err := c.nc.Read(p)
			if c.err = err; n > 0 {
				return n, nil
			}
			return 0, err
		}
		if err := c.fill(false); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	return n, nil
}

// line returns the next line with its end. Without wait, ok is false where it
// has not come whole. The line is valid until the next read.
func (c *conn) line(limit int, wait bool) (line []byte, ok bool, err error) {
	for seen := 0; ; {
		if i := bytes.IndexByte(c.buf[c.r+seen:c.w], '\n'); i >= 0 {
			line = c.buf[c.r : c.r+seen+i+1]
			if len(line) > limit {
				return nil, false, errTooLong
			}
			c.r += len(line)
			return line, true, nil
		}
		seen = c.w - c.r
		if seen >= limit {
			return nil, false, errTooLong
		}
		if !wait {
			return nil, false, nil
		}
		if err := c.fill(false); err != nil {
			return nil, false, unexpected(err)
		}
	}
}

// block returns the lines up to an empty one, without that: the head of an
// answer, or trailers. Without wait, ok is false where it has not come whole. The
// block is valid until the next read.
func (c *conn) block(limit int, wait bool) (block []byte, ok bool, err error) {
	start, seen := 0, 0 // of the line looked at, and what was searched, from c.r on
	for {
		i := bytes.IndexByte(c.buf[c.r+seen:c.w], '\n')
		if i >= 0 {
			end := seen + i + 1
			if line := c.buf[c.r+start : c.r+end]; len(line) == 1 || (len(line) == 2 && line[0] == '\r') {
				block = c.buf[c.r : c.r+start]
				c.r += end
				return block, true, nil
			}
			start, seen = end, end
			continue
		}
		seen = c.w - c.r
		if seen >= limit {
			return nil, false, errTooLong
		}
		if !wait {
			return nil, false, nil
		}
		if err := c.fill(limit > bufSize); err != nil {
			if !c.heard {
				return nil, false, lost("waiting for the answer", err)
			}
			return nil, false, unexpected(err)
		}
	}
}

// unexpected is the error of a read in the middle of an answer.
func unexpected(err error) error {
	if errors.Is(err, errTooLong) {
		return err
	}
	return lost("reading the answer", err)
}
