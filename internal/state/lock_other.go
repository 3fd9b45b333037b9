//go:build !darwin && !dragonfly && !freebsd && !illumos && !linux && !netbsd && !openbsd

package state

import "os"

// tryLock finds every file free: there are no locks that end with their process here.
func tryLock(*os.File) (bool, error) { return true, nil }
