package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// mostLag is what the relay may add to an event, in the median.
const mostLag = time.Millisecond

const lagRounds = 3

// Two streams of one provider run side by side, one straight to the client and one
// through the relay, their events in turn half an interval apart. Both meet the
// same machine in the same moments, so the difference is the relay's.
func TestEventLag(t *testing.T) {
	for name, tc := range map[string]struct {
		interval time.Duration // between two events of a stream
		events   int           // of a stream and round
	}{
		"an event each 10 ms":  {10 * time.Millisecond, 200},
		"an event each 200 ms": {200 * time.Millisecond, 15},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPacer(t)
			r := startRelay(t, &provider{name: "pacer", url: p.url, keys: []string{keyA}})
			var direct, relayed []time.Duration
			for range lagRounds {
				a := p.open(t, p.url, directKey)
				b := p.open(t, r.url(), relayToken)
				p.play(t, tc.interval, tc.events)
				direct = append(direct, a.collect(t, tc.events)...)
				relayed = append(relayed, b.collect(t, tc.events)...)
			}
			added := median(relayed) - median(direct)
			t.Logf("%d events each: direct %s, relayed %s, added %s in the median; 99 %%: direct %s, relayed %s",
				len(direct), median(direct), median(relayed), added, quantile(direct, 0.99), quantile(relayed, 0.99))
			assert.Positive(t, median(direct), "events arrive after they are sent")
			assert.Less(t, added, mostLag, "direct %s, relayed %s", median(direct), median(relayed))
		})
	}
}

func median(d []time.Duration) time.Duration { return quantile(d, 0.5) }

func quantile(d []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[int(q*float64(len(sorted)-1))]
}

// directKey is the credential of the client that goes straight to the pacer.
const directKey = "straight"

// pacer is a provider of two streams at a time whose events carry when they were
// sent, in nanoseconds since it began: the one who sends and the one who receives
// are one process with one clock.
type pacer struct {
	url    string
	began  time.Time
	direct chan *lane
	relay  chan *lane
}

// lane is an open stream at the provider, waiting for its events.
type lane struct {
	w    http.ResponseWriter
	done chan struct{} // closed when all is sent
}

func startPacer(t *testing.T) *pacer {
	t.Helper()
	p := &pacer{began: time.Now(), direct: make(chan *lane, 1), relay: make(chan *lane, 1)}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// ServeHTTP begins a stream and leaves it to play, up to its end. It has no models to
// list.
func (p *pacer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice a client that leaves
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	l := &lane{w: w, done: make(chan struct{})}
	if l.send(lagStart) != nil {
		return
	}
	if r.Header.Get("X-Api-Key") == directKey {
		p.direct <- l
	} else {
		p.relay <- l
	}
	select {
	case <-l.done:
	case <-r.Context().Done():
	}
}

const (
	lagStart = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_lag\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-haiku-5-5\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n" +
		"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
	lagDelta = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"%s%d%s\"}}\n\n"
	lagEnd   = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n" +
		"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":200}}\n\n" +
		"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	stampOpen, stampClose = "sent:", ":ns"
)

func (l *lane) send(frames string) error {
	if _, err := l.w.Write([]byte(frames)); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

// play sends n events on each of the two open streams, in turn, and ends both.
func (p *pacer) play(t *testing.T, interval time.Duration, n int) {
	t.Helper()
	lanes := [2]*lane{<-p.direct, <-p.relay}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for i := range 2 * n {
		<-tick.C
		assert.NoError(t, lanes[i%2].send(fmt.Sprintf(lagDelta, stampOpen, time.Since(p.began).Nanoseconds(), stampClose)))
	}
	for _, l := range lanes {
		assert.NoError(t, l.send(lagEnd))
		close(l.done)
	}
}

// listener reads one stream while it comes.
type listener struct {
	lags chan []time.Duration // what each delta took; sent once, at the end
}

// open asks for a stream and returns once its first frame is there.
func (p *pacer) open(t *testing.T, baseURL, key string) *listener {
	t.Helper()
	body := `{"model":"claude-haiku-5-5","max_tokens":1000,"stream":true,"messages":[{"role":"user","content":"Go on."}]}`
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, baseURL+"/v1/messages", strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Api-Key", key)
	resp, err := (&http.Transport{DisableKeepAlives: true, DisableCompression: true}).RoundTrip(req)
	require.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	require.Equal(t, http.StatusOK, resp.StatusCode)
	l := &listener{lags: make(chan []time.Duration, 1)}
	go func() { l.lags <- p.listen(bufio.NewReader(resp.Body)) }()
	return l
}

func (p *pacer) listen(r *bufio.Reader) []time.Duration {
	var lags []time.Duration
	for {
		line, err := r.ReadSlice('\n')
		now := time.Since(p.began)
		if _, rest, ok := bytes.Cut(line, []byte(stampOpen)); ok {
			stamp, _, _ := bytes.Cut(rest, []byte(stampClose))
			if sent, err := strconv.ParseInt(string(stamp), 10, 64); err == nil {
				lags = append(lags, now-time.Duration(sent))
			}
		}
		if err != nil {
			return lags
		}
	}
}

// collect waits for the stream's end; no event may be missing.
func (l *listener) collect(t *testing.T, want int) []time.Duration {
	t.Helper()
	lags := <-l.lags // the request has a deadline
	require.Len(t, lags, want, "events received")
	return lags
}
