package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Mistake is one error in a configuration, with its place. Load and Parse return
// all of them joined, in the order of the file.
type Mistake struct {
	// File is the name the configuration was parsed under.
	File string
	// Line and Column count from 1, the column in characters; 0 when the place is
	// not known, as in a Config that was built by hand.
	Line, Column int
	// Path names the setting, such as providers[0].keys[1].priority; "" is the whole file.
	Path string
	// Err says what is wrong and what to write instead. It holds no secret.
	Err error
}

// Error implements error: FILE:LINE:COLUMN: PATH: what is wrong.
func (m *Mistake) Error() string {
	var b strings.Builder
	b.WriteString(m.File)
	if m.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", m.Line, m.Column)
	}
	if m.Path != "" {
		b.WriteString(": " + m.Path)
	}
	return b.String() + ": " + m.Err.Error()
}

// Unwrap returns Err.
func (m *Mistake) Unwrap() error { return m.Err }

// InvalidPriorityError says that a key's priority is none of 0, 1 and 2. Find it
// with errors.As; the Mistake around it has the place in the file.
type InvalidPriorityError struct {
	Provider string // name of the provider
	Key      int    // position in the provider's keys, from 0
	Value    int    // what was written
}

// Error implements error.
func (e *InvalidPriorityError) Error() string {
	return fmt.Sprintf("%d is not a priority; write 0 (low), 1 (normal) or 2 (high)", e.Value)
}

// InvalidWeightError says that a key's weight is not between 1 and 1000. Find it
// with errors.As; the Mistake around it has the place in the file.
type InvalidWeightError struct {
	Provider string // name of the provider
	Key      int    // position in the provider's keys, from 0
	Value    int    // what was written
}

// Error implements error.
func (e *InvalidWeightError) Error() string {
	return fmt.Sprintf("%d is not a weight; write 1 to %d", e.Value, maxWeight)
}

// place is where a setting stands, from 1; the zero place is unknown.
type place struct{ line, column int }

// report collects mistakes. A setting is reported once: what could not be read
// is not also called missing.
type report struct {
	file     string
	places   map[string]place // by path
	failed   map[string]bool  // by path
	mistakes []*Mistake
}

func newReport(file string) *report {
	return &report{file: file, places: map[string]place{}, failed: map[string]bool{}}
}

// add reports err at path, unless path has a mistake already.
func (r *report) add(path string, err error) {
	if r.failed[path] {
		return
	}
	r.failed[path] = true
	r.addAt(r.place(path), path, err)
}

func (r *report) addf(path, format string, args ...any) {
	r.add(path, fmt.Errorf(format, args...))
}

func (r *report) addAt(at place, path string, err error) {
	// The names of headers and aliases are the parts of a path that the file chooses.
	if before, name, ok := strings.Cut(path, ".headers."); ok && !harmless(name) {
		path = before + ".headers"
	}
	if name, ok := strings.CutPrefix(path, "aliases."); ok && !harmless(name) {
		path = "aliases"
	}
	r.mistakes = append(r.mistakes, &Mistake{File: r.file, Line: at.line, Column: at.column, Path: path, Err: err})
}

// wrong reports whether a list or an entry of it has a mistake.
func (r *report) wrong(list string) bool {
	for path := range r.failed {
		if rest, ok := strings.CutPrefix(path, list); ok && (rest == "" || rest[0] == '[') {
			return true
		}
	}
	return false
}

// unnamed reports whether the name of an entry of a list is not known, so that one
// that seems to be missing may be meant for it.
func (r *report) unnamed(list string, entries int) bool {
	for i := range entries {
		path := fmt.Sprintf("%s[%d]", list, i)
		if r.failed[path] || r.failed[path+".name"] {
			return true
		}
	}
	return r.failed[list]
}

// place returns where path stands, or where the nearest thing around it stands
// when path is not written in the file.
func (r *report) place(path string) place {
	for {
		if at, ok := r.places[path]; ok || path == "" {
			return at
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// err returns all mistakes joined in the order of the file, or nil.
func (r *report) err() error {
	slices.SortStableFunc(r.mistakes, func(a, b *Mistake) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	errs := make([]error, len(r.mistakes))
	for i, m := range r.mistakes {
		errs[i] = m
	}
	return errors.Join(errs...)
}

// harmless reports whether a name that the file chose may be shown. A pasted key
// has digits or is long.
func harmless(name string) bool {
	return name != "" && len(name) <= 24 && strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz_-") == ""
}
