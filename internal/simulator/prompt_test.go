package simulator_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// bigText is a text of 1,000 tokens, above the minimum of claude-opus-5-5.
var bigText = strings.Repeat("abcd", 1000)

// body puts parts into a body for a model whose minimum is 512 tokens.
func body(parts string) string {
	return `{"model":"claude-opus-5-5","max_tokens":1,` + parts + `}`
}

func blockJSON(text, more string) string {
	return fmt.Sprintf(`{"type":"text","text":%q%s}`, text, more)
}

const (
	mark     = `,"cache_control":{"type":"ephemeral"}`
	markHour = `,"cache_control":{"type":"ephemeral","ttl":"1h"}`
)

func TestWhatThePrefixDependsOn(t *testing.T) {
	hi := `"messages":[{"role":"user","content":[` + blockJSON("hi", mark) + `]}]`
	system := `"system":[` + blockJSON(bigText, mark) + `]`
	tools := `"tools":[{"name":"A","description":"` + bigText + `","input_schema":{"x":1,"y":2}}]`
	images := `"messages":[{"role":"user","content":[` + blockJSON("hi", mark) + `,{"type":"image","source":{"type":"base64","data":"AAAA"}}]}]`

	tests := map[string]struct {
		first, second string
		want          string // what the second reads: all, system (tools and system), tools, none
	}{
		"the same":                              {system + "," + hi, system + "," + hi, "all"},
		"only cache_control differs":            {system + "," + hi, `"system":[` + blockJSON(bigText, mark) + `],"messages":[{"role":"user","content":[` + blockJSON("hi", `,"cache_control":{"type":"ephemeral","ttl":"5m"}`) + `]}]`, "all"},
		"cache_control comes first":             {system + "," + hi, `"system":[{"cache_control":{"type":"ephemeral"},"type":"text","text":"` + bigText + `"}],` + hi, "all"},
		"order of the top-level fields":         {system + "," + hi, hi + "," + system, "all"},
		"white space around members":            {system + "," + hi, "\n " + system + " , " + strings.ReplaceAll(hi, `,"`, ` , "`), "all"},
		"max_tokens and metadata":               {system + "," + hi, system + "," + hi + `,"metadata":{"user_id":"u"}`, "all"},
		"the last message":                      {system + "," + hi, system + "," + strings.ReplaceAll(hi, `"hi"`, `"ho"`), "system"},
		"the role":                              {system + "," + hi, system + "," + strings.ReplaceAll(hi, `"user"`, `"assistant"`), "system"},
		"thinking":                              {system + "," + hi, system + "," + hi + `,"thinking":{"type":"adaptive"}`, "system"},
		"tool_choice":                           {system + "," + hi, system + "," + hi + `,"tool_choice":{"type":"auto"}`, "system"},
		"effort":                                {system + "," + hi, system + "," + hi + `,"output_config":{"effort":"low"}`, "system"},
		"an image, though after the breakpoint": {system + "," + hi, system + "," + images, "system"},
		"speed":                                 {system + "," + hi, system + "," + hi + `,"speed":"fast"`, "none"},
		"the system prompt":                     {system + "," + hi, `"system":[` + blockJSON(bigText+"!", mark) + `],` + hi, "none"},
		"a tool":                                {tools + "," + system + "," + hi, strings.ReplaceAll(tools, `"A"`, `"B"`) + "," + system + "," + hi, "none"},
		"key order in a tool":                   {tools + "," + system + "," + hi, strings.ReplaceAll(tools, `"x":1,"y":2`, `"y":2,"x":1`) + "," + system + "," + hi, "none"},
		"the model":                             {system + "," + hi, system + "," + hi + `,"model":"claude-opus-5"`, "none"},
		"a string is one text block":            {`"system":[` + blockJSON(bigText, mark) + `],"messages":[{"role":"user","content":"a"},{"role":"user","content":[` + blockJSON("b", mark) + `]}]`, `"system":[` + blockJSON(bigText, mark) + `],"messages":[{"role":"user","content":[` + blockJSON("a", "") + `]},{"role":"user","content":[` + blockJSON("b", mark) + `]}]`, "all"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sim := newSim(t, oneOrg(simulator.Limits{}))
			w := post(sim, "k1", body(tt.first))
			require.Equal(t, http.StatusOK, w.Code, w.Body.String())
			w = post(sim, "k1", body(tt.second))
			require.Equal(t, http.StatusOK, w.Code, w.Body.String())
			got := decode(t, w.Body.String()).Usage
			switch tt.want {
			case "all":
				assert.Zero(t, got.Written, "usage %+v", got)
				assert.Zero(t, got.Input, "usage %+v", got)
			case "system":
				assert.GreaterOrEqual(t, got.Read, 1000, "usage %+v", got)
				assert.Positive(t, got.Written, "usage %+v", got)
			case "none":
				assert.Zero(t, got.Read, "usage %+v", got)
			}
		})
	}
}

