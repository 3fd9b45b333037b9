package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
)

// bounded is a relay on pipes with these bounds, before one provider.
func bounded(t *testing.T, cfg proxy.Config, play act) (*relay, *actor) {
	t.Helper()
	net := newPipes()
	a := net.actor(t, "a", play)
	return newRelay(t, setup{Config: cfg, upstreams: []upstream{a.upstream}, pipes: net}), a
}

// replies answers in JSON when this time is over.
func replies(d time.Duration) act {
	return func(w http.ResponseWriter, _ *http.Request, _ asked) {
		time.Sleep(d)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, message)
	}
}

const (
	streamHead = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n" +
		"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
	streamWord = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"word\"}}\n\n"
	streamEnd  = "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":3}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
)

// speaks answers with a stream of a word a second, until end is closed.
func speaks(end <-chan struct{}) act {
	return func(w http.ResponseWriter, r *http.Request, _ asked) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, streamHead)
		for {
			w.(http.Flusher).Flush()
			select {
			case <-time.After(time.Second):
				_, _ = io.WriteString(w, streamWord)
			case <-end:
				_, _ = io.WriteString(w, streamEnd)
				return
			case <-r.Context().Done():
				return
			}
		}
	}
}

// requireShed checks that a request was refused to protect the others, and says when to
// come again.
func requireShed(t testing.TB, got reply) {
	t.Helper()
	requireError(t, got, 529, "overloaded_error")
	seconds, err := strconv.Atoi(got.header.Get("Retry-After"))
	require.NoError(t, err)
	assert.True(t, 1 <= seconds && seconds <= 3, "retry-after %d", seconds)
	assert.Empty(t, got.header.Get("X-Should-Retry"))
}

// Three times what can be served is offered. What can be served is, what cannot is told
// so at once, a stream that ran before is not disturbed, and it is over when it is over.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		r, a := bounded(t, proxy.Config{Requests: 31}, speaks(end))
		running := make(chan reply, 1)
		go func() { running <- r.send(call{body: ask(opus, true)}) }()
		time.Sleep(time.Second)
		a.fares(replies(200 * time.Millisecond))
		offer := func(perSecond int, length time.Duration) (served, refused int) {
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range int(length.Seconds() * float64(perSecond)) {
				time.Sleep(time.Second / time.Duration(perSecond))
				wg.Go(func() {
					began := time.Now()
					got := r.send(call{body: ask(opus, false)})
					mu.Lock()
					defer mu.Unlock()
					if got.status == http.StatusOK {
						served++
						return
					}
					refused++
					requireShed(t, got)
					assert.Less(t, time.Since(began), 50*time.Millisecond, "a refusal takes no time")
				})
			}
			wg.Wait()
			return served, refused
		}
		served, refused := offer(100, time.Second)
		require.Equal(t, 100, served)
		require.Zero(t, refused)
		served, refused = offer(450, 5*time.Second)
		assert.GreaterOrEqual(t, served, 135*5, "nine tenths of the 150 a second that can be")
		assert.Equal(t, 450*5, served+refused)
		served, refused = offer(100, 2*time.Second)
		assert.Equal(t, 200, served, "after it")
		assert.Zero(t, refused)

		close(end)
		got := <-running
		requireServed(t, got, true)
		assert.GreaterOrEqual(t, strings.Count(got.body, "text_delta"), 8)
	})
}

// A small request that is refused does not cost its client the connection, a large one
// does: its body is not read.
func TestConnectionsOfRequestsThatAreShed(t *testing.T) {
	for name, tt := range map[string]struct {
		size   int
		closed bool
	}{"small": {1000, false}, "large": {1 << 20, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				end := make(chan struct{})
				r, a := bounded(t, proxy.Config{Requests: 1}, speaks(end))
				r.open(t.Context(), call{body: ask(opus, true)})
				got := r.send(call{body: ask(opus, false) + strings.Repeat(" ", tt.size)})
				requireShed(t, got)
				assert.Equal(t, tt.closed, got.closed)
				assert.Len(t, a.got(), 1)
				for _, path := range []string{"/livez", "/readyz"} {
					assert.Equal(t, 200, r.send(call{method: http.MethodGet, path: path}).status, path)
				}
				close(end)
				time.Sleep(time.Minute)
				a.fares(replies(0))
				requireServed(t, r.send(call{body: ask(opus, false)}), false)
			})
		})
	}
}

