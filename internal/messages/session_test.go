package messages_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

func TestSessionID(t *testing.T) {
	const (
		code     = "x-claude-code-session-id"
		affinity = "x-session-affinity"
		session  = "x-session-id"
		inJSON   = `{"device_id":"d","account_uuid":"","session_id":"from-json"}`
	)
	long := strings.Repeat("x", 257)
	tests := []struct {
		name   string
		header map[string]string
		userID string
		want   string
	}{
		{"nothing", nil, "", ""},
		{"its header first", map[string]string{code: "a", affinity: "b", session: "c"}, inJSON, "a"},
		{"user_id in JSON next", map[string]string{affinity: "b", session: "c"}, inJSON, "from-json"},
		{"affinity next", map[string]string{affinity: "b", session: "c"}, "", "b"},
		{"session last", map[string]string{session: "c"}, "", "c"},
		{"older user_id", nil, "user_9b9b_account_1f-2e_session_5c-6d", "5c-6d"},
		{"older user_id without account", nil, "user_9b9b_account__session_5c-6d", "5c-6d"},
		{"older user_id without session", nil, "user_9b9b_account_1f", ""},
		{"plain user_id", map[string]string{session: "c"}, "somebody", "c"},
		{"plain user_id that looks like one", nil, "my_session_5", ""},
		{"JSON with spaces", nil, ` { "a" : [ 1 ] , "session_id" : "s" }`, "s"},
		{"JSON with escapes", nil, `{"session_id":"a\u002db"}`, "a-b"},
		{"JSON deeper only", nil, `{"x":{"session_id":"s"}}`, ""},
		{"JSON session no string", map[string]string{session: "c"}, `{"session_id":5}`, "c"},
		{"JSON session bad string", map[string]string{session: "c"}, `{"session_id":"\ud800"}`, "c"},
		{"JSON cut", map[string]string{session: "c"}, `{"device_id":"d","sess`, "c"},
		{"header empty", map[string]string{code: "", session: "c"}, "", "c"},
		{"header too long", map[string]string{code: long, session: "c"}, "", "c"},
		{"longest", map[string]string{code: long[1:]}, "", long[1:]},
		{"user_id session too long", map[string]string{session: "c"}, "user_a_account_b_session_" + long, "c"},
		{"all too long", map[string]string{code: long, affinity: long, session: long}, `{"session_id":"` + long + `"}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			for name, value := range tt.header {
				h.Set(name, value)
			}
			assert.Equal(t, tt.want, messages.SessionID(h, quoted(t, tt.userID)))
		})
	}
}

// quoted is text as Inspect finds it in a body: escaped, between its quotes.
func quoted(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := json.Marshal(text)
	require.NoError(t, err)
	return raw[1 : len(raw)-1]
}

func TestSessionIDFromHeaderIsFree(t *testing.T) {
	h := http.Header{"X-Claude-Code-Session-Id": {"0f4d2c1e-6a58-4b7f-8c3d-51e2a9b70d64"}}
	userID := []byte(`{"session_id":"x"}`)
	got := testing.AllocsPerRun(10, func() { _ = messages.SessionID(h, userID) })
	assert.Zero(t, got)
}
