// Package trace sends one OpenTelemetry trace a request to a collector, over
// OTLP/HTTP: a server span for what the client sees, and below it a client span
// for each attempt at a provider. It is off unless configured, it never makes a
// request wait, and it carries no prompts, answers, headers, session or user ids.
//
// It uses OpenTelemetry's ids, names and messages, but not its SDK and exporter:
// those take endpoints, headers, certificates, samplers, limits and resources from
// OTEL_* variables of whoever's shell started the process, some of them even where
// every option is given, and report to global handlers. A coding agent's shell
// often has such variables, and they are about the agent. Besides, the exporter
// would link gRPC. So nothing here reads the environment, and no global of
// OpenTelemetry is linked, read or set.
//
// Sources: https://opentelemetry.io/docs/specs/otlp/ and https://www.w3.org/TR/trace-context/.
package trace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"cc-relay/internal/secret"
)

// Config says where traces go. The zero Config is off.
type Config struct {
	// Endpoint is the collector's OTLP/HTTP URL. One without a path gets
	// /v1/traces; any other path is used as written. Empty: tracing is off.
	Endpoint string
	// Headers go with each export, for a collector that asks for a credential.
	Headers map[string]secret.Value
	// Sample is the share, 0 to 1, of requests that are traced among those that
	// bring no valid traceparent. A traceparent decides for itself.
	Sample float64
	// Propagate hands the trace on to providers, in a traceparent header.
	Propagate bool
}

// Validate returns every mistake, by the names of the settings, none with a value
// that may be a credential. A Config that is off has none.
func (c Config) Validate() error {
	if c.Endpoint == "" {
		return nil
	}
	var errs []error
	if !(c.Sample >= 0 && c.Sample <= 1) { // false of NaN
		errs = append(errs, fmt.Errorf("tracing.sample: %v is no share; write a number from 0 to 1", c.Sample))
	}
	u, err := endpoint(c.Endpoint)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		errs = append(errs, checkHeader(name, c.Headers[name].Reveal(), u))
	}
	return errors.Join(errs...)
}

// closeWithin bounds Close where its context does not.
const closeWithin = 10 * time.Second

// Tracer makes spans and sends them from a goroutine of its own. A nil Tracer is
// valid and does nothing. Safe for concurrent use.
type Tracer struct {
	below     uint64 // a root whose id is below it is sampled
	propagate bool

	mu      sync.Mutex
	pending []record // guarded by mu; at most maxPending
	closed  bool     // guarded by mu

	dropped atomic.Uint64
	full    chan struct{} // a batch is pending; holds one
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when the last flush is over
	export  *exporter
}

// New starts a Tracer; version is the relay's. It is nil where cfg is off. No
// connection is made here: a collector that is down is told to failed, at most
// once a minute and from one goroutine, with neither headers nor the path and
// query of the endpoint; failed should return soon and may be nil. Error: what
// Validate says.
func New(cfg Config, version string, failed func(error)) (*Tracer, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := &Tracer{
		below:     uint64(cfg.Sample * (1 << 63)),
		propagate: cfg.Propagate,
		full:      make(chan struct{}, 1),
		stop:      make(chan struct{}),
		done:      make(chan struct{}),
	}
	t.export = newExporter(cfg, version, failed, t)
	go t.run()
	return t, nil
}

// Close sends what is pending and ends the Tracer, within ctx and within 10 s.
// Spans that end later are dropped. Error: some of the pending ones were lost.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.stop)
	}
	t.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, closeWithin)
	defer cancel()
	defer context.AfterFunc(ctx, t.export.cancel)()
	<-t.done
	return t.export.lost
}

// Dropped is the number of spans that never reached the collector: too many were
// pending, it refused them, or it was away for too long.
func (t *Tracer) Dropped() uint64 {
	if t == nil {
		return 0
	}
	return t.dropped.Load()
}

// Span is the server span of one request. The zero Span does nothing. Copies are
// the same span.
type Span struct{ s *span }

type span struct {
	t      *Tracer
	trace  trace.TraceID
	id     trace.SpanID
	parent trace.SpanID // invalid: a root
	flags  trace.TraceFlags
	start  time.Time
	method string
	route  string
}

