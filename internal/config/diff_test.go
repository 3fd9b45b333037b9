package config_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/auth"
	"cc-relay/internal/config"
	"cc-relay/internal/secret"
)

func TestDiff(t *testing.T) {
	cert, key := certificate(t)
	pair := "tls: { cert_file: '" + cert + "', key_file: '" + key + "' }"
	id := func(key string) string { return secret.New(key).Fingerprint() }
	two := "providers: [{ name: a, keys: [{ key: k1 }, { key: k2 }] }, { name: b, base_url: 'https://b', headers: { x-team: red } }]\n"
	for name, test := range map[string]struct {
		old, new string
		want     []config.Change
	}{
		"nothing": {two, two, nil},
		"scalars": {"server: { drain_timeout: 60s }\n" + two, "server: { drain_timeout: 2m, expose: false }\nlogging: { level: debug }\nprices: ''\n" + two, []config.Change{
			{Path: "server.drain_timeout", From: "1m0s", To: "2m0s"}, {Path: "server.expose", From: "true", To: "false"}, {Path: "logging.level", From: "info", To: "debug"}}},
		"only by a restart": {two, "server: { listen: 127.0.0.1:1, state: off, state_dir: /s }\nadmin: { pprof: true }\nlogging: { format: console }\nmetrics: off\ntracing: { endpoint: 'https://t', sample: 0.5, headers: { a: b } }\n" + two, []config.Change{
			{Path: "server.listen", From: "127.0.0.1:8787", To: "127.0.0.1:1", Restart: true}, {Path: "server.state", From: "on", To: "off", Restart: true}, {Path: "server.state_dir", From: `""`, To: "/s", Restart: true},
			{Path: "admin.listen", From: "127.0.0.1:8788", To: "off", Restart: true}, {Path: "admin.pprof", From: "false", To: "true", Restart: true}, {Path: "logging.format", From: "json", To: "console", Restart: true}, {Path: "metrics", From: "on", To: "off", Restart: true},
			{Path: "tracing.endpoint", From: `""`, To: "https://t", Restart: true}, {Path: "tracing.headers.a", From: "absent", To: "[redacted]", Restart: true}, {Path: "tracing.sample", From: "1", To: "0.5", Restart: true}}},
		"TLS begins": {two, "server: { " + pair + " }\n" + two, []config.Change{
			{Path: "server.tls.cert_file", From: `""`, To: cert, Restart: true}, {Path: "server.tls.key_file", From: `""`, To: key, Restart: true}}},
		"lists and maps": {"server: { allowed_hosts: [a] }\naliases: { x: a, y: b }\n" + two, "server: { allowed_hosts: [a, b] }\naliases: { y: c, z: d }\n" + two, []config.Change{
			{Path: "server.allowed_hosts", From: "[a]", To: "[a, b]"}, {Path: "aliases.x", From: "a", To: "absent"}, {Path: "aliases.y", From: "b", To: "c"}, {Path: "aliases.z", From: "absent", To: "d"}}},
		"keys": {two, "providers: [{ name: a, keys: [{ key: k3 }, { key: k2, weight: 5, rpm_limit: 7 }] }, { name: b, base_url: 'https://b', headers: { x-team: red } }]\n", []config.Change{
			{Path: "providers[a].keys[" + id("k1") + "]", From: "present", To: "absent"}, {Path: "providers[a].keys[" + id("k2") + "].rpm_limit", From: "0", To: "7"},
			{Path: "providers[a].keys[" + id("k2") + "].weight", From: "default", To: "5"}, {Path: "providers[a].keys[" + id("k3") + "]", From: "absent", To: "present"}}},
		"order": {two, "providers: [{ name: b, base_url: 'https://b', headers: { x-team: red } }, { name: a, keys: [{ key: k2 }, { key: k1 }] }]\n", []config.Change{
			{Path: "providers[a].keys", From: "in order " + id("k1") + ", " + id("k2"), To: "in order " + id("k2") + ", " + id("k1")}, {Path: "providers", From: "in order a, b", To: "in order b, a"}}},
		"providers": {two, "providers: [{ name: b, base_url: 'https://c', headers: { x-team: blue }, pool: { strategy: random } }, { name: c, keys: [{ key: k1 }] }]\n", []config.Change{
			{Path: "providers[a]", From: "present", To: "absent"}, {Path: "providers[b].base_url", From: "https://b", To: "https://c"}, {Path: "providers[b].headers.x-team", From: "[redacted]", To: "[redacted]"},
			{Path: "providers[b].pool.strategy", From: "least_loaded", To: "random"}, {Path: "providers[c]", From: "absent", To: "present"}}},
		"clients": {"clients: [{ name: a, token: token-one }, { name: b, token: token-two }]\n" + two, "clients: [{ name: b, token: token-new }, { name: a, token: token-one }, { name: c, token_sha256: " + hashOfToken + " }]\n" + two, []config.Change{
			{Path: "clients[b].token", From: "[redacted]", To: "[redacted]"}, {Path: "clients[c]", From: "absent", To: "present"}}},
		"rules": {"models: [{ match: [x], targets: [a] }, { match: [y], targets: [b] }]\n" + two, "models: [{ match: [y], targets: [b] }]\n" + two, []config.Change{
			{Path: "models[0].match", From: "[x]", To: "[y]"}, {Path: "models[0].targets", From: "[a]", To: "[b]"}, {Path: "models[1]", From: "present", To: "absent"}}},
	} {
		t.Run(name, func(t *testing.T) {
			old, err := config.Parse("old.yaml", []byte(test.old), environ())
			require.NoError(t, err)
			now, err := config.Parse("new.yaml", []byte(test.new), environ())
			require.NoError(t, err)
			assert.Equal(t, test.want, config.Diff(old, now))

			back := config.Diff(now, old)
			assert.Len(t, back, len(test.want), "the other way round")
		})
	}
}

