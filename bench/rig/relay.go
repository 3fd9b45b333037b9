// Package rig is what the benches against the built relay share: the relay's process
// and a client's strict reading of its answers. It makes no traffic and judges nothing.
package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Build builds the relay of this module as the file binary. It may be called from any
// directory of the module.
func Build(ctx context.Context, binary string) error {
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "cc-relay/cmd/cc-relay").CombinedOutput(); err != nil {
		return fmt.Errorf("build the relay from within the repository: %w\n%s", err, out)
	}
	return nil
}

// Relay is a running process.
type Relay struct {
	URL   string // of its data listener
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // what it ended with; to be read after ended
}

// Start starts a relay with a configuration in dir and waits for the line in
// which it says where it listens. Everything it logs goes to log. The process is
// killed when ctx ends.
func Start(ctx context.Context, binary, dir, config string, log io.Writer) (*Relay, error) {
	cmd := exec.CommandContext(ctx, binary, "serve", "--config", config)
	cmd.Dir = dir
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(io.TeeReader(stderr, log))
	addr, said := listening(lines)
	r := &Relay{URL: "http://" + addr, cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		_, _ = io.Copy(io.Discard, lines)
		r.err = cmd.Wait()
	}()
	if addr == "" {
		_ = cmd.Process.Kill()
		<-r.ended
		return nil, fmt.Errorf("the relay did not start: %s", said)
	}
	return r, nil
}

// listening reads up to the line that tells the address; without one, said is the
// beginning of what was told instead.
func listening(lines *bufio.Reader) (addr, said string) {
	for {
		line, err := lines.ReadString('\n')
		if _, rest, ok := strings.Cut(line, `"listen":"`); ok {
			addr, _, _ = strings.Cut(rest, `"`)
			if _, _, err := net.SplitHostPort(addr); err == nil {
				return addr, ""
			}
		}
		if len(said) < 300 {
			said = strings.TrimSpace(said + " " + line)
		}
		if err != nil {
			return "", said
		}
	}
}

// PID is the process's id.
func (r *Relay) PID() int { return r.cmd.Process.Pid }

// Ended is closed when the process has ended and its log is read.
func (r *Relay) Ended() <-chan struct{} { return r.ended }

// Hangup sends the signal to reload.
func (r *Relay) Hangup() error { return r.cmd.Process.Signal(syscall.SIGHUP) }

// Stop asks the relay to end, and returns when its log is read. It waits for open
// requests, so one that takes long has lost track of one.
func (r *Relay) Stop() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-r.ended:
		if r.err != nil {
			return fmt.Errorf("the relay ended with %w", r.err)
		}
		return nil
	case <-time.After(10 * time.Second):
		_ = r.cmd.Process.Kill()
		<-r.ended
		return errors.New("the relay did not end within 10 s of SIGTERM: a request is still open")
	}
}
