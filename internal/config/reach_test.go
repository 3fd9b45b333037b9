package config_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

// A relay is found by a file that no relay would start with, as long as it says where.
func TestLoadListenersMindsNothingElse(t *testing.T) {
	const where = "server: {state_dir: /var/lib/relay}\nadmin: {listen: unix:/run/relay.sock}\n"
	for name, text := range map[string]string{
		"all is well":     where + "providers: [{keys: [{key: sk-ant-test}]}]\n",
		"no variable":     where + "providers: [{keys: [{key: \"${NOBODY_HAS_THIS}\"}]}]\n",
		"unknown field":   where + "serverr: {}\nproviders: []\n",
		"a wrong setting": where + "logging: {level: loud}\nproviders: 7\n",
		"no providers":    where,
	} {
		t.Run(name, func(t *testing.T) {
			server, admin, err := config.LoadListeners(writeFile(t, 0o600, text))
			require.NoError(t, err)
			assert.Equal(t, "/var/lib/relay", server.StateDir)
			assert.Equal(t, "unix:/run/relay.sock", admin.Listen)
		})
	}
	for name, tc := range map[string]struct{ text, want string }{
		"syntax":         {"server: [\n", "config.yaml:"},
		"empty":          {"", "empty"},
		"no variable":    {"admin: {listen: \"${NOBODY_HAS_THIS}\"}\n", "admin.listen: not set in the environment: NOBODY_HAS_THIS"},
		"unknown field":  {"admin: {listn: \"127.0.0.1:1\"}\n", "admin.listn: unknown field"},
		"no address":     {"admin: {listen: here}\n", "admin.listen"},
		"not a path":     {"server: {state_dir: here}\n", "server.state_dir"},
		"not a section":  {"server: 7\n", "server"},
		"no certificate": {"admin: {tls: {cert_file: /none.pem, key_file: /none.key}}\n", "admin.tls.cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := config.LoadListeners(writeFile(t, 0o600, tc.text))
			assert.ErrorContains(t, err, tc.want)
		})
	}
	_, _, err := config.LoadListeners("/none/config.yaml")
	assert.ErrorContains(t, err, "/none/config.yaml: cannot be read")
}
