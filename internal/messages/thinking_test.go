package messages_test

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

func TestOpenTools(t *testing.T) {
	const (
		result = `{"type":"tool_result","tool_use_id":"t","content":"ok"}`
		answer = `{"role":"user","content":[` + result + `]}`
		system = `{"role":"system","content":"Be brief."}`
	)
	tests := []struct {
		name, messages string
		want           bool
	}{
		{"answer to a tool call", `[{"role":"user","content":"a"},` + answer + `]`, true},
		{"text after it", `[{"role":"user","content":[` + result + `,{"type":"text","text":"a"}]}]`, true},
		{"text before it", `[{"role":"user","content":[{"type":"text","text":"a"},` + result + `]}]`, true},
		{"type comes last", `[{"content":[{"content":[{"type":"image"}],"tool_use_id":"t" , "type" : "tool_result" }],"role":"user"}]`, true},
		{"a system message after it", `[` + answer + `,` + system + `]`, true},
		{"role comes last there", `[` + answer + `,{"content":[{"type":"text","text":"a"}],"role":"system"},` + system + `]`, true},
		{"type given twice, the last counts", `[{"content":[{"type":"text","type":"tool_result"}]}]`, true},
		{"type given twice, the last is another", `[{"content":[{"type":"tool_result","type":"text"}]}]`, false},
		{"answered before", `[` + answer + `,{"role":"assistant","content":"a"},{"role":"user","content":"b"}]`, false},
		{"answered before a system message", `[` + answer + `,{"role":"assistant","content":"a"},` + system + `]`, false},
		{"assistant is last", `[` + answer + `,{"role":"assistant","content":[{"type":"text","text":"a"}]}]`, false},
		{"call alone", `[{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"T","input":{"type":"tool_result"}}]}]`, false},
		{"result of a server tool", `[{"role":"assistant","content":[{"type":"web_search_tool_result","content":[]}]}]`, false},
		{"named in a text only", `[{"role":"user","content":[{"type":"text","text":"\"type\":\"tool_result\""}]}]`, false},
		{"one level down", `[{"role":"user","content":[{"type":"x","content":[` + result + `]}]}]`, false},
		{"no message at all last", `[` + answer + `,null]`, false},
		{"content a string", `[{"role":"user","content":"tool_result"}]`, false},
		{"no array", result, false},
		{"nothing", `[]`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			after := inspect(t, `{"model":"m","tools":[],"system":"s","messages":`+tt.messages+`}`)
			assert.Equal(t, tt.want, after.OpenTools, "messages last")
			before := inspect(t, `{"messages":`+tt.messages+`,"system":[`+result+`],"tools":[`+result+`],"model":"m"}`)
			assert.Equal(t, tt.want, before.OpenTools, "messages first")
		})
	}
	assert.False(t, inspect(t, `{"model":"m"}`).OpenTools, "no messages")
	assert.True(t, inspect(t, claude{"aad", "low", false, 2}.body()).OpenTools, "Claude Code in a loop")
	assert.False(t, inspect(t, claude{"aad", "low", false, 0}.body()).OpenTools, "Claude Code at its first request")
}

const hashSeed = 7

// hashOf is what the hash of a signature must be, said by the one form that is easy
// to write: an answer with nothing else in it.
func hashOf(tb testing.TB, signature string) uint64 {
	tb.Helper()
	got := messages.ReplySignatures(fmt.Appendf(nil, `{"content":[{"type":"thinking","signature":%s}]}`, jsonText(signature, plain)), hashSeed)
	require.Len(tb, got, 1)
	return got[0]
}

