package main

import (
	"syscall"

	"golang.org/x/sys/unix"

	"cc-relay/internal/proxy"
)

// noticeVanished ends the connections of a listener when their peer has not
// acknowledged anything for as long as one write may take. A peer that lost its power
// or its network says nothing, and a stream is so little that the kernel takes minutes
// of it without blocking a write: without this the kernel would try for a quarter of an
// hour, and a provider would stream to nobody. It also shortens how long probes of a
// silent connection may stay without an answer. Source: TCP_USER_TIMEOUT in tcp(7).
func noticeVanished(_, _ string, conn syscall.RawConn) error {
	var err error
	if failed := conn.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(proxy.DefaultWriteTimeout.Milliseconds()))
	}); failed != nil {
		return failed
	}
	return err
}
