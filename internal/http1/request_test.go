package http1_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// wire is what a server gets of a request.
func wire(t *testing.T, over network, req *http.Request, size int) string {
	t.Helper()
	got := make([]byte, size)
	s := newServer(t, over, func(p *peer) {
		_, err := io.ReadFull(p, got)
		assert.NoError(p.t, err)
		p.say(ok)
		rest, _ := io.ReadAll(p)
		assert.Empty(p.t, string(rest), "more was sent")
	})
	require.NoError(t, do(t, s, req).err)
	return string(got)
}

func TestRequestsOnTheWire(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(r *http.Request)
		want   string
	}{
		"GET": {func(*http.Request) {}, "GET /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\n\r\n"},
		"no method": {func(r *http.Request) { r.Method = "" },
			"GET /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\n\r\n"},
		"headers are sorted, names stay, spaces around values go": {
			func(r *http.Request) {
				r.Header = http.Header{"X-B": {" 1 ", "\t2"}, "x-a": {"ü"}, "Accept": nil, "User-Agent": {"me"}, "X-Empty": {""}}
			},
			"GET /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nUser-Agent: me\r\nX-B: 1\r\nX-B: 2\r\nX-Empty: \r\nx-a: ü\r\n\r\n",
		},
		"what follows from the request is not taken from headers": {
			func(r *http.Request) {
				r.Header = http.Header{
					"Host": {"other"}, "Content-Length": {"7"}, "content-length": {"8"}, "Transfer-Encoding": {"chunked"},
					"transfer-encoding": {"chunked"}, "Trailer": {"X-A"}, "X-A": {"a"},
				}
			},
			"GET /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nX-A: a\r\n\r\n",
		},
		"another host":  {func(r *http.Request) { r.Host = "b.example:81" }, "GET /v1/messages?beta=true HTTP/1.1\r\nHost: b.example:81\r\n\r\n"},
		"no path":       {func(r *http.Request) { r.URL = mustURL("http://up.example") }, "GET / HTTP/1.1\r\nHost: up.example\r\n\r\n"},
		"empty query":   {func(r *http.Request) { r.URL = mustURL("http://up.example/a?") }, "GET /a? HTTP/1.1\r\nHost: up.example\r\n\r\n"},
		"escaped path":  {func(r *http.Request) { r.URL.Path = "/a b\r\n/ü" }, "GET /a%20b%0D%0A/%C3%BC?beta=true HTTP/1.1\r\nHost: up.example\r\n\r\n"},
		"last":          {func(r *http.Request) { r.Close = true }, "GET /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nConnection: close\r\n\r\n"},
		"POST, no body": {func(r *http.Request) { r.Method = "POST" }, "POST /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nContent-Length: 0\r\n\r\n"},
		"a body that is none": {func(r *http.Request) { r.Method, r.Body = "DELETE", http.NoBody },
			"DELETE /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\n\r\n"},
		"body": {func(r *http.Request) { setBody(r, bytes.NewReader([]byte("hello"))) },
			"POST /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nContent-Length: 5\r\n\r\nhello"},
		"body in a buffer": {func(r *http.Request) { setBody(r, bytes.NewBufferString("hello")) },
			"POST /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nContent-Length: 5\r\n\r\nhello"},
		"body in parts": {func(r *http.Request) { setBody(r, parts{"he", strings.Repeat("l", 40_000), "o"}) },
			"POST /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nContent-Length: 40003\r\n\r\nhe" + strings.Repeat("l", 40_000) + "o"},
		"a head that is longer than its buffer": {
			func(r *http.Request) {
				r.Header.Set("X-Long", strings.Repeat("v", 40_000))
				setBody(r, strings.NewReader("hello"))
			},
			"POST /v1/messages?beta=true HTTP/1.1\r\nHost: up.example\r\nContent-Length: 5\r\nX-Long: " + strings.Repeat("v", 40_000) + "\r\n\r\nhello",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for at, over := range networks {
				req := newRequest(t, "GET", nil)
				tt.change(req)
				assert.Equal(t, tt.want, wire(t, over, req, len(tt.want)), at)
			}
		})
	}
}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// setBody makes r a POST of what body writes.
func setBody(r *http.Request, body io.WriterTo) {
	var all bytes.Buffer
	_, _ = body.WriteTo(&all)
	get := func() (io.ReadCloser, error) {
		return struct {
			io.Reader
			io.WriterTo
			io.Closer
		}{nil, bytes.NewReader(all.Bytes()), io.NopCloser(nil)}, nil
	}
	if p, ok := body.(parts); ok {
		get = func() (io.ReadCloser, error) { return p, nil }
	}
	r.Method, r.ContentLength, r.GetBody = "POST", int64(all.Len()), get
	r.Body, _ = get()
}

// parts is a body that is written in parts.
type parts []string

