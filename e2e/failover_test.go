package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
	"cc-relay/internal/simulator"
)

// departure is a way in which a provider goes away.
type departure struct {
	leave, comeBack func(t *testing.T, p *provider)
	verdict         string              // of an attempt meanwhile, in the relay's log
	fault           simulator.FaultKind // of its record at the provider; "": it has none
}

// none is what a session is like where nobody goes away.
var none = departure{
	leave:    func(*testing.T, *provider) {},
	comeBack: func(*testing.T, *provider) {},
}

// Departures.
const (
	portShut   = "its port is shut"
	overloaded = "it is overloaded"
	breaksOff  = "it breaks off before its answer begins"
)

var departures = map[string]departure{
	portShut: {
		leave:    func(t *testing.T, p *provider) { p.shut(t) },
		comeBack: func(t *testing.T, p *provider) { p.open(t) },
		verdict:  "unreachable",
	},
	overloaded: failing("overloaded", simulator.Fault{Kind: simulator.FaultStatus, Status: messages.StatusOverloaded}),
	breaksOff:  failing("failed", simulator.Fault{Kind: simulator.FaultCut, AfterEvents: 2, AfterBytes: 20}),
}

// failing is a departure after which every model call meets the fault.
func failing(verdict string, f simulator.Fault) departure {
	f.Path = modelCall
	return departure{
		leave:    func(t *testing.T, p *provider) { assert.NoError(t, p.SetFaults([]simulator.Fault{f})) },
		comeBack: func(t *testing.T, p *provider) { assert.NoError(t, p.SetFaults(nil)) },
		verdict:  verdict,
		fault:    f.Kind,
	}
}

// Origins of two providers. None means that the provider's name is its origin.
const (
	oneOrigin  = "one origin"
	twoOrigins = "two origins"
)

var origins = map[string][2]string{oneOrigin: {"maker", "maker"}, twoOrigins: {"maker", ""}}

// session is three turns before two providers, a before b: two tool calls, each
// after some thinking, and a text. Whoever calls a tool goes away, and the other is
// back, so that a, b and again a serve.
type session struct {
	*bench
	providers [2]*provider
	away      departure
	foreign   bool // neither may see what the other thought
	tool      string
	input     func(result string) json.RawMessage
	results   [2]string // of the tool calls
	failures  []string  // that the relay must have logged at its end
}

const sessionTurns = 3

func setUpSession(t *testing.T, away departure, origin, tool string, input func(result string) json.RawMessage) *session {
	t.Helper()
	s := &session{
		away: away, foreign: origin == twoOrigins,
		tool: tool, input: input, results: [2]string{"the-first-result", "the-second-result"},
	}
	keys := [2][]string{{keyA, keyB}, {keyC, keyD}}
	for i, name := range []string{"a", "b"} {
		s.providers[i] = startProvider(t, func(cfg *simulator.Config) {
			cfg.Organizations = organizations(keys[i]...)
			cfg.Reply = func(r simulator.Request) simulator.Reply { return s.turn(t, i, r) }
		})
		s.providers[i].name, s.providers[i].origin = name, origins[origin][i]
	}
	t.Cleanup(func() { // after the relay's, which ends its log
		if s.bench != nil {
			assert.Equal(t, s.failures, s.relay.log.failures(), "attempts that failed; log of the relay:\n%s", s.relay.log.text())
		}
	})
	s.bench = before(t, s.providers[:]...)
	return s
}

// turn is the next one, by provider i.
func (s *session) turn(t *testing.T, i int, r simulator.Request) simulator.Reply {
	result := s.results[0]
	switch {
	case strings.Contains(r.ToolResult, s.results[1]):
		return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: verse}}}
	case strings.Contains(r.ToolResult, s.results[0]):
		result = s.results[1]
	}
	s.away.comeBack(t, s.providers[1-i])
	s.away.leave(t, s.providers[i])
	return simulator.Reply{Blocks: []simulator.ReplyBlock{
		{Type: simulator.ThinkingBlock, Text: "What I need is " + result + ".", Signature: s.signature(i) + result},
		{Type: simulator.ToolUseBlock, Name: s.tool, Input: s.input(result)},
	}}
}

// signatures is how those of all providers begin.
const signatures = "signature/of+"

// signature is how those of provider i begin.
func (s *session) signature(i int) string { return signatures + s.providers[i].name + "/" }

// assertServed checks, once the session is over, who served which turn, that the
// client has sent each once, and what each provider has seen of it.
func (s *session) assertServed(t *testing.T) {
	t.Helper()
	sent := s.wire.exchanges(t)
	require.Len(t, sent, sessionTurns, "requests of the client: %s", targets(sent))
	served := [sessionTurns]int{0, 1, 0} // by which provider
	if s.away.verdict == "" {
		served = [sessionTurns]int{}
	}
	var want [2][]string // records of each provider
	for turn, by := range served {
		attempts := "1"
		if last := served[max(turn-1, 0)]; last != by { // it is asked first where the session was
			attempts = "2"
			s.failures = append(s.failures, s.providers[last].name+" "+s.away.verdict)
			if s.away.fault != "" {
				want[last] = append(want[last], record(turn, s.away.fault))
			}
		}
		want[by] = append(want[by], record(turn, ""))
		got := sent[turn].Response
		assert.Equal(t, http.StatusOK, got.StatusCode)
		assert.Equal(t, s.providers[by].name, got.Header.Get("X-Cc-Relay-Provider"), "provider that served turn %d", turn)
		assert.Equal(t, attempts, got.Header.Get("X-Cc-Relay-Attempts"), "attempts of turn %d", turn)
		thoughts := bytes.Count(sent[turn].Body, []byte(`"signature":"`+signatures))
		assert.Equal(t, turn, thoughts, "thinking blocks that the client gives back in turn %d", turn)
	}
	for i, p := range s.providers {
		assert.Equal(t, want[i], s.seen(t, i, sent), "requests at provider %s", p.name)
	}
}

