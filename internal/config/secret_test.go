package config_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/secret"
)

const canary = "sk-ant-api03-Zq8vK2mX9-wR5tY7uB3nL1"

// holdsCanary looks through every form in which an error may be printed.
func holdsCanary(err error) bool {
	printed := fmt.Sprintf("%v %+v %#v %q", err, err, err, err)
	return strings.Contains(strings.ToLower(printed), "zq8vk2mx9")
}

// TestNoErrorHoldsASecret plants a key where it is wrong, in one setting after the
// other and in text that is no YAML, and looks for it in the error.
func TestNoErrorHoldsASecret(t *testing.T) {
	for _, text := range []string{
		// a key where something else belongs
		"CANARY", "- CANARY", "CANARY: 1", "CANARY: CANARY", "? CANARY\n: CANARY", "server: CANARY", "server: [CANARY]", "server: { CANARY: 1 }",
		"server: { listen: CANARY }", "server: { listen: '0.0.0.0:CANARY' }", "server: { listen: 'CANARY:80' }", "server: { listen: [CANARY] }",
		"server: { drain_timeout: CANARY, expose: CANARY, max_body_bytes: CANARY }",
		"logging: { level: CANARY, format: CANARY }", "routing: { strategy: CANARY }",
		"clients: CANARY", "clients: [CANARY]", "clients: { CANARY: CANARY }", "clients: [{ name: 'CANARY CANARY', token: 'CANARY CANARY' }]",
		"clients: [{ name: a, token: CANARY, token_sha256: CANARY }, { name: b, token_sha256: CANARY }, { token: CANARY }, { name: CANARY, token: CANARY }, { name: CANARY, token: CANARY }]",
		"providers: CANARY", "providers: [CANARY]", "providers: { CANARY: CANARY }",
		"providers: [{ name: 'CANARY X', kind: CANARY, base_url: CANARY, auth: CANARY, ca_file: CANARY, allow_http: CANARY }]",
		"providers: [{ name: CANARY, keys: [{ key: CANARY, priority: 9, weight: 0 }] }, { name: CANARY, keys: [{ key: CANARY, priority: -1 }] }]",
		"providers: [{ base_url: 'https://user:CANARY@host' }, { base_url: 'https://host/?k=CANARY' }, { base_url: 'http://CANARY' }, { base_url: 'https://host:CANARY' }, { base_url: 'https://host/%CANARY' }]",
		"providers: [{ dial_timeout: CANARY, first_token_timeout: CANARY, response_timeout: CANARY, idle_timeout: CANARY }]",
		"providers: [{ ca_file: CANARY }, { ca_file: \"CANARY\\0\" }, { ca_file: '/CANARY/CANARY' }]",
		"providers: [{ headers: CANARY }, { headers: [CANARY] }, { headers: { CANARY: [1] } }, { headers: { 'CANARY CANARY': 1 } }, { headers: { host: CANARY, x-a: \"CANARY\\n\" } }]",
		"providers: [{ headers: { CANARY: 1, CANARY: 2 } }, { headers: { CANARY: '${UNSET}' } }, { headers: { CANARY: \"a\\n\" } }]",
		"providers: [{ pool: CANARY }, { pool: { strategy: CANARY } }, { pool: { CANARY: 1 } }]",
		"providers: [{ keys: CANARY }, { keys: [CANARY] }, { keys: { CANARY: 1 } }, { keys: [{ key: [CANARY] }] }, { keys: [{ CANARY: 50 }] }, { keys: [{ key: 'CANARY x' }] }]",
		"providers: [{ keys: [{ key: k, rpm_limit: CANARY, itpm_limit: CANARY, otpm_limit: CANARY, priority: CANARY, weight: CANARY }] }]",
		// where requests go
		"routing: { strategy: CANARY, retry_unknown: CANARY, default: [CANARY, CANARY/a, CANARY, 'CANARY/a b'], weights: [CANARY] }", "routing: { CANARY: 1, default: CANARY, weights: CANARY }",
		"models: CANARY", "models: [CANARY]", "models: { CANARY: 1 }", "models: [{ CANARY: 1 }, { match: CANARY, class: [CANARY], clients: CANARY, targets: CANARY, weights: CANARY }]",
		"models: [{ match: ['CANARY x', 'CANARY?'], class: 'CANARY x', clients: [CANARY], targets: [CANARY, CANARY/, /CANARY, CANARY/CANARY, CANARY], weights: [CANARY, 1], strategy: CANARY }]",
		"models: [{ match: [CANARY], targets: [CANARY] }, { match: [CANARY], targets: [a/CANARY] }, { class: CANARY, targets: [a] }, { class: CANARY, targets: [a] }]\nproviders: [{ name: 'CANARY x', keys: [{ key: CANARY }] }, { name: a, keys: [{ key: k }] }]",
		"aliases: CANARY", "aliases: [CANARY]", "aliases: { CANARY: CANARY }", "aliases: { a: CANARY, CANARY: a }", "aliases: { CANARY: [1], 'CANARY*': a, b: 'CANARY*', c: 'CANARY x' }", "aliases: { CANARY: a, CANARY: b }", "aliases: { CANARY: '${UNSET}' }",
		"prices: CANARY", "prices: '${KEY}'", "prices: /CANARY", "prices: [CANARY]", "prices: \"CANARY\\0\"", "passthrough: CANARY",
		"providers: [{ health_check: CANARY, origin: CANARY, name: CANARY }]",
		// variables
		"providers: [{ keys: [{ key: '${CANARY}' }, { key: '${UNSET}CANARY' }, { key: '${UNSET:CANARY}' }, { key: '${CANARY' }, { key: '${:-CANARY}' }, { key: '${KEY} x' }] }]",
		"server: { max_body_bytes: '${KEY}', listen: '${KEY}', drain_timeout: '${KEY}' }\nlogging: { level: '${KEY}' }",
		// mistakes elsewhere on the line
		"providers: [{ keys: [{ key: CANARY, prio: 1 }] }]", "providers: [{ keys: [{ key: CANARY, key: CANARY }] }]", "providers: [{ keys: [{ key: CANARY }, { key: CANARY }] }]",
		"providers: [{ keys: [{ key: CANARY }] }]\n---\nproviders: [{ keys: [{ key: CANARY }] }]",
		"providers: [{ keys: [{ key: &a CANARY }, { key: *a }, { key: !!str CANARY }, { <<: CANARY }] }]",
		// not YAML
		"a: CANARY: b", "a: [CANARY", "a: { CANARY", "a: \"CANARY", "a: 'CANARY", "a: CANARY\n\tb: CANARY", "a: |CANARY\n x", "a: >CANARY\n x", "a: !CANARY", "a: !<CANARY\n", "a: &CANARY", "a: *CANARY", "a: @CANARY", "a: `CANARY",
		"%YAML CANARY\n---\n", "%CANARY\n---\n", "%TAG CANARY CANARY\n---\n", "a: \"\\xCANARY\"", "a: \"\\uCANARY\"", "a: !{CANARY} x", "--- CANARY: b", "- CANARY\nCANARY", "CANARY\nCANARY: x\n y", "a: [CANARY}", "? [CANARY]\n: x", "CANARY: x\n  CANARY: y",
		"a: !!int CANARY", "a: !!float\n", "{a: CANARY, CANARY", "}CANARY", "a: CANARY\n b: CANARY\n  c: CANARY", "a: \"x\" CANARY", "'a' CANARY: x", "a: ${CANARY} CANARY: b",
	} {
		t.Run(text, func(t *testing.T) {
			text := strings.ReplaceAll(text, "CANARY", canary)
			_, err := config.Parse("c.yaml", []byte(text), environ("KEY", canary))
			require.Error(t, err)
			assert.False(t, holdsCanary(err), "%v", err)
			for _, line := range strings.Split(err.Error(), "\n") {
				assert.True(t, strings.HasPrefix(line, "c.yaml:"), "a mistake is one line that starts with the file, got %q", line)
			}
		})
	}
}

