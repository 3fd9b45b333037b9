package config_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

// TestFault loads files that are wrong, as at the start (F02) and at a reload (F01): an
// error with the place, no configuration, and no secret in what is printed.
func TestFault(t *testing.T) {
	const providers = "providers: [{ keys: [{ key: " + canary + " }] }]\n"
	const table = "[[providers]]\nkeys = [{ key = '" + canary + "' }]\n"
	for name, test := range map[string]struct{ file, text, want string }{
		"F01 F02 syntax error":             {"c.yaml", providers + "server: { listen: [", "c.yaml:2:19: "},
		"F01 F02 syntax error in TOML":     {"c.toml", table + "[server\n", "c.toml:3:8: "},
		"F01 F02 unknown field":            {"c.yaml", providers + "sevrer: {}\n", "c.yaml:2:1: sevrer: unknown field; did you mean server?"},
		"F01 F02 unknown field in TOML":    {"c.toml", table + "[sevrer]\n", "c.toml:3:2: sevrer: unknown field; did you mean server?"},
		"F01 F02 wrong type":               {"c.yaml", providers + "server: [" + canary + "]\n", "c.yaml:2:1: server: must be a mapping"},
		"F01 F02 wrong type in TOML":       {"c.toml", "server = ['" + canary + "']\n" + table, "c.toml:1:1: server: must be a table"},
		"F01 F02 empty file":               {"c.yaml", "", "c.yaml: empty; write at least: providers:"},
		"F01 F02 empty TOML":               {"c.toml", "", "c.toml: empty; write at least: providers ="},
		"F01 F02 truncated in a word":      {"c.yaml", providers[:len(providers)-8], "c.yaml:1:22: not valid YAML"},
		"F01 F02 truncated in a name":      {"c.yaml", providers + "server:\n  list", "c.yaml:3:3: server: must be a mapping"},
		"F01 F02 truncated TOML":           {"c.toml", table[:len(table)-8], "c.toml:2:"},
		"F01 F02 truncated before a value": {"c.toml", table + "[server]\nlisten = ", "c.toml:4:9: not valid TOML: expected value"},
		"F08 the same key twice":           {"c.yaml", "providers: [{ keys: [{ key: " + canary + " }, { key: " + canary + " }] }]", "c.yaml:1:75: providers[0].keys[1].key: same key as providers[0].keys[0].key; remove one"},
		"F08 in two providers":             {"c.yaml", "providers: [{ keys: [{ key: " + canary + " }] }, { name: b, keys: [{ key: " + canary + " }] }]", "c.yaml:1:96: providers[1].keys[0].key: same key as providers[0].keys[0].key; remove one"},
		"F08 zero keys":                    {"c.yaml", "providers: [{ keys: [] }]", "c.yaml:1:15: providers[0].keys: none, but https://api.anthropic.com asks for one"},
		"F08 no providers":                 {"c.yaml", "providers: []", "c.yaml:1:1: providers: none; write at least"},
		"F08 a negative limit":             {"c.yaml", "providers: [{ keys: [{ key: " + canary + ", rpm_limit: -1 }] }]", "providers[0].keys[0].rpm_limit: -1 is not a limit; write 0 (not known) to 1000000000 a minute"},
		"F08 a limit that overflows":       {"c.yaml", "providers: [{ keys: [{ key: " + canary + ", itpm_limit: 9223372036854775808 }] }]", "providers[0].keys[0].itpm_limit: too large a number"},
		"F08 a limit in the exponent":      {"c.yaml", "providers: [{ keys: [{ key: " + canary + ", otpm_limit: 1e99 }] }]", "providers[0].keys[0].otpm_limit: not a whole number; write digits only"},
		"F08 a weight of zero":             {"c.yaml", "providers: [{ keys: [{ key: " + canary + ", weight: 0 }] }]", "providers[0].keys[0].weight: 0 is not a weight; write 1 to 1000"},
		"F08 a body of zero":               {"c.yaml", providers + "server: { max_body_bytes: 0 }", "c.yaml:2:27: server.max_body_bytes: 0 is not a size; write 1 to 1073741824 bytes"},
		"F08 a time of zero":               {"c.yaml", providers + "server: { drain_timeout: 0s }", "c.yaml:2:26: server.drain_timeout: 0s is no time"},
		"F08 a time that overflows":        {"c.yaml", providers + "server: { drain_timeout: 9999999h }", "c.yaml:2:26: server.drain_timeout: not a duration"},
		"F08 aliases in a circle":          {"c.yaml", providers + "aliases: { a: b, b: c, c: a }", "c.yaml:2:15: aliases.a: a cycle, a → b → c → a; let one of them name a model"},
		"F08 an alias of itself":           {"c.yaml", providers + "aliases: { a: a }", "c.yaml:2:15: aliases.a: a cycle, a → a; let one of them name a model"},
		"F08 a base URL with a name":       {"c.yaml", "providers: [{ base_url: 'https://user:" + canary + "@a' }]", "c.yaml:1:25: providers[0].base_url: must not hold a user name or password"},
		"F08 a base URL with a query":      {"c.yaml", "providers: [{ base_url: 'https://a/?key=" + canary + "' }]", "c.yaml:1:25: providers[0].base_url: must not have a query or a fragment"},
		"F08 plain http to another":        {"c.yaml", "providers: [{ base_url: 'http://10.0.0.1' }]", "c.yaml:1:25: providers[0].base_url: plain http would send keys and prompts unencrypted; write https://, or set allow_http: true"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), test.file)
			require.NoError(t, os.WriteFile(path, []byte(test.text), 0o600))
			cfg, err := config.Load(path)
			require.Error(t, err)
			assert.Nil(t, cfg)
			assert.False(t, holdsCanary(err), "%v", err)
			first, _, _ := strings.Cut(err.Error(), "\n")
			assert.Contains(t, first, test.want)
		})
	}
}