func TestThinking(t *testing.T) {
	tests := []struct {
		name, content string
		want          []string // signatures
	}{
		{"a thought", `[{"type":"thinking","thinking":"a","signature":"c2ln"}]`, []string{"c2ln"}},
		{"a redacted one", `[{"type":"redacted_thinking","data":"c2ln"}]`, []string{"c2ln"}},
		{"some among others", `[{"type":"text","text":"a"},{"type":"thinking","thinking":"","signature":"a"},{"type":"redacted_thinking","data":"b"},7,{"type":"thinking","thinking":"","signature":"c"}]`, []string{"a", "b", "c"}},
		{"type comes last", `[{"signature":"c2ln","thinking":"a","type":"thinking"},{"data":"b","type":"redacted_thinking"}]`, []string{"c2ln", "b"}},
		{"white space", "[ {\n\"type\" :\t\"thinking\" , \"signature\" : \"c2ln\" } ]", []string{"c2ln"}},
		{"escapes", `[{"type":"thin\u006bing","signa\u0074ure":"a\/b\u002bc"}]`, []string{"a/b+c"}},
		{"unknown members", `[{"x":{"type":"text","signature":"no"},"type":"thinking","y":[1],"signature":"c2ln"}]`, []string{"c2ln"}},
		{"given twice", `[{"type":"text","signature":"a","signature":"b","type":"thinking"},{"type":"thinking","signature":"c","signature":null}]`, []string{"b"}},
		{"empty", `[{"type":"thinking","thinking":"a","signature":""},{"type":"redacted_thinking","data":""}]`, nil},
		{"none", `[{"type":"thinking","thinking":"a"},{"type":"redacted_thinking"}]`, nil},
		{"no string", `[{"type":"thinking","signature":null},{"type":"thinking","signature":7},{"type":"redacted_thinking","data":{"data":"a"}}]`, nil},
		{"invalid", "[{\"type\":\"thinking\",\"signature\":\"a\xff\"},{\"type\":\"thinking\",\"signature\":\"\\ud800\"},{\"type\":\"thinking\",\"signature\":\"\\x\"}]", nil},
		{"the member of the other type", `[{"type":"thinking","data":"a"},{"type":"redacted_thinking","signature":"a"}]`, nil},
		{"other types", `[{"type":"text","signature":"a"},{"type":"Thinking","signature":"a"},{"type":"signature_delta","signature":"a"},{"signature":"a"},{"type":["thinking"],"signature":"a"}]`, nil},
		{"one level down", `[{"type":"tool_result","content":[{"type":"thinking","signature":"a"}]},{"type":"tool_use","input":{"type":"thinking","signature":"a"}},[{"type":"thinking","signature":"a"}]]`, nil},
		{"a string", `"{\"type\":\"thinking\",\"signature\":\"a\"}"`, nil},
		{"an object", `{"type":"thinking","signature":"a"}`, nil},
		{"nothing", `[]`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := inspect(t, `{"model":"m","messages":[{"role":"assistant","content":`+tt.content+`}]}`)
			var got, want []uint64
			for _, b := range req.Thinking(hashSeed) {
				got = append(got, b.Signature)
			}
			for _, signature := range tt.want {
				want = append(want, hashOf(t, signature))
			}
			assert.Equal(t, want, got, "blocks of a request")
			assert.Equal(t, want, messages.ReplySignatures([]byte(`{"type":"message","content":`+tt.content+`,"usage":{}}`), hashSeed), "blocks of an answer")
		})
	}
}

func TestThinkingElsewhere(t *testing.T) {
	const thought = `{"type":"thinking","signature":"a"}`
	for _, fields := range []string{
		`"system":[` + thought + `]`, `"tools":[` + thought + `]`, `"content":[` + thought + `]`, `"x":{"messages":[{"content":[` + thought + `]}]}`,
		`"messages":[` + thought + `]`, `"messages":{"content":[` + thought + `]}`, `"messages":[[{"content":[` + thought + `]}]]`, `"messages":null`,
		`"messages":[{"content":[` + thought + `],"content":"the last counts"}]`,
	} {
		req := inspect(t, `{"model":"m",`+fields+`}`)
		assert.Nil(t, req.Thinking(hashSeed), "blocks of %s", fields)
	}
	req := inspect(t, `{"model":"m","mess\u0061ges":[{"c\u006fntent":[`+thought+`]}]}`)
	assert.Len(t, req.Thinking(hashSeed), 1, "names with escapes")
	assert.Nil(t, new(messages.Request).Thinking(hashSeed), "no body")
	broken := messages.Request{Body: []byte(`{"messages":[{"content":[` + thought + `]}`)}
	assert.Nil(t, broken.Thinking(hashSeed), "a body that is cut")
}

func TestThinkingHashes(t *testing.T) {
	req := inspect(t, `{"model":"m","messages":[{"content":[{"type":"thinking","signature":"a"},{"type":"thinking","signature":"b"},{"type":"redacted_thinking","data":"a"}]}]}`)
	one, two := req.Thinking(1), req.Thinking(2)
	assert.Equal(t, one[0].Signature, one[2].Signature, "one signature")
	assert.NotEqual(t, one[0].Signature, one[1].Signature, "two signatures")
	assert.NotEqual(t, one[0].Signature, two[0].Signature, "the seed does not count")
}

