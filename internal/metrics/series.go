package metrics

import (
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// MaxSeries is how many combinations of label values each metric tells apart.
// Those that come later are counted together, every label "other".
const MaxSeries = 10_000

// Label values that stand for others.
const (
	none  = "none"  // there is no such thing
	other = "other" // not one of the values that are told apart
)

// series finds what is counted under one combination of label values, without an
// allocation once it is known: the client library's own look-up hashes and
// compares strings anew each time. Its methods may be called concurrently.
type series[K comparable, S any] struct {
	make func(K) S // what a key is counted under; the key's values are as callers gave them
	rest K         // where keys go when there are too many

	mu  sync.RWMutex
	all map[K]S // guarded by mu
}

func newSeries[K comparable, S any](rest K, make func(K) S) *series[K, S] {
	return &series[K, S]{make: make, rest: rest, all: map[K]S{}}
}

func (s *series[K, S]) of(k K) S {
	s.mu.RLock()
	found, ok := s.all[k]
	s.mu.RUnlock()
	if ok {
		return found
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.all[k]; !ok && len(s.all) >= MaxSeries {
		k = s.rest
	}
	if found, ok := s.all[k]; ok {
		return found
	}
	made := s.make(k)
	s.all[k] = made
	return made
}

const (
	maxName = 128 // bytes, as long as a class may be
	maxWord = 32
)

// name is a label value that comes from the configuration or the table of classes.
func name(s string) string {
	switch {
	case s == "":
		return none
	case len(s) > maxName || !utf8.ValidString(s):
		return other
	}
	return s
}

// word is a label value of the relay's own: lower-case letters, digits and
// underscores, which leaves out models' usual names, paths and sessions.
func word(s string) string {
	switch {
	case s == "":
		return none
	case len(s) > maxWord || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") != "":
		return other
	}
	return s
}

// status is the label of an HTTP status; 0 stands for none.
func status(code int) string {
	switch {
	case code == 0:
		return none
	case code < 100 || code > 599:
		return other
	}
	return strconv.Itoa(code)
}
