//go:build !unix

package http1

import "syscall"

// socket knows nothing here: a connection that the server has closed is noticed
// when it is used.
type socket struct{}

func newSocket(syscall.Conn) *socket { return nil }

func (*socket) quiet() bool { return true }
func (*socket) room() int64 { return 0 }
