package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// harden keeps keys and prompts, which are in the relay's memory, out of cores and away
// from debuggers. A core whose pattern is a pipe ignores the limit, so both are needed; a
// process that is not dumpable leaves none, whatever GOTRACEBACK says, and its
// /proc/PID/environ and /proc/PID/mem are root's. Of that directory the relay itself reads
// stat, which is everybody's, and fd, which a process may always.
// https://man7.org/linux/man-pages/man5/core.5.html
func harden() error {
	var errs []error
	if err := noCore(); err != nil {
		errs = append(errs, fmt.Errorf("core dumps are not switched off: %w", err))
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("other processes of this user can read the relay's memory: %w", err))
	}
	return errors.Join(errs...)
}
