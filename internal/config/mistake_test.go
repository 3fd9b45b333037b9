package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

// ok is a provider that is right, for files that are wrong elsewhere.
const ok = "providers: [{ keys: [{ key: k }] }]\n"

const hashOfToken = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" // of "test"

func TestMistakes(t *testing.T) {
	empty := "c.yaml: empty; " + `write at least: providers: [{ keys: [{ key: "${ANTHROPIC_API_KEY}" }] }]`
	const known = "known here: server, admin, clients, logging, metrics, tracing, routing, models, aliases, prices, passthrough, classes, providers"
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		// the document
		{"empty", "", []string{empty}},
		{"blank", " \n\n", []string{empty}},
		{"comments only", "# providers:\n", []string{empty}},
		{"empty document", "---\n", []string{empty}},
		{"not a mapping", "hello\n", []string{`c.yaml: must be a mapping; write "name: value" lines`}},
		{"a list", "- a\n", []string{`c.yaml: must be a mapping; write "name: value" lines`}},
		{"two documents", ok + "---\n" + ok, []string{"c.yaml:3:1: a second document; remove the --- line before it"}},
		{"not UTF-8", ok + "# \xff\n", []string{"c.yaml: not UTF-8 text; save the file as UTF-8"}},
		{"too large", ok + strings.Repeat("#", 1<<20), []string{"c.yaml: larger than 1048576 bytes; a configuration is never that large"}},
		{"truncated flow", "providers: [{ keys: [{ key: k }", []string{"c.yaml:1:21: not valid YAML: sequence end token ']' not found"}},
		{"truncated quote", ok + "server:\n  listen: \"127.0", []string{"c.yaml:3:11: not valid YAML: could not find end character of double-quoted text"}},
		{"tab", "server:\n\tlisten: x\n", []string{"c.yaml:2:1: not valid YAML: found character '\t' that cannot start any token"}},
		{"indentation", "server:\n    listen: a:1\n  expose: true\n", []string{"c.yaml:3:3: not valid YAML: value is not allowed in this context"}},
		{"message of the parser with source in it", "server: |secret\n  x\n", []string{"c.yaml:1:9: not valid YAML: invalid header option"}},
		{"variable in braces", "providers: [{ keys: [{ key: ${KEY} }] }]\n", []string{`c.yaml:1:30: not valid YAML: ',' or '}' must be specified; a variable inside { } or [ ] needs quotes: "${NAME}"`}},
		{"deep flow", "server: " + strings.Repeat("[", 17), []string{"c.yaml:1:25: not valid YAML: nested too deep"}},
		{"very deep flow", strings.Repeat("[", 1<<16), []string{"c.yaml:1:17: not valid YAML: nested too deep"}},
		{"very deep block", strings.Repeat("- ", 1<<15), []string{"c.yaml:1:401: not valid YAML: nested too deep"}},
		{"very deep keys", strings.Repeat("? ", 1<<15), []string{"c.yaml:1:401: not valid YAML: nested too deep"}},

		// names
		{"unknown, near", ok + "sevrer: {}\n", []string{"c.yaml:2:1: sevrer: unknown field; did you mean server?"}},
		{"unknown, prefix", ok + "server: { max_body: 1 }\n", []string{"c.yaml:2:11: server.max_body: unknown field; did you mean max_body_bytes?"}},
		{"unknown, other style", ok + "server: { drainTimeout: 1s, Drain-Timeout: 1s }\n", []string{
			"c.yaml:2:11: server.drainTimeout: unknown field; did you mean drain_timeout?",
			"c.yaml:2:29: server.Drain-Timeout: unknown field; did you mean drain_timeout?"}},
		{"unknown, far", ok + "tls: {}\n", []string{"c.yaml:2:1: tls: unknown field; " + known}},
		{"unknown, too far", ok + "server: { max_boty_bits: 1 }\n", []string{"c.yaml:2:11: server.max_boty_bits: unknown field; known here: listen, drain_timeout, expose, max_body_bytes, state, limits, state_dir, tls, insecure_cleartext, allowed_hosts, allowed_origins"}},
		{"unknown, long", ok + "providers" + strings.Repeat("s", 30) + ": 1\n", []string{"c.yaml:2:1: unknown field; " + known}},
		{"unknown in an inlined struct", "providers:\n- url: x\n  keys: [{ key: k }]\n", []string{"c.yaml:2:3: providers[0].url: unknown field; known here: " +
			"name, kind, base_url, auth, headers, ca_file, allow_http, dial_timeout, first_token_timeout, response_timeout, idle_timeout, health_check, origin, pool, keys"}},
		{"go field name", "providers: [{ keys: [{ key: k }], pool: { Keys: [] } }]\n", []string{"c.yaml:1:43: providers[0].pool.Keys: unknown field; known here: strategy, max_wait, max_waiting, affinity"}},
		{"name that is no name", ok + "'': 1\n5: 1\nnull: 1\n", []string{
			"c.yaml:2:1: unknown field; " + known, "c.yaml:3:1: unknown field; " + known, "c.yaml:4:1: null: unknown field; " + known}},
		{"twice", ok + "server: {}\nlogging: {}\nserver: {}\n", []string{"c.yaml:4:1: server: written twice, first on line 2; remove one"}},
		{"twice in a list", "providers:\n- name: a\n  keys:\n  - key: k\n    key: l\n", []string{"c.yaml:5:5: providers[0].keys[0].key: written twice, first on line 4; remove one"}},

		// kinds of values
		{"mapping wanted", ok + "server: 8787\nlogging: [info]\n", []string{
			`c.yaml:2:9: server: must be a mapping; write "name: value" lines`,
			`c.yaml:3:1: logging: must be a mapping; write "name: value" lines`}},
		{"list wanted", "providers: { name: a }\nclients: x\n", []string{
			`c.yaml:1:1: providers: must be a list; start each entry with "- "`,
			`c.yaml:2:10: clients: must be a list; start each entry with "- "`}},
		{"value wanted", ok + "server: { listen: [a], expose: { a: b } }\n", []string{
			"c.yaml:2:11: server.listen: must be a single value, not a list or a mapping",
			"c.yaml:2:24: server.expose: must be a single value, not a list or a mapping"}},
		{"entry wanted", "providers: [anthropic, [], { keys: [sk-ant-x, { key: k }] }]\n", []string{
			`c.yaml:1:13: providers[0]: must be a mapping; write "name: value" lines`,
			`c.yaml:1:24: providers[1]: must be a mapping; write "name: value" lines`,
			`c.yaml:1:37: providers[2].keys[0]: must be a mapping; write "name: value" lines`}},
		{"numbers", "server: { max_body_bytes: 32MiB }\nproviders: [{ keys: [{ key: k, rpm_limit: 1.5, itpm_limit: 0x10, otpm_limit: 99999999999999999999, priority: '' }] }]\n", []string{
			"c.yaml:1:27: server.max_body_bytes: not a whole number; write digits only",
			"c.yaml:2:43: providers[0].keys[0].rpm_limit: not a whole number; write digits only",
			"c.yaml:2:60: providers[0].keys[0].itpm_limit: not a whole number; write digits only",
			"c.yaml:2:78: providers[0].keys[0].otpm_limit: too large a number",
			"c.yaml:2:110: providers[0].keys[0].priority: not a whole number; write digits only"}},
		{"booleans", ok + "server: { expose: yes }\n", []string{"c.yaml:2:19: server.expose: write true or false"}},
		{"durations", "server: { drain_timeout: 10 }\nproviders: [{ keys: [{ key: k }], dial_timeout: 5 seconds, idle_timeout: 0, response_timeout: -1s }]\n", []string{
			"c.yaml:1:26: server.drain_timeout: not a duration; write a number with a unit, such as 30s or 10m",
			"c.yaml:2:49: providers[0].dial_timeout: not a duration; write a number with a unit, such as 30s or 10m",
			"c.yaml:2:74: providers[0].idle_timeout: 0s is no time; write a duration above 0, such as 30s or 10m",
			"c.yaml:2:95: providers[0].response_timeout: -1s is no time; write a duration above 0, such as 30s or 10m"}},
		{"fancy YAML", "server: &a\n  listen: !!str 127.0.0.1:1\nlogging: *a\nrouting: { <<: *a }\n? providers\n: []\n" + ok, []string{
			"c.yaml:1:9: server: anchors, aliases, merge keys and tags are not supported; write the value itself",
			"c.yaml:3:10: logging: anchors, aliases, merge keys and tags are not supported; write the value itself",
			"c.yaml:4:12: routing: anchors, aliases, merge keys and tags are not supported; write the value itself",
			"c.yaml:5:1: anchors, aliases, merge keys and tags are not supported; write the value itself"}},

		// variables
		{"unset", "server:\n  listen: ${HOST}:${PORT}\nproviders:\n- keys:\n  - key: \"${KEY_1}\"\n  headers: { x-team: '$${A}${TEAM}' }\n", []string{
			`c.yaml:2:11: server.listen: not set in the environment: HOST, PORT; set it, or write a default: "${HOST:-default}"`,
			`c.yaml:5:10: providers[0].keys[0].key: not set in the environment: KEY_1; set it, or write a default: "${KEY_1:-default}"`,
			`c.yaml:6:22: providers[0].headers.x-team: not set in the environment: TEAM; set it, or write a default: "${TEAM:-default}"`}},
		{"malformed", "server: { listen: '${}', max_body_bytes: '${A' }\nlogging:\n  level: ${A-info}\n  format: ${1}\n" + ok, []string{
			`c.yaml:1:19: server.listen: malformed variable; write "${NAME}", "${NAME:-default}", or $$ for a dollar sign`,
			`c.yaml:1:42: server.max_body_bytes: malformed variable; write "${NAME}", "${NAME:-default}", or $$ for a dollar sign`,
			`c.yaml:3:10: logging.level: malformed variable; write "${NAME}", "${NAME:-default}", or $$ for a dollar sign`,
			`c.yaml:4:11: logging.format: malformed variable; write "${NAME}", "${NAME:-default}", or $$ for a dollar sign`}},
		{"empty", "providers: [{ keys: [{ key: '${EMPTY}' }] }]\n", []string{
			`c.yaml:1:29: providers[0].keys[0].key: empty; write the key, or "${NAME}" to take it from the environment`}},
		{"bad value from the environment", "providers: [{ keys: [{ key: k, weight: '${YAML}' }] }]\n", []string{
			`c.yaml:1:40: providers[0].keys[0].weight: not a whole number; write digits only`}},

		// server, logging, routing
		{"listen", ok + "server: { listen: 8787 }\n", []string{"c.yaml:2:19: server.listen: not an address; write HOST:PORT, such as 127.0.0.1:8787"}},
		{"listen port", ok + "server: { listen: 'localhost:http' }\n", []string{"c.yaml:2:19: server.listen: the port must be a number from 0 to 65535"}},
		{"listen port too large", ok + "server: { listen: 'localhost:65536' }\n", []string{"c.yaml:2:19: server.listen: the port must be a number from 0 to 65535"}},
		{"listen host", ok + "server: { listen: 'http://localhost:80' }\n", []string{"c.yaml:2:19: server.listen: not an address; write HOST:PORT, such as 127.0.0.1:8787"}},
		{"listen strange host", ok + "server: { listen: 'a b:80' }\n", []string{"c.yaml:2:19: server.listen: not a host; write an IP address or localhost"}},
		{"body size", ok + "server: { max_body_bytes: 0 }\n", []string{"c.yaml:2:27: server.max_body_bytes: 0 is not a size; write 1 to 1073741824 bytes"}},
		{"body size too large", ok + "server: { max_body_bytes: 1073741825 }\n", []string{"c.yaml:2:27: server.max_body_bytes: 1073741825 is not a size; write 1 to 1073741824 bytes"}},
		{"drain", ok + "server: { drain_timeout: 0s }\n", []string{"c.yaml:2:26: server.drain_timeout: 0s is no time; write a duration above 0, such as 30s or 10m"}},
		{"words", ok + "logging: { level: warning, format: text }\nrouting: { strategy: round-robbin, retry_unknown: maybe }\n", []string{
			"c.yaml:2:19: logging.level: unknown; did you mean warn?",
			"c.yaml:2:36: logging.format: unknown; write json or console",
			"c.yaml:3:22: routing.strategy: unknown; did you mean round_robin?",
			"c.yaml:3:51: routing.retry_unknown: write true or false"}},

		{"state", ok + "server: { state: yes, state_dir: ~/relay }\n", []string{
			"c.yaml:2:18: server.state: unknown; write on or off",
			`c.yaml:2:34: server.state_dir: not an absolute path; write one, such as /var/lib/cc-relay or "${HOME}/.cc-relay"`}},
		{"state that is a boolean", ok + "server: { state: false, state_dir: [] }\n", []string{
			"c.yaml:2:18: server.state: unknown; write on or off",
			"c.yaml:2:25: server.state_dir: must be a single value, not a list or a mapping"}},

		// classes
		{"classes", ok + "classes:\n- class: models\n- { models: [ '', 'a?', 'a b', '*', '*', x ], class: '' }\n- { models: [ x, '*', y ], class: 'a b' }\n- { models: a, class: a }\n- x\n- { model: a, models: [[]], class: count_tokens }\n-\n", []string{
			"c.yaml:3:3: classes[0].models: none; write models: [\"NAME\"], with * for any characters",
			"c.yaml:3:10: classes[0].class: the relay uses this name itself; choose another",
			"c.yaml:4:15: classes[1].models[0]: empty; write a model's name, or a part of it with *",
			"c.yaml:4:19: classes[1].models[1]: only * stands for other characters; write it for ?",
			"c.yaml:4:25: classes[1].models[2]: not a model's name; write up to 512 visible ASCII characters",
			"c.yaml:4:37: classes[1].models[4]: same as in classes[1], which comes first; remove one",
			"c.yaml:4:54: classes[1].class: empty; write a name, such as opus-5",
			"c.yaml:5:15: classes[2].models[0]: same as in classes[1], which comes first; remove one",
			"c.yaml:5:18: classes[2].models[1]: same as in classes[1], which comes first; remove one",
			"c.yaml:5:35: classes[2].class: not a name; write up to 128 visible ASCII characters",
			`c.yaml:6:13: classes[3].models: must be a list; start each entry with "- "`,
			`c.yaml:7:3: classes[4]: must be a mapping; write "name: value" lines`,
			"c.yaml:8:5: classes[5].model: unknown field; did you mean models?",
			"c.yaml:8:24: classes[5].models[0]: must be a single value, not a list or a mapping",
			"c.yaml:8:36: classes[5].class: the relay uses this name itself; choose another",
			"c.yaml:9:3: classes[6].class: empty; write a name, such as opus-5",
			"c.yaml:9:3: classes[6].models: none; write models: [\"NAME\"], with * for any characters"}},
		{"pool", "providers:\n- { name: a, pool: { max_wait: -1s, affinity: true }, keys: [{ key: k }] }\n- { name: b, pool: { max_wait: 60001ms, affinity: no }, keys: [{ key: l }] }\n- { name: c, pool: { max_wait: 5 }, keys: [{ key: m }] }\n", []string{
			"c.yaml:2:32: providers[0].pool.max_wait: -1s is not a wait; write 0s (never wait) to 1m0s",
			"c.yaml:2:47: providers[0].pool.affinity: unknown; write on or off",
			"c.yaml:3:32: providers[1].pool.max_wait: 1m0.001s is not a wait; write 0s (never wait) to 1m0s",
			"c.yaml:3:51: providers[1].pool.affinity: unknown; write on or off",
			"c.yaml:4:32: providers[2].pool.max_wait: not a duration; write a number with a unit, such as 30s or 10m"}},

		// clients
		{"clients", ok + "clients:\n- token: 12345678\n- { name: a, token: 1234567 }\n- { name: b }\n- { name: a, token_sha256: abc }\n- { name: c, token: 123456789, token_sha256: " + hashOfToken + " }\n- { name: 'a b', token: 'x y z x y z' }\n-\n", []string{
			"c.yaml:3:3: clients[0].name: not a name; write up to 64 letters, digits, dots, - _ or @",
			"c.yaml:4:21: clients[1].token: shorter than 8 characters; make one with: openssl rand -hex 24",
			"c.yaml:5:3: clients[2].token: empty; write a token of at least 8 characters, or a token_sha256",
			"c.yaml:6:11: clients[3].name: same name as clients[1]; give each client its own",
			"c.yaml:6:28: clients[3].token_sha256: not a SHA-256; write 64 hexadecimal digits",
			"c.yaml:7:3: clients[4]: has a token and a token_sha256; write one of them",
			"c.yaml:8:11: clients[5].name: not a name; write up to 64 letters, digits, dots, - _ or @",
			"c.yaml:8:25: clients[5].token: has a space or a character that no header can carry; remove it",
			"c.yaml:9:3: clients[6].name: not a name; write up to 64 letters, digits, dots, - _ or @",
			"c.yaml:9:3: clients[6].token: empty; write a token of at least 8 characters, or a token_sha256"}},
		{"same token", ok + "clients:\n- { name: a, token: a-test-token }\n- { name: b, token: a-test-token }\n- { name: c, token_sha256: " + strings.ToUpper(hashOfToken) + " }\n- { name: d, token_sha256: " + hashOfToken + " }\n", []string{
			"c.yaml:4:3: clients[1]: same token as clients[0]; give each client its own",
			"c.yaml:6:3: clients[3]: same token as clients[2]; give each client its own"}},

		{"one mistake, one line", "server: { listen: ':80', insecure_cleartext: true }\nclients: x\n" + ok, []string{`c.yaml:2:10: clients: must be a list; start each entry with "- "`}},
		{"unset hash", ok + "clients: [{ name: a, token_sha256: '${UNSET}' }]\n", []string{
			`c.yaml:2:36: clients[0].token_sha256: not set in the environment: UNSET; set it, or write a default: "${UNSET:-default}"`}},

		// providers
		{"no providers", "server: {}\n", []string{`c.yaml: providers: none; write at least: providers: [{ keys: [{ key: "${ANTHROPIC_API_KEY}" }] }]`}},
		{"empty providers", "providers: []\n", []string{`c.yaml:1:1: providers: none; write at least: providers: [{ keys: [{ key: "${ANTHROPIC_API_KEY}" }] }]`}},
		{"provider names", "providers:\n- { keys: [{ key: k1 }] }\n- { keys: [{ key: k2 }] }\n- { name: My Provider, keys: [{ key: k3 }] }\n", []string{
			"c.yaml:3:3: providers[1].name: same name as providers[0]; give each provider its own",
			"c.yaml:4:11: providers[2].name: not a name; write lower-case letters, digits, - and _, a letter or digit first"}},
		{"provider words", "providers: [{ name: a, kind: antropic, base_url: 'https://a', auth: x_api_key, pool: { strategy: weighed }, keys: [{ key: k }] }]\n", []string{
			"c.yaml:1:30: providers[0].kind: unknown; did you mean anthropic?",
			"c.yaml:1:69: providers[0].auth: unknown; did you mean x-api-key?",
			"c.yaml:1:98: providers[0].pool.strategy: unknown; did you mean weighted?"}},
		{"provider words, far", "providers: [{ name: a, kind: k, base_url: 'https://a', auth: basic, pool: { strategy: best }, keys: [{ key: k }] }]\n", []string{
			"c.yaml:1:30: providers[0].kind: unknown; write anthropic",
			"c.yaml:1:62: providers[0].auth: unknown; write x-api-key or bearer",
			"c.yaml:1:87: providers[0].pool.strategy: unknown; write least_loaded or random or round_robin or weighted"}},
		{"no base_url for another kind", "providers: [{ name: a, kind: bedrock, keys: [{ key: k }] }]\n", []string{
			"c.yaml:1:13: providers[0].base_url: missing; write https://HOST, with a path prefix if the provider has one",
			"c.yaml:1:30: providers[0].kind: unknown; write anthropic"}},
		{"no keys for Anthropic", "providers:\n- name: a\n", []string{
			`c.yaml:2:3: providers[0].keys: none, but https://api.anthropic.com asks for one; write keys: [{ key: "${ANTHROPIC_API_KEY}" }]`}},
		{"keys", "providers:\n- name: a\n  keys:\n  - {}\n  -\n  - key: 'a b'\n  - { key: k, rpm_limit: -1, itpm_limit: 1000000001, otpm_limit: -2, priority: 3, weight: 0 }\n  - { key: k, priority: -1, weight: 1001 }\n", []string{
			`c.yaml:4:5: providers[0].keys[0].key: empty; write the key, or "${NAME}" to take it from the environment`,
			`c.yaml:5:4: providers[0].keys[1].key: empty; write the key, or "${NAME}" to take it from the environment`,
			"c.yaml:6:10: providers[0].keys[2].key: has a space, a line break or a character that no key has; remove it",
			"c.yaml:7:26: providers[0].keys[3].rpm_limit: -1 is not a limit; write 0 (not known) to 1000000000 a minute",
			"c.yaml:7:42: providers[0].keys[3].itpm_limit: 1000000001 is not a limit; write 0 (not known) to 1000000000 a minute",
			"c.yaml:7:66: providers[0].keys[3].otpm_limit: -2 is not a limit; write 0 (not known) to 1000000000 a minute",
			"c.yaml:7:80: providers[0].keys[3].priority: 3 is not a priority; write 0 (low), 1 (normal) or 2 (high)",
			"c.yaml:7:91: providers[0].keys[3].weight: 0 is not a weight; write 1 to 1000",
			"c.yaml:8:12: providers[0].keys[4].key: same key as providers[0].keys[3].key; remove one",
			"c.yaml:8:25: providers[0].keys[4].priority: -1 is not a priority; write 0 (low), 1 (normal) or 2 (high)",
			"c.yaml:8:37: providers[0].keys[4].weight: 1001 is not a weight; write 1 to 1000"}},
		{"limits of one organization", "providers:\n- name: a\n  keys:\n  - { key: k, organization: acme, rpm_limit: 50 }\n  - { key: l, organization: acme, rpm_limit: 60, itpm_limit: 5 }\n  - { key: m, rpm_limit: 70 }\n", []string{
			"c.yaml:5:46: providers[0].keys[1].rpm_limit: 60, but keys[0] of the same organization says 50; an organization has one limit"}},
		{"same key in two providers", "providers:\n- { name: a, base_url: 'https://API.example.com:443/v1/', keys: [{ key: k }] }\n- { name: b, base_url: 'https://api.example.com', keys: [{ key: k }] }\n- { name: c, base_url: 'https://other.example.com', keys: [{ key: k }] }\n", []string{
			"c.yaml:3:65: providers[1].keys[0].key: same key as providers[0].keys[0].key; remove one"}},
		{"headers", "providers:\n- name: a\n  keys: [{ key: k }]\n  headers:\n    Host: a\n    transfer-encoding: b\n    'x y': c\n    x-a: 1\n    X-A: 2\n    x-b: \"a\\nb\"\n    X-Api-Key: k\n    authorization: fine\n    Accept-encoding: gzip\n", []string{
			"c.yaml:5:11: providers[0].headers.Host: is set by the relay or the connection; remove it",
			"c.yaml:6:24: providers[0].headers.transfer-encoding: is set by the relay or the connection; remove it",
			"c.yaml:7:12: providers[0].headers: not a header name; write letters, digits and -",
			"c.yaml:8:10: providers[0].headers.x-a: written twice, in upper and lower case; remove one",
			"c.yaml:10:10: providers[0].headers.x-b: has a line break or a control character; remove it",
			"c.yaml:11:16: providers[0].headers.X-Api-Key: carries the key from keys; remove it, or remove keys",
			"c.yaml:13:22: providers[0].headers.Accept-encoding: is set by the relay or the connection; remove it"}},
		{"bearer header", "providers: [{ auth: bearer, headers: { authorization: a, x-api-key: fine }, keys: [{ key: k }] }]\n", []string{
			"c.yaml:1:55: providers[0].headers.authorization: carries the key from keys; remove it, or remove keys"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte(test.text), environ("EMPTY", "", "YAML", "1, priority: 2"))
			require.Error(t, err)
			assert.Equal(t, strings.Join(test.want, "\n"), err.Error())
		})
	}
}

func TestTypedErrors(t *testing.T) {
	_, err := config.Parse("c.yaml", []byte(`
providers:
- name: first
  keys: [{ key: k }]
- name: second
  keys:
  - key: l
  - key: m
    weight: -3
    priority: 7
`), environ())

	var priority *config.InvalidPriorityError
	require.ErrorAs(t, err, &priority)
	assert.Equal(t, config.InvalidPriorityError{Provider: "second", Key: 1, Value: 7}, *priority)
	var weight *config.InvalidWeightError
	require.ErrorAs(t, err, &weight)
	assert.Equal(t, config.InvalidWeightError{Provider: "second", Key: 1, Value: -3}, *weight)

	var mistake *config.Mistake
	require.ErrorAs(t, err, &mistake)
	assert.Equal(t, config.Mistake{File: "c.yaml", Line: 9, Column: 13, Path: "providers[1].keys[1].weight", Err: weight}, *mistake)
}
