package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asHardened makes the test binary say how it is protected, and end.
const asHardened = "CC_RELAY_TEST_AS_HARDENED"

func sayHardened() {
	if err := harden(); err != nil {
		panic(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var core unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &core)
	fmt.Println("dumpable", dumpable, err, "core", core.Cur, core.Max)
	os.Exit(0)
}

// Secrets of a relay that has them from everywhere.
const (
	variableKey, fileKey, pipeKey = "sk-ant-sources-variable-1", "sk-ant-sources-file-22222", "sk-ant-sources-pipe-33333"
	variableToken                 = "token-of-a-variable-444444"
)

// echo is a provider that keeps the keys of requests.
type echo struct {
	*httptest.Server
	mu   sync.Mutex
	keys map[string]bool
}

func newEcho(t *testing.T) *echo {
	e := &echo{keys: map[string]bool{}}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		e.mu.Lock()
		e.keys[r.Header.Get("X-Api-Key")] = true
		e.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"type":"message","content":[],"usage":{"input_tokens":1,"output_tokens":1}}`)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *echo) seen() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.keys)
}

// fromEverywhere starts a relay whose secrets come from variables, a file and a pipe. Its
// shell line runs it, as $0 with "$@".
func fromEverywhere(t *testing.T, line string, env ...string) (*process, *echo) {
	t.Helper()
	up, dir := newEcho(t), t.TempDir()
	config := filepath.Join(dir, "relay.yaml")
	key := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(key, []byte(fileKey+"\n"), 0o600))
	require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf(`
clients: [{name: ann, token: "${ANN_TOKEN}"}]
providers:
- base_url: %s
  pool: {strategy: round_robin, affinity: off}
  keys: [{key: "${THE_KEY}"}, {key: "${file:%s}"}, {key: "${fd:3}"}]
`, up.URL, key)), 0o644))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	_, err = w.WriteString(pipeKey)
	require.NoError(t, err)
	require.NoError(t, w.Close())

	p := &process{t: t, lines: make(chan map[string]any, 1000)}
	p.cmd = exec.Command("bash", "-c", line, os.Args[0], "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config", config)
	p.cmd.Dir = dir
	p.cmd.ExtraFiles = []*os.File{r}
	p.cmd.Env = append([]string{asRelay + "=1", "HOME=" + dir, "PATH=" + os.Getenv("PATH"), "THE_KEY=" + variableKey, "ANN_TOKEN=" + variableToken}, env...)
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go p.read(stderr)
	serves := p.await("relay serves")
	p.url, p.adminAddr = "http://"+serves["listen"].(string), serves["admin"].(string)
	return p, up
}

// statusOf sends one request, and returns its status.
func (p *process) statusOf(token string) int {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPost, p.url+"/v1/messages", strings.NewReader(`{"model":"claude-sonnet-5-5","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}`))
	require.NoError(p.t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Api-Key", token)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p.t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

func (p *process) asksWithAllKeys(up *echo) {
	p.t.Helper()
	for range 30 {
		assert.Equal(p.t, http.StatusOK, p.statusOf(variableToken))
	}
	assert.Equal(p.t, 3, up.seen(), "keys that the provider saw")
}

// testSourcesOfSecrets: what the relay has taken in is not left lying around.
func testSourcesOfSecrets(t *testing.T) {
	p, up := fromEverywhere(t, `exec "$0" "$@"`)
	p.asksWithAllKeys(up)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGHUP)) // it finds all of them again
	assert.Eventually(t, func() bool { return p.statusOf(variableToken) == http.StatusOK }, patience, 100*time.Millisecond)
	p.asksWithAllKeys(up)

	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	canaries := []string{variableKey, fileKey, pipeKey, variableToken}
	for _, name := range []string{"environ", "cmdline", "status"} {
		text, err := os.ReadFile(proc + name)
		if name == "environ" && os.Geteuid() != 0 {
			assert.ErrorIs(t, err, os.ErrPermission, "of a process that is not dumpable it is root's")
			continue
		}
		require.NoError(t, err)
		require.NotEmpty(t, text)
		for _, c := range canaries {
			assert.NotContains(t, string(text), c, name)
		}
		if name == "environ" {
			assert.Contains(t, string(text), "HOME=", "the rest is there")
		}
	}
	_, err := os.Lstat(proc + "fd/3")
	if err == nil {
		to, _ := os.Readlink(proc + "fd/3")
		assert.NotContains(t, to, "pipe:", "the descriptor is closed")
	}
	limits, err := os.ReadFile(proc + "limits")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^Max core file size +0 +0 `, string(limits))
	p.signal()
	p.endsWell()
	for _, c := range canaries {
		assert.NotContains(t, p.logged(), c)
	}
	assert.NotContains(t, p.logged(), "less protected")
	assert.NotContains(t, p.logged(), "not reloaded")
}

// testNoFlagTakesASecret: argv is everybody's to read.
func testNoFlagTakesASecret(t *testing.T) {
	for _, name := range []string{"serve", "demo", "simulate", "config show", "config validate", "status", "explain", "requests", "events", "key off", "provider drain", "breaker"} {
		_, out, _ := command(t, append(strings.Fields(name), "--help")...)
		require.Contains(t, out, "Usage:", name)
		for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(out, -1) {
			if flag == "--token-file" || flag == "--tokens" || flag == "--max-tokens" { // the last are numbers
				continue
			}
			assert.NotRegexp(t, `key|token|secret|password`, flag, name)
		}
	}
}

// testNoCore: a relay that is killed so that others leave a core leaves none, whatever
// its environment and limits were, and what it says at its end has no secret in it.
func testNoCore(t *testing.T) {
	p, up := fromEverywhere(t, `ulimit -S -c $(ulimit -H -c); exec "$0" "$@"`, "GOTRACEBACK=crash")
	p.asksWithAllKeys(up)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGABRT))
	for range p.lines {
	}
	_ = p.cmd.Wait()
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	assert.True(t, status.Signaled(), "it ended by a signal: %v", p.cmd.ProcessState)
	assert.False(t, status.CoreDump(), "it left a core")
	left, err := filepath.Glob(filepath.Join(p.cmd.Dir, "*core*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.Contains(t, p.logged(), "SIGABRT")
	for _, c := range []string{variableKey, fileKey, pipeKey, variableToken} {
		assert.NotContains(t, p.logged(), c)
	}

	said := exec.Command(os.Args[0])
	said.Env = []string{asHardened + "=1"}
	out, err := said.CombinedOutput()
	require.NoError(t, err)
	assert.Equal(t, "dumpable 0 <nil> core 0 0\n", string(out))
}

// testScrapingAHardenedRelay: the metrics of the process are read from /proc, of which
// the most is root's now.
func testScrapingAHardenedRelay(t *testing.T) {
	p, _ := fromEverywhere(t, `exec "$0" "$@"`)
	token, err := os.ReadFile(filepath.Join(p.cmd.Dir, ".local", "state", "cc-relay", "viewer.token"))
	require.NoError(t, err)
	req, err := http.NewRequest(http.MethodGet, "http://"+p.adminAddr+"/metrics", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	for _, name := range []string{"process_open_fds", "process_max_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"} {
		assert.Regexp(t, "(?m)^"+name+" [0-9.e+]*[1-9]", string(text))
	}
}

// testNobodyElseIsCalled: the relay connects to its provider, and to nobody and nothing else.
func testNobodyElseIsCalled(t *testing.T) {
	_, err := exec.LookPath("strace")
	require.NoError(t, err, "strace is missing; it is in the package of that name")
	calls := filepath.Join(t.TempDir(), "calls")
	p, up := fromEverywhere(t, `exec strace -f -qq -e trace=connect,sendto,sendmsg,sendmmsg -o `+calls+` "$0" "$@"`)
	p.asksWithAllKeys(up)
	relay, err := exec.Command("pgrep", "-P", fmt.Sprint(p.cmd.Process.Pid)).Output()
	require.NoError(t, err)
	var pid int
	_, err = fmt.Sscan(string(relay), &pid)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	p.endsWell()
	text, err := os.ReadFile(calls)
	require.NoError(t, err)
	_, port, _ := strings.Cut(strings.TrimPrefix(up.URL, "http://"), ":")
	provider := fmt.Sprintf(`sin_port=htons(%s), sin_addr=inet_addr("127.0.0.1")`, port)
	connects := 0
	for line := range bytes.Lines(text) {
		if !bytes.Contains(line, []byte("sa_family=")) { // on a connection that is open
			continue
		}
		connects++
		assert.Contains(t, string(line), provider)
	}
	assert.NotZero(t, connects, "strace has seen nothing")
}
