//go:build !linux

package main

import "syscall"

// noticeVanished does nothing: the kernel's own patience with a peer that has vanished
// is not ours to set.
func noticeVanished(_, _ string, _ syscall.RawConn) error { return nil }
