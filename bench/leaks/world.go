package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	stdlog "log"
)

// workers send side by side: many, for a request that is tried again waits before.
const workers = 64

// world is what is around the relays: the providers and the receiver of traces.
type world struct {
	got       *findings
	seed      uint64
	number    atomic.Int64
	providers *httptest.Server
	receiver  *httptest.Server
	planted   atomic.Bool // whether the receiver has seen the plant in this round
}

func newWorld(got *findings, seed uint64) (*world, error) {
	w := &world{got: got, seed: seed}
	w.providers = httptest.NewUnstartedServer(&provider{got: got, seen: got.output("headers at providers"), seed: seed})
	w.providers.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	w.providers.Start()
	w.receiver = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Content-Encoding") != "" {
			got.count("traces that could not be read", 1)
		}
		if bytes.Contains(body, plantForm) {
			w.planted.Store(true)
		}
		got.text("traces", body)
	}))
	return w, nil
}

func (w *world) close() {
	w.providers.Close()
	w.receiver.Close()
}

// round is one relay and what it is sent.
type round struct {
	binary, dir   string
	number, size  int
	level, format string
}

// configuration has a secret in each place, and from each source: a literal, a variable,
// a file, a descriptor.
func (w *world) configuration(r round, addr string) string {
	quoted := func(keys []string) (list string) {
		for _, k := range keys {
			list += fmt.Sprintf("\n      - {key: %q}", k)
		}
		return list
	}
	return fmt.Sprintf(`
server: {listen: %q, state_dir: %q, drain_timeout: 2s}
admin: {listen: "unix:%s/admin.sock"}
logging: {level: %s, format: %s}
tracing: {endpoint: %q, headers: {authorization: "Bearer ${TRACE_TOKEN}"}}
passthrough: true
clients:
  - {name: alice, token: "${ALICE}"}
  - {name: bob, token: "${file:%s/bob}"}
  - {name: carol, token: %q}
providers:
  - name: a
    base_url: %s/a
    origin: anthropic
    headers: {x-tenant: %q}
    pool: {max_wait: 0s}
    keys:
      - {key: "${A_0}"}
      - {key: "${file:%s/a_1}"}%s
  - name: b
    base_url: %s/b
    auth: bearer
    headers: {cookie: "Bearer ${B_SESSION}"}
    pool: {max_wait: 0s}
    keys:
      - {key: "${fd:3}"}%s
`, addr, filepath.Join(r.dir, "state"), r.dir, r.level, r.format, w.receiver.URL, r.dir, clientTokens[2],
		w.providers.URL, headerSecret["a"], r.dir, quoted(providerKeys["a"][2:]), w.providers.URL, quoted(providerKeys["b"][1:]))
}

// relay is a running process.
type relay struct {
	w     *world
	round round
	addr  string
	cmd   *exec.Cmd
	ended chan error
	admin *http.Client
	token string
}

func (w *world) start(ctx context.Context, r round) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String() // the log tells it only at some levels
	_ = l.Close()
	for name, text := range map[string]string{"config.yaml": w.configuration(r, addr), "bob": clientTokens[1], "a_1": providerKeys["a"][1] + "\n"} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	descriptor, key, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = descriptor.Close() }()
	_, err = key.WriteString(providerKeys["b"][0] + "\n")
	if err := errors.Join(err, key.Close()); err != nil {
		return nil, err
	}
	p := &relay{w: w, round: r, addr: addr, ended: make(chan error, 1)}
	p.cmd = exec.CommandContext(ctx, r.binary, "serve", "--config", filepath.Join(r.dir, "config.yaml"))
	p.cmd.Dir = r.dir
	p.cmd.ExtraFiles = []*os.File{descriptor}
	p.cmd.Env = []string{"HOME=" + r.dir, "ALICE=" + clientTokens[0], "A_0=" + providerKeys["a"][0], "B_SESSION=" + headerSecret["b"], "TRACE_TOKEN=" + traceToken}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		var both sync.WaitGroup
		both.Go(func() {
			w.got.stream("log, "+r.level+", "+r.format, io.TeeReader(stderr, &firstBytes{b: &said}))
		})
		both.Go(func() { _, _ = io.Copy(io.Discard, stdout) })
		both.Wait()
		p.ended <- p.cmd.Wait()
	}()
	p.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(r.dir, "admin.sock"))
	}}}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if token, err := os.ReadFile(filepath.Join(r.dir, "state", "admin.token")); err == nil {
			p.token = strings.TrimSpace(string(token))
			if status, _ := p.ask("GET", "/api/v1/status", ""); status == http.StatusOK {
				return p, nil
			}
		}
		select {
		case err := <-p.ended:
			return nil, fmt.Errorf("the relay did not start: %w: %s", err, said.String())
		default:
		}
		if time.Now().After(deadline) {
			_ = p.cmd.Process.Kill()
			return nil, fmt.Errorf("the relay did not start in time (%w): %s", <-p.ended, said.String())
		}
	}
}

