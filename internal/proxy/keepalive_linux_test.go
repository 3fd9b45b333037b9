package proxy_test

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// requireKeptAlive checks that TCP itself says something on this process's connection
// to an address before it has been idle for so long.
func requireKeptAlive(t *testing.T, addr string, within time.Duration) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	found := 0
	for _, one := range list {
		fd, err := strconv.Atoi(one.Name())
		require.NoError(t, err)
		peer, err := syscall.Getpeername(fd)
		if err != nil {
			continue
		}
		to, ok := peer.(*syscall.SockaddrInet4)
		if !ok || fmt.Sprintf("%d.%d.%d.%d:%d", to.Addr[0], to.Addr[1], to.Addr[2], to.Addr[3], to.Port) != addr {
			continue
		}
		found++
		on, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
		require.NoError(t, err)
		require.Equal(t, 1, on, "SO_KEEPALIVE")
		idle, err := syscall.GetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
		require.NoError(t, err)
		require.Less(t, time.Duration(idle)*time.Second, within, "TCP_KEEPIDLE")
	}
	require.Positive(t, found, "no connection to %s", addr)
}