func TestTheTestFindsAPlantedSecret(t *testing.T) {
	_, err := config.Parse(canary, []byte("x: 1"), environ())
	assert.True(t, holdsCanary(err), "a file named after the canary was not found in %v", err)
	var node any
	err = yaml.Unmarshal([]byte("a: "+canary+": b"), &node)
	assert.True(t, holdsCanary(err), "the library's message quotes the source, got %v", err)
}

// TestEverySecretIsRedacted finds the secrets by type, so that a new one cannot be forgotten.
func TestEverySecretIsRedacted(t *testing.T) {
	cfg, err := config.Parse("c.yaml", []byte(`
clients: [{ name: a, token: `+canary+`-client }]
providers: [{ keys: [{ key: `+canary+`-key }], headers: { x-a: "Bearer `+canary+`-header", cookie: `+canary+` } }]
`), environ())
	require.NoError(t, err)
	require.Equal(t, 4, countSecrets(reflect.ValueOf(cfg).Elem()))

	out, err := config.Redacted(cfg)
	require.NoError(t, err)
	assert.NotContains(t, string(out), "Zq8vK2mX9")
	assert.Equal(t, 4, strings.Count(string(out), secret.Redacted), "%s", out)
}

func countSecrets(v reflect.Value) (n int) {
	switch {
	case v.Type() == reflect.TypeFor[secret.Value]():
		return 1
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			n += countSecrets(v.Index(i))
		}
	case v.Kind() == reflect.Map:
		for _, key := range v.MapKeys() {
			n += countSecrets(v.MapIndex(key))
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			n += countSecrets(v.Field(i))
		}
	}
	return n
}