// firstBytes keeps the beginning of what is written.
type firstBytes struct{ b *bytes.Buffer }

func (f *firstBytes) Write(p []byte) (int, error) {
	if room := 2000 - f.b.Len(); room > 0 {
		f.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// ask asks the admin listener; the answer is searched.
func (p *relay) ask(method, path, body string) (int, []byte) {
	return p.askAs(p.token, method, path, body)
}

func (p *relay) askAs(token, method, path, body string) (int, []byte) {
	req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.admin.Do(req)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = resp.Body.Close() }()
	var all bytes.Buffer
	_ = resp.Header.Write(&all)
	_, _ = io.Copy(&all, resp.Body)
	name := "admin"
	if path == "/metrics" {
		name = "metrics"
	}
	p.w.got.text(name, all.Bytes())
	if p.token != "" && bytes.Contains(all.Bytes(), []byte(p.token)) {
		p.w.got.text(name, []byte(secretMark+" is the admin's token"))
	}
	return resp.StatusCode, all.Bytes()
}

// round starts a relay, sends it requests, looks at it from all sides, and ends it.
func (w *world) round(ctx context.Context, r round) error {
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(r.dir) }()
	w.planted.Store(false)
	logged := w.got.output("log, " + r.level + ", " + r.format)
	plantsBefore := logged.planted.Load()
	p, err := w.start(ctx, r)
	if err != nil {
		return err
	}
	events, stopEvents := context.WithCancel(ctx)
	var listening sync.WaitGroup
	listening.Go(func() { p.listen(events) })
	w.requests(ctx, p)
	found := map[string]bool{}
	p.plant()
	found["admin"] = p.lookAround()
	stopEvents()
	listening.Wait()
	_, scraped := p.ask("GET", "/metrics", "")
	dropped, _ := between(scraped, "\ncc_relay_log_records_dropped_total ", "\n")
	lost, err := strconv.ParseFloat(dropped, 64)
	if err != nil {
		return fmt.Errorf("the metrics do not say how much of the log was dropped: %w", err)
	}
	w.got.count("log records dropped, so not searched", int64(lost))
	for i, args := range [][]string{{"status"}, {"requests"}, {"config", "show", "--config", "config.yaml"}, {"config", "validate", "--config", "bad.yaml"}} {
		if r.number%4 == i {
			p.command(args...)
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	found["traces"] = w.planted.Load()
	found["logs"] = logged.planted.Load() > plantsBefore
	for name := range found {
		if !found[name] {
			delete(found, name)
		}
	}
	w.got.plantsOf = append(w.got.plantsOf, found)
	return p.files()
}

// requests sends those of a round.
func (w *world) requests(ctx context.Context, p *relay) {
	c := &client{got: w.got, out: w.got.output("answers to clients"), addr: p.addr, limit: 10 * time.Second,
		http: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: workers}}
	defer c.http.CloseIdleConnections()
	var left atomic.Int64
	left.Store(int64(p.round.size))
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				n := left.Add(-1)
				if n < 0 {
					return
				}
				c.send(ctx, w.seed, w.number.Add(1))
				if n == int64(p.round.size)/2 {
					p.lookAround() // in the middle of it
				}
			}
		})
	}
	all.Wait()
}

