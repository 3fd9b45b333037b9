package main

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

func build(ctx context.Context, binary string) error {
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/cc-relay").CombinedOutput(); err != nil {
		return fmt.Errorf("build the relay from the repository's root: %w\n%s", err, out)
	}
	return nil
}

// relay is a running process.
type relay struct {
	url   string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // what it ended with; to be read after ended
}

// startRelay starts a relay with a configuration in dir and waits for the line in
// which it says where it listens. Everything it logs goes to log.
func startRelay(ctx context.Context, binary, dir, config string, log io.Writer) (*relay, error) {
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
	r := &relay{url: "http://" + addr, cmd: cmd, ended: make(chan struct{})}
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

// stop asks the relay to end. It waits for open requests, so one that takes long
// has lost track of one.
func (r *relay) stop() error {
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
