package main

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"cc-relay/internal/simulator"
)

var errNoDemand = errors.New("the trace asks for nothing in the measured window; give a longer trace or fewer -minutes")

// source makes traces of any load for one pool: sessions are drawn from a trace
// that is a little larger than the largest load.
type source struct {
	base  Trace
	ideal []outcome // of base
	seed  uint64
}

// generated makes a source from a workload; most is the largest load needed.
func generated(w workload, pool Pool, seed uint64, most float64, win Window) (*source, error) {
	const probe = 20.0 // sessions a minute: enough to guess the demand of one
	rho, err := (&source{base: w.generate(seed, probe, win.To)}).rho(pool, win)
	if err != nil {
		return nil, err
	}
	for rate := probe * 1.1 * most / rho; ; rate *= 1.2 {
		s := &source{base: w.generate(seed, rate, win.To), seed: seed}
		if rho, err = s.rho(pool, win); err != nil || rho >= most {
			return s, err
		}
	}
}

// replayed makes a source from a trace read from a file; where it is too small for
// the load, shifted copies are laid over it, with conversations of their own.
func replayed(file Trace, pool Pool, seed uint64, most float64, win Window) (*source, error) {
	for copies := 1; ; copies *= 2 {
		s := &source{base: file.copies(copies, win.To), seed: seed}
		rho, err := s.rho(pool, win)
		if err != nil || rho >= most {
			return s, err
		}
		copies = max(copies, int(most/rho)/2)
	}
}

// copies lays n copies of the trace over each other, each shifted around the
// horizon by the golden section of it; what starts later is left out.
func (tr Trace) copies(n int, horizon time.Duration) Trace {
	var all Trace
	conversations := 0
	for _, t := range tr {
		conversations = max(conversations, t.Conversation+1)
	}
	for c := range n {
		shift := time.Duration(math.Mod(float64(c)*0.6180339887, 1) * float64(horizon))
		first := len(all)
		for _, t := range tr {
			t.Conversation += c * conversations
			if t.Parent >= 0 {
				t.Parent += first
			} else if t.Start < horizon {
				t.Start = (t.Start + shift) % horizon
			}
			all = append(all, t)
		}
	}
	all.link()
	return all.keep(func(session int) bool { return all[session].Start < horizon })
}

// rho plays the ideal run of the base.
func (s *source) rho(pool Pool, win Window) (float64, error) {
	var err error
	if s.ideal, err = idealRun(s.base, win.To); err != nil {
		return 0, err
	}
	need, _ := offered(s.base, s.ideal, win)
	rho := need.over(pool.perWindow(win))
	if rho == 0 {
		return 0, errNoDemand
	}
	return rho, nil
}

// at draws sessions whose demand is load times the tightest summed limit, and plays
// their ideal run. Fewer sessions share less of their prefixes, so that their demand
// is a little more than the base had for them; it is corrected for.
func (s *source) at(load float64, pool Pool, win Window) (Trace, []outcome, error) {
	const near, tries = 0.003, 5
	target := load
	for i := 1; ; i++ {
		tr := s.draw(target, pool, win)
		ideal, err := idealRun(tr, win.To)
		if err != nil {
			return nil, nil, err
		}
		need, _ := offered(tr, ideal, win)
		rho := need.over(pool.perWindow(win))
		if i == tries || rho == 0 || math.Abs(rho-load) < near*load {
			return tr, ideal, nil
		}
		target *= load / rho
	}
}

// draw takes sessions at random until the base's demand for them is reached.
func (s *source) draw(load float64, pool Pool, win Window) Trace {
	needs := make(map[int]demand)
	for i, o := range s.ideal {
		if t := &s.base[i]; o.status != unasked && win.has(o.asked) {
			needs[t.session] = needs[t.session].plus(demand{1, float64(o.uncached), float64(t.Output)})
		}
	}
	order := s.base.sessions()
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(mix(s.seed, uint64(a)), mix(s.seed, uint64(b)))
	})
	limits := pool.perWindow(win)
	taken := make(map[int]bool)
	var sum demand
	for _, first := range order {
		if sum.over(limits) >= load {
			break
		}
		sum = sum.plus(needs[first])
		taken[first] = true
	}
	return s.base.keep(func(session int) bool { return taken[session] })
}

func (p Pool) perWindow(win Window) demand {
	limits := p.sums()
	for i := range limits {
		limits[i] *= (win.To - win.From).Minutes()
	}
	return limits
}

// idealRun plays a trace against one key without limits: nothing waits, and one
// cache, as large as it may be, holds every prefix for as long as providers do.
func idealRun(tr Trace, horizon time.Duration) ([]outcome, error) {
	from, err := newProvider(unlimited, scenario{}, 0, 0)
	if err != nil {
		return nil, err
	}
	x := newReplay(tr, from, alone{}, horizon)
	x.step = math.MaxInt
	return x.run()
}

// alone serves everything with the only key.
type alone struct{}

func (alone) Pick(time.Time, *Request) Decision                { return serve(0) }
func (alone) Answered(time.Time, *Request, *Head)              {}
func (alone) Produced(time.Time, *Request, int)                {}
func (alone) Ended(time.Time, *Request, simulator.Usage, bool) {}
