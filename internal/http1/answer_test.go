package http1_test

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// answers are complete answers as they come over the wire.
var answers = map[string]struct {
	method string // of the request; GET if empty
	raw    string
	status int
	body   string
	header http.Header
	length int64
	closes bool // the connection ends with the answer
}{
	"content length": {
		raw:    "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nContent-Length: 5\r\nX-Two: a\r\nx-TWO:  b \r\n\r\nhello",
		status: 200, body: "hello", length: 5,
		header: http.Header{"Content-Type": {"text/plain"}, "Content-Length": {"5"}, "X-Two": {"a", "b"}},
	},
	"the same content length twice": {
		raw:    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		status: 200, body: "hello", length: 5, header: http.Header{"Content-Length": {"5"}},
	},
	"lines that end in LF": {
		raw:    "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
		status: 200, body: "hello", length: 5, header: http.Header{"Content-Length": {"5"}},
	},
	"no reason": {
		raw:    "HTTP/1.1 529\r\nContent-Length: 0\r\n\r\n",
		status: 529, header: http.Header{"Content-Length": {"0"}},
	},
	"an empty value": {
		raw:    "HTTP/1.1 200 OK\r\nX-Empty:\r\nContent-Length: 0\r\n\r\n",
		status: 200, header: http.Header{"X-Empty": {""}, "Content-Length": {"0"}},
	},
	"chunks": {
		raw:    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00b;ext=\"x\"\r\n, this is A\r\n1 \t\r\n!\r\n0\r\n\r\n",
		status: 200, body: "hello, this is A!", length: -1, header: http.Header{},
	},
	"chunks in other words": {
		raw:    "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		status: 200, body: "hello", length: -1, header: http.Header{},
	},
	"no chunk but the last": {
		raw:    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		status: 200, length: -1, header: http.Header{},
	},
	"trailers": {
		raw:    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
		status: 200, body: "hello", length: -1, header: http.Header{"Trailer": {"X-Sum"}},
	},
	"interim answers": {
		raw:    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		status: 200, body: "ok", length: 2, header: http.Header{"Content-Length": {"2"}},
	},
	"as many interim answers as there may be": {
		raw:    strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 5) + ok,
		status: 200, body: "ok", length: 2, header: http.Header{"Content-Length": {"2"}},
	},
	"no content":   {raw: "HTTP/1.1 204 No Content\r\n\r\n", status: 204, header: http.Header{}},
	"not modified": {raw: "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", status: 304, header: http.Header{"Content-Length": {"10"}}},
	"no content in chunks": {
		raw:    "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
		status: 204, header: http.Header{},
	},
	"to HEAD": {
		method: "HEAD", raw: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
		status: 200, length: 10, header: http.Header{"Content-Length": {"10"}},
	},
	"to HEAD, in chunks": {
		method: "HEAD", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		status: 200, length: -1, header: http.Header{},
	},
	"until the connection closes": {
		raw:    "HTTP/1.1 200 OK\r\n\r\nhello\r\nHTTP/1.1 200 OK\r\n\r\n",
		status: 200, body: "hello\r\nHTTP/1.1 200 OK\r\n\r\n", length: -1, header: http.Header{}, closes: true,
	},
	"HTTP/1.0": {
		raw:    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
		status: 200, body: "hello", length: 5, header: http.Header{"Content-Length": {"5"}}, closes: true,
	},
	"HTTP/1.0 that lasts": {
		raw:    "HTTP/1.0 200 OK\r\nConnection: x, Keep-Alive\r\nContent-Length: 5\r\n\r\nhello",
		status: 200, body: "hello", length: 5, header: http.Header{"Connection": {"x, Keep-Alive"}, "Content-Length": {"5"}},
	},
	"the last of a connection": {
		raw:    "HTTP/1.1 200 OK\r\nConnection: CLOSE\r\nContent-Length: 5\r\n\r\nhello",
		status: 200, body: "hello", length: 5, header: http.Header{"Content-Length": {"5"}}, closes: true,
	},
	"a head of several buffers": {
		raw:    "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("v", 20_000) + "\r\nContent-Length: 5\r\n\r\nhello",
		status: 200, body: "hello", length: 5,
		header: http.Header{"X-Long": {strings.Repeat("v", 20_000)}, "Content-Length": {"5"}},
	},
	"a body of several buffers": {
		raw:    "HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + strings.Repeat("b", 20_000),
		status: 200, body: strings.Repeat("b", 20_000), length: 20_000, header: http.Header{"Content-Length": {"20000"}},
	},
	"chunks of several buffers": {
		raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
			"4e20\r\n" + strings.Repeat("c", 20_000) + "\r\n2711\r\n" + strings.Repeat("d", 10_001) + "\r\n0\r\n\r\n",
		status: 200, body: strings.Repeat("c", 20_000) + strings.Repeat("d", 10_001), length: -1, header: http.Header{},
	},
}

