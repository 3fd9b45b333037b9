package main

import (
	"net/http"
	"slices"
	"time"

	"cc-relay/internal/simulator"
)

// Policy decides which key serves a request. It is driven by one goroutine in
// virtual time: now never runs back, and nothing but its arguments tells the time.
type Policy interface {
	// Pick decides about r. A request that is served counts as dispatched at now, on
	// r.Key. One that waits is asked again at the time named, one that a provider
	// has refused is asked again with that key in r.Tried.
	Pick(now time.Time, r *Request) Decision
	// Answered tells of the head of the answer to r on r.Key: 200, 429, and in some
	// scenarios 401 or 529. After another than 200 nothing more of that dispatch is
	// told.
	Answered(now time.Time, r *Request, h *Head)
	// Produced tells of n more tokens of output.
	Produced(now time.Time, r *Request, n int)
	// Ended tells of the end of an answer and what it cost; gone: the client left
	// before it was complete, and the provider did not say what it cost.
	Ended(now time.Time, r *Request, u simulator.Usage, gone bool)
}

// Restarter is a policy that keeps something over a restart of the relay. Requests
// that the old policy has been asked about stay with it to their end.
type Restarter interface {
	Restart(now time.Time) Policy
}

// Request is one HTTP request of a client as a policy may see it: bytes, not
// tokens, for the bytes of one token differ from request to request.
type Request struct {
	ID           int    // of this HTTP request; a client's retry has a new one
	Class        string // of the model
	Conversation uint64 // the same for all turns of a session
	Bytes        int    // of the prompt
	MaxTokens    int
	// Chain[i] stands for the prompt through content block i; BytesThrough(i) is its
	// length. What follows the last block is never cached.
	Chain []uint64
	// Breakpoints are indexes into Chain, rising: where the client asks for caching.
	Breakpoints []int
	Since       time.Time // of arrival; budgets of waiting count from here
	Tried       []int     // keys that have refused it, oldest first; may name one twice
	Key         int       // of the dispatch under way
	// Lease is the policy's own; the bench does not touch it.
	Lease any

	ends       []int // of the content blocks, in blocks of blockTokens
	blockBytes float64
}

// BytesThrough is the length of the prompt through content block i of the chain.
func (r *Request) BytesThrough(i int) int { return int(float64(r.ends[i]) * r.blockBytes) }

func (r *Request) tried(key int) bool { return slices.Contains(r.Tried, key) }

// spent: key has refused r, and once more after r has waited for it.
func (r *Request) spent(key int) bool {
	at := slices.Index(r.Tried, key)
	return at >= 0 && slices.Contains(r.Tried[at+1:], key)
}

// Decision is what becomes of a request; the zero Decision refuses it.
type Decision struct {
	Serve      bool
	Key        int           // with Serve
	Until      time.Time     // not zero: wait; must be later than now
	RetryAfter time.Duration // otherwise: what the client is told
}

func serve(key int) Decision              { return Decision{Serve: true, Key: key} }
func waitUntil(t time.Time) Decision      { return Decision{Until: t} }
func refuse(after time.Duration) Decision { return Decision{RetryAfter: after} }

// Reading is what the headers say about one limit.
type Reading struct {
	Limit     int           // a minute; 0: no such limit
	Remaining int           // tokens rounded to the nearest thousand, never below zero
	Reset     time.Duration // until the bucket is full, by the Date of the same answer
}

// Head is the head of an answer: a status and the rate-limit headers.
type Head struct {
	Status                  int // 200, 401, 429 or 529
	Requests, Input, Output Reading
	RetryAfter              time.Duration // with 429
	Date                    time.Time     // whole seconds, as the header has it

	levels simulator.Levels
}

func newHead(now time.Time, status int, l simulator.Levels) *Head {
	h := &Head{Status: status, Date: now.Truncate(time.Second), levels: l} // the zero Levels: no limits, no headers
	h.Requests = h.reading(l.Requests, 1)
	h.Input = h.reading(l.Input, 1000)
	h.Output = h.reading(l.Output, 1000)
	return h
}

func (h *Head) reading(l simulator.Level, round int) Reading {
	if l.Limit == 0 {
		return Reading{}
	}
	full := l.Full.Add(time.Second - 1).Truncate(time.Second)
	return Reading{
		Limit:     l.Limit,
		Remaining: (max(l.Remaining, 0) + round/2) / round * round,
		Reset:     max(full.Sub(h.Date), 0),
	}
}

// Header is the head as it comes over the wire.
func (h *Head) Header() http.Header {
	header := http.Header{"Date": {h.Date.UTC().Format(http.TimeFormat)}}
	h.levels.SetHeaders(header)
	if h.RetryAfter > 0 {
		header.Set("Retry-After", seconds(h.RetryAfter))
	}
	return header
}