// Bodies in memory are bounded, until their answers begin: a request that there is no
// room for is refused before its body is read, or where it does not say how long that
// is, as soon as it is too much.
func TestBodiesInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		r, a := bounded(t, proxy.Config{BodiesBytes: 1 << 20}, replies(time.Minute))
		large := ask(opus, false) + strings.Repeat(" ", 600_000)
		var wg sync.WaitGroup
		wg.Go(func() { requireServed(t, r.send(call{body: large}), false) })
		time.Sleep(time.Second)

		got := r.send(call{body: large})
		requireShed(t, got)
		assert.True(t, got.closed)
		chunked := r.request(call{body: large})
		chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader(large)), -1
		resp, err := r.client.RoundTrip(chunked)
		require.NoError(t, err)
		requireShed(t, readReply(resp))
		assert.Len(t, a.got(), 1)
		a.fares(replies(0))
		// served asks again where a provider that has answered still reads: until it lets
		// go of the body, that is in memory.
		served := func(ask func() reply) {
			t.Helper()
			got := ask()
			for try := 0; got.status == 529 && try < 10; try++ {
				time.Sleep(time.Second)
				got = ask()
			}
			requireServed(t, got, false)
		}
		sends := func(body string) func() reply { return func() reply { return r.send(call{body: body}) } }
		served(sends(ask(opus, false))) // it fits
		wg.Wait()

		// One whose answer has begun holds nothing.
		a.fares(speaks(end))
		running := r.open(t.Context(), call{body: strings.Replace(large, "false", "true", 1)})
		a.fares(replies(0))
		served(sends(large))
		served(func() reply {
			chunked := r.request(call{body: large})
			chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader(large)), -1
			resp, err := r.client.RoundTrip(chunked)
			require.NoError(t, err)
			return readReply(resp)
		})
		// One that is larger than all there may be is let in alone.
		served(sends(large + strings.Repeat(" ", 1<<20)))
		close(end)
		body, err := io.ReadAll(running.Body)
		require.NoError(t, err)
		assert.True(t, strings.HasSuffix(string(body), "data: {\"type\":\"message_stop\"}\n\n"))
	})
}

// A body that does not say how long it is counts once, in however many pieces it comes:
// alone it may take all there is, and more, and beside another what is left.
func TestChunkedBodiesCountOnce(t *testing.T) {
	const most = 1 << 20
	for name, tt := range map[string]struct {
		size   int
		beside int // bytes of a body that is in memory
		status int
	}{
		"more than half, alone":     {most * 3 / 4, 0, 200},
		"more than all, alone":      {2 * most, 0, 200},
		"what is left":              {most / 2, most / 4, 200},
		"more than half, and fits":  {most * 5 / 8, most / 4, 200},
		"more than what is left":    {most, most / 4, 529},
		"more than all, not alone":  {2 * most, 1000, 529},
		"not more than a beginning": {1000, most - 1000, 529},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, a := bounded(t, proxy.Config{BodiesBytes: most}, replies(time.Minute))
				padded := func(size int) string { return ask(opus, false) + strings.Repeat(" ", size-len(ask(opus, false))) }
				var wg sync.WaitGroup
				if tt.beside > 0 {
					wg.Go(func() { requireServed(t, r.send(call{body: padded(tt.beside)}), false) })
					time.Sleep(time.Second)
				}
				a.fares(replies(0))
				body := padded(tt.size)
				sent, pieces := io.Pipe()
				go func() {
					defer func() { _ = pieces.Close() }()
					for at := 0; at < len(body); at += 100_000 {
						if _, err := io.WriteString(pieces, body[at:min(at+100_000, len(body))]); err != nil {
							return // it is refused
						}
						time.Sleep(time.Second)
					}
				}()
				req := r.request(call{body: body})
				req.Body, req.ContentLength = sent, -1
				resp, err := r.client.RoundTrip(req)
				require.NoError(t, err)
				got := readReply(resp)
				require.Equal(t, tt.status, got.status, got.body)
				wg.Wait()
				if tt.status == 200 {
					assert.Equal(t, body, a.got()[len(a.got())-1].body)
				}
			})
		})
	}
}

