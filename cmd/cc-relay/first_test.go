package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

// startFails runs cc-relay serve, which must end by itself, and returns all that it
// said. It is asked to listen where the test does already: a relay that opens a
// listener before it has looked at its configuration complains of that instead. It must
// leave nothing behind.
func startFails(t *testing.T, args ...string) string {
	t.Helper()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], append([]string{"serve", "--listen", taken.Addr().String(), "--admin-listen", "127.0.0.1:0"}, args...)...)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{asRelay + "=1", "HOME=" + cmd.Dir}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit), "it did not fail: %v\n%s", err, out)
	assert.Equal(t, 1, exit.ExitCode(), "%s", out)
	assert.NotContains(t, string(out), "in use", "it opened a listener first")
	assert.NotContains(t, string(out), "relay serves")
	left, err := os.ReadDir(cmd.Dir)
	require.NoError(t, err)
	assert.Empty(t, left, "files of a relay that never ran")
	return string(out)
}

// testBadFirstFile: a relay does not start with a file that it cannot use, and says
// where it is wrong, without a secret of it.
func testBadFirstFile(t *testing.T) {
	const key, token = "sk-ant-first-start-000001", "token-of-first-start-1234"
	good := "clients: [{name: ann, token: \"" + token + "\"}]\nproviders:\n  - base_url: https://api.example.com\n    keys:\n      - {key: \"" + key + "\"}\n"
	for name, tt := range map[string]struct {
		file, text string
		says       []string
	}{
		"syntax":              {"relay.yaml", good + "server: [\n", []string{"relay.yaml:6:"}},
		"unknown field":       {"relay.yaml", good + "serverr: {}\n", []string{"relay.yaml:6:1: serverr: unknown field; did you mean server?"}},
		"wrong type":          {"relay.yaml", good + "server: 7\n", []string{"relay.yaml:6:"}},
		"wrong value":         {"relay.yaml", good + "logging:\n  level: loud\n", []string{"relay.yaml:7:10: logging.level"}},
		"several":             {"relay.yaml", good + "logging: {level: loud}\nmetrics: maybe\n", []string{"relay.yaml:6:", "relay.yaml:7:"}},
		"empty":               {"relay.yaml", "", []string{"relay.yaml: empty"}},
		"cut short":           {"relay.yaml", good[:len(good)-4], []string{"relay.yaml:5:"}},
		"cut between lines":   {"relay.yaml", good[:strings.Index(good, "    keys")] + "    k", []string{"relay.yaml:4:"}},
		"a key twice":         {"relay.yaml", good + "      - {key: \"" + key + "\"}\n", []string{"relay.yaml:6:", "keys[1]"}},
		"a key for a name":    {"relay.yaml", good + key + ": 1\n", []string{"relay.yaml:6:"}},
		"a key for a list":    {"relay.yaml", "providers: " + key + "\n", []string{"relay.yaml:1:"}},
		"an unset variable":   {"relay.yaml", strings.Replace(good, key, "${NOBODY_HAS_THIS}", 1), []string{"relay.yaml:5:", "not set in the environment: NOBODY_HAS_THIS"}},
		"syntax of TOML":      {"relay.toml", "metrics = \"on\"\n[server\n", []string{"relay.toml:2:"}},
		"wrong value in TOML": {"relay.toml", "[[providers]]\nkeys = [{ key = \"" + key + "\", priority = 9 }]\n", []string{"relay.toml:2:", "priority"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), tt.file)
			require.NoError(t, os.WriteFile(file, []byte(tt.text), 0o600))
			said := startFails(t, "--config", file)
			for _, want := range tt.says {
				assert.Contains(t, said, want)
			}
			assert.NotContains(t, said, key)
			assert.NotContains(t, said, token)
		})
	}
	t.Run("readable by others", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "relay.yaml")
		require.NoError(t, os.WriteFile(file, []byte(good), 0o600))
		require.NoError(t, os.Chmod(file, 0o644))
		said := startFails(t, "--config", file)
		assert.Contains(t, said, "chmod 600 "+file)
		assert.NotContains(t, said, key)
	})
}

