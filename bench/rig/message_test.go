package rig_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/bench/rig"
)

// The frames of a short answer.
const (
	start      = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"model\":\"m\",\"usage\":{\"input_tokens\":7,\"output_tokens\":1}}}\n\n"
	ping       = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
	blockStart = "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
	delta      = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"one \"}}\n\n"
	blockStop  = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
	closing    = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\n\n"
	stop       = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	failure    = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"broken\"}}\n\n"

	good = start + ping + blockStart + delta + ping + delta + blockStop + closing + stop
)

func TestReadStream(t *testing.T) {
	m, err := rig.ReadStream([]byte(good))
	require.NoError(t, err)
	assert.Equal(t, rig.Message{Model: "m", Text: "one one ", Stop: "end_turn", Usage: rig.Usage{Input: 7, Output: 9}, Complete: true}, m)
}

func TestAStreamThatIsNotWhole(t *testing.T) {
	for name, tt := range map[string]struct {
		body   string
		failed bool
	}{
		"no message_stop":         {strings.TrimSuffix(good, stop), false},
		"nothing":                 {"", false},
		"message_start alone":     {start, false},
		"an error in the middle":  {start + blockStart + delta + failure, true},
		"an error at once":        {failure, true},
		"an error before the end": {strings.TrimSuffix(good, stop) + failure, true},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := rig.ReadStream([]byte(tt.body))
			require.NoError(t, err)
			assert.False(t, m.Complete)
			assert.Equal(t, tt.failed, m.Failed)
		})
	}
}

func TestAStreamThatNoProviderSends(t *testing.T) {
	for name, tt := range map[string]struct{ body, want string }{
		"two answers":                    {start + blockStart + delta + good, "a second message_start"},
		"a second message_start alone":   {start + start, "a second message_start"},
		"two answers, one after another": {good + good, "message_start after the end"},
		"spliced at the block":           {start + blockStart + delta + blockStart + delta + blockStop + closing + stop, "block 0 begins, 1 have begun"},
		"a block again":                  {start + blockStart + blockStop + blockStart, "block 0 begins, 1 have begun"},
		"spliced without its beginning":  {start + ping + delta, "content_block_delta of block 0, which is not open"},
		"a delta after its block":        {start + blockStart + blockStop + delta, "which is not open"},
		"no message_start":               {blockStart + delta, "content_block_start before message_start"},
		"message_stop in the middle":     {start + blockStart + delta + stop, "message_stop without message_delta"},
		"the end of another answer":      {start + blockStart + delta + closing + stop, "message_delta inside block 0"},
		"content after message_delta":    {start + blockStart + blockStop + closing + blockStart, "after message_delta"},
		"message_stop after an error":    {start + blockStart + delta + failure + stop, "message_stop after the end"},
		"an error after the end":         {good + failure, "error after the end"},
		"a ping after the end":           {good + ping, "ping after the end"},
		"two ends":                       {good + stop, "message_stop after the end"},
		"a frame without end":            {start + delta[:20], "inside a frame"},
		"no JSON":                        {start + "event: content_block_delta\ndata: {\"type\"\n\n", "content_block_delta is not JSON"},
		"another name":                   {start + strings.Replace(ping, "event: ping", "event: pong", 1), `pong says that it is "ping"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rig.ReadStream([]byte(tt.body))
			assert.ErrorContains(t, err, tt.want)
		})
	}
}

func TestCommentsAndLaterEventsAreNoMistake(t *testing.T) {
	later := "event: something_new\ndata: {\"type\":\"something_new\"}\n\n"
	m, err := rig.ReadStream([]byte(start + ": hello\n\n" + later + strings.TrimPrefix(good, start)))
	require.NoError(t, err)
	assert.True(t, m.Complete)
}

func TestReadJSON(t *testing.T) {
	const body = `{"type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"stop_reason":"end_turn","usage":{"input_tokens":7,"output_tokens":9}}`
	m, err := rig.ReadJSON([]byte(body))
	require.NoError(t, err)
	assert.Equal(t, rig.Message{Model: "m", Text: "ab", Stop: "end_turn", Usage: rig.Usage{Input: 7, Output: 9}, Complete: true}, m)
	for name, bad := range map[string]string{
		"cut":         body[:100],
		"two answers": body + body,
		"empty":       "",
		"an error":    `{"type":"error","error":{"type":"api_error","message":"broken"}}`,
		"no end":      strings.Replace(body, `"end_turn"`, "null", 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rig.ReadJSON([]byte(bad))
			assert.Error(t, err)
		})
	}
}
