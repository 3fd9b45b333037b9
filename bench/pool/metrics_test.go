package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/simulator"
)

func TestMeasure(t *testing.T) {
	win := Window{From: time.Minute, To: 3 * time.Minute}
	pool := Pool{Name: "two", Keys: []simulator.Limits{{RPM: 10, ITPM: 1000, OTPM: 100}, {RPM: 10, ITPM: 1000, OTPM: 100}}}
	tr := Trace{
		{Input: 9_000, Output: 100, Parent: -1}, // before the window
		{Input: 3_000, Output: 240, Parent: -1},
		{Input: 2_000, Output: 120, Parent: -1},
		{Input: 1_000, Output: 120, Parent: -1},
		{Input: 7_000, Output: 100, Parent: -1}, // never asked
	}
	at := func(s int) time.Duration { return time.Duration(s) * time.Second }
	ideal := []outcome{
		{status: completed, asked: at(30), served: at(30), uncached: 9_000},
		{status: completed, asked: at(60), served: at(60), read: 2_000, uncached: 1_000},
		{status: completed, asked: at(90), served: at(90), read: 1_000, uncached: 1_000},
		{status: completed, asked: at(120), served: at(120), read: 0, uncached: 1_000},
		{status: unasked},
	}
	got := []outcome{
		{status: completed, asked: at(30), served: at(59), refusals: 5, uncached: 9_000},
		{status: completed, asked: at(60), served: at(60), read: 1_500, uncached: 1_500},
		{status: completed, asked: at(91), served: at(95), refusals: 1, read: 1_000, uncached: 1_000},
		{status: failed, asked: at(120), refusals: 2},
		{status: unasked},
	}
	r := measure(tr, pool, ideal, got, win)
	// Two minutes of both keys are 40 requests, 4,000 input, 400 output; needed are
	// 3, 3,000 and 480: rho is 1.2, and 1/1.2 of 6,480 tokens are possible.
	assert.InDelta(t, 1.2, r.Rho, 1e-9)
	assert.Equal(t, 3, r.Turns)
	assert.InDelta(t, 5_360/5_400.0, r.Goodput, 1e-9)
	assert.InDelta(t, 1_000, r.Refused, 1e-9, "3 of 3 turns")
	assert.InDelta(t, 1_000/3.0, r.Failed, 1e-9)
	assert.InDelta(t, 4, r.P50, 1e-9)
	assert.InDelta(t, 4, r.P99, 1e-9)
	assert.InDelta(t, 2_500/3_000.0, r.Hits, 1e-9)
	assert.InDelta(t, (250+3_125+1_800)/(300+2_500+1_800.0), r.Cost, 1e-9)
	assert.InDelta(t, 360/400.0, r.Used, 1e-9)
}

func TestMeasureOfNothing(t *testing.T) {
	r := measure(Trace{}, pools["2mix"], nil, nil, Window{To: time.Minute})
	assert.Equal(t, Result{Pool: "2mix", Hits: 1}, r)
}

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(99-i)*time.Second)
	}
	for name, tc := range map[string]struct {
		of   []time.Duration
		q    float64
		want float64
	}{
		"none":   {nil, 0.5, 0},
		"one":    {[]time.Duration{time.Second}, 0.99, 1},
		"median": {hundred, 0.5, 50},
		"p99":    {hundred, 0.99, 99},
	} {
		t.Run(name, func(t *testing.T) { assert.InDelta(t, tc.want, quantile(tc.of, tc.q), 1e-9) })
	}
}

func TestWorst(t *testing.T) {
	a := Result{Goodput: 0.9, Refused: 3, Failed: 1, P50: 0, P99: 2, Hits: 1, Cost: 1.1, Used: 0.9}
	b := Result{Goodput: 1.0, Refused: 1, Failed: 4, P50: 1, P99: 1, Hits: 0.8, Cost: 1.0, Used: 0.8}
	assert.Equal(t, Result{Goodput: 0.9, Refused: 3, Failed: 4, P50: 1, P99: 2, Hits: 0.8, Cost: 1.1, Used: 0.8}, worst([]Result{a, b}))
}
