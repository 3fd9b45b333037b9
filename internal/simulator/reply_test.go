package simulator_test

import (
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// askTool is a body with a tool and the content of the last user message.
func askTool(content string) string {
	return `{"model":"claude-opus-5-5","max_tokens":500,"tools":[{"name":"Bash","input_schema":{}},{"name":"BashOutput","input_schema":{}}],` +
		`"messages":[{"role":"user","content":` + content + `}]}`
}

func TestToolTrigger(t *testing.T) {
	tests := map[string]struct{ text, tool, input string }{
		"with input":             {`please [use-tool:Bash {"command":"echo hi"}] now`, "Bash", `{"command":"echo hi"}`},
		"brackets in the input":  {`[use-tool:Bash {"command":"a[0]]"}]`, "Bash", `{"command":"a[0]]"}`},
		"without input":          {`[use-tool:Bash]`, "Bash", `{}`},
		"a longer name":          {`[use-tool:BashOutput]`, "BashOutput", `{}`},
		"a tool not offered":     {`[use-tool:Rm {"a":1}]`, "", ""},
		"broken JSON":            {`[use-tool:Bash {"command":]`, "", ""},
		"input is not an object": {`[use-tool:Bash 5]`, "", ""},
		"not closed":             {`[use-tool:Bash {"a":1}`, "", ""},
	}
	sim := newSim(t, oneOrg(simulator.Limits{}))
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := decode(t, post(sim, "k1", askTool(`[{"type":"text","text":`+quoted(tt.text)+`}]`)).Body.String())
			require.Len(t, m.Content, 1)
			if tt.tool == "" {
				assert.Equal(t, "text", m.Content[0].Type)
				assert.Equal(t, "end_turn", m.StopReason)
				return
			}
			assert.Equal(t, []string{"tool_use", tt.tool, "tool_use"}, []string{m.Content[0].Type, m.Content[0].Name, m.StopReason})
			assert.JSONEq(t, tt.input, string(m.Content[0].Input))
			assert.True(t, strings.HasPrefix(m.Content[0].ID, "toolu_"))
		})
	}
}

func TestToolResultIsAnswered(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	tests := map[string]struct{ content, want string }{
		"a string":  {`"ok [use-tool:Bash]"`, "The tool answered: ok [use-tool:Bash]"},
		"blocks":    {`[{"type":"text","text":"a"},{"type":"text","text":"b"}]`, "The tool answered: a\nb"},
		"empty":     {`""`, "The tool answered: "},
		"long":      {quoted(strings.Repeat("é", 300)), "The tool answered: " + strings.Repeat("é", 200)},
		"no result": {`[{"type":"image"}]`, "The tool answered: "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := decode(t, post(sim, "k1", askTool(`[{"type":"tool_result","tool_use_id":"toolu_1","content":`+tt.content+`},{"type":"text","text":"[use-tool:Bash]"}]`)).Body.String())
			require.Len(t, m.Content, 1)
			assert.Equal(t, tt.want, m.Content[0].Text)
		})
	}
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func TestLengthOfAnswers(t *testing.T) {
	cfg := oneOrg(simulator.Limits{})
	cfg.Answers = simulator.Answers{MedianTokens: 100, Sigma: 1, Seed: 7}
	lengths := func(cfg simulator.Config) []int {
		sim := newSim(t, cfg)
		var list []int
		for range 400 {
			m := decode(t, post(sim, "k1", say("hi", false, 1_000_000)).Body.String())
			assert.Equal(t, m.Usage.Output*4, len(m.Content[0].Text))
			list = append(list, m.Usage.Output)
		}
		return list
	}
	first := lengths(cfg)
	assert.Equal(t, first, lengths(cfg), "the same seed, the same lengths")
	cfg.Answers.Seed = 8
	assert.NotEqual(t, first, lengths(cfg))
	slices.Sort(first)
	assert.InDelta(t, 100, first[200], 20, "median")
	assert.InDelta(t, 100*math.E, first[336], 80, "one sigma above it")

	cfg.Answers = simulator.Answers{}
	assert.Equal(t, slices.Repeat([]int{190}, 400), lengths(cfg), "without sigma all are the default median")
}

func TestMaxTokensEndsAnAnswer(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	m := decode(t, post(sim, "k1", say("hi", false, 10)).Body.String())
	assert.Equal(t, "max_tokens", m.StopReason)
	assert.Equal(t, 10, m.Usage.Output)
	assert.Len(t, m.Content[0].Text, 40)

	m = decode(t, post(sim, "k1", say("hi", false, 0)).Body.String())
	assert.Equal(t, "max_tokens", m.StopReason, "0 only warms the cache")
	assert.Empty(t, m.Content)
	assert.Zero(t, m.Usage.Output)
}

func TestMaxTokensDoesNotSplitACharacter(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	b := strings.Replace(askTool(`[{"type":"tool_result","content":"éééééé"}]`), "500", "6", 1)
	m := decode(t, post(sim, "k1", b).Body.String())
	assert.Equal(t, "The tool answered: éé", m.Content[0].Text, "23 of 24 bytes")
	assert.Equal(t, "max_tokens", m.StopReason)
}

func TestWhatAReplyHookSees(t *testing.T) {
	cfg := simulator.Config{}
	cfg.Organizations = []simulator.Organization{{ID: "o", Keys: []simulator.Key{{Key: "k1", Name: "first", Workspace: "w"}}}}
	var got simulator.Request
	cfg.Reply = func(r simulator.Request) simulator.Reply { got = r; return simulator.Reply{} }
	sim := newSim(t, cfg)
	b := askTool(`[{"type":"text","text":"one"},{"type":"text","text":"two"}]`)
	w := post(sim, "k1", b)
	require.Equal(t, http.StatusOK, w.Code)
	assert.Equal(t, []string{"first", "o", "w", "claude-opus-5-5", "one\ntwo"}, []string{got.Key, got.Org, got.Workspace, got.Model, got.UserText})
	assert.Equal(t, []string{"Bash", "BashOutput"}, got.Tools)
	assert.Equal(t, 500, got.MaxTokens)
	assert.False(t, got.HasToolResult)
	assert.Equal(t, "2023-06-01", got.Header.Get("Anthropic-Version"))
	assert.Equal(t, b, string(got.Body))
}
