package config_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
)

// okTOML is a provider that is right, for files that are wrong elsewhere.
const okTOML = "[[providers]]\nkeys = [{ key = 'k' }]\n"

// asTOML writes a YAML document as TOML.
func asTOML(t *testing.T, text []byte) []byte {
	t.Helper()
	var values map[string]any
	require.NoError(t, yaml.Unmarshal(text, &values), "%s", text)
	out, err := toml.Marshal(withoutNulls(values))
	require.NoError(t, err)
	return out
}

// withoutNulls leaves out what TOML has no word for.
func withoutNulls(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if value == nil {
				delete(v, name)
				continue
			}
			v[name] = withoutNulls(value)
		}
	case []any:
		for i := range v {
			v[i] = withoutNulls(v[i])
		}
	}
	return v
}

func TestTheExampleAsTOML(t *testing.T) {
	env := environ("ANTHROPIC_API_KEY", "sk-ant-1")
	want, err := config.Parse("c.yaml", config.Example(), env)
	require.NoError(t, err)
	text := asTOML(t, config.Example())
	got, err := config.Parse("c.toml", text, env)
	require.NoError(t, err, "%s", text)
	assert.Equal(t, want, got, "%s", text)
}

func TestWaysToWriteTOML(t *testing.T) {
	want := config.Default()
	want.Server.MaxBodyBytes, want.Tracing.Sample, want.Server.Expose = 1000, 0.5, false
	want.Aliases = map[string]string{"a": "b", "5.5": "x:1"}
	want.Providers = []config.Provider{anthropic()}
	want.Providers[0].Keys = append(want.Providers[0].Keys, keypool.KeyConfig{Key: secret.New("k1")}, keypool.KeyConfig{Key: secret.New("k2")})
	want.Providers[0].Headers = map[string]secret.Value{"x.a": secret.New("2026-01-02")}
	const head = "server.max_body_bytes = 1_000\nserver.expose = false\n"
	for name, text := range map[string]string{
		"headers": head + "[tracing]\nsample = 0.5\n[aliases]\na = 'b'\n\"5.5\" = \"x:1\"\n" +
			"[[providers]]\n[[providers.keys]]\nkey = 'k1'\n[[providers.keys]]\nkey = \"k2\"\n[providers.headers]\n'x.a' = 2026-01-02\n",
		"inline":         head + "tracing = { sample = 5e-1 }\naliases = { a = '''b''', \"5.5\" = 'x:1' }\nproviders = [{ headers = { 'x.a' = 2026-01-02 }, keys = [{key=\"k1\"},{key=\"k2\"}] }]\n",
		"dots":           head + "tracing.sample = 0.5\naliases.a = \"b\"\naliases.\"5.5\" = '${X}'\nproviders = [ { keys = [ { key = 'k1' }, # one\n { key = '''\nk2''' }, ], headers.\"x.a\" = '2026-01-02' } ]\n",
		"in any order":   "[aliases]\na = 'b'\n'5.5' = 'x:1'\n[[providers]]\nheaders.'x.a' = '2026-01-02'\nkeys = [ {key = 'k1'}, {key='k2'}]\n[server]\nexpose = false\nmax_body_bytes = 0x3e8\n[tracing]\nsample = +5_0.0e-2\n",
		"CRLF and BOM":   "\ufeff" + strings.ReplaceAll(head+"tracing.sample=0.5\n[aliases]\n'5.5'='x:1'\na='b'\n[[providers]]\nheaders = { 'x.a' = '2026-01-02' }\nkeys = [{key='k1'},{key='k2'}]\n", "\n", "\r\n"),
		"text that fits": "server = { expose = 'False', max_body_bytes = '${N}' }\ntracing.sample = '0.5'\naliases = { a = 'b', '5.5' = 'x:1' }\nproviders = [{ keys = [{key='k1'},{key='k2'}], headers = { 'x.a' = '2026-01-02' } }]\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse("c.toml", []byte(text), environ("X", "x:1", "N", "1000"))
			require.NoError(t, err)
			assert.Equal(t, &want, got)
		})
	}
}

