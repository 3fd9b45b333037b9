package price_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/price"
)

// row is a row that its input price tells from others.
func row(provider, model string, over int, input float64) price.Price {
	return price.Price{Provider: provider, Model: model, PromptOver: over, Input: input, Output: 1}
}

func table(t testing.TB, own ...price.Price) *price.Table {
	t.Helper()
	tab, err := price.NewTable(own)
	require.NoError(t, err)
	return tab
}

// ask is one look-up; want is the input price, -1 for none.
type ask struct {
	provider, model string
	prompt          int
	want            float64
}

func check(t *testing.T, tab *price.Table, asks []ask) {
	t.Helper()
	for _, a := range asks {
		p, ok := tab.Of(a.provider, a.model, a.prompt)
		if a.want < 0 {
			assert.False(t, ok, "%+v: got %+v", a, p)
			assert.Zero(t, p)
			continue
		}
		assert.True(t, ok, "%+v", a)
		assert.Equal(t, a.want, p.Input, "%+v", a)
	}
}

func TestPrecedence(t *testing.T) {
	for name, c := range map[string]struct {
		own  []price.Price
		asks []ask
	}{
		"exact before glob, whatever the order": {
			[]price.Price{row("", "*", 0, 1), row("", "m*", 0, 2), row("", "mm", 0, 3)},
			[]ask{{"p", "mm", 0, 3}, {"p", "mx", 0, 1}, {"p", "x", 0, 1}},
		},
		"exact without a provider before a glob with one": {
			[]price.Price{row("p", "m*", 0, 1), row("", "mm", 0, 2)},
			[]ask{{"p", "mm", 0, 2}, {"p", "mx", 0, 1}, {"q", "mx", 0, -1}},
		},
		"provider before none, for exact models": {
			[]price.Price{row("", "m", 0, 1), row("p*", "m", 0, 2), row("pp", "m", 0, 3), row("*", "m", 0, 4)},
			[]ask{{"pp", "m", 0, 3}, {"px", "m", 0, 2}, {"q", "m", 0, 4}, {"", "m", 0, 4}},
		},
		"provider before none, for globs": {
			[]price.Price{row("", "m*", 0, 1), row("p*", "*", 0, 2), row("pp", "m*", 0, 3)},
			[]ask{{"pp", "m", 0, 3}, {"px", "m", 0, 2}, {"q", "m", 0, 1}, {"pp", "x", 0, 2}},
		},
		"then the first": {
			[]price.Price{row("", "m", 0, 1), row("", "m", 0, 2), row("", "x*", 0, 3), row("", "*x", 0, 4), row("p", "x*", 0, 5), row("p", "*x", 0, 6)},
			[]ask{{"q", "m", 0, 1}, {"q", "xx", 0, 3}, {"q", "yx", 0, 4}, {"p", "xx", 0, 5}, {"p", "yx", 0, 6}},
		},
		"own before built-in": {
			[]price.Price{row("", "*-sonnet-*", 0, 1), row("p", "claude-opus-5-5", 0, 2), row("p", "claude-haiku-4-5*", 0, 3)},
			[]ask{
				{"p", "claude-sonnet-5-5", 0, 1}, {"p", "claude-opus-5-5", 0, 2}, {"q", "claude-opus-5-5", 0, 4},
				{"p", "claude-haiku-4-5-20251001", 0, 3}, {"q", "claude-haiku-4-5-20251001", 0, 1}, {"q", "claude-fable-5", 0, 10},
			},
		},
		"thresholds": {
			[]price.Price{row("", "m", 10, 2), row("", "m", 0, 1), row("", "m", 200, 4), row("", "m", 100, 3)},
			[]ask{
				{"p", "m", 0, 1}, {"p", "m", 10, 1}, {"p", "m", 11, 2}, {"p", "m", 100, 2},
				{"p", "m", 101, 3}, {"p", "m", 200, 3}, {"p", "m", 201, 4}, {"p", "m", 1 << 40, 4}, {"p", "m", -1, 1},
			},
		},
		"thresholds of a glob go with its first row": {
			[]price.Price{row("", "m*", 0, 1), row("", "*", 50, 9), row("", "m*", 100, 2)},
			[]ask{{"p", "m", 60, 1}, {"p", "m", 101, 2}, {"p", "x", 60, 9}, {"p", "x", 50, -1}},
		},
		"below every threshold the next row counts": {
			[]price.Price{row("", "claude-haiku-5-5", 50_000, 7), row("", "m", 100, 2), row("", "m*", 10, 1)},
			[]ask{
				{"p", "claude-haiku-5-5", 50_000, 0.1}, {"p", "claude-haiku-5-5", 50_001, 7}, {"p", "claude-haiku-5-5", 100_001, 7},
				{"p", "m", 101, 2}, {"p", "m", 100, 1}, {"p", "m", 10, -1},
			},
		},
		"a flat price of one's own replaces both built-in rows": {
			[]price.Price{row("", "claude-haiku-5-5", 0, 7)},
			[]ask{{"p", "claude-haiku-5-5", 1, 7}, {"p", "claude-haiku-5-5", 100_001, 7}},
		},
		"one price of one's own for a provider leaves the others": {
			[]price.Price{row("zai", "claude-*", 0, 0.5)},
			[]ask{{"zai", "claude-opus-5", 1, 0.5}, {"anthropic", "claude-opus-5", 1, 5}, {"zai", "glm-5.3", 1, -1}},
		},
		"none": {nil, []ask{
			{"p", "claude-opus-5", 1, 5}, {"", "claude-opus-5", 1, 5}, {"p", "claude-opus-5-6", 1, -1}, {"p", "", 0, -1}, {"p", "*", 0, -1},
			{"p", "Claude-Opus-5", 1, -1}, {"p", "claude-opus-5 ", 1, -1},
			{"p", "claude-haiku-5-5", 100_000, 0.1}, {"p", "claude-haiku-5-5", 100_001, 0.5},
		}},
	} {
		t.Run(name, func(t *testing.T) { check(t, table(t, c.own...), c.asks) })
	}
}

