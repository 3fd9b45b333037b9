package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/secret"
	statedir "cc-relay/internal/state"
)

// What the pools have learned is one file of the state directory.
const (
	poolsFile    = "pools"
	poolsVersion = 1

	saveEvery  = 10 * time.Second
	lastSaving = 5 * time.Second // a disk that hangs must not keep the relay from ending
)

// savedPools is the file: each pool's memory by the name of its provider.
type savedPools map[string]savedPool

// savedPool is worth something where the same provider is asked in the same way: what
// another address refuses, or took without the right header, says nothing of a key.
type savedPool struct {
	Endpoint string `json:"endpoint,omitempty"` // see endpointOf; "" = not told, by an earlier version
	keypool.Snapshot
}

// followed is a pool whose memory is kept, and whom it is of.
type followed struct {
	pool     *keypool.KeyPool
	endpoint string
}

// endpointOf tells providers apart by how they are asked, and shows nothing of it.
func endpointOf(c provider.Config) string {
	asked := []string{c.Kind, c.BaseURL, c.Auth}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		asked = append(asked, http.CanonicalHeaderKey(name), c.Headers[name].Reveal())
	}
	return secret.New(strings.Join(asked, "\x00")).Fingerprint() // no header has a NUL
}

// memory keeps what the pools learn for the next start of the relay. It is a hint:
// whatever goes wrong with it is a warning, and requests never wait for it. A nil
// memory keeps nothing.
type memory struct {
	dir   *statedir.Dir
	pools atomic.Pointer[map[string]followed]
	log   zerolog.Logger
	found bool // the last run has left something

	stop, stopped chan struct{}
	saved         savedPools // what the file holds; owned by keep, as what follows
	trouble       string     // the last warning; "" while saving works
}

// remember gives b's pools what the last run learned, and keeps what they learn from now
// on in dir until close. Its hashes become those of this installation. It returns nil
// where dir is. Call it before b is served.
func remember(dir *statedir.Dir, b *built, log zerolog.Logger) *memory {
	if dir == nil {
		return nil
	}
	m := &memory{dir: dir, log: log, stop: make(chan struct{}), stopped: make(chan struct{})}
	m.follow(b)
	var err error
	if b.live.Seed, err = dir.Seed(); err != nil {
		log.Warn().Err(err).Msg("conversations will not find their keys again after a restart")
	}
	m.restore()
	go func() {
		defer close(m.stopped)
		steadily(log, "saving what is learned", m.keep)
	}()
	return m
}

// follow keeps what b's pools learn from now on, and no other's.
func (m *memory) follow(b *built) {
	if m == nil {
		return
	}
	pools := make(map[string]followed)
	for i, up := range b.live.Router.Upstreams() {
		pools[up.Provider.Name()] = followed{up.Pool, endpointOf(b.cfg.Providers[i].Config.WithDefaults())}
	}
	m.pools.Store(&pools)
}

// openState opens the state directory for this relay alone: of two that write to one,
// each would undo what the other has learned, and their audit would be one story of
// two relays. It returns nil without an error where state is off.
func openState(server config.Server) (*statedir.Dir, error) {
	path, err := server.StatePath()
	if err != nil || path == "" {
		return nil, err
	}
	dir, err := statedir.Open(path)
	if err != nil {
		return nil, err
	}
	if err := dir.Lock(); err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

func (m *memory) restore() {
	var saved savedPools
	err := m.dir.Load(poolsFile, poolsVersion, &saved)
	switch {
	case errors.Is(err, statedir.ErrNone):
	case err != nil:
		m.log.Warn().Err(err).Msg("the relay starts without what the last run learned")
	default:
		for name, f := range *m.pools.Load() {
			if was := saved[name]; was.Endpoint == "" || was.Endpoint == f.endpoint {
				f.pool.Restore(was.Snapshot)
			}
		}
		m.found = true
	}
}

// restored reports whether the pools know what the last run learned.
func (m *memory) restored() bool { return m != nil && m.found }

// keep saves now and then, and once more at the end.
func (m *memory) keep() {
	t := time.NewTicker(saveEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			m.save()
		case <-m.stop:
			m.save()
			return
		}
	}
}

// save writes what has changed, and warns when saving begins to fail or fails
// otherwise than before.
func (m *memory) save() {
	now := savedPools{}
	for name, f := range *m.pools.Load() {
		now[name] = savedPool{f.endpoint, f.pool.Snapshot()}
	}
	if m.trouble == "" && now.same(m.saved) {
		return
	}
	if err := m.dir.Save(poolsFile, poolsVersion, now); err != nil {
		if m.trouble != err.Error() {
			m.log.Warn().Err(err).Msg("what the relay learns cannot be saved")
		}
		m.trouble = err.Error()
		return
	}
	if m.trouble != "" {
		m.log.Info().Msg("what the relay learns is saved again")
	}
	m.saved, m.trouble = now, ""
}

// same reports whether s holds nothing that other does not, but for the time: an
// idle relay does not keep a disk awake.
func (s savedPools) same(other savedPools) bool {
	if len(s) != len(other) {
		return false
	}
	for name, pool := range s {
		was := other[name]
		was.At = pool.At
		if !reflect.DeepEqual(pool, was) {
			return false
		}
	}
	return true
}

// close saves for the last time.
func (m *memory) close() {
	if m == nil {
		return
	}
	close(m.stop)
	select {
	case <-m.stopped:
		_ = m.dir.Close()
	case <-time.After(lastSaving):
		m.log.Warn().Msg(fmt.Sprintf("the state directory did not answer in %s: what was learned last is lost", lastSaving))
	}
}
