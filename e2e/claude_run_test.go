package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// outcome is what `claude -p --output-format json` prints at its end.
type outcome struct {
	Result         string
	IsError        bool   `json:"is_error"`
	APIErrorStatus int    `json:"api_error_status"`
	APIErrorType   string `json:"api_error_type"`
	NumTurns       int    `json:"num_turns"`
	SessionID      string `json:"session_id"`
}

// claudeLimit bounds one run; a run whose requests are not retried takes a second.
const claudeLimit = 60 * time.Second

// runClaude runs Claude Code headless, as a user of the relay at baseURL, in a home
// of its own. Whatever it tries to reach beyond loopback fails the test.
func runClaude(t *testing.T, baseURL, token, prompt string, args ...string) outcome {
	t.Helper()
	program := requireClaude(t)
	outside := newTrap(t)
	ctx, cancel := context.WithTimeout(t.Context(), claudeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"-p", prompt, "--output-format", "json"}, args...)...)
	dieWithTest(cmd)
	cmd.Dir = t.TempDir()
	cmd.Env = claudeEnv(t.TempDir(), baseURL, token, outside.server.URL)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second // then it is killed
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	require.NoError(t, ctx.Err(), "claude did not end within %s\n%s%s", claudeLimit, &stdout, &stderr)

	var o outcome
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &o), "claude printed\n%s%s", &stdout, &stderr)
	assert.Equal(t, o.IsError, err != nil, "exit: %v\n%s%s", err, &stdout, &stderr)
	assert.Empty(t, outside.asked(), "hosts beyond loopback that Claude Code asked for")
	return o
}

// claudeEnv inherits nothing but the search path: no key of the user's, no settings.
func claudeEnv(home, baseURL, token, proxy string) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + home,
		"TMPDIR=" + home,
		"CLAUDE_CONFIG_DIR=" + home + "/claude",
		"ANTHROPIC_BASE_URL=" + baseURL,
		"ANTHROPIC_AUTH_TOKEN=" + token,
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
		"HTTP_PROXY=" + proxy,
		"HTTPS_PROXY=" + proxy,
		"NO_PROXY=127.0.0.1",
	}
}

// trap is a proxy that leads nowhere and remembers who was asked for.
type trap struct {
	server *httptest.Server

	mu    sync.Mutex
	hosts []string // guarded by mu
}

func newTrap(t *testing.T) *trap {
	tr := &trap{}
	tr.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.mu.Lock()
		tr.hosts = append(tr.hosts, r.Host)
		tr.mu.Unlock()
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(tr.server.Close)
	return tr
}

func (tr *trap) asked() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return append([]string(nil), tr.hosts...)
}
