package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// relayToken is what clients show the relay. No provider may ever see it.
const relayToken = "relay-token-of-the-e2e-tests"

// relay is a running `cc-relay serve`.
type relay struct {
	addr string // host:port
	cmd  *exec.Cmd
	log  *relayLog
}

// startRelay serves the providers, the first before the others, until the test ends.
// It must then stop in order, and have logged no secret.
func startRelay(t *testing.T, providers ...*provider) *relay {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, relayConfig(providers), 0o600))

	r := &relay{cmd: exec.Command(relayBinary, "serve", "--config", path), log: newRelayLog()}
	dieWithTest(r.cmd)
	stderr, err := r.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	go r.log.read(stderr)
	t.Cleanup(func() {
		r.stop(t)
		r.log.assertWithout(t, relayToken)
		for _, p := range providers {
			r.log.assertWithout(t, p.keys...)
		}
	})
	select {
	case r.addr = <-r.log.listens:
	case <-r.log.ended:
	case <-time.After(10 * time.Second):
	}
	require.NotEmpty(t, r.addr, "the relay did not say where it listens; its log:\n%s", r.log.text())
	return r
}

func relayConfig(providers []*provider) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "server: {listen: \"127.0.0.1:0\", state: \"off\"}\n")
	fmt.Fprintf(&b, "clients: [{name: e2e, token: %q}]\n", relayToken)
	fmt.Fprintf(&b, "logging: {level: debug}\n")
	fmt.Fprintf(&b, "providers:\n")
	for _, p := range providers {
		fmt.Fprintf(&b, "  - {name: %q, origin: %q, base_url: %q, keys: [", p.name, p.origin, p.url)
		for _, k := range p.keys {
			fmt.Fprintf(&b, "{key: %q}, ", k)
		}
		fmt.Fprintf(&b, "]}\n")
	}
	return b.Bytes()
}

func (r *relay) url() string { return "http://" + r.addr }

// stop ends the relay as a service manager does.
func (r *relay) stop(t *testing.T) {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		assert.NoError(t, err, "the relay ended by itself; its log:\n%s", r.log.text())
	}
	kill := time.AfterFunc(15*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer kill.Stop()
	<-r.log.ended // Wait closes the pipe, so all of it is read first
	assert.NoError(t, r.cmd.Wait(), "exit of the relay; its log:\n%s", r.log.text())
}

// relayLog is what a relay wrote to standard error, a JSON record on each line.
type relayLog struct {
	listens chan string   // the address, once
	ended   chan struct{} // closed with the log

	mu  sync.Mutex
	all bytes.Buffer // guarded by mu
}

func newRelayLog() *relayLog {
	return &relayLog{listens: make(chan string, 1), ended: make(chan struct{})}
}

func (l *relayLog) read(from io.Reader) {
	defer close(l.ended)
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		l.mu.Lock()
		l.all.Write(lines.Bytes())
		l.all.WriteByte('\n')
		l.mu.Unlock()
		var record struct{ Listen string }
		if json.Unmarshal(lines.Bytes(), &record) == nil && record.Listen != "" {
			select {
			case l.listens <- record.Listen:
			default:
			}
		}
	}
}

func (l *relayLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// failures lists the attempts that failed, as "PROVIDER VERDICT". The newest may not
// have arrived yet.
func (l *relayLog) failures() (list []string) {
	for line := range strings.Lines(l.text()) {
		var record struct{ Message, Upstream, Verdict string }
		if json.Unmarshal([]byte(line), &record) == nil && record.Message == "attempt failed" {
			list = append(list, record.Upstream+" "+record.Verdict)
		}
	}
	return list
}

func (l *relayLog) assertWithout(t *testing.T, secrets ...string) {
	text := l.text()
	for i, s := range secrets {
		assert.NotContains(t, text, s, "secret %d is in the relay's log", i)
	}
}