// testOpenListeners: other machines reach no listener without tokens of clients, and
// none without TLS, unless the configuration says that something else encrypts.
func testOpenListeners(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	free := l.Addr().String()
	const providers = "providers: [{keys: [{key: sk-ant-open-000001}]}]\n"
	const clients = "clients: [{name: ann, token: \"" + annToken + "\"}]\n"
	for name, tt := range map[string]struct {
		text string
		args []string
		says string // "": it starts
	}{
		"no clients":               {providers, []string{"--listen", "0.0.0.0:0"}, "no clients are configured"},
		"no clients, every IP":     {providers, []string{"--listen", ":0"}, "no clients are configured"},
		"no clients, IPv6":         {providers, []string{"--listen", "[::]:0"}, "no clients are configured"},
		"no clients, in clear":     {providers + "server: {insecure_cleartext: true}\n", []string{"--listen", "0.0.0.0:0"}, "no clients are configured"},
		"no TLS":                   {providers + clients, []string{"--listen", "0.0.0.0:0"}, "server.tls: none"},
		"in clear, on purpose":     {providers + clients + "server: {insecure_cleartext: true, allowed_hosts: [relay.example.com]}\n", []string{"--listen", "0.0.0.0:0"}, ""},
		"admin without TLS":        {providers + clients, []string{"--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0"}, "admin.tls: none"},
		"admin, with server's way": {providers + clients + "server: {insecure_cleartext: true}\n", []string{"--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0"}, "admin.tls: none"},
		"one where the other was":  {providers + "admin: {listen: \"" + free + "\"}\n", []string{"--listen", free, "--admin-listen", "127.0.0.1:0"}, ""},
		"both at one place":        {providers, []string{"--listen", "127.0.0.1:8799", "--admin-listen", "127.0.0.1:8799"}, "--listen 127.0.0.1:8799 --admin-listen 127.0.0.1:8799: "},
		"admin, in clear":          {providers + "admin: {insecure_cleartext: true}\n", []string{"--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--config", writeConfig(t, tt.text)}, tt.args...)
			if tt.says == "" {
				p := startServe(t, nil, args...)
				p.signal()
				p.endsWell()
				return
			}
			said := startFails(t, args...)
			assert.Contains(t, said, tt.says)
			assert.NotContains(t, said, "sk-ant-open")
			assert.NotContains(t, said, annToken)
		})
	}
}

