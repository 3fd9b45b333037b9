package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
	statedir "cc-relay/internal/state"
)

// refusingProvider refuses keys that begin with sk-ant-refused, and serves any other under a
// limit of 777 requests a minute. It tells which keys it saw.
func refusingProvider(t *testing.T) (url string, keys chan string) {
	keys = make(chan string, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // the list of models
			http.NotFound(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		key := r.Header.Get("X-Api-Key")
		keys <- key
		if strings.HasPrefix(key, "sk-ant-refused") {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Anthropic-Organization-Id", "org-1")
		w.Header().Set("Anthropic-Ratelimit-Requests-Limit", "777")
		w.Header().Set("Anthropic-Ratelimit-Requests-Remaining", "700")
		_, _ = io.WriteString(w, firstHalf+secondHalf)
	}))
	t.Cleanup(s.Close)
	return s.URL, keys
}

// twoKeys is a configuration that tries the refused key first.
func twoKeys(t *testing.T, url, server string) string {
	return writeConfig(t, server+"\nproviders:\n  - {base_url: \""+url+"\", keys: [{key: sk-ant-refused, priority: 2}, {key: sk-ant-good}]}\n")
}

// ask sends one request, which must be served, and returns the keys it took.
func (p *process) ask(keys chan string) (used []string) {
	p.t.Helper()
	got, err := io.ReadAll(p.post().Body)
	require.NoError(p.t, err)
	require.Equal(p.t, firstHalf+secondHalf, string(got))
	for len(keys) > 0 {
		used = append(used, <-keys)
	}
	return used
}

func TestServeRemembersWhatItLearned(t *testing.T) {
	t.Parallel()
	url, keys := refusingProvider(t)
	dir := filepath.Join(t.TempDir(), "new", "state")
	file := twoKeys(t, url, "server: {state_dir: \""+dir+"\"}")

	p := startServe(t, nil, "--config", file)
	assert.Equal(t, []string{"sk-ant-refused", "sk-ant-good"}, p.ask(keys))
	p.signal()
	p.endsWell()
	assert.Contains(t, p.logged(), `"restored":false`)
	info, err := os.Stat(filepath.Join(dir, "pools"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	text, err := os.ReadFile(filepath.Join(dir, "pools"))
	require.NoError(t, err)
	assert.Contains(t, string(text), `"limit":777`)
	assert.NotContains(t, string(text), "sk-ant-")

	p = startServe(t, nil, "--config", file)
	assert.Equal(t, []string{"sk-ant-good"}, p.ask(keys), "the refused key is known")
	p.signal()
	p.endsWell()
	assert.Contains(t, p.logged(), `"restored":true`)
	assert.Contains(t, p.logged(), "key is out since before the restart")
}

// turn sends one turn of a coding agent's session, whose prompt is long enough to
// be cached, and returns the key it took.
func (p *process) turn(session string, keys chan string) string {
	p.t.Helper()
	body := `{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"` +
		session + strings.Repeat(" and so on", 2000) + `","cache_control":{"type":"ephemeral"}}]}]}`
	req, err := http.NewRequest(http.MethodPost, p.url+"/v1/messages", strings.NewReader(body))
	require.NoError(p.t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Claude-Code-Session-Id", session)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p.t, err)
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	require.Equal(p.t, firstHalf+secondHalf, string(got))
	return <-keys
}

func TestConversationsFindTheirKeysAfterARestart(t *testing.T) {
	t.Parallel()
	url, keys := refusingProvider(t)
	file := writeConfig(t, "server: {state_dir: \""+filepath.Join(t.TempDir(), "state")+"\"}\n"+
		"providers: [{base_url: \""+url+"\", pool: {strategy: random}, keys: [{key: sk-ant-1}, {key: sk-ant-2}, {key: sk-ant-3}]}]\n")
	sessions := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"}
	home := map[string]string{}
	p := startServe(t, nil, "--config", file)
	for _, s := range sessions {
		home[s] = p.turn(s, keys)
	}
	p.signal()
	p.endsWell()
	p = startServe(t, nil, "--config", file)
	for _, s := range sessions {
		assert.Equal(t, home[s], p.turn(s, keys), "key of session %s", s)
	}
	p.signal()
	p.endsWell()
}

func TestServeWithStateOffKeepsNothing(t *testing.T) {
	t.Parallel()
	url, keys := refusingProvider(t)
	file := twoKeys(t, url, "server: {state: off}")
	for range 2 {
		p := startServe(t, nil, "--config", file, "--admin-listen", "off")
		assert.Equal(t, []string{"sk-ant-refused", "sk-ant-good"}, p.ask(keys))
		p.signal()
		p.endsWell()
		left, err := os.ReadDir(p.cmd.Dir) // its home
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}

func TestServeKeepsItsStateInTheHome(t *testing.T) {
	t.Parallel()
	url, keys := refusingProvider(t)
	p := startServe(t, nil, "--config", twoKeys(t, url, "server: {}"))
	p.ask(keys)
	p.signal()
	p.endsWell()
	_, err := os.Stat(filepath.Join(p.cmd.Dir, ".local", "state", "cc-relay", "pools"))
	assert.NoError(t, err)
}

// Whatever is wrong with the state, the relay starts and says so.
func TestServeStartsWithoutItsState(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"a damaged file": {func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "pools"), []byte("{"), 0o600))
		}, "the relay starts without what the last run learned"},
		"a directory for all": {func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.Chmod(dir, 0o777))
		}, "chmod 700"},
		"a link":        {func(t *testing.T, dir string) { require.NoError(t, os.Symlink(t.TempDir(), dir)) }, "is a symbolic link"},
		"no such place": {func(t *testing.T, dir string) { require.NoError(t, os.WriteFile(dir, nil, 0o600)) }, "is not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, keys := refusingProvider(t)
			dir := filepath.Join(t.TempDir(), "state")
			tc.spoil(t, dir)
			p := startServe(t, nil, "--config", twoKeys(t, url, "server: {state_dir: \""+dir+"\"}"))
			p.ask(keys)
			p.signal()
			p.endsWell()
			assert.Equal(t, 1, strings.Count(p.logged(), tc.want), p.logged())
		})
	}
}

