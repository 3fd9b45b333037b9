package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// unixScheme begins the address of a socket in the file system.
const unixScheme = "unix:"

// listen opens the listener of address, which is HOST:PORT, or unix: and the path of
// a socket that this user alone can connect to. A certificate makes it speak TLS, with
// HTTP/2 and HTTP/1.1 to choose from; nil is without TLS. The socket of a relay that
// ended without removing it is replaced, anything else in its place is not. wrap, where
// not nil, is put around the listener, below TLS. Errors: an address in use wraps
// syscall.EADDRINUSE.
func listen(address string, cert *certificate, wrap func(net.Listener) net.Listener) (net.Listener, error) {
	l, err := listenPlain(address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use by another program; choose another address: %w", address, syscall.EADDRINUSE)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	if wrap != nil {
		l = wrap(l)
	}
	if cert == nil {
		return l, nil
	}
	return tls.NewListener(l, cert.config()), nil
}

func listenPlain(address string) (net.Listener, error) {
	path, local := strings.CutPrefix(address, unixScheme)
	if !local {
		return net.Listen("tcp", address)
	}
	return listenUnix(path)
}

// listenUnix refuses abstract sockets (@name), which every user could connect to.
func listenUnix(path string) (net.Listener, error) {
	if path == "" || path[0] == '@' {
		return nil, errors.New("a socket needs a path, as in unix:/run/cc-relay/relay.sock")
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: makePrivate}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// removeStale makes room at path: a socket that nobody listens on is removed.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is no socket; move it away, or choose another path")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = conn.Close()
		return syscall.EADDRINUSE
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("cannot tell whether the socket is in use: %w", err)
	}
	return os.Remove(path)
}

// connectionBuffer is how much of bodies an HTTP/2 connection may have in memory.
const connectionBuffer = 1 << 20

// http2Bounds are the limits of an HTTP/2 connection: how many requests may be open
// in it, and how much of their bodies may be in memory before a handler reads it. One
// request takes 64 KiB, all of a connection 1 MiB. write is how long a client may take
// for one write; all streams of a connection wait for it.
func http2Bounds(streams int, write time.Duration) *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          streams,
		MaxReceiveBufferPerStream:     64 << 10,
		MaxReceiveBufferPerConnection: connectionBuffer,
		SendPingTimeout:               time.Minute, // finds peers that are gone while their requests wait
		WriteByteTimeout:              max(time.Minute, write),
	}
}