func TestTOMLMistakes(t *testing.T) {
	const twice = ": written twice, first on line "
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"empty":             {"", []string{`c.toml: empty; write at least: providers = [{ keys = [{ key = "${ANTHROPIC_API_KEY}" }] }]`}},
		"comments only":     {"# nothing\n", []string{`c.toml: empty; write at least: providers = [{ keys = [{ key = "${ANTHROPIC_API_KEY}" }] }]`}},
		"no providers":      {"[server]\n", []string{`c.toml: providers: none; write at least: providers = [{ keys = [{ key = "${ANTHROPIC_API_KEY}" }] }]`}},
		"truncated":         {okTOML + "[server]\nlisten = \"127.0", []string{"c.toml:4:15: not valid TOML: unterminated basic string"}},
		"truncated list":    {"providers = [{", []string{"c.toml:1:14: not valid TOML: inline table is incomplete"}},
		"no quotes":         {okTOML + "[server]\nlisten = localhost\n", []string{"c.toml:4:10: not valid TOML: unexpected character U+006C 'l' at start of value"}},
		"variable":          {"[[providers]]\nkeys = [{ key = ${KEY} }]\n", []string{`c.toml:2:17: not valid TOML: unexpected character U+0024 '$' at start of value; a variable needs quotes: "${NAME}"`}},
		"YAML":              {"providers:\n- keys: []\n", []string{"c.toml:1:10: not valid TOML: expected '=' after key"}},
		"not UTF-8":         {"# \xff\n", []string{"c.toml: not UTF-8 text; save the file as UTF-8"}},
		"deep list":         {"a = " + strings.Repeat("[", 30) + strings.Repeat("]", 30), []string{"c.toml:1:1: not valid TOML: nested too deep"}},
		"deep table":        {"a = " + strings.Repeat("{a=", 30) + "1" + strings.Repeat("}", 30), []string{"c.toml:1:56: not valid TOML: nested too deep"}},
		"deep header":       {"[" + strings.Repeat("a.", 30) + "a]", []string{"c.toml:1:34: not valid TOML: nested too deep"}},
		"deep dots":         {strings.Repeat("a.", 1<<16) + "a = 1", []string{"c.toml:1:33: not valid TOML: nested too deep"}},
		"very deep":         {"a = " + strings.Repeat("[", 1<<18), []string{"c.toml:1:10005: not valid TOML: arrays and inline tables are nested more than the maximum of 10000 levels deep"}},
		"bare ü":            {okTOML + "[sevrer]\nü = 1\n", []string{"c.toml:4:1: not valid TOML: invalid character at start of key: U+00C3 'Ã'"}},
		"unknown":           {okTOML + "[sevrer]\n[server]\n\"drain-timeout\" = 'x'\n'ü' = 1\n", []string{"c.toml:3:2: sevrer: unknown field; did you mean server?", "c.toml:5:1: server.drain-timeout: unknown field; did you mean drain_timeout?", "c.toml:6:1: server: unknown field; known here: listen, drain_timeout, expose, max_body_bytes, state, limits, state_dir, tls, insecure_cleartext, allowed_hosts, allowed_origins"}},
		"columns":           {"server = { 'ü' = 'ü', listen = 8787 }\n" + okTOML, []string{"c.toml:1:12: server: unknown field; known here: listen, drain_timeout, expose, max_body_bytes, state, limits, state_dir, tls, insecure_cleartext, allowed_hosts, allowed_origins", "c.toml:1:32: server.listen: not an address; write HOST:PORT, such as 127.0.0.1:8787"}},
		"kinds of values":   {"server = 1\nproviders = { name = 'a' }\nclients = [1, [], { name = ['a'] }]\nlogging.level.x = 1\n", []string{"c.toml:1:10: server: must be a table; write \"name = value\" lines", "c.toml:2:1: providers: must be an array; write [ ] around its entries", "c.toml:3:1: clients[1]: must be a table; write \"name = value\" lines", "c.toml:3:12: clients[0]: must be a table; write \"name = value\" lines", "c.toml:3:19: clients[2].token: empty; write a token of at least 8 characters, or a token_sha256", "c.toml:3:21: clients[2].name: must be a single value, not a list or a mapping", "c.toml:4:9: logging.level: must be a single value, not a list or a mapping"}},
		"numbers":           {okTOML + "rpm = 1\n[server]\nmax_body_bytes = 99_999_999_999_999_999_999\n[[providers.keys]]\n", []string{"c.toml:3:1: providers[0].rpm: unknown field; known here: name, kind, base_url, auth, headers, ca_file, allow_http, dial_timeout, first_token_timeout, response_timeout, idle_timeout, health_check, origin, pool, keys", "c.toml:5:18: server.max_body_bytes: too large a number", "c.toml:6:13: providers[0].keys" + twice + "2; remove one"}},
		"durations":         {okTOML + "idle_timeout = 5\ndial_timeout = '-1s'\n[tracing]\nsample = inf\n", []string{"c.toml:3:16: providers[0].idle_timeout: not a duration; write a number with a unit, such as 30s or 10m", "c.toml:4:16: providers[0].dial_timeout: -1s is no time; write a duration above 0, such as 30s or 10m", "c.toml:6:10: tracing.sample: not a number; write one such as 3 or 0.25"}},
		"names twice":       {okTOML + "[server]\nlisten = '127.0.0.1:1'\nlisten = '127.0.0.1:2'\n[logging]\n[server]\nlisten = 'x'\n", []string{"c.toml:5:1: server.listen" + twice + "4; remove one", "c.toml:7:2: server" + twice + "3; remove one"}},
		"added to a value":  {"server = {}\nlogging.level = 'info'\n" + okTOML + "[server.tls]\n[logging]\n[providers]\n[[server]]\n", []string{"c.toml:5:2: server" + twice + "1; remove one", "c.toml:6:2: logging" + twice + "2; remove one", "c.toml:7:2: providers" + twice + "3; remove one", "c.toml:8:3: server" + twice + "1; remove one"}},
		"dots into a table": {okTOML + "[server.tls]\n[server]\ntls.cert_file = 'a'\n", []string{"c.toml:5:1: server.tls" + twice + "3; remove one"}},
		"a key twice":       {"[[providers]]\n[[providers.keys]]\nkey = 'k'\n[[providers.keys]]\nkey = 'k'\nweight = 0\n", []string{"c.toml:5:7: providers[0].keys[1].key: same key as providers[0].keys[0].key; remove one", "c.toml:6:10: providers[0].keys[1].weight: 0 is not a weight; write 1 to 1000"}},
		"a name with a dot": {"aliases = { 5.5 = 'x' }\n" + okTOML, []string{"c.toml:1:13: aliases: must be a single value, not a list or a mapping"}},
		"unset":             {"[[providers]]\nkeys = [{ key = \"${UNSET}\" }]\n", []string{`c.toml:2:17: providers[0].keys[0].key: not set in the environment: UNSET; set it, or write a default: "${UNSET:-default}"`}},
		"entry":             {okTOML + "[[providers]]\nname = 'b'\n", []string{"c.toml:3:3: providers[1].keys: none, but https://api.anthropic.com asks for one; write keys: [{ key: \"${ANTHROPIC_API_KEY}\" }]"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("c.toml", []byte(test.text), environ())
			require.Error(t, err)
			assert.Equal(t, strings.Join(test.want, "\n"), err.Error())
		})
	}
}

