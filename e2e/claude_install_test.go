package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// claudeVersion is the Claude Code that the relay is tested with. Its npm package
// brings the native program as an optional dependency and needs no install script.
const claudeVersion = "2.1.330"

const claudePackage = "@anthropic-ai/claude-code@" + claudeVersion

// npmLimit bounds the download, which takes 10 s where the registry answers well:
// npm itself would go on trying for longer than a test may run.
const npmLimit = 4 * time.Minute

// installClaude returns the path of Claude Code, downloaded at the first call and
// kept in the user's cache directory for later runs.
var installClaude = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "cc-relay-e2e", "claude-code-"+claudeVersion)
	program := filepath.Join(dir, "node_modules", ".bin", "claude")
	if checkClaude(program) == nil {
		return program, nil
	}
	return program, downloadClaude(dir)
})

// downloadClaude installs beside dir and renames, so that dir is whole or not there.
func downloadClaude(dir string) error {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed, and Claude Code comes by npm: install Node.js 18 or later with npm (Debian: apt-get install nodejs npm)", tool)
		}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(filepath.Dir(dir), "installing-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	ctx, cancel := context.WithTimeout(context.Background(), npmLimit)
	defer cancel()
	npm := exec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund", "--prefix", scratch, claudePackage)
	dieWithTest(npm)
	npm.Dir = scratch
	if out, err := npm.CombinedOutput(); err != nil {
		return fmt.Errorf("npm cannot install %s, which takes its registry once: %w\n%s", claudePackage, err, out)
	}
	if err := checkClaude(filepath.Join(scratch, "node_modules", ".bin", "claude")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), os.Rename(scratch, dir))
}

func checkClaude(program string) error {
	out, err := exec.Command(program, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w\n%s", program, err, out)
	}
	if !strings.HasPrefix(string(out), claudeVersion+" ") {
		return fmt.Errorf("%s is version %s, want %s", program, out, claudeVersion)
	}
	return nil
}

func requireClaude(t *testing.T) string {
	t.Helper()
	program, err := installClaude()
	require.NoError(t, err, "Claude Code %s is needed for this test", claudeVersion)
	return program
}
