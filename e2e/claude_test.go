package e2e_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// claudeAsks runs Claude Code behind the wiretap with the relay's token.
func (b *bench) claudeAsks(t *testing.T, prompt string, args ...string) outcome {
	t.Helper()
	return runClaude(t, b.wire.url(), relayToken, prompt, args...)
}

// modelCalls returns the requests of Claude Code, which must be want model calls and
// nothing else. Their number is what shows a retry: in the header that counts them
// Claude Code always writes 0.
func (b *bench) modelCalls(t *testing.T, want int) []exchange {
	t.Helper()
	sent := b.wire.exchanges(t)
	require.Len(t, sent, want, "requests of Claude Code: %s", targets(sent))
	for _, e := range sent {
		assert.Equal(t, "POST /v1/messages?beta=true", e.Request.Method+" "+e.Request.RequestURI)
		assert.Equal(t, "0", e.Request.Header.Get("X-Stainless-Retry-Count"))
	}
	return sent
}

func targets(sent []exchange) (all []string) {
	for _, e := range sent {
		all = append(all, fmt.Sprintf("%s %s %d", e.Request.Method, e.Request.RequestURI, e.Response.StatusCode))
	}
	return all
}

func TestClaudeCodeAnswersAPrompt(t *testing.T) {
	b := setUp(t, said(verse))
	got := b.claudeAsks(t, "Say your verse.")
	assert.False(t, got.IsError, got.Result)
	assert.Equal(t, verse, got.Result)

	sent, seen := b.modelCalls(t, 1), b.provider.Seen()
	require.Len(t, seen, 1)
	assertCarried(t, sent[0], seen[0])
	assert.Contains(t, seen[0].Header.Get("Anthropic-Beta"), "claude-code-")
	assert.Contains(t, string(seen[0].Body), "Say your verse.")
	assert.Equal(t, got.SessionID, seen[0].Header.Get("X-Claude-Code-Session-Id"))
	assert.Contains(t, string(sent[0].Answer), "event: message_stop")
	assert.Equal(t, "text/event-stream; charset=utf-8", sent[0].Response.Header.Get("Content-Type"))
}

// bashThenSay answers with one call of Bash and, once its result is there, with text.
func bashThenSay(command, text string) func(*simulator.Config) {
	return func(cfg *simulator.Config) {
		cfg.Reply = func(r simulator.Request) simulator.Reply {
			if r.HasToolResult {
				return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: text}}}
			}
			return simulator.Reply{Blocks: []simulator.ReplyBlock{
				{Type: simulator.ToolUseBlock, Name: "Bash", Input: bashInput(command)},
			}}
		}
	}
}

func bashInput(command string) json.RawMessage {
	input, err := json.Marshal(map[string]string{"command": command, "description": "Print a mark"})
	if err != nil { // strings cannot fail to encode
		panic(err)
	}
	return input
}

// lastToolResult is the content of the first tool result in the newest message that
// has one.
func lastToolResult(t *testing.T, body []byte) string {
	t.Helper()
	var request struct {
		Messages []struct {
			Role    string
			Content json.RawMessage
		}
	}
	require.NoError(t, json.Unmarshal(body, &request))
	for i := len(request.Messages) - 1; i >= 0; i-- {
		var blocks []struct {
			Type    string
			Content json.RawMessage
		}
		if json.Unmarshal(request.Messages[i].Content, &blocks) != nil { // a plain text
			continue
		}
		for _, b := range blocks {
			if b.Type == "tool_result" {
				return string(b.Content)
			}
		}
	}
	t.Fatalf("no tool result in\n%s", body)
	return ""
}

func TestClaudeCodeUsesATool(t *testing.T) {
	mark := "relay-e2e-" + rand.Text()
	b := setUp(t, bashThenSay("echo "+mark, verse))
	got := b.claudeAsks(t, "Print the mark.", "--allowedTools", "Bash(echo:*)")
	assert.False(t, got.IsError, got.Result)
	assert.Equal(t, verse, got.Result)
	assert.Equal(t, 2, got.NumTurns)

	sent, seen := b.modelCalls(t, 2), b.provider.Seen()
	require.Len(t, seen, 2)
	for i := range sent {
		assertCarried(t, sent[i], seen[i])
	}
	assert.Contains(t, lastToolResult(t, seen[1].Body), mark)
	assert.Equal(t, seen[0].Key, seen[1].Key, "a session stays with its key: its prompt cache is there")
	assert.Positive(t, seen[1].Usage.CacheRead, "tokens read from the prompt cache in the second turn")
}

