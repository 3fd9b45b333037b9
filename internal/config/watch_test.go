package config_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cc-relay/internal/config"
)

// watched runs a watcher and returns what tells of each call: the content of file then.
func watched(t *testing.T, file string, files func() []string) <-chan string {
	t.Helper()
	w, err := config.NewWatcher(files)
	require.NoError(t, err)
	calls := make(chan string, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		w.Run(ctx, func() {
			data, err := os.ReadFile(file)
			calls <- fmt.Sprintf("%s%v", data, map[bool]string{true: "", false: " unreadable"}[err == nil])
		})
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		goleak.VerifyNone(t)
	})
	return calls
}

// until collects calls up to one that saw want.
func until(t *testing.T, calls <-chan string, want string) (seen []string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case got := <-calls:
			seen = append(seen, got)
			if got == want {
				return seen
			}
		case <-deadline:
			require.FailNow(t, "no call", "saw %q, want %q last", seen, want)
		}
	}
}

// write changes a file in place; a real disk is no part of a synctest bubble, so the
// tests here take real time.
func write(t *testing.T, file, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, os.Rename(from, to))
}

// replace changes a file at once: nobody sees it half written, however slow the machine.
func replace(t *testing.T, file, text string) {
	t.Helper()
	write(t, file+".new", text)
	rename(t, file+".new", file)
}

func symlink(t *testing.T, to, link string) {
	t.Helper()
	require.NoError(t, os.Symlink(to, link))
}

func TestFaultWatch(t *testing.T) {
	for name, test := range map[string]struct {
		set  func(t *testing.T, dir string) // makes dir/config.yaml, which says one
		edit func(t *testing.T, dir string) // makes it say two
		most int                            // calls; a write in place is two steps, and a slow machine may pause between them
	}{
		"F03 written in place": {nil, func(t *testing.T, dir string) { write(t, dir+"/config.yaml", "two") }, 2},
		"F03 renamed over": {nil, func(t *testing.T, dir string) {
			write(t, dir+"/.config.yaml.swp", "two")
			rename(t, dir+"/.config.yaml.swp", dir+"/config.yaml")
		}, 1},
		"F03 as vim does: the old one becomes a backup": {nil, func(t *testing.T, dir string) {
			write(t, dir+"/4913", "")
			require.NoError(t, os.Remove(dir+"/4913"))
			rename(t, dir+"/config.yaml", dir+"/config.yaml~")
			write(t, dir+"/config.yaml", "two")
			require.NoError(t, os.Chmod(dir+"/config.yaml", 0o600))
			require.NoError(t, os.Remove(dir+"/config.yaml~"))
		}, 2},
		"F03 deleted and made again": {nil, func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(dir+"/config.yaml"))
			write(t, dir+"/config.yaml", "two")
		}, 2},
		"F03 a volume of Kubernetes": {func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir+"/..2026_01", 0o700))
			write(t, dir+"/..2026_01/config.yaml", "one")
			symlink(t, "..2026_01", dir+"/..data")
			symlink(t, "..data/config.yaml", dir+"/config.yaml")
		}, func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir+"/..2026_02", 0o700))
			write(t, dir+"/..2026_02/config.yaml", "two")
			symlink(t, "..2026_02", dir+"/..data_tmp")
			rename(t, dir+"/..data_tmp", dir+"/..data")
			require.NoError(t, os.RemoveAll(dir+"/..2026_01"))
		}, 1},
		"F03 behind a link, in place": {func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir+"/real", 0o700))
			write(t, dir+"/real/mine.yaml", "one")
			symlink(t, "real/mine.yaml", dir+"/config.yaml")
		}, func(t *testing.T, dir string) { write(t, dir+"/real/mine.yaml", "two") }, 2},
		"F03 written slowly": {nil, func(t *testing.T, dir string) {
			f, err := os.Create(dir + "/config.yaml")
			require.NoError(t, err)
			tick := time.NewTicker(30 * time.Millisecond)
			defer tick.Stop()
			for _, part := range []string{"t", "w", "o"} {
				<-tick.C
				_, err := f.WriteString(part)
				require.NoError(t, err)
			}
			require.NoError(t, f.Close())
		}, 3},
		"F04 a hundred a second": {nil, func(t *testing.T, dir string) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i := range 150 {
				<-tick.C
				write(t, dir+"/next", fmt.Sprint(i))
				rename(t, dir+"/next", dir+"/config.yaml")
			}
			write(t, dir+"/config.yaml", "two")
		}, 8},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if test.set == nil {
				write(t, dir+"/config.yaml", "one")
			} else {
				test.set(t, dir)
			}
			calls := watched(t, dir+"/config.yaml", func() []string { return []string{dir + "/config.yaml"} })
			test.edit(t, dir)
			seen := until(t, calls, "two")
			assert.LessOrEqual(t, len(seen), test.most, "%q", seen)

			// The watch has survived.
			write(t, dir+"/next", "three")
			rename(t, dir+"/next", dir+"/config.yaml")
			assert.Equal(t, []string{"three"}, until(t, calls, "three"))
		})
	}
}

