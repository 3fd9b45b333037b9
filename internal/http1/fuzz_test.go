package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/http1"
)

// recorded is a connection on which everything has come already.
type recorded struct {
	net.Conn
	in *bytes.Reader
}

func (r *recorded) Read(p []byte) (int, error)       { return r.in.Read(p) }
func (r *recorded) Write(p []byte) (int, error)      { return len(p), nil }
func (r *recorded) Close() error                     { return nil }
func (r *recorded) SetDeadline(time.Time) error      { return nil }
func (r *recorded) SetReadDeadline(time.Time) error  { return nil }
func (r *recorded) SetWriteDeadline(time.Time) error { return nil }

// reference reads an answer as net/http does.
func reference(raw []byte, req *http.Request) reply {
	in := bufio.NewReader(bytes.NewReader(raw))
	for range 6 {
		resp, err := http.ReadResponse(in, req)
		if err != nil {
			return reply{err: err}
		}
		if resp.StatusCode >= 200 || resp.StatusCode == 101 || resp.StatusCode < 100 {
			body, err := io.ReadAll(resp.Body)
			return reply{resp, string(body), err}
		}
		if stricter(raw, reply{Response: resp}) {
			return reply{err: errors.New("an interim answer that we refuse")}
		}
	}
	return reply{err: errors.New("too many")}
}

// FuzzAnswers: an answer has the status, headers, body and length that net/http
// finds in it, or both refuse it; but we also refuse what parseAnswer says.
func FuzzAnswers(f *testing.F) {
	for _, a := range answers {
		f.Add([]byte(a.raw), a.method == "HEAD")
	}
	for _, r := range refused {
		f.Add([]byte(r.raw), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, head bool) {
		tr := http1.NewTransport(http1.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
			return &recorded{in: bytes.NewReader(raw)}, nil
		}})
		defer tr.CloseIdleConnections()
		req := newRequest(t, "GET", nil)
		if head {
			req.Method = "HEAD"
		}
		got, want := do(t, tr, req), reference(raw, req)
		if got.Response != nil && got.StatusCode == 101 {
			return // a connection of its own
		}
		if got.err != nil {
			if want.err == nil && !stricter(raw, want) {
				t.Fatalf("refused: %v\nnet/http reads %d %q %q\n%q", got.err, want.StatusCode, want.Header, want.body, raw)
			}
			return
		}
		if want.err != nil {
			t.Fatalf("net/http refuses: %v\ngot %d %q %q\n%q", want.err, got.StatusCode, got.Header, got.body, raw)
		}
		if want.Header["Pragma"] != nil { // net/http adds a header there
			delete(got.Header, "Cache-Control")
			delete(want.Header, "Cache-Control")
		}
		delete(got.Header, "Trailer") // net/http takes it out of the headers if it believes it
		delete(want.Header, "Trailer")
		assert.Equal(t, want.Status, got.Status)
		assert.Equal(t, want.StatusCode, got.StatusCode)
		assert.Equal(t, want.Proto, got.Proto)
		assert.Equal(t, want.Header, got.Header)
		assert.Equal(t, want.body, got.body)
		assert.Equal(t, want.ContentLength, got.ContentLength)
		assert.Equal(t, want.TransferEncoding, got.TransferEncoding)
		assert.Equal(t, want.Close, got.Close)
	})
}

// stricter reports whether an answer that net/http reads is one of those that we
// refuse on purpose.
func stricter(raw []byte, r reply) bool {
	for _, names := range []http.Header{r.Header, r.Trailer} {
		for name := range names {
			if strings.Contains(name, " ") {
				return true
			}
		}
	}
	folded := bytes.Contains(raw, []byte("\n ")) || bytes.Contains(raw, []byte("\n\t"))
	bareLF := bytes.Count(raw, []byte("\n")) != bytes.Count(raw, []byte("\r\n"))
	chunked := len(r.TransferEncoding) > 0
	lower := bytes.ToLower(raw)
	both := bytes.Contains(lower, []byte("transfer-encoding")) && bytes.Contains(lower, []byte("content-length"))
	return both || (r.Proto != "HTTP/1.1" && r.Proto != "HTTP/1.0") || r.StatusCode < 100 || folded || (bareLF && chunked) || len(raw) > 64<<10
}
