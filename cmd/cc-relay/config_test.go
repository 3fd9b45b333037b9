package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/secret"
)

func TestConfigInitWritesAFileThatLoads(t *testing.T) {
	unconfigured(t)
	code, stdout, stderr := command(t, "config", "init")
	require.Zero(t, code, stderr)
	assert.Contains(t, stdout, "wrote config.yaml and, for editors, config.schema.json;")
	assert.Contains(t, stdout, "cc-relay serve --config config.yaml")

	got, err := os.ReadFile("config.yaml")
	require.NoError(t, err)
	assert.Equal(t, string(config.Example()), string(got))
	info, err := os.Stat("config.yaml")
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "the file is a place for keys")

	schema, err := os.ReadFile("config.schema.json")
	require.NoError(t, err)
	assert.Equal(t, string(config.Schema()), string(schema))
	first, _, _ := strings.Cut(string(got), "\n")
	assert.Equal(t, "# yaml-language-server: $schema=./config.schema.json", first)

	t.Setenv("ANTHROPIC_API_KEY", "sk-ant-test")
	code, stdout, stderr = command(t, "config", "validate")
	assert.Zero(t, code, stderr)
	assert.Equal(t, "config.yaml is valid: 1 provider(s), 1 key(s), 0 client(s)\n", stdout)
}

func TestConfigInitNeverOverwrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mine.yaml")
	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	code, stdout, stderr := command(t, "config", "init", "--output", path)
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Equal(t, "cc-relay: "+path+" exists; choose another file with --output\n", stderr)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(got))
}

func TestConfigInitLeavesASchemaAlone(t *testing.T) {
	unconfigured(t)
	require.NoError(t, os.WriteFile("config.schema.json", []byte("mine"), 0o600))
	code, stdout, stderr := command(t, "config", "init")
	require.Zero(t, code, stderr)
	assert.Contains(t, stdout, "wrote config.yaml;")
	got, err := os.ReadFile("config.schema.json")
	require.NoError(t, err)
	assert.Equal(t, "mine", string(got))
}

func TestConfigInitWritesNoTOML(t *testing.T) {
	unconfigured(t)
	code, _, stderr := command(t, "config", "init", "-o", "config.toml")
	assert.Equal(t, 1, code)
	assert.Equal(t, "cc-relay: the commented configuration is YAML; choose another name than config.toml, such as config.yaml\n", stderr)
	assert.NoFileExists(t, "config.toml")
}

func TestConfigSchema(t *testing.T) {
	code, stdout, stderr := command(t, "config", "schema")
	assert.Zero(t, code, stderr)
	assert.Equal(t, string(config.Schema()), stdout)
}

func TestConfigDiff(t *testing.T) {
	t.Setenv("SECOND_KEY", "sk-ant-two-0123456789")
	old := writeConfig(t, secretive)
	code, stdout, stderr := command(t, "config", "diff", old, old)
	assert.Zero(t, code, stderr)
	assert.Equal(t, "no change\n", stdout)

	changed := filepath.Join(t.TempDir(), "config.toml")
	require.NoError(t, os.WriteFile(changed, []byte(`
server.listen = "127.0.0.1:1"
clients = [{ name = "anna", token = "token-of-anna-other" }]
[[providers]]
base_url = "https://api.example.com"
headers.x-gateway = "header-secret-0123456789"
keys = [{ key = "sk-ant-one-0123456789" }]
`), 0o600))
	code, stdout, stderr = command(t, "config", "diff", old, changed)
	assert.Zero(t, code, stderr)
	assert.Equal(t, "server.listen: 127.0.0.1:8787 -> 127.0.0.1:1  (needs a restart)\n"+
		"clients[anna].token: [redacted] -> [redacted]\n"+
		"providers[anthropic].keys["+secret.New("sk-ant-two-0123456789").Fingerprint()+"]: present -> absent\n", stdout)

	code, stdout, stderr = command(t, "config", "diff", old, "none.yaml")
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "none.yaml: cannot be read")

	for _, args := range [][]string{{old}, {old, changed, old}, {old, changed, "--admin", "http://127.0.0.1:1"}} {
		code, stdout, stderr = command(t, append([]string{"config", "diff"}, args...)...)
		assert.Equal(t, 1, code)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, "running relay")
	}
}

func TestConfigInitToStandardOutput(t *testing.T) {
	unconfigured(t)
	code, stdout, stderr := command(t, "config", "init", "-o", "-")
	assert.Zero(t, code, stderr)
	assert.Equal(t, string(config.Example()), stdout)
	left, err := os.ReadDir(".")
	require.NoError(t, err)
	assert.Empty(t, left)
}

const secretive = `
clients:
  - {name: anna, token: token-of-anna-0123456789}
providers:
  - base_url: https://api.example.com
    headers: {x-gateway: header-secret-0123456789}
    keys:
      - {key: sk-ant-one-0123456789}
      - {key: "${SECOND_KEY}"}
`

var secretsOfSecretive = []string{"token-of-anna", "header-secret", "sk-ant-one", "sk-ant-two"}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestConfigShowRedactsSecrets(t *testing.T) {
	t.Setenv("SECOND_KEY", "sk-ant-two-0123456789")
	path := writeConfig(t, secretive)
	code, stdout, stderr := command(t, "config", "show", "--config", path)
	require.Zero(t, code, stderr)
	for _, secret := range secretsOfSecretive {
		assert.NotContains(t, stdout, secret)
	}
	for _, shown := range []string{"anna", "https://api.example.com", "x-gateway", "drain_timeout: 10m0s"} {
		assert.Contains(t, stdout, shown)
	}
	code, stdout, _ = command(t, "config", "validate", "--config", path)
	assert.Zero(t, code)
	assert.Equal(t, path+" is valid: 1 provider(s), 2 key(s), 1 client(s)\n", stdout)
}

func TestConfigFromTheEnvironment(t *testing.T) {
	unconfigured(t)
	t.Setenv("ANTHROPIC_API_KEYS", "sk-ant-one, sk-ant-two")
	t.Setenv("ANTHROPIC_API_KEY", "sk-ant-three")
	code, stdout, stderr := command(t, "config", "validate")
	assert.Zero(t, code, stderr)
	assert.Equal(t, "environment is valid: 1 provider(s), 3 key(s), 0 client(s)\n", stdout)
	code, stdout, _ = command(t, "config", "show")
	assert.Zero(t, code)
	assert.NotContains(t, stdout, "sk-ant-")
}

func TestConfigMistakesAreReportedTogether(t *testing.T) {
	t.Setenv("SECOND_KEY", "sk-ant-two-0123456789")
	path := writeConfig(t, secretive+"logging: {level: loud}\nserver: {drain_timeout: -1s}\n")
	for _, name := range []string{"validate", "show"} {
		code, stdout, stderr := command(t, "config", name, "--config", path)
		assert.Equal(t, 1, code, name)
		assert.Empty(t, stdout, name)
		assert.Contains(t, stderr, "logging.level", name)
		assert.Contains(t, stderr, "server.drain_timeout", name)
		for _, secret := range secretsOfSecretive {
			assert.NotContains(t, stderr, secret, name)
		}
	}
}
