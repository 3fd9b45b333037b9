package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
)

// endless gives the same bytes for ever.
type endless struct {
	unit string
	rest string
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if e.rest == "" {
			e.rest = e.unit
		}
		c := copy(p[n:], e.rest)
		n, e.rest = n+c, e.rest[c:]
	}
	return n, nil
}

// pour sends to the relay what it takes of a request, and returns how much that was,
// the answer, and whether the connection was closed behind it.
func (r *relay) pour(wire io.Reader) (sent int64, got reply, closed bool) {
	r.t.Helper()
	c := r.dial()
	poured := make(chan int64)
	go func() {
		n, _ := io.Copy(struct{ io.Writer }{c}, wire) // until the relay closes
		poured <- n
	}()
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodPost})
	require.NoError(r.t, err)
	got = readReply(resp)
	_, err = in.ReadByte()
	closed = isClosed(err)
	_ = c.Close()
	return <-poured, got, closed
}

// Headers beyond the limit are refused before they are in memory, whatever form they
// have; net/http answers itself, in plain text.
func testHeaderBlocks(t *testing.T) {
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	got, _ := r.talk(postOf(ask(opus, false), "X-Large: "+strings.Repeat("x", 60<<10)+"\r\n"), 1)
	require.Len(t, got, 1)
	requireServed(t, got[0], false)
	assert.NotContains(t, up.requireNext(t).head, "X-Large")

	before := heapInUse()
	for name, wire := range map[string]func() io.Reader{
		"a header of 1 MiB": func() io.Reader {
			return strings.NewReader(postHead + "X-A: " + strings.Repeat("a", 1<<20) + "\r\n\r\n")
		},
		"100,000 headers":      func() io.Reader { return strings.NewReader(postHead + strings.Repeat("X-A: b\r\n", 100_000) + "\r\n") },
		"headers without end":  func() io.Reader { return io.MultiReader(strings.NewReader(postHead), &endless{unit: "X-A: b\r\n"}) },
		"a header without end": func() io.Reader { return io.MultiReader(strings.NewReader(postHead+"X-A: "), &endless{unit: "a"}) },
		"a name without end":   func() io.Reader { return io.MultiReader(strings.NewReader(postHead), &endless{unit: "a"}) },
		"a path without end":   func() io.Reader { return io.MultiReader(strings.NewReader("POST /v1/"), &endless{unit: "a"}) },
		"a little over the limit": func() io.Reader {
			return strings.NewReader(postHead + "X-A: " + strings.Repeat("a", 69<<10) + "\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					_, got, closed := r.pour(wire())
					assert.Equal(t, http.StatusRequestHeaderFieldsTooLarge, got.status)
					assert.Less(t, len(got.body), 100, got.body)
					assert.True(t, closed, "the connection stays open")
				})
			}
			wg.Wait()
			requireServedStill(t, r)
			up.requireNext(t)
		})
	}
	assert.Zero(t, up.calls(), "the provider was asked")
	assert.Less(t, heapInUse(), before+8<<20, "memory is not given back")
}

// heapInUse is what is reachable.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // pools let go of what they hold in two steps
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A body far beyond the limit is read to the limit and no further, and whoever streams
// meanwhile does not notice.
func testBodiesWithoutEnd(t *testing.T) {
	up := newStepper(t, "a")
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	answered := make(chan *http.Response, 1)
	go func() { answered <- r.open(t.Context(), call{body: ask(opus, true)}) }()
	up.send(t, startFrame)
	neighbour := <-answered
	read(t, neighbour, startFrame)
	const size, limit = 64 << 10, 32 << 20
	chunk := fmt.Sprintf("%x\r\n%s\r\n", size, strings.Repeat(" ", size))
	for name, tt := range map[string]struct {
		wire io.Reader
		most int64 // that the relay reads, not counting what the sockets hold
	}{
		"33 MiB, declared": {strings.NewReader(postOf(strings.Repeat(" ", 33<<20))), 1 << 20},
		"chunked":          {io.MultiReader(strings.NewReader(postHead+"Transfer-Encoding: chunked\r\n\r\n"), &endless{unit: chunk}), limit},
	} {
		t.Run(name, func(t *testing.T) {
			sent, got, closed := r.pour(tt.wire)
			requireError(t, got, 413, "request_too_large")
			assert.True(t, closed, "the connection stays open")
			assert.Less(t, sent, tt.most+16<<20, "the relay read on")
			rec := r.log.next(t)
			assert.Equal(t, "refused", rec["outcome"])
			assert.InDelta(t, 0, rec["attempts"], 0)
			up.send(t, deltaFrame)
			read(t, neighbour, deltaFrame)
		})
	}
	up.send(t, stopFrame)
	read(t, neighbour, stopFrame)
	close(up.frames)
	assert.Equal(t, "served", r.log.next(t)["outcome"])
}

