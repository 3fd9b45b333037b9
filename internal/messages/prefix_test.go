package messages_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

// prefix is that of a body, after a comparison with the model.
func prefix(tb testing.TB, body string) messages.Prefix {
	tb.Helper()
	return newLedger(1).check(tb, []byte(body))
}

// hashes are those of the breakpoints of p.
func hashes(p messages.Prefix) (at []uint64) {
	for _, m := range p.Marks() {
		if m.Life > 0 {
			at = append(at, m.Hash)
		}
	}
	return at
}

// has tells whether hash is among the marks of p.
func has(p messages.Prefix, hash uint64) bool {
	for _, m := range p.Marks() {
		if m.Hash == hash {
			return true
		}
	}
	return false
}

const cached = `,"cache_control":{"type":"ephemeral"}`

func TestPrefixMarks(t *testing.T) {
	const (
		tool  = `{"name":"T","input_schema":{}`
		block = `{"type":"text","text":"a"`
		user  = `{"role":"user","content":[`
		hour  = `,"cache_control":{"type":"ephemeral","ttl":"1h"}`

		oneTool  = len("[" + tool + cached + "}")
		oneBlock = len("[" + user + block + cached + "}")
		oneHour  = len("[" + user + block + hour + "}")
	)
	type mark struct {
		bytes int
		life  time.Duration
	}
	tests := []struct {
		name, fields string
		want         []mark
	}{
		{"no caching", `"tools":[` + tool + `}],"messages":[` + user + block + `}]}]`, nil},
		{"nothing at all", `"max_tokens":1`, nil},
		{"one block", `"messages":[` + user + block + cached + `}]}]`, []mark{{oneBlock, 5 * time.Minute}}},
		{"an hour", `"messages":[` + user + block + hour + `}]}]`, []mark{{oneHour, time.Hour}}},
		{"looks back", `"messages":[` + user + block + `},` + block + cached + `},` + block + `}]}]`, []mark{{len("[" + user + block + "}," + block + cached + "}"), 5 * time.Minute}, {len("[" + user + block + "}"), 0}}},
		{"through all parts", `"messages":[` + user + block + cached + `}]}],"system":"s","tools":[` + tool + cached + `}]`,
			[]mark{{oneTool + 1 + 3 + oneBlock, 5 * time.Minute}, {oneTool + 1 + 3, 0}, {oneTool, 5 * time.Minute}}},
		{"automatic", `"messages":[{"role":"user","content":"a"}],"cache_control":{"type":"ephemeral","ttl":"1h"}`, []mark{{len(`[{"role":"user","content":"a"`), time.Hour}}},
		{"automatic before a thought", `"cache_control":{"type":"ephemeral"},"messages":[` + user + block + `},{"type":"thinking"}]}]`, []mark{{len("[" + user + block + "}"), 5 * time.Minute}}},
		{"automatic without messages", `"cache_control":{"type":"ephemeral"},"system":"s"`, []mark{{3, 5 * time.Minute}}},
		{"automatic where there is one", `"cache_control":{"type":"ephemeral"},"messages":[` + user + block + hour + `}]}]`, []mark{{oneHour, time.Hour}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := prefix(t, `{"model":"m",`+tt.fields+`}`)
			var got []mark
			for _, m := range p.Marks() {
				got = append(got, mark{m.Bytes, m.Life})
				assert.LessOrEqual(t, m.Bytes, p.Bytes)
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

// Whatever stands where a cache_control should be, the body is taken and the hash
// of the block is the same; only what the provider would take is a breakpoint.
func TestPrefixTakesAnyCacheControl(t *testing.T) {
	body := func(members string) string {
		return `{"model":"m","cache_control":{"type":"ephemeral"},"messages":[{"role":"user","content":[` + members + `,{"type":"text","text":"b"}]}]}`
	}
	bare := prefix(t, body(`{"type":"text","text":"a"}`))
	want := bare.Marks()[1].Hash
	tests := []struct {
		name, block string
		life        time.Duration
	}{
		{"last", `{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}`, 5 * time.Minute},
		{"first", `{"cache_control":{"type":"ephemeral"},"type":"text","text":"a"}`, 5 * time.Minute},
		{"between, with space", "{ \"type\" : \"text\" ,\n\"cache_control\" : { \"type\" : \"ephemeral\" } , \"text\" : \"a\" }", 5 * time.Minute},
		{"5m", `{"type":"text","text":"a","cache_control":{"ttl":"5m","type":"ephemeral"}}`, 5 * time.Minute},
		{"ttl null", `{"type":"text","text":"a","cache_control":{"ttl":null,"type":"ephemeral"}}`, 5 * time.Minute},
		{"1h", `{"type":"text","text":"a","cache_control":{"ttl":"1h","type":"ephemeral"}}`, time.Hour},
		{"twice, the last counts", `{"type":"text","cache_control":null,"text":"a","cache_control":{"type":"ephemeral"}}`, 5 * time.Minute},
		{"twice, the last is none", `{"type":"text","cache_control":{"type":"ephemeral"},"text":"a","cache_control":null}`, 0},
		{"null", `{"type":"text","text":"a","cache_control":null}`, 0},
		{"string", `{"type":"text","text":"a","cache_control":"ephemeral"}`, 0},
		{"array", `{"type":"text","text":"a","cache_control":[{"type":"ephemeral"}]}`, 0},
		{"empty", `{"type":"text","text":"a","cache_control":{}}`, 0},
		{"no type", `{"type":"text","text":"a","cache_control":{"ttl":"1h"}}`, 0},
		{"other type", `{"type":"text","text":"a","cache_control":{"type":"Ephemeral"}}`, 0},
		{"ttl a number", `{"type":"text","text":"a","cache_control":{"type":"ephemeral","ttl":300}}`, 0},
		{"ttl unknown", `{"type":"text","text":"a","cache_control":{"type":"ephemeral","ttl":"2h"}}`, 0},
		{"ttl huge", `{"type":"text","text":"a","cache_control":{"type":"ephemeral","ttl":"` + strings.Repeat("1h", 100_000) + `"}}`, 0},
		{"nested deep", `{"type":"text","text":"a","cache_control":{"type":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}}`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := messages.Inspect([]byte(body(tt.block)), 1)
			require.NoError(t, err)
			marks := req.Prefix.Marks()
			require.Len(t, marks, 2)
			assert.Equal(t, want, marks[1].Hash, "hash of the block")
			assert.Equal(t, tt.life, marks[1].Life)
		})
	}
}

// A cache_control that is not a block's own is a part of the prompt.
func TestPrefixIgnoresCacheControlInside(t *testing.T) {
	for _, block := range []string{
		`{"type":"tool_result","content":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]}`,
		`{"type":"tool_use","input":{"cache_control":{"type":"ephemeral"}}}`,
		`{"type":"text","text":"\"cache_control\":{\"type\":\"ephemeral\"}"}`,
		`{"type":"text","text":"a","cache\u005fcontrol":{"type":"ephemeral"}}`,
		`{"type":"text","text":"a","Cache_Control":{"type":"ephemeral"}}`,
		`[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}]`,
		`{"type":"thinking","thinking":"a","cache_control":{"type":"ephemeral"}}`,
		`{"type":"redacted_thinking","data":"a","cache_control":{"type":"ephemeral"}}`,
		`{"type":"text","text":"","cache_control":{"type":"ephemeral"}}`,
		`"cache_control"`, `7`, `null`,
	} {
		p := prefix(t, `{"model":"m","messages":[{"role":"user","cache_control":{"type":"ephemeral"},"content":[`+block+`]}]}`)
		assert.Empty(t, p.Marks(), "marks of %s", block)
	}
}

func TestPrefixTakesOddSections(t *testing.T) {
	for _, value := range []string{`null`, `7`, `"text"`, `{}`, `{"cache_control":{"type":"ephemeral"}}`, `[]`, `[null]`, `[[]]`, `[7,"a"]`, `[{}]`, `[{"content":7}]`, `[{"content":{"type":"text"}}]`} {
		for _, field := range []string{"tools", "system", "messages", "cache_control", "thinking"} {
			l := newLedger(1)
			l.check(t, []byte(`{"model":"m","`+field+`":`+value+`}`))
			l.check(t, []byte(`{"model":"m","cache_control":{"type":"ephemeral"},"`+field[:len(field)-1]+`":0}`))
		}
	}
}

// What differs, be it in role, in kind or in place only, has another hash.
func TestPrefixTellsApart(t *testing.T) {
	l := newLedger(1)
	for _, fields := range []string{
		`"messages":[{"role":"user","content":"a"}]`,
		`"messages":[{"role":"assistant","content":"a"}]`,
		`"messages":[{"role":"user","content":"a","name":"n"},{"role":"user","content":"b"}]`,
		`"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]`,
		`"messages":[{"content":["a","b"]}]`,
		`"messages":[{"content":["a"]},{"content":["b"]}]`,
		`"messages":[{"content":["b"]},{"content":["a"]}]`,
		`"messages":[{"content":[{"a":"b"}]}]`,
		`"messages":[{"content":[{"a":"b"}]},7,{"content":"c"}]`,
		`"messages":[{"content":[{"a":"b"}]},8,{"content":"c"}]`,
		`"messages":[{"content":[{"b":"a"}]}]`,
		`"messages":[{"content":[7]}]`, `"messages":[{"content":[7.0]}]`,
		`"system":"a"`, `"tools":"a"`, `"tools":[{"a":"b"}]`, `"system":[{"a":"b"}]`,
		`"tools":[{}],"system":[{}]`, `"tools":[{},{}]`, `"system":[{},{}]`,
		`"system":"a","messages":[{"role":"user","content":"a"}]`,
		`"system":"b","messages":[{"role":"user","content":"a"}]`,
		`"tools":7,"system":"b","messages":[{"role":"user","content":"a"}]`,
	} {
		l.check(t, []byte(`{"model":"m","cache_control":{"type":"ephemeral"},`+fields+`}`))
	}
}

// An automatic breakpoint is placed before thoughts that end a prompt, a dozen at most.
func TestPrefixAutomaticBeforeThoughts(t *testing.T) {
	for thoughts := range 20 {
		content := strings.Repeat(`{"type":"text","text":"a"},`, 40) + strings.Repeat(`{"type":"redacted_thinking"},`, thoughts)
		p := prefix(t, `{"model":"m","cache_control":{"type":"ephemeral"},"messages":[{"role":"user","content":[`+strings.TrimSuffix(content, ",")+`]}]}`)
		want := 20
		if thoughts > 12 {
			want = 0
		}
		assert.Len(t, p.Marks(), want, "marks before %d thoughts", thoughts)
	}
}

// Of more breakpoints than the provider allows the last ones count, and from each
// of them 20 blocks, wherever they stand.
func TestPrefixKeepsTheLastBreakpoints(t *testing.T) {
	l := newLedger(1)
	for _, every := range []int{1, 3, 19, 20, 21, 33, 150} {
		var blocks []string
		for i := range 400 {
			block := fmt.Sprintf(`{"type":"text","text":"%d"`, i)
			if i%every == every-1 {
				block += cached
			}
			blocks = append(blocks, block+"}")
		}
		for _, split := range []int{0, 1, 10, 199, 390, 400} { // tools, then messages
			body := `{"model":"m","tools":[` + strings.Join(blocks[:split], ",") + `],"messages":[{"role":"user","content":[` + strings.Join(blocks[split:], ",") + `]}]}`
			p := l.check(t, []byte(body))
			assert.Len(t, hashes(p), min(4, 400/every), "breakpoints, one in %d blocks, %d of them tools", every, split)
		}
	}
}

func TestPrefixOfRecordedRequests(t *testing.T) {
	files, err := filepath.Glob("../../testdata/streams/*.request.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	l := newLedger(1)
	for _, file := range files {
		body, err := os.ReadFile(file)
		require.NoError(t, err)
		p := l.check(t, body)
		assert.Positive(t, p.Bytes, "bytes of %s", file)
	}
}

// claude is a request as Claude Code 2.1.330 sends it, but short.
type claude struct {
	version, effort string // checksum in the attribution; output_config
	subagent        bool
	turns           int // tool calls so far
}

func (c claude) body() string {
	tools, identity, label := `{"name":"Agent","input_schema":{}},{"name":"Bash","input_schema":{}}`, "You work for a user.", "cc_entrypoint=cli;"
	if c.subagent {
		tools, identity, label = `{"name":"Bash","input_schema":{}}`, "You work for an agent.", label+" cc_is_subagent=true;"
	}
	// The last block of all carries the breakpoint; a message of one text becomes
	// a string as soon as it does not.
	environment := `"content":[{"type":"text","text":"# Environment"` + cached + `}]`
	if c.turns > 0 {
		environment = `"content":"# Environment"`
	}
	turns := []string{
		`{"role":"user","content":[{"type":"text","text":"<system-reminder>"},{"type":"text","text":"Fix it."}]}`,
		`{"role":"system",` + environment + `,"output_config":{"effort":"medium"}}`,
	}
	for i := range c.turns {
		mark := ""
		if i == c.turns-1 {
			mark = cached
		}
		turns = append(turns, fmt.Sprintf(
			`{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"c2ln"},{"type":"tool_use","id":"t%d","name":"Bash","input":{}}]},`+
				`{"role":"user","content":[{"tool_use_id":"t%d","type":"tool_result","content":"ok","is_error":false%s}]}`, i, i, mark))
	}
	return `{"model":"claude-opus-5-5","messages":[` + strings.Join(turns, ",") + `],"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1.330.` + c.version + `; ` + label +
		`"},{"type":"text","text":"Identity."` + cached + `},{"type":"text","text":"` + identity + `"` + cached + `}],"tools":[` + tools +
		`],"metadata":{"user_id":"u"},"max_tokens":128000,"thinking":{"type":"adaptive"},"output_config":{"effort":"` + c.effort + `"},"stream":true}`
}

func TestPrefixOfClaudeCodeOverTurns(t *testing.T) {
	l := newLedger(1)
	check := func(c claude) messages.Prefix { return l.check(t, []byte(c.body())) }
	first := claude{"aad", "medium", false, 0}
	before := check(first)
	require.Len(t, hashes(before), 3)
	for turns := 1; turns < 12; turns++ {
		now := check(claude{"aad", "medium", false, turns})
		assert.Equal(t, before.Root, now.Root, "who asks, turn %d", turns)
		assert.Equal(t, before.Start, now.Start, "conversation, turn %d", turns)
		for i, h := range hashes(before) {
			assert.True(t, has(now, h), "breakpoint %d of the turn before is not found in turn %d", i, turns)
		}
		before = now
	}

	main := check(first)
	second := check(claude{"0e0", "medium", false, 0})
	assert.Equal(t, main, second, "the attribution of another session changed the prefix")
	sub := check(claude{"aad", "medium", true, 0})
	assert.NotEqual(t, main.Root, sub.Root, "a subagent is taken for its parent")
	for _, h := range hashes(main) {
		assert.False(t, has(sub, h), "a subagent finds the prompt of its parent")
	}
	high := check(claude{"aad", "high", false, 0})
	assert.Equal(t, [2]uint64{main.Root, main.Start}, [2]uint64{high.Root, high.Start}, "the effort changed who asks")
	for _, h := range hashes(main) {
		assert.False(t, has(high, h), "found although the effort differs")
	}
}

// The end of a turn is found in the next one up to 20 blocks on.
func TestPrefixLooksBackTwentyBlocks(t *testing.T) {
	body := func(blocks, marked int) string {
		all := make([]string, blocks)
		for i := range all {
			all[i] = fmt.Sprintf(`{"type":"text","text":"%d"}`, i)
		}
		all[marked] = strings.TrimSuffix(all[marked], "}") + cached + "}"
		return `{"model":"m","messages":[{"role":"user","content":[` + strings.Join(all, ",") + `]}]}`
	}
	end := hashes(prefix(t, body(50, 20)))[0]
	assert.True(t, has(prefix(t, body(50, 39)), end), "19 blocks on")
	assert.False(t, has(prefix(t, body(50, 40)), end), "20 blocks on")
}

func TestPrefixSettings(t *testing.T) {
	body := func(fields, block string) string {
		return `{"model":"m"` + fields + `,"tools":[{"name":"T"` + cached + `}],"system":[{"type":"text","text":"s"` + cached + `}],"messages":[{"role":"user","content":[` + block + cached + `}]}]}`
	}
	const text = `{"type":"text","text":"a"`
	base := hashes(prefix(t, body("", text))) // messages, system, tools
	tests := []struct {
		name, fields, block string
		kept                int // breakpoints that are still found, of tools, then of system
	}{
		{"temperature", `,"temperature":0.5`, text, 3},
		{"max_tokens", `,"max_tokens":7`, text, 3},
		{"tool choice", `,"tool_choice":{"type":"none"}`, text, 2},
		{"thinking", `,"thinking":{"type":"disabled"}`, text, 2},
		{"image", "", `{"type":"image","source":{}`, 2},
		{"image of a tool", "", `{"type":"tool_result","content":[{"type":"text"},{"source":{},"type":"image"}]`, 2},
		{"effort", `,"output_config":{"effort":"low"}`, text, 1},
		{"speed", `,"speed":"fast"`, text, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := prefix(t, body(tt.fields, tt.block))
			for i, h := range base {
				assert.Equal(t, i >= len(base)-tt.kept, has(p, h), "breakpoint %d is found", i)
			}
			assert.Equal(t, prefix(t, body("", text)).Root, p.Root, "settings changed who asks")
		})
	}
	other := prefix(t, strings.Replace(body("", text), `"m"`, `"n"`, 1))
	assert.NotEqual(t, prefix(t, body("", text)).Root, other.Root, "another model")
	for i, h := range base {
		assert.False(t, has(other, h), "breakpoint %d is found for another model", i)
	}
}

// An image anywhere changes the hashes of all messages, not of what comes before.
func TestPrefixImageComesLater(t *testing.T) {
	const head = `{"model":"m","cache_control":{"type":"ephemeral"},"system":"s","messages":[{"role":"user","content":"a"}`
	before, after := prefix(t, head+`]}`), prefix(t, head+`,{"role":"user","content":[{"type":"image","source":{}}]}]}`)
	assert.False(t, has(after, before.Marks()[0].Hash), "the message")
	assert.True(t, has(after, before.Marks()[1].Hash), "the system prompt")
	assert.Equal(t, before.Start, after.Start, "still the same conversation")
}

// Only a leading system block is the attribution.
func TestPrefixAttribution(t *testing.T) {
	const label = `{"type":"text","text":"x-anthropic-billing-header: cch=`
	for _, tt := range []struct {
		name, fields string
		counts       bool
	}{
		{"first in system", `"system":[` + label + `%s;"},{"type":"text","text":"s"}]`, false},
		{"later in system", `"system":[{"type":"text","text":"s"},` + label + `%s;"}]`, true},
		{"in a message", `"messages":[{"role":"user","content":[` + label + `%s;"}]}]`, true},
		{"in a tool", `"tools":[` + label + `%s;"}]`, true},
		{"other name", `"system":[{"type":"text","text":"x-anthropic-billing: %s"}]`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body := `{"model":"m","cache_control":{"type":"ephemeral"},` + tt.fields + `}`
			a, b := prefix(t, fmt.Sprintf(body, "97bd6")), prefix(t, fmt.Sprintf(body, "24c2d"))
			assert.Equal(t, tt.counts, a != b, "the checksum counts")
			assert.Equal(t, a.Bytes, b.Bytes)
		})
	}
	alone := prefix(t, `{"model":"m","system":[`+label+`1;"}]}`)
	assert.Equal(t, len(`[`+label+`1;"}]`), alone.Bytes, "the attribution counts in bytes")
}

// The conversation is named by all through the first message of a user.
func TestPrefixStart(t *testing.T) {
	start := func(turns string) uint64 {
		return prefix(t, `{"model":"m","messages":[`+turns+`]}`).Start
	}
	const system, hello, other = `{"role":"system","content":"s"}`, `{"role":"user","content":"hello"}`, `{"role":"user","content":"other"}`
	assert.Equal(t, start(hello), start(hello+`,`+other), "a later message counts")
	assert.Equal(t, start(system+`,`+hello), start(system+`,`+hello+`,`+other), "a later message counts")
	assert.NotEqual(t, start(hello), start(other), "the first message does not count")
	assert.NotEqual(t, start(hello), start(system+`,`+hello), "what comes before does not count")
	assert.Equal(t, start(``), start(system), "nothing of a user")
	assert.Equal(t, start(hello), start(`{"role":"user","content":[{"type":"text","text":"hello"`+cached+`}]}`), "string and array differ")
}

// pictures is a body with pictures and documents of n bytes wherever they may be.
func pictures(n int) string {
	data := strings.Repeat("A", n-2)
	source := func(kind, media string) string {
		return `{"data":"` + data + `","type":"` + kind + `","media_type":"` + media + `"}`
	}
	return `{"messages":[{"role":"user","content":[
		{"type":"image","source":` + source("base64", "image/png") + `,"cache_control":{"type":"ephemeral"}},
		{"type":"tool_result","content":[{"source":` + source("base64", "image/png") + `,"type":"image"},{"type":"text","text":"x"}]},
		{"type":"document","source":` + source("base64", "application/pdf") + `},
		{"type":"document","source":{"type":"content","content":[{"type":"image","source":` + source("base64", "image/png") + `}]}},
		{"type":"web_fetch_tool_result","content":{"type":"web_fetch_result","content":{"type":"document","source":` + source("base64", "application/pdf") + `}}},
		{"type":"document","source":` + source("text", "text/plain") + `},
		{"type":"image","source":"` + data + `"},
		{"type":"text","text":"what is this?","cache_control":{"type":"ephemeral"}}]}],
		"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],"model":"m"}`
}

// What is sent in base64 weighs what it costs, not what it has in bytes.
func TestPrefixWeighsPictures(t *testing.T) {
	l := newLedger(0)
	rest := l.check(t, []byte(pictures(2))).Bytes
	for name, tt := range map[string]struct{ n, weight int }{
		"small":                 {6400, 7 * 6398},
		"three pictures":        {40_000, 5*6398 + 2*39_998},
		"and the documents too": {1_600_000, 3*6398 + 2*99_998 + 2*1_599_998},
		"of a megabyte of data": {1_333_334, 3*6398 + 2*83_331 + 2*1_333_332},
	} {
		t.Run(name, func(t *testing.T) {
			p := l.check(t, []byte(pictures(tt.n)))
			assert.Equal(t, rest+tt.weight, p.Bytes)
			assert.Equal(t, p.Bytes-len("]}]"), p.Marks()[0].Bytes, "the last block")
		})
	}
}
