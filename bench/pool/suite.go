package main

import (
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"
)

// strategy makes a policy for a pool; equal seeds make equal choices.
type strategy struct {
	make func(Pool, uint64) Policy
	// peer: what others do, to compare with; played with fewer seeds.
	peer bool
}

var policies = map[string]strategy{
	"reference":        {make: newReference},
	"random":           {func(p Pool, seed uint64) Policy { return &random{newCooling(p, seed)} }, true},
	"round-robin":      {func(p Pool, seed uint64) Policy { return &roundRobin{cooling: newCooling(p, seed)} }, true},
	"weighted-shuffle": {func(p Pool, seed uint64) Policy { return &weightedShuffle{newCooling(p, seed), p} }, true},
	"last-headers":     {newLastHeaders, true},
	"minute-count":     {newMinuteCount, true},
	"error-weights":    {newErrorWeights, true},
	"hash-sticky":      {func(p Pool, seed uint64) Policy { return &hashSticky{newCooling(p, seed)} }, true},
}

func policyNames() []string { return slices.Sorted(maps.Keys(policies)) }

// suite is everything one call of the command plays.
type suite struct {
	policies, workloads, pools []string
	loads                      []float64
	seeds, peerSeeds           int
	firstSeed                  uint64
	window                     Window
	goOn                       bool
	restart                    time.Duration
	file                       Trace // instead of workloads
}

// job is all runs that share a source of traffic.
type job struct {
	workload, pool string
	seed           uint64
	policies       []string
}

// run plays all jobs on all processors, and answers the results in the order of the
// flags, whichever came first.
func (s suite) run(progress io.Writer) ([]Result, error) {
	var jobs []job
	for _, w := range s.workloads {
		for _, p := range s.pools {
			for i := range s.seeds {
				names := slices.DeleteFunc(slices.Clone(s.policies), func(n string) bool { return policies[n].peer && i >= s.peerSeeds })
				jobs = append(jobs, job{w, p, s.firstSeed + uint64(i), names})
			}
		}
	}
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
	for i, j := range jobs {
		next <- i
		fmt.Fprintf(progress, "\r%d of %d: %s on %s, seed %d   ", i+1, len(jobs), j.workload, j.pool, j.seed)
	}
	close(next)
	wg.Wait()
	fmt.Fprintln(progress)
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return slices.Concat(results...), nil
}

func (s suite) play(j job) ([]Result, error) {
	pool := pools[j.pool]
	src, err := s.source(j, pool)
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", j.workload, j.pool, err)
	}
	var results []Result
	for _, load := range s.loads {
		tr, ideal, err := src.at(load, pool, s.window)
		if err != nil {
			return nil, err
		}
		for _, name := range j.policies {
			began := time.Now()
			got, err := s.replay(tr, pool, policies[name], j.seed)
			if err != nil {
				return nil, fmt.Errorf("%s, %s on %s: %w", name, j.workload, j.pool, err)
			}
			r := measure(tr, pool, ideal, got, s.window)
			r.Policy, r.Workload, r.Load, r.Seed = name, j.workload, load, j.seed
			r.Took = time.Since(began).Seconds()
			results = append(results, r)
		}
	}
	return results, nil
}

func (s suite) source(j job, pool Pool) (*source, error) {
	most := slices.Max(s.loads)
	if s.file != nil {
		return replayed(s.file, pool, j.seed, most, s.window)
	}
	return generated(workloads[j.workload], pool, j.seed, most, s.window)
}

func (s suite) replay(tr Trace, pool Pool, of strategy, seed uint64) ([]outcome, error) {
	x, err := newReplay(tr, pool, of.make(pool, seed), s.window.To)
	if err != nil {
		return nil, err
	}
	x.goOn = s.goOn
	if s.restart > 0 {
		x.queue.push(s.restart, func(x *replay, _ *task) {
			if old, ok := x.policy.(Restarter); ok {
				x.policy = old.Restart(x.clock())
				return
			}
			x.policy = of.make(pool, seed)
		}, nil)
	}
	return x.run()
}