// Wherever the bytes of an answer are torn apart, it is the same answer, and the
// connection serves the next request if it may.
func TestAnswers(t *testing.T) {
	for name, tt := range answers {
		t.Run(name, func(t *testing.T) {
			step := 1
			if len(tt.raw) > 4000 { // around the ends of buffers, and here and there
				step = 1021
			}
			for cut := 0; cut < len(tt.raw); cut += step {
				scripts := []func(*peer){func(p *peer) {
					p.request()
					p.say(tt.raw[:cut])
					p.say(tt.raw[cut:])
					if !tt.closes {
						p.serve(ok)
						p.untilClosed()
					}
				}}
				if tt.closes {
					scripts = append(scripts, func(p *peer) { p.serve(ok); p.untilClosed() })
				}
				s := newServer(t, overPipe, scripts...)
				got := do(t, s, newRequest(t, tt.method, nil))
				require.NoError(t, got.err, "cut at %d", cut)
				require.Equal(t, tt.status, got.StatusCode)
				require.Equal(t, tt.body, got.body, "cut at %d", cut)
				require.Equal(t, tt.header, got.Header)
				require.Equal(t, tt.length, got.ContentLength)
				require.Equal(t, tt.closes, got.Close)
				s.requireOK(t)
				require.EqualValues(t, len(scripts), s.dials.Load(), "connections, cut at %d", cut)
			}
		})
	}
}

// refused are answers that nobody may be shown, or not to their end.
var refused = map[string]struct{ raw, says string }{
	"nothing":                      {"", "waiting for the answer"},
	"an end in the status line":    {"HTTP/1.1 200", "unexpected EOF"},
	"an end in the head":           {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", "unexpected EOF"},
	"an empty line":                {"\r\n\r\n", "not HTTP/1.1"},
	"another protocol":             {"SSH-2.0-OpenSSH_9.9\r\n\r\n", "not HTTP/1.1"},
	"HTTP/2":                       {"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "not HTTP/1.1"},
	"HTTP/1.2":                     {"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n", "not HTTP/1.1"},
	"no status":                    {"HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "not HTTP/1.1"},
	"status of two digits":         {"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", "not HTTP/1.1"},
	"status of four digits":        {"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", "not HTTP/1.1"},
	"status below 100":             {"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", "not HTTP/1.1"},
	"status with a sign":           {"HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n", "not HTTP/1.1"},
	"folded header":                {"HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 0\r\n\r\n", "malformed"},
	"header before its name":       {"HTTP/1.1 200 OK\r\n X-A: 1\r\nContent-Length: 0\r\n\r\n", "malformed"},
	"header without colon":         {"HTTP/1.1 200 OK\r\nX-A\r\nContent-Length: 0\r\n\r\n", "malformed"},
	"header without name":          {"HTTP/1.1 200 OK\r\n: 1\r\nContent-Length: 0\r\n\r\n", "malformed"},
	"space before the colon":       {"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", "malformed"},
	"NUL in a value":               {"HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 0\r\n\r\n", "malformed"},
	"CR in a value":                {"HTTP/1.1 200 OK\r\nX-A: a\rX-B: b\r\nContent-Length: 0\r\n\r\n", "malformed"},
	"two CRs at the end":           {"HTTP/1.1 200 OK\r\nX-A: a\r\r\nContent-Length: 0\r\n\r\n", "malformed"},
	"two content lengths":          {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "two content lengths"},
	"a list of content lengths":    {"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na", "not a number"},
	"empty content length":         {"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", "not a number"},
	"negative content length":      {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not a number"},
	"signed content length":        {"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na", "not a number"},
	"content length in hex":        {"HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\na", "not a number"},
	"content length of 2^63":       {"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\na", "not a number"},
	"chunks and a length":          {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "both chunks and a content length"},
	"chunks and bad length":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n0\r\n\r\n", "not a number"},
	"gzip":                         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer encoding"},
	"gzip in chunks":               {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer encoding"},
	"chunked twice":                {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer encoding"},
	"too many interim answers":     {strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 6) + ok, "too many 1xx"},
	"a head that is too long":      {"HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 64<<10) + "\r\nContent-Length: 0\r\n\r\n", "too long"},
	"a head that never ends":       {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: a\r\n", 10_000), "too long"},
	"a short body":                 {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "unexpected EOF"},
	"an end in a chunk":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell", "unexpected EOF"},
	"an end behind a chunk":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello", "unexpected EOF"},
	"an end between chunks":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "unexpected EOF"},
	"an end in the last chunk":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", "unexpected EOF"},
	"an end in trailers":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: a\r\n", "unexpected EOF"},
	"no chunk size":                {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", "size is not a number"},
	"a chunk size with a sign":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", "size is not a number"},
	"a chunk size like in Go":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", "size is not a number"},
	"a chunk size of 2^64":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\nhello\r\n0\r\n\r\n", "size is not a number"},
	"a chunk line that ends in LF": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", "CR LF"},
	"a chunk line that is LF":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\nhello\r\n0\r\n\r\n", "CR LF"},
	"CR in a chunk line":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r;\r\nhello\r\n0\r\n\r\n", "CR LF"},
	"a chunk longer than its size": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n", "longer than its size"},
	"a chunk line too long":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("x", 5000) + "\r\nhello\r\n0\r\n\r\n", "too long"},
	"chunks of nothing but extensions": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 20) + "0\r\n\r\n", "overhead"},
	"a malformed trailer":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX A: a\r\n\r\n", "malformed"},
	"a trailer that ends LF": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: a\n\r\n", "CR LF"},
	"a last line that is LF": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n", "CR LF"},
	"trailers too long":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: " + strings.Repeat("a", 5000) + "\r\n\r\n", "too long"},
}

// What is malformed or cut is an error, never a clean end, and its connection is
// not used again.
func TestAnswersThatAreRefused(t *testing.T) {
	for name, tt := range refused {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, overTCP, func(p *peer) {
				p.request()
				_, _ = io.WriteString(p, tt.raw) // the client may leave before all is written
			}, func(p *peer) { p.serve(ok); p.untilClosed() })
			got := s.get(t)
			require.ErrorContains(t, got.err, tt.says)
			require.NotErrorIs(t, got.err, io.EOF)
			s.requireOK(t)
			assert.EqualValues(t, 2, s.dials.Load(), "connections")
		})
	}
}

func TestAResetInTheMiddleIsAnError(t *testing.T) {
	for name, head := range map[string]string{
		"content length": "Content-Length: 100\r\n",
		"chunks":         "Transfer-Encoding: chunked\r\n",
		"until close":    "",
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, overTCP, func(p *peer) {
				p.request()
				p.say("HTTP/1.1 200 OK\r\n" + head + "\r\n5\r\nhello\r\n")
				_ = p.Conn.(*net.TCPConn).SetLinger(0) // closes with a reset
			})
			got := s.get(t)
			require.ErrorContains(t, got.err, "connection lost while reading the answer")
		})
	}
}

