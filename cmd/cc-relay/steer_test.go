package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// steered is a relay with a file that tests change, in front of a provider whose long
// streams stop in the middle.
type steered struct {
	*process
	t     *testing.T
	up    *halfway
	file  string
	admin string // its address
	token string
}

// The keys and the tokens of its clients.
const (
	firstKey, secondKey = "sk-ant-steer-first-000001", "sk-ant-steer-second-00002"
	annToken, benToken  = "token-of-ann-0123456789", "token-of-ben-0123456789"
)

// halfway answers a request that asks for it at once, any other to its middle, and the
// rest on release. One key may be told to wait.
type halfway struct {
	*httptest.Server
	release chan struct{}
	gone    chan struct{} // holds one where a request was given up

	mu      sync.Mutex
	last    string // key of the last request
	limited string // key that is told to wait; "" is none
}

func newHalfway(t *testing.T) *halfway {
	up := &halfway{release: make(chan struct{}), gone: make(chan struct{}, 1)}
	up.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // the list of models
			http.NotFound(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		up.mu.Lock()
		up.last = r.Header.Get("X-Api-Key")
		limited := up.last == up.limited
		up.mu.Unlock()
		if limited {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "3000")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"type":"error","error":{"type":"rate_limit_error","message":"too many"}}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, firstHalf)
		w.(http.Flusher).Flush()
		if !strings.Contains(string(body), "at once") {
			select {
			case <-up.release:
			case <-r.Context().Done():
				notify(up.gone)
				return
			}
		}
		_, _ = io.WriteString(w, secondHalf)
	}))
	t.Cleanup(up.Close)
	return up
}

// left waits until a request was given up.
func (up *halfway) left(t *testing.T) {
	t.Helper()
	select {
	case <-up.gone:
	case <-time.After(patience):
		require.FailNow(t, "the provider still answers")
	}
}

// key is the one of the last request.
func (up *halfway) key() string {
	up.mu.Lock()
	defer up.mu.Unlock()
	return up.last
}

// limit has a key told to wait, "" none any more.
func (up *halfway) limit(key string) {
	up.mu.Lock()
	defer up.mu.Unlock()
	up.limited = key
}

func steer(t *testing.T) *steered {
	s := &steered{t: t, up: newHalfway(t), file: filepath.Join(t.TempDir(), "relay.yaml")}
	s.write(twoClients, bothKeys)
	s.process = startServe(t, nil, "--config", s.file)
	dir := filepath.Join(s.cmd.Dir, ".local", "state", "cc-relay")
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	require.NoError(t, err)
	s.token = strings.TrimSpace(string(token))
	s.admin = s.adminAddr
	return s
}

const (
	twoClients = `[{name: ann, token: "` + annToken + `"}, {name: ben, token: "` + benToken + `"}]`
	annAlone   = `[{name: ann, token: "` + annToken + `"}]`
	bothKeys   = `[{key: "` + firstKey + `", priority: 2}, {key: "` + secondKey + `"}]`
	oneKey     = `[{key: "` + secondKey + `"}]`
)

// write replaces the file as editors do: by another one.
func (s *steered) write(clients, keys string) { s.writeText(s.text(clients, keys)) }

func (s *steered) text(clients, keys string) string {
	return fmt.Sprintf("clients: %s\nproviders:\n  - {name: slow, base_url: %q, keys: %s}\n", clients, s.up.URL, keys)
}

func (s *steered) writeText(text string) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(s.file+".new", []byte(text), 0o600))
	require.NoError(s.t, os.Rename(s.file+".new", s.file))
}

// stream begins a request of a client, and reads the first half of its answer.
func (s *steered) stream(token string) *http.Response {
	s.t.Helper()
	resp := s.send(token, "slowly")
	half(s.t, resp)
	return resp
}

