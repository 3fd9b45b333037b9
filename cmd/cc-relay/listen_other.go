//go:build !unix

package main

import "syscall"

// makePrivate does nothing: there are no file modes.
func makePrivate(_, _ string, _ syscall.RawConn) error { return nil }
