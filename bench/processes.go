package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is a proxy under measurement.
type process struct{ cmd *exec.Cmd }

// cpu is the time that the process's threads have run so far, in user and system
// mode. Source: the first field of /proc/PID/task/TID/schedstat, in nanoseconds;
// /proc/PID/stat counts in ticks of 10 ms, too coarse for a slow stream. Threads
// of Go programs end so seldom that their loss does not matter.
func (p *process) cpu() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		return 0, errors.Join(err, errors.New("CPU time is read from /proc/PID/task/TID/schedstat, which this system lacks"))
	}
	var sum time.Duration
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has just ended
		}
		first, _, _ := strings.Cut(string(raw), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// startAll starts upstream, plain and relay; the first target is direct.
func startAll(relay string) ([]target, func(), error) {
	dir, err := os.MkdirTemp("", "cc-relay-bench")
	if err != nil {
		return nil, nil, err
	}
	var started []*process
	stop := func() {
		for _, p := range started {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		_ = os.RemoveAll(dir)
	}
	start := func(name string, args ...string) (*process, string, error) {
		p, addr, err := startProcess(name, args...)
		if err == nil {
			started = append(started, p)
		}
		return p, addr, err
	}
	targets, err := startTargets(dir, relay, start)
	if err != nil {
		stop()
		return nil, nil, err
	}
	return targets, stop, nil
}

func startTargets(dir, binary string, start func(string, ...string) (*process, string, error)) ([]target, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if binary == "" {
		binary = filepath.Join(dir, "cc-relay")
		if out, err := exec.Command("go", "build", "-o", binary, "./cmd/cc-relay").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the relay from the repository's root: %w\n%s", err, out)
		}
	}
	_, upstream, err := start(self, "-role", "upstream")
	if err != nil {
		return nil, err
	}
	plain, plainAddr, err := start(self, "-role", "plain", "-target", "http://"+upstream)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf("server: { listen: 127.0.0.1:0, state_dir: %q }\nadmin: { listen: 127.0.0.1:0 }\nproviders:\n  - name: bench\n    base_url: http://%s\n    keys: [ { key: bench-key-1 }, { key: bench-key-2 }, { key: bench-key-3 } ]\n", filepath.Join(dir, "state"), upstream)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	relay, relayAddr, err := start(binary, "serve", "--config", config)
	if err != nil {
		return nil, err
	}
	return []target{
		{name: "direct", url: "http://" + upstream},
		{name: "plain", url: "http://" + plainAddr, proc: plain},
		{name: "relay", url: "http://" + relayAddr, proc: relay},
	}, nil
}

// startProcess starts a server and waits for the line in which it says where it
// listens: plain and upstream print the address, the relay logs it.
func startProcess(name string, args ...string) (*process, string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	lines := bufio.NewReader(stderr)
	line, err := lines.ReadString('\n')
	if err != nil {
		return nil, "", fmt.Errorf("%s did not start: %s", filepath.Base(name), line)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }() // the relay's log goes on
	_, rest, ok := strings.Cut(line, `"listen":"`)
	addr, _, ended := strings.Cut(rest, `"`)
	if _, _, err := net.SplitHostPort(addr); !ok || !ended || err != nil {
		return nil, "", fmt.Errorf("%s did not start: %s", filepath.Base(name), line)
	}
	return &process{cmd}, addr, nil
}

// serve listens on a free port and says where.
func serve(h http.Handler) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "{\"listen\":%q}\n", l.Addr())
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	return server.Serve(l)
}