func TestBreakpointRules(t *testing.T) {
	text := func(more string) string { return blockJSON("x", more) }
	message := func(blocks ...string) string {
		return `"messages":[{"role":"user","content":[` + strings.Join(blocks, ",") + `]}]`
	}
	four := message(text(mark), text(mark), text(mark), text(mark))
	tests := map[string]struct {
		body, want string // want: part of the message of the 400, "" for 200
	}{
		"four":                           {four, ""},
		"five":                           {message(text(mark), text(mark), text(mark), text(mark), text(mark)), "at most 4"},
		"five, one in system":            {`"system":[` + text(mark) + `],` + four, "at most 4"},
		"five, one on a tool":            {`"tools":[{"name":"A"` + mark + `}],` + four, "at most 4"},
		"four and automatic on the last": {four + mark, ""},
		"four and automatic elsewhere":   {message(text(mark), text(mark), text(mark), text(mark), text("")) + mark, "at most 4"},
		"automatic with another life":    {message(text(mark)) + markHour, "different lives"},
		"1h before 5m":                   {message(text(markHour), text(mark)), ""},
		"1h after 5m":                    {message(text(mark), text(markHour)), "must not come after"},
		"automatic 1h after 5m":          {message(text(mark), text("")) + markHour, "must not come after"},
		"null":                           {message(text(`,"cache_control":null`)), ""},
		"another type":                   {message(text(`,"cache_control":{"type":"permanent"}`)), "ephemeral"},
		"another ttl":                    {message(text(`,"cache_control":{"type":"ephemeral","ttl":"2h"}`)), "5m or 1h"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := post(newSim(t, oneOrg(simulator.Limits{})), "k1", body(tt.body))
			if tt.want == "" {
				assert.Equal(t, http.StatusOK, w.Code, w.Body.String())
				return
			}
			assert.Equal(t, http.StatusBadRequest, w.Code)
			assert.Equal(t, "invalid_request_error", errorType(t, w.Body.String()))
			assert.Contains(t, w.Body.String(), tt.want)
		})
	}
}

func TestUsageOverHTTP(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	b := body(`"system":[` + blockJSON(bigText, markHour) + `],"messages":[{"role":"user","content":[` + blockJSON(bigText, mark) + `,` + blockJSON("1234567", "") + `]}]`)
	got := decode(t, post(sim, "k1", b).Body.String()).Usage
	want := usage{Input: 4, Written: 2004, Output: 1}
	want.Creation.Short, want.Creation.Long = 1002, 1002
	assert.Equal(t, want, got, "a block of n bytes is n+8 bytes of values: the quotes, and %q", `"text"`)
	got = decode(t, post(sim, "k1", b).Body.String()).Usage
	assert.Equal(t, usage{Input: 4, Read: 2004, Output: 1}, got)
}

