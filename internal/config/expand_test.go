package config_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

// TestExpansion reads a header, which is any text, so that only expansion decides.
func TestExpansion(t *testing.T) {
	env := environ("A", "one", "B_2", "two", "EMPTY", "", "DOLLAR", "$A ${A} $$", "YAML", `", x: [y] # {`, "lower", "case")
	for written, want := range map[string]string{
		`plain`:                   `plain`,
		`${A}`:                    `one`,
		`${A}${B_2}`:              `onetwo`,
		`<${A}>${B_2}.`:           `<one>two.`,
		`${lower}`:                `case`,
		`${EMPTY}`:                ``,
		`${EMPTY:-x}`:             `x`,
		`${UNSET:-x y:-z}`:        `x y:-z`,
		`${UNSET:-}`:              ``,
		`${UNSET:-${A}`:           `${A`,
		`${A:-x}`:                 `one`,
		`$$`:                      `$`,
		`$${A}`:                   `${A}`,
		`$$${A}`:                  `$one`,
		`$A`:                      `$A`,
		`a$`:                      `a$`,
		`$ {A}`:                   `$ {A}`,
		`${DOLLAR}`:               `$A ${A} $$`,
		`${YAML}`:                 `", x: [y] # {`,
		`Bearer ${A}`:             `Bearer one`,
		`{A}}`:                    `{A}}`,
		`price: $5, "100$$" a$$b`: `price: $5, "100$" a$b`,
	} {
		t.Run(written, func(t *testing.T) {
			for _, text := range []string{"'" + written + "'", ">-\n      " + written} {
				text = "providers:\n- keys: [{ key: k }]\n  headers:\n    x-a: " + text + "\n"
				cfg, err := config.Parse("c.yaml", []byte(text), env)
				require.NoError(t, err, text)
				assert.Equal(t, want, cfg.Providers[0].Headers["x-a"].Reveal())
				assert.Len(t, cfg.Providers[0].Headers, 1)
			}
		})
	}
}

func TestExpansionOfTypedValues(t *testing.T) {
	cfg, err := config.Parse("c.yaml", []byte(`
server: { listen: "${HOST:-127.0.0.1}:${PORT}", drain_timeout: "${N}s", expose: "${NO}", max_body_bytes: "${N}0" }
providers:
- name: ${NAME}
  keys:
  - key: ${KEY}
    rpm_limit: ${N}
    priority: ${PRIORITY:-2}
    weight: "${N}"
`), environ("PORT", "80", "N", "7", "NO", "false", "NAME", "null", "KEY", "0x10"))
	require.NoError(t, err)
	want := config.Default()
	want.Server = config.Server{Listen: "127.0.0.1:80", DrainTimeout: 7 * time.Second, MaxBodyBytes: 70, State: "on", Limits: want.Server.Limits}
	assert.Equal(t, want.Server, cfg.Server)
	key := cfg.Providers[0].Keys[0]
	assert.Equal(t, "null", cfg.Providers[0].Name)
	assert.Equal(t, "0x10", key.Key.Reveal())
	assert.Equal(t, 7, key.RPMLimit)
	assert.Equal(t, ptr(2), key.Priority)
	assert.Equal(t, ptr(7), key.Weight)
}

// A name is not expanded, so no variable decides which setting is written.
func TestNamesAreNotExpanded(t *testing.T) {
	_, err := config.Parse("c.yaml", []byte(ok+`"${A}": { listen: "127.0.0.1:1" }`), environ("A", "server"))
	assert.EqualError(t, err, "c.yaml:2:1: unknown field; known here: server, admin, clients, logging, metrics, tracing, routing, models, aliases, prices, passthrough, classes, providers")
}
