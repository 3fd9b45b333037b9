package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Names of providers. Requests go to main and, in mixed traffic, to fallback; side is
// there to change limits and names of, extra comes and goes. Both are reached without
// trouble.
const (
	mainName     = "main"
	fallbackName = "fallback"
	sideName     = "side"
	extraName    = "extra"
)

// Names that clients ask for and that only a rule or an alias makes a model.
const (
	aliasName = "soak-alias"
	ruleName  = "soak-rule"
	sideModel = "claude-side-1"
	extraRule = "claude-extra-1"
)

// loadToken is the token of the load: it stays.
const loadToken = "token-of-the-load"

// settings are what the relay's configuration says.
type settings struct {
	dir                           string
	mainAddr, fallbackAddr, other string // addresses; fallback may be empty
	keys                          []string
	tokens                        []string
	limit                         int // of side, requests a minute
	level                         string
	alias, rule, extra            bool
}

func (s *settings) yaml() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("server: { listen: 127.0.0.1:0, state_dir: %q, drain_timeout: 60s }", filepath.Join(s.dir, "state"))
	line("admin: { listen: %q }", "unix:"+s.adminSocket())
	line("logging: { level: %s }", s.level)
	line("clients:")
	for i, token := range s.tokens {
		line("  - { name: client-%d, token: %s }", i+1, token)
	}
	targets := mainName
	if s.fallbackAddr != "" {
		targets += ", " + fallbackName
	}
	line("routing: { default: [%s] }", targets)
	line("models:\n  - { match: [%s], targets: [%s] }", sideModel, sideName)
	if s.rule {
		line("  - { match: [%s], targets: [%s/%s] }", ruleName, sideName, quickModel)
	}
	if s.extra {
		line("  - { match: [%s], targets: [%s] }", extraRule, extraName)
	}
	if s.alias {
		line("aliases: { %s: %s }", aliasName, sideModel)
	}
	line("providers:")
	s.provider(&b, mainName, s.mainAddr, s.keys...)
	if s.fallbackAddr != "" {
		s.provider(&b, fallbackName, s.fallbackAddr, fallbackName+"-key")
	}
	if s.extra {
		s.provider(&b, extraName, s.other, extraName+"-key")
	}
	s.provider(&b, sideName, s.other, sideName+"-key")
	line("        rpm_limit: %d", s.limit)
	return b.String()
}

func (s *settings) provider(b *strings.Builder, name, addr string, keys ...string) {
	fmt.Fprintf(b, "  - name: %s\n    base_url: http://%s\n    keys:\n", name, addr)
	for _, key := range keys {
		fmt.Fprintf(b, "      - key: %s\n        organization: org-%s\n", key, name)
	}
}

func (s *settings) file() string        { return filepath.Join(s.dir, "config.yaml") }
func (s *settings) adminSocket() string { return filepath.Join(s.dir, "admin.sock") }
func (s *settings) adminToken() string  { return filepath.Join(s.dir, "state", "admin.token") }

// replace puts text in the place of the file in one step.
func replace(file, text string) error {
	fresh := file + ".new"
	if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}

// scribble writes text over the file in pieces, as an editor on a slow disk does.
func scribble(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	const pieces = 4
	for i := range pieces {
		if _, err := f.WriteString(text[len(text)*i/pieces : len(text)*(i+1)/pieces]); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}