// Nobody is left to be told.
func testBodiesOfClientsThatLeave(t *testing.T) {
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for name, wire := range map[string]string{
		"declared": postHead + "Content-Length: 1000\r\n\r\n" + ask(opus, false),
		"chunked":  postHead + "Transfer-Encoding: chunked\r\n\r\n1000\r\n" + ask(opus, false),
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			_, err := io.WriteString(c, wire)
			require.NoError(t, err)
			require.NoError(t, c.Close())
			rec := r.log.next(t)
			assert.Equal(t, "refused", rec["outcome"])
			assert.InDelta(t, 400, rec["status"], 0)
			assert.InDelta(t, 0, rec["attempts"], 0)
		})
	}
	assert.Zero(t, up.calls(), "the provider was asked")
	requireServedStill(t, r)
}

// A key is chosen when the request is there, not while it comes.
func testNoKeyIsHeldForABody(t *testing.T) {
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	wire := postOf(ask(opus, false))
	c := r.dial()
	_, err := io.WriteString(c, wire[:len(wire)-10])
	require.NoError(t, err)
	require.Eventually(t, func() bool { return r.handler.Active() == 1 }, patient, time.Millisecond)
	assert.Empty(t, r.inFlight())
	requireServedStill(t, r)
	_, err = io.WriteString(c, wire[len(wire)-10:])
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	requireServed(t, readReply(resp), false)
}

// What Go's server lets pass although readers differ about it is one request at most,
// and the provider gets one that leaves no doubt.
func testOddFramingIsWrittenAnew(t *testing.T) {
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	body := ask(opus, false)
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	for name, tt := range map[string]struct {
		wire   string
		asked  int  // of the provider
		closed bool // whatever comes next is not read
	}{
		"a folded header":               {postHead + "X-App: one\r\n two\r\n" + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body), 1, false},
		"lines that end in LF":          {strings.ReplaceAll(postHead, "\r\n", "\n") + fmt.Sprintf("Content-Length: %d\n\n%s", len(body), body), 1, false},
		"a folded transfer coding":      {postHead + "Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n\r\n" + chunked, 1, true},
		"two ways to say the length":    {postHead + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + chunked, 1, true},
		"the length twice, the same":    {postHead + fmt.Sprintf("Content-Length: %d\r\nContent-Length: %[1]d\r\n\r\n%s", len(body), body), 1, false},
		"a trailer":                     {postHead + "Transfer-Encoding: chunked\r\nTrailer: X-App\r\n\r\n" + strings.TrimSuffix(chunked, "\r\n") + "X-App: late\r\n\r\n", 1, true},
		"chunked in HTTP/1.0":           {strings.Replace(postHead, "HTTP/1.1", "HTTP/1.0", 1) + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", 0, true},
		"HTTP/1.0":                      {strings.Replace(postHead, "HTTP/1.1", "HTTP/1.0", 1) + fmt.Sprintf("Connection: keep-alive\r\nContent-Length: %d\r\n\r\n%s", len(body), body), 1, true},
		"a chunk line that ends in LF":  {postHead + "Transfer-Encoding: chunked\r\n\r\n" + strings.Replace(chunked, "\r\n", "\n", 1), 0, true},
		"a chunk that ends in LF":       {postHead + "Transfer-Encoding: chunked\r\n\r\n" + strings.Replace(chunked, "}\r\n", "}\n", 1), 0, true},
		"chunked twice":                 {postHead + "Transfer-Encoding: chunked, chunked\r\n\r\n" + chunked, 0, true},
		"a coding before":               {postHead + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked, 0, true},
		"a coding after":                {postHead + "Transfer-Encoding: chunked, identity\r\n\r\n" + chunked, 0, true},
		"two transfer codings":          {postHead + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked, 0, true},
		"a vertical tab in the coding":  {postHead + "Transfer-Encoding: \x0bchunked\r\n\r\n" + chunked, 0, true},
		"a plus before the length":      {postHead + fmt.Sprintf("Content-Length: +%d\r\n\r\n%s", len(body), body), 0, true},
		"a list of lengths":             {postHead + fmt.Sprintf("Content-Length: %d, %[1]d\r\n\r\n%s", len(body), body), 0, true},
		"a header before its name":      {postHead + ": x\r\nContent-Length: 0\r\n\r\n", 0, true},
		"a folded line as the first":    {strings.Replace(postHead, "Host:", " X: y\r\nHost:", 1) + "Content-Length: 0\r\n\r\n", 0, true},
		"a lone CR in a header":         {postHead + fmt.Sprintf("X-App: a\rTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n%s", len(body), body), 0, true},
		"a chunk of a negative size":    {postHead + "Transfer-Encoding: chunked\r\n\r\n-5\r\n" + chunked, 0, true},
		"a chunk of a size beyond":      {postHead + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + chunked, 0, true},
		"a chunk size with 0x":          {postHead + "Transfer-Encoding: chunked\r\n\r\n0x" + chunked, 0, true},
		"a chunk size with white space": {postHead + "Transfer-Encoding: chunked\r\n\r\n " + chunked, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, closed := r.talk(tt.wire+"GET /livez HTTP/1.1\r\nHost: relay\r\n\r\n", 2)
			require.NotEmpty(t, got)
			if tt.closed {
				assert.Len(t, got, 1, "the bytes behind it were served as a request")
				assert.True(t, closed, "the connection stays open")
			}
			if tt.asked == 0 {
				assert.GreaterOrEqual(t, got[0].status, 400)
				assert.LessOrEqual(t, got[0].status, 501)
				assert.Zero(t, up.calls(), "the provider was asked")
				return
			}
			requireServed(t, got[0], false)
			seen := up.requireNext(t)
			assert.Zero(t, up.calls(), "the provider was asked twice")
			assert.Equal(t, body, seen.body)
			h := headersOf(t, seen) // each line whole
			assert.Equal(t, []string{itoa(len(body))}, h["Content-Length"])
			assert.NotContains(t, h, "Transfer-Encoding")
			assert.NotContains(t, h, "Trailer")
			assert.NotContains(t, seen.head, "late")
		})
	}
	requireServedStill(t, r)
}

