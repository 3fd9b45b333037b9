package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/config"
	"cc-relay/internal/router"
)

// two are providers that rules may name, and a client.
const two = `providers: [{ name: main, keys: [{ key: k }] }, { name: zai-eu, base_url: 'https://z', keys: [{ key: l }] }]
clients: [{ name: dev, token: a-test-token }]
`

func TestRouteMistakes(t *testing.T) {
	const (
		strategies = "write cost or failover or latency or least_loaded or round_robin or shuffle or weighted_round_robin"
		noName     = "not a name for a model; write letters, digits and . _ - : / @ [ ], a letter or digit first"
		noModel    = "stands for no model; write its name or another alias, without *"
	)
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		// models
		{"no target", two + "models:\n- { match: [a] }\n- { match: [b], targets: [] }\n- { match: [c], targets: , weights: [1] }\n", []string{
			`c.yaml:4:3: models[0].targets: none; write targets: ["PROVIDER"] or ["PROVIDER/MODEL"]`,
			`c.yaml:5:17: models[1].targets: none; write targets: ["PROVIDER"] or ["PROVIDER/MODEL"]`,
			`c.yaml:6:17: models[2].targets: none; write targets: ["PROVIDER"] or ["PROVIDER/MODEL"]`}},
		{"targets", two + "models:\n- match: [a]\n  targets: [maim, zai_eu/big, z, main/, '', /x, main/*, main/a b, main/a?, main, main/a, main, main/a]\n", []string{
			"c.yaml:5:13: models[0].targets[0]: there is no provider of this name; did you mean main?",
			"c.yaml:5:19: models[0].targets[1]: there is no provider of this name; did you mean zai-eu?",
			"c.yaml:5:31: models[0].targets[2]: there is no provider of this name; the providers are main, zai-eu",
			"c.yaml:5:34: models[0].targets[3]: ends in a slash; write PROVIDER or PROVIDER/MODEL",
			"c.yaml:5:41: models[0].targets[4]: names no provider; write PROVIDER or PROVIDER/MODEL",
			"c.yaml:5:45: models[0].targets[5]: names no provider; write PROVIDER or PROVIDER/MODEL",
			"c.yaml:5:49: models[0].targets[6]: a target's model is one name; * is for match",
			"c.yaml:5:57: models[0].targets[7]: not a model's name; write up to 512 visible ASCII characters",
			"c.yaml:5:67: models[0].targets[8]: only * stands for other characters; write it for ?",
			"c.yaml:5:90: models[0].targets[11]: same as targets[9]; remove one",
			"c.yaml:5:96: models[0].targets[12]: same as targets[10]; remove one"}},
		{"for no model", two + "models:\n- { targets: [main] }\n- { match: [], class: '', clients: [dev], targets: [main] }\n-\n", []string{
			`c.yaml:4:3: models[0]: for no model; write match: ["NAME"], with * for any characters, or a class`,
			`c.yaml:5:3: models[1]: for no model; write match: ["NAME"], with * for any characters, or a class`,
			`c.yaml:6:3: models[2]: for no model; write match: ["NAME"], with * for any characters, or a class`,
			`c.yaml:6:3: models[2].targets: none; write targets: ["PROVIDER"] or ["PROVIDER/MODEL"]`}},
		{"match and class", two + "models: [{ match: ['', 'a b', 'a?', '*', a], class: 'a b', targets: [main] }, { class: models, targets: [main] }]\n", []string{
			"c.yaml:3:20: models[0].match[0]: empty; write a model's name, or a part of it with *",
			"c.yaml:3:24: models[0].match[1]: not a model's name; write up to 512 visible ASCII characters",
			"c.yaml:3:31: models[0].match[2]: only * stands for other characters; write it for ?",
			"c.yaml:3:53: models[0].class: not a name; write up to 128 visible ASCII characters",
			"c.yaml:3:88: models[1].class: the relay uses this name itself; choose another"}},
		{"clients", two + "models: [{ match: [a], clients: [dev, Dev, ''], targets: [main] }]\n", []string{
			"c.yaml:3:39: models[0].clients[1]: there is no client of this name; add it to clients, or correct the name",
			"c.yaml:3:44: models[0].clients[2]: there is no client of this name; add it to clients, or correct the name"}},
		{"clients where there are none", ok + "models: [{ match: [a], clients: [dev], targets: [anthropic] }]\n", []string{
			"c.yaml:2:34: models[0].clients[0]: there is no client of this name; add it to clients, or correct the name"}},
		{"weights", two + "models:\n- { match: [a], targets: [main, zai-eu], weights: [1] }\n- { match: [b], targets: [main], weights: [0] }\n- { match: [c], targets: [main, zai-eu], weights: [1001, -1, half] }\n- { match: [d], targets: [main], weights: 1 }\n", []string{
			"c.yaml:4:42: models[0].weights: 1 for 2 targets; write one for each, in their order",
			"c.yaml:5:44: models[1].weights[0]: 0 is not a weight; write 1 to 1000",
			"c.yaml:6:42: models[2].weights: 3 for 2 targets; write one for each, in their order",
			"c.yaml:6:52: models[2].weights[0]: 1001 is not a weight; write 1 to 1000",
			"c.yaml:6:58: models[2].weights[1]: -1 is not a weight; write 1 to 1000",
			"c.yaml:6:62: models[2].weights[2]: not a whole number; write digits only",
			`c.yaml:7:43: models[3].weights: must be a list; start each entry with "- "`}},
		{"strategy", two + "models: [{ match: [a], targets: [main], strategy: lowest-latency }, { match: [b], targets: [main], strategy: Round-Robin }]\n", []string{
			"c.yaml:3:51: models[0].strategy: unknown; " + strategies,
			"c.yaml:3:110: models[1].strategy: unknown; did you mean round_robin?"}},
		{"the same rule twice", two + "models:\n- { match: [a, b*], targets: [main] }\n- { match: [a], targets: [main] }\n- { match: [b*, a], clients: [], targets: [zai-eu] }\n" +
			"- { match: [b*, a], clients: [dev], targets: [zai-eu] }\n- { match: [b*, a], class: a, targets: [zai-eu] }\n- { class: a, targets: [zai-eu] }\n- { class: a, targets: [main], strategy: cost }\n", []string{
			"c.yaml:6:3: models[2]: for the same requests as models[0], which comes first; remove one",
			"c.yaml:10:3: models[6]: for the same requests as models[5], which comes first; remove one"}},
		{"what cannot be read is not called missing or the same", two + "models:\n- { match: a, targets: main, weights: [1, 2], clients: dev }\n- { match: ['${A}'], targets: ['${B}'] }\n- { match: ['${C}'], class: '${D}', targets: [main] }\n- { class: [], targets: [main] }\n", []string{
			`c.yaml:4:12: models[0].match: must be a list; start each entry with "- "`,
			`c.yaml:4:24: models[0].targets: must be a list; start each entry with "- "`,
			`c.yaml:4:56: models[0].clients: must be a list; start each entry with "- "`,
			`c.yaml:5:13: models[1].match[0]: not set in the environment: A; set it, or write a default: "${A:-default}"`,
			`c.yaml:5:32: models[1].targets[0]: not set in the environment: B; set it, or write a default: "${B:-default}"`,
			`c.yaml:6:13: models[2].match[0]: not set in the environment: C; set it, or write a default: "${C:-default}"`,
			`c.yaml:6:29: models[2].class: not set in the environment: D; set it, or write a default: "${D:-default}"`,
			`c.yaml:7:5: models[3].class: must be a single value, not a list or a mapping`}},
		{"who has no name yet is not called missing", "models: [{ match: [a], clients: [x], targets: [acme] }]\nclients: [{ name: '${A}', token: a-test-token }]\nproviders: [{ name: '${B}', keys: [{ key: k }] }]\n", []string{
			`c.yaml:2:19: clients[0].name: not set in the environment: A; set it, or write a default: "${A:-default}"`,
			`c.yaml:3:21: providers[0].name: not set in the environment: B; set it, or write a default: "${B:-default}"`}},
		{"nor who cannot be read", "models: [{ match: [a], clients: [x], targets: [acme] }]\nclients: [x]\nproviders: [acme]\n", []string{
			`c.yaml:2:11: clients[0]: must be a mapping; write "name: value" lines`,
			`c.yaml:3:13: providers[0]: must be a mapping; write "name: value" lines`}},
		{"nor what should be in a list that is none", "models: [{ match: [a], clients: [x], targets: [acme] }]\nclients: x\nproviders: acme\nrouting: { weights: [1] }\npassthrough: true\n", []string{
			`c.yaml:2:10: clients: must be a list; start each entry with "- "`,
			`c.yaml:3:12: providers: must be a list; start each entry with "- "`}},
		{"models that are none", two + "models: main\n", []string{`c.yaml:3:9: models: must be a list; start each entry with "- "`}},
		{"rules that are none", two + "models: [main, [a], { model: a, class: b, targets: [main] }]\n", []string{
			`c.yaml:3:10: models[0]: must be a mapping; write "name: value" lines`,
			`c.yaml:3:16: models[1]: must be a mapping; write "name: value" lines`,
			"c.yaml:3:23: models[2].model: unknown field; known here: match, class, clients, targets, weights, strategy"}},

		// routing
		{"default", two + "routing: { default: [maim, main/, main, main], weights: [1, 2, 3] }\n", []string{
			"c.yaml:3:22: routing.default[0]: there is no provider of this name; did you mean main?",
			"c.yaml:3:28: routing.default[1]: ends in a slash; write PROVIDER or PROVIDER/MODEL",
			"c.yaml:3:41: routing.default[3]: same as default[2]; remove one",
			"c.yaml:3:48: routing.weights: 3 for 4 targets; write one for each, in their order"}},
		{"weights of all providers", two + "routing: { weights: [1, 2, 0] }\n", []string{
			"c.yaml:3:12: routing.weights: 3 for 2 targets; write one for each, in their order",
			"c.yaml:3:28: routing.weights[2]: 0 is not a weight; write 1 to 1000"}},
		{"weights of no default", two + "routing: { weights: [1, 2] }\nmodels: [{ match: [a], targets: [main] }]\n", []string{
			"c.yaml:3:12: routing.weights: 2 for 0 targets; write one for each, in their order"}},
		{"weights of a default that cannot be read", two + "routing: { default: main, weights: [1, 2, 3] }\n", []string{
			`c.yaml:3:21: routing.default: must be a list; start each entry with "- "`}},
		{"strategy of routing", two + "routing: { strategy: best, rules: [], Aliases: {} }\n", []string{
			"c.yaml:3:22: routing.strategy: unknown; " + strategies,
			"c.yaml:3:28: routing.rules: unknown field; known here: strategy, retry_unknown, default, weights",
			"c.yaml:3:39: routing.Aliases: unknown field; known here: strategy, retry_unknown, default, weights"}},

		// aliases
		{"cycles", two + "aliases:\n  fast: smart\n  smart: dear\n  dear: smart\n  me: me\n  good: claude-opus-5-5\n  gpt-4: fine\n  fine: gpt-4\n", []string{
			"c.yaml:4:9: aliases.fast: a cycle, smart → dear → smart; let one of them name a model",
			"c.yaml:5:10: aliases.smart: a cycle, smart → dear → smart; let one of them name a model",
			"c.yaml:6:9: aliases.dear: a cycle, dear → smart → dear; let one of them name a model",
			"c.yaml:7:7: aliases.me: a cycle, me → me; let one of them name a model",
			"c.yaml:9:10: aliases: a cycle, … → fine → …; let one of them name a model",
			"c.yaml:10:9: aliases.fine: a cycle, fine → … → fine; let one of them name a model"}},
		{"names", two + "aliases:\n  fast*: a\n  b: claude-*\n  c: a b\n  d d: a\n  e:\n  '': f\n  g: '${A}'\n  h: [a]\n", []string{
			"c.yaml:4:10: aliases: " + noName,
			"c.yaml:5:6: aliases.b: " + noModel,
			"c.yaml:6:6: aliases.c: " + noModel,
			"c.yaml:7:8: aliases: " + noName,
			"c.yaml:8:3: aliases.e: " + noModel,
			"c.yaml:9:7: aliases: " + noName,
			`c.yaml:10:6: aliases.g: not set in the environment: A; set it, or write a default: "${A:-default}"`,
			"c.yaml:11:3: aliases.h: must be a single value, not a list or a mapping"}},
		{"aliases that are none", two + "aliases: [fast]\n", []string{`c.yaml:3:1: aliases: must be a mapping; write "name: value" lines`}},
		{"an alias twice", two + "aliases: { a: b, a: c }\n", []string{"c.yaml:3:18: aliases.a: written twice, first on line 3; remove one"}},

		// passthrough, health_check, origin
		{"passthrough", "passthrough: true\nproviders: [{ name: a, base_url: 'https://llm.example.com', keys: [{ key: k }] }, { name: b, origin: acme, keys: [{ key: l }] }]\n", []string{
			"c.yaml:1:14: passthrough: no provider is Anthropic's, and a client's own credential goes to no other; add one, or set origin: anthropic on one that is"}},
		{"passthrough to a vendor that has no name of its own", "passthrough: true\nproviders: [{ base_url: 'https://anthropic.com.example.com', keys: [{ key: k }] }]\n", []string{
			"c.yaml:1:14: passthrough: no provider is Anthropic's, and a client's own credential goes to no other; add one, or set origin: anthropic on one that is"}},
		{"passthrough that is none", ok + "passthrough: on\n", []string{"c.yaml:2:14: passthrough: write true or false"}},
		{"health_check", "providers: [{ name: a, keys: [{ key: k }], health_check: 999ms }, { name: b, keys: [{ key: l }], health_check: -1m }, { name: c, keys: [{ key: m }], health_check: 30 }]\n", []string{
			"c.yaml:1:58: providers[0].health_check: 999ms is too often; write 1s or more, or 0s for none",
			"c.yaml:1:112: providers[1].health_check: -1m0s is too often; write 1s or more, or 0s for none",
			"c.yaml:1:164: providers[2].health_check: not a duration; write a number with a unit, such as 30s or 10m"}},
		{"origin", "providers: [{ name: a, keys: [{ key: k }], origin: Anthropic }, { name: b, keys: [{ key: l }], origin: 'a b' }]\n", []string{
			"c.yaml:1:52: providers[0].origin: not a name; write lower-case letters, digits, - and _, such as anthropic",
			"c.yaml:1:104: providers[1].origin: not a name; write lower-case letters, digits, - and _, such as anthropic"}},

		{"all at once", "routing: { strategy: best }\nmodels:\n- { match: [a], targets: [maim] }\n- { class: b }\naliases: { a: a }\nprices: /none\npassthrough: 1\nproviders: [{ name: main, keys: [{ key: k }], origin: A, health_check: 1ms }]\n", []string{
			"c.yaml:1:22: routing.strategy: unknown; " + strategies,
			"c.yaml:3:27: models[0].targets[0]: there is no provider of this name; did you mean main?",
			`c.yaml:4:3: models[1].targets: none; write targets: ["PROVIDER"] or ["PROVIDER/MODEL"]`,
			"c.yaml:5:15: aliases.a: a cycle, a → a; let one of them name a model",
			"c.yaml:6:9: prices: cannot be read: no such file or directory",
			"c.yaml:7:14: passthrough: write true or false",
			"c.yaml:8:55: providers[0].origin: not a name; write lower-case letters, digits, - and _, such as anthropic",
			"c.yaml:8:72: providers[0].health_check: 1ms is too often; write 1s or more, or 0s for none"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte(test.text), environ())
			require.Error(t, err)
			assert.Equal(t, strings.Join(test.want, "\n"), err.Error())
		})
	}
}

