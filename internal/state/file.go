package state

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
)

// maxFile bounds a file, in bytes: what Save refuses to write and Load to read.
const maxFile = 64 << 20

// ErrNone says that the directory has no file of that name yet.
var ErrNone = errors.New("state: no such file")

// Load reads what Save wrote under name into the value that into points to. Where
// it returns an error it has not touched the value. Errors: ErrNone, or a
// *SetAsideError for a file that cannot be used: damaged, edited, of another
// version or another name, larger than 64 MiB, not a regular file, unreadable, of
// another user or usable by others. The next Save starts afresh.
func (d *Dir) Load(name string, version int, into any) error {
	sealed, err := d.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNone
	}
	if err == nil {
		err = decode(name, version, sealed, into)
	}
	if err != nil {
		return d.setAside(name, err)
	}
	return nil
}

// read returns a file's bytes. A link is not followed, and a pipe not waited for.
func (d *Dir) read(name string) ([]byte, error) {
	f, size, err := d.openPrivate(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if size > maxFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	sealed, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", bare(err))
	}
	return sealed, nil
}

// openPrivate opens a regular file that is there and nobody else's, and returns its
// size. A link is not followed, and a pipe not waited for.
func (d *Dir) openPrivate(name string, flag int) (f *os.File, size int64, err error) {
	for range 10 { // another process may replace it at the same time
		f, size, err = d.tryOpen(name, flag)
		if !errors.Is(err, errReplaced) {
			break
		}
	}
	return f, size, err
}

var errReplaced = errors.New("was replaced while it was opened; try again")

func (d *Dir) tryOpen(name string, flag int) (*os.File, int64, error) {
	named, err := d.root.Lstat(name)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot be read: %w", bare(err))
	}
	if !named.Mode().IsRegular() {
		return nil, 0, errors.New("is not a regular file")
	}
	f, err := d.root.OpenFile(name, flag|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot be opened: %w", bare(err))
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = fmt.Errorf("cannot be read: %w", bare(err))
	case !os.SameFile(named, info):
		err = errReplaced
	default:
		err = private(info, "chmod 600 "+filepath.Join(d.path, name))
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// Save writes v as JSON under name, readable by its owner alone. Before it returns
// the file is on the disk; where it returns an error, or the process is killed,
// the file is what it was. A version belongs to the form of v: count it up when
// older ones can no longer be read. Errors: v cannot be written as JSON or is
// larger than 64 MiB, or one of the file system.
func (d *Dir) Save(name string, version int, v any) error {
	err := d.write(name, version, v, d.root.Rename)
	if err != nil {
		return fmt.Errorf("state file %s: %w", filepath.Join(d.path, name), err)
	}
	return nil
}

// write makes a temporary file durable, then puts it in place. It follows no link:
// the temporary file is new, and a link in its final place is replaced.
func (d *Dir) write(name string, version int, v any, place func(temp, name string) error) error {
	sealed, err := encode(name, version, v)
	if err != nil {
		return err
	}
	return d.put(name, sealed, place)
}

// put is write for bytes as they are.
func (d *Dir) put(name string, sealed []byte, place func(temp, name string) error) error {
	temp := name + tempMark + rand.Text()
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return bare(err)
	}
	_, err = f.Write(sealed)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = place(temp, name)
	}
	if err != nil {
		_ = d.root.Remove(temp)
		return bare(err)
	}
	return bare(d.sync())
}

// A file is one JSON object on one line, with the checksum of the data in it:
//
//	{"file":NAME,"version":N,"sha256":HEX,"data":DATA}
//
// It is compared byte by byte, so that no change of it goes unseen.
const (
	headForm = `{"file":%q,"version":%d,"sha256":"`
	middle   = `","data":`
	tail     = "}\n"
)

var errDamaged = errors.New("is damaged")

func encode(name string, version int, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	sealed := fmt.Appendf(make([]byte, 0, len(data)+200), headForm+"%x"+middle, name, version, sum)
	sealed = append(append(sealed, data...), tail...)
	if len(sealed) > maxFile {
		return nil, fmt.Errorf("would be larger than %d bytes", maxFile)
	}
	return sealed, nil
}

func decode(name string, version int, sealed []byte, into any) error {
	head := fmt.Appendf(nil, headForm, name, version)
	rest, ok := bytes.CutPrefix(sealed, head)
	if !ok {
		return otherVersion(name, version, sealed)
	}
	written, rest, _ := bytes.Cut(rest, []byte(middle))
	data, ok := bytes.CutSuffix(rest, []byte(tail))
	sum := sha256.Sum256(data)
	if !ok || string(written) != hex.EncodeToString(sum[:]) {
		return errDamaged
	}
	fresh := reflect.New(reflect.TypeOf(into).Elem())
	if err := json.Unmarshal(data, fresh.Interface()); err != nil {
		return fmt.Errorf("holds something else than expected: %w", err)
	}
	reflect.ValueOf(into).Elem().Set(fresh.Elem())
	return nil
}

// otherVersion says what a file is that does not begin as expected.
func otherVersion(name string, version int, sealed []byte) error {
	var head struct {
		File    string
		Version int
	}
	if json.Unmarshal(sealed, &head) != nil || head.File != name || head.Version == version {
		return errDamaged
	}
	return fmt.Errorf("has version %d and this relay reads %d", head.Version, version)
}
