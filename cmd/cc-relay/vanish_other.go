//go:build !linux

package main

import (
	"net"
	"time"
)

// noticeVanished does nothing: the kernel's own patience with a peer that has vanished
// is not ours to set.
func noticeVanished(*net.TCPConn, time.Duration) error { return nil }
