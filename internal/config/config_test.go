package config_test

import (
	"bytes"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/auth"
	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
)

// environ is an environment of the given names and values.
func environ(pairs ...string) func(string) (string, bool) {
	env := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		env[pairs[i]] = pairs[i+1]
	}
	return func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}
}

func ptr[T any](v T) *T { return &v }

// pool is the pool that a file gives without further settings.
func pool(strategy string) keypool.PoolConfig {
	return keypool.PoolConfig{Strategy: strategy, MaxWait: ptr(3 * time.Second), MaxWaiting: ptr(1000), Affinity: "on"}
}

// anthropic is the provider that a file or the environment gives without further settings.
func anthropic(keys ...keypool.KeyConfig) config.Provider {
	return config.Provider{
		Config: provider.Config{
			Name: "anthropic", Kind: "anthropic", BaseURL: "https://api.anthropic.com", Auth: "x-api-key",
			DialTimeout: 5 * time.Second, FirstTokenTimeout: 2 * time.Minute,
			ResponseTimeout: 10 * time.Minute, IdleTimeout: 330 * time.Second,
		},
		Pool: pool("least_loaded"),
		Keys: keys,
	}
}

func TestExampleIsTheDefaults(t *testing.T) {
	want := config.Default()
	want.Providers = []config.Provider{anthropic(keypool.KeyConfig{
		Key: secret.New("sk-ant-1"), Priority: ptr(keypool.PriorityNormal), Weight: ptr(1),
	})}
	got, err := config.Parse("example.yaml", config.Example(), environ("ANTHROPIC_API_KEY", "sk-ant-1"))
	require.NoError(t, err)
	assert.Equal(t, &want, got)
}

func TestExampleNamesEverySetting(t *testing.T) {
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch {
		case typ == reflect.TypeFor[secret.Value]():
			return
		case typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer:
			walk(typ.Elem())
			return
		case typ.Kind() != reflect.Struct:
			return
		}
		for _, f := range reflect.VisibleFields(typ) {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name == "" || name == "-" {
				continue
			}
			setting := regexp.MustCompile(`(?m)^[ #-]*` + name + `:`)
			assert.Regexp(t, setting, string(config.Example()), "%s.%s", typ, f.Name)
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[config.Config]())
}

func TestExampleInTheTreeIsTheEmbeddedOne(t *testing.T) {
	got, err := os.ReadFile("../../config/example.yaml")
	require.NoError(t, err)
	assert.Equal(t, string(config.Example()), string(got), "copy internal/config/example.yaml to config/example.yaml")
}

func TestTheExampleWithItsCommentedClientsLoads(t *testing.T) {
	text := regexp.MustCompile(`(?m)^  # (- name|  token)`).ReplaceAll(config.Example(), []byte("  $1"))
	require.NotEqual(t, string(config.Example()), string(text))
	cfg, err := config.Parse("example.yaml", text, environ("ANTHROPIC_API_KEY", "sk-ant-1",
		"LAPTOP_TOKEN", "correct-battery", "CI_TOKEN_SHA256", strings.Repeat("0a", 32)))
	require.NoError(t, err)
	assert.Equal(t, []auth.ClientConfig{
		{Name: "laptop", Token: secret.New("correct-battery")},
		{Name: "ci", TokenSHA256: strings.Repeat("0a", 32)},
	}, cfg.Clients)
}

func TestTheExampleWithItsCommentedClassesLoads(t *testing.T) {
	text := regexp.MustCompile(`(?m)^  # (- models|  class: acme)`).ReplaceAll(config.Example(), []byte("  $1"))
	cfg, err := config.Parse("example.yaml", text, environ("ANTHROPIC_API_KEY", "sk-ant-1"))
	require.NoError(t, err)
	assert.Equal(t, []keypool.ClassRule{{Models: []string{"acme-large", "acme-large-*"}, Class: "acme-large"}}, cfg.Classes)
}

func TestTheExampleWithItsCommentedModelsLoads(t *testing.T) {
	text := regexp.MustCompile(`(?m)^  # (- match|  (class: ""|clients|targets|weights|strategy))`).ReplaceAll(config.Example(), []byte("  $1"))
	cfg, err := config.Parse("example.yaml", text, environ("ANTHROPIC_API_KEY", "sk-ant-1"))
	require.NoError(t, err)
	assert.Equal(t, []router.Rule{{Match: []string{"claude-opus-*"}, Targets: []string{"anthropic", "anthropic/claude-opus-5"}}}, cfg.Models)
}