func TestPassthroughNeedsAnAnthropic(t *testing.T) {
	for name, provider := range map[string]string{
		"anthropic.com":            "{ keys: [{ key: k }] }",
		"another of its hosts":     "{ base_url: 'https://eu.anthropic.com/x', keys: [{ key: k }] }",
		"a gateway of one's own":   "{ name: gate, base_url: 'https://gate.example.com', origin: anthropic }",
		"a gateway without a name": "{ base_url: 'https://gate.example.com', origin: anthropic }",
		"not the first":            "{ name: b, base_url: 'https://llm.example.com' }, { keys: [{ key: k }] }",
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Parse("c.yaml", []byte("passthrough: true\nproviders: ["+provider+"]\n"), environ())
			require.NoError(t, err)
			assert.True(t, cfg.Passthrough)
		})
	}
}

func TestPricesOfAConfiguration(t *testing.T) {
	good := writeFile(t, 0o644, okPrice)
	bad := writeFile(t, 0o644, "prices:\n- { model: m, inputs: 3, output: -1 }\n- { model: n, input: free, output: 2 }\nas_off: x\n")
	dir := t.TempDir()
	for name, test := range map[string]struct {
		path string
		want []string
	}{
		"good": {good, nil},
		"bad": {bad, []string{
			bad + ":2:3: prices[0].input: no price; write US$ per million tokens, 0 if they are free",
			bad + ":2:15: prices[0].inputs: unknown field; did you mean input?",
			bad + ":2:34: prices[0].output: -1 is not a price; write US$ per million tokens, at most 1000000",
			bad + ":3:22: prices[1].input: not a number; write one such as 3 or 0.25",
			bad + ":4:1: as_off: unknown field; did you mean as_of?"}},
		"missing":     {filepath.Join(dir, "none"), []string{"cannot be read: no such file or directory"}},
		"a directory": {dir, []string{"is a directory; name the file in it"}},
		"a device":    {os.DevNull, []string{"is not a regular file; pipes and devices are not read"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Parse("c.yaml", []byte(ok+"prices: '"+test.path+"'\nlogging: { level: loud }\n"), environ())
			assert.Nil(t, cfg)
			want := ""
			for _, w := range test.want {
				want += "c.yaml:2:9: prices: " + w + "\n"
			}
			assert.EqualError(t, err, want+"c.yaml:3:19: logging.level: unknown; write trace or debug or info or warn or error")
		})
	}
	t.Run("unset", func(t *testing.T) {
		_, err := config.Parse("c.yaml", []byte(ok+"prices: ${A}\n"), environ())
		assert.EqualError(t, err, `c.yaml:2:9: prices: not set in the environment: A; set it, or write a default: "${A:-default}"`)
	})
	t.Run("both places of a mistake", func(t *testing.T) {
		_, err := config.Parse("c.yaml", []byte(ok+"prices: "+bad), environ())
		var m *config.Mistake
		require.ErrorAs(t, err, &m)
		assert.Equal(t, "c.yaml 2 9 prices", strings.Join([]string{m.File, "2", "9", m.Path}, " "))
		var inside *config.Mistake
		require.ErrorAs(t, m.Err, &inside)
		assert.Equal(t, config.Mistake{File: bad, Line: 2, Column: 3, Path: "prices[0].input", Err: inside.Err}, *inside)
	})
}