func TestPricesInTOML(t *testing.T) {
	got, err := config.ParsePrices("p.toml", []byte("as_of = 2026-01-02\n[[prices]]\nmodel = 'a'\ninput = 3\noutput = 1.5e1\n"), environ())
	require.NoError(t, err)
	require.Len(t, got, 1)
	assert.Equal(t, [2]float64{3, 15}, [2]float64{got[0].Input, got[0].Output})
	_, err = config.ParsePrices("p.toml", nil, environ())
	assert.EqualError(t, err, `p.toml: empty; write at least: prices = [{ model = "NAME", input = 3, output = 15 }]`)
}

func TestASecretInTOMLNeedsAPrivateFile(t *testing.T) {
	path := writeFile(t, 0o644, "[[providers]]\nkeys = [{ key = 'sk-ant-1' }]\n")
	named := strings.TrimSuffix(path, "yaml") + "toml"
	copyFile(t, path, named, 0o644)
	_, err := config.Load(named)
	assert.EqualError(t, err, named+":2:17: providers[0].keys[0].key: written out in a file that other users may read (mode 0644); "+
		"run: chmod 600 "+named+`, or write "${NAME}" to take it from the environment`)
}

// TestNoErrorHoldsASecretOfTOML plants a key in text that is no TOML and where it is wrong.
func TestNoErrorHoldsASecretOfTOML(t *testing.T) {
	for _, text := range []string{
		"CANARY", "CANARY = CANARY", "CANARY = 'CANARY'", "[CANARY]", "[[CANARY]]", "[CANARY", "[[CANARY]", "a = 'CANARY", "a = \"CANARY\\q\"", "a = \"\"\"CANARY", "a = [CANARY]", "a = ['CANARY' 'CANARY']",
		"a = {CANARY}", "a = {CANARY = }", "a.CANARY = 1", "CANARY.a = 1\nCANARY = 2", "a = 1CANARY", "a = 2026-01-01CANARY", "a = trueCANARY", "'CANARY' = 1\n'CANARY' = 2", "[a]\nCANARY=1\nCANARY=2",
		"server = 'CANARY'", "[server]\nlisten = 'CANARY'\nstate = 'CANARY'\nmax_body_bytes = 'CANARY'\nCANARY = 1\nallowed_hosts = ['CANARY x']\nallowed_origins = ['CANARY']\ntls = { cert_file = 'CANARY' }",
		"[admin]\nlisten = 'CANARY'\ntls = { cert_file = '/CANARY', key_file = '/CANARY' }\npprof = 'CANARY'", "metrics = 'CANARY'", "[tracing]\nendpoint = 'CANARY'\nsample = 'CANARY'\nheaders = { 'CANARY x' = 'CANARY', 'CANARY' = \"a\\n\", host = 'CANARY' }",
		"tracing.endpoint = 'https://a:CANARY@b'", "tracing.endpoint = 'https://a?CANARY'", "providers = ['CANARY']", "[[providers]]\nkeys = ['CANARY']", "[providers.CANARY]\n[providers.CANARY]", "server.tls = { key_file = 'CANARY', cert_file = '${KEY}' }",
	} {
		t.Run(text, func(t *testing.T) {
			_, err := config.Parse("c.toml", []byte(strings.ReplaceAll(text, "CANARY", canary)), environ("KEY", canary))
			require.Error(t, err)
			assert.False(t, holdsCanary(err), "%v", err)
			for _, line := range strings.Split(err.Error(), "\n") {
				assert.True(t, strings.HasPrefix(line, "c.toml:"), "a mistake is one line that starts with the file, got %q", line)
			}
		})
	}
}

