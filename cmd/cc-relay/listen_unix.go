//go:build unix

package main

import (
	"math"
	"syscall"
)

// makePrivate gives a socket its mode before it has a name. Linux takes over the mode;
// elsewhere the call fails, and the mode that is set after the bind has to do.
func makePrivate(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
}

// openFiles is how many files the process may open. Go has raised it as far as it may.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return math.MaxInt64
	}
	return uint64(limit.Cur) //nolint:unconvert // signed on some systems
}
