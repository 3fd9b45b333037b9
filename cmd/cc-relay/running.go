package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/admin"
	"cc-relay/internal/config"
	"cc-relay/internal/metrics"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/trace"
)

// running is the relay at work: what is in force, and how that changes without a
// restart.
type running struct {
	source  string                         // the configuration file, or fromEnvironment
	load    func() (*config.Config, error) // reads the configuration again; nil: there is no file to read
	log     zerolog.Logger
	level   func(name string) error // sets what is logged
	metrics *metrics.Metrics
	trace   *trace.Tracer
	handler atomic.Pointer[proxy.Handler]
	kept    *memory
	admin   atomic.Pointer[admin.Handler] // nil: off
	certs   map[string]*certificate       // by the listener's section of the configuration; complete before the first request
	started time.Time

	now atomic.Pointer[built]

	mu      sync.Mutex // one reload at a time; guards what follows
	watched map[*router.Upstream]context.CancelFunc
	last    atomic.Pointer[admin.LastReload]
}

// newRunning builds the configuration and what looks on. Nothing is served yet.
func newRunning(cfg *config.Config, log zerolog.Logger, sink *logSink) (*running, error) {
	r := &running{source: fromEnvironment, log: log, level: func(string) error { return nil }, started: time.Now(), certs: map[string]*certificate{}, watched: map[*router.Upstream]context.CancelFunc{}}
	dropped := func() uint64 { return 0 }
	if sink != nil {
		r.level, dropped = sink.SetLevel, sink.Dropped
	}
	if _, admin := cfg.Admin.Address(); cfg.Metrics == config.MetricsOn && admin != "" { // else nobody could read them
		r.metrics = metrics.New(metrics.Options{Version: version(), Pools: r.pools, LogDropped: dropped, InFlight: r.inFlight, SpansDropped: r.spansDropped, Expiries: r.expiries})
	}
	t := cfg.Tracing
	var err error
	r.trace, err = trace.New(trace.Config{Endpoint: t.Endpoint, Headers: t.Headers, Sample: t.Sample, Propagate: t.Propagate}, version(), func(err error) {
		log.Warn().Err(err).Msg("traces do not reach the collector")
	})
	if err != nil {
		return nil, err
	}
	b, err := build(cfg, nil, r.watchers())
	if err != nil {
		return nil, err
	}
	r.now.Store(b)
	return r, nil
}

func (r *running) watchers() watchers {
	return watchers{log: r.log, metrics: r.metrics, trace: r.trace, alert: r.alert, told: r.told}
}

// alert tells those who listen to events.
func (r *running) alert(kind, provider string) {
	r.publish(admin.EventAlert, map[string]any{"at": time.Now(), "kind": kind, "provider": provider})
}

// told tells those who listen to events of a request, in short: why it was given which
// key is for who asks for it.
func (r *running) told(id string) {
	if a := r.admin.Load(); a == nil || !a.Listening() {
		return
	}
	account, ok := r.handler.Load().Explain(id)
	if !ok {
		return
	}
	for i := range account.Steps {
		account.Steps[i].Choice = nil
	}
	r.publish(admin.EventRequest, account)
}

func (r *running) publish(kind string, data any) {
	if a := r.admin.Load(); a != nil {
		a.Publish(kind, data)
	}
}

// spansDropped may be called before there is a tracer, and where there is none.
func (r *running) spansDropped() uint64 { return r.trace.Dropped() }

// expiries is when each listener's certificate ends.
func (r *running) expiries() map[string]time.Time {
	all := make(map[string]time.Time, len(r.certs))
	for listener, c := range r.certs {
		all[listener] = c.NotAfter()
	}
	return all
}

func (r *running) live() *proxy.Live { return r.now.Load().live }

func (r *running) upstreams() []*router.Upstream { return r.live().Router.Upstreams() }

func (r *running) inFlight() int64 {
	if h := r.handler.Load(); h != nil {
		return h.Active()
	}
	return 0
}

// errNoFile is why the configuration of a relay without a file cannot change.
var errNoFile = errors.New("the configuration is that of environment variables: start the relay again, or write a file with `cc-relay config init`")

// reload reads the configuration again and puts it in force, for the requests that
// begin from now on. On an error nothing has changed.
func (r *running) reload() (admin.Reload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.load == nil {
		r.log.Warn().Msg("nothing is reloaded: " + errNoFile.Error())
		return admin.Reload{}, errNoFile // of what is in force nothing was refused
	}
	done, err := r.reloadLocked()
	r.tell(done, err)
	return done, err
}

