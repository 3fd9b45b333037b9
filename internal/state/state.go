// Package state keeps what a relay has learned for its next start: a private
// directory of small files, each written whole or not at all. What is in them is a
// hint. A file that is damaged, foreign or of another version is set aside and the
// caller goes on without it. It knows nothing of what it keeps.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Dir is an open state directory. It stays the same directory when its path is
// renamed or replaced later. Safe for concurrent use, also by several processes:
// the last file written stays, and none is ever a mix of two. Lock keeps others out
// who ask for it.
type Dir struct {
	path string
	root *os.Root
	lock *os.File // nil: not locked
}

// Open opens the directory at path, an absolute one, and makes it with mode 0700
// if it does not exist, its parents too. It refuses what others could have put
// there or can change: a symbolic link, a directory of another user, one that its
// group or others may use; the error says what to do. Errors of the file system
// are wrapped. Close it after use.
func Open(path string) (*Dir, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("state directory %s: not an absolute path; write one", path)
	}
	path = filepath.Clean(path)
	d, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", path, err)
	}
	d.removeLeftovers(time.Now())
	return d, nil
}

func open(path string) (*Dir, error) {
	if err := makeDir(path); err != nil {
		return nil, bare(err)
	}
	named, err := os.Lstat(path)
	if err != nil {
		return nil, bare(err)
	}
	if named.Mode()&fs.ModeSymlink != 0 {
		return nil, errors.New("is a symbolic link; name the directory that it leads to")
	}
	if !named.IsDir() {
		return nil, errors.New("is not a directory; move it away, or choose another")
	}
	if err := private(named, "chmod 700 "+path); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, bare(err)
	}
	if opened, err := root.Stat("."); err != nil || !os.SameFile(named, opened) {
		_ = root.Close()
		return nil, errors.New("was replaced while it was opened; try again")
	}
	return &Dir{path: path, root: root}, nil
}

func makeDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) { // as what, the caller looks
		return nil
	}
	return err
}

// Close lets go of the directory and of its lock. No method may be called after it.
func (d *Dir) Close() error {
	if d.lock != nil {
		_ = d.lock.Close()
	}
	return d.root.Close()
}

// Path is the directory's absolute path, as it was opened.
func (d *Dir) Path() string { return d.path }

// Names of files that belong to another one: NAME.tmp-RANDOM while it is written,
// NAME.bad-TIME when it was set aside.
const (
	tempMark = ".tmp-"
	badMark  = ".bad-"
)

// leftAfter is how old a temporary file must be to have no process any more that
// is writing it.
const leftAfter = time.Hour

// removeLeftovers deletes what processes that were killed in the middle of a
// write have left.
func (d *Dir) removeLeftovers(now time.Time) {
	for _, entry := range d.list() {
		if !strings.Contains(entry.Name(), tempMark) {
			continue
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() && now.Sub(info.ModTime()) > leftAfter {
			_ = d.root.Remove(entry.Name())
		}
	}
}

// list returns the directory's entries by name; those it could read, on an error.
func (d *Dir) list() []fs.DirEntry {
	entries, _ := fs.ReadDir(d.root.FS(), ".")
	return entries
}

// bare strips the operation and the path from an error of the file system: whoever
// wraps it names the path in full.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return le.Err
	}
	return err
}