// TestDiffSeesEveryField changes one field after the other, found by type, so that a
// new one cannot be forgotten.
func TestDiffSeesEveryField(t *testing.T) {
	const text = `
server: { allowed_hosts: [a], allowed_origins: ['https://a'] }
admin: { allowed_hosts: [a] }
clients: [{ name: n, token: ` + canary + ` }]
tracing: { headers: { a: ` + canary + ` } }
models: [{ match: [a], class: b, clients: [n], targets: [anthropic], weights: [1] }]
aliases: { a: b }
classes: [{ models: [a], class: b }]
routing: { default: [anthropic], weights: [1] }
providers: [{ keys: [{ key: ` + canary + `, priority: 1, weight: 1 }], headers: { a: ` + canary + ` } }]
`
	parse := func() *config.Config {
		cfg, err := config.Parse("c.yaml", []byte(text), environ())
		require.NoError(t, err)
		return cfg
	}
	fields := 0
	var walk func(path string, at func(*config.Config) reflect.Value)
	walk = func(path string, at func(*config.Config) reflect.Value) {
		v := at(parse())
		if v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[secret.Value]() {
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() && f.Tag.Get("yaml") != "-" {
					walk(path+"."+f.Name, func(c *config.Config) reflect.Value { return at(c).Field(i) })
				}
			}
			return
		}
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct {
			walk(path+"[0]", func(c *config.Config) reflect.Value { return at(c).Index(0) })
			return
		}
		fields++
		changed := parse()
		change(at(changed))
		diff := config.Diff(parse(), changed)
		assert.NotEmpty(t, diff, path)
		for _, c := range diff {
			assert.NotContains(t, strings.ToLower(c.Path+c.From+c.To), "zq8vk2mx9", path)
		}
		assert.Empty(t, config.Diff(changed, changed))
	}
	walk("", func(c *config.Config) reflect.Value { return reflect.ValueOf(c).Elem() })
	assert.Greater(t, fields, 60)
}