func TestAutomaticCaching(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	first := `"cache_control":{"type":"ephemeral"},"messages":[{"role":"user","content":"` + bigText + `"}]`
	got := decode(t, post(sim, "k1", body(first)).Body.String()).Usage
	assert.Equal(t, 1002, got.Written)
	second := strings.TrimSuffix(first, "]") + `,{"role":"assistant","content":"ok"},{"role":"user","content":"go on"}]`
	got = decode(t, post(sim, "k1", body(second)).Body.String()).Usage
	assert.Equal(t, 1002, got.Read, "the breakpoint moves to the new last block and finds the old one")
	assert.Positive(t, got.Written)
	assert.Zero(t, got.Input)
}

func TestImagesCostAtMost1600Tokens(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	b := body(`"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":"` + strings.Repeat("A", 100_000) + `"}}]}]`)
	assert.Equal(t, 1600, decode(t, post(sim, "k1", b).Body.String()).Usage.Input)
}

// What the walker over raw bytes reads is what encoding/json reads.
func FuzzRequestIsReadAsJSON(f *testing.F) {
	f.Add("hello", "result", "Bash")
	f.Add(`quotes " and \ back\\slashes \"`, "\u2028<&>\x00", `{"[}]`)
	f.Add(`ends with \`, `two of them \\`, `\`)
	f.Add("", "日本語 \U0001f600", "a,b:c")
	f.Fuzz(func(t *testing.T, said, result, tool string) {
		said, result, tool = valid(said), valid(result), valid(tool)
		cfg := oneOrg(simulator.Limits{})
		var got simulator.Request
		cfg.Reply = func(r simulator.Request) simulator.Reply { got = r; return simulator.Reply{} }
		sent, err := json.MarshalIndent(map[string]any{
			"model": "claude-opus-5-5", "max_tokens": 7, "stream": false,
			"tools": []any{map[string]any{"name": tool, "input_schema": map[string]any{"name": "not this one"}}},
			"messages": []any{
				map[string]any{"role": "user", "content": "an earlier one"},
				map[string]any{"role": "user", "content": []any{
					map[string]any{"type": "text", "text": said},
					map[string]any{"type": "tool_result", "tool_use_id": "toolu_1", "content": []any{map[string]any{"type": "text", "text": result}}},
				}},
			},
		}, " ", "\t")
		require.NoError(t, err)
		w := post(newSim(t, cfg), "k1", string(sent))
		require.Equal(t, http.StatusOK, w.Code, w.Body.String())
		assert.Equal(t, said, got.UserText)
		assert.Equal(t, result, got.ToolResult)
		assert.True(t, got.HasToolResult)
		assert.Equal(t, []string{tool}, got.Tools)
		assert.Equal(t, 7, got.MaxTokens)
	})
}

func valid(s string) string { return strings.ToValidUTF8(s, "?") }

// Any bytes get a whole answer in the API's form, and 200 only for valid JSON.
func FuzzAnyBodyGetsAnAnswer(f *testing.F) {
	f.Add([]byte(say("hi", false, 5)))
	f.Add([]byte(`{"model":"claude-x","max_tokens":1,"messages":[{"role":"user","content":[{"type":"text"},[]]}]}`))
	f.Add([]byte(`{"model":"claude-x","max_tokens":1e2,"messages":[{"role":"user","content":""}],"tools":5,"system":{}}`))
	f.Add([]byte(`[1,{"a":"\\\""}]`))
	f.Add([]byte("\ufeff{}"))
	sim := newSim(f, oneOrg(simulator.Limits{}))
	f.Fuzz(func(t *testing.T, sent []byte) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/v1/messages", bytes.NewReader(sent))
		r.Header.Set("Authorization", "Bearer k1")
		r.Header.Set("Anthropic-Version", "2026-10-21")
		sim.ServeHTTP(w, r)
		switch w.Code {
		case http.StatusOK:
			assert.True(t, json.Valid(sent), "200 for %q", sent)
		case http.StatusBadRequest, http.StatusNotFound:
			errorType(t, w.Body.String())
		default:
			t.Errorf("got status %d for %q", w.Code, sent)
		}
	})
}