// C07: a body that trickles is told so in time, whether it falls below the rate at
// once, later, or only takes too long in all. No key is taken meanwhile.
func testTrickledBodies(t *testing.T) {
	for name, tt := range map[string]struct {
		piece  int
		every  time.Duration
		length int
		end    time.Duration
		early  time.Duration // by how much it may be sooner
	}{
		"a byte every ten seconds":     {1, 10 * time.Second, 1000, 30 * time.Second, 8 * time.Second},
		"half the rate":                {5 * 512, 5 * time.Second, 1 << 20, 60 * time.Second, 10 * time.Second},
		"the rate, but for very long":  {10 * 2048, 10 * time.Second, 10 << 20, 10 * time.Minute, 10 * time.Second},
		"first fast, and then a crawl": {2048, 29 * time.Second, 10 << 20, 34 * time.Second, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := overPipe(t, roundTrip(func(*http.Request) (*http.Response, error) { panic("the provider was asked") }))
				start := time.Now()
				_, err := io.WriteString(c, postHead+fmt.Sprintf("Content-Length: %d\r\n\r\n", tt.length))
				require.NoError(t, err)
				gone := make(chan struct{})
				go func() {
					defer close(gone)
					for {
						if _, err := io.WriteString(c, strings.Repeat(" ", tt.piece)); err != nil {
							return
						}
						time.Sleep(tt.every)
					}
				}()
				in := bufio.NewReader(c)
				resp, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				took := time.Since(start)
				requireError(t, readReply(resp), 408, "invalid_request_error")
				_, err = in.ReadByte()
				require.ErrorIs(t, err, io.EOF, "the connection stays open")
				<-gone
				assert.LessOrEqual(t, took, tt.end+3*time.Second)
				assert.GreaterOrEqual(t, took, tt.end-tt.early)
			})
		})
	}
}

// A request that takes longer than it may is ended, and nobody else is blamed.
func TestTotalTime(t *testing.T) {
	cfg := proxy.Config{TotalTime: time.Minute}
	t.Run("stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, _ := bounded(t, cfg, speaks(nil))
			began := time.Now()
			got := r.do(call{body: ask(opus, true)})
			assert.InDelta(t, 60, time.Since(began).Seconds(), 1)
			require.NoError(t, got.err)
			assert.Equal(t, 200, got.status)
			assert.Contains(t, got.body, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"timeout_error\",\"message\":\"the request took longer than the relay allows\"}")
			assert.NotContains(t, got.body, "message_stop")
			assert.Zero(t, r.lane("a", opus).Status().Failures)
		})
	})
	t.Run("before the first token", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a := bounded(t, cfg, replies(time.Hour))
			began := time.Now()
			requireError(t, r.do(call{body: ask(opus, true)}), 504, "timeout_error")
			assert.InDelta(t, 60, time.Since(began).Seconds(), 1)
			assert.Len(t, a.got(), 1, "it is not tried again")
		})
	})
}

// The largest event of a stream is what the configuration says.
func TestFrameBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		play := func(w http.ResponseWriter, _ *http.Request, _ asked) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, streamHead+strings.Replace(streamWord, "word", strings.Repeat("w", 5000), 1))
			w.(http.Flusher).Flush()
			time.Sleep(time.Second)
			_, _ = io.WriteString(w, streamEnd)
		}
		r, _ := bounded(t, proxy.Config{FrameBytes: 8192}, play)
		requireServed(t, r.do(call{body: ask(opus, true)}), true)
		r, _ = bounded(t, proxy.Config{FrameBytes: 4096}, play)
		got := r.do(call{body: ask(opus, true)})
		assert.Contains(t, got.body, "sent an event that is too large")
		assert.NotContains(t, got.body, "message_stop")
	})
}