// recheck reloads where nobody has told of a change and there may be one: before the
// files were watched, or in a file that only the configuration names that was refused.
// It is silent while it finds what was known.
func (r *running) recheck() {
	last := r.last.Load()
	failed := last != nil && last.Error != ""
	switch d, err := r.difference(); {
	case err != nil:
		return
	case failed && d.Error == last.Error:
		return
	case !failed && (d.Error != "" || len(d.Changed)+len(d.NeedsRestart) == 0): // what came through a pipe cannot be read twice
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if done, err := r.reloadLocked(); err == nil || !failed || err.Error() != last.Error {
		r.tell(done, err)
	}
}

// tell logs, counts and publishes what came of a reload.
func (r *running) tell(done admin.Reload, err error) {
	r.metrics.Reload(err == nil)
	last := &admin.LastReload{At: time.Now()}
	if err != nil {
		last.Error = err.Error()
		r.log.Error().Err(err).Msg("the configuration was not reloaded; the one before stays in force")
	} else if len(done.Changed)+len(done.NeedsRestart) > 0 {
		r.log.Info().Strs("changed", done.Changed).Strs("needs_restart", done.NeedsRestart).Msg("configuration reloaded")
	}
	r.last.Store(last)
	r.publish(admin.EventReload, last)
}

func (r *running) reloadLocked() (admin.Reload, error) {
	cfg, err := r.load()
	if err != nil {
		return admin.Reload{}, err
	}
	before := r.now.Load()
	done := changesOf(config.Diff(before.cfg, cfg))
	put, err := config.AsRunning(before.cfg, cfg)
	if err != nil {
		return admin.Reload{}, err
	}
	next, err := build(put, before, r.watchers())
	if err != nil {
		return admin.Reload{}, err
	}
	if err := next.apply(); err != nil { // it has been looked at before: a mistake of ours
		return admin.Reload{}, fmt.Errorf("the configuration is in force only in part: %w", err)
	}
	r.handler.Load().Swap(next.live)
	r.now.Store(next)
	for _, do := range next.after {
		do()
	}
	_ = r.level(next.cfg.Logging.Level) // it has been checked
	for _, c := range r.certs {
		if err := c.Reload(); err != nil {
			r.log.Error().Err(err).Msg("the new certificate is not used")
		}
	}
	if a := r.admin.Load(); a != nil {
		if err := a.ReadTokens(); err != nil {
			r.log.Error().Err(err).Msg("the admin's tokens cannot be read, so the admin listener lets nobody in; mend the file and reload once more")
		}
	}
	r.kept.follow(next)
	r.watch(next.live)
	r.handler.Load().Refresh()
	return done, nil
}

// apply makes the pools that stay what the configuration says.
func (b *built) apply() error {
	var failed []error
	for _, change := range b.change {
		failed = append(failed, change())
	}
	b.change = nil
	return errors.Join(failed...)
}

// watch has each provider asked whether it is back, and no other one any more.
func (r *running) watch(live *proxy.Live) {
	ups := live.Router.Upstreams()
	for up, stop := range r.watched {
		if !slices.Contains(ups, up) {
			stop()
			delete(r.watched, up)
			r.leave(up, ups)
		}
	}
	for _, up := range ups {
		if r.watched[up] == nil {
			ctx, stop := context.WithCancel(r.handler.Load().Context())
			r.watched[up] = stop
			go r.handler.Load().Watch(ctx, up)
		}
	}
}

// leave closes connections that nobody needs any more, when their requests are done.
func (r *running) leave(old *router.Upstream, ups []*router.Upstream) {
	if !slices.ContainsFunc(ups, func(up *router.Upstream) bool { return up.Transport == old.Transport }) {
		old.Retire()
	}
}

func changesOf(changes []config.Change) admin.Reload {
	done := admin.Reload{Changed: []string{}, NeedsRestart: []string{}}
	for _, c := range changes {
		if c.Restart {
			done.NeedsRestart = append(done.NeedsRestart, c.Path)
		} else {
			done.Changed = append(done.Changed, c.Path)
		}
	}
	return done
}

// difference is what a reload would change now.
func (r *running) difference() (admin.ConfigDiff, error) {
	if r.load == nil {
		return admin.ConfigDiff{}, errNoFile
	}
	cfg, err := r.load()
	if err != nil {
		return admin.ConfigDiff{Changed: []string{}, NeedsRestart: []string{}, Error: err.Error()}, nil
	}
	before := r.now.Load().cfg
	done := changesOf(config.Diff(before, cfg))
	diff := admin.ConfigDiff{Changed: done.Changed, NeedsRestart: done.NeedsRestart}
	if _, err := config.AsRunning(before, cfg); err != nil {
		diff.Error = err.Error()
	}
	return diff, nil
}

// settle is how long a burst of reasons to reload may last before one reload answers all.
// The file's own changes have settled when they are told.
const settle = 50 * time.Millisecond

// follow reloads when the configuration's files change and at each hangup, until the
// func that it returns is called.
func (r *running) follow(hangups <-chan os.Signal) func() {
	ctx, cancel := context.WithCancel(context.Background())
	changed := make(chan struct{}, 1)
	var done sync.WaitGroup
	if r.load != nil {
		w, err := config.NewWatcher(func() []string { return config.Files(r.source, r.now.Load().cfg) })
		if err != nil {
			r.log.Warn().Err(err).Msg("changes of the configuration are not seen; send SIGHUP after each, or run `cc-relay config reload`")
		} else {
			done.Go(func() { w.Run(ctx, func() { notify(changed) }) })
		}
	}
	done.Go(func() {
		steadily(r.log, "reloading", func() { r.reloadWhen(ctx, changed, hangups) })
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// again is how often a configuration that was refused is looked at once more.
const again = 5 * time.Second

// reloadWhen reloads for each reason that comes, until ctx ends.
func (r *running) reloadWhen(ctx context.Context, changed <-chan struct{}, hangups <-chan os.Signal) {
	r.recheck() // what has changed before the files were watched
	retry := time.NewTicker(again)
	defer retry.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
			if last := r.last.Load(); last != nil && last.Error != "" {
				r.recheck()
			}
			continue
		case <-hangups:
		case <-changed:
		}
		time.Sleep(settle)
		empty(changed)
		_, _ = r.reload() // it is logged, counted and told there
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func empty(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}
