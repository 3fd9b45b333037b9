package main

import (
	"bufio"
	"bytes"
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
	"syscall"
	"time"
)

// lab is a relay in front of a provider.
type lab struct {
	dir     string
	relay   *exec.Cmd
	addr    string // the relay's
	admin   string
	started []*exec.Cmd
}

func newLab(binary, server string) (*lab, error) {
	dir, err := os.MkdirTemp("", "cc-relay-open")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir}
	if err := l.start(binary, server); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) start(binary, server string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if binary == "" {
		binary = filepath.Join(l.dir, "cc-relay")
		if out, err := exec.Command("go", "build", "-o", binary, "./cmd/cc-relay").CombinedOutput(); err != nil {
			return fmt.Errorf("build the relay from the repository's root: %w\n%s", err, out)
		}
	}
	_, provider, _, err := l.process(self, "-role", "provider")
	if err != nil {
		return err
	}
	file := filepath.Join(l.dir, "config.yaml")
	text := fmt.Sprintf("server:\n  listen: 127.0.0.1:0\n  state_dir: %q\n%sadmin: { listen: 127.0.0.1:0, pprof: true }\nproviders:\n  - name: bench\n    base_url: http://%s\n    keys: [ { key: bench-key-1 } ]\n", filepath.Join(l.dir, "state"), server, provider)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	l.relay, l.addr, l.admin, err = l.process(binary, "serve", "--config", file)
	return err
}

// process starts a server and waits for the line in which it says where it listens.
func (l *lab) process(name string, args ...string) (cmd *exec.Cmd, addr, admin string, err error) {
	cmd = exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, "", "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", "", err
	}
	l.started = append(l.started, cmd)
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil, "", "", fmt.Errorf("%s did not start", filepath.Base(name))
		}
		if addr = field(line, "listen"); addr != "" {
			go func() { _, _ = io.Copy(io.Discard, lines) }() // the relay's log goes on
			return cmd, addr, field(line, "admin"), nil
		}
	}
}

func field(line, name string) string {
	_, rest, _ := strings.Cut(line, `"`+name+`":"`)
	value, _, _ := strings.Cut(rest, `"`)
	if _, _, err := net.SplitHostPort(value); err != nil {
		return ""
	}
	return value
}

func (l *lab) close() {
	for _, cmd := range l.started {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	_ = os.RemoveAll(l.dir)
}

// memory is the relay's resident memory, now and at most, in bytes. Source: VmRSS and
// VmHWM of /proc/PID/status.
func (l *lab) memory() (now, most int64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.relay.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(raw) {
		name, rest, _ := strings.Cut(string(line), ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch {
		case err != nil:
		case name == "VmRSS":
			now = kib << 10
		case name == "VmHWM":
			most = kib << 10
		}
	}
	if now == 0 {
		return 0, 0, errors.New("no VmRSS in /proc/PID/status")
	}
	return now, most, nil
}

// cpu is the time that the relay has run so far, in user and system mode. Source:
// fields 14 and 15 of /proc/PID/stat, in ticks of 10 ms.
func (l *lab) cpu() time.Duration {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.relay.Process.Pid))
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// profiles writes what the relay's admin listener says of its heap and goroutines.
func (l *lab) profiles(prefix string) error {
	tokens, err := filepath.Glob(filepath.Join(l.dir, "state", "admin.token"))
	if err != nil || len(tokens) == 0 {
		return errors.Join(err, errors.New("no token of the admin listener"))
	}
	for _, name := range []string{"heap", "goroutine", "allocs"} {
		for _, file := range tokens {
			token, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			req, err := http.NewRequest(http.MethodGet, "http://"+l.admin+"/debug/pprof/"+name+"?gc=1", nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			raw, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				continue
			}
			if err := os.WriteFile(prefix+"."+name, raw, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// needFiles says so where this process or the relay could not have n connections open.
func needFiles(n int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if limit.Max < uint64(n) {
		return fmt.Errorf("%d files must be open at once, and this system allows %d: measure fewer with -streams", n, limit.Max)
	}
	return nil
}
