package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cc-relay/bench/rig"
)

// relayLog reads what the relay logs, line by line. It is an io.Writer.
type relayLog struct {
	record func(record)

	mu               sync.Mutex // guards what follows
	rest             []byte     // of a line that has not ended
	applied, refused int        // reloads
	probes           int        // records of /livez, which are logged at debug only
	retries          int        // attempts beyond the first
	warnings         problems   // of any level above info, but for refused reloads
	lost             int        // records dropped
	tokens           int        // of all attempts
}

// Messages of the relay's log.
const (
	saysRequest = "request"
	saysApplied = "configuration reloaded"
	saysRefused = "the configuration was not reloaded"
)

type logLine struct {
	Level, Message string
	RequestID      string `json:"request_id"`
	Verdict        string
	Path           string
	Status         int
	Attempts       int
	Partial        bool
	spent
	Tries   []spent // where there was more than one attempt
	Dropped int
}

// spent is the usage in a line of the log.
type spent struct {
	Input      int `json:"input_tokens"`
	CacheWrite int `json:"cache_write_tokens"`
	CacheRead  int `json:"cache_read_tokens"`
	Output     int `json:"output_tokens"`
}

func (s spent) sum() int { return s.Input + s.CacheWrite + s.CacheRead + s.Output }

// sum is that of all attempts.
func (e *logLine) sum() int {
	if len(e.Tries) == 0 {
		return e.spent.sum()
	}
	n := 0
	for _, t := range e.Tries {
		n += t.sum()
	}
	return n
}

// Write implements io.Writer; it never fails.
func (l *relayLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			break
		}
		l.lineLocked(line)
		l.rest = rest
	}
	l.rest = bytes.Clone(l.rest)
	return len(p), nil
}

func (l *relayLog) lineLocked(line []byte) {
	var e logLine
	if err := json.Unmarshal(line, &e); err != nil {
		l.warnings.add(string(line)) // a stack of a crash, say
		return
	}
	switch {
	case e.Message == saysRequest && e.Path == "/livez":
		l.probes++
	case e.Message == saysRequest:
		l.retries += max(0, e.Attempts-1)
		l.tokens += e.sum()
		l.record(record{id: e.RequestID, status: e.Status, partial: e.Partial,
			usage: rig.Usage(e.spent), line: string(line)})
	case strings.HasPrefix(e.Message, saysApplied):
		l.applied++
	case strings.HasPrefix(e.Message, saysRefused):
		l.refused++
	case e.Dropped > 0:
		l.lost += e.Dropped
	case e.Verdict == "no_model": // names that only a rule or an alias makes a model are asked for on purpose
	case e.Level == "warn" || e.Level == "error" || e.Level == "fatal" || e.Level == "panic":
		l.warnings.add(string(line))
	}
}

// reloads are how many were applied and how many refused.
func (l *relayLog) reloads() (applied, refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.applied, l.refused
}

func (l *relayLog) probesSeen() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.probes
}

// sample is the size of the relay at a moment.
type sample struct {
	at   time.Duration // since the load began
	rss  int64         // bytes
	fds  int           // without idle
	idle int           // descriptors of connections that the provider has closed and the relay not yet
	lost int           // connections of the whole machine that its kernel has given up so far; -1: it does not say

	told       bool // there were metrics, which the rest is of
	goroutines int
	heap       int64 // bytes that the last garbage collection left, about
	collected  time.Time
	inFlight   int // requests that keys serve
	held       int // tokens held for them
	tokens     int // counted so far, of any kind
}

// watcher measures one relay.
type watcher struct {
	pid   int
	admin *http.Client // to its socket
	token string       // file
}

func newWatcher(pid int, socket, token string) *watcher {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &watcher{pid: pid, token: token, admin: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// measure reads /proc, and the metrics of the admin listener where there are any.
func (w *watcher) measure() (sample, error) {
	s := sample{}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	if err != nil {
		return s, fmt.Errorf("memory is read from /proc, which needs a running relay on Linux: %w", err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if fields := strings.Fields(rest); len(fields) > 0 {
		kib, _ := strconv.ParseInt(fields[0], 10, 64)
		s.rss = kib << 10
	}
	if s.fds, s.idle, err = descriptors(w.pid); err != nil {
		return s, err
	}
	s.lost = givenUp(w.pid)
	m, err := w.metrics()
	if err != nil {
		return s, nil //nolint:nilerr // a relay without metrics is measured from outside
	}
	s.told, s.goroutines = true, int(m["go_goroutines"])
	s.inFlight, s.held = int(m["cc_relay_key_requests_in_flight"]), int(m["cc_relay_key_reserved_tokens"])
	s.tokens = int(m["cc_relay_tokens_total"])
	s.heap = int64(m["go_memstats_next_gc_bytes"]) / 2 // the next one is due when the heap has doubled
	s.collected = time.UnixMilli(int64(m["go_memstats_last_gc_time_seconds"] * 1000))
	return s, nil
}

// descriptors counts those of a process; idle are connections whose other end is closed
// and this end is not.
func descriptors(pid int) (open, idle int, err error) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		return 0, 0, err
	}
	waiting := map[string]bool{} // by inode
	for line := range strings.Lines(string(table)) {
		const state, inode, closeWait = 3, 9, "08"
		if f := strings.Fields(line); len(f) > inode && f[state] == closeWait {
			waiting["socket:["+f[inode]+"]"] = true
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		switch {
		case err != nil: // it has just been closed
		case waiting[target]:
			idle++
		default:
			open++
		}
	}
	return open, idle, nil
}

// givenUp counts the connections of the process's network whose peer acknowledged nothing
// for too long. A client whose answer was in the kernel by then has a part of what the
// relay takes for sent. -1: the system does not count them.
func givenUp(pid int) int {
	table, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/netstat", pid))
	var names []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if at := slices.Index(names, "TCPAbortOnTimeout"); at >= 0 && len(fields) == len(names) {
			if n, err := strconv.Atoi(fields[at]); err == nil {
				return n
			}
		}
		names = fields // of the line that follows
	}
	return -1
}

// metrics are summed over their labels.
func (w *watcher) metrics() (map[string]float64, error) {
	token, err := os.ReadFile(w.token)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := w.admin.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	found := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ') + 1
		name, _, _ := strings.Cut(line, "{")
		name, _, _ = strings.Cut(name, " ")
		if v, err := strconv.ParseFloat(line[at:], 64); err == nil {
			found[name] += v
		}
	}
	return found, nil
}