func (p parts) WriteTo(w io.Writer) (n int64, err error) {
	for _, s := range p {
		one, err := io.WriteString(w, s)
		n += int64(one)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
func (parts) Read([]byte) (int, error) { return 0, errors.New("a body in memory is written") }
func (parts) Close() error             { return nil }

// Nothing of a request is sent that would not arrive as what it is, and its body
// is closed all the same.
func TestRequestsThatAreNotSent(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(r *http.Request)
		says   string
	}{
		"CR LF in a value":       {func(r *http.Request) { r.Header.Set("X-A", "a\r\nX-Api-Key: b") }, "header X-A"},
		"LF in a value":          {func(r *http.Request) { r.Header.Set("X-A", "a\nb") }, "header X-A"},
		"CR at the end":          {func(r *http.Request) { r.Header.Set("X-A", "a\r") }, "header X-A"},
		"NUL in a value":         {func(r *http.Request) { r.Header.Set("X-A", "a\x00") }, "header X-A"},
		"DEL in a value":         {func(r *http.Request) { r.Header.Set("X-A", "a\x7f") }, "header X-A"},
		"CR LF in a name":        {func(r *http.Request) { r.Header["X-A: b\r\nX-B"] = []string{"c"} }, "header name"},
		"colon in a name":        {func(r *http.Request) { r.Header["X-A:"] = []string{"c"} }, "header name"},
		"space in a name":        {func(r *http.Request) { r.Header["Transfer-Encoding "] = []string{"chunked"} }, "header name"},
		"name that is not ASCII": {func(r *http.Request) { r.Header["X-Ä"] = []string{"c"} }, "header name"},
		"empty name":             {func(r *http.Request) { r.Header[""] = nil }, "header name"},
		"CR LF in the query":     {func(r *http.Request) { r.URL.RawQuery = "a\r\nX-B: c" }, "escaped"},
		"space in the query":     {func(r *http.Request) { r.URL.RawQuery = "a HTTP/1.1" }, "escaped"},
		"path without root":      {func(r *http.Request) { r.URL.Path = "a" }, "escaped"},
		"CR LF in the method":    {func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\nX:" }, "method"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, overPipe)
			req, _, closed := post(t, "hello")
			tt.change(req)
			got := do(t, s, req)
			require.ErrorContains(t, got.err, tt.says)
			assert.NotContains(t, got.err.Error(), "Api-Key", "values may be secret")
			assert.EqualValues(t, 1, closed.Load(), "closed bodies")
			assert.Zero(t, s.dials.Load(), "connections")
		})
	}
}

// A body whose length is not what was announced would end in the next request, or
// eat it.
func TestBodiesOfAnotherLength(t *testing.T) {
	for at, over := range networks {
		for name, tt := range map[string]struct {
			length, announced int
			says              string
		}{
			"longer":        {6, 5, "longer"},
			"much longer":   {300_000, 5, "longer"},
			"shorter":       {5, 6, "shorter"},
			"much shorter":  {5, 300_000, "shorter"},
			"large, longer": {300_001, 300_000, "longer"},
		} {
			t.Run(at+" "+name, func(t *testing.T) {
				s := newServer(t, over, func(p *peer) { _, _ = io.Copy(io.Discard, p.in) })
				req, _, closed := post(t, strings.Repeat("x", tt.length))
				req.ContentLength = int64(tt.announced)
				got := do(t, s, req)
				require.ErrorContains(t, got.err, tt.says)
				assert.EqualValues(t, 1, closed.Load(), "closed bodies")
			})
		}
	}
}

// What this transport does not do, the other one gets as it was.
func TestTheFallbackGetsTheRest(t *testing.T) {
	for name, change := range map[string]func(r *http.Request){
		"no URL":            func(r *http.Request) { r.URL = nil },
		"no headers":        func(r *http.Request) { r.Header = nil },
		"another scheme":    func(r *http.Request) { r.URL.Scheme = "ftp" },
		"opaque URL":        func(r *http.Request) { r.URL.Opaque = "//x/y" },
		"no host":           func(r *http.Request) { r.URL.Host = "" },
		"no host but port":  func(r *http.Request) { r.URL.Host = ":80" },
		"host in Unicode":   func(r *http.Request) { r.URL.Host = "münchen.example" },
		"zone":              func(r *http.Request) { r.URL.Host = "[fe80::1%25eth0]" },
		"Host with a break": func(r *http.Request) { r.Host = "a\r\nb" },
		"CONNECT":           func(r *http.Request) { r.Method = "CONNECT" },
		"an upgrade":        func(r *http.Request) { r.Header.Set("Upgrade", "websocket") },
		"in chunks":         func(r *http.Request) { r.TransferEncoding = []string{"chunked"} },
		"with trailers":     func(r *http.Request) { r.Trailer = http.Header{"X-A": nil} },
		"length unknown":    func(r *http.Request) { r.ContentLength = -1 },
		"length not said":   func(r *http.Request) { r.ContentLength = 0 },
		"no second body":    func(r *http.Request) { r.GetBody = nil },
		"a body that reads": func(r *http.Request) { r.Body = io.NopCloser(onlyReader{r.Body}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, overPipe)
			req, _, closed := post(t, "hello")
			change(req)
			require.ErrorIs(t, do(t, s, req).err, errFallback)
			require.Len(t, s.other.got, 1)
			assert.Same(t, req, s.other.got[0])
			assert.Zero(t, closed.Load(), "closing is the other's now")
		})
	}
}
