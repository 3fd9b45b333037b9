package internal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/version"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = ".."

// The tests of rows of the catalogue of faults, by the rows' names.

func TestSecurity(t *testing.T) {
	t.Run("S36", func(t *testing.T) {
		t.Run("patched", testPatched)
		t.Run("modules", testModulesPinTheToolchain)
		t.Run("this build", testBuiltByThePinnedToolchain)
		t.Run("known vulnerabilities", testCheckLooksForVulnerabilities)
		t.Run("what govulncheck says", testVuln)
	})
	t.Run("S37", func(t *testing.T) {
		t.Run("reviewed", testDirectRequirements)
		t.Run("licences", testLicences)
		t.Run("sums", testSums)
		t.Run("read only", testNothingTurnsChecksOff)
	})
}

// leastPatch is the first patch of each release of Go without what is known to be wrong in
// net/http, crypto/tls and others. A release that is not here is too old or newer than all.
var leastPatch = map[string]string{"go1.26": "go1.26.9", "go1.27": "go1.27.2"}

func patched(v string) bool {
	lang := version.Lang(v)
	if least, ok := leastPatch[lang]; ok {
		return version.Compare(v, least) >= 0
	}
	return version.Compare(lang, slices.Max(slices.Collect(maps.Keys(leastPatch)))) > 0
}

func testPatched(t *testing.T) {
	for v, want := range map[string]bool{
		"go1.25.99": false, "go1.26.0": false, "go1.26.8": false, "go1.26.9": true, "go1.26.10": true,
		"go1.27": false, "go1.27rc1": false, "go1.27.1": false, "go1.27.2": true, "go1.28": true, "go1.28.0": true,
		"": false, "default": false,
	} {
		assert.Equal(t, want, patched(v), "%q", v)
	}
}

// goMod is what `go mod edit -json` says of a go.mod.
type goMod struct {
	Go, Toolchain    string
	Require          []goModule
	Replace, Exclude []any
	Tool             []struct{ Path string }
}

type goModule struct {
	Path, Version, Dir string
	Indirect           bool
}

func readMod(t *testing.T, path string) goMod {
	readText(t, path) // for the test cache, which does not see what commands read
	var m goMod
	require.NoError(t, json.Unmarshal(goCommand(t, "mod", "edit", "-json", path), &m))
	return m
}

// goCommand runs the go command in the repository's root; it needs no network.
func goCommand(t *testing.T, args ...string) []byte {
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "go %s: %s", strings.Join(args, " "), &stderr)
	return out
}

func testModulesPinTheToolchain(t *testing.T) {
	want := readMod(t, "go.mod").Toolchain
	assert.True(t, patched(want), "go.mod: toolchain %s", want)
	var all []string
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || len(d.Name()) > 2 && d.Name()[0] == '.'):
			return filepath.SkipDir
		case d.Name() == "go.mod":
			all = append(all, strings.TrimPrefix(path, root+"/"))
		}
		return nil
	}))
	assert.Subset(t, all, []string{"go.mod", "tools/go.mod", "e2e/go.mod"})
	for _, path := range all {
		assert.Equal(t, want, readMod(t, path).Toolchain, path)
	}
}

// A plain older Go builds the relay, too, but make and CI must never do with one.
func testBuiltByThePinnedToolchain(t *testing.T) {
	v, _, _ := strings.Cut(runtime.Version(), " ")
	if os.Getenv("CI") == "true" || os.Getenv("GOTOOLCHAIN") == "auto" {
		assert.True(t, patched(v), "built by %s", runtime.Version())
	} else if !patched(v) {
		t.Logf("built by %s, which has known faults: GOTOOLCHAIN=auto takes the one of go.mod", v)
	}
	ci := readText(t, ".ci/run")
	assert.Regexp(t, `(?m)^export GOTOOLCHAIN=auto$`, ci)
	assert.Len(t, regexp.MustCompile(`GOTOOLCHAIN=`).FindAllString(ci, -1), 1)
}

func readText(t *testing.T, path string) string {
	text, err := os.ReadFile(filepath.Join(root, path))
	require.NoError(t, err)
	return string(text)
}

