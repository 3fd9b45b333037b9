package simulator

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"cc-relay/internal/messages"
)

// FaultKind is what goes wrong.
type FaultKind string

// The kinds of faults. Those from FaultCut on act on answers of POST /v1/messages,
// admitted and counted as usual; the others answer by themselves, before any limit
// is looked at, on every path that needs a key.
const (
	// FaultStatus answers Status with Headers and Body, or the API's error body.
	FaultStatus FaultKind = "status"
	// FaultHTML answers Status (0: 502) with the page of an edge.
	FaultHTML FaultKind = "html"
	// FaultEmpty answers 200 without a body.
	FaultEmpty FaultKind = "empty"
	// FaultRedirect answers Status (0: 307) to Location.
	FaultRedirect FaultKind = "redirect"
	// FaultReset closes the connection without an answer.
	FaultReset FaultKind = "reset"
	// FaultDeadKey answers 401 to the key from now on, or for Duration.
	FaultDeadKey FaultKind = "dead_key"

	// FaultDelay only waits for Delay before the headers.
	FaultDelay FaultKind = "delay"
	// FaultCut breaks the connection after AfterEvents whole events, with MidFrame
	// inside the next one; of a JSON answer after AfterBytes.
	FaultCut FaultKind = "cut"
	// FaultStall falls silent there for Duration (0: until the client leaves) and
	// then goes on.
	FaultStall FaultKind = "stall"
	// FaultErrorEvent ends the stream there with an error event of ErrorType (empty:
	// overloaded_error); a JSON answer is 200 with that error as its body.
	FaultErrorEvent FaultKind = "error_event"
	// FaultMalformed puts a data line there that is not JSON and goes on; a JSON
	// answer is cut to half, with a content-length that fits.
	FaultMalformed FaultKind = "malformed"
	// FaultNoStop ends the stream cleanly without message_stop, after AfterEvents
	// whole events or, where that is 0, right before it; a JSON answer is cut to
	// half, ended cleanly, without content-length.
	FaultNoStop FaultKind = "no_stop"
)

// Fault is one line of the script. It looks at every request with a known key that
// fits Key, Org and Path, counts it, and acts on those that Nth, From, To and Every
// pick by that count. Every fault counts, but only the first that is due acts.
type Fault struct {
	// Key is an API key, its name, or its place among all keys from 1; empty: any.
	Key string `yaml:"key,omitempty"`
	// Org is an organization's ID; empty: any.
	Org string `yaml:"org,omitempty"`
	// Path is the exact path without query; empty: any.
	Path string `yaml:"path,omitempty"`

	Nth   int `yaml:"nth,omitempty"`   // only this one, from 1; 0: all
	From  int `yaml:"from,omitempty"`  // not before this one; 0: from the first
	To    int `yaml:"to,omitempty"`    // not after this one; 0: without end
	Every int `yaml:"every,omitempty"` // each Every-th, beginning with From; 0: each

	Kind FaultKind `yaml:"kind"`

	Status    int                `yaml:"status,omitempty"`
	Headers   map[string]string  `yaml:"headers,omitempty"`    // set on the answer, of any kind
	Body      string             `yaml:"body,omitempty"`       // of status and html; empty: a default
	ErrorType messages.ErrorType `yaml:"error_type,omitempty"` // of the default body; empty: that of the status
	Message   string             `yaml:"message,omitempty"`    // of the default body
	ErrorCode string             `yaml:"error_code,omitempty"` // details.error_code of the default body
	Location  string             `yaml:"location,omitempty"`   // of redirect

	Delay       time.Duration `yaml:"delay,omitempty"`    // before the headers, of any kind
	Duration    time.Duration `yaml:"duration,omitempty"` // of stall and dead_key
	AfterEvents int           `yaml:"after_events,omitempty"`
	AfterBytes  int           `yaml:"after_bytes,omitempty"` // of a JSON answer
	MidFrame    bool          `yaml:"mid_frame,omitempty"`
	RST         bool          `yaml:"rst,omitempty"` // reset and cut: TCP reset instead of a plain close
}

