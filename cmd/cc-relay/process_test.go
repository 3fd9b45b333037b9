package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"crypto/tls"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
	statedir "cc-relay/internal/state"
)

// testTermination: what is open may end within the time to drain, and ends with an error
// of the relay's after it.
func testTermination(t *testing.T) {
	t.Run("streams end in time", testDrain)
	t.Run("streams last longer", func(t *testing.T) {
		up := newHalfway(t)
		p := startServe(t, nil, "--config", writeConfig(t, fmt.Sprintf("server: {drain_timeout: 300ms}\nproviders: [{base_url: %q, keys: [{key: sk-ant-one}]}]\n", up.URL)))
		open := p.post()
		half(t, open)
		p.signal()
		rest, err := io.ReadAll(open.Body)
		require.NoError(t, err, "the stream ends in order")
		assert.Regexp(t, `^event: error\ndata: \{.*"overloaded_error".*\}\n\n$`, string(rest))
		up.left(t)
		p.endsWell()
		assert.NotContains(t, p.logged(), "sk-ant-")
	})
}

// testFrozen: a relay that stands still for a while goes on where it was.
func testFrozen(t *testing.T) {
	up := newHalfway(t)
	p := startServe(t, nil, "--config", writeConfig(t, fmt.Sprintf("providers: [{base_url: %q, keys: [{key: sk-ant-one, rpm_limit: 60}]}]\n", up.URL)))
	open := p.post()
	half(t, open)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	close(up.release)
	var asked sync.WaitGroup
	for range 5 {
		asked.Go(func() {
			resp, err := http.Post(p.url+"/v1/messages", "application/json",
				strings.NewReader(`{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"hi"}]}`))
			if !assert.NoError(t, err) {
				return
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			assert.NoError(t, err)
			assert.Equal(t, firstHalf+secondHalf, string(got))
		})
	}
	time.Sleep(2 * time.Second)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGCONT))
	rest, err := io.ReadAll(open.Body)
	require.NoError(t, err)
	assert.Equal(t, secondHalf, string(rest))
	asked.Wait()
	p.signal()
	p.endsWell()
	assert.NotRegexp(t, `"level":"(warn|error)"`, p.logged())
	assert.NotContains(t, p.logged(), "sk-ant-")
}

// panicking is a transport that fails inside: at the first request, and in the middle of
// the answer to the second. To the third it loses the connection.
type panicking struct{ asked atomic.Int64 }

func (p *panicking) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Request: r}
	if r.Method == http.MethodGet { // the list of models
		resp.StatusCode, resp.Body = http.StatusNotFound, http.NoBody
		return resp, nil
	}
	switch p.asked.Add(1) {
	case 1:
		panic("sk-ant-panic said the transport")
	case 2:
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(firstHalf), p))
	case 3:
		return nil, errors.New("lost")
	default:
		resp.Body = io.NopCloser(strings.NewReader(firstHalf + secondHalf))
	}
	return resp, nil
}

func (p *panicking) Read([]byte) (int, error) { panic("sk-ant-panic said the stream") }

// testPanics: one that fails inside takes nobody with it.
func testPanics(t *testing.T) {
	t.Run("requests", testPanicsOfRequests)
	t.Run("saving", testPanicOfSaving)
	t.Run("reloading", testPanicOfReloading)
}

