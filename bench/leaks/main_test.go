package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The hundredth part of `make leaks`.
func testNothingComesOut(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "cc-relay")
	out, err := exec.Command("go", "build", "-o", binary, "cc-relay/cmd/cc-relay").CombinedOutput()
	require.NoError(t, err, "%s", out)
	got, err := search(t.Context(), binary, dir, 10_000, 1, func(int) {})
	require.NoError(t, err)
	assert.NoError(t, got.check(), "%s", got)
	assert.EqualValues(t, 10_000, got.facts["requests sent"])
	assert.Len(t, got.plantsOf, 10)
	for i, found := range got.plantsOf {
		if level := levels[i%len(levels)]; level != "warn" && level != "error" { // those log no request that is served
			assert.True(t, found["logs"], "round %d, level %s", i, level)
		}
	}
	for _, name := range []string{"answers to clients", "admin", "metrics", "traces", "events", "audit", "state files", "command line", "headers at providers", "log, trace, json", "log, error, console"} {
		assert.Contains(t, got.outputs, name)
	}
}

// A leak is found in whatever form it is, and in whatever piece of a long line.
func testFormsAreFound(t *testing.T) {
	key := known()[3]
	for form, text := range map[string]string{
		"plain": key, "lower case": "sk-ant-api03-zq7kxw9pvt-a", "upper case": "SK-ANT-API03-ZQ7KXW9PVT-A", "percent": "%5A%71%37%4B%78%57%39%70%56%74",
		"hexadecimal": "5a71374b78573970567400", "base64": "c2stYW50LWFwaTAzLVpxN0t4VzlwVnQtYS0wLUFB", "base64, moved by one": "eHNrLWFudC1hcGkwMy1acTdLeFc5cFZ0LWEtMC1BQQ==",
		"base64, moved by two": "eHhzay1hbnQtYXBpMDMtWnE3S3hXOXBWdC1hLTAtQUE=",
	} {
		f := newFindings()
		f.text("x", []byte("a\nb "+text+" c\nd\n"))
		assert.EqualValues(t, 1, f.output("x").secrets.Load(), form)
		assert.EqualValues(t, 3, f.output("x").lines.Load(), form)
		assert.Error(t, f.check(), form)
	}
	f := newFindings()
	o := f.output("answers")
	f.look(o, "answers", []byte("for "+promptOf(7)+" and "+promptOf(7)), promptOf(7))
	assert.Zero(t, o.prompts.Load(), "it is the client's own")
	f.look(o, "answers", []byte("for "+promptOf(7)+" and "+promptOf(8)), promptOf(7))
	assert.EqualValues(t, 1, o.prompts.Load(), "it is another's")
}

func TestLongLinesAreSearchedWhole(t *testing.T) {
	for at := 256<<10 - 20; at < 256<<10+20; at++ {
		line := make([]byte, 600<<10)
		for i := range line {
			line[i] = '.'
		}
		copy(line[at:], known()[0])
		f := newFindings()
		f.stream("x", bytes.NewReader(append(line, '\n')))
		assert.NotZero(t, f.output("x").secrets.Load(), at)
	}
}

// An output that is not searched, or in which nothing came, makes the run fail.
func TestARunThatProvesNothingFails(t *testing.T) {
	good := func() *findings {
		f := newFindings()
		f.count("requests sent", 10)
		f.count("requests at providers", 9)
		f.text("log", []byte("a\nb\n"))
		f.plantsOf = []map[string]bool{{"admin": true, "traces": true}}
		f.plantOneInEach()
		return f
	}
	require.NoError(t, good().check())
	for name, spoil := range map[string]func(*findings){
		"a plant that was not found":     func(f *findings) { f.output("log").drill.Store(0) },
		"an empty output":                func(f *findings) { f.output("log").lines.Store(2) },
		"a relay that hid its plant":     func(f *findings) { f.plantsOf = append(f.plantsOf, map[string]bool{"admin": true}) },
		"providers that were not asked":  func(f *findings) { f.count("requests at providers", -6) },
		"a secret":                       func(f *findings) { f.text("log", []byte(known()[0])) },
		"a prompt":                       func(f *findings) { f.text("log", []byte(promptOf(1))) },
		"an output that was not planted": func(f *findings) { f.text("new", []byte("a\nb\nc\n")) },
	} {
		f := good()
		spoil(f)
		assert.Error(t, f.check(), name)
	}
}

func TestSecurity(t *testing.T) {
	t.Run("S14", func(t *testing.T) {
		t.Run("forms", testFormsAreFound)
		t.Run("search", testNothingComesOut) // S23, too: prompts
	})
}