// change sets v to another value.
func change(v reflect.Value) {
	switch {
	case v.Type() == reflect.TypeFor[secret.Value]():
		v.Set(reflect.ValueOf(secret.New(canary + "-2")))
	case v.Kind() == reflect.Pointer:
		next := reflect.New(v.Type().Elem())
		if !v.IsNil() {
			next.Elem().Set(v.Elem())
		}
		change(next.Elem())
		v.Set(next)
	case v.Kind() == reflect.Slice:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
	case v.Kind() == reflect.Map:
		next := reflect.MakeMap(v.Type())
		elem := reflect.New(v.Type().Elem()).Elem()
		change(elem)
		next.SetMapIndex(reflect.ValueOf("a"), elem)
		v.Set(next)
	case v.Kind() == reflect.Bool:
		v.SetBool(!v.Bool())
	case v.CanInt():
		v.SetInt(v.Int() + 1)
	case v.CanFloat():
		v.SetFloat(v.Float() + 1)
	default:
		v.SetString(v.String() + "-other")
	}
}

// TestDiffOfEntries checks that each entry that comes or goes is one change, whatever the
// lists and their order are.
func TestDiffOfEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching("[a-f]"), 1, 6, rapid.ID)
		before, after := names.Draw(t, "before"), names.Draw(t, "after")
		diff := config.Diff(configOf(before), configOf(after))
		want := 0
		for _, one := range append(append([]string(nil), before...), after...) {
			if strings.Contains(strings.Join(before, ""), one) != strings.Contains(strings.Join(after, ""), one) {
				want++
			}
		}
		got := 0
		for _, c := range diff {
			if c.From == "absent" || c.To == "absent" {
				got++
			}
		}
		assert.Equal(t, want, got, "%v", diff)
		assert.Empty(t, config.Diff(configOf(before), configOf(before)))
	})
}

func configOf(names []string) *config.Config {
	cfg := config.Default()
	for _, name := range names {
		p := anthropic()
		p.Name = name
		cfg.Providers = append(cfg.Providers, p)
	}
	return &cfg
}

// What a reload puts in force differs from what runs in nothing that needs a restart, and
// from the file in nothing else.
func TestAsRunning(t *testing.T) {
	running, next := config.Default(), config.Default()
	next.Server.Listen, next.Server.State, next.Server.StateDir, next.Server.TLS.CertFile = "127.0.0.1:1", config.StateOff, "/elsewhere", "/cert"
	l := &next.Server.Limits
	l.HeaderBytes, l.HeaderTime, l.StreamsPerConnection, l.IdleConnection, l.Requests = 5000, time.Minute, 7, time.Hour, 3
	next.Admin.Listen, next.Admin.PProf, next.Metrics, next.Tracing.Endpoint = "127.0.0.1:2", true, config.MetricsOff, "http://127.0.0.1:4318"
	next.Logging.Format, next.Logging.Level, next.Server.Expose = "console", "debug", false

	put, err := config.AsRunning(&running, &next)
	require.NoError(t, err)
	for _, c := range config.Diff(&running, put) {
		assert.False(t, c.Restart, c.Path)
	}
	left := config.Diff(put, &next)
	assert.NotEmpty(t, left)
	for _, c := range left {
		assert.True(t, c.Restart, c.Path)
	}
	assert.Equal(t, "debug", put.Logging.Level)
	assert.EqualValues(t, 3, put.Server.Limits.Requests)

	// Alone the new file is fine, but the listener stays where others reach it.
	running.Server.Listen, next.Clients = "0.0.0.0:8787", nil
	_, err = config.AsRunning(&running, &next)
	require.ErrorContains(t, err, "server.listen is 0.0.0.0:8787 until the relay is restarted")
	next.Clients = []auth.ClientConfig{{Name: "alice"}}
	_, err = config.AsRunning(&running, &next)
	require.NoError(t, err)
}
