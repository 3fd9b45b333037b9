package proxy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// cached is the body of a request whose system prompt of about 2,000 tokens the
// provider shall keep. Prompts differ by what they are about.
func cached(model, about string, stream bool) string {
	system := `"system":[{"type":"text","text":"` + about + strings.Repeat(" rules", 1334) + `","cache_control":{"type":"ephemeral"}}],"messages"`
	return strings.Replace(ask(model, stream), `"messages"`, system, 1)
}

// ofSession is the header by which Claude Code names a session.
func ofSession(id string) http.Header { return http.Header{"X-Claude-Code-Session-Id": {id}} }

// withUserID adds the metadata by which others do.
func withUserID(body, id string) string {
	quoted, _ := json.Marshal(id)
	return strings.Replace(body, `"max_tokens"`, `"metadata":{"user_id":`+string(quoted)+`},"max_tokens"`, 1)
}

// A conversation's next turn finds the prompt cache of the key that served it.
func TestConversationsStayOnTheirKey(t *testing.T) {
	leakFree(t)
	body := cached(opus, "one", false)
	for name, turn := range map[string]call{
		"header":           {header: ofSession("one"), body: body},
		"user_id, JSON":    {body: withUserID(body, `{"device_id":"d","account_uuid":"","session_id":"two"}`)},
		"user_id, older":   {body: withUserID(body, "user_abc_account__session_three")},
		"session affinity": {header: http.Header{"X-Session-Affinity": {"four"}}, body: body},
		"by its beginning": {body: body},
	} {
		t.Run(name, func(t *testing.T) {
			a := newSim(t, "a", 5)
			r := relayOf(t, a)
			for n := range 7 { // others come between, and would each take the next key
				requireServed(t, r.do(turn), false)
				requireServed(t, r.do(call{body: cached(opus, "other "+itoa(n), false)}), false)
			}
			used, read := map[string]bool{}, 0
			for i, rec := range a.Seen() {
				if i%2 == 0 {
					used[rec.Key] = true
					read += rec.Usage.CacheRead
				}
			}
			assert.Len(t, used, 1, "keys of one conversation: %v", used)
			assert.Greater(t, read, 6*1900, "each turn but the first reads the cache")
		})
	}
}

// The turn of a tool loop goes back to the organization that can read its thinking, and
// what names a container to the one that has it, cached or not.
func TestWhatWasLeftBehindIsHome(t *testing.T) {
	leakFree(t)
	const begin = `{"model":"claude-sonnet-5-5","max_tokens":64,"tools":[{"name":"n","input_schema":{}}],"messages":[{"role":"user","content":"hello"}`
	for name, next := range map[string]string{
		"tool calls":  begin + `,{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"n","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"ok"}]}]}`,
		"a container": begin + `,{"role":"assistant","content":"hi"},{"role":"user","content":"go on"}],"container":"container_1"}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := newSim(t, "a", 3)
			r := relayOf(t, a)
			requireServed(t, r.do(call{body: begin + `]}`}), false)
			for range 5 {
				requireServed(t, r.do(call{body: next}), false)
			}
			seen := a.keysSeen()
			assert.Len(t, seen, 6)
			assert.Len(t, slices.Compact(seen), 1, "keys of one conversation")
		})
	}
}

// Where nothing of a conversation is cached there is no reason to stay: the load
// spreads.
func TestNothingCachedIsNoHome(t *testing.T) {
	leakFree(t)
	short := strings.Replace(cached(opus, "short", false), strings.Repeat(" rules", 1300), "", 1)
	for name, body := range map[string]string{
		"no cache_control": strings.Replace(cached(opus, "none", false), `,"cache_control":{"type":"ephemeral"}`, "", 1),
		"below the least":  short,
	} {
		t.Run(name, func(t *testing.T) {
			a := newSim(t, "a", 3)
			r := relayOf(t, a)
			for range 3 {
				requireServed(t, r.do(call{header: ofSession("one"), body: body}), false)
			}
			assert.ElementsMatch(t, []string{"key-1", "key-2", "key-3"}, a.keysSeen())
		})
	}
}

// Nobody can reach another client's home by using its session id.
func TestConversationsBelongToTheirClient(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 2)
	r := relayOf(t, a)
	turn := call{header: ofSession("one"), body: cached(opus, "one", false)}
	for range 3 {
		for _, token := range []string{aliceToken, bobToken} {
			turn.token = token
			requireServed(t, r.do(turn), false)
		}
	}
	assert.Equal(t, []string{"key-1", "key-2", "key-1", "key-2", "key-1", "key-2"}, a.keysSeen())
}

// A home that is overloaded is not asked once more while another owner is there.
func TestAConversationLeavesAnOverloadedHome(t *testing.T) {
	leakFree(t)
	busy := key(1, status(529))
	busy.From = 2
	a := newSim(t, "a", 2, busy)
	r := relayOf(t, a)
	turn := call{header: ofSession("one"), body: cached(opus, "one", false)}
	requireServed(t, r.do(turn), false)
	requireServed(t, r.do(turn), false)
	assert.Equal(t, []string{"key-1", "key-1", "key-2"}, a.keysSeen())
}

// The small requests that a coding agent makes to another model have another
// prompt, and must not move the home of the large ones.
func TestConversationsHaveAHomePerModel(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 3)
	r := relayOf(t, a)
	seen := map[string]map[string]bool{opus: {}, haiku: {}}
	for range 3 {
		for _, model := range []string{opus, haiku} {
			requireServed(t, r.do(call{header: ofSession("one"), body: cached(model, "one", false)}), false)
			seen[model][a.Seen()[len(a.Seen())-1].Key] = true
		}
	}
	assert.Len(t, seen[opus], 1, "keys that served opus")
	assert.Len(t, seen[haiku], 1, "keys that served haiku")
}

// Subagents share the session of their parent, and neither its prompt nor its home.
func TestSubagentsHaveAHomeOfTheirOwn(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 3)
	r := relayOf(t, a)
	for range 3 {
		for _, who := range []string{"parent", "subagent"} {
			requireServed(t, r.do(call{header: ofSession("one"), body: cached(opus, who, false)}), false)
		}
	}
	assert.Equal(t, []string{"key-1", "key-2", "key-1", "key-2", "key-1", "key-2"}, a.keysSeen())
}

func TestAConversationMovesOnceWhenItsKeyDies(t *testing.T) {
	leakFree(t)
	dead := key(1, status(401))
	dead.From = 2
	a := newSim(t, "a", 3, dead)
	r := relayOf(t, a)
	turn := call{header: ofSession("one"), body: cached(opus, "one", false)}
	for range 6 {
		requireServed(t, r.do(turn), false)
	}
	seen := a.keysSeen()
	require.Equal(t, []string{"key-1", "key-1"}, seen[:2])
	for _, k := range seen[3:] {
		assert.Equal(t, seen[2], k, "keys: %v", seen)
	}
	assert.Len(t, seen, 7, fmt.Sprint(seen))
}
