package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"cc-relay/bench/rig"
	"cc-relay/internal/simulator"
)

// Models that clients ask for. The provider paces those of slowModel and answers the
// others at once.
const (
	slowModel   = "claude-opus-5"
	quickModel  = "claude-haiku-5-5"
	cachedModel = "claude-sonnet-5-5"
)

// pace of a slow answer, in deltas a second.
const pace = 2

// Tokens of one delta.
const (
	slowDelta  = 16
	quickDelta = 256
)

// Keys of the provider main: those that stay, and those that are added and removed in
// turn.
const (
	stayingKeys  = 2
	changingKeys = 22
)

// mainKey is the n-th key, from 0, where those that change begin anew after the last.
func mainKey(n int) string {
	if n >= stayingKeys {
		n = stayingKeys + (n-stayingKeys)%changingKeys
	}
	return fmt.Sprintf("main-key-%d", n+1)
}

// provider is one listener that answers as the API does. It knows all keys there may
// ever be, and notes which came when.
type provider struct {
	addr        string
	quick, slow *simulator.Simulator
	server      *http.Server
	sent        func(call) // told of each answer when it has ended

	mu      sync.Mutex // guards what follows
	last    map[string]time.Time
	retired map[string]time.Time // from when on the key must not come
	late    []string             // those that came nevertheless
}

// call is one answer as the provider sent it, up to where it ended.
type call struct {
	id       string // of the provider
	usage    rig.Usage
	deltas   int
	started  bool // the usage of its beginning was sent
	complete bool
}

func newProvider(sent func(call)) (*provider, error) {
	p := &provider{sent: sent, last: map[string]time.Time{}, retired: map[string]time.Time{}}
	org := simulator.Organization{ID: "org-main"}
	for n := range stayingKeys + changingKeys {
		org.Keys = append(org.Keys, simulator.Key{Key: mainKey(n)})
	}
	orgs := []simulator.Organization{org}
	for _, name := range []string{fallbackName, sideName, extraName} {
		orgs = append(orgs, simulator.Organization{ID: "org-" + name, Keys: []simulator.Key{{Key: name + "-key"}}})
	}
	var err error
	quick := simulator.Config{Organizations: orgs, Reply: says(quickDelta), MaxRecords: 1,
		Speed: simulator.Speed{FirstEvent: 20 * time.Millisecond, TokensPerEvent: quickDelta}}
	if p.quick, err = simulator.New(quick); err != nil {
		return nil, err
	}
	slow := simulator.Config{Organizations: orgs, Reply: says(slowDelta), MaxRecords: 1,
		Speed: simulator.Speed{FirstEvent: 50 * time.Millisecond, EventsPerSecond: pace, TokensPerEvent: slowDelta}}
	if p.slow, err = simulator.New(slow); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	p.addr = l.Addr().String()
	go func() { _ = p.server.Serve(l) }()
	return p, nil
}

// hangUp closes idle connections.
func (p *provider) hangUp() {
	p.server.SetKeepAlivesEnabled(false)
	p.server.SetKeepAlivesEnabled(true)
}

// close ends the provider, its requests first.
func (p *provider) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = p.server.Shutdown(ctx)
	_ = p.server.Close()
}

// says makes answers of as many deltas as the request's text asks for.
func says(tokens int) func(simulator.Request) simulator.Reply {
	return func(req simulator.Request) simulator.Reply {
		_, n, _ := strings.Cut(req.UserText, deltasWord)
		deltas, _ := strconv.Atoi(n)
		return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: strings.Repeat("this is filler. ", deltas*tokens/4)}}}
	}
}

// deltasWord stands before the number of deltas at the end of a request's text.
const deltasWord = "deltas="

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	p.came(r.Header.Get("X-Api-Key"), time.Now())
	sim := p.quick
	if bytes.Contains(body, []byte(`"model":"`+slowModel+`"`)) {
		sim = p.slow
	}
	t := &tap{ResponseWriter: w}
	defer func() { p.sent(t.call(w.Header().Get("Request-Id"))) }() // also when the simulator hangs up
	sim.ServeHTTP(t, r)
}

func (p *provider) came(key string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[key] = now
	if from, ok := p.retired[key]; ok && now.After(from) {
		p.late = append(p.late, fmt.Sprintf("%s came %.1f s after it should have been gone", key, now.Sub(from).Seconds()))
	}
}

// retire says that the key must not come any more from then on.
func (p *provider) retire(key string, from time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retired[key] = from
}

// admit takes the key back.
func (p *provider) admit(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.retired, key)
}

var errNotCome = errors.New("the provider saw no request with it")

// cameSince says whether the key came at or after that time.
func (p *provider) cameSince(key string, since time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last[key].Before(since) {
		return errNotCome
	}
	return nil
}

func (p *provider) lateKeys() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.late
}

// tap reads what the simulator sends; it sends one event at a time.
type tap struct {
	http.ResponseWriter
	stream rig.Stream
	whole  *rig.Message // of an answer that is no stream
	deltas int
}

func (t *tap) Write(b []byte) (int, error) {
	switch {
	case bytes.HasPrefix(b, []byte("event: content_block_delta")): // costs too much to be read
		t.deltas++
	case bytes.HasPrefix(b, []byte("event: ")):
		_ = t.stream.Event(b)
	default:
		if m, err := rig.ReadJSON(b); err == nil {
			t.whole = &m
		}
	}
	return t.ResponseWriter.Write(b)
}

// Unwrap lets the simulator flush.
func (t *tap) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *tap) call(id string) call {
	if t.whole != nil {
		return call{id: id, usage: t.whole.Usage, started: true, complete: true}
	}
	m := t.stream.Message()
	return call{id: id, usage: m.Usage, deltas: t.deltas, started: t.stream.Started(), complete: m.Complete}
}