// among tells whether a signature has one of these hashes.
func among(tb testing.TB, signatures ...string) func(uint64) bool {
	tb.Helper()
	all := map[uint64]bool{}
	for _, s := range signatures {
		all[hashOf(tb, s)] = true
	}
	return func(hash uint64) bool { return all[hash] }
}

func TestStrip(t *testing.T) {
	const (
		a    = `{"type":"thinking","thinking":"","signature":"a"}`
		b    = `{"signature":"b","type":"thinking"}`
		c    = `{"type":"redacted_thinking","data":"c"}`
		text = `{"type":"text","text":"t, \"u\""}`
		user = `{"role":"user","content":"u"}`
	)
	says := func(blocks string) string { return `{"role":"assistant","content":[` + blocks + `]}` }
	tests := []struct {
		name, messages string
		drop           []string
		want           string
		n              int
	}{
		{"nothing", user + `,` + says(a+`,`+text), nil, user + `,` + says(a+`,`+text), 0},
		{"first", user + `,` + says(a+`,`+text), []string{"a"}, user + `,` + says(text), 1},
		{"last", user + `,` + says(text+`,`+a), []string{"a"}, user + `,` + says(text), 1},
		{"middle", says(text + `,` + a + `,` + text), []string{"a"}, says(text + `,` + text), 1},
		{"first two", says(a + `,` + b + `,` + text), []string{"a", "b"}, says(text), 2},
		{"last two", says(text + `,` + a + `,` + b), []string{"a", "b"}, says(text), 2},
		{"around one", says(a + `,` + text + `,` + b), []string{"a", "b"}, says(text), 2},
		{"around one that is a thought", says(a + `,` + c + `,` + b), []string{"a", "b"}, says(c), 2},
		{"redacted", says(c + `,` + text), []string{"c"}, says(text), 1},
		{"one signature twice", says(a + `,` + text + `,` + a), []string{"a"}, says(text), 2},
		{"in several messages", says(a+`,`+text) + `,` + user + `,` + says(text+`,`+b), []string{"a", "b"}, says(text) + `,` + user + `,` + says(text), 2},
		{"white space", "{ \"content\" : [ " + a + " ,\n" + text + " , " + b + " ] , \"role\":\"assistant\" }", []string{"a", "b"}, "{ \"content\" : [ \n" + text + "  ] , \"role\":\"assistant\" }", 2},
		{"empty one stays", says(`{"type":"thinking","signature":""},` + a), []string{"a"}, says(`{"type":"thinking","signature":""}`), 1},
		{"beside what is no block", says(a + `,null`), []string{"a"}, says(`null`), 1},

		{"whole message", user + `,` + says(a) + `,` + user, []string{"a"}, user + `,` + user, 1},
		{"whole first message", says(a+`,`+b) + `,` + user, []string{"a", "b"}, user, 2},
		{"whole last message", user + ` , ` + says(c), []string{"c"}, user + ` `, 1},
		{"whole first two", says(a) + `,` + says(b) + `,` + user, []string{"a", "b"}, user, 2},
		{"whole and part", user + `,` + says(a) + `,` + says(b+`,`+text), []string{"a", "b"}, user + `,` + says(text), 2},
		{"only message stays", says(a + `,` + b), []string{"a", "b"}, says(a + `,` + b), 0},
		{"last one of all stays", says(a) + `,` + says(b+`,`+c), []string{"a", "b", "c"}, says(b + `,` + c), 1},
		{"last one of all gives what it can", says(a) + `,` + says(b+`,`+c), []string{"a", "b"}, says(c), 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wrap := func(model, messages string) string {
				return `{"model":` + model + `,"messages":[` + messages + `],"max_tokens":1}`
			}
			req := inspect(t, wrap(`"m"`, tt.messages))
			list := req.Thinking(hashSeed)
			assert.Equal(t, tt.n, req.Strip(list, among(t, tt.drop...)), "blocks left out")
			assert.Equal(t, wrap(`"m"`, tt.want), sent(t, &req))
			req.SetModel("other")
			assert.Equal(t, wrap(`"other"`, tt.want), sent(t, &req), "with another model")
			assert.Equal(t, wrap(`"m"`, tt.messages), string(req.Body))

			req = inspect(t, `{"messages":[`+tt.messages+`],"model":"m"}`)
			req.SetModel("other")
			req.Strip(req.Thinking(hashSeed), among(t, tt.drop...))
			assert.Equal(t, `{"messages":[`+tt.want+`],"model":"other"}`, sent(t, &req), "model comes last")
		})
	}
}