func TestExampleBelongsToTheCaller(t *testing.T) {
	before := string(config.Example())
	clear(config.Example())
	assert.Equal(t, before, string(config.Example()))
}

func TestEverySettingIsRead(t *testing.T) {
	const text = `
server: { listen: "[::1]:0", drain_timeout: 1h30m, expose: False, max_body_bytes: 1024, state: off, state_dir: "${HOME}/relay",
  limits: { header_bytes: 4096, header_time: 2s, body_silence: 3s, body_rate: 4, body_time: 5s, bodies_bytes: 6000000, requests: 7, connections: 8, connections_per_source: 9, streams_per_connection: 10, idle_connection: 11s, write_time: 12s, total_time: 13m, frame_bytes: 14000 },
  tls: { cert_file: "${TLS_CERT}", key_file: "${TLS_KEY}" }, insecure_cleartext: true, allowed_hosts: [ relay.example.com, "::1" ], allowed_origins: [ "https://${ORIGIN}:8443", vscode-webview://a-b ] }
admin: { listen: off, pprof: true, tls: { cert_file: "${TLS_CERT}", key_file: "${TLS_KEY}" }, insecure_cleartext: true, allowed_hosts: [ 10.0.0.7 ] }
metrics: off
tracing: { endpoint: "https://${ORIGIN}:4318/v1/traces", headers: { x-tenant: a, Authorization: "Bearer ${TOKEN}" }, sample: 0.25, propagate: true }
clients:
- name: dev
  token: ${TOKEN}
logging: { level: trace, format: console }
routing: { strategy: latency, retry_unknown: False, default: [ local-llm/small, "${LOCAL}", anthropic ], weights: [ 1, "2", 1000 ] }
models:
- match: [ claude-opus-*, "${OPUS}[1m]", opus ]
  class: opus-5
  clients: [ dev ]
  targets: [ anthropic, anthropic/claude-opus-4-8, local-llm/vendor/big-model ]
  weights: [ 3, 2, 1 ]
  strategy: weighted_round_robin
- { class: x, targets: [ local-llm ] }
- { match: [ "*" ], targets: [ anthropic ], strategy: "" }
aliases: { opus: "${OPUS}", fast: haiku, haiku: claude-haiku-5-5, 5.5: opus }
prices: ${PRICES}
passthrough: TRUE
classes: [ { models: [ claude-x, "*/claude-x-*[1m]" ], class: "x" }, { class: opus-5, models: [ "*" ] } ]
providers:
- kind: anthropic
  keys: [ { key: k1, rpm_limit: 50, itpm_limit: 30000, otpm_limit: 8000, priority: 2, weight: 1000 }, { key: k2, priority: 0 } ]
  pool: { strategy: weighted, max_wait: 0s, max_waiting: 7, affinity: off }
- name: local-llm
  base_url: http://10.0.0.7:8000/v1
  allow_http: true
  auth: bearer
  headers:
    X-Team: "${TEAM} & co"
    X-Empty: ""
  dial_timeout: 1s
  first_token_timeout: 1ms
  response_timeout: 2h
  idle_timeout: 1m
  health_check: 1s
  origin: acme
`
	prices := writeFile(t, 0o644, okPrice)
	cert, key := certificate(t)
	pair := config.TLS{CertFile: cert, KeyFile: key}
	want := config.Config{
		Server: config.Server{
			Listen: "[::1]:0", DrainTimeout: 90 * time.Minute, MaxBodyBytes: 1024, State: "off", StateDir: "/home/me/relay",
			Limits: config.Limits{
				HeaderBytes: 4096, HeaderTime: 2 * time.Second, BodySilence: 3 * time.Second, BodyRate: 4, BodyTime: 5 * time.Second,
				BodiesBytes: 6_000_000, Requests: 7, Connections: 8, ConnectionsPerSource: 9, StreamsPerConnection: 10,
				IdleConnection: 11 * time.Second, WriteTime: 12 * time.Second, TotalTime: 13 * time.Minute, FrameBytes: 14_000,
			},
			TLS: pair, InsecureCleartext: true, AllowedHosts: []string{"relay.example.com", "::1"},
			AllowedOrigins: []string{"https://app.example.com:8443", "vscode-webview://a-b"},
		},
		Admin:   config.Admin{Listen: "off", PProf: true, TLS: pair, InsecureCleartext: true, AllowedHosts: []string{"10.0.0.7"}},
		Metrics: "off",
		Tracing: config.Tracing{
			Endpoint: "https://app.example.com:4318/v1/traces", Sample: 0.25, Propagate: true,
			Headers: map[string]secret.Value{"x-tenant": secret.New("a"), "Authorization": secret.New("Bearer s3cret-token")},
		},
		Logging: config.Logging{Level: "trace", Format: "console"},
		Routing: router.Config{
			Strategy: "latency", RetryUnknown: ptr(false),
			Default: []string{"local-llm/small", "local-llm", "anthropic"}, Weights: []int{1, 2, 1000},
		},
		Models: []router.Rule{
			{
				Match: []string{"claude-opus-*", "claude-opus-5-5[1m]", "opus"}, Class: "opus-5", Clients: []string{"dev"},
				Targets: []string{"anthropic", "anthropic/claude-opus-4-8", "local-llm/vendor/big-model"},
				Weights: []int{3, 2, 1}, Strategy: "weighted_round_robin",
			},
			{Class: "x", Targets: []string{"local-llm"}},
			{Match: []string{"*"}, Targets: []string{"anthropic"}},
		},
		Aliases:     map[string]string{"opus": "claude-opus-5-5", "fast": "haiku", "haiku": "claude-haiku-5-5", "5.5": "opus"},
		Prices:      prices,
		Passthrough: true,
		Clients:     []auth.ClientConfig{{Name: "dev", Token: secret.New("s3cret-token")}},
		Classes: []keypool.ClassRule{
			{Models: []string{"claude-x", "*/claude-x-*[1m]"}, Class: "x"},
			{Models: []string{"*"}, Class: "opus-5"},
		},
		Providers: []config.Provider{
			anthropic(
				keypool.KeyConfig{Key: secret.New("k1"), RPMLimit: 50, ITPMLimit: 30000, OTPMLimit: 8000, Priority: ptr(2), Weight: ptr(1000)},
				keypool.KeyConfig{Key: secret.New("k2"), Priority: ptr(0)},
			),
			{
				Config: provider.Config{
					Name: "local-llm", Kind: "anthropic", BaseURL: "http://10.0.0.7:8000/v1", Auth: "bearer", AllowHTTP: true,
					Headers:     map[string]secret.Value{"X-Team": secret.New("red & co"), "X-Empty": secret.New("")},
					DialTimeout: time.Second, FirstTokenTimeout: time.Millisecond,
					ResponseTimeout: 2 * time.Hour, IdleTimeout: time.Minute,
					HealthCheck: time.Second, Origin: "acme",
				},
				Pool: pool("least_loaded"),
			},
		},
	}
	want.Providers[0].Pool = keypool.PoolConfig{Strategy: "weighted", MaxWait: ptr(time.Duration(0)), MaxWaiting: ptr(7), Affinity: "off"}
	got, err := config.Parse("c.yaml", []byte(text), environ("TOKEN", "s3cret-token", "TEAM", "red", "HOME", "/home/me",
		"LOCAL", "local-llm", "OPUS", "claude-opus-5-5", "PRICES", prices,
		"TLS_CERT", cert, "TLS_KEY", key, "ORIGIN", "app.example.com"))
	require.NoError(t, err)
	assert.Equal(t, &want, got)

	shown, err := config.Redacted(got)
	require.NoError(t, err)
	again, err := config.Parse("shown.yaml", refill(shown), environ())
	require.NoError(t, err, "%s", shown)
	assert.Equal(t, withoutSecrets(got), withoutSecrets(again), "%s", shown)
}

