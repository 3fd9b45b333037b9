package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// short is long enough for every policy to meet limits.
var short = Window{From: time.Minute, To: 5 * time.Minute}

// little is a pool small enough for tests.
var little = Pool{Name: "little", Keys: []simulator.Limits{small, middle}}

func shortTrace(t *testing.T, w string, load float64) (Trace, []outcome) {
	t.Helper()
	src, err := generated(workloads[w], little, 7, load, short)
	require.NoError(t, err)
	tr, ideal, err := src.at(load, little, short)
	require.NoError(t, err)
	return tr, ideal
}

func playPolicy(t *testing.T, name string, seed uint64, tr Trace) ([]outcome, Policy) {
	t.Helper()
	p := policies[name].make(little, seed)
	got, err := replayOn(t, tr, little, p, short.To).run()
	require.NoError(t, err)
	return got, p
}

// Every policy brings every turn it was asked for to an end, and decides the same
// when asked the same, unless it draws.
func TestPolicies(t *testing.T) {
	tr, _ := shortTrace(t, "agent", 1.2)
	for _, name := range policyNames() {
		t.Run(name, func(t *testing.T) {
			got, _ := playPolicy(t, name, 1, tr)
			count := make(map[status]int)
			for i, o := range got {
				count[o.status]++
				if o.status == completed {
					require.GreaterOrEqual(t, o.served, o.asked, "turn %d", i)
					require.InDelta(t, tr[i].Input, o.read+o.uncached, 0, "turn %d", i)
				}
			}
			assert.Zero(t, count[pending], "turns without an end: %v", count)
			assert.Positive(t, count[completed], "%v", count)
			if !policies[name].draws {
				again, _ := playPolicy(t, name, 1, tr)
				assert.Equal(t, got, again)
			}
		})
	}
}

func TestNothingIsLostBelowCapacity(t *testing.T) {
	for _, workload := range workloadNames() {
		tr, ideal := shortTrace(t, workload, 0.8)
		for _, name := range []string{"ours", "reference"} {
			t.Run(workload+" "+name, func(t *testing.T) {
				got, _ := playPolicy(t, name, 1, tr)
				r := measure(tr, little, ideal, got, short)
				assert.GreaterOrEqual(t, r.Goodput, 0.99)
				assert.Zero(t, r.Failed)
				assert.LessOrEqual(t, r.Refused, 1.0)
				assert.GreaterOrEqual(t, r.Hits, 0.97)
			})
		}
	}
}

func TestReferenceHoldsNothingAtTheEnd(t *testing.T) {
	tr, _ := shortTrace(t, "conv", 1.2)
	for i := range tr {
		tr[i].Gone = i%10 == 0
	}
	_, p := playPolicy(t, "reference", 1, tr)
	for i, k := range p.(*reference).keys {
		assert.Empty(t, k.unacked, "key %d", i)
		assert.InDelta(t, 0, k.resOut, 1e-6, "key %d", i)
		assert.InDeltaSlice(t, []float64{0, 0}, k.plan[:], 1e-3, "key %d", i)
	}
}
