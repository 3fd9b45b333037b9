package proxy_test

import (
	"bufio"
	"context"
	"fmt"
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

// numbered serves each request with another text.
func numbered(n *atomic.Int64) act {
	return func(w http.ResponseWriter, _ *http.Request, _ asked) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"type":"message","id":"msg_%d","usage":{"input_tokens":3,"output_tokens":4}}`, n.Add(1))
	}
}

// A request that is sent again is another request, however much it looks like one
// that is under way.
func testDuplicates(t *testing.T) {
	t.Run("the first is given up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			ended := make(chan time.Time, 1)
			waits := func(_ http.ResponseWriter, r *http.Request, _ asked) {
				<-r.Context().Done()
				ended <- time.Now()
			}
			network := newPipes()
			a := network.actor(t, "a", waits)
			r := network.cast(t, router.Config{}, a)
			same := call{header: ofSession("one"), body: ask(opus, false)}
			ctx, giveUp := context.WithCancel(t.Context())
			first := make(chan error)
			go func() {
				_, err := r.client.RoundTrip(r.request(same).WithContext(ctx))
				first <- err
			}()
			synctest.Wait()
			require.Len(t, a.got(), 1)
			a.fares(after(5*time.Second, numbered(&n)))
			second := make(chan reply)
			go func() { second <- r.send(same) }()
			time.Sleep(time.Second)
			require.Len(t, a.got(), 2, "the second has an attempt of its own")
			left := time.Now()
			giveUp()
			require.Error(t, <-first)
			assert.LessOrEqual(t, (<-ended).Sub(left), time.Second, "the provider goes on for nobody")
			rec := <-r.log.records
			assert.Equal(t, "client_gone", rec["outcome"])
			assert.InDelta(t, 1, rec["attempts"], 0)
			requireServed(t, <-second, false)
			other := <-r.log.records
			assert.Equal(t, "served", other["outcome"])
			assert.InDelta(t, 1, other["attempts"], 0)
			assert.NotEqual(t, rec["request_id"], other["request_id"])
			assert.Len(t, a.got(), 2)
		})
	})
	t.Run("side by side", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			network := newPipes()
			a := network.actor(t, "a", after(time.Second, numbered(&n)))
			r := network.cast(t, router.Config{}, a)
			requireServed(t, r.send(call{body: ask(opus, false)}), false)
			const many = 20
			replies := make(chan reply, many)
			for range many {
				go func() { replies <- r.send(call{header: ofSession("one"), body: ask(opus, false)}) }()
			}
			bodies := map[string]bool{}
			for range many {
				got := <-replies
				requireServed(t, got, false)
				bodies[got.body] = true
			}
			assert.Len(t, bodies, many, "answers that differ")
			assert.Len(t, a.got(), many+1)
			synctest.Wait()
			assert.Len(t, r.log.records, many+1)
		})
	})
	t.Run("behind each other on one connection", func(t *testing.T) {
		var n atomic.Int64
		up := newRaw(t, "a", func(c net.Conn, _ int) bool {
			_, _ = io.WriteString(c, lengthy("200 OK", jsonType, fmt.Sprintf(`{"type":"message","id":"msg_%d","usage":{"input_tokens":3}}`, n.Add(1))))
			return true
		})
		r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
		got, _ := r.talk(strings.Repeat(postOf(ask(opus, false)), 3), 3)
		require.Len(t, got, 3)
		for i, one := range got {
			requireServed(t, one, false)
			assert.Contains(t, one.body, fmt.Sprintf("msg_%d", i+1))
			assert.Equal(t, "served", r.log.next(t)["outcome"])
		}
		assert.Equal(t, 3, up.calls())
	})
}

// Go's transport sends a request with an idempotency key again on its own where a kept
// connection fails. The relay's attempts are its own, and each is one request.
func testIdempotencyKeys(t *testing.T) {
	var dies atomic.Bool
	up := newRaw(t, "a", func(c net.Conn, n int) bool { return !dies.Load() && answersWell(c, n) })
	no := false
	for name, tt := range map[string]struct {
		routes router.Config
		asked  int // in all, with the move that a lost connection allows
	}{
		"one move":  {router.Config{}, 2},
		"no moving": {router.Config{RetryUnknown: &no}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}, routes: tt.routes})
			for _, header := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
				dies.Store(false)
				requireServed(t, r.do(call{body: ask(opus, false)}), false) // there is a connection to be used again
				up.requireNext(t)
				dies.Store(true)
				c := r.dial()
				_, err := io.WriteString(c, postOf(ask(opus, false), header+": abc\r\n"))
				require.NoError(t, err)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				require.NoError(t, err)
				got := readReply(resp)
				requireError(t, got, 502, "api_error")
				rec := r.log.next(t)
				assert.InDelta(t, tt.asked, rec["attempts"], 0)
				assert.Equal(t, "lost", rec["verdict"])
				require.Equal(t, tt.asked, up.calls(), "requests at the provider")
				for range tt.asked {
					assert.NotContains(t, strings.ToLower(up.requireNext(t).head), "idempotency")
				}
				assert.Empty(t, r.inFlight())
			}
		})
	}
}