func testPanicsOfRequests(t *testing.T) {
	cfg := config.Default()
	cfg.Providers = []config.Provider{{Keys: []keypool.KeyConfig{{Key: secret.New("sk-ant-panic")}}}}
	cfg.Providers[0].Name, cfg.Providers[0].Kind, cfg.Providers[0].BaseURL = "test", "anthropic", "https://api.example.com"
	log := &lockedLog{}
	r, err := newRunning(&cfg, zerolog.New(log), nil)
	require.NoError(t, err)
	up := r.live().Router.Upstreams()[0]
	up.Transport = &panicking{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := startOn(l, r)
	p := &process{t: t, url: "http://" + served.addr()}

	failed := p.post()
	text, err := io.ReadAll(failed.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusInternalServerError, failed.StatusCode)
	assert.Contains(t, string(text), `"api_error"`)
	cut := p.post()
	text, err = io.ReadAll(cut.Body)
	assert.Error(t, err, "a stream that was cut looks whole")
	assert.Equal(t, firstHalf, string(text))
	log.fail("attempt failed")
	failed = p.post()
	_, err = io.Copy(io.Discard, failed.Body)
	require.NoError(t, err)
	assert.Equal(t, http.StatusInternalServerError, failed.StatusCode)
	whole := p.post()
	text, err = io.ReadAll(whole.Body)
	require.NoError(t, err)
	assert.Equal(t, firstHalf+secondHalf, string(text))

	served.drain(patience, nil)
	assert.Zero(t, served.handler.Active())
	for _, c := range up.Pool.GetStats().Classes {
		assert.Zero(t, c.InFlight, "class %q", c.Class)
	}
	assert.Equal(t, 3, strings.Count(log.String(), "request failed inside the relay"))
	assert.Contains(t, log.String(), "process_test.go", "the log says where")
	assert.NotContains(t, log.String(), "sk-ant-")
}

func testPanicOfSaving(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		m, pool, log := remembering(t, dir)
		good := m.pools.Load()
		m.pools.Store(&map[string]followed{"test": {}})
		time.Sleep(saveEvery)
		synctest.Wait()
		m.pools.Store(good)
		pool.MarkKeyDead(pool.Keys()[0].ID, keypool.ReasonSpent)
		time.Sleep(beginAgain + saveEvery)
		synctest.Wait()
		assert.Equal(t, 1, strings.Count(log.String(), `"part":"saving what is learned","panic":"runtime.errorString"`), log)
		text, err := os.ReadFile(filepath.Join(dir, poolsFile))
		require.NoError(t, err)
		assert.Contains(t, string(text), "spent")
		m.close()
	})
}

func testPanicOfReloading(t *testing.T) {
	cfg := config.Default()
	log := &lockedLog{}
	r, err := newRunning(&cfg, zerolog.New(log), nil)
	require.NoError(t, err)
	loads := make(chan int, 2)
	count := 0
	r.source = filepath.Join(t.TempDir(), "none.yaml")
	r.load = func() (*config.Config, error) {
		count++
		loads <- count
		if count == 1 {
			panic("sk-ant-panic")
		}
		return nil, errors.New("not now")
	}
	hangups := make(chan os.Signal, 1)
	stop := r.follow(hangups)
	hangups <- syscall.SIGHUP
	assert.Equal(t, 1, <-loads)
	hangups <- syscall.SIGHUP
	select {
	case n := <-loads:
		assert.Equal(t, 2, n)
	case <-time.After(patience):
		assert.Fail(t, "nobody reloads any more")
	}
	stop()
	assert.Contains(t, log.String(), `"part":"reloading","panic":"string"`)
	assert.NotContains(t, log.String(), "sk-ant-")
}

// lockedLog is a log that may be read while it is written.
type lockedLog struct {
	mu    sync.Mutex
	text  strings.Builder
	fails string // a record with it panics, once; "" = none does
}

func (l *lockedLog) fail(at string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fails = at
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails != "" && strings.Contains(string(p), l.fails) {
		l.fails = ""
		panic("the log")
	}
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// send posts one request of this size, and returns what came of it: a status, or 0.
func (p *process) sends(client *http.Client, size int) int {
	body := `{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"answer at once` + strings.Repeat("x", size) + `"}]}`
	resp, err := client.Post(p.url+"/v1/messages", "application/json", strings.NewReader(body))
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode == http.StatusOK && string(text) != firstHalf+secondHalf {
		return 0
	}
	return resp.StatusCode
}

// newClient has connections of its own, which are closed at the end of the test.
func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * patience}
}

