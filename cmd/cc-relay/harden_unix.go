//go:build unix

package main

import "golang.org/x/sys/unix"

// noCore sets the limit of cores to nothing. A sandbox that forbids to set limits may
// have set it already.
func noCore() error {
	var now unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &now) == nil && now.Max == 0 {
		return nil
	}
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
