package state_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/state"
)

func TestWhatIsSavedIsLoaded(t *testing.T) {
	d := newDir(t)
	require.NoError(t, d.Save("pools", 3, kept{Name: "old"}))
	require.NoError(t, d.Save("pools", 3, something))
	require.NoError(t, d.Save("other", 1, "text"))
	var got kept
	require.NoError(t, open(t, d.Path()).Load("pools", 3, &got))
	assert.Equal(t, something, got)
	assert.Equal(t, []string{"other", "pools"}, names(t, d), "nothing else is left")
	info, err := os.Lstat(at(d, "pools"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())
}

// The form of a file: whoever changes it must count the versions of all files up.
func TestTheFormOfAFile(t *testing.T) {
	d := newDir(t)
	require.NoError(t, d.Save("pools", 3, map[string]int{"a": 1}))
	const sum = "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862" // of {"a":1}
	assert.Equal(t, `{"file":"pools","version":3,"sha256":"`+sum+`","data":{"a":1}}`+"\n", read(t, at(d, "pools")))
}

func TestLoadOfNothing(t *testing.T) {
	d := newDir(t)
	got := something
	assert.ErrorIs(t, d.Load("pools", 1, &got), state.ErrNone)
	assert.Equal(t, something, got)
	assert.Empty(t, names(t, d))
}

// spoil makes a sound file of version 1 unusable.
var spoils = []struct {
	name  string
	spoil func(t *testing.T, path string)
	want  string
}{
	{"empty", func(t *testing.T, path string) { rewrite(t, path, "") }, "is damaged"},
	{"another program's", func(t *testing.T, path string) { rewrite(t, path, "hello\n") }, "is damaged"},
	{"torn", func(t *testing.T, path string) { rewrite(t, path, read(t, path)[:100]) }, "is damaged"},
	{"its end is missing", func(t *testing.T, path string) { rewrite(t, path, strings.TrimSuffix(read(t, path), "\n")) }, "is damaged"},
	{"longer", func(t *testing.T, path string) { rewrite(t, path, read(t, path)+"\n") }, "is damaged"},
	{"edited", func(t *testing.T, path string) {
		rewrite(t, path, strings.Replace(read(t, path), `"count":18`, `"count":17`, 1))
	}, "is damaged"},
	{"edited where it changes nothing", func(t *testing.T, path string) {
		rewrite(t, path, strings.Replace(read(t, path), `{"file"`, `{ "file"`, 1))
	}, "is damaged"},
	{"a newer version", func(t *testing.T, path string) {
		require.NoError(t, open(t, filepath.Dir(path)).Save("pools", 2, something))
	}, "has version 2 and this relay reads 1"},
	{"something else", func(t *testing.T, path string) {
		require.NoError(t, open(t, filepath.Dir(path)).Save("pools", 1, []int{1}))
	}, "holds something else than expected"},
	{"under another's name", func(t *testing.T, path string) {
		require.NoError(t, open(t, filepath.Dir(path)).Save("other", 1, something))
		require.NoError(t, os.Rename(filepath.Join(filepath.Dir(path), "other"), path))
	}, "is damaged"},
	{"too large", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 64<<20+1)) }, "is larger than 67108864 bytes"},
	{"for its group", func(t *testing.T, path string) { require.NoError(t, os.Chmod(path, 0o660)) }, "may be used by other users (mode 0660)"},
	{"for everybody to read", func(t *testing.T, path string) { require.NoError(t, os.Chmod(path, 0o644)) }, "may be used by other users (mode 0644)"},
	{"a link", func(t *testing.T, path string) {
		target := filepath.Join(t.TempDir(), "target")
		require.NoError(t, os.Rename(path, target))
		require.NoError(t, os.Symlink(target, path))
	}, "is not a regular file"},
	{"a link within the directory", func(t *testing.T, path string) {
		require.NoError(t, os.Rename(path, path+"-2"))
		require.NoError(t, os.Symlink("pools-2", path))
	}, "is not a regular file"},
	{"a directory", func(t *testing.T, path string) {
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.Mkdir(path, 0o700))
	}, "is not a regular file"},
	{"a pipe", func(t *testing.T, path string) {
		require.NoError(t, os.Remove(path))
		require.NoError(t, syscall.Mkfifo(path, 0o600))
	}, "is not a regular file"},
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func testUnusableFiles(t *testing.T) {
	for _, tc := range spoils {
		t.Run(tc.name, func(t *testing.T) {
			d := newDir(t)
			require.NoError(t, d.Save("pools", 1, something))
			tc.spoil(t, at(d, "pools"))
			before, err := os.Lstat(at(d, "pools"))
			require.NoError(t, err)

			got := kept{Name: "untouched"}
			var aside *state.SetAsideError
			err = d.Load("pools", 1, &got)
			require.ErrorAs(t, err, &aside)
			assert.Equal(t, kept{Name: "untouched"}, got)
			assert.ErrorContains(t, aside.Err, tc.want)
			assert.Equal(t, at(d, "pools"), aside.File)
			assert.Equal(t, fmt.Sprintf("state file %s %v; kept as %s", aside.File, aside.Err, aside.Kept), err.Error())
			after, err := os.Lstat(aside.Kept)
			require.NoError(t, err)
			assert.True(t, os.SameFile(before, after), "the file itself is kept")

			assert.ErrorIs(t, d.Load("pools", 1, &got), state.ErrNone, "it is out of the way")
			require.NoError(t, d.Save("pools", 1, something))
			require.NoError(t, d.Load("pools", 1, &got))
			assert.Equal(t, something, got)
		})
	}
}

