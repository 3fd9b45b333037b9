package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// retryingTurn sends one turn as the SDKs do: after an error of the connection, a 429
// or a 5xx it tries twice more, after 0.4 to 0.5 and 0.75 to 1 s, or what retry-after
// says. It reports the limit on input tokens that the answer tells, and whether there
// was a whole answer.
func retryingTurn(url, session string, turn int) (limit string, ok bool) {
	body := `{"model":"claude-sonnet-5-5","max_tokens":100,"stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"` +
		session + strings.Repeat(" and so on", 500+20*turn) + `","cache_control":{"type":"ephemeral"}}]}]}`
	after := 0
	for try := range 3 {
		if try > 0 {
			base := time.Duration(try) * 400 * time.Millisecond
			time.Sleep(max(base-rand.N(base/4)+100*time.Millisecond, time.Duration(after)*time.Second))
		}
		req, err := http.NewRequest(http.MethodPost, url+"/v1/messages", strings.NewReader(body))
		if err != nil {
			return "", false
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Anthropic-Version", "2023-06-01")
		req.Header.Set("X-Claude-Code-Session-Id", session)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil && resp.StatusCode == http.StatusOK && strings.Contains(string(text), "message_stop") {
			return resp.Header.Get("Anthropic-Ratelimit-Input-Tokens-Limit"), true
		}
		after, _ = strconv.Atoi(resp.Header.Get("Retry-After"))
	}
	return "", false
}

// A relay under load is stopped and started again: no client notices, and the new
// one knows the limits of all organizations from its first answers on. It is the
// program as users have it: under the race detector it takes longer to stop and to
// start than the clients' two pauses last.
func TestARestartUnderLoadFailsNobody(t *testing.T) {
	t.Parallel()
	up, err := newDemoUpstream()
	require.NoError(t, err)
	t.Cleanup(up.close)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := free.Addr().String()
	require.NoError(t, free.Close())
	file := writeConfig(t, fmt.Sprintf("server: {state_dir: %q}\nproviders:\n  - {base_url: %q, keys: [{key: demo-key-large}, {key: demo-key-middle}, {key: demo-key-small}]}\n",
		filepath.Join(t.TempDir(), "state"), up.url))
	binary := filepath.Join(t.TempDir(), "cc-relay")
	out, err := exec.Command("go", "build", "-race=false", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	p := startBinary(t, binary, nil, "--config", file, "--listen", addr)

	var stop atomic.Bool
	var served, failed, told atomic.Int64 // told: since the restart, answers with the limits of the pool
	var restarted atomic.Pointer[time.Time]
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for turn := 0; !stop.Load(); turn++ {
				limit, ok := retryingTurn("http://"+addr, fmt.Sprintf("session-%d", i), turn)
				if !ok {
					failed.Add(1)
					continue
				}
				served.Add(1)
				if at := restarted.Load(); at != nil && limit != "" && time.Since(*at) < 2*time.Second {
					told.Add(1)
				}
			}
		})
	}
	require.Eventually(t, func() bool { return served.Load() > 40 }, patience, 10*time.Millisecond)
	p.signal()
	p.endsWell()
	startBinary(t, binary, nil, "--config", file, "--listen", addr)
	now := time.Now()
	restarted.Store(&now)
	before := served.Load()
	require.Eventually(t, func() bool { return served.Load() > before+40 }, patience, 10*time.Millisecond)
	stop.Store(true)
	wg.Wait()
	assert.Zero(t, failed.Load(), "turns that failed after all tries")
	assert.Positive(t, told.Load(), "answers that tell the whole pool's limits, within 2 s of the start")
	http.DefaultClient.CloseIdleConnections()
}
