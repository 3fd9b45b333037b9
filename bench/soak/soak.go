package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cc-relay/bench/rig"
)

// bed is one run: a relay, its providers, and those who look on.
type bed struct {
	options
	dir       string
	relay     *rig.Relay
	log       *relayLog
	logFile   io.Closer
	ledger    *ledger
	providers []*provider
	networks  []*network
	watcher   *watcher
	load      *load
	changer   *changer
}

// soak runs the relay as o says. Its error means that nothing could be measured; what
// went wrong is in the report.
func soak(ctx context.Context, o options, progress io.Writer) (*report, error) {
	b := &bed{options: o, ledger: newLedger()}
	defer b.tidy()
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	r, err := b.run(ctx, progress)
	return r, errors.Join(err, ctx.Err())
}

func (b *bed) start(ctx context.Context) error {
	var err error
	if b.dir, err = os.MkdirTemp("", "cc-relay-soak"); err != nil {
		return err
	}
	binary := filepath.Join(b.dir, "cc-relay")
	if b.options.relay == "" {
		err = rig.Build(ctx, binary)
	} else {
		binary, err = filepath.Abs(b.options.relay) // it runs in dir
	}
	if err != nil {
		return err
	}
	s := settings{dir: b.dir, keys: []string{mainKey(0), mainKey(1)}, tokens: []string{loadToken}, limit: 1000, level: "info"}
	if s.mainAddr, err = b.provider(b.mixed); err != nil {
		return err
	}
	s.other = b.providers[0].addr
	if b.mixed {
		if s.fallbackAddr, err = b.provider(true); err != nil {
			return err
		}
	}
	if err := replace(s.file(), s.yaml()); err != nil {
		return err
	}
	if err := b.startRelay(ctx, binary); err != nil {
		return err
	}
	b.watcher = newWatcher(b.relay.PID(), s.adminSocket(), s.adminToken())
	b.load = &load{options: b.options, client: newClient(b.relay.URL), ledger: b.ledger, ends: map[end]int{}}
	b.changer = &changer{settings: s, relay: b.relay, log: b.log, http: b.load.client.usual, ask: b.load.ask, provider: b.providers[0], within: b.within, late: b.within, keys: len(s.keys)}
	if b.mixed { // a request keeps the keys it began with, and the network holds it up
		b.changer.late += 15 * time.Second
	}
	return nil
}

// provider starts one, behind a network where there is to be trouble, and returns where
// it is to be reached.
func (b *bed) provider(trouble bool) (string, error) {
	p, err := newProvider(b.ledger.addCall)
	if err != nil {
		return "", err
	}
	b.providers = append(b.providers, p)
	if !trouble {
		return p.addr, nil
	}
	n, err := newNetwork(p.addr)
	if err != nil {
		return "", err
	}
	b.networks = append(b.networks, n)
	return n.addr(), nil
}

func (b *bed) startRelay(ctx context.Context, binary string) error {
	name := b.options.log
	if name == "" {
		name = os.DevNull
	}
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	b.logFile, b.log = file, &relayLog{record: b.ledger.addRecord}
	b.relay, err = rig.Start(ctx, binary, b.dir, "config.yaml", io.MultiWriter(b.log, file))
	return err
}

// tidy ends whatever still runs.
func (b *bed) tidy() {
	if b.load != nil {
		b.load.client.closeIdle()
	}
	if b.relay != nil {
		_ = b.relay.Stop()
	}
	for _, n := range b.networks {
		n.close()
	}
	for _, p := range b.providers {
		p.close()
	}
	if b.logFile != nil {
		_ = b.logFile.Close()
	}
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}

// run is the load from its beginning to after its end.
func (b *bed) run(ctx context.Context, progress io.Writer) (*report, error) {
	r := &report{options: b.options}
	b.warmUp(ctx)
	b.letGo()
	time.Sleep(logGather)
	var err error
	if r.before, err = b.watcher.measure(); err != nil {
		return nil, err
	}
	began := time.Now()
	if r.samples, err = b.underLoad(ctx, progress); err != nil {
		return nil, err
	}
	r.took = time.Since(began)
	if r.after, err = b.afterwards(ctx, r.before); err != nil {
		return nil, err
	}
	r.stopped = b.relay.Stop()
	b.relay = nil
	for _, p := range b.providers {
		p.close()
		r.late = append(r.late, p.lateKeys()...)
	}
	for _, n := range b.networks {
		r.broken += int(n.broken.Load())
	}
	r.account, r.load, r.changer, r.log = b.ledger.close(), b.load, b.changer, b.log
	return r, nil
}

