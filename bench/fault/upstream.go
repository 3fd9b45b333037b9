package main

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"cc-relay/internal/simulator"
)

// Every answer is a text of so many deltas of so many bytes.
const (
	deltas    = 60
	deltaSize = 16 // four tokens
)

// pace makes an answer last 0.65 s.
func pace() simulator.Speed {
	return simulator.Speed{FirstEvent: 50 * time.Millisecond, EventsPerSecond: 100, TokensPerEvent: deltaSize / 4}
}

// refuseWord in a request makes the answer a refusal: stop_reason refusal, no content.
const refuseWord = "something-forbidden"

// upstream is one provider: a simulator on a listener of its own, and the log of
// what it was asked and what it sent.
type upstream struct {
	name  string
	addr  string
	usage simulator.Usage // of every answer, to tell whose it is
	sim   *simulator.Simulator

	mu     sync.Mutex // guards what follows, and the fields of calls that change
	server *http.Server
	front  front
	calls  []*call
}

// front comes before the simulator, for what no script can play; it reports
// whether it has answered.
type front func(w http.ResponseWriter, r *http.Request, body []byte) bool

// call is one request for a message.
type call struct {
	at   time.Time
	key  string
	body []byte

	sent []byte    // of the answer's body
	last time.Time // when the last part of it was sent
}

// newUpstream starts a provider with so many keys, NAME-key-1 and on. input is what
// its answers report as input tokens.
func newUpstream(name string, keys, input int, speed simulator.Speed) (*upstream, error) {
	u := &upstream{name: name, usage: simulator.Usage{Input: input, Output: deltas * deltaSize / 4}}
	org := simulator.Organization{ID: "org-" + name}
	for i := range keys {
		org.Keys = append(org.Keys, simulator.Key{Key: keyOf(name, i)})
	}
	sim, err := simulator.New(simulator.Config{
		Organizations: []simulator.Organization{org},
		Speed:         speed,
		Reply:         u.reply,
	})
	if err != nil {
		return nil, err
	}
	u.sim, u.addr = sim, "127.0.0.1:0"
	return u, u.open()
}

func (u *upstream) reply(req simulator.Request) simulator.Reply {
	r := simulator.Reply{Usage: &u.usage}
	if strings.Contains(req.UserText, refuseWord) {
		r.StopReason = "refusal"
		return r
	}
	r.Blocks = []simulator.ReplyBlock{{Text: u.says(req.UserText)}}
	return r
}

// says is the text of the answer to a request.
func (u *upstream) says(asked string) string {
	if strings.Contains(asked, refuseWord) {
		return ""
	}
	line := u.name + " answers " + asked + ". "
	return strings.Repeat(line, deltas*deltaSize/len(line)+1)[:deltas*deltaSize]
}

// open listens, again on the same address where it had one.
func (u *upstream) open() error {
	var l net.Listener
	var err error
	for range 20 { // somebody else may have the port for a moment
		if l, err = net.Listen("tcp", u.addr); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	server := &http.Server{Handler: u, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.addr, u.server = l.Addr().String(), server
	go func() { _ = server.Serve(l) }()
	return nil
}

// close breaks all connections and refuses new ones until open.
func (u *upstream) close() {
	u.mu.Lock()
	server := u.server
	u.server = nil
	u.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
}

// script sets what goes wrong from now on.
func (u *upstream) script(faults ...simulator.Fault) error { return u.sim.SetFaults(faults) }

func (u *upstream) setFront(f front) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.front = f
}

// heal ends whatever goes wrong.
func (u *upstream) heal() error {
	u.setFront(nil)
	u.mu.Lock()
	closed := u.server == nil
	u.mu.Unlock()
	if closed {
		if err := u.open(); err != nil {
			return err
		}
	}
	return u.script()
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if r.Method != http.MethodPost || r.URL.Path != "/v1/messages" {
		u.sim.ServeHTTP(w, r)
		return
	}
	c := &call{at: time.Now(), key: r.Header.Get("X-Api-Key"), body: body}
	u.mu.Lock()
	u.calls = append(u.calls, c)
	front := u.front
	u.mu.Unlock()
	w = &tap{ResponseWriter: w, up: u, call: c}
	if front == nil || !front(w, r, body) {
		u.sim.ServeHTTP(w, r)
	}
}

// tap notes what is sent before the client can have it.
type tap struct {
	http.ResponseWriter
	up   *upstream
	call *call
}

func (t *tap) Write(p []byte) (int, error) {
	t.up.mu.Lock()
	t.call.sent = append(t.call.sent, p...)
	t.call.last = time.Now()
	t.up.mu.Unlock()
	return t.ResponseWriter.Write(p)
}

// Unwrap lets the simulator flush and hijack.
func (t *tap) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// log is what came since the last forget, oldest first.
func (u *upstream) log() []call {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make([]call, 0, len(u.calls))
	for _, c := range u.calls {
		all = append(all, *c)
	}
	return all
}

func (u *upstream) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls = nil
}

// of is what came of one request of the client: its text stands in no other.
func (u *upstream) of(r *reply) []call {
	return slices.DeleteFunc(u.log(), func(c call) bool { return !bytes.Contains(c.body, []byte(`"`+r.text+`"`)) })
}

var errNotAsked = errors.New("was not asked")

// answerTo is the last that u sent for a request of the client.
func (u *upstream) answerTo(r *reply) (call, error) {
	calls := u.of(r)
	if len(calls) == 0 {
		return call{}, errNotAsked
	}
	return calls[len(calls)-1], nil
}
