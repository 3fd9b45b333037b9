// Package messages is the Messages API on the wire: what a relay has to know of
// a request, of an answer and of a stream of events, read from the bytes that
// pass through and without changing them. It knows nothing about keys, pools or
// providers, builds no requests and keeps no state between two of them.
package messages

import (
	"cmp"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
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
	// Fast: the request asks for fast mode, "speed":"fast". Other spellings of it are not seen.
	Fast bool
	// OpenTools: the last message has a block of type tool_result, the client answers
	// tool calls and the model is in the middle of its turn. Messages of the role
	// system are passed over: Claude Code puts them after what the user sends. Names
	// written with escapes are not seen.
	OpenTools bool
	// Tools: the request offers tools, so that the client's next one may answer calls.
	Tools bool
	// Container: the request names the container that earlier turns have used, which only
	// their organization has.
	Container bool

	modelAt [2]int // the value of model in Body, quotes included
	edits   []edit // what differs in the body to send, in the order of Body; replaced whole
}

// edit is a range of Body that is not sent, and what is sent in its place.
type edit struct {
	from, to int
	text     []byte // nil where the range is only left out
}

// SetModel makes the body to send ask for the model name. Only the value of model
// changes. The client's own name, or "", puts the client's bytes back there. What
// Strip leaves out stays out. Readers given out before are not affected.
func (r *Request) SetModel(name string) {
	if name == "" || name == string(r.Model) {
		r.edit(true)
		return
	}
	quoted, err := json.Marshal(name)
	if err != nil { // strings cannot fail to encode
		panic(err)
	}
	r.edit(true, edit{r.modelAt[0], r.modelAt[1], quoted})
}

// edit puts edits in the place of those made before that have a text, or of those
// that have none. The list is a new one: a copy of r may hold the one before.
func (r *Request) edit(text bool, edits ...edit) {
	for _, e := range r.edits {
		if (e.text != nil) != text {
			edits = append(edits, e)
		}
	}
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	r.edits = edits
}

// Len is the length in bytes of the body to send.
func (r *Request) Len() int64 {
	n := len(r.Body)
	for _, e := range r.edits {
		n += len(e.text) - (e.to - e.from)
	}
	return int64(n)
}

// NewBody returns a fresh reader of the body to send, from its first byte, for
// one attempt. It copies nothing, may be closed while it is being read, and is an
// io.WriterTo that hands a TCP connection all parts in one vectored write.
func (r *Request) NewBody() io.ReadCloser {
	parts, sent := make(net.Buffers, 0, 2*len(r.edits)+1), 0
	for _, e := range r.edits {
		if e.from > sent {
			parts = append(parts, r.Body[sent:e.from])
		}
		if e.text != nil {
			parts = append(parts, e.text)
		}
		sent = e.to
	}
	return &bodyReader{parts: append(parts, r.Body[sent:])}
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