// TestFaultFiles holds each file that is read against what is not to be read: it must
// be refused, and a pipe must not be waited for.
func TestFaultFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t)
	pipe := filepath.Join(dir, "pipe.yaml")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	loop := filepath.Join(dir, "loop")
	require.NoError(t, os.Symlink(loop, loop))
	readable := func(from string) string {
		to := filepath.Join(t.TempDir(), "readable")
		copyFile(t, from, to, 0o644)
		return to
	}
	const providers = "providers: [{ keys: [{ key: '${KEY}' }], ca_file: 'CA' }]\n"
	t.Setenv("KEY", "sk-ant-1")
	with := func(text, name, value string) string {
		text = strings.ReplaceAll(text, name, value)
		return writeFile(t, 0o600, strings.NewReplacer("CERT", cert, "KEYFILE", key, "CA", cert).Replace(text))
	}
	const tls = "server: { tls: { cert_file: 'CERT', key_file: 'KEYFILE' } }\n"
	for path, file := range map[string]func(string) string{
		"":                     func(file string) string { return file },
		"server.tls.cert_file": func(file string) string { return with(providers+tls, "CERT", file) },
		"server.tls.key_file":  func(file string) string { return with(providers+tls, "KEYFILE", file) },
		"admin.tls.key_file":   func(file string) string { return with(providers+"admin"+tls[len("server"):], "KEYFILE", file) },
		"providers[0].ca_file": func(file string) string { return with(providers, "CA", file) },
		"prices":               func(file string) string { return with(providers+"prices: 'PRICES'\n", "PRICES", file) },
	} {
		for name, test := range map[string]struct{ file, want string }{
			"missing":      {filepath.Join(dir, "none"), "cannot be read: no such file or directory"},
			"a directory":  {dir, "is a directory; name the file in it"},
			"a pipe":       {pipe, "is not a regular file; pipes and devices are not read"},
			"a device":     {os.DevNull, "is not a regular file; pipes and devices are not read"},
			"a circle":     {loop, "cannot be read: too many levels of symbolic links"},
			"below a file": {filepath.Join(cert, "x"), "cannot be read: not a directory"},
		} {
			t.Run("F07 F09 "+path+" "+name, func(t *testing.T) {
				cfg, err := config.Load(file(test.file))
				require.Error(t, err)
				assert.Nil(t, cfg)
				assert.Contains(t, err.Error(), path+": "+test.want)
			})
		}
	}
	t.Run("F07 private key that others may read", func(t *testing.T) {
		_, err := config.Load(with(providers+tls, "KEYFILE", readable(key)))
		require.Error(t, err)
		assert.Contains(t, err.Error(), "server.tls.key_file: may be used by other users (mode 0644); run: chmod 600 on it")
	})
	t.Run("F07 keys that others may read", func(t *testing.T) {
		for _, mode := range []fs.FileMode{0o640, 0o604, 0o644} {
			_, err := config.Load(writeFile(t, mode, ok))
			require.Error(t, err)
			assert.Contains(t, err.Error(), "written out in a file that other users may read")
		}
	})
	t.Run("F07 as it should be", func(t *testing.T) {
		_, err := config.Load(with(providers+tls, "PRICES", ""))
		assert.NoError(t, err)
	})
}

