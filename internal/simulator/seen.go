package simulator

import (
	"net/http"
	"time"
)

// Record is one request as the provider saw it.
type Record struct {
	Time     time.Time     // of arrival
	Duration time.Duration // until the handler was done; 0 while it runs
	Method   string
	Target   string // path and query
	// Key, Org and Workspace are names; empty for an unknown key.
	Key, Org, Workspace string
	Model               string
	// Header is a copy as it came, credentials included: this is how a test sees
	// which key was sent.
	Header http.Header
	Body   []byte // nil without Config.KeepBodies

	RequestID  string
	Status     int       // 0: no status was sent (yet)
	Fault      FaultKind // "" when none acted
	Usage      Usage     // counted so far; not what a Reply hook claimed instead
	ClientLeft bool      // before the answer was complete
	Done       bool
}

// Seen returns copies of the newest records, oldest first, requests under way
// included. Headers and bodies are shared between copies: do not change them.
func (s *Simulator) Seen() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := make([]Record, 0, len(s.records))
	for i := range s.records {
		seen = append(seen, *s.records[(s.next+i)%len(s.records)])
	}
	return seen
}

func (s *Simulator) remember(r *Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) < s.cfg.MaxRecords {
		s.records = append(s.records, r)
		return
	}
	s.records[s.next] = r
	s.next = (s.next + 1) % len(s.records)
}

// note changes a record under the lock that Seen copies under.
func (s *Simulator) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}
