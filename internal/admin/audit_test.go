//go:build unix

package admin_test

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/admin"
)

// An action that cannot be recorded is not done; once it can be again, it is.
func TestFault_D05_D06_S35_TheAuditComesFirst(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, path string){
		"readable by others": func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, nil, 0o644)) },
		"a directory":        func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) },
		"a pipe":             func(t *testing.T, path string) { require.NoError(t, syscall.Mkfifo(path, 0o600)) },
		"a link":             func(t *testing.T, path string) { require.NoError(t, os.Symlink("admin.token", path)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			spoil(t, w.path("audit.log"))
			for _, r := range admin.Routes() {
				if r.Action == "" {
					continue
				}
				code := w.asked(r, func(req *http.Request) { req.Header.Set("Authorization", "Bearer "+w.admin) })
				assert.Equal(t, http.StatusServiceUnavailable, code, r.Path)
			}
			refused(t, w.do("POST", "/api/v1/reload", w.admin, ""), http.StatusServiceUnavailable, "audit_unwritable")
			assert.Empty(t, w.done())
			assert.Empty(t, w.draining)
			assert.Equal(t, w.admin, w.file("admin.token"))
			assert.Equal(t, http.StatusOK, w.do("GET", "/api/v1/status", w.viewer, "").Code, "looking goes on")

			require.NoError(t, os.Remove(w.path("audit.log")))
			assert.Equal(t, http.StatusOK, w.do("POST", "/api/v1/reload", w.admin, "").Code)
			assert.Len(t, w.audit(), 2)
		})
	}
}

func TestFault_D05_TheDirectoryIsGone(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, os.RemoveAll(w.dir.Path()))
	refused(t, w.do("POST", "/api/v1/reload", w.admin, ""), http.StatusServiceUnavailable, "audit_unwritable")
	assert.Empty(t, w.done())
}

func TestFault_D05_TheAuditIsRotatedDeletedAndTorn(t *testing.T) {
	w := newWorld(t)
	act := func() { assert.Equal(t, http.StatusOK, w.do("POST", "/api/v1/reload", w.admin, "").Code) }
	act()
	info, err := os.Lstat(w.path("audit.log"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, os.Rename(w.path("audit.log"), w.path("audit.log.1")))
	act()
	assert.Len(t, w.audit(), 2)
	require.NoError(t, os.Remove(w.path("audit.log")))
	act()
	assert.Len(t, w.audit(), 2)
	whole := w.file("audit.log")
	require.NoError(t, os.WriteFile(w.path("audit.log"), []byte(whole[:len(whole)-20]), 0o600))
	act()
	assert.Len(t, w.audit(), 3, "the torn line stays, and the next one is whole")
	assert.Equal(t, 4, strings.Count(w.file("audit.log")+"\n", "\n"))
}

// full makes every file end at size, as on a full disk: the write that goes beyond
// does a part and fails.
func full(t *testing.T, size int64) (free func()) {
	signal.Ignore(syscall.SIGXFSZ)
	var was syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(size), Max: was.Max}))
	return func() {
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was))
		signal.Reset(syscall.SIGXFSZ)
	}
}

func TestFault_D06_FullDisk(t *testing.T) {
	w := newWorld(t)
	assert.Equal(t, http.StatusOK, w.do("POST", "/api/v1/reload", w.admin, "").Code)
	info, err := os.Stat(w.path("audit.log"))
	require.NoError(t, err)
	one := info.Size() / 2

	free := full(t, info.Size()+10)
	rec := w.do("POST", "/api/v1/reload", w.admin, "")
	free()
	refused(t, rec, http.StatusServiceUnavailable, "audit_unwritable")
	assert.Len(t, w.done(), 1)

	free = full(t, info.Size()+10+1+one+20) // room for the first record only
	rec = w.do("POST", "/api/v1/reload", w.admin, "")
	free()
	got := answered[admin.ActionResult](t, rec)
	assert.Contains(t, got.Warning, "this is not recorded in the audit as done: ")
	assert.Len(t, w.done(), 2)
	assert.Contains(t, w.log.String(), "audit cannot be written")

	assert.Equal(t, http.StatusOK, w.do("POST", "/api/v1/reload", w.admin, "").Code)
	var phases []string
	for _, r := range w.audit() {
		phases = append(phases, r.Phase)
	}
	assert.Equal(t, []string{"asked", "done", "asked", "asked", "done"}, phases)
}

func TestS35_RecordsOfManyAtOnceAreWhole(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			r := request("POST", "/api/v1/reload", w.admin, "")
			assert.Equal(t, http.StatusOK, w.send(from(fmt.Sprintf("10.0.0.%d", i), r)).Code)
		})
	}
	all.Wait()
	audit := w.audit()
	require.Len(t, audit, 40)
	asked := map[string]bool{}
	for _, r := range audit {
		assert.Equal(t, r.Phase == "done", asked[r.RequestID])
		asked[r.RequestID] = true
	}
}
