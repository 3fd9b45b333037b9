package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

func TestBaseURL(t *testing.T) {
	const (
		notAbsolute = "not an absolute URL; write https://HOST, with a path prefix if the provider has one"
		userinfo    = "must not hold a user name or password; credentials belong under keys or headers"
		query       = "must not have a query or a fragment; end it before the ? or #"
		messages    = "must end before /v1/messages, which the relay adds"
		plain       = "plain http would send keys and prompts unencrypted; write https://, or set allow_http: true"
		port        = "the port must be a number up to 65535"
	)
	for url, want := range map[string]string{
		"https://api.example.com":           "",
		"https://api.example.com:8443/a/v1": "",
		"HTTPS://api.example.com/":          "",
		"http://localhost:11434":            "",
		"http://127.8.9.1":                  "",
		"http://[::1]:80/x":                 "",
		"http://[::ffff:127.0.0.1]":         "",

		"api.example.com":                      notAbsolute,
		"//api.example.com":                    notAbsolute,
		"/v1":                                  notAbsolute,
		"https:///v1":                          notAbsolute,
		"https://:443":                         notAbsolute,
		"https:api.example.com":                notAbsolute,
		"ftp://api.example.com":                notAbsolute,
		"unix:///run/x.sock":                   notAbsolute,
		"https://api example.com":              notAbsolute,
		"https://api.example.com/a b":          notAbsolute,
		"https://api.example.com/ü":            notAbsolute,
		"https://api.example.com:x":            notAbsolute,
		"https://u:p@api.example.com":          userinfo,
		"https://@api.example.com":             userinfo,
		"https://api.example.com/?":            query,
		"https://api.example.com?a=b":          query,
		"https://api.example.com/#":            query,
		"https://api.example.com/v1/messages":  messages,
		"https://api.example.com/v1/messages/": messages,
		"http://api.example.com":               plain,
		"http://10.0.0.1":                      plain,
		"http://localhost.example.com":         plain,
		"http://0.0.0.0":                       plain,
		"https://api.example.com:65536":        port,
	} {
		t.Run(url, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte("providers: [{ base_url: '"+url+"', keys: [{ key: k }] }]"), environ())
			if want == "" {
				assert.NoError(t, err)
				return
			}
			assert.EqualError(t, err, "c.yaml:1:25: providers[0].base_url: "+want)
		})
	}
}

func TestListenBeyondThisMachineNeedsClients(t *testing.T) {
	const refused = "c.yaml:1:19: server.listen: other machines could spend your keys: no clients are configured; " +
		"add clients, each with a name and a token, or listen on 127.0.0.1:8787"
	for listen, loopback := range map[string]bool{
		"127.0.0.1:0": true, "127.1.2.3:80": true, "[::1]:80": true, "localhost:80": true, "LOCALHOST:80": true, "[::ffff:127.0.0.1]:80": true,
		"0.0.0.0:80": false, "[::]:80": false, ":80": false, "10.0.0.1:80": false, "[::ffff:10.0.0.1]:80": false, "example.com:80": false,
		"localhost.example.com:80": false, "127.1:80": false, "[fe80::1%eth0]:80": false,
	} {
		t.Run(listen, func(t *testing.T) {
			text := "server: { listen: '" + listen + "', insecure_cleartext: true }\n" + ok
			_, err := config.Parse("c.yaml", []byte(text), environ())
			if loopback {
				assert.NoError(t, err)
			} else {
				assert.EqualError(t, err, refused)
			}
			_, err = config.Parse("c.yaml", []byte(text+"clients: [{ name: a, token: a-test-token }]"), environ())
			assert.NoError(t, err, "with a client")
		})
	}
}

func TestKeysMayBeLeftOutForOwnServers(t *testing.T) {
	for name, text := range map[string]string{
		"own server":        "{ base_url: 'http://localhost:8000' }",
		"another provider":  "{ base_url: 'https://llm.example.com' }",
		"credential header": "{ headers: { x-api-key: '${KEY}' } }",
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Parse("c.yaml", []byte("providers: ["+text+"]"), environ("KEY", "k"))
			require.NoError(t, err)
			assert.Empty(t, cfg.Providers[0].PoolConfig().Keys)
		})
	}
}

func TestCAFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	cert, err := os.ReadFile("testdata/ca.pem")
	require.NoError(t, err)
	key := "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	for name, test := range map[string]struct{ path, want string }{
		"a certificate":        {write("a", string(cert)), ""},
		"after other text":     {write("b", "# our CA\n"+key+string(cert)), ""},
		"missing":              {filepath.Join(dir, "none"), "cannot be read: no such file or directory"},
		"a directory":          {dir, "is a directory; name the file in it"},
		"empty":                {write("c", ""), "has no PEM certificate that can be read; name a file with BEGIN CERTIFICATE lines"},
		"a key":                {write("d", key), "has no PEM certificate that can be read; name a file with BEGIN CERTIFICATE lines"},
		"a broken certificate": {write("e", strings.ReplaceAll(string(cert), "MII", "MIJ")), "has no PEM certificate that can be read; name a file with BEGIN CERTIFICATE lines"},
		"another kind of PEM":  {write("g", strings.ReplaceAll(string(cert), "CERTIFICATE", "TRUSTED CERTIFICATE")), "has no PEM certificate that can be read; name a file with BEGIN CERTIFICATE lines"},
		"too large":            {write("f", strings.Repeat("#", 4<<20+1)), "is larger than 4194304 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte("providers: [{ ca_file: '"+test.path+"', keys: [{ key: k }] }]"), environ())
			if test.want == "" {
				assert.NoError(t, err)
				return
			}
			assert.EqualError(t, err, "c.yaml:1:24: providers[0].ca_file: "+test.want)
		})
	}
}

func TestValidate(t *testing.T) {
	cfg, err := config.Parse("c.yaml", []byte(ok), environ())
	require.NoError(t, err)
	require.NoError(t, cfg.Validate())

	cfg.Server.Listen, cfg.Server.InsecureCleartext = ":8787", true
	cfg.Providers[0].Keys[0].Weight = ptr(0)
	assert.EqualError(t, cfg.Validate(), "configuration: server.listen: other machines could spend your keys: no clients are configured; "+
		"add clients, each with a name and a token, or listen on 127.0.0.1:8787\n"+
		"configuration: providers[0].keys[0].weight: 0 is not a weight; write 1 to 1000")

	empty := config.Default()
	var mistake *config.Mistake
	require.True(t, errors.As(empty.Validate(), &mistake))
	assert.Equal(t, "providers", mistake.Path)
}
