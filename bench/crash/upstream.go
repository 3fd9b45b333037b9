package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"cc-relay/internal/simulator"
)

const upstreamKey = "sk-ant-crash-canary-0123456789"

// upstream is a simulated provider on a loopback socket. Its limits give the relay
// something to learn.
type upstream struct {
	url    string
	server *http.Server
}

func newUpstream() (*upstream, error) {
	const plenty = 50_000_000
	s, err := simulator.New(simulator.Config{
		Organizations: []simulator.Organization{{ID: "org-crash", Limits: simulator.Limits{RPM: plenty, ITPM: plenty, OTPM: plenty}, Keys: []simulator.Key{{Key: upstreamKey}}}},
		Speed:         simulator.Speed{FirstEvent: 10 * time.Millisecond, EventsPerSecond: 200},
		Answers:       simulator.Answers{MedianTokens: 60},
	})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)} // relays that die are not its trouble
	go func() { _ = server.Serve(l) }()
	return &upstream{url: "http://" + l.Addr().String(), server: server}, nil
}

func (u *upstream) close() { _ = u.server.Close() }
