package proxy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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

func TestStreamsThatBreak(t *testing.T) { streamsThatBreak("")(t) }

// streamsThatBreak is the test of a row of the catalogue of faults.
func streamsThatBreak(row string) func(*testing.T) {
	return func(t *testing.T) {
		leakFree(t)
		begun := startFrame + pingFrame + deltaFrame
		providersError := frameOf("error", `{"type":"error","error":{"type":"overloaded_error","message":"busy"}}`)
		chunkedHead := strings.Replace(sseHead, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1)
		for name, tt := range map[string]struct {
			row     string
			wire    string
			want    string // the provider's frames that must arrive
			kind    string // of the relay's error event; "" for none
			aborted bool
			outcome string
		}{
			"nothing but message_stop":           {row: "U16", wire: sseHead + stopFrame + deltaFrame, want: stopFrame, outcome: "served"},
			"whole":                              {wire: sseHead + wholeStream, want: wholeStream, outcome: "served"},
			"cut between frames":                 {row: "U13", wire: sseHead + begun, want: begun, kind: "api_error", outcome: "broken"},
			"cut between frames, chunked":        {row: "U13", wire: chunkedHead + fmt.Sprintf("%x\r\n%s\r\n", len(begun), begun), want: begun, kind: "api_error", outcome: "broken"},
			"clean end without message_stop":     {row: "U14", wire: chunkedHead + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(begun), begun), want: begun, kind: "api_error", outcome: "broken"},
			"cut before message_stop":            {row: "U15", wire: sseHead + begun + usageFrame, want: begun + usageFrame, kind: "api_error", outcome: "broken"},
			"cut inside a frame":                 {row: "U13", wire: sseHead + begun + deltaFrame[:30], want: begun, kind: "api_error", outcome: "broken"},
			"cut before the last line end":       {row: "U13", wire: sseHead + begun + stopFrame[:len(stopFrame)-1], want: begun, kind: "api_error", outcome: "broken"},
			"cut inside a CRLF":                  {row: "U13", wire: sseHead + begun + ": ping\r\n\r", want: begun + ": ping\r\n\r\n", kind: "api_error", outcome: "broken"},
			"cut between frames in CR":           {row: "U13", wire: sseHead + begun + ": ping\r\r", want: begun + ": ping\r\r\n", kind: "api_error", outcome: "broken"},
			"cut inside a frame of 200 KiB":      {row: "U13", wire: sseHead + begun + "data: " + strings.Repeat("x", 200<<10), want: begun, aborted: true, outcome: "broken"},
			"a frame of 200 KiB":                 {row: "U19", wire: sseHead + begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n" + stopFrame, want: begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n" + stopFrame, outcome: "served"},
			"cut after a frame of 200 KiB":       {row: "U13", wire: sseHead + begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n", want: begun + "data: " + strings.Repeat("x", 200<<10) + "\n\n", kind: "api_error", outcome: "broken"},
			"a frame over 8 MiB":                 {row: "U19", wire: sseHead + begun + "data: " + strings.Repeat("x", 9<<20) + "\n\n" + stopFrame, want: begun, aborted: true, outcome: "broken"},
			"a line without end":                 {row: "U19", wire: sseHead + begun + strings.Repeat("x", 9<<20), want: begun, aborted: true, outcome: "broken"},
			"error in the middle":                {row: "U12", wire: sseHead + begun + providersError, want: begun + providersError, outcome: "broken"},
			"error in the middle, more after":    {row: "U12", wire: sseHead + begun + providersError + deltaFrame + stopFrame, want: begun + providersError, outcome: "broken"},
			"error of no shape in the middle":    {row: "U12", wire: sseHead + begun + frameOf("error", "oops"), want: begun + frameOf("error", "oops"), outcome: "broken"},
			"bytes after message_stop":           {row: "U16", wire: sseHead + wholeStream + deltaFrame + pingFrame, want: wholeStream, outcome: "served"},
			"a second message after the first":   {row: "U16", wire: sseHead + wholeStream + wholeStream, want: wholeStream, outcome: "served"},
			"unknown events":                     {row: "U20", wire: sseHead + startFrame + frameOf("hologram", `{"x":1}`) + ": comment\n\n\n" + "id: 7\nretry: 1\n\n" + stopFrame, want: startFrame + frameOf("hologram", `{"x":1}`) + ": comment\n\n\n" + "id: 7\nretry: 1\n\n" + stopFrame, outcome: "served"},
			"data that is not JSON, later":       {row: "U20", wire: sseHead + startFrame + "data: {oops\n\n" + stopFrame, want: startFrame + "data: {oops\n\n" + stopFrame, outcome: "served"},
			"error after message_start":          {row: "U12", wire: sseHead + startFrame + providersError, want: startFrame + providersError, outcome: "broken"},
			"more than 64 KiB without content":   {row: "U13", wire: sseHead + headFrame + pingFrame + "data: " + strings.Repeat("x", 65<<10), want: headFrame + pingFrame, aborted: true, outcome: "broken"},
			"pings and comments before anything": {wire: sseHead + pingFrame + ":\n\n" + wholeStream, want: pingFrame + ":\n\n" + wholeStream, outcome: "served"},
		} {
			if tt.row != row {
				continue
			}
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
}

// A stream that the simulator cuts at each of its events in turn, from the first on
// that is shown: after message_start, ping and content_block_start.
func TestStreamsCutAtEveryEvent(t *testing.T) {
	leakFree(t)
	for _, kind := range []simulator.FaultKind{simulator.FaultCut, simulator.FaultErrorEvent} {
		for n := 3; n <= 7; n++ {
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
