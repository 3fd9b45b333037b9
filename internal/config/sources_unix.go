//go:build unix

package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// private returns an error for the file of a secret that others may use than its owner,
// the relay's user. One that root handed to another user may be readable by a group:
// that is how systemd (LoadCredential=) and Kubernetes (fsGroup) do it.
func private(info fs.FileInfo) error {
	mode, user, owner := info.Mode().Perm(), os.Geteuid(), os.Geteuid()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(stat.Uid)
	}
	allowed := fs.FileMode(0o700)
	if owner == 0 && user != 0 {
		allowed = 0o740
	}
	switch {
	case owner != user && owner != 0:
		return fmt.Errorf("belongs to user %d, and the relay runs as %d; change its owner", owner, user)
	case mode&^allowed != 0:
		return fmt.Errorf("may be used by other users (mode %04o); run: chmod 600 on it", mode)
	}
	return nil
}

// Descriptors from 3 on are handed over on purpose; those before are the standard ones.
const leastDescriptor, mostDescriptor = 3, 1023

// descriptorPatience is how long whoever holds the other end of a pipe may take.
const descriptorPatience = 5 * time.Second

var (
	errNotInherited = errors.New("was not handed over; start the relay with it open")
	errNotReadable  = errors.New("is neither a file nor a pipe")
)

// readDescriptor returns what an inherited descriptor holds, to its end, and closes it,
// so that child processes do not have it. Descriptors of the relay's own are refused:
// they are all closed on exec, and an inherited one is not.
func readDescriptor(n int) (string, error) {
	flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return "", errNotInherited
	}
	var stat unix.Stat_t
	if err := unix.Fstat(n, &stat); err != nil {
		return "", errNotInherited
	}
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFIFO && kind != unix.S_IFSOCK {
		return "", errNotReadable
	}
	_ = unix.SetNonblock(n, true) // so that a pipe has a deadline
	f := os.NewFile(uintptr(n), "")
	defer func() { _ = f.Close() }()
	_ = f.SetReadDeadline(time.Now().Add(descriptorPatience)) // a file needs none
	data, err := io.ReadAll(io.LimitReader(f, mostSecret+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", fmt.Errorf("was not written to its end within %v", descriptorPatience)
	case err != nil:
		return "", bare(err)
	case len(data) > mostSecret:
		return "", fmt.Errorf("is larger than %d bytes", mostSecret)
	}
	return lineOf(data)
}
