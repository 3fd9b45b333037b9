package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
)

// Limits bound what the relay holds and how long it waits, see Bounds for what each
// does, its default and its range.
type Limits struct {
	HeaderBytes          int64         `yaml:"header_bytes"`
	HeaderTime           time.Duration `yaml:"header_time"`
	BodySilence          time.Duration `yaml:"body_silence"`
	BodyRate             int64         `yaml:"body_rate"`
	BodyTime             time.Duration `yaml:"body_time"`
	BodiesBytes          int64         `yaml:"bodies_bytes"`
	Requests             int64         `yaml:"requests"`
	Connections          int64         `yaml:"connections"`
	ConnectionsPerSource int64         `yaml:"connections_per_source"`
	StreamsPerConnection int64         `yaml:"streams_per_connection"`
	IdleConnection       time.Duration `yaml:"idle_connection"`
	WriteTime            time.Duration `yaml:"write_time"`
	TotalTime            time.Duration `yaml:"total_time"`
	FrameBytes           int64         `yaml:"frame_bytes"`
}

// Bound is a bound of what clients and providers can take of the relay.
type Bound struct {
	// Setting is its path; [] stands for each entry of a list.
	Setting string
	// Unit is bytes, bytes/s, a noun for what is counted, or "" for a duration.
	Unit string
	// Default, Least and Most are in the unit, for a duration in nanoseconds, all
	// inclusive. Default is above 0.
	Default, Least, Most int64
	// Does says what is bounded, and what becomes of what goes beyond.
	Does string
	// Where is the file that enforces it.
	Where string
}

// Longest and largest values of bounds that could as well be higher.
const (
	anyCount = 1_000_000
	anyBytes = 1 << 40
	anyTime  = int64(24 * time.Hour)
)

// bounds is the one place where bounds are: the defaults of the settings of the
// server, what Parse accepts, the schema and docs/limits.md follow from it. Those of
// providers and pools have their defaults where they are used.
var bounds = []Bound{
	{"server.limits.header_bytes", "bytes", 64 << 10, 4 << 10, 1 << 20, "Head of a request: 431 and the connection is closed.", "cmd/cc-relay/serve.go"},
	{"server.limits.header_time", "", int64(10 * time.Second), int64(time.Second), anyTime, "Until the head of a request is there, and a TLS handshake done: the connection is closed.", "cmd/cc-relay/serve.go"},
	{"server.max_body_bytes", "bytes", proxy.DefaultMaxBodyBytes, 1, maxBody, "Body of a request, the Messages API's own limit: 413.", "internal/proxy/body.go"},
	{"server.limits.body_silence", "", int64(proxy.DefaultBodyTimeout), int64(time.Second), anyTime, "Silence within a body: 408. No key is taken before the body is there.", "internal/proxy/body.go"},
	{"server.limits.body_rate", "bytes/s", proxy.DefaultBodyRate, 1, 1 << 30, "A body that is slower than this once body_silence has passed: 408.", "internal/proxy/body.go"},
	{"server.limits.body_time", "", int64(proxy.DefaultBodyTime), int64(time.Second), anyTime, "Until a body is there whole: 408.", "internal/proxy/body.go"},
	{"server.limits.bodies_bytes", "bytes", proxy.DefaultBodiesBytes, 1 << 20, anyBytes, "Bodies in memory of all requests, counted as they come, in steps, until their answers begin: 529 with retry-after.", "internal/proxy/admit.go"},
	{"server.limits.requests", "requests", proxy.DefaultRequests, 1, anyCount, "Requests at work, running streams included: 529 with retry-after.", "internal/proxy/admit.go"},
	{"server.limits.connections", "connections", 20_000, 1, anyCount, "Connections of clients, and never more than half of what files the process may open. A few more get 529 with retry-after, /livez and /readyz their answer; what comes on top is closed.", "cmd/cc-relay/crowd.go"},
	{"server.limits.connections_per_source", "connections", 10_000, 1, anyCount, "The same for one IPv4 address or IPv6 /64. The default is for a whole team behind one address.", "cmd/cc-relay/crowd.go"},
	{"server.limits.streams_per_connection", "requests", 100, 1, 10_000, "Requests at once on an HTTP/2 connection: the client is told, and waits.", "cmd/cc-relay/serve.go"},
	{"server.limits.idle_connection", "", int64(5 * time.Minute), int64(time.Second), anyTime, "A connection without a request: closed.", "cmd/cc-relay/serve.go"},
	{"server.limits.write_time", "", int64(proxy.DefaultWriteTimeout), int64(time.Second), anyTime, "Until a client has taken one write: the request ends, as if it had left. Above 1m, HTTP/2 needs a restart to know it.", "internal/proxy/stream.go"},
	{"server.limits.total_time", "", int64(proxy.DefaultTotalTime), int64(time.Minute), 7 * anyTime, "A whole request: 504, and in a stream an error event.", "internal/proxy/watch.go"},
	{"server.limits.frame_bytes", "bytes", proxy.DefaultFrameBytes, 4 << 10, 1 << 30, "One event of a stream: an error event in its place.", "internal/messages/sse.go"},
	{"server.drain_timeout", "", int64(10 * time.Minute), 1, 1<<63 - 1, "Running answers after a signal to stop: an error event.", "cmd/cc-relay/serve.go"},
	{"providers[].dial_timeout", "", int64(provider.DefaultDialTimeout), 1, 1<<63 - 1, "Until a connection to the provider stands: the next provider, else 502.", "internal/provider/transport.go"},
	{"providers[].first_token_timeout", "", int64(provider.DefaultFirstTokenTimeout), 1, 1<<63 - 1, "Until a stream shows content: the next provider, else 504.", "internal/proxy/watch.go"},
	{"providers[].response_timeout", "", int64(provider.DefaultResponseTimeout), 1, 1<<63 - 1, "Until an answer that is not streamed is complete: the next provider, else 504.", "internal/proxy/watch.go"},
	{"providers[].idle_timeout", "", int64(provider.DefaultIdleTimeout), 1, 1<<63 - 1, "Silence of a provider within a stream: an error event. Where `origin` is not anthropic the default is 4m, and the relay pings meanwhile.", "internal/proxy/watch.go"},
	{"providers[].pool.max_wait", "", int64(keypool.DefaultMaxWait), 0, int64(keypool.LongestMaxWait), "A request without a free key: 429 with retry-after.", "internal/keypool/queue.go"},
	{"providers[].pool.max_waiting", "requests", keypool.DefaultMaxWaiting, 1, anyCount, "Requests that wait for a key: 429 with retry-after.", "internal/keypool/queue.go"},
}

