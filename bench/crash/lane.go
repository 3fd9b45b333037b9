package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// lane is one relay after the other on one directory, and their clients.
type lane struct {
	dir, config, state string
	o                  options
	rng                *rand.Rand
	url, admin         atomic.Pointer[string] // of the relay that serves; nil: none

	mu  sync.Mutex
	sum summary // guarded by mu
}

// The clients of a lane and their pace.
const (
	clients = 8
	pause   = 20 * time.Millisecond
)

func newLane(dir, upstream string, o options, n uint64) (*lane, error) {
	l := &lane{dir: dir, config: filepath.Join(dir, "config.yaml"), state: filepath.Join(dir, "state"), o: o,
		rng: rand.New(rand.NewPCG(o.seed, n))}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("server: {listen: \"127.0.0.1:0\", state_dir: %q}\nadmin: {listen: \"127.0.0.1:0\"}\nproviders: [{name: up, base_url: %q, keys: [{key: %s}]}]\n", l.state, upstream, upstreamKey)
	return l, os.WriteFile(l.config, []byte(text), 0o600)
}

// run starts and kills, and at the end starts once more and stops in order.
func (l *lane) run(ctx context.Context, kills int) error {
	load, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() { l.talk(load, i) })
	}
	all.Go(func() { l.operate(load) })
	defer all.Wait()
	defer stop()
	for i := range kills {
		if err := l.round(ctx, l.instant(i)); err != nil {
			return err
		}
	}
	r, err := l.start(ctx)
	if err != nil {
		return err
	}
	if !l.serves(ctx, r) {
		return nil
	}
	stop()
	all.Wait()
	if err := r.end(); err != nil {
		l.wrong("the last relay did not end in order: %v", err)
	}
	l.audit(kills)
	return nil
}

// saves is when the relay saves what it has learned, after its start.
const saves = 10 * time.Second

// instant is when the ith relay is to die, after its start.
func (l *lane) instant(i int) time.Duration {
	if i%2 == 0 {
		return time.Duration(l.rng.Int64N(int64(1500 * time.Millisecond)))
	}
	return saves - 50*time.Millisecond + time.Duration(l.rng.Int64N(int64(250*time.Millisecond)))
}

// round is the life of one relay.
func (l *lane) round(ctx context.Context, lives time.Duration) error {
	_, err := os.Stat(filepath.Join(l.state, "pools"))
	had := err == nil
	r, err := l.start(ctx)
	if err != nil {
		return err
	}
	dies := time.NewTimer(time.Until(r.began.Add(lives)))
	defer dies.Stop()
	served := make(chan bool, 1)
	life, end := context.WithCancel(ctx)
	go func() { served <- l.serves(life, r) }()
	select {
	case <-dies.C:
	case <-ctx.Done():
	}
	end()
	r.kill()
	l.url.Store(nil)
	l.admin.Store(nil)
	well := <-served
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.kills++
	switch {
	case !well && r.lived() > l.o.within:
		l.sum.wrong = append(l.sum.wrong, fmt.Sprintf("no answer within %s of a start; the log:\n%s", l.o.within, r.logged()))
	case !well:
		l.sum.early++
	}
	l.lookLocked(r, had)
	return ctx.Err()
}

// lookLocked looks for what no kill may leave.
func (l *lane) lookLocked(r *relay, had bool) {
	log := r.logged()
	for _, bad := range []string{`"level":"error"`, `"level":"fatal"`, "starts without what the last run learned", "is not kept for its next start", "panic", upstreamKey} {
		if strings.Contains(log, bad) {
			l.sum.wrong = append(l.sum.wrong, fmt.Sprintf("the log has %q:\n%s", bad, log))
		}
	}
	if strings.Contains(log, `"restored":true`) {
		l.sum.restored++
	} else if had && strings.Contains(log, `"restored":false`) {
		l.sum.wrong = append(l.sum.wrong, "a state that was saved is not found")
	}
	if bad, _ := filepath.Glob(filepath.Join(l.state, "*.bad-*")); len(bad) > 0 {
		l.sum.wrong = append(l.sum.wrong, fmt.Sprint("set aside as damaged: ", bad))
	}
}

func (l *lane) wrong(form string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.wrong = append(l.sum.wrong, fmt.Sprintf(form, args...))
}

// serves asks until there is a whole answer, and notes how long that took.
func (l *lane) serves(ctx context.Context, r *relay) bool {
	select {
	case <-r.said:
	case <-ctx.Done():
		return false
	}
	if r.url == "" {
		if ctx.Err() == nil { // nobody has killed it
			l.wrong("the relay ended by itself; its log:\n%s", r.logged())
		}
		return false
	}
	l.url.Store(&r.url)
	l.admin.Store(&r.admin)
	for ctx.Err() == nil {
		if _, err := ask(ctx, http.DefaultClient, r.url, "first"); err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		took := time.Since(r.began)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sum.starts = append(l.sum.starts, took)
		l.sum.listens = append(l.sum.listens, r.listens)
		if took > l.o.within {
			l.sum.wrong = append(l.sum.wrong, fmt.Sprintf("the first answer came after %s; it listened after %s", took, r.listens))
		}
		return true
	}
	return false
}

