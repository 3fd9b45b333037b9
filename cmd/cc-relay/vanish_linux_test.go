package main

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cc-relay/internal/proxy"
)

// vanishedAfter is for how long a connection bears a peer that acknowledges nothing.
func vanishedAfter(t *testing.T, c net.Conn) (ms int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	}))
	require.NoError(t, err)
	return ms
}

// testPeersThatVanish: connections that are accepted have the time of one write, as it
// is configured then. That the kernel keeps to it cannot be tried without a network that
// can be cut.
func testPeersThatVanish(t *testing.T) {
	for address, write := range map[string]time.Duration{"127.0.0.1:0": proxy.DefaultWriteTimeout, "[::1]:0": 5 * time.Minute} {
		l, err := listen(address, nil, func(l net.Listener) net.Listener {
			return newCrowd(l, func() (total, perSource int) { return 2, 2 }, func() time.Duration { return write })
		})
		require.NoError(t, err)
		accepted := make(chan net.Conn, 1)
		go func() {
			if c, err := l.Accept(); assert.NoError(t, err) {
				accepted <- c
			}
		}()
		client, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		c := <-accepted
		assert.EqualValues(t, write.Milliseconds(), vanishedAfter(t, c.(*seated).Conn))
		assert.Zero(t, vanishedAfter(t, client))
		_, _, _ = c.Close(), client.Close(), l.Close()
	}
}
