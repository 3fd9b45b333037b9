package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/router"
)

// source is a provider that streams without end, or a given number of frames, and
// knows how much of it was taken.
type source struct {
	frames int // 0: without end
	taken  atomic.Int64
	ended  chan time.Time
}

var sourceFrame = frameOf("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"`+strings.Repeat("word ", 180)+`"}}`)

func (s *source) play(w http.ResponseWriter, r *http.Request, q asked) {
	if strings.Contains(q.body, "neighbour") {
		well(w, r, q)
		return
	}
	defer func() { s.ended <- time.Now() }()
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(text string) bool {
		_, err := io.WriteString(w, text)
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		s.taken.Add(int64(len(text)))
		return err == nil
	}
	ok := send(startFrame)
	for n := 0; ok && (s.frames == 0 || n < s.frames); n++ {
		ok = send(sourceFrame)
	}
	if ok {
		send(usageFrame + stopFrame)
	}
}

// onPipes is a client's connection to a relay on pipes: nothing is buffered between.
func (p *pipes) onPipes(t *testing.T) net.Conn {
	t.Helper()
	c, err := p.dial(t.Context(), "tcp", "relay.test:80")
	require.NoError(t, err)
	return c
}

const onPipesHead = "POST /v1/messages HTTP/1.1\r\nHost: relay.test\r\nContent-Type: application/json\r\nX-Api-Key: " + aliceToken + "\r\n"

// stalled is a stream whose reader has read this much and then does nothing at all, as
// one whose power was cut. What else goes on, goes on in meanwhile. It returns the
// record, and when the relay gave up and the provider knew.
func stalled(t *testing.T, after int, meanwhile func(*relay)) (s *source, rec record, gaveUp, known time.Duration) {
	t.Helper()
	network, s := newPipes(), &source{ended: make(chan time.Time, 1)}
	r := network.cast(t, router.Config{}, network.actor(t, "a", s.play))
	c := network.onPipes(t)
	defer func() { _ = c.Close() }()
	body := ask(opus, true)
	_, err := io.WriteString(c, onPipesHead+"Content-Length: "+itoa(len(body))+"\r\n\r\n"+body)
	require.NoError(t, err)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	_, err = io.ReadFull(resp.Body, make([]byte, after))
	require.NoError(t, err)
	start := time.Now()
	synctest.Wait()
	if meanwhile != nil {
		meanwhile(r)
		synctest.Wait() // their records are written
		for len(r.log.records) > 0 {
			<-r.log.records
		}
	}
	rec = <-r.log.records
	gaveUp = time.Since(start)
	known = (<-s.ended).Sub(start)
	assert.Empty(t, r.inFlight(), "leases")
	return s, rec, gaveUp, known
}

// A client that is gone without a word is noticed by what cannot be written to it.
func testClientVanishes(t *testing.T) {
	for name, after := range map[string]int{"after the first event": len(startFrame), "in the middle": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, rec, gaveUp, known := stalled(t, after, nil)
				assert.Equal(t, "client_gone", rec["outcome"])
				assert.Equal(t, true, rec["partial"])
				assert.InDelta(t, 1, rec["attempts"], 0)
				assert.InDelta(t, 11, rec["input_tokens"], 0, "the prompt was paid for")
				assert.InDelta(t, 26, gaveUp.Seconds(), 4, "between three quarters of the write timeout and all of it")
				assert.LessOrEqual(t, known-gaveUp, time.Second, "the provider goes on for nobody")
			})
		})
	}
	t.Run("before it is answered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			network := newPipes()
			r := network.cast(t, router.Config{}, network.actor(t, "a", well))
			c := network.onPipes(t)
			defer func() { _ = c.Close() }()
			body := ask(opus, false)
			_, err := io.WriteString(c, onPipesHead+"Content-Length: "+itoa(len(body))+"\r\n\r\n"+body)
			require.NoError(t, err)
			start := time.Now()
			rec := <-r.log.records
			assert.Equal(t, "client_gone", rec["outcome"])
			assert.LessOrEqual(t, time.Since(start), 30*time.Second)
			assert.InDelta(t, 4, rec["output_tokens"], 0, "what the provider produced is counted")
		})
	})
}

// A provider is not read faster than the client reads: what the relay holds of a
// stream is bounded, and others are served as if nothing was.
func testBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const read = 1 << 20
		s, rec, _, _ := stalled(t, read, func(r *relay) {
			for n := range 20 {
				start := time.Now()
				got := r.send(call{token: bobToken, body: strings.Replace(ask(opus, n%2 == 0), "hello", "neighbour", 1)})
				requireServed(t, got, n%2 == 0)
				assert.Zero(t, time.Since(start), "a neighbour waited")
			}
		})
		assert.Less(t, s.taken.Load(), int64(read+256<<10), "bytes taken from the provider while %d were read", read)
		assert.Equal(t, "client_gone", rec["outcome"])
		assert.Equal(t, true, rec["partial"])
		assert.Greater(t, rec["output_tokens"], 100., "what was produced is counted roughly")
	})
}

// Who reads slowly but steadily gets everything.
func testSteadyReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, s := newPipes(), &source{frames: 500, ended: make(chan time.Time, 1)}
		r := network.cast(t, router.Config{}, network.actor(t, "a", s.play))
		resp := r.open(t.Context(), call{body: ask(opus, true)})
		var got strings.Builder
		start := time.Now()
		for buf := make([]byte, 4<<10); ; time.Sleep(time.Second) { // 4 KiB a second
			n, err := io.ReadFull(resp.Body, buf)
			got.Write(buf[:n])
			if err != nil {
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				break
			}
		}
		assert.True(t, got.String() == startFrame+strings.Repeat(sourceFrame, 500)+usageFrame+stopFrame, "got %d bytes", got.Len())
		assert.Greater(t, time.Since(start), 2*time.Minute)
		rec := <-r.log.records
		assert.Equal(t, "served", rec["outcome"])
		assert.InDelta(t, 7, rec["output_tokens"], 0)
	})
}