func TestStripAgain(t *testing.T) {
	const body = `{"model":"m","messages":[{"content":[{"type":"thinking","signature":"a"},{"type":"thinking","signature":"b"},7]}]}`
	req := inspect(t, body)
	list := req.Thinking(hashSeed)
	req.SetModel("n")
	require.Equal(t, 1, req.Strip(list, among(t, "a")))
	before := req.NewBody()
	require.Equal(t, 1, req.Strip(list, among(t, "b")))
	assert.Equal(t, `{"model":"n","messages":[{"content":[{"type":"thinking","signature":"a"},7]}]}`, sent(t, &req))
	copied := req
	req.SetModel("")
	require.Equal(t, 0, req.Strip(list, nil))
	assert.Equal(t, body, sent(t, &req), "the client's own bytes")
	require.Equal(t, 2, req.Strip(list, among(t, "a", "b")))
	require.Equal(t, 0, req.Strip(nil, among(t, "a", "b")))
	assert.Equal(t, body, sent(t, &req), "the client's own bytes")
	old, err := io.ReadAll(before)
	require.NoError(t, err)
	assert.Equal(t, `{"model":"n","messages":[{"content":[{"type":"thinking","signature":"b"},7]}]}`, string(old), "a reader given out before")
	assert.Equal(t, `{"model":"n","messages":[{"content":[{"type":"thinking","signature":"a"},7]}]}`, sent(t, &copied), "a copy of the request")
}

func TestStripAsksOnceForEach(t *testing.T) {
	req := inspect(t, `{"model":"m","messages":[{"content":[{"type":"thinking","signature":"a"},{"type":"thinking","signature":"b"}]},{"content":[{"type":"thinking","signature":"a"}]}]}`)
	list := req.Thinking(hashSeed)
	var asked, want []uint64
	req.Strip(list, func(hash uint64) bool { asked = append(asked, hash); return true })
	for _, b := range list {
		want = append(want, b.Signature)
	}
	assert.Equal(t, want, asked)
}

func TestStripCopiesNothing(t *testing.T) {
	raw := []byte(`{"a":1,"messages":[{"content":[{"type":"thinking","signature":"a"},7]}],"model":"m","b":2}`)
	req, err := messages.Inspect(raw, 0)
	require.NoError(t, err)
	req.Strip(req.Thinking(hashSeed), among(t, "a"))
	body := req.NewBody()
	raw[5], raw[len(raw)-2] = '7', '8' // not allowed outside of this test
	got, err := io.ReadAll(body)
	require.NoError(t, err)
	assert.Equal(t, `{"a":7,"messages":[{"content":[7]}],"model":"m","b":8}`, string(got))
}

// Reads of any size give the same as one, over parts of any number.
func TestStripInSmallReads(t *testing.T) {
	req := inspect(t, claude{"aad", "low", false, 5}.body())
	require.Equal(t, 5, req.Strip(req.Thinking(hashSeed), among(t, "c2ln")))
	req.SetModel("other")
	want := sent(t, &req)
	require.NotContains(t, want, "c2ln")
	for size := 1; size < 200; size++ {
		var got strings.Builder
		_, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{req.NewBody()}, make([]byte, size))
		require.NoError(t, err)
		require.Equal(t, want, got.String(), "reads of %d bytes", size)
	}
}

func TestTools(t *testing.T) {
	for value, want := range map[string]bool{`[{"name":"a"}]`: true, `[]`: false, `null`: false} {
		req, err := messages.Inspect([]byte(`{"model":"m","tools":`+value+`}`), 0)
		require.NoError(t, err)
		assert.Equal(t, want, req.Tools, value)
	}
}

func TestContainer(t *testing.T) {
	for value, want := range map[string]bool{`"container_1"`: true, `{"id":"container_1"}`: true, `null`: false} {
		req, err := messages.Inspect([]byte(`{"model":"m","container":`+value+`}`), 0)
		require.NoError(t, err)
		assert.Equal(t, want, req.Container, value)
	}
}
