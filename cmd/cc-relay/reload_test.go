package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
)

// Requests that began before go on at the old address: none of them may be given a key
// of the new one, and what an operator has taken out stays out.
func TestAProviderThatMovesHasAPoolOfItsOwn(t *testing.T) {
	at := func(address string, keys ...string) *config.Config {
		cfg := config.Default()
		p := config.Provider{}
		p.Name, p.BaseURL = "main", address
		for _, k := range keys {
			p.Keys = append(p.Keys, keypool.KeyConfig{Key: secret.New(k)})
		}
		cfg.Providers = []config.Provider{p}
		return &cfg
	}
	reload := func(before *built, cfg *config.Config) *built {
		next, err := build(cfg, before, watchers{log: zerolog.Nop()})
		require.NoError(t, err)
		require.NoError(t, next.apply())
		return next
	}
	pool := func(b *built) *keypool.KeyPool { return b.live.Router.Upstreams()[0].Pool }
	ids := func(p *keypool.KeyPool) (ids []string) {
		for _, k := range p.Keys() {
			ids = append(ids, k.ID)
		}
		return ids
	}

	first := reload(nil, at("https://one.example.com", "sk-ant-one-00001", "sk-ant-both-0001"))
	were := ids(pool(first))
	require.NoError(t, pool(first).Disable(were[1]))
	rotated := reload(first, at("https://one.example.com", "sk-ant-two-00002", "sk-ant-both-0001"))
	assert.Same(t, pool(first), pool(rotated), "what is learned of the keys that stay counts")

	were = ids(pool(rotated))
	moved := reload(rotated, at("https://two.example.com", "sk-ant-three-003", "sk-ant-both-0001"))
	assert.NotSame(t, pool(rotated), pool(moved))
	assert.Equal(t, were, ids(pool(rotated)), "the pool of before knows no key of the new address")
	for _, k := range pool(moved).GetStats().Classes[0].Keys {
		assert.Equal(t, k.ID == were[1], k.State == keypool.StateOff, k.ID)
	}
	moved.live.Router.Upstreams()[0].SetDraining(true)
	again := reload(moved, at("https://one.example.com", "sk-ant-one-00001"))
	assert.True(t, again.live.Router.Upstreams()[0].Draining())
}

