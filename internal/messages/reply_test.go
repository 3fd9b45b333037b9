package messages_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

const reply = `{"id":"msg_1","type":"message","role":"assistant","model":"claude-opus-5-5","content":[{"type":"text","text":"{\"usage\":{\"input_tokens\":99}}"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":12,"cache_creation_input_tokens":34,"cache_read_input_tokens":56,"cache_creation":{"ephemeral_5m_input_tokens":34,"ephemeral_1h_input_tokens":0},"output_tokens":78,"service_tier":"standard"}}`

func TestInspectReply(t *testing.T) {
	full := messages.Usage{Input: 12, CacheWrite: 34, CacheRead: 56, Output: 78}
	tests := []struct {
		name, body string
		want       messages.Reply
	}{
		{"message", reply, messages.Reply{Usage: full, StopReason: "end_turn"}},
		{"blank lines first", "\n\n\r\n" + reply + "\n", messages.Reply{Usage: full, StopReason: "end_turn"}},
		{"error", `{"type":"error","error":{"type":"overloaded_error","message":"x"}}`, messages.Reply{Error: true}},
		{"error named deeper only", `{"error":{"type":"error"}}`, messages.Reply{}},
		{"type not a string", `{"type":["error"]}`, messages.Reply{}},
		{"token count", `{"input_tokens":2095}`, messages.Reply{}},
		{"nothing", `{}`, messages.Reply{}},
		{"usage without counts", `{"usage":{"service_tier":"x"}}`, messages.Reply{}},
		{"usage null", `{"usage":null,"stop_reason":null}`, messages.Reply{}},
		{"usage no object", `{"usage":[1]}`, messages.Reply{Suspect: true}},
		{"odd counts", `{"usage":{"input_tokens":-5,"output_tokens":1e300}}`, messages.Reply{Usage: messages.Usage{Output: 1 << 53}, Suspect: true}},
		{"new stop reason", `{"stop_reason":"compaction"}`, messages.Reply{StopReason: "compaction"}},
		{"absurd stop reason", `{"stop_reason":"` + strings.Repeat("x", 65) + `"}`, messages.Reply{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := messages.InspectReply([]byte(tt.body))
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestInspectReplyRefusesEveryCut(t *testing.T) {
	for n := range reply {
		got, err := messages.InspectReply([]byte(reply[:n]))
		var invalid *messages.InvalidError
		require.ErrorAs(t, err, &invalid, "cut at %d", n)
		require.LessOrEqual(t, invalid.Offset, n, "offset beyond the cut")
		require.Empty(t, got)
	}
}

func TestInspectReplyRefusesOtherThings(t *testing.T) {
	for _, body := range []string{"", "\n", "null", `"x"`, "[]", "<html>", reply + "{}", "event: ping\ndata: {}\n\n"} {
		_, err := messages.InspectReply([]byte(body))
		require.Error(t, err, "body %q", body)
	}
}

// However it is torn apart, of an answer with nothing after it only the whole is closed.
func TestNestingOfEveryPart(t *testing.T) {
	const text = `{"a":[1,{"b":"}]\\\"{"},[]],"\\\\":"[","c":{}}`
	for from := range len(text) + 1 {
		for to := from; to <= len(text); to++ {
			var n messages.Nesting
			n.Add([]byte(text[:from]))
			n.Add([]byte(text[from:to]))
			require.Equal(t, to == len(text), n.Closed(), "%s|%s", text[:from], text[from:to])
		}
	}
}
