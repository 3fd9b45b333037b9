package state

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// SetAsideError says that a file could not be used and is out of the way, so that
// somebody can look at it. It is worth a warning, and no reason to stop.
type SetAsideError struct {
	File string // full path of the file
	Kept string // full path of where it is now; "" where it could not be moved
	Err  error  // what is wrong with it
}

// Error implements error.
func (e *SetAsideError) Error() string {
	where := "kept as " + e.Kept
	if e.Kept == "" {
		where = "it could not be moved away; delete it"
	}
	return fmt.Sprintf("state file %s %v; %s", e.File, e.Err, where)
}

// Unwrap returns Err.
func (e *SetAsideError) Unwrap() error { return e.Err }

// keepBad is how many files of one name are kept that were set aside.
const keepBad = 3

// badTime sorts as text like the times themselves.
const badTime = "20060102T150405.000000000Z"

func (d *Dir) setAside(name string, why error) *SetAsideError {
	e := &SetAsideError{File: filepath.Join(d.path, name), Err: why}
	bad := name + badMark + time.Now().UTC().Format(badTime)
	if d.root.Rename(name, bad) != nil {
		return e
	}
	e.Kept = filepath.Join(d.path, bad)
	var kept []string
	for _, entry := range d.list() { // by name, so the oldest first
		if strings.HasPrefix(entry.Name(), name+badMark) {
			kept = append(kept, entry.Name())
		}
	}
	for _, old := range kept[:max(0, len(kept)-keepBad)] {
		_ = d.root.Remove(old)
	}
	return e
}