func TestARelayThatCannotListenTouchesNoState(t *testing.T) {
	unconfigured(t)
	home := t.TempDir()
	t.Setenv("XDG_STATE_HOME", home)
	t.Setenv("ANTHROPIC_API_KEY", "sk-ant-test")
	taken := httptest.NewServer(nil)
	defer taken.Close()
	code, _, stderr := command(t, "serve", "--listen", taken.Listener.Addr().String())
	assert.Equal(t, 1, code, stderr)
	left, err := os.ReadDir(home)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestDemoTouchesNoState(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "demo", "--listen", "127.0.0.1:0", "--for", "3s", "--json")
	cmd.Dir, cmd.Env = home, []string{asRelay + "=1", "HOME=" + home}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	left, err := os.ReadDir(home)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// remembering is the memory of one pool of two keys in dir, and its log.
func remembering(t *testing.T, dir string) (*memory, *keypool.KeyPool, *bytes.Buffer) {
	t.Helper()
	return rememberingAt(t, dir, func(*config.Provider) {})
}

// rememberingAt is remembering of a provider that has been changed.
func rememberingAt(t *testing.T, dir string, change func(*config.Provider)) (*memory, *keypool.KeyPool, *bytes.Buffer) {
	t.Helper()
	cfg := config.Default()
	cfg.Server.StateDir = dir
	cfg.Providers = []config.Provider{{Keys: []keypool.KeyConfig{{Key: secret.New("sk-ant-1")}, {Key: secret.New("sk-ant-2")}}}}
	cfg.Providers[0].Name, cfg.Providers[0].Kind, cfg.Providers[0].BaseURL = "test", "anthropic", "https://api.example.com"
	change(&cfg.Providers[0])
	b, err := build(&cfg, nil, watchers{log: zerolog.Nop()})
	require.NoError(t, err)
	state, err := statedir.Open(dir) // without its lock: two memories share it here
	require.NoError(t, err)
	log := &bytes.Buffer{}
	m := remember(state, b, zerolog.New(log))
	require.NotNil(t, m, log)
	return m, b.live.Router.Upstreams()[0].Pool, log
}

// A relay that is killed has lost no more than the last ten seconds.
func TestStateIsSavedEveryTenSeconds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		m, pool, _ := remembering(t, dir)
		defer m.close()
		id := pool.Keys()[0].ID
		pool.MarkKeyDead(id, keypool.ReasonSpent)
		time.Sleep(saveEvery)
		synctest.Wait()

		other, next, _ := remembering(t, dir)
		defer other.close()
		assert.Equal(t, keypool.StateDead, next.Keys()[0].State)
		assert.Equal(t, keypool.StateAvailable, next.Keys()[1].State)
	})
}

