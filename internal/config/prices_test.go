package config_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/price"
)

// okPrice is a price list that is right, for files that are wrong elsewhere.
const okPrice = "prices: [{ model: m, input: 1, output: 2 }]\n"

func TestLoadPrices(t *testing.T) {
	t.Setenv("RATE", "0.25")
	path := writeFile(t, 0o644, `
as_of: 2026-11-23
prices:
- { model: glm-5.3, provider: zai, input: 1.4, output: 4.4, cache_write: 0, cache_write_1h: 0, cache_read: "${RATE}" }
- model: "local/*[1m]"
  provider: "*-gpu"
  prompt_over: 200000
  input: 0
  output: 1e-1
`)
	got, err := config.LoadPrices(path)
	require.NoError(t, err)
	assert.Equal(t, []price.Price{
		{Model: "glm-5.3", Provider: "zai", Input: 1.4, Output: 4.4, CacheWrite: ptr(0.0), CacheWriteLong: ptr(0.0), CacheRead: ptr(0.25)},
		{Model: "local/*[1m]", Provider: "*-gpu", PromptOver: 200_000, Output: 0.1},
	}, got)
}

func TestTheBuiltInPricesAreAPriceFile(t *testing.T) {
	got, err := config.LoadPrices("../price/prices.yaml")
	require.NoError(t, err)
	assert.Equal(t, price.BuiltIn().Prices, got)
}

func TestLoadPricesRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:                      "is a directory; name the file in it",
		os.DevNull:               "is not a regular file; pipes and devices are not read",
		filepath.Join(dir, "no"): "cannot be read: no such file or directory",
	} {
		_, err := config.LoadPrices(path)
		assert.EqualError(t, err, path+": "+want)
	}
	_, err := config.LoadPrices(filepath.Join(dir, "no"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestLoadPricesSaysWhereAndWhat(t *testing.T) {
	path := writeFile(t, 0o600, "prices:\n- { model: m, inputs: 3, output: -1 }\n")
	_, err := config.LoadPrices(path)
	assert.EqualError(t, err, path+":2:3: prices[0].input: no price; write US$ per million tokens, 0 if they are free\n"+
		path+":2:15: prices[0].inputs: unknown field; did you mean input?\n"+
		path+":2:34: prices[0].output: -1 is not a price; write US$ per million tokens, at most 1000000")
	var m *config.Mistake
	require.ErrorAs(t, err, &m)
	assert.Equal(t, "prices[0].input", m.Path)
}

func TestPriceMistakes(t *testing.T) {
	const (
		minimal = "write at least: prices: [{ model: NAME, input: 3, output: 15 }]"
		noPrice = "no price; write US$ per million tokens, 0 if they are free"
		numbers = "not a number; write one such as 3 or 0.25"
	)
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"empty", "", []string{"c.yaml: empty; " + minimal}},
		{"comments only", "# prices:\n", []string{"c.yaml: empty; " + minimal}},
		{"null", "~\n", []string{"c.yaml: prices: none; " + minimal}},
		{"no prices", "as_of: 2026-01-01\n", []string{"c.yaml: prices: none; " + minimal}},
		{"no rows", "prices: []\n", []string{"c.yaml:1:1: prices: none; " + minimal}},
		{"a list", "- { model: m }\n", []string{`c.yaml: must be a mapping; write "name: value" lines`}},
		{"two documents", okPrice + "---\n" + okPrice, []string{"c.yaml:3:1: a second document; remove the --- line before it"}},
		{"not YAML", "prices: [{ model: m }\n", []string{"c.yaml:1:9: not valid YAML: sequence end token ']' not found"}},
		{"a mapping of models", "prices: { m: { input: 1, output: 2 } }\n", []string{`c.yaml:1:1: prices: must be a list; start each entry with "- "`}},
		{"a configuration", ok, []string{"c.yaml: prices: none; " + minimal, "c.yaml:1:1: providers: unknown field; known here: as_of, prices"}},
		{"unknown fields", okPrice + "as_off: x\ncurrency: EUR\n", []string{
			"c.yaml:2:1: as_off: unknown field; did you mean as_of?", "c.yaml:3:1: currency: unknown field; known here: as_of, prices"}},
		{"unknown field of a row", "prices: [{ model: m, input: 1, output: 2, cacheRead: 1, vendor: x }]\n", []string{
			"c.yaml:1:43: prices[0].cacheRead: unknown field; did you mean cache_read?",
			"c.yaml:1:57: prices[0].vendor: unknown field; known here: model, provider, prompt_over, input, output, cache_write, cache_write_1h, cache_read"}},
		{"no date", okPrice + "as_of: 23.11.2026\n", []string{"c.yaml:2:8: as_of: not a date; write YYYY-MM-DD"}},
		{"no such date", okPrice + "as_of: 2026-02-30\n", []string{"c.yaml:2:8: as_of: not a date; write YYYY-MM-DD"}},
		{"twice", "prices: [{ model: m, input: 1, output: 2, input: 3 }]\n", []string{"c.yaml:1:43: prices[0].input: written twice, first on line 1; remove one"}},

		{"nothing in a row", "prices:\n- {}\n-\n", []string{
			"c.yaml:2:3: prices[0].model: empty; write a model's name, or a part of it with *",
			"c.yaml:2:3: prices[0].input: " + noPrice, "c.yaml:2:3: prices[0].output: " + noPrice,
			"c.yaml:3:3: prices[1].model: empty; write a model's name, or a part of it with *",
			"c.yaml:3:3: prices[1].input: " + noPrice, "c.yaml:3:3: prices[1].output: " + noPrice}},
		{"nothing after a colon", "prices:\n- model: m\n  input:\n  output: 1\n", []string{"c.yaml:3:3: prices[0].input: " + noPrice}},
		{"rows that are none", "prices: [m, [1]]\n", []string{
			`c.yaml:1:10: prices[0]: must be a mapping; write "name: value" lines`,
			`c.yaml:1:13: prices[1]: must be a mapping; write "name: value" lines`}},
		{"model", "prices: [{ model: 'claude opus', input: 1, output: 2 }, { model: m?, input: 1, output: 2 }]\n", []string{
			"c.yaml:1:19: prices[0].model: not a model's name; write visible ASCII characters",
			"c.yaml:1:66: prices[1].model: only * stands for other characters; write it for ?"}},
		{"provider", "prices: [{ model: m, provider: Anthropic, input: 1, output: 2 }, { model: m, provider: 'a, b', input: 1, output: 2 }]\n", []string{
			"c.yaml:1:32: prices[0].provider: not a provider's name; write lower-case letters, digits, - and _, with * for any of them",
			"c.yaml:1:88: prices[1].provider: not a provider's name; write lower-case letters, digits, - and _, with * for any of them"}},
		{"not numbers", "prices: [{ model: m, input: '0,25', output: $3, cache_write: [1], cache_write_1h: free, cache_read: '' }]\n", []string{
			"c.yaml:1:29: prices[0].input: " + numbers, "c.yaml:1:45: prices[0].output: " + numbers,
			"c.yaml:1:49: prices[0].cache_write: must be a single value, not a list or a mapping",
			"c.yaml:1:83: prices[0].cache_write_1h: " + numbers, "c.yaml:1:101: prices[0].cache_read: " + numbers}},
		{"numbers of another kind", "prices: [{ model: m, input: .inf, output: .NaN, cache_write: 0x10, cache_write_1h: 1e999, cache_read: nan, prompt_over: 1.5 }]\n", []string{
			"c.yaml:1:29: prices[0].input: " + numbers, "c.yaml:1:43: prices[0].output: " + numbers,
			"c.yaml:1:62: prices[0].cache_write: " + numbers, "c.yaml:1:84: prices[0].cache_write_1h: too large a number",
			"c.yaml:1:103: prices[0].cache_read: " + numbers, "c.yaml:1:121: prices[0].prompt_over: not a whole number; write digits only"}},
		{"digits that are no number", "prices: [{ model: m, input: 1.2.3, output: e }]\n", []string{
			"c.yaml:1:29: prices[0].input: " + numbers, "c.yaml:1:44: prices[0].output: " + numbers}},
		{"out of bounds", "prices: [{ model: m, input: -0.1, output: 3e-6, cache_read: 1000000.5, prompt_over: -1 }]\n", []string{
			"c.yaml:1:29: prices[0].input: -0.1 is not a price; write US$ per million tokens, at most 1000000",
			"c.yaml:1:43: prices[0].output: 3e-06 looks like a price per token; write US$ per million tokens, at least 0.0001",
			"c.yaml:1:61: prices[0].cache_read: 1.0000005e+06 is not a price; write US$ per million tokens, at most 1000000",
			"c.yaml:1:85: prices[0].prompt_over: -1 is not a size; write a number of tokens, 0 for every prompt"}},
		{"not set", "prices: [{ model: m, input: '${RATE}', output: 2 }]\n", []string{
			`c.yaml:1:29: prices[0].input: not set in the environment: RATE; set it, or write a default: "${RATE:-default}"`}},
		{"same rows", "prices:\n" + strings.Repeat("- { model: m, input: 1, output: 2 }\n", 3) + "- { model: m, prompt_over: 5, input: 1, output: 2 }\n- { model: m, prompt_over: 5, input: 2, output: 2 }\n- { model: m, provider: p, input: 1, output: 2 }\n", []string{
			"c.yaml:3:3: prices[1]: for the same model, provider and prompt_over as prices[0], which comes first; remove one",
			"c.yaml:4:3: prices[2]: for the same model, provider and prompt_over as prices[0], which comes first; remove one",
			"c.yaml:6:3: prices[4]: for the same model, provider and prompt_over as prices[3], which comes first; remove one"}},
		{"wrong rows are not the same", "prices:\n- { model: m, input: 1, output: 2 }\n- { model: m, prompt_over: 100k, input: 1, output: 2 }\n", []string{
			"c.yaml:3:28: prices[1].prompt_over: not a whole number; write digits only"}},
		{"anchors", "prices: [&a { model: m, input: 1, output: 2 }, *a]\n", []string{
			"c.yaml:1:10: prices[0]: anchors, aliases, merge keys and tags are not supported; write the value itself",
			"c.yaml:1:48: prices[1]: anchors, aliases, merge keys and tags are not supported; write the value itself"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := config.ParsePrices("c.yaml", []byte(test.text), environ())
			assert.Nil(t, got)
			assert.EqualError(t, err, strings.Join(test.want, "\n"))
		})
	}
}