func TestThreeFilesOfANameAreKeptAside(t *testing.T) {
	d := newDir(t)
	var last []string
	for i := range 5 {
		rewrite(t, at(d, "other"), "bad too")
		rewrite(t, at(d, "pools"), fmt.Sprint("bad ", i))
		var aside *state.SetAsideError
		require.ErrorAs(t, d.Load("pools", 1, new(kept)), &aside)
		assert.Equal(t, fmt.Sprint("bad ", i), read(t, aside.Kept))
		last = append(last, filepath.Base(aside.Kept))
	}
	assert.Equal(t, append([]string{"other"}, last[2:]...), names(t, d))
}

// A link in the place of a file is replaced; what it leads to stays as it is.
func TestSaveFollowsNoLink(t *testing.T) {
	d := newDir(t)
	target := filepath.Join(t.TempDir(), "target")
	rewrite(t, target, "mine")
	require.NoError(t, os.Symlink(target, at(d, "pools")))
	require.NoError(t, d.Save("pools", 1, something))
	assert.Equal(t, "mine", read(t, target))
	var got kept
	require.NoError(t, d.Load("pools", 1, &got))
	assert.Equal(t, something, got)
}

// limitFiles makes a disk full, for this process: a write beyond size fails.
func limitFiles(t *testing.T, size uint64) (lift func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	var was syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was))
	full := was
	full.Cur = size
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full))
	return func() {
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was))
		signal.Reset(syscall.SIGXFSZ)
	}
}

func testFullDisk(t *testing.T) {
	d := newDir(t)
	require.NoError(t, d.Save("pools", 1, something))
	lift := limitFiles(t, 24<<20) // what the go command notes of the test must fit
	err := d.Save("pools", 1, kept{Name: strings.Repeat("x", 30<<20)})
	lift()
	require.ErrorIs(t, err, syscall.EFBIG)
	assert.ErrorContains(t, err, "state file "+at(d, "pools")+": ")
	assert.Equal(t, []string{"pools"}, names(t, d), "the temporary file is removed")
	var got kept
	require.NoError(t, d.Load("pools", 1, &got))
	assert.Equal(t, something, got)
}

func TestSaveRefuses(t *testing.T) {
	d := newDir(t)
	require.NoError(t, d.Save("pools", 1, something))
	for name, v := range map[string]any{
		"what is no JSON":   func() {},
		"what is too large": make([]byte, 48<<20), // and base64 makes more of it
	} {
		assert.ErrorContains(t, d.Save("pools", 1, v), "state file "+at(d, "pools")+": ", name)
	}
	assert.ErrorContains(t, d.Save("../pools", 1, something), "state file ", "outside of the directory")
	assert.ErrorContains(t, d.Save("", 1, something), "state file ")
	var got kept
	require.NoError(t, d.Load("pools", 1, &got))
	assert.Equal(t, something, got)
	assert.Equal(t, []string{"pools"}, names(t, d))
}

func testDirectoryIsGone(t *testing.T) {
	d := newDir(t)
	require.NoError(t, os.RemoveAll(d.Path()))
	err := d.Save("pools", 1, something)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.True(t, errors.Is(d.Load("pools", 1, new(kept)), state.ErrNone))
}