// testLittleMemory: large bodies on a heap that is smaller than all of them together are
// served or refused in order, and nothing else is hurt.
func testLittleMemory(t *testing.T) {
	up := newHalfway(t)
	p := startServe(t, []string{"GOMEMLIMIT=96MiB"}, "--config", writeConfig(t, fmt.Sprintf("providers: [{base_url: %q, keys: [{key: sk-ant-one}]}]\n", up.URL)))
	open := p.post()
	half(t, open)
	client := newClient(t)
	var all sync.WaitGroup
	for range 24 {
		all.Go(func() { assert.Contains(t, []int{200, 529}, p.sends(client, 8<<20)) })
	}
	all.Wait()
	status, _ := p.get("/livez")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, http.StatusOK, p.sends(client, 10))
	close(up.release)
	rest, err := io.ReadAll(open.Body)
	require.NoError(t, err)
	assert.Equal(t, secondHalf, string(rest))
	p.signal()
	p.endsWell()
}

// testLittleProcessor: on one core, with more work than it can do, whoever watches over
// the relay still hears that it lives.
func testLittleProcessor(t *testing.T) {
	const (
		clients = 32
		during  = 3 * time.Second
		slowest = 10 * time.Second // the machine does other things, too
	)
	up := newHalfway(t)
	p := startServe(t, []string{"GOMAXPROCS=1"}, "--config", writeConfig(t, fmt.Sprintf("providers: [{base_url: %q, keys: [{key: sk-ant-one}]}]\n", up.URL)))
	client := newClient(t)
	ctx, stop := context.WithTimeout(t.Context(), during)
	defer stop()
	var served, longest atomic.Int64
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				status := p.sends(client, 200<<10)
				assert.Contains(t, []int{200, 529}, status)
				if status == http.StatusOK {
					served.Add(1)
					longest.Store(max(longest.Load(), int64(time.Since(began))))
				}
			}
		})
	}
	health := newClient(t)
	for ctx.Err() == nil {
		began := time.Now()
		for _, path := range []string{"/livez", "/readyz"} {
			resp, err := health.Get(p.url + path)
			require.NoError(t, err)
			assert.Equal(t, http.StatusOK, resp.StatusCode, path)
			_ = resp.Body.Close()
		}
		assert.Less(t, time.Since(began), slowest)
		time.Sleep(20 * time.Millisecond)
	}
	all.Wait()
	t.Logf("%d requests, the longest took %s", served.Load(), time.Duration(longest.Load()))
	assert.Positive(t, served.Load())
	assert.Less(t, time.Duration(longest.Load()), slowest)
	p.signal()
	p.endsWell()
}

// inDirectory is a configuration whose relay keeps its state there.
func inDirectory(t *testing.T, dir, url string) string {
	return writeConfig(t, fmt.Sprintf("server: {state_dir: %q}\nproviders: [{name: slow, base_url: %q, keys: [{key: sk-ant-one}]}]\n", dir, url))
}

// testTwoOnOneDirectory: the second relay on a state directory does not start, and the
// first does not notice.
func testTwoOnOneDirectory(t *testing.T) {
	up := newHalfway(t)
	dir := filepath.Join(t.TempDir(), "state")
	file := inDirectory(t, dir, up.URL)
	first := startServe(t, nil, "--config", file)
	open := first.post()
	half(t, open)
	for range 3 { // as what restarts a service does
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		second := exec.CommandContext(ctx, os.Args[0], "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config", file)
		second.Env = []string{asRelay + "=1", "HOME=" + t.TempDir()}
		out, err := second.CombinedOutput()
		cancel()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, "%s", out)
		assert.Equal(t, 1, exit.ExitCode())
		assert.Contains(t, string(out), fmt.Sprintf("cc-relay: state directory %s: is in use by process %d on ", dir, first.cmd.Process.Pid))
		assert.NotContains(t, string(out), "relay serves")
	}
	close(up.release)
	rest, err := io.ReadAll(open.Body)
	require.NoError(t, err)
	assert.Equal(t, secondHalf, string(rest))

	require.NoError(t, first.cmd.Process.Kill())
	for range first.lines { // until its end
	}
	_ = first.cmd.Wait()
	next := startServe(t, nil, "--config", file)
	assert.Equal(t, http.StatusOK, next.sends(newClient(t), 10))
	next.signal()
	next.endsWell()
	startServe(t, nil, "--config", file) // after an end in order

	t.Run("without a lock there is no state, and without state no lock is needed", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "state")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "lock"), 0o700))
		p := startServe(t, nil, "--config", inDirectory(t, dir, up.URL))
		assert.Equal(t, http.StatusOK, p.sends(newClient(t), 10))
		p.signal()
		p.endsWell()
		assert.Equal(t, 1, strings.Count(p.logged(), "state directory "+dir+": cannot be locked: is not a regular file"))
		off := writeConfig(t, fmt.Sprintf("server: {state: off, state_dir: %q}\nproviders: [{base_url: %q, keys: [{key: sk-ant-one}]}]\n", dir, up.URL))
		for range 2 { // two at a time
			startServe(t, nil, "--config", off, "--admin-listen", "off")
		}
	})
}

