//go:build unix

package state_test

import (
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTheTokenIsMadeOnceAndKept(t *testing.T) {
	d := newDir(t)
	first, made, err := d.Token("admin.token")
	require.NoError(t, err)
	assert.True(t, made)
	assert.Regexp(t, "^[0-9a-f]{64}$", first)
	again, made, err := open(t, d.Path()).Token("admin.token")
	require.NoError(t, err)
	assert.False(t, made)
	assert.Equal(t, first, again)
	other, _, err := d.Token("viewer.token")
	require.NoError(t, err)
	assert.NotEqual(t, first, other)
	info, err := os.Lstat(at(d, "admin.token"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())
	assert.Equal(t, []string{"admin.token", "viewer.token"}, names(t, d))
}

func TestManyStartsMakeOneToken(t *testing.T) {
	d := newDir(t)
	var tokens sync.Map
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			token, _, err := d.Token("admin.token")
			assert.NoError(t, err)
			tokens.Store(token, true)
		})
	}
	all.Wait()
	count := 0
	tokens.Range(func(any, any) bool { count++; return true })
	assert.Equal(t, 1, count)
}

// A token that cannot be trusted is an error, and the file stays as it is.
func TestSecurity_S01_S04_TokenRefuses(t *testing.T) {
	good := strings.Repeat("0a", 32)
	type spoiled struct {
		spoil func(t *testing.T, path string)
		want  string
	}
	cases := map[string]spoiled{
		"empty":          {func(t *testing.T, path string) { rewrite(t, path, "") }, "delete it, and the next start makes a new one"},
		"blank":          {func(t *testing.T, path string) { rewrite(t, path, "\n") }, "does not hold a token"},
		"short":          {func(t *testing.T, path string) { rewrite(t, path, good[:62]) }, "does not hold a token"},
		"long":           {func(t *testing.T, path string) { rewrite(t, path, good+"00") }, "does not hold a token"},
		"no hexadecimal": {func(t *testing.T, path string) { rewrite(t, path, strings.Repeat("zz", 32)) }, "does not hold a token"},
		"readable":       {func(t *testing.T, path string) { require.NoError(t, os.Chmod(path, 0o640)) }, "run: chmod 600"},
		"writable":       {func(t *testing.T, path string) { require.NoError(t, os.Chmod(path, 0o602)) }, "run: chmod 600"},
		"a link": {func(t *testing.T, path string) {
			require.NoError(t, os.Rename(path, path+".real"))
			require.NoError(t, os.Symlink("admin.token.real", path))
		}, "is not a regular file"},
		"a link to nothing": {func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Symlink("nowhere", path))
		}, "is not a regular file"},
		"a directory": {func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o700))
		}, "is not a regular file"},
		"a pipe": {func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, syscall.Mkfifo(path, 0o600))
		}, "is not a regular file"},
	}
	if os.Geteuid() == 0 { // nobody else can give a file away
		cases["another user's"] = spoiled{func(t *testing.T, path string) { require.NoError(t, os.Chown(path, 12345, 12345)) }, "belongs to user 12345"}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			require.NoError(t, os.WriteFile(at(d, "admin.token"), []byte(good+"\n"), 0o600))
			tc.spoil(t, at(d, "admin.token"))
			before := names(t, d)
			token, made, err := d.Token("admin.token")
			require.ErrorContains(t, err, tc.want)
			assert.ErrorContains(t, err, at(d, "admin.token"))
			assert.NotContains(t, err.Error(), good)
			assert.Empty(t, token)
			assert.False(t, made)
			assert.Equal(t, before, names(t, d))
		})
	}
}

func TestFault_D05_Append(t *testing.T) {
	d := newDir(t)
	add := func(line string) { require.NoError(t, d.Append("log", []byte(line))) }
	add("one")
	add("two")
	assert.Equal(t, "one\ntwo\n", read(t, at(d, "log")))
	info, err := os.Lstat(at(d, "log"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())

	rewrite(t, at(d, "log"), "one\ntw") // a crash
	add("three")
	assert.Equal(t, "one\ntw\nthree\n", read(t, at(d, "log")))

	require.NoError(t, os.Rename(at(d, "log"), at(d, "log.1"))) // rotated
	add("four")
	assert.Equal(t, "four\n", read(t, at(d, "log")))
	require.NoError(t, os.Remove(at(d, "log"))) // deleted
	add("five")
	assert.Equal(t, "five\n", read(t, at(d, "log")))

	require.NoError(t, os.Chmod(at(d, "log"), 0o644))
	assert.ErrorContains(t, d.Append("log", []byte("six")), "run: chmod 600 "+at(d, "log"))
	require.NoError(t, os.Remove(at(d, "log")))
	require.NoError(t, syscall.Mkfifo(at(d, "log"), 0o600))
	assert.ErrorContains(t, d.Append("log", []byte("six")), "is not a regular file")
	require.NoError(t, os.Remove(at(d, "log")))
	require.NoError(t, os.Symlink("log.1", at(d, "log")))
	assert.ErrorContains(t, d.Append("log", []byte("six")), "is not a regular file")
	assert.Equal(t, "one\ntw\nthree\n", read(t, at(d, "log.1")))

	require.NoError(t, os.RemoveAll(d.Path()))
	assert.ErrorContains(t, d.Append("log", []byte("six")), "state file "+at(d, "log"))
}