// Bounds returns all bounds. The caller owns the list.
func Bounds() []Bound { return append([]Bound(nil), bounds...) }

// BoundsTable returns the bounds as a table in Markdown.
func BoundsTable() string {
	var b strings.Builder
	b.WriteString("| setting | default | least | most | bounds what, and what becomes of the rest | enforced in |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, x := range bounds {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | `%s` |\n", x.Setting, x.show(x.Default), x.least(), x.most(), x.Does, x.Where)
	}
	return b.String()
}

func (b Bound) least() string {
	if b.Unit == "" && b.Least == 1 {
		return "above 0s"
	}
	return b.show(b.Least)
}

func (b Bound) most() string {
	if b.Most == 1<<63-1 {
		return ""
	}
	return b.show(b.Most)
}

// show is write with the unit.
func (b Bound) show(v int64) string {
	if b.Unit != "" {
		return b.write(v) + " " + b.Unit
	}
	return b.write(v)
}

// write is a value as in a file.
func (b Bound) write(v int64) string {
	if b.Unit != "" {
		return strconv.FormatInt(v, 10)
	}
	s := time.Duration(v).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// at is where c holds the bound's setting, which must be one of the server's.
func (b Bound) at(c *Config) reflect.Value {
	v := reflect.ValueOf(c).Elem()
	for name := range strings.SplitSeq(b.Setting, ".") {
		fields, _ := fieldsOf(v.Type())
		v = v.FieldByIndex(fields[name])
	}
	return v
}

func (b Bound) ofServer() bool { return strings.HasPrefix(b.Setting, "server.") }

func (c *Config) setBounds() {
	for _, b := range bounds {
		if b.ofServer() {
			b.at(c).SetInt(b.Default)
		}
	}
}

// checkBounds checks the limits; the settings that were there before them have checks
// of their own.
func (c *Config) checkBounds(r *report) {
	for _, b := range bounds {
		if !strings.HasPrefix(b.Setting, "server.limits.") {
			continue
		}
		if v := b.at(c).Int(); v < b.Least || v > b.Most {
			r.addf(b.Setting, "%s is out of bounds; write %s to %s", b.write(v), b.write(b.Least), b.write(b.Most))
		}
	}
}
