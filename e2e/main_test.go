// Package e2e_test runs real clients, the official Go SDKs and Claude Code, through
// the built cc-relay to the provider simulator, as users run them, and measures
// what the relay adds to each event of a stream. Everything stays on loopback;
// only Claude Code itself is downloaded once, by npm, from its registry.
package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// relayBinary is the program under test, built once by TestMain.
var relayBinary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cc-relay-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	relayBinary = filepath.Join(dir, "cc-relay")
	if err := buildRelay(relayBinary); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: build the relay:", err)
		return 1
	}
	return m.Run()
}

// buildRelay builds as `make build` does: from the product's own module, so that
// the SDKs' dependencies are not in the binary.
func buildRelay(path string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", path, "./cmd/cc-relay")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}
