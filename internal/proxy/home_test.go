package proxy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A conversation's next turn finds the prompt cache of the key that served it.
func TestConversationsStayOnTheirKey(t *testing.T) {
	leakFree(t)
	session := func(id string) http.Header { return http.Header{"X-Claude-Code-Session-Id": {id}} }
	userID := func(id string) string {
		quoted, _ := json.Marshal(id)
		return strings.Replace(ask(opus, false), `"max_tokens"`, `"metadata":{"user_id":`+string(quoted)+`},"max_tokens"`, 1)
	}
	for name, turn := range map[string]call{
		"header":           {header: session("one"), body: ask(opus, false)},
		"user_id, JSON":    {body: userID(`{"device_id":"d","account_uuid":"","session_id":"two"}`)},
		"user_id, older":   {body: userID("user_abc_account__session_three")},
		"session affinity": {header: http.Header{"X-Session-Affinity": {"four"}}, body: ask(opus, false)},
	} {
		t.Run(name, func(t *testing.T) {
			a := newSim(t, "a", 5)
			r := relayOf(t, a)
			for range 7 { // others come between, and would each take the next key
				requireServed(t, r.do(turn), false)
				requireServed(t, r.do(call{body: ask(opus, false)}), false)
			}
			used := map[string]bool{}
			for i, rec := range a.Seen() {
				if i%2 == 0 {
					used[rec.Key] = true
				}
			}
			assert.Len(t, used, 1, "keys of one conversation: %v", used)
		})
	}
}

// Nobody can reach another client's home by using its session id.
func TestConversationsBelongToTheirClient(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 2)
	r := relayOf(t, a)
	same := http.Header{"X-Claude-Code-Session-Id": {"one"}}
	for range 3 {
		requireServed(t, r.do(call{token: aliceToken, header: same, body: ask(opus, false)}), false)
		requireServed(t, r.do(call{token: bobToken, header: same, body: ask(opus, false)}), false)
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
	turn := call{header: http.Header{"X-Claude-Code-Session-Id": {"one"}}, body: ask(opus, false)}
	requireServed(t, r.do(turn), false)
	requireServed(t, r.do(turn), false)
	assert.Equal(t, []string{"key-1", "key-1", "key-2"}, a.keysSeen())
}

// The small requests that a coding agent makes to another model have another
// prompt, and must not move the home of the large ones.
func TestConversationsHaveAHomePerModel(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 2)
	r := relayOf(t, a)
	session := http.Header{"X-Claude-Code-Session-Id": {"one"}}
	for range 3 {
		requireServed(t, r.do(call{header: session, body: ask(opus, false)}), false)
		requireServed(t, r.do(call{header: session, body: ask(haiku, false)}), false)
	}
	assert.Equal(t, []string{"key-1", "key-2", "key-1", "key-2", "key-1", "key-2"}, a.keysSeen())
}

func TestAConversationMovesOnceWhenItsKeyDies(t *testing.T) {
	leakFree(t)
	dead := key(1, status(401))
	dead.From = 2
	a := newSim(t, "a", 3, dead)
	r := relayOf(t, a)
	turn := call{header: http.Header{"X-Claude-Code-Session-Id": {"one"}}, body: ask(opus, false)}
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