var gauge = regexp.MustCompile(`(?m)^(go_goroutines|process_open_fds) (\S+)$`)

// has is how many goroutines and open files a relay has.
func (s *steered) has() (goroutines, files float64) {
	s.t.Helper()
	_, text := s.callAs(s.token, "GET", "/metrics", "")
	got := map[string]float64{}
	for _, m := range gauge.FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseFloat(m[2], 64)
		require.NoError(s.t, err)
		got[m[1]] = n
	}
	require.Len(s.t, got, 2)
	return got["go_goroutines"], got["process_open_fds"]
}

// testNothingPilesUp: after any number of requests, served, refused and left, a relay has
// no more goroutines and files open than after the first ones.
func testNothingPilesUp(t *testing.T) {
	s := steer(t)
	round := func() {
		client := newClient(t)
		send := func(ctx context.Context, token, how string) {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/messages",
				strings.NewReader(`{"model":"claude-sonnet-5-5","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"answer `+how+`"}]}`))
			if !assert.NoError(t, err) {
				return
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("X-Api-Key", token)
			resp, err := client.Do(req)
			if !assert.NoError(t, err) {
				return
			}
			if how == "slowly" {
				_, err = io.ReadFull(resp.Body, make([]byte, len(firstHalf)))
			} else {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			assert.NoError(t, err)
			_ = resp.Body.Close()
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 10 {
					send(t.Context(), annToken, "at once")
					send(t.Context(), "nobody's", "at once")
					ctx, leave := context.WithCancel(t.Context())
					send(ctx, benToken, "slowly") // and is left in the middle
					leave()
				}
			})
		}
		all.Wait()
		client.CloseIdleConnections()
	}
	round()
	const room = 5 // a connection or two are between their ends
	var goroutines, files float64
	settled := func() bool {
		g, f := s.has()
		still := g == goroutines && f == files
		goroutines, files = g, f
		return still
	}
	require.Eventually(t, settled, patience, 300*time.Millisecond)
	before, opened := goroutines, files
	for range 3 {
		round()
	}
	assert.Eventually(t, func() bool {
		goroutines, files = s.has()
		return goroutines <= before+room && files <= opened+room
	}, patience, 100*time.Millisecond, "after the first round %v goroutines and %v files, now %v and %v", before, opened, goroutines, files)
	t.Logf("goroutines %v, then %v; files %v, then %v", before, goroutines, opened, files)
	s.signal()
	s.endsWell()
}

// testStateOfTheFuture: times of a state file that no relay would have set are bounded.
func testStateOfTheFuture(t *testing.T) {
	const decade = 10 * 365 * 24 * time.Hour
	now := time.Now()
	for name, tc := range map[string]struct {
		saved, until time.Time
		least, most  int // of retry-after, in seconds
	}{
		"a cool-down of ten years":     {now, now.Add(decade), 3000, 3600},
		"saved ten years from now":     {now.Add(decade), now.Add(decade + 10*time.Minute), 500, 600},
		"saved in 1970 for now":        {time.UnixMilli(1), now.Add(10 * time.Minute), 0, 0},
		"saved at no time that can be": {time.UnixMilli(1 << 60), now.Add(decade), 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			up := newHalfway(t)
			close(up.release)
			dir := filepath.Join(t.TempDir(), "state")
			d, err := statedir.Open(dir)
			require.NoError(t, err)
			id := keypool.KeyConfig{Key: secret.New("sk-ant-one")}.ID()
			require.NoError(t, d.Save(poolsFile, poolsVersion, savedPools{"slow": {Snapshot: keypool.Snapshot{At: tc.saved.UnixMilli(), Keys: []keypool.KeySnapshot{
				{ID: id, Cool: &keypool.CoolSnapshot{Until: tc.until.UnixMilli()}}}}}}))
			require.NoError(t, d.Close())
			p := startServe(t, nil, "--config", inDirectory(t, dir, up.URL))
			resp := p.post()
			if tc.most == 0 {
				assert.Equal(t, http.StatusOK, resp.StatusCode)
				return
			}
			assert.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
			after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
			require.NoError(t, err)
			assert.GreaterOrEqual(t, after, tc.least)
			assert.LessOrEqual(t, after, tc.most)
		})
	}
}

