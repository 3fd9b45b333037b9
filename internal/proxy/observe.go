package proxy

import (
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"cc-relay/internal/metrics"
	"cc-relay/internal/trace"
)

// observe tells everybody who looks on what became of a request: the metrics, the
// trace, and what is kept for explanations.
func (h *Handler) observe(x *exchange) {
	if x.quiet {
		return
	}
	if x.routed || x.own {
		h.accounts.keep(x)
		if x.live.Told != nil {
			x.live.Told(x.id)
		}
	}
	h.totals.add(x)
	m, class := x.live.Metrics, ""
	if x.demand.Class != "" {
		class = x.live.Classes.Label(x.demand.Class)
	}
	seen := metrics.Request{
		Client: x.client, Class: class, Provider: x.provider, Outcome: x.outcome, Status: x.status,
		Duration: x.took, Overhead: x.overhead(), Wait: x.waited, ThinkingStripped: x.stripped,
		FirstToken: x.firstToken(),
	}
	m.Request(seen)
	if x.span.Recording() {
		x.span.End(trace.Result{
			RequestID: x.id, Client: x.client, Model: x.printable(x.model), Class: class, KeyID: x.keyID, Upstream: x.provider,
			Verdict: x.verdict.String(), Outcome: x.outcome, Attempts: x.attempts, Wait: x.waited, Status: x.status, Error: x.problem(),
		})
	}
}

// firstToken is how long the client waited for its stream to begin; 0: it got none.
func (x *exchange) firstToken() time.Duration {
	if !x.stream || x.status != http.StatusOK {
		return 0
	}
	return x.firstByte
}

// problem is the outcome where it is none that a client hoped for.
func (x *exchange) problem() string {
	if x.outcome == outcomeServed {
		return ""
	}
	return x.outcome
}

// observe tells the metrics and the trace of an attempt.
func (a *answer) observe(x *exchange) {
	class := x.live.Classes.Label(x.demand.Class)
	x.live.Metrics.Attempt(metrics.Attempt{
		Client: x.client, Provider: a.up.Provider.Name(), Class: class, Verdict: a.verdict.String(),
		InputUncached: a.usage.Input, CacheRead: a.usage.CacheRead, CacheWrite: a.usage.CacheWrite, Output: a.usage.Output,
	})
	if !a.span.Recording() {
		return
	}
	seen := trace.AttemptResult{
		Kind: a.up.Origin, Upstream: a.up.Provider.Name(), KeyID: a.lease.KeyID(), Class: class, Model: x.printable(a.model),
		Verdict: a.verdict.String(), Status: a.status,
		Tokens: trace.Tokens{Input: a.usage.Prompt(), CacheRead: a.usage.CacheRead, CacheWrite: a.usage.CacheWrite, Output: a.usage.Output},
	}
	host, port := hostPort(a.sent)
	seen.Host, seen.Port = x.printable(host), port
	if x.demand.Model == "" {
		seen.Operation = "count_tokens"
	}
	if a.verdict != served {
		seen.Error = a.verdict.String()
	}
	a.span.End(seen)
}

func hostPort(r *http.Request) (host string, port int) {
	if r == nil {
		return "", 0
	}
	host, text, err := net.SplitHostPort(r.URL.Host)
	if err != nil {
		return r.URL.Host, 0
	}
	port, _ = strconv.Atoi(text)
	return host, port
}

// Totals are counts since the start, probes not among them.
type Totals struct {
	Requests  int64
	Served    int64 // whole, or the client's own mistake passed on
	Failed    int64 // by the relay or its providers: neither served, refused, nor left by the client
	Refused   int64 // by the relay, before a provider was asked: no token, no room, a mistake in the request
	Failovers int64 // served by another attempt than the first
	Input     int64 // tokens, as Tokens
	CacheRead int64
	Written   int64
	Output    int64
}

type totals struct {
	requests, served, failed, refused, failovers, input, cacheRead, written, output atomic.Int64
}

func (t *totals) add(x *exchange) {
	t.requests.Add(1)
	switch x.outcome {
	case outcomeServed:
		t.served.Add(1)
		if x.attempts > 1 && x.verdict == served {
			t.failovers.Add(1)
		}
	case outcomeFailed, outcomeBroken, outcomePanic:
		t.failed.Add(1)
	case outcomeRefused:
		t.refused.Add(1)
	}
	t.input.Add(int64(x.usage.Input))
	t.cacheRead.Add(int64(x.usage.CacheRead))
	t.written.Add(int64(x.usage.CacheWrite))
	t.output.Add(int64(x.usage.Output))
}

// Totals returns the counts so far.
func (h *Handler) Totals() Totals {
	t := &h.totals
	return Totals{
		Requests: t.requests.Load(), Served: t.served.Load(), Failed: t.failed.Load(), Refused: t.refused.Load(), Failovers: t.failovers.Load(),
		Input: t.input.Load(), CacheRead: t.cacheRead.Load(), Written: t.written.Load(), Output: t.output.Load(),
	}
}