func (s *steered) send(token, how string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.url+"/v1/messages",
		strings.NewReader(`{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"answer `+how+` what nobody else may see"}]}`))
	require.NoError(s.t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Api-Key", token)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// status is what a new request of the client gets.
func (s *steered) status(token string) int {
	s.t.Helper()
	resp := s.send(token, "at once")
	_, err := io.Copy(io.Discard, resp.Body)
	require.NoError(s.t, err)
	return resp.StatusCode
}

// within requires that something holds before a change counts as slow.
func (s *steered) within(what string, holds func() bool) {
	s.t.Helper()
	began := time.Now()
	require.Eventually(s.t, holds, patience, 10*time.Millisecond, what)
	assert.Less(s.t, time.Since(began), slowest, "it took too long until %s", what)
}

// slowest is how long a change may take here. On an idle machine it is well under a
// second; tests share theirs with others.
const slowest = 10 * time.Second

// ends requires that an open stream ends as the provider ends it.
func (s *steered) ends(resp *http.Response) {
	s.t.Helper()
	s.up.release <- struct{}{}
	rest, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	assert.Equal(s.t, secondHalf, string(rest), "the stream was hurt")
}

// call asks the admin listener; a body that is not "" is sent.
func (s *steered) call(method, path, body string) (int, map[string]any) {
	s.t.Helper()
	status, text := s.callAs(s.token, method, path, body)
	var got map[string]any
	require.NoError(s.t, json.Unmarshal([]byte(text), &got), "%s", text)
	return status, got
}

func (s *steered) callAs(token, method, path, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://"+s.admin+path, strings.NewReader(body))
	require.NoError(s.t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return resp.StatusCode, string(text)
}

// keyIDs are the ids of the keys in configured order.
func (s *steered) keyIDs() (ids []string) {
	_, got := s.call("GET", "/api/v1/keys", "")
	for _, k := range got["keys"].([]any) {
		ids = append(ids, k.(map[string]any)["id"].(string))
	}
	return ids
}

// next is the key that the next request goes with.
func (s *steered) next() string {
	s.t.Helper()
	require.Equal(s.t, http.StatusOK, s.status(annToken))
	return s.up.key()
}

// testRemovedKey: a key that is taken out while a stream uses it.
func testRemovedKey(t *testing.T) {
	s := steer(t)
	open := s.stream(annToken)
	require.Equal(t, firstKey, s.up.key())
	s.write(twoClients, oneKey)
	s.within("the key is gone", func() bool { return len(s.keyIDs()) == 1 })
	assert.Equal(t, secondKey, s.next())
	s.ends(open)
	s.write(twoClients, `[{key: "sk-ant-steer-rotated-0001", priority: 2}, {key: "`+secondKey+`"}]`)
	s.within("the new key is there", func() bool { return len(s.keyIDs()) == 2 })
	assert.Equal(t, "sk-ant-steer-rotated-0001", s.next())
}

// testRevokedClient: a client that is taken out while a stream of it is open.
func testRevokedClient(t *testing.T) {
	s := steer(t)
	open := s.stream(benToken)
	s.write(annAlone, bothKeys)
	s.within("the token is refused", func() bool { return s.status(benToken) == http.StatusUnauthorized })
	assert.Equal(t, http.StatusOK, s.status(annToken))
	s.ends(open)
}

// testBadFile: files that cannot be used change nothing, and say where they are wrong.
func testBadFile(t *testing.T) {
	s := steer(t)
	good := s.text(annAlone, oneKey)
	for name, tt := range map[string]struct{ text, says string }{
		"syntax":        {"clients: [\n", "relay.yaml"},
		"unknown field": {good + "serverr: {}\n", "serverr"},
		"wrong type":    {"server: 7\n" + good, "relay.yaml:1"},
		"empty":         {"", "empty"},
		"cut short":     {good[:len(good)-30], "relay.yaml"},
		"a second time": {strings.Replace(good, oneKey, `[{key: "`+firstKey+`"}, {key: "`+firstKey+`"}]`, 1), "keys[1]"},
	} {
		s.writeText(tt.text)
		status, got := s.call("POST", "/api/v1/reload", "")
		assert.Equal(t, http.StatusUnprocessableEntity, status, name)
		text := fmt.Sprint(got)
		assert.Contains(t, text, tt.says, name)
		assert.NotContains(t, text, firstKey, name)
		assert.Equal(t, http.StatusOK, s.status(benToken), name)
		assert.Len(t, s.keyIDs(), 2, name)
	}
	_, got := s.call("GET", "/api/v1/status", "")
	assert.Equal(t, "degraded", got["status"])
	assert.Contains(t, fmt.Sprint(got["reasons"]), "reload_failed")
	_, metrics := s.callAs(s.token, "GET", "/metrics", "")
	assert.Contains(t, metrics, "cc_relay_config_last_reload_successful 0")
	s.write(annAlone, bothKeys)
	s.within("the relay is well again", func() bool {
		_, got := s.call("GET", "/api/v1/status", "")
		return got["status"] == "healthy"
	})
}

// testEditors: whatever way the file is written, its last content is in force, once.
func testEditors(t *testing.T) {
	s := steer(t)
	require.NoError(t, os.Remove(s.file)) // nothing is in force that is not there
	time.Sleep(300 * time.Millisecond)
	assert.Equal(t, http.StatusOK, s.status(benToken))
	f, err := os.OpenFile(s.file, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	for _, part := range strings.SplitAfter(s.text(annAlone, bothKeys), "\n") { // slowly, in place
		_, err := f.WriteString(part)
		require.NoError(t, err)
		time.Sleep(20 * time.Millisecond)
	}
	require.NoError(t, f.Close())
	s.within("what was written slowly counts", func() bool { return s.status(benToken) == http.StatusUnauthorized })
	real := filepath.Join(t.TempDir(), "real.yaml")
	require.NoError(t, os.WriteFile(real, []byte(s.text(twoClients, bothKeys)), 0o600))
	require.NoError(t, os.Symlink(real, s.file+".link"))
	require.NoError(t, os.Rename(s.file+".link", s.file))
	s.within("what a link leads to counts", func() bool { return s.status(benToken) == http.StatusOK })
	require.NoError(t, os.WriteFile(real, []byte(s.text(annAlone, bothKeys)), 0o600))
	s.within("a change behind the link counts", func() bool { return s.status(benToken) == http.StatusUnauthorized })
}

// testHangup: the signal reloads, and does not end the relay.
func testHangup(t *testing.T) {
	s := steer(t)
	s.write(annAlone, bothKeys)
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGHUP))
	s.within("the token is refused", func() bool { return s.status(benToken) == http.StatusUnauthorized })
}

func TestSteering(t *testing.T) {
	t.Run("a hangup", testHangup)
}

// Each action of the API takes effect at once, and the stream that is open goes on.
func TestActionsTakeEffectAtOnce(t *testing.T) {
	s := steer(t)
	open := s.stream(annToken)
	require.Equal(t, firstKey, s.up.key())
	first := s.keyIDs()[0]
	act := func(path, body string) map[string]any {
		t.Helper()
		status, got := s.call("POST", "/api/v1/"+path, body)
		require.Equal(t, http.StatusOK, status, "%v", got)
		assert.Contains(t, got, "survives_restart")
		return got
	}
	act("keys/"+first+"/off", "")
	assert.Equal(t, secondKey, s.next())
	act("keys/"+first+"/on", "")
	assert.Equal(t, firstKey, s.next())
	act("keys/"+first+"/release", "")
	act("providers/slow/drain", "")
	assert.Equal(t, 529, s.status(annToken))
	act("providers/slow/on", "")
	assert.Equal(t, firstKey, s.next())
	got := act("breakers/force", `{"provider":"slow","state":"open","for":"1h"}`)
	expires, err := time.Parse(time.RFC3339, got["expires"].(string))
	require.NoError(t, err)
	assert.InDelta(t, time.Hour.Seconds(), time.Until(expires).Seconds(), 60)
	_, stats := s.call("GET", "/api/v1/status", "")
	assert.NotEqual(t, "healthy", stats["status"])
	act("breakers/force", `{"provider":"slow","state":"auto"}`)
	assert.Equal(t, firstKey, s.next())
	s.write(annAlone, bothKeys)
	act("reload", "")
	assert.Equal(t, http.StatusUnauthorized, s.status(benToken))
	s.ends(open)

	s.signal()
	s.endsWell()
	audit, err := os.ReadFile(filepath.Join(s.cmd.Dir, ".local", "state", "cc-relay", "audit.log"))
	require.NoError(t, err)
	for _, action := range []string{"key.off", "key.on", "key.release", "provider.drain", "provider.on", "breaker.force", "reload"} {
		assert.Contains(t, string(audit), `"action":"`+action+`"`)
	}
}

// testPlanes: tokens of clients open nothing at the admin's, and the other way round.
func testPlanes(t *testing.T) {
	s := steer(t)
	for _, path := range []string{"/api/v1/stats", "/api/v1/keys", "/api/v1/config", "/metrics", "/debug/pprof/heap"} {
		for _, token := range []string{annToken, firstKey, ""} {
			status, _ := s.callAs(token, "GET", path, "")
			assert.Contains(t, []int{http.StatusUnauthorized, http.StatusTooManyRequests}, status, path) // guessing is slowed
		}
	}
	assert.Equal(t, http.StatusUnauthorized, s.status(s.token))
	for _, path := range []string{"/api/v1/stats", "/metrics", "/debug/pprof/"} { // of the data listener
		status, _ := s.get(path)
		assert.Equal(t, http.StatusNotFound, status, path)
	}
}

// testWriteOnly: no provider key, no token and no prompt comes out of anything that
// looks at the relay.
func testWriteOnly(t *testing.T) {
	s := steer(t)
	open := s.stream(annToken)
	s.ends(open)
	id := open.Header.Get("X-Cc-Relay-Request-Id")
	var out strings.Builder
	add := func(method, path, body string) {
		_, text := s.callAs(s.token, method, path, body)
		out.WriteString(text + "\n")
	}
	for _, path := range []string{"stats", "status", "keys", "providers", "requests", "requests/" + id, "config", "openapi.json"} {
		add("GET", "/api/v1/"+path, "")
	}
	add("GET", "/metrics", "")
	add("POST", "/api/v1/explain", `{"model":"`+firstKey+`","tokens":10}`)
	add("POST", "/api/v1/breakers/force", `{"provider":"slow","class":"`+secondKey+`","state":"open"}`)
	add("POST", "/api/v1/keys/"+firstKey+"/off", "")
	add("POST", "/api/v1/providers/"+annToken+"/drain", "")
	add("POST", "/api/v1/config/diff", "")
	add("POST", "/api/v1/reload", "")
	s.signal()
	s.endsWell()
	for _, name := range []string{"audit.log", "pools"} {
		text, err := os.ReadFile(filepath.Join(s.cmd.Dir, ".local", "state", "cc-relay", name))
		require.NoError(t, err)
		out.Write(text)
	}
	out.WriteString(s.logged())
	canaries := []string{firstKey, secondKey, annToken, benToken, s.token, "nobody else may see"}
	leaked := func(text string) (found []string) {
		for _, c := range canaries {
			if strings.Contains(text, c) {
				found = append(found, c)
			}
		}
		return found
	}
	for line := range strings.Lines(out.String()) {
		assert.Empty(t, leaked(line), "%s", line)
	}
	assert.Len(t, leaked(out.String()+strings.Join(canaries, " ")), len(canaries), "the test finds nothing")
	assert.Contains(t, out.String(), id)
}

// The tests of rows of the catalogue of faults, by the rows' names.

func TestFault(t *testing.T) {
	t.Run("D06", testFullLogPipe)
	t.Run("C06", testSlowHeaders)
	t.Run("C14", testPeersThatVanish)
	t.Run("C26", func(t *testing.T) {
		t.Run("files", testMoreConnectionsThanFiles)
		t.Run("bounds", testCrowds)
	})
	t.Run("F01", testBadFile)
	t.Run("F02", testBadFirstFile)
	t.Run("F03", testEditors)
	t.Run("F05", testRemovedKey)
	t.Run("F06", testRevokedClient)
	t.Run("F10", testOpenListeners)
	t.Run("P02", testTermination)
	t.Run("P03", testSecondSignal)
	t.Run("P04", testFrozen)
	t.Run("P05", testPanics)
	t.Run("P06", testLittleMemory)
	t.Run("P07", testLittleProcessor)
	t.Run("P09", testTwoOnOneDirectory)
	t.Run("P10", testNothingPilesUp)
	t.Run("T03", testStateOfTheFuture)
	t.Run("T05", testClocksOfCertificates)
	t.Run("D05", testStateDirectoryIsGone)
	t.Run("D06", testLogsThatAreStuck)
	t.Run("L02", testManyDeadKeys)
}

func TestSecurity(t *testing.T) {
	t.Run("S01", testFirstStart)
	t.Run("S06", testPlanes)
	t.Run("S10", testWriteOnly)
	t.Run("S11", testViewer)
	t.Run("S12", testRevokedClient)
	t.Run("S21", func(t *testing.T) {
		t.Run("sources", testSourcesOfSecrets)
		t.Run("flags", testNoFlagTakesASecret)
	})
	t.Run("S22", func(t *testing.T) {
		t.Run("no core", testNoCore)
		t.Run("metrics", testScrapingAHardenedRelay)
	})
	t.Run("S24", testConsoleCannotBeForged)
	t.Run("S40", testNobodyElseIsCalled)
	t.Run("S35", testUnwritableAudit)
}
