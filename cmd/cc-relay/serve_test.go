package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// patience is how long a test waits for what must come; only a failure takes it.
const patience = 30 * time.Second

// process is cc-relay serve in a process of its own.
type process struct {
	t         *testing.T
	cmd       *exec.Cmd
	url       string
	source    string // where the configuration came from
	adminAddr string

	lines chan map[string]any // of its log
	mu    sync.Mutex
	log   strings.Builder // guarded by mu
}

// startServe starts it in an empty directory, with these variables only.
func startServe(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	return startBinary(t, os.Args[0], env, args...)
}

func startBinary(t *testing.T, binary string, env []string, args ...string) *process {
	t.Helper()
	return startCommand(t, env, append([]string{binary, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"}, args...)...)
}

// startCommand starts a command that becomes cc-relay serve.
func startCommand(t *testing.T, env []string, command ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	dir := t.TempDir()
	p := &process{t: t, lines: make(chan map[string]any, 1000)}
	p.cmd = exec.CommandContext(ctx, command[0], command[1:]...)
	p.cmd.Dir = dir
	p.cmd.Env = append([]string{asRelay + "=1", "HOME=" + dir}, env...)
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go p.read(stderr)
	serves := p.await("relay serves")
	p.url = "http://" + serves["listen"].(string)
	p.source = serves["config"].(string)
	p.adminAddr, _ = serves["admin"].(string)
	return p
}

func (p *process) read(stderr io.Reader) {
	defer close(p.lines)
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		p.mu.Lock()
		p.log.WriteString(lines.Text() + "\n")
		p.mu.Unlock()
		var record map[string]any
		if json.Unmarshal(lines.Bytes(), &record) == nil {
			p.lines <- record
		}
	}
}

func (p *process) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// await returns the next record of the log that begins with message.
func (p *process) await(message string) map[string]any {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case record, open := <-p.lines:
			require.True(p.t, open, "cc-relay ended without %q; its log:\n%s", message, p.logged())
			if text, _ := record["message"].(string); strings.HasPrefix(text, message) {
				return record
			}
		case <-timeout:
			require.FailNow(p.t, "waited in vain", "for %q; the log:\n%s", message, p.logged())
		}
	}
}

func (p *process) signal() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
}

// endsWell waits for the end, which must have exit code 0.
func (p *process) endsWell() {
	p.t.Helper()
	p.await("relay stopped")
	for range p.lines { // until its end: Wait closes the pipe
	}
	require.NoError(p.t, p.cmd.Wait(), "exit of cc-relay serve; its log:\n%s", p.logged())
}

