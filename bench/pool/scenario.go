package main

import (
	"maps"
	"math"
	"slices"
	"time"

	"cc-relay/internal/simulator"
)

// scenario is what happens in a run beside its traffic; the zero scenario is
// nothing. What it names happens lastMinutes before the end, except for overload.
type scenario struct {
	pool       string  // it is played on, unless flags say otherwise, …
	load       float64 // … and at
	dies       int     // so many keys answer 401
	cuts       int     // the limits of so many keys fall to a quarter
	overloaded float64 // the share of requests that are answered 529, all the time
	restarts   bool    // the relay is restarted
}

// lastMinutes is less than the time after which a pool asks a dead key again.
const lastMinutes = 4 * time.Minute

var scenarios = map[string]scenario{
	"":     {},
	"dead": {pool: "8eq", load: 0.5, dies: 1},
	// A quarter of a large key still holds any prompt, that of a small one none: at
	// more than 0.4 of what is left the pool is too small for what moves.
	"cut":     {pool: "8mix", load: 0.1, cuts: math.MaxInt},
	"cut-one": {pool: "8eq", load: 0.5, cuts: 1},
	"529":     {pool: "8eq", load: 0.5, overloaded: 0.01},
	"restart": {pool: "8eq", load: 0.8, restarts: true},
}

func scenarioNames() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(scenarios)), func(n string) bool { return n == "" })
}

// cut is the pool with a quarter of the limits of the first n keys.
func (p Pool) cut(n int) Pool {
	keys := slices.Clone(p.Keys)
	for i := range keys[:min(n, len(keys))] {
		l := &keys[i]
		*l = simulator.Limits{RPM: l.RPM / 4, ITPM: l.ITPM / 4, OTPM: l.OTPM / 4}
	}
	return Pool{Name: p.Name, Keys: keys}
}