func TestRoutes(t *testing.T) {
	cfg, err := config.Parse("c.yaml", []byte(`
routing: { strategy: cost, retry_unknown: false, default: [ anthropic ], weights: [ 7 ] }
models: [ { match: [ a ], targets: [ anthropic/b ] } ]
aliases: { c: a }
`+ok), environ())
	require.NoError(t, err)
	assert.Equal(t, router.Config{
		Strategy: "cost", RetryUnknown: ptr(false), Default: []string{"anthropic"}, Weights: []int{7},
		Rules:   []router.Rule{{Match: []string{"a"}, Targets: []string{"anthropic/b"}}},
		Aliases: map[string]string{"c": "a"},
	}, cfg.Routes())
	assert.Nil(t, cfg.Routing.Rules, "Routes must not change its receiver")
}

func TestWaysToWriteAFile(t *testing.T) {
	want := config.Default()
	want.Providers = []config.Provider{anthropic(keypool.KeyConfig{Key: secret.New("k1"), RPMLimit: 10})}
	for name, text := range map[string]string{
		"block":            "providers:\n  - keys:\n      - key: k1\n        rpm_limit: 10\n",
		"flow":             "providers: [{ keys: [{ key: k1, rpm_limit: 10 }] }]",
		"JSON":             `{"providers": [{"keys": [{"key": "k1", "rpm_limit": 10}]}]}`,
		"quoted number":    "providers: [{ keys: [{ key: k1, rpm_limit: '10' }] }]",
		"CRLF":             "providers:\r\n- keys:\r\n  - key: k1\r\n    rpm_limit: 10\r\n",
		"byte order mark":  "\ufeffproviders: [{ keys: [{ key: k1, rpm_limit: 10 }] }]",
		"document markers": "---\nproviders: [{ keys: [{ key: k1, rpm_limit: 10 }] }]\n...\n",
		"nothing said": "server:\nadmin: { listen:, tls:, allowed_hosts: }\nmetrics:\ntracing: { endpoint:, headers:, sample: }\nclients:\nlogging: ~\nrouting: null\nmodels:\naliases:\nprices:\npassthrough:\nproviders:\n- name:\n  base_url:\n  headers:\n  pool:\n" +
			"  health_check:\n  origin:\n  keys:\n  - key: k1\n    rpm_limit: 10\n    priority:\n    weight: ~\n",
		"nothing said of routing": "routing: { strategy:, retry_unknown:, default: ~, weights: }\nproviders: [{ keys: [{ key: k1, rpm_limit: 10 }] }]",
		"empty lists": "clients: []\nserver: { tls: {}, allowed_hosts: [], allowed_origins: [] }\nadmin: { listen: '', tls: { cert_file: '', key_file: '' } }\ntracing: { endpoint: '', headers: {} }\nmodels: []\naliases: {}\nprices: ''\nrouting: { default: [], weights: [] }\n" +
			"providers: [{ headers: {}, pool: {}, health_check: 0s, origin: '', keys: [{ key: k1, rpm_limit: 10 }] }]",
		"long comment": "providers: [{ keys: [{ key: k1, rpm_limit: 10 }] }] " + strings.Repeat("#", 3000),
		"long line":    "providers: [{ " + strings.Repeat(" ", 1000) + "keys: [{ key: k1, rpm_limit: 10 }] }]",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse("c.yaml", []byte(text), environ())
			require.NoError(t, err)
			assert.Equal(t, &want, got)
		})
	}
}

