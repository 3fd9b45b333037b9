package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/ratelimit"
	"cc-relay/internal/simulator"
)

// requireCut checks that a stream is whole frames of the provider, then one error
// event, and that nobody takes it for complete.
func requireCut(t testing.TB, got reply, frames, kind string) {
	t.Helper()
	require.NoError(t, got.err, "the connection was broken; got: %s", got.body)
	require.Equal(t, 200, got.status)
	rest, ok := strings.CutPrefix(got.body, frames)
	require.True(t, ok, "got %q, want it to begin with %q", got.body, frames)
	data, ok := strings.CutPrefix(rest, "event: error\ndata: ")
	require.True(t, ok, "after the provider's frames: %q", rest)
	var e errorBody
	require.NoError(t, json.Unmarshal([]byte(strings.TrimSuffix(data, "\n\n")), &e), "data: %q", data)
	require.True(t, strings.HasSuffix(data, "\n\n"))
	assert.Equal(t, kind, e.Error.Type)
	assert.Equal(t, got.record["request_id"], e.RequestID)
	assert.NotContains(t, got.body, "message_stop")
}

func TestStreamsThatBreak(t *testing.T) {
	leakFree(t)
	begun := startFrame + pingFrame + deltaFrame
	providersError := frameOf("error", `{"type":"error","error":{"type":"overloaded_error","message":"busy"}}`)
	chunkedHead := strings.Replace(sseHead, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
	for name, tt := range map[string]struct {
		wire    string
		want    string // the provider's frames that must arrive
		kind    string // of the relay's error event; "" for none
		aborted bool
		outcome string
	}{
		"nothing but message_stop":           {wire: sseHead + stopFrame + deltaFrame, want: stopFrame, outcome: "served"},
		"whole":                              {wire: sseHead + wholeStream, want: wholeStream, outcome: "served"},
		"cut between frames":                 {wire: sseHead + begun, want: begun, kind: "api_error", outcome: "broken"},
		"cut between frames, chunked":        {wire: chunkedHead + fmt.Sprintf("%x\r\n%s\r\n", len(begun), begun), want: begun, kind: "api_error", outcome: "broken"},
		"clean end without message_stop":     {wire: chunkedHead + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(begun), begun), want: begun, kind: "api_error", outcome: "broken"},
		"cut before message_stop":            {wire: sseHead + begun + usageFrame, want: begun + usageFrame, kind: "api_error", outcome: "broken"},
		"cut inside a frame":                 {wire: sseHead + begun + deltaFrame[:30], want: begun, kind: "api_error", outcome: "broken"},
		"cut before the last line end":       {wire: sseHead + begun + stopFrame[:len(stopFrame)-1], want: begun, kind: "api_error", outcome: "broken"},
		"cut inside a frame of 200 KiB":      {wire: sseHead + begun + "data: " + strings.Repeat("x", 200<<10), want: begun, aborted: true, outcome: "broken"},
		"a frame of 200 KiB":                 {wire: sseHead + begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n" + stopFrame, want: begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n" + stopFrame, outcome: "served"},
		"cut after a frame of 200 KiB":       {wire: sseHead + begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n", want: begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n", kind: "api_error", outcome: "broken"},
		"a frame over 8 MiB":                 {wire: sseHead + begun + "data: " + strings.Repeat("x", 9<<20) + "\n\n" + stopFrame, want: begun, aborted: true, outcome: "broken"},
		"a line without end":                 {wire: sseHead + begun + strings.Repeat("x", 9<<20), want: begun, aborted: true, outcome: "broken"},
		"error in the middle":                {wire: sseHead + begun + providersError, want: begun + providersError, outcome: "broken"},
		"error in the middle, more after":    {wire: sseHead + begun + providersError + deltaFrame + stopFrame, want: begun + providersError, outcome: "broken"},
		"error of no shape in the middle":    {wire: sseHead + begun + frameOf("error", "oops"), want: begun + frameOf("error", "oops"), outcome: "broken"},
		"bytes after message_stop":           {wire: sseHead + wholeStream + deltaFrame + pingFrame, want: wholeStream, outcome: "served"},
		"a second message after the first":   {wire: sseHead + wholeStream + wholeStream, want: wholeStream, outcome: "served"},
		"unknown events":                     {wire: sseHead + startFrame + frameOf("hologram", `{"x":1}`) + ": comment\n\n\n" + "id: 7\nretry: 1\n\n" + stopFrame, want: startFrame + frameOf("hologram", `{"x":1}`) + ": comment\n\n\n" + "id: 7\nretry: 1\n\n" + stopFrame, outcome: "served"},
		"data that is not JSON, later":       {wire: sseHead + startFrame + "data: {oops\n\n" + stopFrame, want: startFrame + "data: {oops\n\n" + stopFrame, outcome: "served"},
		"error after message_start":          {wire: sseHead + startFrame + providersError, want: startFrame + providersError, outcome: "broken"},
		"pings and comments before anything": {wire: sseHead + pingFrame + ":\n\n" + wholeStream, want: pingFrame + ":\n\n" + wholeStream, outcome: "served"},
	} {
		t.Run(name, func(t *testing.T) {
			up, b := newRaw(t, "a", say(tt.wire)), newSim(t, "b", 1)
			r := newRelay(t, setup{upstreams: []upstream{up.upstream, b.upstream}})
			got := r.do(call{body: ask(opus, true)})
			assert.Equal(t, tt.outcome, got.record["outcome"])
			assert.Empty(t, b.Seen(), "nothing moves once the client has seen something")
			switch {
			case tt.aborted:
				require.Error(t, got.err, "the connection must break; got %d bytes", len(got.body))
				assert.True(t, strings.HasPrefix(got.body, tt.want))
				assert.NotContains(t, got.body, "message_stop")
			case tt.kind != "":
				requireCut(t, got, tt.want, tt.kind)
			default:
				require.NoError(t, got.err)
				assert.Equal(t, tt.want, got.body)
			}
		})
	}
}