// A relative path counts from the working directory, wherever the configuration is.
func TestRelativeFiles(t *testing.T) {
	cert, err := os.ReadFile("testdata/ca.pem")
	require.NoError(t, err)
	path := writeFile(t, 0o600, "prices: my/prices.yaml\nproviders: [{ ca_file: my/ca.pem, keys: [{ key: k }] }]\n")
	t.Chdir(t.TempDir())
	_, err = config.Load(path)
	assert.EqualError(t, err, path+":1:9: prices: cannot be read: no such file or directory\n"+
		path+":2:24: providers[0].ca_file: cannot be read: no such file or directory")

	require.NoError(t, os.Mkdir("my", 0o700))
	require.NoError(t, os.WriteFile("my/prices.yaml", []byte(okPrice), 0o600))
	require.NoError(t, os.WriteFile("my/ca.pem", cert, 0o600))
	cfg, err := config.Load(path)
	require.NoError(t, err)
	assert.Equal(t, "my/prices.yaml", cfg.Prices)
	_, err = config.LoadPrices(cfg.Prices)
	assert.NoError(t, err)
}

// Whatever a rule or an alias may hold comes back from what is shown of it.
func TestRoutesSurviveBeingShown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(
			rapid.SampledFrom([]string{"null", "~", "true", "1e3", "0x1F", "<<", "---", "...", "=", "$$", "${A}", "2026-01-01", "-", "- a", "*a", "&a", "#"}),
			rapid.StringMatching(`[!->@-~]{1,6}`),
			rapid.StringMatching(`[$\x27"#:,\[\]{}&*!|>%@\x60\\-]{1,4}`),
		)
		cfg, err := config.Parse("c.yaml", []byte(two), environ())
		require.NoError(t, err)
		cfg.Routing.Default = rapid.SliceOfNDistinct(rapid.Map(name, func(n string) string { return "main/" + n }), 0, 2, rapid.ID).Draw(t, "default")
		alias := rapid.OneOf(name, rapid.StringMatching(`[0-9A-Za-z][0-9A-Za-z._:/@\[\]-]{0,5}`))
		cfg.Aliases = rapid.MapOfN(alias, name, 0, 3).Draw(t, "aliases")
		rule := router.Rule{Match: rapid.SliceOfN(name, 1, 2).Draw(t, "match"), Class: name.Draw(t, "class"), Clients: []string{"dev"}, Targets: []string{"main/" + name.Draw(t, "target"), "zai-eu"}}
		cfg.Models = []router.Rule{rule}
		if cfg.Validate() != nil {
			t.Skip("not a configuration")
		}
		if len(cfg.Routing.Default) == 0 {
			cfg.Routing.Default = nil
		}
		if len(cfg.Aliases) == 0 {
			cfg.Aliases = nil
		}
		shown, err := config.Redacted(cfg)
		require.NoError(t, err)
		again, err := config.Parse("shown.yaml", refill(shown), environ())
		require.NoError(t, err, "%s", shown)
		require.Equal(t, withoutSecrets(cfg), withoutSecrets(again), "%s", shown)
	})
}
