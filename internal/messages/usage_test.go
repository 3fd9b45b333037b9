package messages_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/messages"
)

func frame(event, data string) messages.Frame {
	return messages.Frame{Event: []byte(event), Data: []byte(data)}
}

func started(usage string) messages.Frame {
	return frame("message_start", `{"type":"message_start","message":{"id":"msg_1","content":[],"usage":`+usage+`}}`)
}

func delta(usage string) messages.Frame {
	return frame("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":`+usage+`}`)
}

func TestPrompt(t *testing.T) {
	assert.Equal(t, 7, messages.Usage{Input: 1, CacheWrite: 2, CacheRead: 4, Output: 8}.Prompt())
	assert.Zero(t, messages.Usage{}.Prompt())
	const most = 1 << 53
	assert.Equal(t, 3*most, messages.Usage{Input: most, CacheWrite: most, CacheRead: most}.Prompt(), "no overflow")
}

func TestMeterUsage(t *testing.T) {
	const most = 1 << 53
	type u = messages.Usage
	start := started(`{"input_tokens":10,"cache_creation_input_tokens":20,"cache_read_input_tokens":30,"output_tokens":1}`)
	tests := []struct {
		name    string
		frames  []messages.Frame
		want    u
		suspect bool
	}{
		{"nothing", nil, u{}, false},
		{"start alone", []messages.Frame{start}, u{10, 20, 30, 1}, false},
		{"delta replaces what it names", []messages.Frame{start, delta(`{"output_tokens":50}`)}, u{10, 20, 30, 50}, false},
		{"delta restates all", []messages.Frame{start, delta(`{"input_tokens":11,"cache_creation_input_tokens":21,"cache_read_input_tokens":31,"output_tokens":50}`)}, u{11, 21, 31, 50}, false},
		{"several deltas never add", []messages.Frame{start, delta(`{"output_tokens":5}`), delta(`{"output_tokens":9}`), delta(`{"output_tokens":9}`)}, u{10, 20, 30, 9}, false},
		{"null keeps", []messages.Frame{start, delta(`{"input_tokens":null,"output_tokens":5}`)}, u{10, 20, 30, 5}, false},
		{"usage null", []messages.Frame{start, delta(`null`)}, u{10, 20, 30, 1}, false},
		{"zeros first, truth at the end", []messages.Frame{started(`{"input_tokens":0,"output_tokens":0}`), delta(`{"input_tokens":7,"output_tokens":8}`)}, u{Input: 7, Output: 8}, false},
		{"others of the object", []messages.Frame{started(`{"server_tool_use":{"input_tokens":9},"iterations":[{"output_tokens":9}],"input_tokens":4,"x":"output_tokens"}`)}, u{Input: 4}, false},
		{"no start", []messages.Frame{delta(`{"output_tokens":5}`)}, u{Output: 5}, false},

		{"decreasing: the last wins", []messages.Frame{start, delta(`{"output_tokens":9}`), delta(`{"output_tokens":5}`)}, u{10, 20, 30, 5}, true},
		{"negative", []messages.Frame{start, delta(`{"output_tokens":-3}`)}, u{10, 20, 30, 0}, true},
		{"most", []messages.Frame{delta(`{"output_tokens":9007199254740992}`)}, u{Output: most}, false},
		{"above 2^53", []messages.Frame{delta(`{"output_tokens":9007199254740993}`)}, u{Output: most}, true},
		{"above 2^63", []messages.Frame{delta(`{"output_tokens":9223372036854775808}`)}, u{Output: most}, true},
		{"below -2^63", []messages.Frame{delta(`{"output_tokens":-9223372036854775809}`)}, u{}, true},
		{"hundreds of digits", []messages.Frame{delta(`{"output_tokens":1` + strings.Repeat("0", 400) + `}`)}, u{Output: most}, true},
		{"fraction", []messages.Frame{delta(`{"output_tokens":12.7}`)}, u{Output: 12}, true},
		{"exponent", []messages.Frame{delta(`{"output_tokens":1e3}`)}, u{Output: 1000}, true},
		{"infinite", []messages.Frame{delta(`{"output_tokens":1e999}`)}, u{Output: most}, true},
		{"negative infinite", []messages.Frame{delta(`{"output_tokens":-1e999}`)}, u{}, true},
		{"string", []messages.Frame{start, delta(`{"output_tokens":"12"}`)}, u{10, 20, 30, 1}, true},
		{"object", []messages.Frame{start, delta(`{"output_tokens":{"n":12}}`)}, u{10, 20, 30, 1}, true},
		{"usage a list", []messages.Frame{start, delta(`[12]`)}, u{10, 20, 30, 1}, true},
		{"once suspect, always", []messages.Frame{delta(`{"output_tokens":-3}`), delta(`{"output_tokens":5}`)}, u{Output: 5}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m messages.Meter
			for _, f := range tt.frames {
				m.Frame(f)
			}
			assert.Equal(t, tt.want, m.Usage())
			assert.Equal(t, tt.suspect, m.Suspect())
			assert.Zero(t, m.Skipped())
		})
	}
}

func TestMeterProgress(t *testing.T) {
	type progress struct {
		started, final, complete bool
		deltas, skipped          int
		stop                     string
	}
	tests := []struct {
		name  string
		frame messages.Frame
		want  progress
	}{
		{"start with usage", started(`{"input_tokens":1}`), progress{started: true}},
		{"start with usage of zero", started(`{"input_tokens":0}`), progress{started: true}},
		{"start without counts", started(`{}`), progress{}},
		{"start without usage", frame("message_start", `{"message":{"id":"x"}}`), progress{}},
		{"start without message", frame("message_start", `{"usage":{"input_tokens":1}}`), progress{}},
		{"start with message null", frame("message_start", `{"message":null}`), progress{}},
		{"start cut", frame("message_start", `{"message":{"usage":{"input_tokens":1}}`), progress{skipped: 1}},
		{"delta with usage", delta(`{"output_tokens":1}`), progress{final: true, stop: "end_turn"}},
		{"delta without usage", frame("message_delta", `{"delta":{"stop_reason":"refusal"}}`), progress{stop: "refusal"}},
		{"delta without reason", frame("message_delta", `{"delta":{"stop_reason":null},"usage":{"output_tokens":1}}`), progress{final: true}},
		{"delta of another shape", frame("message_delta", `{"delta":["stop_reason"],"usage":{"output_tokens":1}}`), progress{final: true}},
		{"delta cut", frame("message_delta", `{"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1}`), progress{skipped: 1}},
		{"delta not JSON", frame("message_delta", `oops`), progress{skipped: 1}},
		{"delta without data", frame("message_delta", ``), progress{skipped: 1}},
		{"delta with its head spilled", messages.Frame{Event: []byte("message_delta"), Partial: true}, progress{skipped: 1}},
		{"content", frame("content_block_delta", `not looked at`), progress{deltas: 1}},
		{"stop", frame("message_stop", `not looked at`), progress{complete: true}},
		{"other", frame("usage_hint", `{"usage":{"output_tokens":9}}`), progress{}},
		{"comment", messages.Frame{}, progress{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m messages.Meter
			m.Frame(tt.frame)
			assert.Equal(t, tt.want, progress{m.Started(), m.Final(), m.Complete(), m.Deltas(), m.Skipped(), m.StopReason()})
		})
	}
}

// A frame that cannot be read to its end changes nothing, not even half.
func TestMeterSkipsWhole(t *testing.T) {
	var m messages.Meter
	m.Frame(started(`{"input_tokens":10,"output_tokens":1}`))
	m.Frame(frame("message_delta", `{"delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":-4,"output_tokens":99}`))
	assert.Equal(t, messages.Usage{Input: 10, Output: 1}, m.Usage())
	assert.Empty(t, m.StopReason())
	assert.False(t, m.Final())
	assert.False(t, m.Suspect())
	assert.Equal(t, 1, m.Skipped())
}

func TestMeterStopReason(t *testing.T) {
	for _, reason := range []string{
		"end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded",
		"something_new", strings.Repeat("x", 64),
	} {
		var m messages.Meter
		m.Frame(frame("message_delta", `{"delta":{"stop_reason":"`+reason+`"}}`))
		assert.Equal(t, reason, m.StopReason())
		m.Frame(frame("message_delta", `{"delta":{"stop_reason":null}}`))
		m.Frame(frame("message_delta", `{"delta":{"stop_reason":"`+strings.Repeat("y", 65)+`"}}`))
		assert.Equal(t, reason, m.StopReason(), "null or an absurd one keeps the one before")
	}
}

func TestMeterAllocatesNothing(t *testing.T) {
	stream := longStream(200)
	r := strings.NewReader(stream)
	var f messages.Frames
	got := testing.AllocsPerRun(20, func() {
		r.Reset(stream)
		f.Reset()
		if m := meter(&f, r); !m.Complete() || m.Suspect() {
			t.Error("the stream was not metered")
		}
	})
	assert.Zero(t, got)
}
