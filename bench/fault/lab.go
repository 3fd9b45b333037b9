package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"cc-relay/bench/rig"
	"cc-relay/internal/simulator"
)

// settings is what a scenario's relay is told beside its two providers, as YAML.
type settings struct {
	timeouts string // of each provider, such as "idle_timeout: 5s"
	routing  string // in routing
	models   string // a whole entry of models
	keys     int    // of the primary; 0 is 1
	alone    bool   // there is no fallback
}

func (s settings) yaml(primary, fallback string) string {
	var b strings.Builder
	b.WriteString("server: { listen: 127.0.0.1:0, state: \"off\" }\nproviders:\n")
	s.provider(&b, "primary", primary, max(s.keys, 1))
	if !s.alone {
		s.provider(&b, "fallback", fallback, 1)
	}
	if s.routing != "" {
		fmt.Fprintf(&b, "routing: { %s }\n", s.routing)
	}
	if s.models != "" {
		fmt.Fprintf(&b, "models: [ %s ]\n", s.models)
	}
	return b.String()
}

func (s settings) provider(b *strings.Builder, name, addr string, keys int) {
	fmt.Fprintf(b, "  - name: %s\n    base_url: http://%s\n    keys: [", name, addr)
	for i := range keys {
		fmt.Fprintf(b, " { key: %s },", keyOf(name, i))
	}
	b.WriteString(" ]\n")
	for line := range strings.SplitSeq(s.timeouts, ", ") {
		if line != "" {
			fmt.Fprintf(b, "    %s\n", line)
		}
	}
}

func keyOf(name string, i int) string { return fmt.Sprintf("%s-key-%d", name, i+1) }

// hall is what all scenarios share.
type hall struct {
	binary, dir, logs string
	starts            chan struct{} // bounds how many relays start at a time
}

// result is what came of one scenario in one way.
type result struct {
	err  error
	cost cost
	took time.Duration
}

func (r result) String() string {
	if r.err != nil {
		return "FAILED, " + r.reason()
	}
	return "passed"
}

// reason is what failed, in one line.
func (r result) reason() string {
	return strings.Join(strings.FieldsFunc(r.err.Error(), func(c rune) bool { return c == '\n' }), "; ")
}

// play gives a scenario its own providers and relay, and its verdict.
func (h *hall) play(ctx context.Context, s scenario, streamed bool, play play) result {
	l, stop, err := h.newLab(ctx, s, streamed)
	if err != nil {
		return result{err: err}
	}
	r := l.play(play)
	r.err = errors.Join(r.err, stop())
	return r
}

// newLab starts what a scenario needs. stop tells whether the relay ended well.
func (h *hall) newLab(ctx context.Context, s scenario, streamed bool) (*lab, func() error, error) {
	l, err := newLab(ctx, s, streamed, pace())
	if err != nil {
		return nil, nil, err
	}
	relay, log, err := h.start(ctx, s, streamed, l)
	if err != nil {
		l.close()
		return nil, nil, err
	}
	l.url = relay.URL
	return l, func() error {
		err := relay.Stop()
		_ = log.Close()
		l.close()
		return err
	}, nil
}

func (h *hall) start(ctx context.Context, s scenario, streamed bool, l *lab) (*rig.Relay, io.Closer, error) {
	name := s.id + "-" + strings.ReplaceAll(mode(streamed), " ", "-")
	file := name + ".yaml"
	if err := os.WriteFile(filepath.Join(h.dir, file), []byte(s.settings.yaml(l.primary.addr, l.fallback.addr)), 0o600); err != nil {
		return nil, nil, err
	}
	where := os.DevNull
	if h.logs != "" {
		where = filepath.Join(h.logs, name+".log")
	}
	log, err := os.Create(where)
	if err != nil {
		return nil, nil, err
	}
	h.starts <- struct{}{}
	relay, err := rig.Start(ctx, h.binary, h.dir, file, log)
	<-h.starts
	if err != nil {
		_ = log.Close()
		return nil, nil, err
	}
	return relay, log, nil
}

// lab is one scenario in one way: two providers, and a client of a relay at url.
type lab struct {
	ctx               context.Context
	id                string
	streamed          bool
	primary, fallback *upstream
	url               string
	client            *http.Client
	asked             atomic.Int64
	cost              *cost // once the fault is over
}

// cost is how many requests the providers saw while the fault lasted.
type cost struct{ primary, fallback int }

// over notes that the fault is over; what follows costs nothing.
func (l *lab) over() {
	if l.cost == nil {
		l.cost = &cost{len(l.primary.log()), len(l.fallback.log())}
	}
}

// newLab starts the providers; url is the caller's to set.
func newLab(ctx context.Context, s scenario, streamed bool, speed simulator.Speed) (*lab, error) {
	l := &lab{ctx: ctx, id: s.id, streamed: streamed, client: newClient()}
	var err error
	if l.primary, err = newUpstream("primary", max(s.settings.keys, 1), 1111, speed); err != nil {
		return nil, err
	}
	if l.fallback, err = newUpstream("fallback", 1, 2222, speed); err != nil {
		l.primary.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) close() {
	l.primary.close()
	l.fallback.close()
}

// ask sends one request of its own text. It may be called from many goroutines.
func (l *lab) ask() *reply { return l.say("tell me more") }

func (l *lab) say(what string) *reply {
	text := fmt.Sprintf("%s %s %d: %s", l.id, mode(l.streamed), l.asked.Add(1), what)
	return post(l.ctx, l.client, l.url, text, l.streamed)
}

// play runs a scenario between two plain requests: one that the primary serves, so
// that relay and providers are known to work and connections are open, and one,
// with everything healed, that anybody may serve.
func (l *lab) play(play play) result {
	began := time.Now()
	if err := clean(l.ask(), l.primary); err != nil {
		return result{err: fmt.Errorf("before the fault: %w", err), took: time.Since(began)}
	}
	l.primary.forget()
	l.fallback.forget()
	began = time.Now()
	r := result{err: play(l)}
	l.over()
	r.cost, r.took = *l.cost, time.Since(began)
	if r.err == nil {
		r.err = l.alive()
	}
	return r
}

// alive heals the providers; after that a plain request must be served.
func (l *lab) alive() error {
	if err := errors.Join(l.primary.heal(), l.fallback.heal()); err != nil {
		return err
	}
	if err := l.served(l.ask()); err != nil {
		return fmt.Errorf("after the fault: %w", err)
	}
	return nil
}

// pause waits, or until the bench is stopped.
func (l *lab) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.ctx.Done():
	}
}