// TestFaultListen holds listeners that other machines reach against what they ask for.
func TestFaultListen(t *testing.T) {
	cert, key := certificate(t)
	pair := "tls: { cert_file: '" + cert + "', key_file: '" + key + "' }"
	const clients = "clients: [{ name: a, token: a-test-token }]\n"
	const noClients = "c.yaml:2:19: server.listen: other machines could spend your keys: no clients are configured; " +
		"add clients, each with a name and a token, or listen on 127.0.0.1:8787"
	const cleartext = "and other machines reach SECTION.listen: tokens and prompts would cross the network unencrypted; " +
		"write cert_file and key_file, or set SECTION.insecure_cleartext: true where something before the relay encrypts"
	serverClear := "c.yaml:2:1: server.tls: none, " + strings.ReplaceAll(cleartext, "SECTION", "server")
	adminClear := "c.yaml:2:1: admin.tls: none, " + strings.ReplaceAll(cleartext, "SECTION", "admin")
	for name, test := range map[string]struct{ text, want string }{
		"loopback":                   {"server: { listen: 127.0.0.1:0 }\n", ""},
		"neither clients nor TLS":    {"server: { listen: 0.0.0.0:0 }\n", serverClear + "\n" + noClients},
		"no clients":                 {"server: { listen: 0.0.0.0:0, insecure_cleartext: true }\n", noClients},
		"no TLS":                     {"server: { listen: 0.0.0.0:0 }\n" + clients, serverClear},
		"no, in so many words":       {"server: { listen: '[::]:0', insecure_cleartext: false }\n" + clients, serverClear},
		"TLS and clients":            {"server: { listen: ':0', " + pair + " }\n" + clients, ""},
		"admitted and clients":       {"server: { listen: 10.0.0.1:0, insecure_cleartext: true }\n" + clients, ""},
		"admin on loopback":          {"admin: { listen: '[::1]:0' }\n", ""},
		"admin without TLS":          {"admin: { listen: 0.0.0.0:0 }\n", adminClear},
		"admin, the server admitted": {"admin: { listen: relay:0 }\nserver: { insecure_cleartext: true }\n", adminClear},
		"admin with TLS":             {"admin: { listen: 0.0.0.0:0, " + pair + " }\n", ""},
		"admin admitted":             {"admin: { listen: 0.0.0.0:0, insecure_cleartext: true }\n", ""},
		"admin on a socket":          {"admin: { listen: 'unix:/a' }\n", ""},
		"admin off":                  {"admin: { listen: off }\n", ""},
	} {
		t.Run("F10 "+name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte(ok+test.text), environ())
			if test.want == "" {
				assert.NoError(t, err)
				return
			}
			assert.EqualError(t, err, test.want)
		})
	}
}
