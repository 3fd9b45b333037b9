package http1

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// together is up to where head and body are copied into one buffer: that is
// cheaper than a vectored write and, over TLS, fills one record.
const together = 16 << 10

// request is a request on its way out: its head, and what is known of sending it.
type request struct {
	out   []byte   // bytes not yet written: the head, and a small body behind it
	head  int      // length of the head in out, to send it again
	names []string // of the headers, for sorting

	body   io.ReadCloser // nil without one, and once closed
	length int64

	to     net.Conn
	left   int64 // bytes of the body still to come
	wrote  int64 // bytes the connection took
	failed bool  // the connection did not take all
	parts  [2][]byte
	vector net.Buffers
}

var requests = sync.Pool{New: func() any { return &request{out: make([]byte, 0, together)} }}

func (r *request) release() {
	clear(r.names)
	*r = request{out: r.out[:0], names: r.names[:0]}
	if cap(r.out) <= 2*together {
		requests.Put(r)
	}
}

// prepare writes the head, in the same order for the same headers. Error: what
// would not arrive as it is meant; nothing of it is ever sent.
func (r *request) prepare(req *http.Request) error {
	if hasBody(req) {
		r.body, r.length = req.Body, req.ContentLength
	} else if req.Body != nil {
		r.body = req.Body // only to be closed
	}
	method := req.Method
	if method == "" {
		method = http.MethodGet
	}
	path, query := req.URL.EscapedPath(), req.URL.RawQuery
	if path == "" {
		path = "/"
	}
	if !token(method) {
		return fmt.Errorf("http1: method %q is not valid", method)
	}
	if !visible(path) || path[0] != '/' || !visible(query) {
		return errors.New("http1: the URL has characters that must be escaped")
	}
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	out := append(r.out[:0], method...)
	out = append(out, ' ')
	out = append(out, path...)
	if query != "" || req.URL.ForceQuery {
		out = append(out, '?')
		out = append(out, query...)
	}
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, host...)
	out = append(out, "\r\n"...)
	if r.length > 0 || method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, r.length, 10)
		out = append(out, "\r\n"...)
	}
	if req.Close {
		out = append(out, "Connection: close\r\n"...)
	}
	r.out = out
	if err := r.appendHeaders(req.Header); err != nil {
		return err
	}
	r.out = append(r.out, "\r\n"...)
	r.head = len(r.out)
	return nil
}

func (r *request) appendHeaders(h http.Header) error {
	for name := range h {
		r.names = append(r.names, name)
	}
	slices.Sort(r.names)
	for _, name := range r.names {
		if !token(name) {
			return fmt.Errorf("http1: header name %q is not valid", name)
		}
		if framing(name) {
			continue
		}
		for _, value := range h[name] {
			if !fieldValue(value) {
				// The value may be a credential.
				return fmt.Errorf("http1: the value of header %s has characters that no header may have", name)
			}
			r.out = append(r.out, name...)
			r.out = append(r.out, ": "...)
			r.out = append(r.out, strings.Trim(value, " \t")...)
			r.out = append(r.out, "\r\n"...)
		}
	}
	return nil
}

// framing are the headers that follow from the request itself.
func framing(name string) bool {
	switch len(name) {
	case len("Host"):
		return strings.EqualFold(name, "Host")
	case len("Trailer"):
		return strings.EqualFold(name, "Trailer")
	case len("Content-Length"):
		return strings.EqualFold(name, "Content-Length")
	case len("Transfer-Encoding"):
		return strings.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

// total is how many bytes there are to send.
func (r *request) total() int64 { return int64(r.head) + r.length }

// send writes the request, and closes the body.
func (r *request) send(to net.Conn) error {
	r.to, r.left, r.wrote, r.failed = to, r.length, 0, false
	r.out = r.out[:r.head]
	defer r.closeBody()
	if r.length > 0 {
		if _, err := r.body.(io.WriterTo).WriteTo(r); err != nil {
			return err
		}
		if r.left > 0 {
			return errors.New("http1: the body is shorter than its content length")
		}
	}
	return r.flush(nil)
}

// Write takes a part of the body: it goes out with what waits, or waits itself.
func (r *request) Write(p []byte) (int, error) {
	if r.failed {
		return 0, net.ErrClosed
	}
	if int64(len(p)) > r.left {
		return 0, errors.New("http1: the body is longer than its content length")
	}
	r.left -= int64(len(p))
	if len(r.out)+len(p) <= together {
		r.out = append(r.out, p...)
		return len(p), nil
	}
	return len(p), r.flush(p)
}

// flush writes what waits, and p, in one system call.
func (r *request) flush(p []byte) error {
	var n int64
	var err error
	switch {
	case len(p) == 0 && len(r.out) == 0:
		return nil
	case len(p) == 0:
		var one int
		one, err = r.to.Write(r.out)
		n = int64(one)
	default:
		r.parts = [2][]byte{r.out, p}
		r.vector = r.parts[:]
		n, err = r.vector.WriteTo(r.to)
		r.parts, r.vector = [2][]byte{}, nil
	}
	r.wrote += n
	r.failed = err != nil
	r.out = r.out[:0]
	return err
}

func (r *request) closeBody() {
	if r.body != nil {
		_ = r.body.Close() // nothing depends on it
		r.body = nil
	}
}

// rewind gets a fresh body, to send the request again.
func (r *request) rewind(req *http.Request) error {
	if r.length == 0 {
		return nil
	}
	body, err := req.GetBody()
	if err != nil {
		return err
	}
	if _, ok := body.(io.WriterTo); !ok {
		_ = body.Close()
		return errors.New("http1: a second body is not in memory")
	}
	r.body = body
	return nil
}

// again is the request for another transport, with the body that was not sent yet.
func (r *request) again(req *http.Request) *http.Request {
	if r.length == 0 || r.body == req.Body {
		return req
	}
	other := *req
	other.Body = r.body
	return &other
}

// token: RFC 9110, 5.6.2.
func token[T string | []byte](s T) bool {
	for i := range len(s) {
		if !tokenBytes[s[i]] {
			return false
		}
	}
	return len(s) > 0
}

// fieldValue: no control characters but the tab.
func fieldValue[T string | []byte](s T) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// visible: neither space nor control characters, which would end a request line's part.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// plainHost: host and port in ASCII without a zone, as nearly all are.
func plainHost(s string) bool {
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && !strings.ContainsRune("-._~:[]", rune(c)) {
			return false
		}
	}
	return s != "" && s[0] != ':'
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

var tokenBytes = func() (t [256]bool) {
	for c := range byte(128) {
		t[c] = alphanumeric(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
	}
	return t
}()
