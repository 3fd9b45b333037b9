package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Append adds line, which has no line break, to the file name, which it makes with
// mode 0600 where there is none. When it returns nil the line is on the disk, on a
// line of its own even where a crash or a full disk has cut the one before. The file
// is opened anew each time, so one that was moved away or deleted is begun again.
// Errors: not a regular file, of another user, usable by others, or one of the file
// system; the line may then be there in part. Safe for concurrent use.
func (d *Dir) Append(name string, line []byte) error {
	if err := d.appendLine(name, line); err != nil {
		return fmt.Errorf("state file %s: %w", filepath.Join(d.path, name), err)
	}
	return nil
}

func (d *Dir) appendLine(name string, line []byte) error {
	f, size, made, err := d.openAppend(name)
	if err != nil {
		return err
	}
	data := make([]byte, 0, len(line)+2)
	if size > 0 && !endsLine(f, size) {
		data = append(data, '\n')
	}
	data = append(append(data, line...), '\n')
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil && made {
		err = d.sync()
	}
	return bare(err)
}

// openAppend opens the file that is there, or makes it: then made is true.
func (d *Dir) openAppend(name string) (f *os.File, size int64, made bool, err error) {
	f, err = d.root.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return f, 0, true, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, 0, false, bare(err)
	}
	f, size, err = d.openPrivate(name, os.O_RDWR|os.O_APPEND)
	return f, size, false, err
}

// endsLine reports whether the file's last byte ends a line; true where it cannot be
// read.
func endsLine(f *os.File, size int64) bool {
	var last [1]byte
	_, err := f.ReadAt(last[:], size-1)
	return err != nil || last[0] == '\n'
}
