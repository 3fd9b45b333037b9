package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

// Ways to cut an answer.
const (
	whole       = "not cut"
	fin         = "FIN"
	rst         = "RST"
	inHead      = "inside the head"
	ended       = "ended by its framing"
	stall       = "stall"
	errorFrame  = "error frame"
	tooShort    = "content-length too short"
	tooLong     = "content-length too long"
	inSize      = "inside a chunk's size"
	badSize     = "a chunk's size that is none"
	afterStatus = "FIN after the head"
)

// cuts are all ways, in the order of the summary.
var cuts = []string{fin, rst, inHead, afterStatus, ended, stall, errorFrame, tooShort, tooLong, inSize, badSize}

// Framings of a body.
const (
	chunked = "chunked"
	length  = "content-length"
	closing = "close-delimited"
)

// play is one answer of a provider and how it goes wrong.
type play struct {
	stream  bool
	full    string // the whole answer
	sent    string // what of it is sent, with an error frame at its end if there is one
	how     string
	framing string
	head    string
	reset   bool // it ends with a reset, not with a FIN
	size    int  // content-length
	spoilt  string
	rng     *rand.Rand
}

// kinds of errors that a provider names in the middle of a stream.
var kinds = []string{"overloaded_error", "api_error", "rate_limit_error", "invalid_request_error", "timeout_error", "new_error"}

// newPlay decides what the provider sends. how is whole or one of cuts.
func newPlay(rng *rand.Rand, stream bool, full, how string) *play {
	p := &play{stream: stream, full: full, sent: full, how: how, rng: rng}
	p.framing = []string{chunked, length, closing}[rng.IntN(3)]
	at := rng.IntN(len(full))
	if how != whole {
		p.sent = full[:at]
	}
	p.size = len(p.sent)
	switch how {
	case fin, rst, stall:
		p.size, p.reset = len(full), how == rst
	case inHead:
		p.reset = rng.IntN(2) == 0
		p.size, p.sent = len(full), ""
	case afterStatus:
		p.size, p.sent = len(full), ""
	case ended:
		p.framing = []string{chunked, length}[rng.IntN(2)]
	case errorFrame:
		bounds := boundaries(full)
		p.sent = full[:bounds[rng.IntN(len(bounds))]]
		kind := kinds[rng.IntN(len(kinds))]
		end := []string{"\n", "\r\n", "\r"}[rng.IntN(3)]
		p.sent += strings.Join([]string{"event: error", fmt.Sprintf(`data: {"type":"error","error":{"type":%q,"message":"in the middle"}}`, kind), "", ""}, end)
		p.size = len(p.sent)
	case tooShort: // it announces less than it sends
		p.framing = length
	case tooLong:
		p.framing, p.sent = length, full
		if rng.IntN(2) == 0 {
			p.sent = full[:at]
		}
		p.size = len(full) + 1 + rng.IntN(100)
	case inSize:
		p.framing = chunked
		p.spoilt = []string{"", "1", "1f", "1f\r", "1f;a=b", "0", "0\r", "0\r\n", "0\r\n\r", "00000000\r\n"}[rng.IntN(10)]
	case badSize:
		p.framing = chunked
		p.spoilt = []string{"zz\r\n", "-1\r\n", "1ffffffffffffffff\r\n", "\r\n", "HTTP/1.1 200 OK\r\n"}[rng.IntN(5)]
	}
	kind := "application/json"
	if stream {
		kind = "text/event-stream; charset=utf-8"
	}
	p.head = "HTTP/1.1 200 OK\r\nContent-Type: " + kind + "\r\nRequest-Id: req_provider\r\n"
	switch p.framing {
	case chunked:
		p.head += "Transfer-Encoding: chunked\r\n"
	case length:
		p.head += fmt.Sprintf("Content-Length: %d\r\n", p.size)
	}
	p.head += "\r\n"
	if how == inHead {
		p.head = p.head[:rng.IntN(len(p.head)-1)]
	}
	return p
}

// perform sends the answer as planned, in pieces of any size, and reports whether the
// connection may serve another.
func (p *play) perform(c *net.TCPConn) (keep bool) {
	text := p.sent
	if p.how == tooShort {
		text = p.full
	}
	wire := p.head + p.framed(text)
	switch {
	case p.how == inHead:
		wire = p.head
	case p.how == inSize || p.how == badSize:
		wire += p.spoilt
	case p.framing == chunked && (p.how == whole || p.how == ended || p.how == errorFrame):
		wire += "0\r\n\r\n"
		keep = true
	case p.framing == length && (p.how == whole || p.how == ended || p.how == errorFrame || p.how == tooShort):
		keep = true
	}
	for rest := wire; rest != ""; {
		n := 1 + p.rng.IntN(len(rest))
		if p.how == tooShort {
			n = len(rest) // what comes later than that may come when the connection is in use again: nobody can tell
		}
		if _, err := c.Write([]byte(rest[:n])); err != nil {
			return false
		}
		rest = rest[n:]
	}
	switch {
	case p.how == stall:
		// Until the relay has had enough.
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, _ = c.Read(make([]byte, 1))
	case p.reset:
		_ = c.SetLinger(0)
	}
	return keep
}

// framed is text as it goes over the wire, without an end.
func (p *play) framed(text string) string {
	if p.framing != chunked {
		return text
	}
	var b strings.Builder
	for text != "" {
		n := 1 + p.rng.IntN(len(text))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, text[:n])
		text = text[n:]
	}
	return b.String()
}

// chooseCut chooses how to cut an answer. Stalls take long, so they are fewer.
func chooseCut(rng *rand.Rand, stream bool) string {
	how := cuts[rng.IntN(len(cuts))]
	if how == stall && rng.IntN(2) == 0 || how == errorFrame && !stream {
		return fin
	}
	return how
}
