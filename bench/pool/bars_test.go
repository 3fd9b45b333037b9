package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestBars(t *testing.T) {
	good := Result{Policy: "reference", Workload: "agent", Pool: "8mix", Load: 0.8, Goodput: 1, Hits: 1, Cost: 1}
	for name, tc := range map[string]struct {
		change func(*Result)
		want   []string
	}{
		"good":              {func(*Result) {}, nil},
		"goodput":           {func(r *Result) { r.Goodput = 0.99 }, []string{"agent on 8mix at 0.8: goodput 0.99, want at least 0.995"}},
		"more load, less":   {func(r *Result) { r.Load, r.Goodput = 0.95, 0.97 }, nil},
		"one failed":        {func(r *Result) { r.Failed = 0.1 }, []string{"agent on 8mix at 0.8: failed per 1,000 0.1, want at most 0"}},
		"hits of chat":      {func(r *Result) { r.Workload, r.Hits = "conv", 0.98 }, nil},
		"hits of agents":    {func(r *Result) { r.Hits = 0.98 }, []string{"agent on 8mix at 0.8: cache hits 0.98, want at least 0.99"}},
		"another policy":    {func(r *Result) { r.Policy, r.Goodput = "random", 0.1 }, nil},
		"429s where many":   {func(r *Result) { r.Load, r.Refused = 1.2, 100 }, nil},
		"late":              {func(r *Result) { r.Scenario, r.Late = "dead", 1 }, []string{"agent on 8mix at 0.8, dead: late 1, want at most 0"}},
		"429s in flight":    {func(r *Result) { r.Scenario, r.Refusals, r.InFlight = "cut", 9, 9 }, nil},
		"429s beyond":       {func(r *Result) { r.Scenario, r.Refusals, r.InFlight = "cut", 9, 8 }, []string{"agent on 8mix at 0.8, cut: beyond in flight 1, want at most 0"}},
		"delay in scenario": {func(r *Result) { r.Scenario, r.P99 = "dead", 3 }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := good
			tc.change(&r)
			assert.Equal(t, tc.want, check("reference", []Result{r}))
		})
	}
}

func TestLeads(t *testing.T) {
	at := func(policy, workload string, goodput float64) Result {
		return Result{Policy: policy, Workload: workload, Pool: "8mix", Load: 0.95, Goodput: goodput, Hits: 1, Cost: 1}
	}
	for name, tc := range map[string]struct {
		rows []Result
		want []string
	}{
		"ahead":      {[]Result{at("reference", "agent", 1), at("last-headers", "agent", 0.39), at("random", "agent", 0.79)}, nil},
		"elsewhere":  {[]Result{at("reference", "agent", 1), at("random", "conv", 0.99)}, nil},
		"other best": {[]Result{at("reference", "agent", 1), at("random", "agent", 0.81)}, []string{"agent on 8mix at 0.95: goodput 1, want 1.25 times the 0.81 of random"}},
		"headers":    {[]Result{at("reference", "agent", 1), at("last-headers", "agent", 0.5)}, []string{"agent on 8mix at 0.95: goodput 1, want 2.5 times the 0.5 of last-headers"}},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, tc.want, check("reference", tc.rows)) })
	}
}

// A figure that a bar names must exist.
func TestBarsNameFigures(t *testing.T) {
	all := slices.Concat(slices.Collect(maps.Values(eventBars))...)
	for _, b := range append(all, bars...) {
		assert.NotPanics(t, func() { Result{}.figure(b.figure) }, b.figure)
	}
}

func TestEveryScenarioHasBars(t *testing.T) {
	assert.ElementsMatch(t, scenarioNames(), slices.Collect(maps.Keys(eventBars)))
}