// redefined are the library's words for a name that comes twice.
var redefined = regexp.MustCompile(`already (exists|defined)|should be a table`)

// FuzzParseTOML checks that no text makes Parse panic, that each mistake is one line
// with the file's name, and that Parse takes no text in which the library finds a
// mistake of TOML.
func FuzzParseTOML(f *testing.F) {
	for _, seed := range []string{
		"", okTOML, "[a.b]\n[a]\n[a.b]\n", "a.b=1\n[a.c]\n[a]\n", "[[a]]\n[a.b]\n[[a]]\n[a.b]\n", "a=[]\n[[a]]\n", "a={b.c=1,b.d=2}\n[a.b]\n", "[server]\ntls.cert_file='a'\n[server.tls]\n",
		"[fruit]\napple.color=1\n[fruit.apple.taste]\nx=1\n[fruit.apple]\n", "[[a.b]]\n[a]\n[a.b]\n", "aliases = { a = \"b\\u00e9\", 'c d' = '''x''' }\n" + okTOML, "server.max_body_bytes = +0x_1\n", "a = 1979-05-27T07:32:00Z\nb = inf\nc = -nan\nd = 0b1\n", "\ufeffa=\"\\\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		env := func(name string) (string, bool) { return "value-of:{" + name + "}", name != "UNSET" }
		_, err := config.Parse("c.toml", []byte(text), env)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				require.True(t, strings.HasPrefix(line, "c.toml:"), "got line %q", line)
			}
		}
		var values map[string]any
		theirs := toml.Unmarshal([]byte(strings.TrimPrefix(text, "\ufeff")), &values)
		if theirs != nil && redefined.MatchString(theirs.Error()) {
			require.Error(t, err, "the library says %v", theirs)
		}
		if theirs == nil && err != nil {
			require.NotContains(t, err.Error(), "written twice", "the library takes %q", text)
		}
	})
}

// FuzzTOMLEqualsYAML checks that what Parse takes as YAML says the same as TOML.
func FuzzTOMLEqualsYAML(f *testing.F) {
	for _, seed := range seeds {
		f.Add(seed)
	}
	env := func(name string) (string, bool) { return "value-of:{" + name + "}", name != "UNSET" }
	f.Fuzz(func(t *testing.T, text string) {
		want, err := config.Parse("c.yaml", []byte(text), env)
		if err != nil {
			return
		}
		shown, err := config.Redacted(want)
		require.NoError(t, err)
		rewritten := asTOML(t, refill(shown))
		got, err := config.Parse("c.toml", rewritten, env)
		require.NoError(t, err, "%s", rewritten)
		assert.Equal(t, withoutSecrets(want), withoutSecrets(got), "%s", rewritten)
	})
}
