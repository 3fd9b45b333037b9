package state

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// lockFile is what holds the lock. It stays when its process has ended: only the lock
// on it counts, and the kernel takes that back however the process ends.
const lockFile = "lock"

// InUseError says that another process has the directory.
type InUseError struct {
	Path string // of the directory
	Who  string // process and host as that process wrote them, "" = it has not yet
}

func (e *InUseError) Error() string {
	who := e.Who
	if who == "" {
		who = "another process"
	}
	return fmt.Sprintf("state directory %s: is in use by %s; stop that relay, or give this one another server.state_dir", e.Path, who)
}

// Lock takes the directory for this process alone, until Close or the end of the
// process, however it ends. It does not wait. The other methods do not ask for it.
// Errors: an *InUseError where another Dir has it, of any process; or one of the file
// system, which may have no locks. Where the system has none at all it does nothing.
func (d *Dir) Lock() error {
	err := d.takeLock()
	if err == nil || errors.As(err, new(*InUseError)) {
		return err
	}
	return fmt.Errorf("state directory %s: cannot be locked: %w", d.path, err)
}

func (d *Dir) takeLock() error {
	f, _, _, err := d.openAppend(lockFile)
	if err != nil {
		return err
	}
	switch free, err := tryLock(f); {
	case err != nil:
		_ = f.Close()
		return err
	case !free:
		defer func() { _ = f.Close() }()
		return &InUseError{Path: d.path, Who: holder(f)}
	}
	d.lock = f
	d.sign(f)
	return nil
}

// sign writes who has the lock, for the one who comes second. A disk that takes no
// more keeps nobody from having the lock.
func (d *Dir) sign(f *os.File) {
	host, _ := os.Hostname()
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintf(f, "process %d on %s\n", os.Getpid(), host)
	}
}

// longestHolder bounds what is shown of a lock file, in bytes: a host's name has at
// most 64, or 253 with its domain.
const longestHolder = 300

func holder(f *os.File) string {
	var text [longestHolder]byte
	n, _ := f.ReadAt(text[:], 0) // at the end of the file it returns what there was
	line, _, _ := strings.Cut(string(text[:n]), "\n")
	quoted := strconv.QuoteToASCII(line) // whatever somebody wrote there
	return quoted[1 : len(quoted)-1]
}
