//go:build unix

package main

import "syscall"

// makePrivate gives a socket its mode before it has a name. Linux takes over the mode;
// elsewhere the call fails, and the mode that is set after the bind has to do.
func makePrivate(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
}