// plant sends a canary that the relay cannot know of to a place that everybody sees: the
// name of a model.
func (p *relay) plant() {
	for range 20 { // a provider may fail
		req, err := http.NewRequest("POST", "http://"+p.addr+"/v1/messages", strings.NewReader(`{"model":"claude-`+plantMark+`","max_tokens":16,"messages":[{"role":"user","content":"x"}]}`))
		if err != nil {
			return
		}
		req.Header.Set("X-Api-Key", clientTokens[0])
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return
		}
	}
}

// listen reads the events of the admin listener.
func (p *relay) listen(ctx context.Context) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://localhost/api/v1/events", nil)
	if err != nil {
		return
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	resp, err := p.admin.Do(req)
	if err != nil {
		return
	}
	p.w.got.stream("events", resp.Body)
	_ = resp.Body.Close()
}

// lookAround asks the admin listener for all it has, and for what it has not. It reports
// whether the plant was seen.
func (p *relay) lookAround() (planted bool) {
	ask := func(method, path, body string) {
		_, text := p.ask(method, path, body)
		planted = planted || bytes.Contains(text, plantForm)
		if id, ok := between(text, `"request_id":"`, `"`); ok && path == "/api/v1/requests" {
			_, one := p.ask("GET", "/api/v1/requests/"+id, "")
			planted = planted || bytes.Contains(one, plantForm)
		}
	}
	for _, path := range []string{"/api/v1/stats", "/api/v1/status", "/api/v1/keys", "/api/v1/providers", "/api/v1/requests", "/api/v1/requests?limit=1000", "/api/v1/config", "/metrics", "/livez"} {
		ask("GET", path, "")
	}
	s := providerKeys["a"][1]
	for path, body := range map[string]string{
		"/api/v1/explain": `{"model":"` + s + `","tokens":10}`, "/api/v1/breakers/force": `{"provider":"b","class":"` + s + `","state":"auto"}`,
		"/api/v1/keys/" + s + "/off": "", "/api/v1/providers/" + s + "/drain": "", "/api/v1/config/diff": "", "/api/v1/reload": "", "/api/v1/" + s: `{"` + s + `":1}`,
	} {
		ask("POST", path, body)
	}
	p.askAs(clientTokens[0], "GET", "/api/v1/stats", "")
	p.askAs(s, "POST", "/api/v1/reload?token="+s, "")
	good, err := os.ReadFile(filepath.Join(p.round.dir, "config.yaml"))
	if err != nil {
		return planted
	}
	bad := strings.Replace(string(good), "auth: bearer", "auth: "+s+"\n    "+s+": ["+s+"]", 1)
	for _, name := range []string{"bad.yaml", "config.yaml"} {
		_ = os.WriteFile(filepath.Join(p.round.dir, name), []byte(bad), 0o600)
	}
	ask("POST", "/api/v1/reload", "")
	ask("GET", "/api/v1/status", "")
	_ = os.WriteFile(filepath.Join(p.round.dir, "config.yaml"), good, 0o600)
	ask("POST", "/api/v1/reload", "")
	return planted
}

func between(text []byte, before, after string) (string, bool) {
	_, rest, ok := bytes.Cut(text, []byte(before))
	if !ok {
		return "", false
	}
	found, _, ok := bytes.Cut(rest, []byte(after))
	return string(found), ok
}

// command runs the command line beside the relay; what it prints is searched.
func (p *relay) command(args ...string) {
	cmd := exec.Command(p.round.binary, args...)
	cmd.Dir = p.round.dir
	cmd.Env = p.cmd.Env
	text, _ := cmd.CombinedOutput()
	p.w.got.text("command line", text)
}

func (p *relay) end() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-p.ended:
		return err
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		return errors.Join(errors.New("the relay did not end"), <-p.ended)
	}
}

// files searches what the relay keeps, but for the tokens that it made: they are there
// for the operator.
func (p *relay) files() error {
	return filepath.WalkDir(filepath.Join(p.round.dir, "state"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.HasSuffix(path, ".token") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := "state files"
		if entry.Name() == "audit.log" {
			name = "audit"
		}
		p.w.got.text(name, text)
		if strings.Contains(string(text), p.token) {
			p.w.got.text(name, []byte(secretMark+" is the admin's token"))
		}
		return nil
	})
}