// makeCommand runs make in the repository's root, with this environment on top.
func makeCommand(t *testing.T, env []string, args ...string) (string, error) {
	path, err := exec.LookPath("make")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("make is not installed, and CI must not do without")
	}
	if err != nil {
		t.Skip("NOT CHECKED, make is not installed")
	}
	readText(t, "Makefile") // for the test cache
	cmd := exec.Command(path, args...)
	cmd.Dir = root
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { // of a make that runs this test
		return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=")
	})
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func testCheckLooksForVulnerabilities(t *testing.T) {
	out, err := makeCommand(t, nil, "-n", "check")
	require.NoError(t, err, out)
	assert.Regexp(t, `go tool -modfile='[^']*/tools/go\.mod' govulncheck \./\.\.\.`, out)
	assert.Regexp(t, `(?m)^step check make check$`, readText(t, ".ci/run"))

	tools := readMod(t, "tools/go.mod")
	assert.True(t, slices.ContainsFunc(tools.Tool, func(one struct{ Path string }) bool { return one.Path == "golang.org/x/vuln/cmd/govulncheck" }))
	i := slices.IndexFunc(tools.Require, func(m goModule) bool { return m.Path == "golang.org/x/vuln" })
	require.GreaterOrEqual(t, i, 0)
	assert.Regexp(t, `^v\d+\.\d+\.\d+$`, tools.Require[i].Version, "govulncheck is no release")
}

// testVuln runs `make vuln` with a stand-in for govulncheck. Its messages
// and codes are those of govulncheck 1.9.
func testVuln(t *testing.T) {
	dir := t.TempDir()
	tool, seen := filepath.Join(dir, "tool"), filepath.Join(dir, "seen")
	require.NoError(t, os.WriteFile(tool, []byte("#!/bin/sh\nenv >\"$SEEN\"\necho \"args=$*\" >>\"$SEEN\"\nprintf '%s\\n' \"$SAYS\" >&2\nexit \"$ENDS\"\n"), 0o700)) //nolint:gosec // a program
	const unchecked = "NOT CHECKED"
	const fetching = `govulncheck: fetching vulnerabilities: Get "https://vuln.go.dev/index/modules.json.gz": no such host`
	for name, tc := range map[string]struct {
		ends, says string
		want       string
		passes     bool
	}{
		"nothing is known":             {"0", "No vulnerabilities found.", "No vulnerabilities found.", true},
		"a finding":                    {"3", "Vulnerability #1: GO-2026-0001", "GO-2026-0001", false},
		"a finding after some trouble": {"3", fetching, fetching, false},
		"no database":                  {"1", fetching, unchecked, true},
		"it does not build":            {"1", "govulncheck: loading packages: there are errors", "loading packages", false},
		"it is not there":              {"127", "no such tool", "no such tool", false},
		"fetching in other words":      {"2", fetching, fetching, false},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := makeCommand(t, []string{"SEEN=" + seen, "SAYS=" + tc.says, "ENDS=" + tc.ends, "GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false"}, "vuln", "TOOL="+tool)
			var exit *exec.ExitError
			if !tc.passes {
				require.ErrorAs(t, err, &exit, out)
			} else {
				require.NoError(t, err, out)
			}
			assert.Contains(t, out, tc.want)
			assert.Equal(t, tc.want == unchecked, strings.Contains(out, unchecked), out)
			env, err := os.ReadFile(seen)
			require.NoError(t, err)
			for _, line := range []string{"args=govulncheck ./...", "GOTOOLCHAIN=auto", "GOFLAGS=-buildvcs=false"} {
				assert.Contains(t, "\n"+string(env), "\n"+line+"\n", "make runs it differently")
			}
		})
	}
}

// reviewed is every module that go.mod asks for by itself, and what we would have to
// write without it. Whoever adds one says so here; see CONTRIBUTING.md.
var reviewed = map[string]string{
	"charm.land/lipgloss/v2":              "styles of the terminal, for what a terminal can show",
	"github.com/charmbracelet/x/ansi":     "in tests: what the terminal shows, without its styles",
	"github.com/charmbracelet/x/term":     "the size of the terminal on every system",
	"github.com/fsnotify/fsnotify":        "changes of files on every system",
	"github.com/goccy/go-yaml":            "strict YAML with positions for mistakes",
	"github.com/hashicorp/golang-lru/v2":  "bounded memories that forget the oldest",
	"github.com/pelletier/go-toml/v2":     "strict TOML with positions for mistakes",
	"github.com/prometheus/client_golang": "metrics as Prometheus reads them",
	"github.com/rs/zerolog":               "the log, as JSON and without allocations",
	"github.com/sony/gobreaker/v2":        "the two-step breaker below our own",
	"github.com/spf13/cobra":              "subcommands, flags, completion for shells",
	"github.com/stretchr/testify":         "in tests: comparisons that print what they got",
	"github.com/zeebo/xxh3":               "fast hashes of prompts' prefixes",
	"go.opentelemetry.io/otel":            "names and values of attributes of traces",
	"go.opentelemetry.io/otel/trace":      "identity of spans and of their parents",
	"go.opentelemetry.io/proto/slim/otlp": "messages of OTLP, without gRPC",
	"go.uber.org/goleak":                  "in tests: goroutines that stay",
	"golang.org/x/sys":                    "system calls that the standard library lacks",
	"google.golang.org/protobuf":          "encoding of those messages",
	"pgregory.net/rapid":                  "in tests: properties, with shrinking",
}