// Chunks that say little and cost much are cut, or cost little.
func testTinyChunks(t *testing.T) {
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	head := postHead + "Transfer-Encoding: chunked\r\n\r\n"
	for name, wire := range map[string]io.Reader{
		"a long extension":         strings.NewReader(head + "1;x=" + strings.Repeat("y", 1<<20) + "\r\n \r\n0\r\n\r\n"),
		"an extension without end": io.MultiReader(strings.NewReader(head+"1;x="), &endless{unit: "y"}),
		"long extensions":          io.MultiReader(strings.NewReader(head), &endless{unit: "1;x=" + strings.Repeat("y", 2000) + "\r\n \r\n"}),
		"short extensions":         io.MultiReader(strings.NewReader(head), &endless{unit: "1;x=" + strings.Repeat("y", 50) + "\r\n \r\n"}),
		"sizes with many zeros":    io.MultiReader(strings.NewReader(head), &endless{unit: strings.Repeat("0", 60) + "1\r\n \r\n"}),
	} {
		t.Run(name, func(t *testing.T) {
			sent, got, closed := r.pour(wire)
			requireError(t, got, 400, "invalid_request_error")
			assert.True(t, closed, "the connection stays open")
			assert.Less(t, sent, int64(16<<20), "the relay read on")
			assert.InDelta(t, 0, r.log.next(t)["attempts"], 0)
		})
	}
	assert.Zero(t, up.calls(), "the provider was asked")
	const chunks = 10 * tries
	t.Run(itoa(chunks)+" chunks of one byte", func(t *testing.T) {
		body := ask(opus, false)
		body = body[:len(body)-1] + strings.Repeat(" ", chunks-len(body)) + "}"
		var wire strings.Builder
		wire.WriteString(head)
		for i := range len(body) {
			wire.WriteString("1\r\n" + body[i:i+1] + "\r\n")
		}
		start := time.Now()
		_, got, _ := r.pour(strings.NewReader(wire.String() + "0\r\n\r\n"))
		requireServed(t, got, false)
		assert.Less(t, time.Since(start), patient/2, "for %d bytes", chunks)
		assert.Equal(t, body, up.requireNext(t).body)
		r.log.next(t)
	})
	requireServedStill(t, r)
}

