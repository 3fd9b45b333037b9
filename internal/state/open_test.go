package state_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/state"
)

func TestOpenMakesThePrivateDirectory(t *testing.T) {
	top := t.TempDir()
	path := filepath.Join(top, "share", "state", "cc-relay")
	assert.Equal(t, path, open(t, path+"/").Path())
	for _, dir := range []string{path, filepath.Dir(path)} {
		info, err := os.Lstat(dir)
		require.NoError(t, err)
		assert.Equal(t, fs.ModeDir|0o700, info.Mode(), dir)
	}
	open(t, path) // once more
}

// foreignDir is a directory of another user, whoever runs the test.
func foreignDir(t *testing.T) string {
	if os.Geteuid() != 0 {
		return "/"
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	require.NoError(t, os.Chown(dir, 12345, 12345))
	return dir
}

func TestOpenRefuses(t *testing.T) {
	top := t.TempDir()
	file := filepath.Join(top, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	good := filepath.Join(top, "good")
	require.NoError(t, os.Mkdir(good, 0o700))
	link := filepath.Join(top, "link")
	require.NoError(t, os.Symlink(good, link))
	dangling := filepath.Join(top, "dangling")
	require.NoError(t, os.Symlink(filepath.Join(top, "elsewhere"), dangling))

	for name, tc := range map[string]struct{ path, want string }{
		"a link":                  {link, "is a symbolic link; name the directory that it leads to"},
		"a link with a slash":     {link + "/", "is a symbolic link; name the directory that it leads to"},
		"a link to nothing":       {dangling, "is a symbolic link; name the directory that it leads to"},
		"a file":                  {file, "is not a directory; move it away, or choose another"},
		"below a file":            {filepath.Join(file, "state"), "not a directory"},
		"another user's":          {foreignDir(t), "and the relay runs as"},
		"a relative path":         {"state", "not an absolute path; write one"},
		"no path":                 {"", "not an absolute path; write one"},
		"a path that is too long": {filepath.Join(top, strings.Repeat("x", 300)), "file name too long"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := state.Open(tc.path)
			require.ErrorContains(t, err, tc.want)
			assert.ErrorContains(t, err, "state directory ")
		})
	}
	_, err := os.Lstat(filepath.Join(top, "elsewhere"))
	assert.ErrorIs(t, err, fs.ErrNotExist, "nothing is made where a link leads")
}

func testDirectoryForOthers(t *testing.T) {
	for _, mode := range []fs.FileMode{0o770, 0o707, 0o777, 0o755, 0o701} {
		dir := filepath.Join(t.TempDir(), "state")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.Chmod(dir, mode))
		_, err := state.Open(dir)
		assert.EqualError(t, err, fmt.Sprintf("state directory %s: may be used by other users (mode %04o); run: chmod 700 %s", dir, mode, dir))
		info, err := os.Stat(dir)
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode().Perm(), "the mode is its owner's business")
	}
}

func TestOpenRemovesWhatKilledProcessesLeft(t *testing.T) {
	d := newDir(t)
	require.NoError(t, d.Save("pools", 1, something))
	for name, age := range map[string]time.Duration{
		"pools.tmp-OLD": 2 * time.Hour, "pools.tmp-NOW": 0, "pools.bad-20200101T000000.000000000Z": 2 * time.Hour, "mine": 2 * time.Hour,
	} {
		require.NoError(t, os.WriteFile(at(d, name), []byte("x"), 0o600))
		require.NoError(t, os.Chtimes(at(d, name), time.Time{}, time.Now().Add(-age)))
	}
	open(t, d.Path())
	assert.Equal(t, []string{"mine", "pools", "pools.bad-20200101T000000.000000000Z", "pools.tmp-NOW"}, names(t, d))
}

// Whoever replaces the directory gets nothing of what is saved later.
func testReplacedDirectory(t *testing.T) {
	top := t.TempDir()
	path, moved, trap := filepath.Join(top, "state"), filepath.Join(top, "moved"), filepath.Join(top, "trap")
	d := open(t, path)
	require.NoError(t, os.Mkdir(trap, 0o777))
	require.NoError(t, os.Rename(path, moved))
	require.NoError(t, os.Symlink(trap, path))
	require.NoError(t, d.Save("pools", 1, something))
	left, err := os.ReadDir(trap)
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.Contains(t, read(t, filepath.Join(moved, "pools")), `"file":"pools"`)
}