// Start begins the span of a request that arrived at start. Its name is of a
// closed set: method where it is a usual one, and route, which is a path of the
// relay's own table, never of the client's; "" where none fits. Of the headers
// only traceparent is read: a valid one is the parent and decides whether the
// request is traced, so start spans only for clients that may ask for that.
// tracestate and baggage are neither kept nor passed on.
func (t *Tracer) Start(h http.Header, start time.Time, method, route string) Span {
	if t == nil {
		return Span{}
	}
	return t.begin(h, start, method, route)
}

func (t *Tracer) begin(h http.Header, start time.Time, method, route string) Span {
	from, ok := parseParent(h["Traceparent"])
	if !ok {
		from = t.root()
	}
	if !from.flags.IsSampled() && !t.propagate {
		return Span{}
	}
	return Span{&span{t: t, trace: from.trace, parent: from.span, id: newSpanID(), flags: from.flags, start: start, method: method, route: route}}
}

// root draws a new trace, and whether it is sampled, from the half of the id that
// OpenTelemetry's samplers look at.
// Source: https://opentelemetry.io/docs/specs/otel/trace/sdk/#traceidratiobased.
func (t *Tracer) root() parent {
	p := parent{flags: trace.FlagsRandom}
	for !p.trace.IsValid() {
		binary.BigEndian.PutUint64(p.trace[:8], rand.Uint64())
		binary.BigEndian.PutUint64(p.trace[8:], rand.Uint64())
	}
	p.flags = p.flags.WithSampled(binary.BigEndian.Uint64(p.trace[8:])>>1 < t.below)
	return p
}

func newSpanID() (id trace.SpanID) {
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}

// Recording reports whether what End is told goes anywhere.
func (s Span) Recording() bool { return s.s != nil && s.s.flags.IsSampled() }

// End sends the span on its way. Call it once, when the answer is over; where
// filling in r costs something, ask Recording first.
func (s Span) End(r Result) {
	if s.Recording() {
		s.s.end(&r)
	}
}

func (s *span) end(r *Result) {
	s.t.put(record{span: s, id: s.id, parent: s.parent, start: s.start, end: ended(r.End), request: r.kept()})
}

// Attempt begins the span of one attempt at a provider, below s.
func (s Span) Attempt(start time.Time) Attempt {
	if s.s == nil {
		return Attempt{}
	}
	return s.s.attempt(start)
}

func (s *span) attempt(start time.Time) Attempt {
	return Attempt{&attempt{span: s, id: newSpanID(), start: start}}
}

// Attempt is the client span of one attempt. The zero Attempt does nothing. Copies
// are the same attempt.
type Attempt struct{ a *attempt }

type attempt struct {
	*span
	id    trace.SpanID
	start time.Time
}

// Traceparent is the header of that name for the request to the provider; empty
// where the trace is not to be handed on: then send none, not even the client's.
func (a Attempt) Traceparent() string {
	if a.a == nil || !a.a.t.propagate {
		return ""
	}
	return parent{a.a.trace, a.a.id, a.a.flags}.String()
}

// Recording reports whether what End is told goes anywhere.
func (a Attempt) Recording() bool { return a.a != nil && a.a.flags.IsSampled() }

// End sends the span on its way. Call it once; it may be after the end of the Span.
func (a Attempt) End(r AttemptResult) {
	if a.Recording() {
		a.a.end(&r)
	}
}

func (a *attempt) end(r *AttemptResult) {
	a.t.put(record{span: a.span, id: a.id, parent: a.span.id, start: a.start, end: ended(r.End), attempt: r.kept()})
}

func ended(at time.Time) time.Time {
	if at.IsZero() {
		return time.Now()
	}
	return at
}

// maxPending spans wait for the collector at most, as many again are being sent,
// and a record is about 1 kB: tracing holds some MB whatever happens.
const (
	maxPending = 2048
	maxBatch   = 512
)

var errTooMany = errors.New("more spans than it takes; it is too slow, or tracing.sample too high")

// record is a span that has ended; either request or attempt is set.
type record struct {
	*span
	id, parent trace.SpanID
	start, end time.Time
	request    *Result
	attempt    *AttemptResult
}

// put takes a span that has ended, and never waits for the collector.
func (t *Tracer) put(r record) {
	t.mu.Lock()
	fits := !t.closed && len(t.pending) < maxPending
	if fits {
		t.pending = append(t.pending, r)
	}
	n := len(t.pending)
	t.mu.Unlock()
	if !fits {
		t.dropped.Add(1)
	}
	if n >= maxBatch {
		select {
		case t.full <- struct{}{}:
		default:
		}
	}
}
