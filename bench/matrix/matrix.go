package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// row is one of the catalogue.
type row struct {
	id    string // a letter for the group and two digits
	what  string
	waits string // why it cannot be tested whole yet; "" = it can
}

// results are those of tests named after rows.
type results struct {
	passed, skipped map[string]int  // by row: tests that have no tests below them
	packages        map[string]bool // whose tests ran
	fails           map[string]bool // rows
	failed          []string        // packages and tests, in their order
	output          map[string]string
	broken          []string // packages that did not build or ended in the middle
}

// event is a line of `go test -json`. Source: go doc test2json.
type event struct {
	Action, Package, Test, Output, ImportPath string
}

var (
	named = regexp.MustCompile(`^Test(Fault|Security)`)
	ids   = regexp.MustCompile(`(?:^|[_/ ])([CUNPFTRDLS]\d\d)(?:$|[_/ ])`)
)

// rowsOf are the rows that a test is named after: those of the outermost name that names any.
func rowsOf(test string) (of []string) {
	for part := range strings.SplitSeq(test, "/") {
		for word := range strings.FieldsFuncSeq(part, func(r rune) bool { return r == '_' || r == ' ' }) {
			if ids.MatchString(word) {
				of = append(of, word)
			}
		}
		if len(of) > 0 {
			return of
		}
	}
	return nil
}

// maxOutput bounds what is kept of one test's output, in bytes.
const maxOutput = 4 << 10

func read(out io.Reader) (*results, error) {
	got := &results{passed: map[string]int{}, skipped: map[string]int{}, packages: map[string]bool{}, fails: map[string]bool{}, output: map[string]string{}}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	parents := map[string]bool{}
	ended := map[string]event{}
	var order []string
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // of a build
		}
		name := e.Package + " " + e.Test
		switch e.Action {
		case "run":
			if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
				parents[e.Package+" "+e.Test[:i]] = true
			}
		case "output":
			if len(got.output[name]) < maxOutput {
				got.output[name] += e.Output
			}
		case "pass", "fail", "skip":
			if e.Test != "" {
				ended[name] = e
				order = append(order, name)
			} else if e.Action == "fail" {
				got.broken = append(got.broken, e.Package)
			}
		}
	}
	for _, name := range order {
		if e := ended[name]; named.MatchString(e.Test) {
			got.count(name, e, parents[name])
		}
	}
	return got, lines.Err()
}

func (r *results) count(name string, e event, parent bool) {
	r.packages[e.Package] = true
	for _, id := range rowsOf(e.Test) {
		switch e.Action {
		case "fail":
			r.fails[id] = true
		case "skip":
			r.skipped[id]++
		case "pass":
			if !parent {
				r.passed[id]++
			}
		}
	}
	if e.Action == "fail" && !parent {
		r.failed = append(r.failed, name)
	}
}

// States of a row.
const (
	holds   = "holds"
	waits   = "waits"
	failing = "fails"
	missing = "no test"
)

// line is a row with what became of it.
type line struct {
	row
	state string
	tests int
}

// matrix is all rows in the order of the catalogue.
type matrix struct {
	lines  []line
	counts map[string]int
	broken []string // packages that failed without a test of theirs that did
}

func join(all []row, got *results) *matrix {
	m := &matrix{counts: map[string]int{}}
	known := map[string]bool{}
	for _, r := range all {
		known[r.id] = true
		l := line{row: r, tests: got.passed[r.id], state: holds}
		switch {
		case got.fails[r.id] || got.skipped[r.id] > 0: // a test that is skipped has shown nothing
			l.state = failing
		case r.waits != "":
			l.state = waits
		case l.tests == 0:
			l.state = missing
		}
		m.lines = append(m.lines, l)
		m.counts[l.state]++
	}
	for _, ran := range []map[string]int{got.passed, got.skipped} {
		for id := range ran {
			if !known[id] {
				m.broken = append(m.broken, "row "+id+", which the catalogue does not have")
			}
		}
	}
	for _, pkg := range got.broken {
		if !slices.ContainsFunc(got.failed, func(name string) bool { return strings.HasPrefix(name, pkg+" ") }) {
			m.broken = append(m.broken, pkg)
		}
	}
	slices.Sort(m.broken)
	return m
}

var groups = map[byte]string{
	'C': "Clients", 'U': "Providers", 'N': "Network", 'P': "Process", 'F': "Configuration",
	'T': "Clock", 'R': "Shared store", 'D': "Disk", 'L': "Pool and limits", 'S': "Security",
}

func (m *matrix) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d rows: %d hold, %d wait, %d fail, %d have no test.\n", len(m.lines), m.counts[holds], m.counts[waits], m.counts[failing], m.counts[missing])
	var group byte
	for _, l := range m.lines {
		if l.id[0] != group {
			group = l.id[0]
			fmt.Fprintf(&b, "\n### %s\n\n| row | | state | tests |\n| --- | --- | --- | ---: |\n", groups[group])
		}
		state := l.state
		if l.waits != "" {
			state += ": " + l.waits
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d |\n", l.id, l.what, state, l.tests)
	}
	return b.String()
}

// err says what keeps the catalogue from holding.
func (m *matrix) err() error {
	var all []error
	for _, l := range m.lines {
		if l.state == failing || l.state == missing {
			all = append(all, fmt.Errorf("%s %s: %s", l.id, l.what, l.state))
		}
	}
	for _, what := range m.broken {
		all = append(all, fmt.Errorf("%s: failed as a whole", what))
	}
	return errors.Join(all...)
}
