package main

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/config"
	"cc-relay/internal/messages"
	"cc-relay/internal/simulator"
)

// demoStartLevel is how full the provider's buckets are at first: full ones would
// carry a short run without anybody looking after them.
const demoStartLevel = 1.0 / 3

// demoOrganizations have one key each, and limits of 4 : 2 : 1. The smallest
// can take the prefix of all sessions three times before it has refilled at all.
func demoOrganizations() []simulator.Organization {
	org := func(name string, rpm int) simulator.Organization {
		return simulator.Organization{
			ID:             "org-" + name,
			Limits:         simulator.Limits{RPM: rpm, ITPM: 1000 * rpm, OTPM: 200 * rpm},
			CountTokensRPM: rpm,
			Keys:           []simulator.Key{{Key: "demo-key-" + name, Name: name}},
		}
	}
	return []simulator.Organization{org("large", 800), org("middle", 400), org("small", 200)}
}

// demoUpstream is the simulated provider on a port of its own. It counts the
// answers that are failures.
type demoUpstream struct {
	sim    *simulator.Simulator
	server *http.Server
	url    string

	mu       sync.Mutex
	failures map[string]int // by status, or "cut" where the connection was broken; guarded by mu
}

func newDemoUpstream() (*demoUpstream, error) {
	sim, err := simulator.New(simulator.Config{
		Organizations: demoOrganizations(),
		StartLevel:    demoStartLevel,
		Speed:         simulator.Speed{FirstEvent: 120 * time.Millisecond, EventsPerSecond: 20, TokensPerEvent: 64},
		Reply:         demoReply,
	})
	if err != nil {
		return nil, err
	}
	l, err := listen("127.0.0.1:0", nil, nil)
	if err != nil {
		return nil, err
	}
	u := &demoUpstream{sim: sim, url: "http://" + l.Addr().String(), failures: make(map[string]int)}
	u.server = newServer(u, config.Default().Server.Limits, zerolog.Nop())
	go func() { _ = u.server.Serve(l) }() // should it ever end early, every request says so
	return u, nil
}

func (u *demoUpstream) close() { _ = u.server.Close() }

func (u *demoUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	seen := &statusWriter{ResponseWriter: w}
	outcome := "cut" // stays when a fault breaks the connection, by a panic
	defer func() { u.count(outcome) }()
	u.sim.ServeHTTP(seen, r)
	outcome = strconv.Itoa(seen.status)
}

func (u *demoUpstream) count(outcome string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if outcome != "200" {
		u.failures[outcome]++
	}
}

func (u *demoUpstream) failed() map[string]int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.failures)
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets the provider flush, without which nothing streams.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// demoStep is a line of the script: from at on, these faults and no others wait
// for the requests that fit them.
type demoStep struct {
	at     float64 // share of the load's length
	says   string
	faults []simulator.Fault
}

// demoScript lets the provider fail once in each way. The two faults that cost a
// request its one repeat on the same provider are far enough apart that none meets both.
func demoScript() []demoStep {
	const path = "/v1/messages"
	overloaded := simulator.Fault{Nth: 1, Path: path, Org: "org-large", Kind: simulator.FaultStatus, Status: messages.StatusOverloaded}
	limited := simulator.Fault{Nth: 1, Path: path, Org: "org-middle", Kind: simulator.FaultStatus,
		Status: http.StatusTooManyRequests, Headers: map[string]string{"Retry-After": "2"}}
	dead := simulator.Fault{Path: path, Org: "org-small", Kind: simulator.FaultDeadKey}
	cut := simulator.Fault{Nth: 1, Path: path, Org: "org-large", Kind: simulator.FaultCut}
	return []demoStep{
		{0.15, "one answer will be 529 overloaded", []simulator.Fault{overloaded}},
		{0.30, "one answer to the middle key will be 429, retry-after 2", []simulator.Fault{limited}},
		{0.45, "the small key is dead from now on", []simulator.Fault{dead}},
		{0.60, "one answer will break off before its first event", []simulator.Fault{dead, cut}},
	}
}

// spoil plays the script against the clock of the load.
func (u *demoUpstream) spoil(ctx context.Context, start time.Time, length time.Duration, say func(string, ...any)) error {
	for _, step := range demoScript() {
		if !sleepUntil(ctx, start.Add(time.Duration(step.at*float64(length)))) {
			return nil
		}
		say("script: %s", step.says)
		if err := u.sim.SetFaults(step.faults); err != nil {
			return err
		}
	}
	return nil
}

// sleepUntil reports false when ctx ended first.
func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// demoReply calls a tool after some text, as the models of coding agents do, but
// only in the demo's own sessions: a real agent that is pointed at the demo must
// not be made to run anything.
func demoReply(r simulator.Request) simulator.Reply {
	if !slices.Contains(r.Tools, demoTool) {
		return simulator.Reply{Blocks: []simulator.ReplyBlock{{
			Text: "This is the simulated provider of cc-relay demo, no language model. The relay works.",
		}}}
	}
	return simulator.Reply{Blocks: []simulator.ReplyBlock{
		{Text: prose(logNormal(demoAnswerTokens, 0.9, demoMaxAnswer))},
		{Type: simulator.ToolUseBlock, Name: demoTool, Input: json.RawMessage(`{"path":"main.go"}`)},
	}}
}