func (p *process) get(path string) (status int, body string) {
	p.t.Helper()
	resp, err := http.Get(p.url + path)
	require.NoError(p.t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	return resp.StatusCode, string(text)
}

func (p *process) post() *http.Response {
	p.t.Helper()
	resp, err := http.Post(p.url+"/v1/messages", "application/json",
		strings.NewReader(`{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"hi"}]}`))
	require.NoError(p.t, err)
	p.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// The two halves of a stream, each ending with its last event.
const (
	firstHalf = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n" +
		"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n" +
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n"
	secondHalf = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n" +
		"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\n" +
		"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
)

// slowProvider sends half a stream, and the rest on release.
type slowProvider struct {
	*httptest.Server
	release chan struct{}
	gone    chan struct{} // gets one for each request that was given up
	keys    chan string   // that requests came with
}

func newSlowProvider(t *testing.T) *slowProvider {
	s := &slowProvider{release: make(chan struct{}), gone: make(chan struct{}, 10), keys: make(chan string, 10)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // the list of models
			http.NotFound(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		s.keys <- r.Header.Get("X-Api-Key")
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, firstHalf)
		w.(http.Flusher).Flush()
		select {
		case <-s.release:
			_, _ = io.WriteString(w, secondHalf)
		case <-r.Context().Done():
			s.gone <- struct{}{}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// left waits until a request is given up.
func (s *slowProvider) left(t *testing.T) {
	t.Helper()
	select {
	case <-s.gone:
	case <-time.After(patience):
		require.FailNow(t, "the provider still answers")
	}
}

// serve starts a relay in front of the provider, configured by a file.
func (s *slowProvider) serve(t *testing.T, env ...string) *process {
	path := filepath.Join(t.TempDir(), "relay.yaml")
	text := "providers:\n  - {base_url: \"" + s.URL + "\", keys: [{key: \"${UPSTREAM_KEY}\"}]}\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	p := startServe(t, append(env, "UPSTREAM_KEY=sk-ant-upstream"), "--config", path)
	assert.Equal(t, path, p.source)
	return p
}

// half reads the part of a stream that the provider has sent.
func half(t *testing.T, resp *http.Response) {
	t.Helper()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	got := make([]byte, len(firstHalf))
	_, err := io.ReadFull(resp.Body, got)
	require.NoError(t, err)
	require.Equal(t, firstHalf, string(got))
}

func TestServeFromTheEnvironment(t *testing.T) {
	t.Parallel()
	p := startServe(t, []string{"ANTHROPIC_API_KEYS=sk-ant-one,sk-ant-two"})
	assert.Equal(t, "environment", p.source)
	for path, want := range map[string]string{"/readyz": "ok\n", "/livez": "ok\n"} {
		status, body := p.get(path)
		assert.Equal(t, http.StatusOK, status, path)
		assert.Equal(t, want, body, path)
	}
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGHUP)) // as when a terminal is closed
	p.await("nothing is reloaded")
	assert.NotContains(t, p.logged(), `"level":"error"`, "nothing was refused")
	p.signal()
	p.endsWell()
	assert.NotContains(t, p.logged(), "sk-ant-")
}

func TestServeFromAFile(t *testing.T) {
	t.Parallel()
	up := newSlowProvider(t)
	close(up.release)
	p := up.serve(t)
	got, err := io.ReadAll(p.post().Body)
	require.NoError(t, err)
	assert.Equal(t, firstHalf+secondHalf, string(got))
	assert.Equal(t, "sk-ant-upstream", <-up.keys, "key that the provider got")
	assert.Equal(t, "served", p.await("request")["outcome"])
	p.signal()
	p.endsWell()
	assert.NotContains(t, p.logged(), "sk-ant-")
}

// testDrain: no new work from the signal on, and open streams end as their provider ends them.
func testDrain(t *testing.T) {
	up := newSlowProvider(t)
	p := up.serve(t)
	open := p.post()
	half(t, open)

	p.signal()
	drains := p.await("relay drains")
	assert.EqualValues(t, 1, drains["open"])
	require.Eventually(t, func() bool {
		status, _ := p.get("/readyz")
		return status == http.StatusServiceUnavailable
	}, patience, 10*time.Millisecond, "readyz of a draining relay")
	status, body := p.get("/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "draining\n", body)
	status, _ = p.get("/livez")
	assert.Equal(t, http.StatusOK, status, "a draining relay is alive")

	refused := p.post()
	text, err := io.ReadAll(refused.Body)
	require.NoError(t, err)
	assert.Equal(t, 529, refused.StatusCode)
	assert.Contains(t, string(text), "overloaded_error")

	close(up.release)
	rest, err := io.ReadAll(open.Body)
	require.NoError(t, err)
	assert.Equal(t, secondHalf, string(rest), "the open stream ends as the provider ends it")
	p.endsWell()
	assert.Len(t, up.keys, 1, "requests that reached the provider")
}

// testSecondSignal: it ends the drain at once, and streams in order.
func testSecondSignal(t *testing.T) {
	for _, second := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(second.String(), func(t *testing.T) { testSecond(t, second) })
	}
}

func testSecond(t *testing.T, second syscall.Signal) {
	up := newSlowProvider(t)
	p := up.serve(t)
	open := p.post()
	half(t, open)

	p.signal()
	p.await("relay drains")
	began := time.Now()
	require.NoError(t, p.cmd.Process.Signal(second))
	rest, err := io.ReadAll(open.Body)
	require.NoError(t, err, "the stream ends in order")
	assert.True(t, strings.HasPrefix(string(rest), "event: error\ndata: {"), "got %q", rest)
	assert.Contains(t, string(rest), "overloaded_error")
	assert.NotContains(t, string(rest), "message_stop")
	up.left(t)
	p.endsWell()
	assert.Less(t, time.Since(began), patience, "the drain lasts longer by default")
	_, err = os.Stat(filepath.Join(p.cmd.Dir, ".local", "state", "cc-relay", "pools"))
	assert.NoError(t, err, "what was learned is saved")
}
