package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"cc-relay/internal/keypool"
)

// strategy makes a policy for a pool; equal seeds make equal choices, except where
// it draws.
type strategy struct {
	make func(Pool, uint64) Policy
	// few: it is there to compare with, and played with fewer seeds.
	few bool
	// other: it is what others do.
	other bool
	// draws: it draws keys without a seed, and two runs differ.
	draws bool
}

var policies = map[string]strategy{
	"ours":              {make: newOurs("", "")},
	"ours-least-loaded": selector(keypool.StrategyLeastLoaded),
	"ours-round-robin":  selector(keypool.StrategyRoundRobin),
	"ours-random":       selector(keypool.StrategyRandom),
	"ours-weighted":     selector(keypool.StrategyWeighted),
	"reference":         {make: newReference},
	"random":            other(func(p Pool, seed uint64) Policy { return &random{newCooling(p, seed)} }),
	"round-robin":       other(func(p Pool, seed uint64) Policy { return &roundRobin{cooling: newCooling(p, seed)} }),
	"weighted-shuffle":  other(func(p Pool, seed uint64) Policy { return &weightedShuffle{newCooling(p, seed), p} }),
	"last-headers":      other(newLastHeaders),
	"minute-count":      other(newMinuteCount),
	"error-weights":     other(newErrorWeights),
	"hash-sticky":       other(func(p Pool, seed uint64) Policy { return &hashSticky{newCooling(p, seed)} }),
}

// selector is our pool without affinity.
func selector(name string) strategy {
	draws := name == keypool.StrategyRandom || name == keypool.StrategyWeighted
	return strategy{make: newOurs(name, keypool.AffinityOff), few: true, draws: draws}
}

func other(make func(Pool, uint64) Policy) strategy {
	return strategy{make: make, few: true, other: true}
}

// rank is the place in lists: ours, then ours to compare with, then the others.
func (s strategy) rank() int {
	switch {
	case s.other:
		return 2
	case s.few:
		return 1
	}
	return 0
}

func policyNames() []string { return slices.Sorted(maps.Keys(policies)) }

// suite is everything one call of the command plays.
type suite struct {
	policies, workloads []string
	scenarios           []string  // "": nothing but traffic
	pools               []string  // none: those of the scenarios
	loads               []float64 // none: those of the scenarios
	seeds, fewSeeds     int
	large               int // seeds with pools of more than manyKeys keys
	firstSeed           uint64
	window              Window
	stop                bool  // turns that fail end their sessions
	file                Trace // instead of workloads
}

// manyKeys is how many keys are too many for an overload to be played out by those
// who only are there to compare with.
const manyKeys = 16

// job is all runs that share a source of traffic.
type job struct {
	scenario, workload, pool string
	seed                     uint64
	policies                 []string
}

// jobs are in the order of the flags.
func (s suite) jobs() []job {
	var jobs []job
	for _, sc := range s.scenarios {
		for _, w := range s.workloads {
			for _, p := range s.poolsOf(scenarios[sc]) {
				seeds := s.seeds
				if len(pools[p].Keys) > manyKeys {
					seeds = min(seeds, s.large)
				}
				for i := range seeds {
					names := slices.DeleteFunc(slices.Clone(s.policies), func(n string) bool { return policies[n].few && i >= s.fewSeeds })
					if len(names) > 0 {
						jobs = append(jobs, job{sc, w, p, s.firstSeed + uint64(i), names})
					}
				}
			}
		}
	}
	return jobs
}

// run plays all jobs on all processors, and answers the results in the order of the
// jobs, whichever ended first.
func (s suite) run(progress io.Writer) ([]Result, error) {
	jobs := s.jobs()
	order := make([]int, len(jobs)) // the longest first, so that none is left alone at the end
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(jobs[b].size(), jobs[a].size()) })
	results := make([][]Result, len(jobs))
	errs := make([]error, len(jobs))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(jobs)) {
		wg.Go(func() {
			for i := range next {
				results[i], errs[i] = s.play(jobs[i])
			}
		})
	}
	for n, i := range order {
		next <- i
		_, _ = fmt.Fprintf(progress, "\r%d of %d: %s on %s, seed %d   ", n+1, len(jobs), jobs[i].workload, jobs[i].pool, jobs[i].seed)
	}
	close(next)
	wg.Wait()
	_, _ = fmt.Fprintln(progress)
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return slices.Concat(results...), nil
}

// size grows with the time that a job takes.
func (j job) size() float64 {
	sums := pools[j.pool].sums()
	return sums[out] * float64(len(j.policies))
}

func (s suite) play(j job) ([]Result, error) {
	pool, sc := pools[j.pool], scenarios[j.scenario]
	loads := s.loadsOf(sc)
	src, err := s.source(j, pool, slices.Max(loads))
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", j.workload, j.pool, err)
	}
	var results []Result
	for _, load := range loads {
		tr, ideal, err := src.at(load, pool, s.window)
		if err != nil {
			return nil, err
		}
		for _, name := range j.policies {
			if policies[name].few && len(pool.Keys) > manyKeys && load > 1 {
				continue // would take half of the time of all
			}
			began := time.Now()
			x, err := s.replay(tr, pool, sc, policies[name], j.seed)
			if err != nil {
				return nil, fmt.Errorf("%s, %s on %s: %w", name, j.workload, j.pool, err)
			}
			r := measure(tr, pool, ideal, x.outcomes, s.window)
			r.Scenario, r.Policy, r.Workload, r.Load, r.Seed = j.scenario, name, j.workload, load, j.seed
			r.tally = x.provider.tally
			r.Took = time.Since(began).Seconds()
			results = append(results, r)
		}
	}
	return results, nil
}

func (s suite) loadsOf(sc scenario) []float64 {
	if s.loads == nil {
		return []float64{sc.load}
	}
	return s.loads
}

func (s suite) poolsOf(sc scenario) []string {
	if s.pools == nil {
		return []string{sc.pool}
	}
	return s.pools
}

func (s suite) source(j job, pool Pool, most float64) (*source, error) {
	if s.file != nil {
		return replayed(s.file, pool, j.seed, most, s.window)
	}
	return generated(workloads[j.workload], pool, j.seed, most, s.window)
}

// replay plays one run to its end.
func (s suite) replay(tr Trace, pool Pool, sc scenario, of strategy, seed uint64) (*replay, error) {
	event := s.window.To - lastMinutes
	if sc == (scenario{}) {
		event = 0
	}
	from, err := newProvider(pool, sc, event, seed)
	if err != nil {
		return nil, err
	}
	x := newReplay(tr, from, of.make(pool, seed), s.window.To)
	x.stop = s.stop
	x.restarted = func(now time.Time, old Policy) Policy {
		if keeps, ok := old.(Restarter); ok {
			return keeps.Restart(now)
		}
		return of.make(pool, seed)
	}
	_, err = x.run()
	return x, err
}
