package admin

import (
	"time"
)

// auditFile is in the state directory: one JSON record a line, only ever appended to.
// It may be rotated or deleted at any time.
const auditFile = "audit.log"

// Phases of an action in the audit. One that was asked for and has no later record was
// cut by a crash.
const (
	PhaseAsked  = "asked"  // written, and on the disk, before anything is done
	PhaseDone   = "done"   // it is in force
	PhaseFailed = "failed" // it changed nothing; Error says why
)

// Record is one line of the audit.
type Record struct {
	Time      time.Time `json:"time"`
	Phase     string    `json:"phase"`
	Action    string    `json:"action"`
	Target    string    `json:"target,omitempty"`     // PROVIDER, PROVIDER/KEY or PROVIDER/CLASS
	Params    any       `json:"parameters,omitempty"` // the request's body, as understood
	Token     string    `json:"token"`                // admin
	Source    string    `json:"source"`               // the address it came from
	RequestID string    `json:"request_id"`
	Error     string    `json:"error,omitempty"`
}

// record appends to the audit. When it returns nil the record is on the disk.
func (h *Handler) record(r Record) error {
	r.Time = time.Now().UTC()
	line, err := h.encode(r)
	if err != nil {
		return err
	}
	return h.cfg.Dir.Append(auditFile, line)
}