func TestPoolConfigHasTheKeys(t *testing.T) {
	p := anthropic(keypool.KeyConfig{Key: secret.New("k1")}, keypool.KeyConfig{Key: secret.New("k2")})
	p.Pool.Strategy = "random"
	want := pool("random")
	want.Keys = p.Keys
	assert.Equal(t, want, p.PoolConfig())
	assert.Nil(t, p.Pool.Keys, "PoolConfig must not change its receiver")
}

func TestRedacted(t *testing.T) {
	const canary = "sk-ant-api03-canary-0123456789"
	const text = `
server: { listen: 0.0.0.0:80, state_dir: "/var/$${x}", insecure_cleartext: true, allowed_hosts: [ a ], allowed_origins: [ "https://b" ] }
admin: { listen: "unix:/run/$${x}", pprof: true }
tracing: { endpoint: "https://a/$${b}", headers: { x-credential: "${CANARY}" }, sample: 0.5 }
classes: [ { models: [ "$$a-*" ], class: b$$ } ]
routing: { default: [ "anthropic/$${a}" ], weights: [ 2 ], retry_unknown: false, strategy: shuffle }
models: [ { match: [ "$$b*" ], class: c$$, clients: [ ci ], targets: [ "anthropic/$$d" ], weights: [ 3 ], strategy: cost } ]
aliases: { e: "$${f}", null: "~" }
passthrough: true
clients: [ { name: dev, token: "${CANARY}" }, { name: ci, token_sha256: 0A0b0c0d0e0f00010203040506070809000102030405060708090a0b0c0d0e0f } ]
providers:
  - base_url: https://example.com/$${tenant}
    headers: { x-credential: "Basic ${CANARY}" }
    health_check: 90s
    origin: anthropic
    keys: [ { key: "${CANARY}", priority: 0 } ]
`
	cfg, err := config.Parse("c.yaml", []byte(text), environ("CANARY", canary))
	require.NoError(t, err)
	got, err := config.Redacted(cfg)
	require.NoError(t, err)
	assert.Equal(t, `server:
  listen: 0.0.0.0:80
  drain_timeout: 10m0s
  expose: true
  max_body_bytes: 33554432
  state: "on"
  limits:
    header_bytes: 65536
    header_time: 10s
    body_silence: 30s
    body_rate: 1024
    body_time: 10m0s
    bodies_bytes: 536870912
    requests: 10000
    connections: 20000
    connections_per_source: 10000
    streams_per_connection: 100
    idle_connection: 5m0s
    write_time: 30s
    total_time: 2h0m0s
    frame_bytes: 8388608
  state_dir: /var/$${x}
  insecure_cleartext: true
  allowed_hosts:
  - a
  allowed_origins:
  - https://b
admin:
  listen: unix:/run/$${x}
  pprof: true
clients:
- name: dev
  token: "[redacted]"
- name: ci
  token_sha256: 0A0b0c0d0e0f00010203040506070809000102030405060708090a0b0c0d0e0f
logging:
  level: info
  format: json
metrics: "on"
tracing:
  endpoint: https://a/$${b}
  headers:
    x-credential: "[redacted]"
  sample: 0.5
routing:
  strategy: shuffle
  retry_unknown: false
  default:
  - anthropic/$${a}
  weights:
  - 2
models:
- match:
  - $$b*
  class: c$$
  clients:
  - ci
  targets:
  - anthropic/$$d
  weights:
  - 3
  strategy: cost
aliases:
  e: $${f}
  "null": "~"
passthrough: true
classes:
- models:
  - $$a-*
  class: b$$
providers:
- name: anthropic
  kind: anthropic
  base_url: https://example.com/$${tenant}
  auth: x-api-key
  headers:
    x-credential: "[redacted]"
  dial_timeout: 5s
  first_token_timeout: 2m0s
  response_timeout: 10m0s
  idle_timeout: 5m30s
  health_check: 1m30s
  origin: anthropic
  pool:
    strategy: least_loaded
    max_wait: 3s
    max_waiting: 1000
    affinity: "on"
  keys:
  - key: "[redacted]"
    priority: 0
`, string(got))
	assert.False(t, bytes.Contains(got, []byte(canary)), "output holds the key")
	assert.Equal(t, "https://example.com/${tenant}", cfg.Providers[0].BaseURL, "Redacted must not change its argument")
	assert.Equal(t, []string{"$b*"}, cfg.Models[0].Match, "Redacted must not change its argument")
	assert.Equal(t, map[string]string{"e": "${f}", "null": "~"}, cfg.Aliases, "Redacted must not change its argument")
}

// Where the relay pings in a provider's stead, the silence it allows is its own to choose.
func TestIdleTimeout(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 330 * time.Second,
		", base_url: 'https://api.anthropic.com'":               330 * time.Second,
		", name: acme, base_url: 'https://acme.example'":        240 * time.Second,
		", base_url: 'https://acme.example', origin: anthropic": 330 * time.Second,
		", origin: acme": 240 * time.Second,
		", base_url: 'https://acme.example', idle_timeout: 330s":         330 * time.Second,
		", base_url: 'https://api.anthropic.com', idle_timeout: 1m":      time.Minute,
		", name: acme, base_url: 'https://acme.example', idle_timeout: ": 240 * time.Second,
	} {
		cfg, err := config.Parse("c.yaml", []byte("providers: [{ keys: [{ key: k }]"+text+" }]\n"), environ())
		require.NoError(t, err, text)
		assert.Equal(t, want, cfg.Providers[0].IdleTimeout, text)
	}
	_, err := config.Parse("c.yaml", []byte("providers: [{ keys: [{ key: k }], idle_timeout: 0s }]\n"), environ())
	assert.ErrorContains(t, err, "providers[0].idle_timeout: 0s is no time")
}