func TestGlobs(t *testing.T) {
	for pattern, c := range map[string]struct{ yes, no []string }{
		"m":         {[]string{"m"}, []string{"", "mm", "M"}},
		"*":         {[]string{"", "m", "a/b"}, nil},
		"**":        {[]string{"", "m"}, nil},
		"m*":        {[]string{"m", "mm", "m/x"}, []string{"", "xm"}},
		"*m":        {[]string{"m", "mm", "x/m"}, []string{"", "mx"}},
		"*m*":       {[]string{"m", "xmx"}, []string{"", "x"}},
		"a*a":       {[]string{"aa", "aba", "aaa"}, []string{"a", "ab", ""}},
		"a*b*c":     {[]string{"abc", "axbxc", "abcbc", "abbc"}, []string{"ac", "acb", "abcx"}},
		"*ab*ba*":   {[]string{"abba", "xabxbax"}, []string{"aba", "baab"}},
		"glm[1m]":   {[]string{"glm[1m]"}, []string{"glm1", "glmm"}},
		"*[1m]":     {[]string{"[1m]", "glm-5.2[1m]"}, []string{"glm-5.2", "1"}},
		`a\*.b`:     {[]string{`a\.b`, `a\x.b`}, []string{"a*.b", `a\xb`}},
		"us.*-v1:0": {[]string{"us.anthropic.claude-v1:0"}, []string{"eu.anthropic.claude-v1:0"}},
	} {
		asModel, asProvider := table(t, row("", pattern, 0, 99)), table(t, row(pattern, "claude-opus-5", 0, 99))
		for want, names := range map[bool][]string{true: c.yes, false: c.no} {
			for _, name := range names {
				_, ok := asModel.Of("p", name, 1)
				assert.Equal(t, want, ok, "model %q, pattern %q", name, pattern)
				p, _ := asProvider.Of(name, "claude-opus-5", 1)
				assert.Equal(t, want, p.Input == 99, "provider %q, pattern %q", name, pattern)
			}
		}
	}
}

// A table agrees with the rules as written down, taken one by one over all rows.
func TestTableAgreesWithTheRules(t *testing.T) {
	models, providers := []string{"a", "ab", "abc", "*", "a*", "*b*", "*c"}, []string{"", "p", "pq", "p*", "*", "*q"}
	rapid.Check(t, func(t *rapid.T) {
		rows := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) price.Price {
			return row(rapid.SampledFrom(providers).Draw(t, "provider"), rapid.SampledFrom(models).Draw(t, "model"),
				rapid.SampledFrom([]int{0, 0, 10, 20}).Draw(t, "over"), float64(rapid.IntRange(1, 1000).Draw(t, "input")))
		}), 0, 12).Draw(t, "rows")
		tab, err := price.NewTable(rows)
		require.NoError(t, err)
		for _, provider := range []string{"", "p", "pq", "q"} {
			for _, model := range []string{"a", "ab", "abc", "b", "x", ""} {
				for _, prompt := range []int{0, 10, 11, 25} {
					want, wantOK := plainly(rows, provider, model, prompt)
					got, ok := tab.Of(provider, model, prompt)
					if ok != wantOK || got != want {
						t.Fatalf("%s at %q, prompt %d:\ngot  %+v %v\nwant %+v %v", model, provider, prompt, got, ok, want, wantOK)
					}
				}
			}
		}
	})
}

