package health

import "time"

const steps = window / windowStep

// tally counts the outcomes of the window, as gate does while it is closed.
type tally struct {
	since time.Time // the first step begins
	steps [steps]step
}

type step struct {
	n         time.Duration // which it is
	good, bad int
}

func (t *tally) count(o Outcome, now time.Time) {
	n := now.Sub(t.since) / windowStep
	s := &t.steps[n%steps]
	if s.n != n {
		*s = step{n: n}
	}
	switch o {
	case Success:
		s.good++
	case Failure:
		s.bad++
	}
}

// sum is what came within the window.
func (t *tally) sum(now time.Time) (good, bad int) {
	n := now.Sub(t.since) / windowStep
	for _, s := range t.steps {
		if n-s.n < steps {
			good, bad = good+s.good, bad+s.bad
		}
	}
	return good, bad
}
