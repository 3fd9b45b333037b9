package config

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settled is how long the files must be left alone before they are read: editors
	// write in several steps.
	settled = 100 * time.Millisecond
	// longestUnsettled bounds the wait where they are never left alone.
	longestUnsettled = time.Second
	// pollEvery is for changes that nobody tells of: on network file systems, and
	// where a directory itself is replaced.
	pollEvery = 5 * time.Second
	// longestChain bounds the symbolic links followed from one file.
	longestChain = 16
)

// Files returns the files that a configuration is read from, each once: its own, if
// path is not "", and the certificates, keys, CA files, prices and files of secrets that
// cfg names.
func Files(path string, cfg *Config) []string {
	all := []string{path, cfg.Server.TLS.CertFile, cfg.Server.TLS.KeyFile, cfg.Admin.TLS.CertFile, cfg.Admin.TLS.KeyFile, cfg.Prices}
	for _, p := range cfg.Providers {
		all = append(all, p.CAFile)
	}
	all = append(all, cfg.secretFiles...)
	var files []string
	for _, one := range all {
		if one != "" && !slices.Contains(files, one) {
			files = append(files, one)
		}
	}
	return files
}

// Watcher tells when files change. Make one with NewWatcher, then call Run once.
type Watcher struct {
	files  func() []string
	events *fsnotify.Watcher
	known  map[string]mark
}

// mark tells one content of a file from another; zero is that of no file.
type mark [sha256.Size]byte

// NewWatcher starts to watch files: changes from now on count. files is called here,
// and by Run after each change, so that the list may be another then. Error: the
// system has no watches left.
func NewWatcher(files func() []string) (*Watcher, error) {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the configuration: %w", err)
	}
	w := &Watcher{files: files, events: events, known: map[string]mark{}}
	w.renew()
	return w, nil
}

// Run calls changed when the content or the mode of a file has changed, one call
// after the other, until ctx ends; then it releases the watch. A burst of changes is
// one call, or one a second if it goes on, and the last content always gets one. A
// file that is missing has not changed: it may be about to be written again. One that
// the list names anew gets a call, too: it may have changed after it was read, and
// before it was watched.
func (w *Watcher) Run(ctx context.Context, changed func()) {
	defer func() { _ = w.events.Close() }()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	quiet := time.NewTimer(0)
	quiet.Stop()
	defer quiet.Stop()
	var since time.Time // of the first event that is not dealt with; zero: none
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.events.Events:
			since = postpone(quiet, since)
			continue
		case <-w.events.Errors: //nolint:errcheck // such as events lost: what they said is seen in the files
			since = postpone(quiet, since)
			continue
		case <-poll.C: // it may meet a file half written, as an event does
			if since.IsZero() {
				since = postpone(quiet, since)
			}
			continue
		case <-quiet.C:
		}
		since = time.Time{}
		if w.look() {
			changed()
		}
		if w.renew() {
			changed()
		}
	}
}

// postpone sets the timer to when files that changed at since, and now again, are
// read. It returns since, or now if that is zero.
func postpone(quiet *time.Timer, since time.Time) time.Time {
	now := time.Now()
	if since.IsZero() {
		since = now
	}
	if left := since.Add(longestUnsettled).Sub(now); left > 0 {
		quiet.Reset(min(settled, left))
	}
	return since
}

// look reads the files and reports whether one has changed.
func (w *Watcher) look() (changed bool) {
	for file, before := range w.known {
		if now := markOf(file); now != before && now != (mark{}) {
			w.known[file] = now
			changed = true
		}
	}
	return changed
}

// renew asks for the list of files, which a change may have made another, and reports
// whether it has more.
func (w *Watcher) renew() (more bool) {
	files := w.files()
	w.follow(files)
	known := map[string]mark{}
	for _, file := range files {
		if before, ok := w.known[file]; ok {
			known[file] = before
			continue
		}
		known[file], more = markOf(file), true
	}
	w.known = known
	return more
}

// markOf is of the content and the mode of a file, or of why it cannot be read.
func markOf(file string) mark {
	data, info, err := readFile(file, 4*maxFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}
	}
	h := sha256.New()
	if info != nil {
		_, _ = fmt.Fprintf(h, "%o\n", info.Mode().Perm())
	}
	_, _ = fmt.Fprintf(h, "%v\n", err)
	_, _ = h.Write(data)
	return mark(h.Sum(nil))
}

// follow watches the directories of files, not the files: an editor that writes a new
// file and renames it leaves a watch on the old one. A directory that cannot be
// watched is left to the poll.
func (w *Watcher) follow(files []string) {
	wanted := map[string]bool{}
	for _, file := range files {
		for range longestChain {
			if dir, err := filepath.EvalSymlinks(filepath.Dir(file)); err == nil {
				wanted[dir] = true
			}
			to, err := os.Readlink(file)
			if err != nil {
				break
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(file), to)
			}
			file = to
		}
	}
	for _, dir := range w.events.WatchList() {
		if !wanted[dir] {
			_ = w.events.Remove(dir)
		}
		delete(wanted, dir)
	}
	for dir := range wanted {
		_ = w.events.Add(dir)
	}
}