// mostLinked is how many modules may be in the binary, those of others included.
const mostLinked = 40

func testDirectRequirements(t *testing.T) {
	mod := readMod(t, "go.mod")
	var direct []string
	for _, m := range mod.Require {
		if !m.Indirect {
			direct = append(direct, m.Path)
		}
	}
	assert.ElementsMatch(t, slices.Collect(maps.Keys(reviewed)), direct, "go.mod and the reviewed list differ")
	assert.Empty(t, mod.Replace, "a replaced module is not the one that was reviewed")
	assert.Empty(t, mod.Exclude)
	assert.LessOrEqual(t, len(linked(t)), mostLinked)
}

// linked are the modules of others in the binary for this system.
func linked(t *testing.T) map[string]goModule {
	all := map[string]goModule{}
	dec := json.NewDecoder(bytes.NewReader(goCommand(t, "list", "-deps", "-json=Module", "./cmd/cc-relay")))
	for {
		var p struct{ Module *goModule }
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if p.Module != nil && p.Module.Path != module {
			all[p.Module.Path] = *p.Module
		}
	}
	require.Contains(t, all, "github.com/rs/zerolog", "go list found no modules")
	return all
}

// Licences by a phrase of theirs. Blanks and line ends are one blank, letters small.
var licences = map[string]string{
	"apache-2.0": "apache license version 2.0",
	"mit":        "permission is hereby granted, free of charge, to any person obtaining a copy",
	"bsd":        "redistribution and use in source and binary forms, with or without modification, are permitted",
	"isc":        "permission to use, copy, modify, and/or distribute this software for any purpose",
	"mpl-2.0":    "mozilla public license, version 2.0",
}

// copyleft are modules that may have the MPL: it covers their own files alone.
var copyleft = []string{"github.com/hashicorp/golang-lru/v2"}

// licencesOf are the known licences in a text, sorted; "unknown" where it names others.
func licencesOf(text string) (all []string) {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	for name, phrase := range licences {
		if strings.Contains(text, phrase) {
			all = append(all, name)
		}
	}
	if len(all) == 0 || strings.HasPrefix(text, "gnu ") {
		return []string{"unknown"}
	}
	slices.Sort(all)
	return all
}

func testLicences(t *testing.T) {
	assert.Equal(t, []string{"unknown"}, licencesOf("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007"))
	assert.Equal(t, []string{"unknown"}, licencesOf("All rights reserved."))
	assert.Equal(t, []string{"mit"}, licencesOf("Permission is hereby granted, free of charge,\nto any  person obtaining a copy"))
	for path, m := range linked(t) {
		files, err := filepath.Glob(filepath.Join(m.Dir, "LICENSE*"))
		require.NoError(t, err)
		require.NotEmpty(t, files, "%s has no licence", path)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			got := licencesOf(string(text))
			assert.NotContains(t, got, "unknown", "licence of %s", path)
			assert.Equal(t, slices.Contains(copyleft, path), slices.Contains(got, "mpl-2.0"), "%s has the licences %q", path, got)
		}
	}
}

// What is built is what go.sum says, and what is in the module cache still is.
func testSums(t *testing.T) {
	sums := "\n" + readText(t, "go.sum")
	for path, m := range linked(t) {
		assert.Contains(t, sums, fmt.Sprintf("\n%s %s h1:", path, m.Version))
		assert.Contains(t, sums, fmt.Sprintf("\n%s %s/go.mod h1:", path, m.Version))
	}
	assert.Contains(t, string(goCommand(t, "mod", "verify")), "all modules verified")
}

// Builds never change go.mod nor take a module unverified. Go does that by itself, as
// long as nothing tells it otherwise.
func testNothingTurnsChecksOff(t *testing.T) {
	for _, file := range []string{"Makefile", ".ci/run", "lefthook.yml"} {
		for _, off := range []string{"-mod=", "-mod ", "-modcacherw", "GOSUMDB", "GONOSUM", "GOINSECURE", "GOPRIVATE", "GOPROXY", "go get", "@latest", "curl", "wget"} {
			assert.NotContains(t, readText(t, file), off, file)
		}
	}
	assert.NoFileExists(t, filepath.Join(root, "vendor/modules.txt"), "go build would take it unverified")
	assert.Contains(t, readText(t, ".golangci.yml"), "modules-download-mode: readonly")
	if os.Getenv("CI") == "true" { // elsewhere it is the developer's own choice
		assert.NotContains(t, string(goCommand(t, "env", "GOFLAGS")), "-mod=mod")
	}
}