var errRefused = errors.New("refused")

// ask sends one turn of a conversation and reads the answer to its end.
func ask(ctx context.Context, client *http.Client, url, session string) (whole bool, err error) {
	body := `{"model":"claude-sonnet-5-5","max_tokens":100,"stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"` +
		session + strings.Repeat(" and so on", 800) + `","cache_control":{"type":"ephemeral"}}]}]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/messages", strings.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Claude-Code-Session-Id", session)
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return false, err
	case resp.StatusCode != http.StatusOK:
		return false, fmt.Errorf("%w with %d", errRefused, resp.StatusCode)
	}
	return bytes.HasSuffix(text, []byte("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")), nil
}

// talk is one client, who goes on whatever happens.
func (l *lane) talk(ctx context.Context, n int) {
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	for turn := 0; ctx.Err() == nil; turn++ {
		time.Sleep(pause)
		url := l.url.Load()
		if url == nil {
			continue
		}
		whole, err := ask(ctx, client, *url, fmt.Sprintf("session-%d-%d", n, turn/5))
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		switch {
		case errors.Is(err, errRefused):
			l.sum.refused++
		case err != nil:
			l.sum.cut++
		case whole:
			l.sum.whole++
		default:
			l.sum.wrong = append(l.sum.wrong, "an answer that was cut looks whole")
		}
		l.mu.Unlock()
	}
}

// operate is an operator whose actions fill the audit.
func (l *lane) operate(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(5 * pause)
		admin := l.admin.Load()
		token, err := os.ReadFile(filepath.Join(l.state, "admin.token"))
		if admin == nil || err != nil {
			continue
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+*admin+"/api/v1/reload", nil)
		if err != nil {
			return
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err == nil && resp.StatusCode == http.StatusOK {
			l.mu.Lock()
			l.sum.actions++
			l.mu.Unlock()
		}
	}
}

// audit holds the record of actions against what the operator was told.
func (l *lane) audit(kills int) {
	text, err := os.ReadFile(filepath.Join(l.state, "audit.log"))
	if err != nil && l.sum.actions > 0 {
		l.wrong("no audit: %v", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	done := 0
	for line := range bytes.Lines(text) {
		var r struct{ Phase string }
		if json.Unmarshal(line, &r) != nil {
			l.sum.torn++
		} else if r.Phase == "done" {
			done++
		}
	}
	if done < l.sum.actions {
		l.sum.wrong = append(l.sum.wrong, fmt.Sprintf("%d actions were told to be done, and %d are recorded", l.sum.actions, done))
	}
	if l.sum.torn > kills {
		l.sum.wrong = append(l.sum.wrong, fmt.Sprintf("%d torn lines of the audit after %d kills", l.sum.torn, kills))
	}
}

// relay is one process.
type relay struct {
	cmd        *exec.Cmd
	began      time.Time
	url, admin string        // to be read after said, as what follows
	listens    time.Duration // until it told so
	said       chan struct{} // closed: it has told where it listens, or ended
	ended      chan struct{}
	err        error // what it ended with; to be read after ended
	died       time.Time

	mu  sync.Mutex
	log strings.Builder
}

func (l *lane) start(ctx context.Context) (*relay, error) {
	r := &relay{said: make(chan struct{}), ended: make(chan struct{})}
	r.cmd = exec.CommandContext(ctx, l.o.binary, "serve", "--config", l.config)
	r.cmd.Env = []string{"HOME=" + l.dir}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	r.began = time.Now()
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go r.read(stderr)
	return r, nil
}

func (r *relay) read(stderr io.Reader) {
	defer close(r.ended)
	told := false
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		r.mu.Lock()
		if r.log.Len() < 1<<20 {
			r.log.WriteString(lines.Text() + "\n")
		}
		r.mu.Unlock()
		var record struct{ Listen, Admin, Message string }
		if !told && json.Unmarshal(lines.Bytes(), &record) == nil && record.Message == "relay serves" {
			r.url, r.admin, told = "http://"+record.Listen, record.Admin, true
			r.listens = time.Since(r.began)
			close(r.said)
		}
	}
	r.err = r.cmd.Wait()
	if !told {
		close(r.said)
	}
}

func (r *relay) kill() {
	r.died = time.Now()
	_ = r.cmd.Process.Kill()
	<-r.ended
}

func (r *relay) lived() time.Duration { return r.died.Sub(r.began) }

// end stops it as an operator does.
func (r *relay) end() error {
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case <-r.ended:
		return r.err
	case <-time.After(20 * time.Second):
		r.kill()
		return errors.New("it still runs")
	}
}

func (r *relay) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}