// A stream that the simulator cuts at each of its events in turn.
func TestStreamsCutAtEveryEvent(t *testing.T) {
	leakFree(t)
	for _, kind := range []simulator.FaultKind{simulator.FaultCut, simulator.FaultErrorEvent} {
		for n := 1; n <= 6; n++ {
			t.Run(fmt.Sprintf("%s at %d", kind, n), func(t *testing.T) {
				a := newSim(t, "a", 1, simulator.Fault{Kind: kind, AfterEvents: n})
				r := relayOf(t, a)
				got := r.do(call{body: ask(opus, true)})
				require.NoError(t, got.err)
				assert.Equal(t, n+1, strings.Count(got.body, "event: "), "frames: %s", got.body)
				assert.Equal(t, 1, strings.Count(got.body, "event: error\n"))
				assert.Equal(t, "broken", got.record["outcome"])
				assert.Equal(t, true, got.record["partial"])
				seen := a.Seen()[0].Usage
				assert.InDelta(t, seen.Input, got.record["input_tokens"], 0, "the prompt was paid for")
				assert.NotZero(t, got.record["output_tokens"])
			})
		}
	}
	t.Run("without message_stop", func(t *testing.T) {
		a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultNoStop})
		got := relayOf(t, a).do(call{body: ask(opus, true)})
		assert.Contains(t, got.body, "event: error\n")
		assert.InDelta(t, a.Seen()[0].Usage.Output, got.record["output_tokens"], 0, "the last usage was told")
	})
}

// An upstream that does not close after message_stop holds nobody up, and is not
// used again.
func TestTheEndIsMessageStop(t *testing.T) {
	leakFree(t)
	up := newRaw(t, "a", sayAndKeep(strings.Replace(sseHead, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1)+fmt.Sprintf("%x\r\n%s\r\n", len(wholeStream), wholeStream)))
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for range 2 {
		start := time.Now()
		got := r.do(call{body: ask(opus, true)})
		require.NoError(t, got.err)
		assert.Equal(t, wholeStream, got.body)
		assert.Less(t, time.Since(start), 2*time.Second)
		assert.Equal(t, "served", got.record["outcome"])
	}
}

// A stream that ends well leaves its connection for the next request.
func TestConnectionsToTheProviderAreKept(t *testing.T) {
	leakFree(t)
	conns := make(chan net.Conn, 5)
	up := newRaw(t, "a", func(c net.Conn, _ int) bool {
		conns <- c
		head := strings.Replace(sseHead, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
		_, _ = io.WriteString(c, fmt.Sprintf("%s%x\r\n%s\r\n0\r\n\r\n", head, len(wholeStream), wholeStream))
		return true
	})
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for range 5 {
		requireServedRaw(t, r.do(call{body: ask(opus, true)}))
	}
	first := <-conns
	for range 4 {
		assert.Equal(t, first.RemoteAddr(), (<-conns).RemoteAddr(), "another connection to the provider")
	}
}

func requireServedRaw(t *testing.T, got reply) {
	t.Helper()
	require.NoError(t, got.err)
	require.Equal(t, wholeStream, got.body)
}

// stepper is a provider that sends one frame each time it is told to.
type stepper struct {
	upstream
	frames chan string
	gone   chan struct{} // closed when the request was cancelled
}

func newStepper(t testing.TB, name string) *stepper {
	t.Helper()
	s := &stepper{frames: make(chan string), gone: make(chan struct{}, 1)}
	s.keys = []string{keyOf(name, 1)}
	s.Name = name
	s.BaseURL = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case frame, more := <-s.frames:
				if !more {
					return
				}
				_, _ = io.WriteString(w, frame)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				s.gone <- struct{}{}
				return
			}
		}
	}))
	return s
}

