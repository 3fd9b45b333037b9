//go:build unix

package http1

import "syscall"

// socket asks the system about a connection, without waiting. It has one user at a time.
type socket struct {
	raw  syscall.RawConn
	look func(fd uintptr) // kept, because a closure for each question would be garbage
	size func(fd uintptr)

	silent bool
	buffer int
}

// newSocket returns nil for a connection that has no socket.
func newSocket(c syscall.Conn) *socket {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{raw: raw}
	s.look = func(fd uintptr) {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
		s.silent = err == syscall.EAGAIN || err == syscall.EINTR // not 0: that is the end
	}
	s.size = func(fd uintptr) {
		s.buffer, _ = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF) // 0 if unknown
	}
	return s
}

// quiet reports whether nothing waits to be read, neither bytes nor an end.
func (s *socket) quiet() bool {
	s.silent = false
	return s.raw.Control(s.look) == nil && s.silent
}

// room is how many bytes an idle connection surely takes at once. Half of the
// buffer's size: Linux counts its own bookkeeping in.
func (s *socket) room() int64 {
	s.buffer = 0
	_ = s.raw.Control(s.size)
	return int64(s.buffer / 2)
}
