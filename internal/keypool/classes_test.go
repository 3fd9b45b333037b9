package keypool_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

func TestClassesOfTheOperator(t *testing.T) {
	classes, err := keypool.NewClasses([]keypool.ClassRule{
		{Models: []string{"exact", "pre*", "*fix", "a*b*c", "lite*ral[1m]", "one/*"}, Class: "first"},
		{Models: []string{"claude-opus-5-5"}, Class: "opus-5"},
		{Models: []string{"*/claude-*", "exact-2", "pre*"}, Class: "second"},
		{Models: []string{"**last**"}, Class: strings.Repeat("c", 128)},
		{Models: []string{"odd*odd"}, Class: "odd"},
	})
	require.NoError(t, err)
	for model, want := range map[string]string{
		"exact":                        "first",
		"exact-2":                      "second",
		"Exact":                        "Exact",
		"pre":                          "first",
		"pre-any/thing":                "first",
		"fix":                          "first",
		"x-fix":                        "first",
		"x-fix-":                       "x-fix-",
		"abc":                          "first",
		"a-b-b-c-c":                    "first",
		"acb":                          "acb",
		"lite-ral[1m]":                 "first",
		"lite-ralm":                    "lite-ralm",
		"one/two/three":                "first",
		"one":                          "one",
		"claude-opus-5-5":              "opus-5",
		"claude-opus-5-5-20261001":     "opus-5-5",
		"claude-haiku-4-5":             "haiku-4-5",
		"vendor/region/claude-haiku-5": "second",
		"the-last-one":                 strings.Repeat("c", 128),
		"oddodd":                       "odd",
		"odd":                          "odd", // its own name
		"oddo":                         "oddo",
		"models":                       "other",
		"x+fast":                       "other",
		"":                             "other",
	} {
		assert.Equal(t, want, classes.Of(model), "class of %q", model)
	}
}

// What overlaps must not count twice.
func TestPartsOfAPatternDoNotOverlap(t *testing.T) {
	classes, err := keypool.NewClasses([]keypool.ClassRule{{Models: []string{"aba*bab"}, Class: "x"}})
	require.NoError(t, err)
	assert.Equal(t, "abab", classes.Of("abab"))
	assert.Equal(t, "x", classes.Of("abaxbab"))
}

func TestWithoutRulesTheTableHolds(t *testing.T) {
	empty, err := keypool.NewClasses(nil)
	require.NoError(t, err)
	for _, classes := range []*keypool.Classes{nil, empty, {}} {
		for _, model := range []string{"claude-opus-4-7", "gpt-oss:120b", "count_tokens", "", strings.Repeat("m", 129)} {
			assert.Equal(t, keypool.ClassOf(model), classes.Of(model))
		}
	}
}

func TestClassRulesThatAreRefused(t *testing.T) {
	good := keypool.ClassRule{Models: []string{"m"}, Class: "c"}
	for name, tc := range map[string]struct {
		rule keypool.ClassRule
		want string
	}{
		"no class":           {keypool.ClassRule{Models: []string{"m"}}, "class: empty"},
		"listing models":     {keypool.ClassRule{Models: []string{"m"}, Class: keypool.ClassModels}, "class: the relay uses this name itself"},
		"counting tokens":    {keypool.ClassRule{Models: []string{"m"}, Class: keypool.ClassCountTokens}, "class: the relay uses this name itself"},
		"a long class":       {keypool.ClassRule{Models: []string{"m"}, Class: strings.Repeat("c", 129)}, "class: not a name"},
		"a class of 2 words": {keypool.ClassRule{Models: []string{"m"}, Class: "a b"}, "class: not a name"},
		"a class in colour":  {keypool.ClassRule{Models: []string{"m"}, Class: "\x1b[31m"}, "class: not a name"},
		"no models":          {keypool.ClassRule{Class: "c"}, "no models"},
		"an empty model":     {keypool.ClassRule{Models: []string{"m", ""}, Class: "c"}, "models[1]: empty"},
		"a question mark":    {keypool.ClassRule{Models: []string{"m?"}, Class: "c"}, "models[0]: only * stands for other characters"},
		"a line break":       {keypool.ClassRule{Models: []string{"m\n"}, Class: "c"}, "models[0]: not a model's name"},
		"a long model":       {keypool.ClassRule{Models: []string{strings.Repeat("m", 513)}, Class: "c"}, "models[0]: not a model's name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := keypool.NewClasses([]keypool.ClassRule{good, tc.rule})
			assert.ErrorContains(t, err, "keypool: classes[1]: "+tc.want)
		})
	}
}

// FuzzClassPatterns compares with the plainest matcher there is.
func FuzzClassPatterns(f *testing.F) {
	f.Add("a*b*c", "aXbYc")
	f.Add("*", "")
	f.Add("aba*bab", "abab")
	f.Add("*a*a*", "aa")
	f.Fuzz(func(t *testing.T, pattern, model string) {
		classes, err := keypool.NewClasses([]keypool.ClassRule{{Models: []string{pattern}, Class: "matched!"}})
		if err != nil || strings.Count(pattern, "*") > 8 || len(model) > 64 || model == "matched!" {
			return
		}
		assert.Equal(t, plainlyMatches(pattern, model), classes.Of(model) == "matched!", "%q and %q", pattern, model)
	})
}

func plainlyMatches(pattern, text string) bool {
	switch {
	case pattern == "":
		return text == ""
	case pattern[0] == '*':
		return plainlyMatches(pattern[1:], text) || text != "" && plainlyMatches(pattern, text[1:])
	}
	return text != "" && text[0] == pattern[0] && plainlyMatches(pattern[1:], text[1:])
}

// Labels of metrics are a closed set, whatever models clients name.
func TestLabels(t *testing.T) {
	classes, err := keypool.NewClasses([]keypool.ClassRule{{Models: []string{"my-*"}, Class: "mine"}})
	require.NoError(t, err)
	for class, want := range map[string]string{
		"opus-5": "opus-5", "haiku-3-5": "haiku-3-5", "count_tokens": "count_tokens", "models": "models", "": "", "other": "other",
		"mine": "mine", "my-model": "other", "gpt-9": "other", "claude-opus-5": "other",
		"opus-5+fast": "opus-5+fast", "mine+fast": "mine+fast", "gpt-9+fast": "other+fast", "gpt-9+fast+fast": "other+fast",
	} {
		assert.Equal(t, want, classes.Label(class), "label of class %q", class)
	}
	var table *keypool.Classes
	assert.Equal(t, "opus-5", table.Label("opus-5"))
	assert.Equal(t, "other", table.Label("mine"))
}
