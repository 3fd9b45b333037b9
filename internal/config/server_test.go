package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

// certificate writes a certificate and its private key, and returns their files.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"relay.example.com"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return certFile, keyFile
}

func TestTLSFiles(t *testing.T) {
	cert, key := certificate(t)
	_, other := certificate(t)
	loose := filepath.Join(t.TempDir(), "loose")
	copyFile(t, key, loose, 0o640)
	const noCertificate = "has no PEM certificate that can be read; name a file with BEGIN CERTIFICATE lines"
	const noKey = "is not the key of the certificate in cert_file; name its private key, as unencrypted PEM, and put that certificate first"
	for name, test := range map[string]struct {
		cert, key string
		want      []string
	}{
		"a pair":            {cert, key, nil},
		"neither":           {"", "", nil},
		"no key":            {cert, "", []string{"1:11: SECTION.tls.key_file: missing; write both cert_file and key_file"}},
		"no certificate":    {"", key, []string{"1:18: SECTION.tls.cert_file: missing; write both cert_file and key_file"}},
		"another key":       {cert, other, []string{"KEY: SECTION.tls.key_file: " + noKey}},
		"no key in it":      {cert, other + "x", []string{"KEY: SECTION.tls.key_file: cannot be read: no such file or directory"}},
		"a directory":       {filepath.Dir(cert), key, []string{"1:29: SECTION.tls.cert_file: is a directory; name the file in it"}},
		"a readable key":    {cert, loose, []string{"KEY: SECTION.tls.key_file: may be used by other users (mode 0640); run: chmod 600 on it"}},
		"the wrong way":     {key, cert, []string{"1:29: SECTION.tls.cert_file: " + noCertificate, "KEY: SECTION.tls.key_file: may be used by other users (mode 0644); run: chmod 600 on it"}},
		"a file for both":   {cert, cert, []string{"KEY: SECTION.tls.key_file: may be used by other users (mode 0644); run: chmod 600 on it"}},
		"an unknown device": {os.DevNull, os.DevNull, []string{"1:29: SECTION.tls.cert_file: is not a regular file; pipes and devices are not read", "KEY: SECTION.tls.key_file: is not a regular file; pipes and devices are not read"}},
	} {
		for _, section := range []string{"server", "admin"} {
			t.Run(section+" "+name, func(t *testing.T) {
				text := section + ": " + strings.Repeat(" ", len("server")-len(section)) + "{ tls: { cert_file: '" + test.cert + "', key_file: '" + test.key + "' } }\n" + ok
				_, err := config.Parse("c.yaml", []byte(text), environ())
				if test.want == nil {
					assert.NoError(t, err)
					return
				}
				require.Error(t, err)
				for i, line := range strings.Split(err.Error(), "\n") {
					_, want, _ := strings.Cut(strings.ReplaceAll(test.want[i], "SECTION", section), ": ")
					assert.True(t, strings.HasSuffix(line, ": "+want), "got %q, want %q at its end", line, want)
				}
				assert.Len(t, strings.Split(err.Error(), "\n"), len(test.want))
			})
		}
	}
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	data, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, data, mode))
	require.NoError(t, os.Chmod(to, mode))
}

func TestAdminAddress(t *testing.T) {
	for listen, want := range map[string][2]string{
		"":               {"", ""},
		"off":            {"", ""},
		"127.0.0.1:8788": {"tcp", "127.0.0.1:8788"},
		"unix:/run/a":    {"unix", "/run/a"},
	} {
		network, address := config.Admin{Listen: listen}.Address()
		assert.Equal(t, want, [2]string{network, address}, listen)
	}
}

func TestAdminIsOffWhereTheStateIs(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "127.0.0.1:8788",
		"admin: { listen: '' }":  "127.0.0.1:8788",
		"server: { state: off }": "off",
		"server: { state: off }\nadmin: { listen: ~ }":                    "off",
		"server: { state: off }\nadmin: { listen: '', pprof: true }":      "off",
		"server: { state: off }\nadmin: { listen: off }":                  "off",
		"server: { state: off, listen: 127.0.0.1:8788 }":                  "off",
		"admin: { listen: 'unix:/run/cc-relay/admin.sock' }":              "unix:/run/cc-relay/admin.sock",
		"server: { listen: 127.0.0.1:0 }\nadmin: { listen: localhost:0 }": "localhost:0",
	} {
		cfg, err := config.Parse("c.yaml", []byte(ok+text), environ())
		require.NoError(t, err, text)
		assert.Equal(t, want, cfg.Admin.Listen, text)
	}
}

