package state

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

const (
	seedFile    = "seed"
	seedVersion = 1
)

// Seed returns the random number that belongs to this installation: the same at
// every start, another one everywhere else. Hashes made with it can be kept, and
// say nothing to who does not have it. It is made at first use, once even where
// several processes start together; a damaged one is set aside and made anew,
// and what was hashed with it is worth nothing then. Errors of the file system.
func (d *Dir) Seed() (uint64, error) {
	var seed uint64
	var err error
	for range 3 { // another process may make it, or set it aside, at the same time
		if err = d.Load(seedFile, seedVersion, &seed); err == nil {
			return seed, nil
		}
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails
		failed := d.write(seedFile, seedVersion, binary.LittleEndian.Uint64(random[:]), d.placeNew)
		if failed != nil && !errors.Is(failed, fs.ErrExist) {
			return 0, fmt.Errorf("state file %s: %w", filepath.Join(d.path, seedFile), failed)
		}
	}
	return 0, err
}

// placeNew puts temp in place as name unless there is such a file.
func (d *Dir) placeNew(temp, name string) error {
	err := d.root.Link(temp, name)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return d.root.Rename(temp, name) // a file system without links
	}
	_ = d.root.Remove(temp)
	return err
}
