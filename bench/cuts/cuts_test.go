package main

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

const recorded = "../../testdata/streams"

// One in a hundred of what `make cuts` cuts. Its table must not be empty where a cut
// can end in that way: a test that cuts nothing finds nothing.
func TestCuts(t *testing.T) {
	defer goleak.VerifyNone(t)
	golden, err := readGolden(recorded)
	require.NoError(t, err)
	s := newScore(1)
	require.NoError(t, s.play(t.Context(), golden, 1000, 32))
	var table bytes.Buffer
	s.write(&table, 0)
	t.Logf("%s", table.String())
	assert.Zero(t, s.wrong, "%s", table.String())
	assert.GreaterOrEqual(t, s.cut, 1000)
	for _, how := range cuts {
		for _, end := range []string{endMoved, endError, endStatus} {
			assert.NotZero(t, s.tally[how][end], "no answer with the cut %q ended as %q", how, end)
		}
	}
	assert.NotZero(t, s.tally[whole][endWhole])
}

func TestOneCase(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), []string{"-streams", recorded, "-seed", "1", "-case", "5"}, &out))
	assert.Regexp(t, `1 cuts in \d+ s, seed 1: 0 that`, out.String())
	require.Error(t, run(t.Context(), []string{"-streams", t.TempDir()}, &out))
}

// What is dishonest must be found: each of these is an answer as a relay could give it
// that goes wrong.
func TestDishonestEndsAreFound(t *testing.T) {
	frame := func(name, data string) string { return "event: " + name + "\ndata: " + data + "\n\n" }
	start := frame("message_start", `{"type":"message_start","message":{"usage":{"input_tokens":11,"output_tokens":1}}}`) +
		frame("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
	delta := frame("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"so far"}}`)
	usage := frame("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}`)
	stop := frame("message_stop", `{"type":"message_stop"}`)
	own := frame("error", `{"type":"error","error":{"type":"api_error","message":"provider a ended the stream early"}}`)
	full := start + delta + usage + stop
	yes, no := true, false
	broken := record{Outcome: "broken", Partial: &yes, Attempts: 1, Input: 11, Output: 1}
	served := record{Outcome: "served", Partial: &no, Attempts: 1, Input: 11, Output: 7}
	with := func(rec record, change func(*record)) record { change(&rec); return rec }
	crlf := strings.ReplaceAll(start+frame("ping", `{"type":"ping"}`), "\n", "\r\n")
	for name, tc := range map[string]struct {
		sent, body string
		err        error
		rec        record
		want       string // "": it is honest
	}{
		"whole":                          {full, full, nil, served, ""},
		"cut and told":                   {start + delta + usage[:9], start + delta + own, nil, broken, ""},
		"cut inside a CRLF and told":     {crlf[:len(crlf)-1], crlf + own, nil, with(broken, func(r *record) { r.Output = 1 }), ""},
		"broken inside a frame":          {start + delta[:40], start + delta[:30], http.ErrAbortHandler, broken, ""},
		"a clean end":                    {start + delta, start + delta, nil, broken, "ends as if it were whole"},
		"a clean end inside a frame":     {start + delta[:30], start + delta[:30], nil, broken, "ends as if it were whole"},
		"a forged message_stop":          {start + delta, start + delta + stop, nil, served, "did not send"},
		"a forged one before the error":  {start + delta, start + delta + stop + own, nil, broken, "did not send"},
		"frames of somebody else":        {start + delta, start + usage + own, nil, broken, "did not send"},
		"a part of a frame, and told":    {start + delta[:30], start + delta[:30] + own, nil, broken, "inside a frame"},
		"an error that Go does not see":  {crlf[:len(crlf)-1], crlf[:len(crlf)-1] + own, nil, broken, "no error"},
		"broken between frames":          {start + delta, start + delta, http.ErrAbortHandler, broken, "between frames"},
		"a stop_reason before the end":   {start + usage, start + usage + own, nil, with(broken, func(r *record) { r.Output = 7 }), "before all content"},
		"a record that says served":      {start + delta, start + delta + own, nil, served, `"served"`},
		"a record that says whole":       {start + delta, start + delta + own, nil, with(broken, func(r *record) { r.Partial = &no }), "partial"},
		"a record with other usage":      {start + delta, start + delta + own, nil, with(broken, func(r *record) { r.Input = 12 }), "usage"},
		"a record of another's attempts": {full, full, nil, with(served, func(r *record) { r.Attempts = 2 }), "the record says 2"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &play{stream: true, full: full, sent: tc.sent, how: fin}
			if tc.sent != full && !strings.HasPrefix(full, tc.sent) {
				p.full = tc.sent + delta
			}
			turn := &turn{stream: true, how: fin}
			got := &reply{status: 200, header: http.Header{"Content-Type": {"text/event-stream"}}, body: tc.body, err: tc.err, attempts: 1, record: tc.rec}
			_, err := judge(turn, []*play{p}, got)
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestACutJSONAnswerIsFound(t *testing.T) {
	const full = `{"type":"message","usage":{"input_tokens":11,"output_tokens":7}}`
	no := false
	rec := record{Outcome: "served", Partial: &no, Attempts: 1, Input: 11, Output: 7}
	for name, tc := range map[string]struct {
		status int
		body   string
		err    error
		want   string
	}{
		"whole":           {200, full, nil, ""},
		"a part":          {200, full[:20], nil, "a part of a JSON answer"},
		"broken":          {200, full[:20], http.ErrAbortHandler, "broke off"},
		"an error":        {502, `{"type":"error","error":{"type":"api_error","message":"m"}}`, nil, ""},
		"a part an error": {502, full[:20], nil, "without an error of the API"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := judge(&turn{how: fin}, []*play{{full: full, sent: full[:20], how: fin}}, &reply{status: tc.status, body: tc.body, err: tc.err, attempts: 1, record: rec})
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.want)
		})
	}
}

// The recorded streams and those that are made up are whole to every reader that
// can read them at all.
func TestReadersAgreeOnWholeAnswers(t *testing.T) {
	golden, err := readGolden(recorded)
	require.NoError(t, err)
	for i := range 500 {
		rng := newRand(3, uint64(i))
		text := newStream(rng, golden, "x")
		events, ends, tail := specEvents(text)
		got := accumulate(events, false)
		require.Empty(t, tail, "%q", text)
		require.Equal(t, len(text), ends[len(ends)-1])
		require.True(t, got.complete != got.failed, "%q", text)
		if strings.Contains(text, "\r") || !got.complete {
			continue
		}
		if goGot := accumulate(goEvents(text, false), true); !strings.Contains(text, "\n\ndata: {\"type\"") {
			require.True(t, goGot.complete, "%q", text)
		}
	}
}
