package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// echo is a provider that says back what it was asked, so that answers which end
// up at another client are seen.
func echo(t testing.TB, name string, keys int, f ...simulator.Fault) *sim {
	return startSim(t, name, keys, simulator.Config{
		Faults: f,
		Reply: func(req simulator.Request) simulator.Reply {
			times := 5
			if strings.HasPrefix(req.UserText, "leave") { // who leaves gets something to leave
				times = 10_000
			}
			return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: strings.Repeat(req.UserText+" ", times)}}}
		},
	})
}

// mixedFaults are all that can go wrong, now and then, with every key.
func mixedFaults() []simulator.Fault {
	seldom := func(every int, f simulator.Fault) simulator.Fault {
		f.From, f.Every = every/2, every
		return f
	}
	spentOnce := key(2, coded(429, "enforced_spend_limit_reached"))
	spentOnce.Nth = 5
	limitedOnce := limit429("") // each more would rest a key for a second, which is longer than the test
	limitedOnce.Nth = 31
	return []simulator.Fault{
		spentOnce,
		limitedOnce,
		seldom(13, status(529)),
		seldom(17, status(500)),
		seldom(19, simulator.Fault{Kind: simulator.FaultReset, RST: true}),
		seldom(23, simulator.Fault{Kind: simulator.FaultCut, AfterEvents: 4, AfterBytes: 40}),
		seldom(29, simulator.Fault{Kind: simulator.FaultCut, AfterEvents: 5, MidFrame: true, RST: true}),
		seldom(11, errorFirst("overloaded_error", "")),
		seldom(37, simulator.Fault{Kind: simulator.FaultErrorEvent, AfterEvents: 3}),
		seldom(41, simulator.Fault{Kind: simulator.FaultMalformed}),
		seldom(43, simulator.Fault{Kind: simulator.FaultHTML}),
		seldom(47, simulator.Fault{Kind: simulator.FaultNoStop}),
		seldom(53, status(403)),
		seldom(59, worded(400, "no")),
	}
}

// Sixty-four clients, two providers that fail in every way, and clients that
// leave: each gets its own answer or an error that says so, and nothing is kept.
func TestManyClientsAndMixedFaults(t *testing.T) {
	leakFree(t)
	a, b := echo(t, "a", 4, mixedFaults()...), echo(t, "b", 4, mixedFaults()...)
	r := relayOf(t, a, b)
	var open atomic.Int64 // bodies of answers
	for _, up := range r.live.Router.Upstreams() {
		up.Transport = counted(&open, up.Transport)
	}
	r.client.MaxIdleConnsPerHost = 64
	const clients, turns = 64, 12
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		statuses = map[int]int{}
	)
	for client := range clients {
		wg.Go(func() {
			for turn := range turns {
				mark := fmt.Sprintf("mark-%d-%d", client, turn)
				stream := (client+turn)%2 == 0
				body := strings.Replace(ask(opus, stream), "hello", mark, 1)
				body = strings.Replace(body, `"max_tokens"`, `"pad":"`+strings.Repeat("x", rand.IntN(200_000))+`","max_tokens"`, 1)
				if (client+turn)%9 == 0 {
					r.leaveEarly(strings.Replace(body, mark, "leave", 1))
					continue
				}
				got := r.send(call{body: body})
				checkOwnAnswer(t, got, mark, stream)
				mu.Lock()
				statuses[got.status]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool { return len(r.log.records) == clients*turns }, patient, time.Millisecond, "one record a request")
	outcomes := map[string]int{}
	for range clients * turns {
		outcomes[(<-r.log.records)["outcome"].(string)]++
	}
	t.Logf("statuses %v, outcomes %v, calls %d and %d", statuses, outcomes, len(a.Seen()), len(b.Seen()))
	assert.Greater(t, statuses[200], clients*turns/2, "most are served: %v", statuses)
	assert.NotZero(t, outcomes["broken"], "no stream broke, so the faults did not act: %v", outcomes)
	assert.NotZero(t, outcomes["client_gone"], "%v", outcomes)
	assert.Zero(t, outcomes["panic"], "%v", outcomes)
	assert.Empty(t, r.inFlight())
	assert.Zero(t, open.Load(), "answers never closed")
}

// counted counts the answers of a transport whose bodies are open.
func counted(open *atomic.Int64, rt http.RoundTripper) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		resp, err := rt.RoundTrip(r)
		if err == nil {
			open.Add(1)
			resp.Body = &countedBody{ReadCloser: resp.Body, close: sync.OnceFunc(func() { open.Add(-1) })}
		}
		return resp, err
	}
}

type countedBody struct {
	io.ReadCloser
	close func()
}

func (b *countedBody) Close() error {
	b.close()
	return b.ReadCloser.Close()
}

// leaveEarly sends a request and goes away after a moment.
func (r *relay) leaveEarly(body string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	resp, err := r.client.RoundTrip(r.request(call{body: body}).WithContext(ctx))
	if err != nil {
		return
	}
	_, _ = io.ReadFull(resp.Body, make([]byte, 10))
	cancel()
	_ = resp.Body.Close()
}

// checkOwnAnswer checks that an answer is the asker's own, whole or honestly not.
func checkOwnAnswer(t *testing.T, got reply, mark string, stream bool) {
	switch {
	case !assert.NotZero(t, got.status, "no answer: %v", got.err):
	case got.status != 200:
		var e errorBody
		assert.NoError(t, json.Unmarshal([]byte(got.body), &e), got.body)
		assert.Equal(t, "error", e.Type)
	case got.err != nil, strings.Contains(got.body, "event: error\n"):
		assert.NotContains(t, got.body, "message_stop")
		assert.True(t, stream, "a cut answer that is no stream was shown: %v", got.err)
	case stream:
		assert.Equal(t, strings.Repeat(mark+" ", 5), textOf(t, got.body))
	default:
		var m struct{ Content []struct{ Text string } }
		if assert.NoError(t, json.Unmarshal([]byte(got.body), &m), got.body) && assert.NotEmpty(t, m.Content) {
			assert.Equal(t, strings.Repeat(mark+" ", 5), m.Content[0].Text)
		}
	}
}

// textOf puts the text of a stream together.
func textOf(t *testing.T, stream string) string {
	var text strings.Builder
	for line := range strings.Lines(stream) {
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var e struct{ Delta struct{ Text string } }
		assert.NoError(t, json.Unmarshal([]byte(data), &e), line)
		text.WriteString(e.Delta.Text)
	}
	return text.String()
}