func TestServerMistakes(t *testing.T) {
	const state = "its tokens are kept with the state, and server.state is off; write off, or turn the state on"
	const origin = "not an origin; write SCHEME://HOST or SCHEME://HOST:PORT, such as https://app.example.com"
	const host = "not a host; write its name or IP address, without a scheme and a port"
	const socket = "not a path for a socket; write an absolute one of at most 103 bytes after unix:"
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"state off, admin on":            {"server: { state: off }\nadmin: { listen: 127.0.0.1:1 }", []string{"3:18: admin.listen: " + state}},
		"state off, a socket":            {"server: { state: off }\nadmin: { listen: 'unix:/a' }", []string{"3:18: admin.listen: " + state}},
		"the same port":                  {"server: { listen: '[::1]:99' }\nadmin: { listen: 127.0.0.1:099 }", []string{"3:18: admin.listen: same port as server.listen; choose another, such as 127.0.0.1:8788, or write off"}},
		"admin's default port":           {"server: { listen: 127.0.0.1:8788 }", []string{"admin.listen: same port as server.listen; choose another, such as 127.0.0.1:8788, or write off"}},
		"no address":                     {"admin: { listen: 8788 }", []string{"2:18: admin.listen: not an address; write HOST:PORT, such as 127.0.0.1:8788, unix:/PATH, or off"}},
		"a port out of range":            {"admin: { listen: 'localhost:65536' }", []string{"2:18: admin.listen: the port must be a number from 0 to 65535"}},
		"a relative socket":              {"admin: { listen: 'unix:run/a' }", []string{"2:18: admin.listen: " + socket}},
		"a long socket":                  {"admin: { listen: 'unix:/" + strings.Repeat("a", 103) + "' }", []string{"2:18: admin.listen: " + socket}},
		"TLS on a socket":                {"admin: { listen: 'unix:/a', tls: { cert_file: a } }", []string{"2:29: admin.tls: a unix socket has no use for it; remove it, or listen on HOST:PORT"}},
		"hosts":                          {"server: { allowed_hosts: ['a:1', 'https://a', '*.a', '', a, A, '[::1]'] }", []string{"2:27: server.allowed_hosts[0]: " + host, "2:34: server.allowed_hosts[1]: " + host, "2:47: server.allowed_hosts[2]: " + host, "2:54: server.allowed_hosts[3]: " + host, "2:61: server.allowed_hosts[5]: same as server.allowed_hosts[4]; remove one", "2:64: server.allowed_hosts[6]: " + host}},
		"admin's hosts":                  {"admin: { allowed_hosts: ['a/b'] }", []string{"2:26: admin.allowed_hosts[0]: " + host}},
		"origins":                        {"server: { allowed_origins: [a, 'https://a/', 'https://a?b', 'https://u@a', 'https://*', 'https://A', 'null'] }", []string{"2:29: server.allowed_origins[0]: " + origin, "2:32: server.allowed_origins[1]: " + origin, "2:46: server.allowed_origins[2]: " + origin, "2:61: server.allowed_origins[3]: " + origin, "2:76: server.allowed_origins[4]: " + origin, "2:89: server.allowed_origins[5]: browsers send origins in lower case; write it so", "2:102: server.allowed_origins[6]: " + origin}},
		"metrics":                        {"metrics: offf", []string{"2:10: metrics: unknown; did you mean off?"}},
		"share":                          {"tracing: { sample: 1.01 }", []string{"2:20: tracing.sample: not a share; write 0 (none) to 1 (all)"}},
		"negative share":                 {"tracing: { sample: -0.5 }", []string{"2:20: tracing.sample: not a share; write 0 (none) to 1 (all)"}},
		"endpoint":                       {"tracing: { endpoint: 'localhost:4318' }", []string{"2:22: tracing.endpoint: not an absolute URL; write that of an OTLP receiver, such as http://127.0.0.1:4318/v1/traces"}},
		"endpoint with a name":           {"tracing: { endpoint: 'https://u:p@a' }", []string{"2:22: tracing.endpoint: must not hold a user name or password; credentials belong under headers"}},
		"endpoint with a query":          {"tracing: { endpoint: 'https://a/?k=v' }", []string{"2:22: tracing.endpoint: must not have a query or a fragment; end it before the ? or #"}},
		"headers that the exporter sets": {"tracing: { endpoint: 'https://a', headers: { content-type: a, x: '' } }", []string{"2:60: tracing.headers.content-type: is set by the relay; remove it", "2:66: tracing.headers.x: is empty; write its value, or remove it"}},
		"a credential in clear":          {"tracing: { endpoint: 'http://collector.internal:4318', headers: { authorization: a } }", []string{"2:82: tracing.headers.authorization: would cross the network in clear; make tracing.endpoint https, or use a collector on this machine"}},
		"tracing headers":                {"tracing: { headers: { Host: a, 'x y': b, x: \"a\\n\" } }", []string{"2:29: tracing.headers.Host: is set by the relay or the connection; remove it", "2:39: tracing.headers: not a header name; write letters, digits and -", "2:45: tracing.headers.x: has a line break or a control character; remove it"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte(ok+test.text), environ())
			require.Error(t, err)
			var want []string
			for _, line := range test.want {
				separator := ":"
				if line[0] > '9' {
					separator = ": "
				}
				want = append(want, "c.yaml"+separator+line)
			}
			assert.Equal(t, strings.Join(want, "\n"), err.Error())
		})
	}
}
