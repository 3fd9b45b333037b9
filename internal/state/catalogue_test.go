package state_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/state"
)

// The tests of rows of the catalogue of faults, by the rows' names. Those of the disk
// are about these files, not about the records of usage.

func TestFault(t *testing.T) {
	t.Run("P01", testKilledWriters)
	t.Run("P09", testLocks)
	t.Run("D01", testFullDisk)
	t.Run("D03", func(t *testing.T) {
		t.Run("files", testUnusableFiles)
		t.Run("every byte", testEveryByte)
	})
	t.Run("D05", func(t *testing.T) {
		t.Run("deleted", testDirectoryIsGone)
		t.Run("replaced", testReplacedDirectory)
		t.Run("modes", testDirectoryForOthers)
	})
}

// killedWriters is how many processes die in the middle of their work.
const killedWriters = 20

// testKilledWriters: a process that is killed while it saves leaves the file whole.
func testKilledWriters(t *testing.T) {
	d := newDir(t)
	require.NoError(t, d.Save("pools", 1, kept{Raw: []byte("0 ")}))
	rng := rand.New(rand.NewPCG(1, 1))
	seen := map[uint64]bool{}
	for range killedWriters {
		ctx, kill := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), asWriter+"="+d.Path())
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		began := time.Now()
		for { // until it has begun to write, or ended
			var got kept
			require.NoError(t, d.Load("pools", 1, &got))
			if got.Count == uint64(cmd.Process.Pid) || time.Since(began) > 10*time.Second {
				break
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		kill()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		var got kept
		require.NoError(t, d.Load("pools", 1, &got))
		require.Equal(t, strings.Repeat(fmt.Sprint(got.Count, " "), max(1, len(got.Raw)/len(fmt.Sprint(got.Count, " ")))), string(got.Raw))
		seen[got.Count] = true
		require.NoError(t, d.Lock(), "the kernel takes the lock of a dead process back")
		require.NoError(t, d.Close())
		d = open(t, d.Path())
	}
	assert.Len(t, seen, killedWriters, "processes that had written")
}

func testLocks(t *testing.T) {
	t.Run("one at a time", func(t *testing.T) {
		first := newDir(t)
		require.NoError(t, first.Lock())
		second := open(t, first.Path())
		err := second.Lock()
		var used *state.InUseError
		require.ErrorAs(t, err, &used)
		host, err := os.Hostname()
		require.NoError(t, err)
		who := fmt.Sprintf("process %d on %s", os.Getpid(), host)
		assert.Equal(t, state.InUseError{Path: first.Path(), Who: who}, *used)
		assert.EqualError(t, used, "state directory "+first.Path()+": is in use by "+who+"; stop that relay, or give this one another server.state_dir")
		require.NoError(t, second.Save("pools", 1, something), "who does not ask for it needs no lock")
		require.NoError(t, first.Close())
		require.NoError(t, second.Lock())
		info, err := os.Lstat(at(second, "lock"))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode())
	})
	t.Run("whatever is in the file", func(t *testing.T) {
		for name, text := range map[string]string{"nothing": "", "lines": "x\ny", "no text": "\x1b[2J\x00\xff", "much": strings.Repeat("x", 100_000)} {
			first := newDir(t)
			require.NoError(t, first.Lock())
			rewriteInPlace(t, at(first, "lock"), text)
			err := open(t, first.Path()).Lock()
			require.ErrorAs(t, err, new(*state.InUseError), name)
			assert.Regexp(t, `^[ -~]{1,800}$`, err.Error(), name)
			require.NoError(t, first.Close())
			require.NoError(t, open(t, first.Path()).Lock(), "%s: it is of nobody", name)
		}
	})
	t.Run("what is no lock file", func(t *testing.T) {
		for want, spoil := range map[string]func(path string) error{
			"is not a regular file":      func(path string) error { return os.Mkdir(path, 0o700) },
			"may be used by other users": func(path string) error { return os.WriteFile(path, nil, 0o644) },
			"is not a regular file ":     func(path string) error { return os.Symlink("pools", path) },
			"is not a regular file  ":    func(path string) error { return syscall.Mkfifo(path, 0o600) },
		} {
			d := newDir(t)
			require.NoError(t, spoil(at(d, "lock")))
			err := d.Lock()
			require.ErrorContains(t, err, "state directory "+d.Path()+": cannot be locked: "+strings.TrimSpace(want))
			assert.NotErrorIs(t, err, state.ErrNone)
			assert.False(t, isInUse(err))
		}
	})
	t.Run("a directory that is gone", func(t *testing.T) {
		d := newDir(t)
		require.NoError(t, os.RemoveAll(d.Path()))
		assert.ErrorContains(t, d.Lock(), "cannot be locked: no such file or directory")
	})
}

func isInUse(err error) bool {
	_, is := err.(*state.InUseError) //nolint:errorlint // it is not wrapped
	return is
}

// rewriteInPlace keeps the file: the lock is on it, not on its name.
func rewriteInPlace(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// testEveryByte: a file that was cut, or in which one bit has turned, is set aside,
// wherever that is.
func testEveryByte(t *testing.T) {
	d := newDir(t)
	require.NoError(t, d.Save("pools", 1, something))
	sound := read(t, at(d, "pools"))
	check := func(what string, i int, text string) {
		t.Helper()
		rewrite(t, at(d, "pools"), text)
		got := kept{Name: "untouched"}
		require.ErrorAs(t, d.Load("pools", 1, &got), new(*state.SetAsideError), "%s at %d", what, i)
		require.Equal(t, kept{Name: "untouched"}, got)
	}
	for i := range sound {
		check("cut", i, sound[:i])
		for bit := range 8 {
			turned := []byte(sound)
			turned[i] ^= 1 << bit
			check("turned", i, string(turned))
		}
	}
	rewrite(t, at(d, "pools"), sound)
	var got kept
	require.NoError(t, d.Load("pools", 1, &got))
	assert.Equal(t, something, got)
	left, err := filepath.Glob(at(d, "pools.bad-*"))
	require.NoError(t, err)
	assert.Len(t, left, 3, "a disk is not filled with them")
}

func TestSecurity(t *testing.T) {
	t.Run("S20", func(t *testing.T) {
		t.Run("made private", TestOpenMakesThePrivateDirectory)
		t.Run("refused", testDirectoryForOthers)
		t.Run("written whole", testFullDisk)
		t.Run("no link", TestSaveFollowsNoLink)
	})
}
