package messages_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/messages"
)

// writer writes JSON in one of many ways.
type writer struct {
	t     *rapid.T
	space string // between tokens
	fancy bool   // names and types have escapes too
}

func (w writer) text(s string) string {
	return jsonText(s, rapid.IntRange(0, ways-1).Draw(w.t, "way"))
}

func (w writer) name(s string) string {
	if w.fancy {
		return w.text(s)
	}
	return jsonText(s, plain)
}

// object writes members, given as name and value in turn, in any order, sometimes
// with one that nobody knows.
func (w writer) object(members ...string) string {
	var all []string
	for i := 0; i < len(members); i += 2 {
		all = append(all, w.name(members[i])+w.space+":"+w.space+members[i+1])
	}
	if rapid.IntRange(0, 3).Draw(w.t, "unknown") == 0 {
		all = append(all, `"x":{"type":"thinking","signature":[1,{"messages":"a,b"}]}`)
	}
	return "{" + w.space + strings.Join(rapid.Permutation(all).Draw(w.t, "members"), w.space+","+w.space) + w.space + "}"
}

func (w writer) array(elements []string) string {
	return "[" + w.space + strings.Join(elements, w.space+","+w.space) + w.space + "]"
}

// thought is a block that Thinking lists.
func (w writer) thought() string {
	signature := w.text(rapid.SampledFrom([]string{"a", "c2ln/+==", "YmxvY2s,", `{"type":"thinking"}`, "ü🙂\n"}).Draw(w.t, "signature"))
	if rapid.IntRange(0, 2).Draw(w.t, "redacted") == 0 {
		return w.object("type", w.name("redacted_thinking"), "data", signature)
	}
	return w.object("type", w.name("thinking"), "thinking", w.text("hm, \"a\""), "signature", signature)
}

// block is any element of a content.
func (w writer) block() string {
	switch rapid.IntRange(0, 14).Draw(w.t, "kind") {
	default:
		return w.thought()
	case 0:
		return w.object("type", w.name("text"), "text", w.text("a, b"), "signature", `"a"`)
	case 1:
		return w.object("type", w.name("tool_use"), "id", `"t"`, "name", `"T"`, "input", w.thought())
	case 2:
		return w.object("type", w.name("tool_result"), "tool_use_id", `"t"`, "content", w.array([]string{w.thought(), `{"type":"image"}`}))
	case 3:
		return w.object("type", w.name("thinking"), "thinking", `"a"`, "signature", rapid.SampledFrom([]string{`""`, "null", "7", `["a"]`, `{"a":"a"}`}).Draw(w.t, "no signature"))
	case 4:
		return w.object("type", w.name(rapid.SampledFrom([]string{"thinking", "redacted_thinking", "Thinking", "signature_delta"}).Draw(w.t, "type")))
	case 5:
		return rapid.SampledFrom([]string{"null", "-1.5e+3", `"thinking"`, "[]", "{}", `[{"type":"thinking","signature":"a"}]`}).Draw(w.t, "no block")
	}
}

func (w writer) message(thoughtsOnly bool) string {
	if rapid.IntRange(0, 19).Draw(w.t, "odd") == 0 {
		return rapid.SampledFrom([]string{"null", "7", `"a"`, "[]", "{}", `{"content":[]}`, `{"content":null}`}).Draw(w.t, "no message")
	}
	role := w.name(rapid.SampledFrom([]string{"user", "assistant", "system"}).Draw(w.t, "role"))
	if rapid.IntRange(0, 4).Draw(w.t, "string") == 0 && !thoughtsOnly {
		return w.object("role", role, "content", w.text("tool_result, hello"))
	}
	blocks := make([]string, rapid.IntRange(0, 5).Draw(w.t, "blocks"))
	for i := range blocks {
		blocks[i] = w.block()
		if thoughtsOnly {
			blocks[i] = w.thought()
		}
	}
	return w.object("role", role, "content", w.array(blocks))
}

// body is a request, often one of which little or nothing would be left.
func (w writer) body() []byte {
	turns := make([]string, rapid.IntRange(0, 6).Draw(w.t, "turns"))
	only := rapid.IntRange(0, 3).Draw(w.t, "thoughts only")
	for i := range turns {
		turns[i] = w.message(only == 0 || only == 1 && i%2 == 1)
	}
	fields := []string{"model", w.text("claude-opus-5-5"), "messages", w.array(turns), "stream", "true"}
	for _, name := range []string{"system", "tools"} {
		if rapid.Bool().Draw(w.t, name) {
			fields = append(fields, name, w.array([]string{w.block()}))
		}
	}
	return []byte(w.object(fields...))
}

func newWriter(t *rapid.T, fancy bool) writer {
	return writer{t, rapid.SampledFrom([]string{"", "", " ", "\n\t"}).Draw(t, "space"), fancy}
}

func TestStripFollowsTheModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		body := newWriter(rt, rapid.Bool().Draw(rt, "fancy")).body()
		picks := rapid.OneOf(rapid.Just(^uint64(0)), rapid.Uint64Range(0, 31)).Draw(rt, "picks")
		model := rapid.SampledFrom([]string{"other", "", "claude-opus-5-5", `a "name"`}).Draw(rt, "model")
		checkStrip(rt, body, picks, model)
	})
}

// A list is good for many attempts: what each leaves out does not depend on the one before.
func TestStripDecidesAnew(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		body := newWriter(rt, true).body()
		req, err := messages.Inspect(body, 0)
		require.NoError(rt, err)
		list := req.Thinking(hashSeed)
		for range 3 {
			drop := picked(list, rapid.Uint64Range(0, 31).Draw(rt, "picks"))
			drops := func(hash uint64) bool { return drop[hash] }
			fresh, err := messages.Inspect(body, 0)
			require.NoError(rt, err)
			require.Equal(rt, fresh.Strip(fresh.Thinking(hashSeed), drops), req.Strip(list, drops))
			require.Equal(rt, sent(rt, &fresh), sent(rt, &req))
		}
	})
}

func TestOpenToolsFollowsTheModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		body := newWriter(rt, false).body()
		req, err := messages.Inspect(body, 0)
		require.NoError(rt, err)
		all, _ := decode(rt, string(body))["messages"].([]any)
		want, passed := false, true
		for i := len(all) - 1; i >= 0 && passed; i-- {
			for _, b := range contentOf(all[i]) {
				block, _ := b.(map[string]any)
				want = want || block["type"] == "tool_result"
			}
			message, _ := all[i].(map[string]any)
			passed = message["role"] == "system"
		}
		require.Equal(rt, want, req.OpenTools, "body %s", body)
	})
}

// The bytes of each block are found in what is left, or are not: a count from the
// outside, for a body as clients send it.
func TestStripOfManyTurns(t *testing.T) {
	const turns = 40
	var all []string
	for i := range turns {
		all = append(all, fmt.Sprintf(`{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"s%02d"},{"type":"tool_use","id":"t","name":"T","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"ok"}]}`, i))
	}
	req := inspect(t, `{"model":"m","messages":[`+strings.Join(all, ",")+`]}`)
	list := req.Thinking(hashSeed)
	require.Len(t, list, turns)
	for every := 1; every < turns; every++ {
		i := -1
		n := req.Strip(list, func(uint64) bool { i++; return i%every == 0 })
		require.Equal(t, (turns-1)/every+1, n)
		left := sent(t, &req)
		for i := range turns {
			require.Equal(t, i%every != 0, strings.Contains(left, fmt.Sprintf(`"s%02d"`, i)), "block %d, one in %d left out", i, every)
		}
		require.Equal(t, turns, strings.Count(left, `"tool_use"`))
	}
}