func TestWatchTellsOfContentsOnly(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "config.yaml", "one")
	write(t, "cert.pem", "one")
	// As in a relay, the file decides what is watched; one that is being written says nothing.
	current := []string{"config.yaml"}
	calls := watched(t, "config.yaml", func() []string {
		if said, _ := os.ReadFile("config.yaml"); string(said) == "two" {
			current = []string{"config.yaml", "cert.pem"}
		}
		return current
	})
	// None of these is a change of what is watched.
	write(t, "other.yaml", "x")
	replace(t, "config.yaml", "one")
	require.NoError(t, os.Chtimes("config.yaml", time.Now(), time.Now()))
	write(t, "cert.pem", "two")
	// A mode is: the file may be refused for it.
	require.NoError(t, os.Chmod("config.yaml", 0o640))
	assert.Equal(t, []string{"one"}, until(t, calls, "one"))

	replace(t, "config.yaml", "two")
	assert.Equal(t, []string{"two"}, until(t, calls, "two"))
	assert.Equal(t, []string{"two"}, until(t, calls, "two"), "the list names one more: it may have changed before it was watched")
	replace(t, "config.yaml", "three")
	assert.Equal(t, []string{"three"}, until(t, calls, "three"))
	write(t, "cert.pem", "three")
	assert.Equal(t, []string{"three"}, until(t, calls, "three"))

	require.NoError(t, os.Remove("config.yaml"))
	write(t, "cert.pem", "four")
	assert.Equal(t, []string{" unreadable"}, until(t, calls, " unreadable"), "of the certificate, not of the file that is gone")
	write(t, "config.yaml", "four")
	until(t, calls, "four")
}

func TestFiles(t *testing.T) {
	cert, key := certificate(t)
	prices := writeFile(t, 0o644, okPrice)
	cfg, err := config.Parse("c.yaml", []byte("server: { tls: { cert_file: '"+cert+"', key_file: '"+key+"' } }\n"+
		"admin: { tls: { cert_file: '"+cert+"', key_file: '"+key+"' } }\nprices: '"+prices+"'\n"+
		"providers: [{ ca_file: testdata/ca.pem, keys: [{ key: k }] }, { name: b, ca_file: testdata/ca.pem, base_url: 'https://b' }]"), environ())
	require.NoError(t, err)
	assert.Equal(t, []string{"c.yaml", cert, key, prices, filepath.FromSlash("testdata/ca.pem")}, config.Files("c.yaml", cfg))
	assert.Equal(t, []string{cert, key, prices, "testdata/ca.pem"}, config.Files("", cfg))
	assert.Empty(t, config.Files("", &config.Config{}))
}