// warmUp sends what makes the relay what it is when it has served for a moment.
func (b *bed) warmUp(ctx context.Context) {
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 20 {
				b.load.ask(ctx, question{model: quickModel, stream: true, deltas: 5})
			}
		})
	}
	all.Wait()
}

// letGo closes the connections that nothing is going on on, on both sides of the relay.
func (b *bed) letGo() {
	b.load.client.closeIdle()
	for _, p := range b.providers {
		p.hangUp()
	}
}

// underLoad sends the load, and samples the relay until nothing new begins.
func (b *bed) underLoad(ctx context.Context, progress io.Writer) ([]sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	b.load.stop = stop
	var all sync.WaitGroup
	next := plain
	if b.mixed {
		next = b.load.mixture
	}
	all.Go(func() { b.load.short(ctx, next) })
	all.Go(func() { b.load.long(ctx) })
	changes, enough := context.WithCancel(ctx)
	defer enough()
	var around sync.WaitGroup // what stops at once
	if b.reloads > 0 {
		around.Go(func() {
			if err := b.changer.run(changes, b.reloads, b.length/time.Duration(b.reloads)); err != nil {
				cancel(err)
			}
		})
	}
	if b.mixed && b.faults > 0 {
		around.Go(func() { b.trouble(changes) })
	}
	samples, err := b.sample(ctx, progress)
	close(stop)
	enough()
	around.Wait()
	// Streams end by themselves; one that does not has been forgotten.
	late := time.AfterFunc(b.longest+time.Minute, func() { cancel(nil) })
	defer late.Stop()
	all.Wait()
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return samples, err
}

// trouble breaks and slows down connections to providers.
func (b *bed) trouble(ctx context.Context) {
	rng := rand.New(rand.NewPCG(3, 3))
	tick := time.NewTicker(time.Minute / time.Duration(b.faults))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			b.networks[rng.IntN(len(b.networks))].trouble(rng)
		case <-ctx.Done():
			return
		}
	}
}

// sample measures the relay every 5 s, more often in a short run, until the load's time
// is over.
func (b *bed) sample(ctx context.Context, progress io.Writer) ([]sample, error) {
	began := time.Now()
	tick := time.NewTicker(min(5*time.Second, b.length/20))
	defer tick.Stop()
	end := time.After(b.length)
	var all []sample
	for {
		select {
		case <-tick.C:
			if time.Since(began) > b.length { // end has come, too
				return all, nil
			}
		case <-end:
			return all, nil
		case <-b.relay.Ended():
			return all, errors.New("the relay ended under load")
		case <-ctx.Done():
			return all, context.Cause(ctx)
		}
		s, err := b.watcher.measure()
		if err != nil {
			return all, err
		}
		s.at = time.Since(began)
		all = append(all, s)
		applied, refused := b.log.reloads()
		fmt.Fprintf(progress, "%4.0f s: %d requests, %d streams open, %d + %d reloads, %d MiB (heap %d), %d fds, %d goroutines\n", s.at.Seconds(),
			b.load.requests.Load()+b.load.streams.Load(), b.load.open.Load(), applied, refused, s.rss>>20, s.heap>>20, s.fds, s.goroutines)
	}
}

// Slack of what is left behind: descriptors and goroutines that a relay may have more
// of at one moment than at another.
const (
	slackFds        = 4
	slackGoroutines = 8
)

// afterwards measures the relay when it has had time to let go of the load: as soon as
// it is what it was before, and otherwise after half a minute, or after a long run four:
// idle connections are kept for 90 s, and what is pooled for use again goes with the
// second garbage collection, of which an idle process has one in two minutes.
func (b *bed) afterwards(ctx context.Context, before sample) (sample, error) {
	drained := time.Now()
	patience := 30 * time.Second
	if b.long() {
		patience = 250 * time.Second
	}
	collections, last := 0, drained
	for {
		b.letGo()
		s, err := b.watcher.measure()
		if err != nil {
			return s, err
		}
		if s.collected.After(last) {
			collections, last = collections+1, s.collected
		}
		back := s.fds <= before.fds+slackFds && s.goroutines <= before.goroutines+slackGoroutines && s.inFlight == 0
		if b.long() {
			back = back && s.idle == 0 && (!s.told || collections > 1)
		}
		if back || time.Since(drained) > patience || ctx.Err() != nil {
			return s, ctx.Err()
		}
		time.Sleep(200 * time.Millisecond)
	}
}
