package main

import (
	"bufio"
	"errors"
	"io"
)

// lineReader reads lines of any length, in one buffer; a very long one comes in pieces
// that overlap, so that what is at a seam is in one of them whole.
type lineReader struct {
	r    *bufio.Reader
	tail []byte // of the piece before
}

const overlap = 64

func newLineReader(r io.Reader) *lineReader { return &lineReader{r: bufio.NewReaderSize(r, 256<<10)} }

func (l *lineReader) next() ([]byte, error) {
	piece, err := l.r.ReadSlice('\n')
	if len(l.tail) > 0 {
		piece = append(l.tail, piece...)
		l.tail = nil
	}
	if errors.Is(err, bufio.ErrBufferFull) {
		l.tail = append([]byte(nil), piece[len(piece)-overlap:]...)
		err = nil
	}
	return piece, err
}
