package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/auth"
	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
)

var seeds = []string{
	string(config.Example()), ok, "",
	"server: { listen: '[::1]:0', drain_timeout: 1h, expose: no, max_body_bytes: 1 }\n" + ok,
	"clients:\n- name: null\n  token: ${T}\n- { name: 0x1F, token_sha256: " + hashOfToken + " }\nproviders:\n- name: '1e3'\n  base_url: https://h/$$a/${B:-c}\n  headers: { X-A: \"a b\", 'x!#$%&''*+-.^_`|~': ~ }\n",
	"server: { state: off, state_dir: /a }\nclasses:\n- models: [ '*/$$a', \"b*[1m]\" ]\n  class: ${B:-c}\n- { class: 'null', models: ['*'] }\nproviders: [{ keys: [{ key: k }], pool: { max_wait: 59.5s, affinity: off } }]\n",
	"routing: { strategy: cost, retry_unknown: no, default: [ a/b, '0', a ], weights: [1,2,3] }\nproviders: [{ name: a, keys: [{ key: k }], origin: '0', health_check: 1s }, { name: '0', keys: [{ key: l }] }]\n",
	"models: [{ match: ['*', '$$a', '#b'], class: '~', targets: [ 'anthropic/a/b[1m]', anthropic ], weights: [1, 1000], strategy: latency }, { class: null, targets: [anthropic/~] }]\n" + ok,
	"aliases: { null: a, 1e3: '0x1', 'a:': ':b', true: false, 'a[1m]': '~', 2026-01-01: $$, 'a/b:c': '---', 'x-': '#' }\n" + ok, "aliases: { '<<': b }\n" + ok,
	"aliases: { a: b, b: a }\nmodels: [{ targets: [b/] }]\npassthrough: true\nprices: testdata/ca.pem\n" + ok, "prices: ../price/prices.yaml\npassthrough: true\n" + ok,
	"providers:\n- keys:\n  - key: |-\n      k1\n    priority: 0\n  - { key: k2, priority: 2, weight: 10 }\n",
	"server: { state: off, allowed_hosts: [a, '::1'], allowed_origins: ['https://a:1'], insecure_cleartext: true }\nmetrics: off\ntracing: { endpoint: 'http://$$h/', headers: { a: b }, sample: 1e-3, propagate: true }\n" + ok,
	"admin: { listen: 'unix:/a/$$b', pprof: true }\n" + ok, "admin: { listen: 0.0.0.0:0, tls: { cert_file: a, key_file: b } }\n" + ok,
	"a: &a [*a]\n<<: *a\n? x\n: !!int y\n---\n...\n", "logging: { level: ${LEVEL}, }\n%YAML 1.2\n", "0::", "{? {? ", "b: 0_", "a: \"\\", "- |\n-", "a: 'b' c\n",
}

// FuzzParse checks that Parse never panics, that each mistake is one line with the
// file's name, and that what it accepts comes back from Redacted, but for secrets.
func FuzzParse(f *testing.F) {
	for _, seed := range seeds {
		f.Add(seed)
	}
	env := func(name string) (string, bool) { return "value-of:{" + name + "}", name != "UNSET" }
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := config.Parse("c.yaml", []byte(text), env)
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				require.True(t, strings.HasPrefix(line, "c.yaml:"), "got line %q", line)
			}
			return
		}
		require.NoError(t, cfg.Validate())
		shown, err := config.Redacted(cfg)
		require.NoError(t, err)
		again, err := config.Parse("shown.yaml", refill(shown), env)
		require.NoError(t, err, "accepted:\n%s\nshown:\n%s", text, shown)
		assert.Equal(t, withoutSecrets(cfg), withoutSecrets(again), "accepted:\n%s\nshown:\n%s", text, shown)
	})
}

// refill puts another secret in the place of each that was redacted.
func refill(shown []byte) []byte {
	var out strings.Builder
	for i, part := range strings.Split(string(shown), secret.Redacted) {
		if i > 0 {
			fmt.Fprintf(&out, "secret-%d", i)
		}
		out.WriteString(part)
	}
	return []byte(out.String())
}

func withoutSecrets(cfg *config.Config) config.Config {
	c := *cfg
	c.Clients = append([]auth.ClientConfig(nil), cfg.Clients...)
	for i := range c.Clients {
		if !c.Clients[i].Token.IsZero() {
			c.Clients[i].Token = secret.New("token")
		}
	}
	c.Tracing.Headers = otherValues(cfg.Tracing.Headers)
	c.Providers = append([]config.Provider(nil), cfg.Providers...)
	for i := range c.Providers {
		p := &c.Providers[i]
		p.Keys = append([]keypool.KeyConfig(nil), p.Keys...)
		for j := range p.Keys {
			p.Keys[j].Key = secret.New("key")
		}
		p.Headers = otherValues(p.Headers)
	}
	return c
}

func otherValues(headers map[string]secret.Value) map[string]secret.Value {
	other := map[string]secret.Value{}
	for name := range headers {
		other[name] = secret.New("value")
	}
	return other
}