// 101 is final: what the connection is then is not for this package.
func TestSwitchingProtocols(t *testing.T) {
	s := newServer(t, overTCP, func(p *peer) {
		p.request()
		p.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nhello")
	}, func(p *peer) { p.serve(ok); p.untilClosed() })
	got := s.get(t)
	require.NoError(t, got.err)
	assert.Equal(t, 101, got.StatusCode)
	assert.Equal(t, "hello", got.body)
	s.requireOK(t)
}

// A read returns what has come, and never waits for more. The end comes with the
// last bytes if it came with them.
func TestReadsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := make(chan string)
		s := newServer(t, overPipe, func(p *peer) {
			p.request()
			for part := range next {
				p.say(part)
			}
			p.untilClosed()
		})
		parts := []struct {
			raw, data string
			end       bool
		}{
			{"5\r\nfirst\r\n", "first", false},
			{"6\r\nsecond", "second", false},
			{"\r\n5\r\nth", "th", false},
			{"ird\r\n1\r\n.\r\n6\r\nfour", "ird.four", false},
			{"th\r", "th", false},
			{"\n4\r\nlast\r\n0\r\n\r\n", "last", true},
		}
		go func() { next <- "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" }()
		req := newRequest(t, "GET", nil)
		resp, err := s.RoundTrip(req)
		require.NoError(t, err)
		buf := make([]byte, 8192)
		for _, part := range parts {
			go func() { next <- part.raw }()
			n, err := resp.Body.Read(buf)
			assert.Equal(t, part.data, string(buf[:n]))
			if part.end {
				assert.Equal(t, io.EOF, err)
			} else {
				assert.NoError(t, err)
			}
		}
		close(next)
		n, err := resp.Body.Read(buf)
		assert.Zero(t, n)
		assert.Equal(t, io.EOF, err)
		require.NoError(t, resp.Body.Close())
		s.CloseIdleConnections()
		synctest.Wait()
	})
}

// The reader's buffer may be of any size.
func TestReadsOfAnySize(t *testing.T) {
	for name, tt := range answers {
		if len(tt.raw) > 4000 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			for size := 1; size < 12; size++ {
				s := newServer(t, overTCP, func(p *peer) { p.serve(tt.raw) })
				resp, err := s.RoundTrip(newRequest(t, tt.method, nil))
				require.NoError(t, err)
				n, err := resp.Body.Read(nil)
				require.Zero(t, n)
				if err != nil { // http.NoBody says so at once
					require.Equal(t, io.EOF, err)
				}
				var got strings.Builder
				_, err = io.CopyBuffer(onlyWriter{&got}, onlyReader{resp.Body}, make([]byte, size))
				require.NoError(t, err, "reads of "+strconv.Itoa(size))
				require.Equal(t, tt.body, got.String(), "reads of "+strconv.Itoa(size))
			}
		})
	}
}

type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)