// What a client declares to be of the connection goes before the relay adds its own.
func testHopByHopAbuse(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg        provider.Config
		credential string // the header, and what it must hold
		value      string
	}{
		"x-api-key": {provider.Config{}, "X-Api-Key", keyOf("a", 1)},
		"bearer":    {provider.Config{Auth: "bearer"}, "Authorization", "Bearer " + keyOf("a", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", answersWell)
			up.Auth = tt.cfg.Auth
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			got, closed := r.talk(postOf(ask(opus, false),
				"Connection: x-api-key, anthropic-version, authorization, content-type, content-length, host, close\r\n",
				"Keep-Alive: timeout=5\r\n", "Proxy-Connection: keep-alive\r\n"), 1)
			require.Len(t, got, 1)
			requireServed(t, got[0], false)
			assert.True(t, closed, "the client asked for the end of its connection")
			h := headersOf(t, up.requireNext(t))
			assert.Equal(t, []string{tt.value}, h[tt.credential])
			assert.Equal(t, []string{"2023-06-01"}, h["Anthropic-Version"])
			assert.Equal(t, []string{"application/json"}, h["Content-Type"])
			for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection"} {
				assert.NotContains(t, h, name)
			}
			requireServedStill(t, r)
		})
	}
}

// What a client says of its address is neither believed nor passed on: there is no
// peer whose word on it is taken.
func testSpoofedAddresses(t *testing.T) {
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	spoofed := []string{
		"X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-Host: localhost\r\n", "X-Forwarded-Proto: https\r\n", "X-Forwarded-User: alice\r\n",
		"X-Forwarded-Prefix: /admin\r\n", "Forwarded: for=127.0.0.1;host=localhost\r\n", "X-Real-IP: 127.0.0.1\r\n", "True-Client-IP: 127.0.0.1\r\n",
		"CF-Connecting-IP: 127.0.0.1\r\n", "X_Forwarded_For: 127.0.0.1\r\n", "X_Real_IP: 127.0.0.1\r\n", "X_Api_Key: " + aliceToken + "\r\n",
		"X-Original-URL: /v1/models\r\n", "X-HTTP-Method-Override: GET\r\n", "Via: 1.1 localhost\r\n",
	}
	got, _ := r.talk(postOf(ask(opus, false), spoofed...), 1)
	require.Len(t, got, 1)
	requireServed(t, got[0], false)
	seen := up.requireNext(t)
	for _, line := range spoofed {
		name, _, _ := strings.Cut(line, ":")
		assert.NotContains(t, strings.ToLower(seen.head), strings.ToLower(name))
	}
	assert.NotContains(t, seen.head, "127.0.0.1\r\n")
	r.log.next(t)
	t.Run("is no credential", func(t *testing.T) {
		wire := strings.Replace(postOf(ask(opus, false), spoofed...), "\r\nX-Api-Key: "+aliceToken, "", 1)
		got, _ := r.talk(wire, 1)
		require.Len(t, got, 1)
		requireError(t, got[0], 401, "authentication_error")
	})
	t.Run("is no other host", func(t *testing.T) {
		wire := strings.Replace(postOf(ask(opus, false), spoofed...), "Host: relay", "Host: evil.example", 1)
		got, _ := r.talk(wire, 1)
		require.Len(t, got, 1)
		requireError(t, got[0], 403, "permission_error")
	})
	assert.Zero(t, up.calls(), "the provider was asked")
}

// Headers of tomorrow reach the provider, and are no mistake of the client's.
func testUnknownHeadersPass(t *testing.T) {
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	future := http.Header{
		"Anthropic-Beta":            {"hologram-2031-02-03,teleport-2031-02-03", "time-travel-2031-02-03"},
		"Anthropic-Version":         {"2031-02-03"},
		"Anthropic-Hologram":        {"on; depth=3"},
		"X-Claude-Code-Hologram-Id": {"h1"},
	}
	got := r.do(call{header: future, path: "/v1/messages?beta=true&hologram=1", body: ask("claude-hologram-9", false)})
	requireServed(t, got, false)
	seen := up.requireNext(t)
	assert.True(t, strings.HasPrefix(seen.head, "POST /v1/messages?beta=true&hologram=1 HTTP/1.1\r\n"), seen.head)
	h := headersOf(t, seen)
	for name, values := range future {
		assert.Equal(t, values, h[name], name)
	}
}
