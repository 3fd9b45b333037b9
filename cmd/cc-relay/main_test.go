package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// asRelay makes the test binary be cc-relay: signals need a process of their own.
const asRelay = "CC_RELAY_TEST_AS_RELAY"

func TestMain(m *testing.M) {
	if os.Getenv(asRelay) != "" {
		main()
	}
	if os.Getenv(asHardened) != "" {
		sayHardened()
	}
	os.Exit(m.Run())
}

// command runs cc-relay inside the test, with nothing in the environment or the
// working directory that could configure it.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(context.Background(), args, &out, &err)
	return code, out.String(), err.String()
}

// unconfigured hides the configuration of whoever runs the tests.
func unconfigured(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("ANTHROPIC_API_KEY", "")
	t.Setenv("ANTHROPIC_API_KEYS", "")
}

func TestVersion(t *testing.T) {
	code, stdout, stderr := command(t, "version")
	assert.Zero(t, code)
	assert.Regexp(t, `^cc-relay \S+ \(`+runtime.Version()+`, `+runtime.GOOS+`/`+runtime.GOARCH+`\)\n$`, stdout)
	assert.Empty(t, stderr)
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	unconfigured(t)
	for name, tc := range map[string]struct {
		args []string
		want string // in the one line on standard error
	}{
		"unknown command":          {[]string{"srve"}, `unknown command "srve"`},
		"unknown flag":             {[]string{"serve", "--port", "1"}, "unknown flag: --port"},
		"an argument too many":     {[]string{"version", "now"}, "now"},
		"serve unconfigured":       {[]string{"serve"}, "cc-relay config init"},
		"serve a missing file":     {[]string{"serve", "--config", "none.yaml"}, "none.yaml"},
		"simulate a missing file":  {[]string{"simulate", "--config", "none.yaml"}, "none.yaml"},
		"demo for other machines":  {[]string{"demo", "--listen", "0.0.0.0:0"}, "--listen 0.0.0.0:0"},
		"demo without a port":      {[]string{"demo", "--listen", "localhost"}, "--listen localhost"},
		"demo too short":           {[]string{"demo", "--for", "1s"}, "give 3s or more"},
		"demo of no length at all": {[]string{"demo", "--for", "0s"}, "give 3s or more"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := command(t, tc.args...)
			assert.Equal(t, 1, code)
			assert.Empty(t, stdout)
			assert.Regexp(t, `^cc-relay: `, stderr)
			assert.Contains(t, stderr, tc.want)
		})
	}
}

func TestTakenPort(t *testing.T) {
	unconfigured(t)
	t.Setenv("ANTHROPIC_API_KEY", "sk-ant-test")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	taken := l.Addr().String()
	for _, name := range []string{"serve", "simulate", "demo"} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := command(t, name, "--listen", taken)
			assert.Equal(t, 1, code)
			assert.Empty(t, stdout)
			assert.Equal(t, "cc-relay: "+taken+" is in use by another program; choose another address: address already in use\n", stderr)
		})
	}
}

func TestSimulateServesUntilToldToStop(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	shown, stdout := io.Pipe()
	ended := make(chan int, 1)
	var stderr bytes.Buffer
	go func() {
		ended <- run(ctx, []string{"simulate", "--listen", "127.0.0.1:0"}, stdout, &stderr)
		_ = stdout.Close()
	}()
	var url, key string
	lines := bufio.NewReader(shown)
	_, err := fmt.Fscanf(lines, "simulated provider on %s with keys:\n  %s", &url, &key)
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, lines) }()

	req, err := http.NewRequest(http.MethodGet, url+"/v1/models", nil)
	require.NoError(t, err)
	req.Header.Set("X-Api-Key", key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode, "GET /v1/models with key %s", key)
	_ = resp.Body.Close()

	stop()
	assert.Zero(t, <-ended, stderr.String())
}
