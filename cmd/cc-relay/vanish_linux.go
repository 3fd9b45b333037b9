package main

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// noticeVanished ends a connection when its peer has not acknowledged anything for as
// long as one write may take. A peer that lost its power
// or its network says nothing, and a stream is so little that the kernel takes minutes
// of it without blocking a write: without this the kernel would try for a quarter of an
// hour, and a provider would stream to nobody. It also shortens how long probes of a
// silent connection may stay without an answer. Source: TCP_USER_TIMEOUT in tcp(7).
func noticeVanished(conn *net.TCPConn, after time.Duration) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
	}); failed != nil {
		return failed
	}
	return err
}