// FuzzParsePrices checks that ParsePrices never panics, that each mistake is one
// line with the file's name, and that what it accepts is a table and, written
// out again, the same list.
func FuzzParsePrices(f *testing.F) {
	for _, seed := range []string{
		okPrice, "",
		"as_of: 2026-11-23\nprices:\n- model: claude-*\n  provider: p*\n  prompt_over: 100000\n  input: 0.1\n  output: .5\n  cache_write: 0\n  cache_write_1h: 1e3\n  cache_read: '+2.'\n",
		"prices: [{ model: '1e3', input: -0, output: 0.0001 }, { model: $$a[1m], provider: '0', input: '${A:-1}', output: 2 }]\n",
		"prices: [{ model: null, input: .inf, output: -.NaN }, { model: 'true', input: 0x1, output: 1_000 }]\nas_of: x\n",
		"prices: [{ model: '*', input: 1, output: 2 }, { model: '~', input: 1, output: 2 }, { model: '#a: b', input: 1e-400, output: 2 }]\n",
		"prices: &a [*a]\n---\n", "prices:\n- model: |-\n    m\n  input: 1\n  output: 2\n", "prices: [{ model: m, input: 1, output: 2, output: 3 }\n",
	} {
		f.Add(seed)
	}
	env := func(name string) (string, bool) { return "1", name != "UNSET" }
	f.Fuzz(func(t *testing.T, text string) {
		got, err := config.ParsePrices("c.yaml", []byte(text), env)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				require.True(t, strings.HasPrefix(line, "c.yaml:"), "got line %q", line)
			}
			return
		}
		_, err = price.NewTable(got)
		require.NoError(t, err)

		list := price.File{Prices: make([]price.Price, len(got))}
		for i, p := range got {
			p.Model = strings.ReplaceAll(p.Model, "$", "$$")
			list.Prices[i] = p
		}
		written, err := yaml.Marshal(list)
		require.NoError(t, err)
		again, err := config.ParsePrices("written.yaml", written, env)
		require.NoError(t, err, "accepted:\n%s\nwritten:\n%s", text, written)
		assert.Equal(t, got, again, "accepted:\n%s\nwritten:\n%s", text, written)
	})
}