// seen checks the records of provider i one by one, and lists them.
func (s *session) seen(t *testing.T, i int, sent []exchange) (records []string) {
	t.Helper()
	for _, r := range s.providers[i].Seen() {
		turn := bytes.Count(r.Body, []byte(`"type":"tool_result"`))
		require.Less(t, turn, sessionTurns)
		records = append(records, record(turn, r.Fault))
		s.assertFit(t, i, sent[turn], r)
		if r.Fault == "" {
			assert.Equal(t, r.RequestID, sent[turn].Response.Header.Get("Request-Id"))
		}
	}
	return records
}

func record(turn int, fault simulator.FaultKind) string {
	return fmt.Sprintf("turn %d %s", turn, fault)
}

// assertFit checks that provider i got a request as it was sent, but without what it
// must not see.
func (s *session) assertFit(t *testing.T, i int, sent exchange, got simulator.Record) {
	t.Helper()
	other := s.signature(1 - i)
	if !s.foreign || !bytes.Contains(sent.Body, []byte(other)) {
		assertCarried(t, sent, got)
		return
	}
	assertHead(t, sent, got)
	assert.NotContains(t, string(got.Body), other)
	assert.Equal(t, withoutThinking(t, sent.Body, other), withoutThinking(t, got.Body, other))
}

// withoutThinking is a body without the blocks whose signature begins with signed.
func withoutThinking(t *testing.T, body []byte, signed string) (request map[string]any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	require.NoError(t, d.Decode(&request))
	for _, m := range request["messages"].([]any) {
		message := m.(map[string]any)
		blocks, ok := message["content"].([]any)
		if !ok { // a plain text
			continue
		}
		message["content"] = slices.DeleteFunc(blocks, func(b any) bool {
			signature, _ := b.(map[string]any)["signature"].(string)
			return strings.HasPrefix(signature, signed)
		})
	}
	return request
}

func TestSDKDoesNotNoticeThatItsProviderGoesAway(t *testing.T) {
	run := func(t *testing.T, away departure, origin string) {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("stream %t", stream), func(t *testing.T) {
				forEachSDK(t, func(t *testing.T, client sdk) { askThrough(t, client, stream, away, origin) })
			})
		}
	}
	t.Run("nobody does", func(t *testing.T) { run(t, none, twoOrigins) })
	for name, away := range departures {
		for origin := range origins {
			t.Run(name+", "+origin, func(t *testing.T) { run(t, away, origin) })
		}
	}
}

// askThrough holds a session with an SDK.
func askThrough(t *testing.T, client sdk, stream bool, away departure, origin string) {
	input := func(result string) json.RawMessage { return fmt.Appendf(nil, `{"city":%q}`, result) }
	s := setUpSession(t, away, origin, toolGiven, input)
	talk := s.connect(client)
	q := question{text: "Go on to the end.", stream: stream}
	for _, result := range s.results {
		asked, err := talk.Ask(t.Context(), q)
		require.NoError(t, err)
		assert.Equal(t, "tool_use", asked.stopReason)
		assert.Equal(t, toolGiven, asked.toolName)
		assert.Equal(t, string(input(result)), asked.toolInput)
		q = question{toolResult: result, stream: stream}
	}
	done, err := talk.Ask(t.Context(), q)
	require.NoError(t, err)
	assert.Equal(t, "end_turn", done.stopReason)
	assert.Equal(t, verse, done.text)
	s.assertServed(t)
}

func TestClaudeCodeDoesNotNoticeThatItsProviderGoesAway(t *testing.T) {
	run := func(t *testing.T, away departure, origin string) {
		s := setUpSession(t, away, origin, "Bash", func(result string) json.RawMessage { return bashInput("echo " + result) })
		got := s.claudeAsks(t, "Go on to the end.", "--allowedTools", "Bash(echo:*)")
		assert.False(t, got.IsError, got.Result)
		assert.Equal(t, verse, got.Result)
		assert.Equal(t, sessionTurns, got.NumTurns)
		s.modelCalls(t, sessionTurns)
		s.assertServed(t)
	}
	t.Run("nobody does", func(t *testing.T) { run(t, none, twoOrigins) })
	// The SDKs meet the other combinations; each here takes a second and more.
	for name, origin := range map[string]string{portShut: twoOrigins, overloaded: oneOrigin, breaksOff: twoOrigins} {
		t.Run(name+", "+origin, func(t *testing.T) { run(t, departures[name], origin) })
	}
}