// plainly finds a price by the sentences of NewTable's docstring.
func plainly(rows []price.Price, provider, model string, prompt int) (best price.Price, found bool) {
	rank := func(i int) []int {
		p, vague := rows[i], 0
		if p.Provider == "" {
			vague = 2
		} else if strings.Contains(p.Provider, "*") {
			vague = 1
		}
		first := i
		for j := range rows {
			if rows[j].Model == p.Model && rows[j].Provider == p.Provider {
				first = min(first, j)
			}
		}
		return []int{strings.Count(p.Model, "*"), vague, first, -p.PromptOver, i}
	}
	chosen := -1
	for i, p := range rows {
		if !plainlyMatches(p.Model, model) || !(p.Provider == "" || plainlyMatches(p.Provider, provider)) || p.PromptOver > 0 && prompt <= p.PromptOver {
			continue
		}
		if chosen < 0 || less(rank(i), rank(chosen)) {
			chosen = i
		}
	}
	if chosen < 0 {
		return price.Price{}, false
	}
	return rows[chosen], true
}

// less compares ranks; a model's * count only as some or none.
func less(a, b []int) bool {
	a[0], b[0] = min(a[0], 1), min(b[0], 1)
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

func plainlyMatches(pattern, text string) bool {
	if pattern == "" {
		return text == ""
	}
	if pattern[0] != '*' {
		return text != "" && text[0] == pattern[0] && plainlyMatches(pattern[1:], text[1:])
	}
	for i := range len(text) + 1 {
		if plainlyMatches(pattern[1:], text[i:]) {
			return true
		}
	}
	return false
}

func TestNoTableIsTheBuiltInOne(t *testing.T) {
	var none *price.Table
	for _, tab := range []*price.Table{none, table(t)} {
		p, ok := tab.Of("anthropic", "claude-opus-5-5", 1)
		require.True(t, ok)
		assert.Equal(t, price.Price{
			Model: "claude-opus-5-5", Input: 4, Output: 20, CacheWrite: new(5.0), CacheWriteLong: new(8.0), CacheRead: new(0.2),
		}, p)
		cost, ok := tab.Cost("anthropic", "nobody-knows", price.Tokens{Input: 1})
		assert.False(t, ok)
		assert.Zero(t, cost)
	}
}

func TestTheCallerKeepsItsRows(t *testing.T) {
	own := []price.Price{row("", "b", 0, 2), row("p", "a", 0, 1)}
	before := fmt.Sprint(own)
	tab := table(t, own...)
	assert.Equal(t, before, fmt.Sprint(own), "NewTable sorts a copy")
	own[0].Input, own[1].Model = 99, "z"
	check(t, tab, []ask{{"p", "b", 0, 2}, {"p", "a", 0, 1}, {"p", "z", 0, -1}})
}

func TestEveryBadRowIsNamed(t *testing.T) {
	_, err := price.NewTable([]price.Price{row("", "good", 0, 1), row("", "bad", -1, -1), row("", "", 0, 1)})
	assert.EqualError(t, err, `price: prices[1] (model "bad"): prompt_over: -1 is not a size; write a number of tokens, 0 for every prompt
price: prices[1] (model "bad"): input: -1 is not a price; write US$ per million tokens, at most 1000000
price: prices[2] (model ""): model: empty; write a model's name, or a part of it with *`)
}

// long is a table as large as anybody would write by hand.
func long(tb testing.TB) *price.Table {
	var own []price.Price
	for i := range 200 {
		own = append(own, row("local", fmt.Sprintf("model-%d", i), 0, 1))
	}
	for i := range 10 {
		own = append(own, row("zai", fmt.Sprintf("glm-%d*", i), 0, 1))
	}
	return table(tb, own...)
}

func TestLookUpsDoNotAllocate(t *testing.T) {
	tab := long(t)
	tokens := price.Tokens{Input: 3, CacheRead: 120_000, CacheWrite: 1_204, Output: 64}
	for _, tab := range []*price.Table{nil, tab} {
		for _, model := range []string{"claude-haiku-5-5", "model-7", "glm-9.1", "nobody-knows"} {
			assert.Zero(t, testing.AllocsPerRun(100, func() {
				tab.Of("zai", model, 1)
				tab.Cost("zai", model, tokens)
			}), model)
		}
	}
}

func BenchmarkCost(b *testing.B) {
	tokens := price.Tokens{Input: 3, CacheRead: 120_000, CacheWrite: 1_204, Output: 64}
	for _, c := range []struct {
		name, model string
		tab         *price.Table
	}{
		{"built-in", "claude-opus-5-5", nil},
		{"built-in-threshold", "claude-haiku-5-5", nil},
		{"built-in-unknown", "nobody-knows", nil},
		{"own-exact", "model-7", long(b)},
		{"own-glob", "glm-9.1", long(b)},
		{"own-then-built-in", "claude-opus-5-5", long(b)},
		{"own-unknown", "nobody-knows", long(b)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.tab.Cost("zai", c.model, tokens)
			}
		})
	}
}

func BenchmarkOf(b *testing.B) {
	var none *price.Table
	b.ReportAllocs()
	for b.Loop() {
		none.Of("anthropic", "claude-opus-5-5", 121_271)
	}
}