// A file alone may be fine, and not where the listener stays: other machines reach it.
// Keys that a provider refused because they were shown to it in the wrong way are tried
// again in the right one, and those whose account is empty are not.
func TestKeysAreTriedAgainWithAnotherHeader(t *testing.T) {
	with := func(change func(*config.Provider)) *config.Config {
		cfg := config.Default()
		p := config.Provider{Keys: []keypool.KeyConfig{{Key: secret.New("sk-ant-one-00001")}, {Key: secret.New("sk-ant-two-00002")}, {Key: secret.New("sk-ant-three-003")}}}
		p.Name, p.BaseURL = "main", "https://one.example.com"
		change(&p)
		cfg.Providers = []config.Provider{p}
		return &cfg
	}
	for name, tt := range map[string]struct {
		change func(*config.Provider)
		want   []keypool.State
	}{
		"auth":    {func(p *config.Provider) { p.Auth = "bearer" }, []keypool.State{keypool.StateAvailable, keypool.StateDead, keypool.StateAvailable}},
		"headers": {func(p *config.Provider) { p.Headers = map[string]secret.Value{"X-Tenant": secret.New("a")} }, []keypool.State{keypool.StateAvailable, keypool.StateDead, keypool.StateAvailable}},
		"nothing": {func(p *config.Provider) { p.IdleTimeout = time.Minute }, []keypool.State{keypool.StateDead, keypool.StateDead, keypool.StateAvailable}},
	} {
		t.Run(name, func(t *testing.T) {
			first, err := build(with(func(*config.Provider) {}), nil, watchers{log: zerolog.Nop()})
			require.NoError(t, err)
			require.NoError(t, first.apply())
			pool := first.live.Router.Upstreams()[0].Pool
			keys := pool.Keys()
			pool.MarkKeyDead(keys[0].ID, keypool.ReasonUnauthorized)
			pool.MarkKeyDead(keys[1].ID, keypool.ReasonSpent)
			next, err := build(with(tt.change), first, watchers{log: zerolog.Nop()})
			require.NoError(t, err)
			require.NoError(t, next.apply())
			for _, do := range next.after {
				do()
			}
			var got []keypool.State
			for _, k := range next.live.Router.Upstreams()[0].Pool.Keys() {
				got = append(got, k.State)
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

// Keys that were refused for the wrong header serve as soon as the file says the right one.
func TestACorrectedHeaderBringsKeysBack(t *testing.T) {
	picky := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"type":"error","error":{"type":"authentication_error","message":"no bearer token"}}`)
			return
		}
		_, _ = io.WriteString(w, `{"type":"message","usage":{"input_tokens":1,"output_tokens":1}}`)
	}))
	t.Cleanup(picky.Close)
	s := steer(t)
	with := func(more string) {
		s.writeText(fmt.Sprintf("clients: %s\nproviders:\n  - {name: picky, base_url: %q, keys: %s%s}\n", twoClients, picky.URL, bothKeys, more))
	}
	states := func() (all []string) {
		_, got := s.call("GET", "/api/v1/keys", "")
		for _, k := range got["keys"].([]any) {
			all = append(all, k.(map[string]any)["state"].(string))
		}
		return all
	}
	with("")
	s.within("both keys are dead", func() bool {
		s.status(annToken)
		return slices.Equal(states(), []string{"dead", "dead"})
	})
	with(", auth: bearer")
	s.within("a request is served", func() bool { return s.status(annToken) == http.StatusOK })
}

func TestMetricsThatAreOff(t *testing.T) {
	s := &steered{t: t, up: newHalfway(t), file: filepath.Join(t.TempDir(), "relay.yaml")}
	s.writeText(s.text(annAlone, oneKey) + "metrics: off\n")
	s.process = startServe(t, nil, "--config", s.file)
	token, err := os.ReadFile(s.stateOf("viewer.token"))
	require.NoError(t, err)
	s.admin = s.adminAddr
	status, said := s.callAs(strings.TrimSpace(string(token)), "GET", "/metrics", "")
	assert.Equal(t, http.StatusNotFound, status)
	assert.Contains(t, said, "turned off in the configuration")
}

func TestNoReloadLeavesAnOpenListenerWithoutClients(t *testing.T) {
	s := &steered{t: t, up: newHalfway(t), file: filepath.Join(t.TempDir(), "relay.yaml")}
	text := func(listen, clients string) string {
		return fmt.Sprintf("server: {listen: %q, insecure_cleartext: true}\nadmin: {listen: 127.0.0.1:0}\n", listen) + s.text(clients, bothKeys)
	}
	s.writeText(text("0.0.0.0:0", twoClients))
	s.process = startCommand(t, nil, os.Args[0], "serve", "--config", s.file)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(s.url, "http://"))
	require.NoError(t, err)
	s.url, s.admin = "http://127.0.0.1:"+port, s.adminAddr
	token, err := os.ReadFile(filepath.Join(s.cmd.Dir, ".local", "state", "cc-relay", "admin.token"))
	require.NoError(t, err)
	s.token = strings.TrimSpace(string(token))
	require.Equal(t, http.StatusUnauthorized, s.status("nobody's-token-0001"))

	s.writeText(text("127.0.0.1:0", "[]"))
	_, diff := s.call("POST", "/api/v1/config/diff", "")
	assert.Contains(t, fmt.Sprint(diff), "until the relay is restarted")
	status, got := s.call("POST", "/api/v1/reload", "")
	assert.Equal(t, http.StatusUnprocessableEntity, status)
	assert.Contains(t, fmt.Sprint(got), "until the relay is restarted")
	assert.Equal(t, http.StatusUnauthorized, s.status("nobody's-token-0001"))
	assert.Equal(t, http.StatusOK, s.status(annToken))
}

// The configuration first, the file of the key that it names second: a common order.
func TestAFileThatARefusedConfigurationNames(t *testing.T) {
	s := steer(t)
	key := filepath.Join(t.TempDir(), "key")
	s.write(annAlone, `[{key: "${file:`+key+`}"}]`)
	s.within("the configuration is refused", func() bool {
		_, got := s.call("GET", "/api/v1/status", "")
		return strings.Contains(fmt.Sprint(got["reasons"]), "reload_failed")
	})
	require.NoError(t, os.WriteFile(key, []byte("sk-ant-steer-from-a-file\n"), 0o600))
	require.Eventually(t, func() bool { return s.next() == "sk-ant-steer-from-a-file" }, patience, 50*time.Millisecond)
	assert.Equal(t, 1, strings.Count(s.logged(), "the configuration was not reloaded"), "it is told once")

	require.NoError(t, os.WriteFile(key, []byte("sk-ant-steer-rotated-file\n"), 0o600))
	require.Eventually(t, func() bool { return s.next() == "sk-ant-steer-rotated-file" }, patience, 50*time.Millisecond)
}

// Whoever asks the admin listener, with a token or without, leaves the relay the files
// that it needs.
func TestTheAdminListenerIsBounded(t *testing.T) {
	s := steer(t)
	answered := 0
	var open []net.Conn
	for range adminConnections + spare {
		c, err := net.Dial("tcp", s.admin)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		_, _ = io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n") // a connection may be closed by then
		if line, _ := bufio.NewReader(c).ReadString('\n'); line != "" {
			answered++
		}
		open = append(open, c)
	}
	assert.LessOrEqual(t, answered, adminConnections+sparePerSource)
	assert.GreaterOrEqual(t, answered, adminConnections-2) // the test's own client has some
	assert.Equal(t, http.StatusOK, s.status(annToken))
	for _, c := range open {
		_ = c.Close()
	}
	s.within("it answers again", func() bool {
		resp, err := http.Get("http://" + s.admin + "/livez")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}