// testClocksOfCertificates: a certificate that is not valid now is refused, and the error
// says what time it is thought to be.
func testClocksOfCertificates(t *testing.T) {
	t.Run("the relay's own", testOwnCertificateAndClock)
	now := time.Now()
	for name, valid := range map[string][2]time.Time{
		"a provider's, expired":       {now.Add(-48 * time.Hour), now.Add(-24 * time.Hour)},
		"a provider's, not valid yet": {now.Add(24 * time.Hour), now.Add(48 * time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key, _ := newPairs(t).make(valid[0], valid[1])
			pair, err := tls.X509KeyPair(cert, key)
			require.NoError(t, err)
			up := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked all the same") }))
			up.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
			up.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
			up.StartTLS()
			t.Cleanup(up.Close)
			ca := filepath.Join(t.TempDir(), "ca.pem")
			require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600))
			p := startServe(t, nil, "--config", writeConfig(t, fmt.Sprintf("providers: [{base_url: %q, ca_file: %q, keys: [{key: sk-ant-one}]}]\n", up.URL, ca)))
			resp := p.post()
			text, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			assert.Equal(t, http.StatusBadGateway, resp.StatusCode)
			assert.Contains(t, string(text), `"api_error"`)
			assert.NotContains(t, string(text), "127.0.0.1")
			p.signal()
			p.endsWell()
			assert.Regexp(t, `certificate has expired or is not yet valid: current time `+now.Format("2006-"), p.logged())
			assert.NotContains(t, p.logged(), "sk-ant-")
		})
	}
}

// testStateDirectoryIsGone: requests go on, it is told once, and what must be recorded is
// not done.
func testStateDirectoryIsGone(t *testing.T) {
	s := steer(t)
	require.Equal(t, firstKey, s.next())
	require.NoError(t, os.RemoveAll(filepath.Join(s.cmd.Dir, ".local")))
	status, got := s.call("POST", "/api/v1/keys/"+s.keyIDs()[0]+"/off", "")
	assert.Equal(t, http.StatusServiceUnavailable, status, "%v", got)
	assert.Equal(t, firstKey, s.next(), "the key is not off")
	s.signal()
	s.endsWell()
	assert.Equal(t, 1, strings.Count(s.logged(), "what the relay learns cannot be saved"))
}

// testLogsThatAreStuck: nobody waits for a log.
func testLogsThatAreStuck(t *testing.T) {
	t.Run("a full pipe", testFullPipe)
	t.Run("at the end", testStuckAtTheEnd)
}

// testManyDeadKeys: however many keys are refused, the one that is not serves.
func testManyDeadKeys(t *testing.T) {
	url, keys := refusingProvider(t)
	var all strings.Builder
	for i := range 10 {
		fmt.Fprintf(&all, "{key: sk-ant-refused-%d, priority: 2}, ", i)
	}
	p := startServe(t, nil, "--config", writeConfig(t, fmt.Sprintf("providers: [{base_url: %q, keys: [%s{key: sk-ant-good}]}]\n", url, all.String())))
	used := p.ask(keys)
	assert.Len(t, used, 11)
	assert.Equal(t, "sk-ant-good", used[len(used)-1])
	assert.Equal(t, []string{"sk-ant-good"}, p.ask(keys), "they are known now")
	p.signal()
	p.endsWell()
	assert.NotContains(t, p.logged(), "sk-ant-")
}