// testFirstStart: the first start makes the admin's tokens, at random and for its user
// alone; later ones keep them; and nothing that anybody could know is one.
func testFirstStart(t *testing.T) {
	tokens := func(s *steered) map[string]string {
		all := map[string]string{}
		for _, name := range []string{"admin.token", "viewer.token"} {
			text, err := os.ReadFile(s.stateOf(name))
			require.NoError(t, err)
			all[name] = strings.TrimSpace(string(text))
			assert.GreaterOrEqual(t, len(all[name]), 40, "%s is short", name)
		}
		return all
	}
	s, other := steer(t), steer(t)
	mine, theirs := tokens(s), tokens(other)
	seen := map[string]bool{}
	for _, token := range []string{mine["admin.token"], mine["viewer.token"], theirs["admin.token"], theirs["viewer.token"]} {
		assert.False(t, seen[token], "a token twice")
		seen[token] = true
	}
	dir := filepath.Dir(s.stateOf("admin.token"))
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		assert.Equal(t, want, info.Mode().Perm(), path)
		return nil
	}))
	for token := range seen {
		assert.NotContains(t, s.logged(), token)
	}

	// What other programs, this one's example and other relays' have for a credential.
	known := []string{"", "admin", "password", "changeme", "secret", "token", "test", "demo", "cc-relay", "default", theirs["admin.token"], theirs["viewer.token"],
		"demo-key-large", "demo-key-middle", "demo-key-small"}
	for _, value := range regexp.MustCompile(`(?m)(?:token|key|hash)[a-z0-9_]*:\s*"?([^\s"}#,]+)`).FindAllStringSubmatch(string(config.Example()), -1) {
		known = append(known, value[1])
	}
	require.Greater(t, len(known), 16, "the example has no credentials to try")
	for _, token := range known {
		assert.Equal(t, http.StatusUnauthorized, s.status(token), "%q at the data listener", token)
		status, _ := s.callAs(token, "GET", "/api/v1/status", "")
		assert.Contains(t, []int{http.StatusUnauthorized, http.StatusTooManyRequests}, status, "%q at the admin's", token)
	}
	status, _ := s.callAs(mine["viewer.token"], "GET", "/api/v1/status", "")
	assert.Equal(t, http.StatusOK, status)

	s.signal()
	s.endsWell()
	again := startServe(t, []string{"HOME=" + s.cmd.Dir}, "--config", s.file)
	assert.Equal(t, mine, tokens(&steered{process: s.process}))
	s.admin = again.adminAddr
	status, _ = s.callAs(mine["admin.token"], "GET", "/api/v1/status", "")
	assert.Equal(t, http.StatusOK, status, "the token of the first start")
}

// testViewer: who may only look makes nothing happen by any command, nor does anybody
// with a credential of another kind, and no answer gives more rights.
func testViewer(t *testing.T) {
	unconfigured(t)
	s := steer(t)
	id := s.keyIDs()[0]
	own := map[string]string{"viewer.token": "may only look", "ann.token": "refused the token", "provider.token": "refused the token"}
	require.NoError(t, os.WriteFile(s.stateOf("ann.token"), []byte(annToken), 0o600))
	require.NoError(t, os.WriteFile(s.stateOf("provider.token"), []byte(firstKey), 0o600))
	s.writeText(s.text(annAlone, bothKeys) + "metrics: maybe\n") // a reload would fail and be seen
	s.await("the configuration was not reloaded")
	_, before := s.wellness()
	for token, says := range own {
		for _, args := range [][]string{
			{"key", "off", id}, {"key", "on", id}, {"key", "release", id}, {"provider", "drain", "slow"}, {"provider", "on", "slow"},
			{"breaker", "force", "slow", "open"}, {"breaker", "force", "slow", "auto"}, {"config", "reload"},
		} {
			code, stdout, stderr := s.ask(token, args...)
			assert.Equal(t, 1, code, "%s %v", token, args)
			assert.Empty(t, stdout)
			if !strings.Contains(stderr, "too many requests") { // guesses are slowed
				assert.Contains(t, stderr, says, "%s %v", token, args)
			}
			for _, secret := range []string{s.token, annToken, firstKey} {
				assert.NotContains(t, stderr, secret)
			}
		}
	}
	_, after := s.wellness()
	assert.Equal(t, before.Status, after.Status)
	assert.Equal(t, before.Providers[0].Keys, after.Providers[0].Keys)
	assert.Equal(t, firstKey, s.next())
	assert.NoFileExists(t, s.stateOf("audit.log"), "something was about to be done")
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"requests", "--json"}, {"config", "diff"}} {
		_, stdout, stderr := s.ask("viewer.token", args...)
		assert.NotContains(t, stdout+stderr, s.token, "%v", args)
	}
}