func TestClaudeCodeDoesNotNoticeALimitedAndADeadKey(t *testing.T) {
	mark := "relay-e2e-" + rand.Text()
	b := setUp(t, func(cfg *simulator.Config) {
		bashThenSay("echo "+mark, verse)(cfg)
		cfg.Faults = []simulator.Fault{
			{Nth: 1, Kind: simulator.FaultStatus, Status: 429, Headers: map[string]string{"Retry-After": "30"}},
			{Nth: 2, Kind: simulator.FaultDeadKey},
		}
	})
	got := b.claudeAsks(t, "Print the mark.", "--allowedTools", "Bash(echo:*)")
	assert.False(t, got.IsError, got.Result)
	assert.Equal(t, verse, got.Result)

	sent, seen := b.modelCalls(t, 2), b.provider.Seen()
	keys := b.provider.keysSeen()
	require.Len(t, keys, 4)
	assert.ElementsMatch(t, b.provider.keys, keys[:3], "keys asked for the first turn")
	assert.Equal(t, keys[2], keys[3], "key of the second turn")
	assert.Equal(t, http.StatusTooManyRequests, seen[0].Status)
	assert.Equal(t, http.StatusUnauthorized, seen[1].Status)
	for i, e := range []exchange{sent[0], sent[0], sent[0], sent[1]} {
		assertCarried(t, e, seen[i])
	}
	for i, attempts := range []string{"3", "1"} {
		assert.Equal(t, http.StatusOK, sent[i].Response.StatusCode)
		assert.Equal(t, attempts, sent[i].Response.Header.Get("X-Cc-Relay-Attempts"))
	}
}

// Three subagents work at once and share the session of their parent, but neither
// its tools nor its system prompt: they may go anywhere, and it goes back to the key
// that has its own prompt cached.
func TestClaudeCodeComesBackToItsKeyFromSubagents(t *testing.T) {
	b := setUp(t, func(cfg *simulator.Config) { cfg.Reply = delegate(3) })
	got := b.claudeAsks(t, "Delegate.", "--allowedTools", "Agent")
	assert.False(t, got.IsError, got.Result)
	assert.Equal(t, "all came back", got.Result)

	b.modelCalls(t, 5)
	keys := map[string][]string{} // by agent; "" is the main loop
	for _, r := range b.provider.Seen() {
		assert.Equal(t, got.SessionID, r.Header.Get("X-Claude-Code-Session-Id"))
		agent := r.Header.Get("X-Claude-Code-Agent-Id")
		keys[agent] = append(keys[agent], r.Key)
	}
	assert.Len(t, keys, 4, "the main loop and three subagents")
	if assert.Len(t, keys[""], 2) {
		assert.Equal(t, keys[""][0], keys[""][1], "key of the main loop before and after its subagents")
	}
}

// delegate answers the first turn with n subagents, theirs with a text, and the
// results of all with another.
func delegate(n int) func(simulator.Request) simulator.Reply {
	return func(r simulator.Request) simulator.Reply {
		switch {
		case strings.Contains(r.UserText, "Count to"):
			return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: "counted"}}}
		case r.HasToolResult:
			return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: "all came back"}}}
		}
		var calls []simulator.ReplyBlock
		for i := range n {
			calls = append(calls, simulator.ReplyBlock{
				Type:  simulator.ToolUseBlock,
				Name:  "Agent",
				Input: fmt.Appendf(nil, `{"description":"Count","prompt":"Count to %d.","subagent_type":"general-purpose","run_in_background":false}`, i),
			})
		}
		return simulator.Reply{Blocks: calls}
	}
}

// Claude Code repeats a 401 ten times, for three minutes, unless it is told that
// this is no use.
func TestClaudeCodeWithAWrongTokenEndsAtOnce(t *testing.T) {
	b := setUp(t, nil)
	began := time.Now()
	got := runClaude(t, b.wire.url(), "not-a-token-of-the-relay", "Let me in.")
	assert.Less(t, time.Since(began), 30*time.Second)
	assert.True(t, got.IsError)
	assert.Equal(t, http.StatusUnauthorized, got.APIErrorStatus)
	assert.Equal(t, "authentication_error", got.APIErrorType)
	assert.Contains(t, got.Result, "the relay does not know this token")
	sent := b.modelCalls(t, 1)
	assert.Equal(t, "false", sent[0].Response.Header.Get("X-Should-Retry"))
	assert.Empty(t, b.provider.Seen(), "requests at the provider")
}