// send gives the provider a frame to send.
func (s *stepper) send(t testing.TB, frame string) {
	t.Helper()
	select {
	case s.frames <- frame:
	case <-time.After(patient):
		require.FailNow(t, "the provider was not asked")
	}
}

// requireGone checks that the provider's request ends within a second.
func (s *stepper) requireGone(t testing.TB) {
	t.Helper()
	select {
	case <-s.gone:
	case <-time.After(time.Second):
		assert.Fail(t, "the provider goes on for nobody")
	}
}

// read reads exactly these bytes of a stream.
func read(t testing.TB, resp *http.Response, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	_, err := io.ReadFull(resp.Body, buf)
	require.NoError(t, err)
	require.Equal(t, want, string(buf))
}

// An error event counts for its key as the status of its type would: the next
// request meets what a 429 or a 401 would have left.
func TestErrorEventsCountForTheirKey(t *testing.T) {
	leakFree(t)
	for kind, tt := range map[messages.ErrorType]struct {
		status int
		kind   string
	}{
		messages.RateLimit:      {429, "rate_limit_error"},
		messages.Authentication: {502, "api_error"},
		messages.Billing:        {429, "billing_error"},
		messages.Overloaded:     {200, ""},
		messages.InvalidRequest: {200, ""},
		messages.Permission:     {200, ""},
		messages.APIError:       {200, ""},
	} {
		t.Run(string(kind), func(t *testing.T) {
			a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultErrorEvent, AfterEvents: 4, ErrorType: kind, Nth: 1})
			r := relayOf(t, a)
			first := r.do(call{body: ask(opus, true)})
			assert.Equal(t, "broken", first.record["outcome"])
			next := r.do(call{body: ask(opus, true)})
			if tt.kind == "" {
				requireServed(t, next, true)
				return
			}
			requireError(t, next, tt.status, tt.kind)
			assert.Len(t, a.Seen(), 1)
		})
	}
}

// A delta need not be a token: what counts is what the end of a stream says.
func TestTheLastUsageCounts(t *testing.T) {
	leakFree(t)
	up := newRaw(t, "a", say(sseHead+startFrame+strings.Repeat(deltaFrame, 20)+usageFrame+stopFrame))
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	rec := r.do(call{body: ask(opus, true)}).record
	assert.InDelta(t, 7, rec["output_tokens"], 0)
	assert.InDelta(t, 11, rec["input_tokens"], 0)
}

// Each event reaches the client before the provider sends the next.
func TestEventsAreNotHeldBack(t *testing.T) {
	leakFree(t)
	up := newStepper(t, "a")
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	answered := make(chan *http.Response, 1)
	go func() { answered <- r.open(ctx, call{body: ask(opus, true)}) }()
	up.send(t, startFrame)
	resp := <-answered
	read(t, resp, startFrame)
	for i := range 20 {
		frame := strings.Replace(deltaFrame, "so far", itoa(i), 1)
		if i%5 == 0 {
			frame = pingFrame
		}
		up.send(t, frame)
		read(t, resp, frame)
	}
	t.Run("but half a frame is", func(t *testing.T) {
		up.send(t, deltaFrame+deltaFrame[:10])
		read(t, resp, deltaFrame)
		up.send(t, deltaFrame[10:])
		read(t, resp, deltaFrame)
	})
	up.send(t, stopFrame)
	close(up.frames)
	read(t, resp, stopFrame)
	_, err := resp.Body.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, "served", r.log.next(t)["outcome"])
}

func TestASilentStreamIsEnded(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultStall, AfterEvents: 3})
	a.IdleTimeout = 100 * time.Millisecond
	b := newSim(t, "b", 1)
	r := relayOf(t, a, b)
	got := r.do(call{body: ask(opus, true)})
	require.NoError(t, got.err)
	assert.Equal(t, 4, strings.Count(got.body, "event: "))
	assert.Contains(t, got.body, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"provider a fell silent\"}")
	assert.Equal(t, "broken", got.record["outcome"])
	assert.Equal(t, "timed_out", got.record["verdict"])
	assert.Empty(t, b.Seen())
}

