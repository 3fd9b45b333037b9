package proxy_test

import (
	"bufio"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
)

// relayPing is the relay's own ping.
const relayPing = "event: ping\ndata: {\"type\": \"ping\"}\n\n"

// A provider that is not Anthropic's and falls silent has the relay ping in its stead,
// between whole events only; its silence is its own all the same.
func testPings(t *testing.T) {
	crlf := strings.ReplaceAll(deltaFrame, "\n", "\r\n")
	long := frameOf("content_block_delta", `{"type":"content_block_delta","pad":"`+strings.Repeat("x", 80<<10)+`"}`)
	for name, tt := range map[string]struct {
		origin string
		play   act
		want   string
		takes  time.Duration
	}{
		"every 15 s": {"", sends(after(50*time.Second, writes(after(14*time.Second, writes(after(16*time.Second, writes(nil, usageFrame+stopFrame)), deltaFrame)), deltaFrame)), startFrame),
			startFrame + strings.Repeat(relayPing, 3) + deltaFrame + deltaFrame + relayPing + usageFrame + stopFrame, 80 * time.Second},
		"none before the commit": {"", sends(after(100*time.Second, writes(nil, blockFrame+usageFrame+stopFrame)), headFrame),
			startFrame + usageFrame + stopFrame, 100 * time.Second},
		"before an event that has begun to come": {"", sends(after(20*time.Second, writes(nil, deltaFrame[20:]+usageFrame+stopFrame)), startFrame, deltaFrame[:20]),
			startFrame + relayPing + deltaFrame + usageFrame + stopFrame, 20 * time.Second},
		"none inside a long event": {"", sends(after(100*time.Second, writes(after(20*time.Second, writes(nil, usageFrame+stopFrame)), long[70<<10:])), startFrame+long[:70<<10]),
			startFrame + long + relayPing + usageFrame + stopFrame, 120 * time.Second},
		"between the halves of a line's end": {"", sends(after(20*time.Second, writes(nil, "\n"+usageFrame+stopFrame)), startFrame+crlf[:len(crlf)-1]),
			startFrame + crlf[:len(crlf)-1] + "\n" + relayPing + "\n" + usageFrame + stopFrame, 20 * time.Second},
		"none beside the provider's": {"", sends(pings(14*time.Second, 5, writes(nil, usageFrame+stopFrame)), startFrame),
			startFrame + strings.Repeat(pingFrame, 5) + usageFrame + stopFrame, 70 * time.Second},
		"none for Anthropic": {provider.OriginAnthropic, sends(after(329*time.Second, writes(nil, usageFrame+stopFrame)), startFrame),
			startFrame + usageFrame + stopFrame, 329 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.actor(t, "a", tt.play)
				a.Origin = tt.origin
				r := net.cast(t, router.Config{}, a)
				start := time.Now()
				got := r.do(call{body: ask(opus, true)})
				require.NoError(t, got.err)
				assert.Equal(t, tt.want, got.body)
				assert.Equal(t, tt.takes, time.Since(start))
				assert.Equal(t, []any{"served", 11.0, 7.0}, []any{got.record["outcome"], got.record["input_tokens"], got.record["output_tokens"]})
			})
		})
	}
	t.Run("until the silence is too long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			r := net.cast(t, router.Config{}, net.actor(t, "a", sends(silent, startFrame)))
			resp := r.open(t.Context(), call{body: ask(opus, true)})
			start := time.Now()
			read(t, resp, startFrame)
			for n := range 15 {
				read(t, resp, relayPing)
				assert.Equal(t, time.Duration(n+1)*15*time.Second, time.Since(start), "ping %d", n+1)
			}
			rest := readReply(resp)
			require.NoError(t, rest.err)
			// The last ping is due at the same moment.
			assert.Regexp(t, "^("+regexp.QuoteMeta(relayPing)+")?event: error\n.*provider a fell silent", rest.body)
			assert.Equal(t, 240*time.Second, time.Since(start))
			assert.Equal(t, "timed_out", r.log.next(t)["verdict"])
		})
	})
	t.Run("where a stream without content is shown", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const timeout = 10 * time.Second
			net := newPipes()
			a := net.actor(t, "a", sends(after(timeout+40*time.Second, writes(nil, blockFrame+stopFrame)), headFrame))
			a.FirstTokenTimeout = timeout
			r := net.cast(t, router.Config{}, a)
			resp := r.open(t.Context(), call{body: ask(opus, true)})
			shown := time.Now()
			read(t, resp, headFrame)
			for n := range 2 {
				read(t, resp, relayPing)
				assert.Equal(t, time.Duration(n+1)*15*time.Second, time.Since(shown), "ping %d", n+1)
			}
			read(t, resp, blockFrame+stopFrame)
			assert.Equal(t, 40*time.Second, time.Since(shown))
			r.log.next(t)
		})
	})
	t.Run("a client that is gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			network, known := newPipes(), make(chan time.Time, 1)
			a := network.actor(t, "a", func(w http.ResponseWriter, r *http.Request, q asked) {
				sends(silent, startFrame)(w, r, q)
				known <- time.Now()
			})
			r := network.cast(t, router.Config{}, a)
			c := network.onPipes(t)
			defer func() { _ = c.Close() }()
			body := ask(opus, true)
			_, err := io.WriteString(c, onPipesHead+"Content-Length: "+itoa(len(body))+"\r\n\r\n"+body)
			require.NoError(t, err)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
			read(t, resp, startFrame)
			start := time.Now()
			rec := <-r.log.records
			assert.Equal(t, []any{"client_gone", "client_gone"}, []any{rec["outcome"], rec["verdict"]}, "the provider is not to blame")
			assert.InDelta(t, 15+26, time.Since(start).Seconds(), 4, "the ping, and between three quarters of the write timeout and all of it")
			assert.LessOrEqual(t, (<-known).Sub(start), time.Since(start)+time.Second, "the provider goes on for nobody")
		})
	})
	t.Run("a client that takes no ping", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rest := &later{at: time.Hour, r: strings.NewReader(stopFrame), began: time.Now()}
			up := memory(endsWithContext(answering("text/event-stream", func() io.Reader { return io.MultiReader(strings.NewReader(startFrame), rest) })))
			log := newLogs()
			live := newLive(t, setup{upstreams: []upstream{up}}, log.logger())
			start := time.Now()
			assert.Panics(t, func() {
				proxy.NewHandler(live, log.logger()).ServeHTTP(&onceWriter{sink: sink{header: http.Header{}}}, aliceRequest(ask(opus, true)))
			})
			assert.Equal(t, 15*time.Second, time.Since(start), "at the ping, though nothing else tells that it is gone")
			assert.Equal(t, "client_gone", log.next(t)["outcome"])
			assert.Zero(t, live.Router.Upstreams()[0].Lane(keypool.ClassOf(opus)).Status().Failures, "the provider is not to blame")
			time.Sleep(2 * time.Hour) // the silent read ends inside the bubble
		})
	})
	t.Run("a slow client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			// Written until 20 s; a ping from 35 s to 55 s.
			rest := &later{at: 60 * time.Second, r: strings.NewReader(usageFrame + stopFrame)}
			up := memory(answering("text/event-stream", func() io.Reader { return io.MultiReader(strings.NewReader(startFrame), rest) }))
			live := newLive(t, setup{upstreams: []upstream{up}}, newLogs().logger())
			w := &slowClient{sink: sink{header: http.Header{}}, pause: 20 * time.Second}
			rest.began = time.Now()
			proxy.NewHandler(live, newLogs().logger()).ServeHTTP(w, aliceRequest(ask(opus, true)))
			want := startFrame + relayPing + usageFrame + stopFrame
			assert.Equal(t, want, w.body.String())
			time.Sleep(time.Hour)
			assert.Equal(t, want, w.body.String(), "after the end")
		})
	})
}

// later is read from once its time has come.
type later struct {
	began time.Time
	at    time.Duration
	r     io.Reader
}

func (l *later) Read(p []byte) (int, error) {
	time.Sleep(l.at - time.Since(l.began))
	return l.r.Read(p)
}

// onceWriter is a client that takes one write and no other.
type onceWriter struct{ sink }

func (o *onceWriter) Write(p []byte) (int, error) {
	if o.body.Len() > 0 {
		return 0, io.ErrClosedPipe
	}
	return o.sink.Write(p)
}
