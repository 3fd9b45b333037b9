package main

import (
	"fmt"
	"math"
	"slices"
)

// bar is what a figure must reach in the worst run, of steady traffic at loads
// above Above and up to UpTo.
type bar struct {
	figure      string
	above, upTo float64
	workload    string // "": any
	least, most float64
}

const noMost = math.MaxFloat64

// bars are what the pool must reach.
var bars = []bar{
	{"goodput", 0, 0.8, "", 0.995, noMost},
	{"goodput", 0.8, 0.95, "", 0.96, noMost},
	{"goodput", 0.95, 1.2, "", 0.95, noMost},
	{"429s per 1,000", 0, 0.8, "", 0, 1},
	{"429s per 1,000", 0.8, 0.95, "", 0, 10},
	{"429s per 1,000", 0.95, 1.2, "", 0, 120},
	{"failed per 1,000", 0, 0.8, "", 0, 0},
	{"failed per 1,000", 0.8, 0.95, "", 0, 25},
	{"delay p50", 0, 0.95, "", 0, 0},
	{"delay p99", 0, 0.8, "", 0, 0.1},
	{"delay p99", 0.8, 0.95, "", 0, 2},
	{"delay p99", 0.95, 1.2, "", 0, 15},
	{"cache hits", 0, 0.95, "agent", 0.99, noMost},
	{"cache hits", 0, 0.95, "conv", 0.97, noMost},
	{"cost", 0, 0.95, "agent", 0, 1.03},
	{"cost", 0, 0.95, "conv", 0, 1.03},
}

// eventBars are what it must reach in scenarios, by their names.
var eventBars = map[string][]bar{
	"dead":    {{figure: "failed per 1,000"}, {figure: "late"}},
	"cut":     {{figure: "beyond in flight"}},
	"cut-one": {{figure: "beyond in flight"}, {figure: "failed per 1,000"}},
	"529":     {{figure: "failed per 1,000"}},
	"restart": {{figure: "failed per 1,000"}},
}

// lead is how many times the goodput of others a pool must reach at a load of 0.95.
type lead struct {
	workload, pool string
	over           string // a policy; "": the best of those to compare with
	times          float64
}

var leads = []lead{
	{"conv", "8mix", "last-headers", 1.08},
	{"agent", "8mix", "last-headers", 2.5},
	{"conv", "8mix", "", 1.02},
	{"agent", "8mix", "", 1.25},
	{"agent", "64mix", "", 2.8},
}

// figure is a result's value under the name that the table has for it.
func (r Result) figure(name string) float64 {
	switch name {
	case "goodput":
		return r.Goodput
	case "429s per 1,000":
		return r.Refused
	case "failed per 1,000":
		return r.Failed
	case "delay p50":
		return r.P50
	case "delay p99":
		return r.P99
	case "cache hits":
		return r.Hits
	case "cost":
		return r.Cost
	case "late":
		return float64(r.Late)
	case "beyond in flight":
		return float64(max(r.Refusals-r.InFlight, 0))
	}
	panic("no figure " + name)
}

func (b bar) missed(r Result) bool {
	v := r.figure(b.figure)
	return v < b.least || v > b.most
}

// barsOf are the bars for the place of r.
func barsOf(r Result) []bar {
	if r.Scenario != "" {
		return eventBars[r.Scenario]
	}
	return slices.DeleteFunc(slices.Clone(bars), func(b bar) bool {
		return r.Load <= b.above || r.Load > b.upTo || b.workload != "" && b.workload != r.Workload
	})
}

// check names each bar that policy misses in the worst of its runs.
func check(policy string, rows []Result) []string {
	var missed []string
	for _, r := range rows {
		if r.Policy != policy {
			continue
		}
		for _, b := range barsOf(r) {
			if b.missed(r) {
				missed = append(missed, fmt.Sprintf("%s: %s %.4g, want %s", r.place(), b.figure, r.figure(b.figure), b.wants()))
			}
		}
		missed = append(missed, behind(r, rows)...)
	}
	return missed
}

func (r Result) place() string {
	name := fmt.Sprintf("%s on %s at %.4g", r.Workload, r.Pool, r.Load)
	if r.Scenario != "" {
		name += ", " + r.Scenario
	}
	return name
}

func (b bar) wants() string {
	if b.most == noMost {
		return fmt.Sprintf("at least %.4g", b.least)
	}
	return fmt.Sprintf("at most %.4g", b.most)
}

// behind compares r with what others reach in the same place.
func behind(r Result, rows []Result) []string {
	var missed []string
	for _, l := range leads {
		if r.Scenario != "" || r.Load != 0.95 || r.Workload != l.workload || r.Pool != l.pool {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(rows), func(o Result) bool {
			return o.place() != r.place() || !policies[o.Policy].other || l.over != "" && o.Policy != l.over
		})
		for _, o := range others {
			if r.Goodput < l.times*o.Goodput {
				missed = append(missed, fmt.Sprintf("%s: goodput %.4g, want %.4g times the %.4g of %s", r.place(), r.Goodput, l.times, o.Goodput, o.Policy))
			}
		}
	}
	return missed
}