// testUnwritableAudit: what cannot be recorded is not done, and traffic goes on.
func testUnwritableAudit(t *testing.T) {
	unconfigured(t)
	for name, spoil := range map[string]func(path string) error{
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"a link":      func(path string) error { return os.Symlink("/dev/full", path) },
		"another's":   func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o666)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := steer(t)
			open := s.stream(annToken)
			ids := s.keyIDs()
			audit := s.stateOf("audit.log")
			require.NoError(t, spoil(audit))
			for _, args := range [][]string{
				{"key", "off", ids[0]}, {"key", "release", ids[0]}, {"provider", "drain", "slow"}, {"breaker", "force", "slow", "open"}, {"config", "reload"},
			} {
				code, stdout, stderr := s.ask("admin.token", args...)
				assert.Equal(t, 1, code, "%v", args)
				assert.Empty(t, stdout)
				assert.Contains(t, stderr, "nothing was done, because it cannot be recorded")
				assert.Contains(t, stderr, audit)
			}
			status, text := s.callAs(s.token, "POST", "/api/v1/keys/"+ids[0]+"/off", "")
			assert.Equal(t, http.StatusServiceUnavailable, status)
			assert.Contains(t, text, `"audit_unwritable"`)
			code, stats := s.wellness()
			assert.Zero(t, code, "%v", stats.Reasons)
			assert.Equal(t, firstKey, s.next())
			s.ends(open)

			require.NoError(t, os.RemoveAll(audit))
			assert.Contains(t, s.do("key", "off", ids[0]), "is off")
			assert.Equal(t, secondKey, s.next())
			s.signal()
			s.endsWell()
		})
	}
}

// testFullLogPipe: nobody reads the log any more. Requests do not wait for it, and what
// it lost is counted.
func testFullLogPipe(t *testing.T) {
	up := newHalfway(t)
	dir := t.TempDir()
	file := writeConfig(t, fmt.Sprintf("logging: {level: debug}\nclients: %s\nproviders:\n  - {name: slow, base_url: %q, keys: %s}\n", twoClients, up.URL, bothKeys))
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	p := &process{t: t, lines: make(chan map[string]any, 1)} // the second line blocks its reader
	p.cmd = exec.CommandContext(ctx, os.Args[0], "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config", file)
	p.cmd.Dir, p.cmd.Env = dir, []string{asRelay + "=1", "HOME=" + dir}
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go p.read(stderr)
	serves := p.await("relay serves")
	p.url, p.adminAddr = "http://"+serves["listen"].(string), serves["admin"].(string)
	s := &steered{process: p, t: t, up: up, file: file, admin: p.adminAddr}
	token, err := os.ReadFile(s.stateOf("admin.token"))
	require.NoError(t, err)
	s.token = strings.TrimSpace(string(token))
	open := s.stream(annToken)

	dropped := regexp.MustCompile(`(?m)^cc_relay_log_records_dropped_total ([1-9]\S*)$`)
	refused := "GET /" + strings.Repeat("m", 4000) + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" // the path comes to the log, in part
	c, err := net.Dial("tcp", serves["listen"].(string))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(2*patience)))
	const atOnce = 500
	go func() {
		for err := error(nil); err == nil; {
			_, err = io.WriteString(c, refused)
		}
	}()
	for n, answers := 0, bufio.NewReader(c); ; n++ {
		require.Less(t, n, 400, "nothing was dropped")
		for range atOnce {
			resp, err := http.ReadResponse(answers, nil)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, resp.Body)
			require.NoError(t, err)
			require.Equal(t, http.StatusNotFound, resp.StatusCode)
		}
		if _, text := s.callAs(s.token, "GET", "/metrics", ""); dropped.MatchString(text) {
			break
		}
	}
	require.NoError(t, c.Close())
	for range 20 {
		assert.Equal(t, http.StatusOK, s.status(annToken))
	}
	s.ends(open)
	status, _ := s.call("POST", "/api/v1/keys/"+s.keyIDs()[0]+"/off", "")
	assert.Equal(t, http.StatusOK, status, "an action is recorded in the audit, not in the log")

	p.await("the log is too slow; records were dropped") // reads again
	go func() {
		for range p.lines {
		}
	}()
	p.signal()
	assert.NoError(t, p.cmd.Wait())
}
