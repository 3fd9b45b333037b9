package main

import (
	"slices"
	"time"
)

// Window is the part of a run that counts: turns first asked in [From, To).
type Window struct{ From, To time.Duration }

func (w Window) has(t time.Duration) bool { return t >= w.From && t < w.To }

// Result is what one policy reached in one run.
type Result struct {
	Scenario string `json:",omitempty"`
	Policy   string
	Workload string
	Pool     string
	Load     float64 // as asked for
	Seed     uint64
	Rho      float64 // as it is: the ideal run's demand over the tightest summed limit
	Turns    int     // first asked in the window
	// Goodput is prompt and output tokens of completed turns over min(1, 1/Rho) of
	// those that the ideal run was asked for.
	Goodput float64
	// Refused are 429s of providers, Failed turns given up by their client, both per
	// 1,000 turns asked.
	Refused, Failed float64
	// P50 and P99 are quantiles of the time from the first asking to the dispatch
	// that was served, in seconds, over completed turns.
	P50, P99 float64
	// Hits is cached tokens read by completed turns over what they read in the ideal
	// run; Cost is 0.1·read + 1.25·uncached + 5·output over the same.
	Hits, Cost float64
	// Used is the demand of completed turns over the summed limit, of the limit used
	// most: above 1 where a bucket was full at the start of the window.
	Used  float64
	tally // of a scenario
	// Took is the time of the computation, in seconds.
	Took float64
}

// offered is what the ideal run was asked for in the window.
func offered(tr Trace, ideal []outcome, w Window) (d demand, tokens float64) {
	for i, o := range ideal {
		if o.status == unasked || !w.has(o.asked) {
			continue
		}
		t := &tr[i]
		d = d.plus(demand{1, float64(o.uncached), float64(t.Output)})
		tokens += float64(t.Input + t.Output)
	}
	return d, tokens
}

// measure compares what a policy got with the ideal run of the same trace.
func measure(tr Trace, pool Pool, ideal, got []outcome, w Window) Result {
	need, tokens := offered(tr, ideal, w)
	r := Result{Pool: pool.Name, Rho: need.over(pool.perWindow(w))}
	served := 0.0
	var own, best bill
	var used demand
	var delays []time.Duration
	for i, o := range got {
		if o.status == unasked || !w.has(o.asked) {
			continue
		}
		r.Turns++
		r.Refused += float64(o.refusals)
		t := &tr[i]
		switch o.status {
		case failed:
			r.Failed++
		case completed, gone:
			served += float64(t.Input + t.Output)
			used = used.plus(demand{1, float64(o.uncached), float64(t.Output)})
			delays = append(delays, o.served-o.asked)
			if ideal[i].status != unasked {
				own = own.add(o, t.Output)
				best = best.add(ideal[i], t.Output)
			}
		}
	}
	r.Used = used.over(pool.perWindow(w))
	r.Goodput = ratio(served, tokens*min(1, ratio(1, r.Rho)))
	r.Refused = ratio(1000*r.Refused, float64(r.Turns))
	r.Failed = ratio(1000*r.Failed, float64(r.Turns))
	r.P50, r.P99 = quantile(delays, 0.50), quantile(delays, 0.99)
	r.Hits = 1
	if best.read > 0 {
		r.Hits = own.read / best.read
	}
	r.Cost = ratio(own.cost(), best.cost())
	return r
}

type bill struct{ read, uncached, output float64 }

func (b bill) add(o outcome, output int) bill {
	return bill{b.read + float64(o.read), b.uncached + float64(o.uncached), b.output + float64(output)}
}

// cost is in units of an uncached input token; writing to the cache costs 1.25.
// Source: https://platform.claude.com/docs/en/about-claude/pricing.
func (b bill) cost() float64 { return 0.1*b.read + 1.25*b.uncached + 5*b.output }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// quantile is the smallest value that a share q of all does not exceed, in
// seconds; 0 of none. It sorts values.
func quantile(values []time.Duration, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	at := int(q * float64(len(values)))
	return values[min(at, len(values)-1)].Seconds()
}