// What another address said of a key, or this one where the key was shown in another
// way, is not restored.
func TestAnotherProviderRemembersNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*config.Provider)
		want   keypool.State
	}{
		"the same": {func(*config.Provider) {}, keypool.StateDead},
		"timeouts": {func(p *config.Provider) { p.IdleTimeout = time.Minute }, keypool.StateDead},
		"address":  {func(p *config.Provider) { p.BaseURL = "https://b.example.com" }, keypool.StateAvailable},
		"auth":     {func(p *config.Provider) { p.Auth = "bearer" }, keypool.StateAvailable},
		"headers":  {func(p *config.Provider) { p.Headers = map[string]secret.Value{"x-tenant": secret.New("a")} }, keypool.StateAvailable},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			m, pool, _ := remembering(t, dir)
			pool.MarkKeyDead(pool.Keys()[0].ID, keypool.ReasonUnauthorized)
			m.close()
			other, next, _ := rememberingAt(t, dir, tt.change)
			defer other.close()
			assert.Equal(t, tt.want, next.Keys()[0].State)
		})
	}
}

func TestAnIdleRelayWritesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		m, pool, _ := remembering(t, dir)
		defer m.close()
		pool.MarkKeyDead(pool.Keys()[0].ID, keypool.ReasonSpent)
		written := func() os.FileInfo {
			time.Sleep(saveEvery)
			synctest.Wait()
			info, err := os.Stat(filepath.Join(dir, "pools"))
			require.NoError(t, err)
			return info
		}
		first, second := written(), written()
		assert.True(t, os.SameFile(first, second), "nothing has changed")
		pool.MarkKeyDead(pool.Keys()[1].ID, keypool.ReasonSpent)
		assert.False(t, os.SameFile(second, written()))
	})
}

func TestTroubleWithSavingIsToldOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		m, pool, log := remembering(t, dir)
		inTheWay := filepath.Join(dir, "pools", "x")
		require.NoError(t, os.MkdirAll(inTheWay, 0o700))
		for range 3 {
			pool.MarkKeyExhausted(pool.Keys()[0].ID, time.Second)
			time.Sleep(saveEvery)
			synctest.Wait()
		}
		var records []map[string]any
		for line := range strings.Lines(log.String()) {
			var r map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &r))
			records = append(records, r)
		}
		require.Len(t, records, 1, log.String())
		assert.Equal(t, "warn", records[0]["level"])
		assert.Equal(t, "what the relay learns cannot be saved", records[0]["message"])
		assert.Contains(t, records[0]["error"], filepath.Join(dir, "pools"))

		require.NoError(t, os.RemoveAll(filepath.Dir(inTheWay)))
		m.close()
		assert.Equal(t, 1, strings.Count(log.String(), "what the relay learns is saved again"), log.String())
		_, err := os.Stat(filepath.Join(dir, "pools"))
		assert.NoError(t, err)
	})
}

func TestClassesOfTheConfiguration(t *testing.T) {
	t.Parallel()
	url, keys := refusingProvider(t)
	file := writeConfig(t, "logging: {level: debug}\nclasses: [{models: [\"claude-sonnet-*\"], class: opus-5}]\nproviders: [{base_url: \""+url+"\", keys: [{key: sk-ant-good}]}]\n")
	p := startServe(t, nil, "--config", file)
	p.ask(keys)
	chosen := p.await("key chosen")
	if chosen["class"] == keypool.ClassModels { // for the relay's own list
		chosen = p.await("key chosen")
	}
	assert.Equal(t, "opus-5", chosen["class"])
	p.signal()
	p.endsWell()
}