// Long answers that are no stream are passed on while they come.
func TestVeryLongJSON(t *testing.T) {
	leakFree(t)
	long := `{"type":"message","usage":{"input_tokens":3,"output_tokens":4},"pad":"` + strings.Repeat("x", 17<<20) + `"}`
	for name, tt := range map[string]struct {
		wire string
		ok   bool
	}{
		"declared":      {lengthy("200 OK", jsonType, long), true},
		"undeclared":    {"HTTP/1.1 200 OK\r\n" + jsonType + "\r\n" + long, true},
		"declared, cut": {"HTTP/1.1 200 OK\r\n" + jsonType + "Content-Length: 99999999\r\n\r\n" + long, false},
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", say(tt.wire))
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			got := r.do(call{body: ask(opus, false)})
			assert.Equal(t, 200, got.status)
			if tt.ok {
				require.NoError(t, got.err)
				assert.Equal(t, len(long), len(got.body)) //nolint:testifylint // not 17 MiB in the output
				assert.True(t, got.body == long, "the body was changed")
				return
			}
			require.Error(t, got.err, "a cut answer looks complete")
			assert.Equal(t, "broken", got.record["outcome"])
		})
	}
}

// Usage goes to the log and to the key's buckets as the provider counted it. In
// the bubble no time passes, so nothing refills.
func TestUsageIsSettledAsCounted(t *testing.T) {
	cached := func(stream bool) string {
		system := `"system":[{"type":"text","text":"` + strings.Repeat("rule ", 2000) + `","cache_control":{"type":"ephemeral"}}],"messages"`
		return strings.Replace(ask(opus, stream), `"messages"`, system, 1)
	}
	for name, tt := range map[string]struct {
		stream bool
		fault  []simulator.Fault
		status int
		deltas int // tokens of output known from the deltas alone; 0: all is known
	}{
		"JSON":                   {stream: false, status: 200},
		"stream":                 {stream: true, status: 200},
		"cut after two deltas":   {stream: true, fault: faults(simulator.Fault{Kind: simulator.FaultCut, AfterEvents: 5}), status: 200, deltas: 2},
		"error after two deltas": {stream: true, fault: faults(simulator.Fault{Kind: simulator.FaultErrorEvent, AfterEvents: 5}), status: 200, deltas: 2},
		"cut before the end":     {stream: true, fault: faults(simulator.Fault{Kind: simulator.FaultNoStop}), status: 200},
		"refused":                {stream: true, fault: faults(status(400)), status: 400},
		"no answer":              {stream: true, fault: faults(status(403)), status: 403},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const limit = 1_000_000
				b := newBubble(t, 1, keypool.KeyConfig{RPMLimit: limit, ITPMLimit: limit, OTPMLimit: limit}, tt.fault...)
				var input, output int
				for n := 1; n <= 3; n++ {
					require.Equal(t, tt.status, b.ask(cached(tt.stream)).Code)
					rec, theirs := b.log.next(t), b.Seen()[n-1].Usage
					assert.InDelta(t, theirs.Input, rec["input_tokens"], 0, "input")
					assert.InDelta(t, theirs.Written(), rec["cache_write_tokens"], 0, "cache write")
					assert.InDelta(t, theirs.CacheRead, rec["cache_read_tokens"], 0, "cache read")
					if tt.deltas > 0 {
						theirs.Output = tt.deltas
					}
					assert.InDelta(t, theirs.Output, rec["output_tokens"], 0, "output")
					assert.Equal(t, tt.fault != nil && tt.status == 200, rec["partial"])
					input, output = input+theirs.Uncached(), output+theirs.Output
				}
				for _, c := range b.pool.GetStats().Classes {
					if c.Class == keypool.ClassOf(opus) {
						assert.Equal(t, ratelimit.Limits{RPM: limit - 3, ITPM: limit - input, OTPM: limit - output}, c.Remaining)
						assert.Zero(t, c.InFlight)
					}
				}
			})
		})
	}
}

var errCut = errors.New("connection reset")

// What a broken read ends with does not matter, only where it comes.
func TestReadErrorsAreNotShown(t *testing.T) {
	leakFree(t)
	s := newStreamer(t)
	body := inPieces([]byte(startFrame + deltaFrame))
	body.end = fmt.Errorf("read tcp 10.1.2.3:443: %w", errCut)
	got, aborted := s.relay(body)
	assert.False(t, aborted)
	assert.NotContains(t, got, "10.1.2.3")
	assert.Regexp(t, ownWords, got)
}
