// Package messages is the Messages API on the wire: what a relay has to know of
// a request, of an answer and of a stream of events, read from the bytes that
// pass through and without changing them. It knows nothing about keys, pools or
// providers, builds no requests and keeps no state between two of them.
package messages

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
)

// Request is what the relay reads of a request body. It holds on to Body, which
// must stay unchanged until the last reader from NewBody is closed. A Request
// has one owner; the readers it gave out are independent of it and each other.
type Request struct {
	Body      []byte // as the client sent it; never modified
	Model     []byte // as the client asked, decoded; aliases Body unless written with escapes
	Stream    bool   // false when absent
	MaxTokens int    // 0 when absent, and 0 is legal: it only warms the prompt cache
	UserID    []byte // metadata.user_id as between its quotes, escapes and all; nil when absent or null, empty when ""
	Prefix    Prefix // where the provider may find the prompt in its cache

	modelAt  [2]int // the value of model in Body, quotes included
	newModel []byte // JSON to put there; nil keeps what the client wrote
}

// SetModel makes the body to send ask for the model name. Only the value of model
// differs from what the client sent. The client's own name, or "", puts the
// client's bytes back. Readers given out before are not affected.
func (r *Request) SetModel(name string) {
	r.newModel = nil
	if name == "" || name == string(r.Model) {
		return
	}
	quoted, err := json.Marshal(name)
	if err != nil { // strings cannot fail to encode
		panic(err)
	}
	r.newModel = quoted
}

// Len is the length in bytes of the body to send.
func (r *Request) Len() int64 {
	if r.newModel == nil {
		return int64(len(r.Body))
	}
	return int64(len(r.Body) - (r.modelAt[1] - r.modelAt[0]) + len(r.newModel))
}

// NewBody returns a fresh reader of the body to send, from its first byte, for
// one attempt. It copies nothing, may be closed while it is being read, and is an
// io.WriterTo that hands a TCP connection all parts in one vectored write.
func (r *Request) NewBody() io.ReadCloser {
	if r.newModel == nil {
		return &bodyReader{parts: net.Buffers{r.Body}}
	}
	return &bodyReader{parts: net.Buffers{r.Body[:r.modelAt[0]], r.newModel, r.Body[r.modelAt[1]:]}}
}

type bodyReader struct {
	mu     sync.Mutex // transports may close a body while it is being read
	parts  net.Buffers
	closed bool
}

// Read fails with http.ErrBodyReadAfterClose once the body is closed, so that a
// body given up is never taken for one that ended.
func (b *bodyReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.parts.Read(p)
}

func (b *bodyReader) WriteTo(w io.Writer) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.parts.WriteTo(w)
}

// Close waits for a read in progress. After it the reader touches no byte of
// the body, so whoever owns the buffer may reuse it after the last Close.
func (b *bodyReader) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parts, b.closed = nil, true
	return nil
}