// scripted is a fault and how many requests fitted it.
type scripted struct {
	Fault
	count int
}

// answers tells faults that give the whole answer from those that spoil one.
func (k FaultKind) answers() bool {
	switch k {
	case FaultStatus, FaultHTML, FaultEmpty, FaultRedirect, FaultReset, FaultDeadKey:
		return true
	}
	return false
}

func (f *Fault) fits(k *credential, path string) bool {
	return (f.Key == "" || f.Key == k.key || f.Key == k.name || f.Key == k.position) &&
		(f.Org == "" || f.Org == k.org) &&
		(f.Path == "" || f.Path == path)
}

// due picks by the count of fitting requests, from 1.
func (f *Fault) due(n int) bool {
	first := max(f.From, 1)
	return (f.Nth == 0 || f.Nth == n) &&
		n >= first && (f.To == 0 || n <= f.To) &&
		(f.Every == 0 || (n-first)%f.Every == 0)
}

// faultFor counts the request in every fault that it fits and returns the first
// that is due, or nil. A key that it kills is dead for whoever comes next.
func (s *Simulator) faultFor(k *credential, path string, now time.Time) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due *Fault
	for i := range s.faults {
		f := &s.faults[i]
		if !f.fits(k, path) {
			continue
		}
		f.count++
		if due == nil && f.due(f.count) {
			hit := f.Fault
			due = &hit
		}
	}
	if due != nil && due.Kind == FaultDeadKey {
		s.dead[k.key] = time.Time{}
		if due.Duration > 0 {
			s.dead[k.key] = now.Add(due.Duration)
		}
	}
	return due
}

// isDead reports whether a dead_key fault took the key out.
func (s *Simulator) isDead(k *credential, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, dead := s.dead[k.key]
	return dead && (until.IsZero() || now.Before(until))
}

func validateFaults(faults []Fault, cfg Config) error {
	var errs []error
	for i, f := range faults {
		for _, problem := range f.problems(cfg) {
			errs = append(errs, fmt.Errorf("faults[%d].%s", i, problem))
		}
	}
	return errors.Join(errs...)
}

func (f Fault) problems(cfg Config) []string {
	var list []string
	kinds := []FaultKind{FaultStatus, FaultHTML, FaultEmpty, FaultRedirect, FaultReset, FaultDeadKey,
		FaultDelay, FaultCut, FaultStall, FaultErrorEvent, FaultMalformed, FaultNoStop}
	if !slices.Contains(kinds, f.Kind) {
		list = append(list, fmt.Sprintf("kind: got %q, want one of %q", f.Kind, kinds))
	}
	if f.Kind == FaultStatus && f.Status == 0 {
		list = append(list, "status: say which status to answer")
	}
	if f.Status != 0 && (f.Status < 200 || f.Status > 599) {
		list = append(list, fmt.Sprintf("status: got %d, want 200 to 599", f.Status))
	}
	if f.Kind == FaultRedirect && f.Location == "" {
		list = append(list, "location: say where to redirect to")
	}
	if f.Kind == FaultDelay && f.Delay == 0 {
		list = append(list, "delay: say how long to wait, such as 2s")
	}
	if min(f.Nth, f.From, f.To, f.Every, f.AfterEvents, f.AfterBytes) < 0 || min(f.Delay, f.Duration) < 0 {
		list = append(list, "nth, from, to, every, after_events, after_bytes, delay, duration: must not be negative")
	}
	if !slices.ContainsFunc(cfg.credentials(), func(k credential) bool { return f.fits(&k, f.Path) }) {
		list = append(list, "key, org: no configured key fits; use a key, its name or its place, and the id of its organization")
	}
	return list
}

// status is the default of kinds that need none.
func (f *Fault) status() int {
	switch {
	case f.Status != 0:
		return f.Status
	case f.Kind == FaultRedirect:
		return http.StatusTemporaryRedirect
	}
	return http.StatusBadGateway
}
