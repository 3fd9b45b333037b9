// Package health remembers how upstreams fare and says what follows: a Breaker
// keeps requests away from an upstream that fails, a Budget bounds how many
// requests are sent once more. It sends nothing, chooses nothing and logs nothing.
package health

import (
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// The numbers of the breaker. Their source is the project's decisions, section 2,
// "Breaker"; those marked * are chosen here.
const (
	window       = 10 * time.Second // of the samples that count
	windowStep   = time.Second      // * it moves in such steps: at least 9 s count
	maxFailures  = 5                // in a row open it
	minSamples   = 20               // so many, half of them failures, open it
	firstOpen    = 5 * time.Second
	longestOpen  = time.Minute      // the open time doubles up to this
	longestProbe = time.Minute      // * then a probe without an answer loses its place
	ramp         = 10 * time.Second // in three steps, then everybody is let in
	rampFailures = 2                // * in a row reopen it
	forget       = time.Minute      // * fully closed: the open time is short again
)

// State is what a breaker does with requests.
type State int

// The states. A new breaker is Closed.
const (
	Closed   State = iota // all are let in
	Open                  // none is let in
	HalfOpen              // the open time is over: one probe is let in, or is out
	Ramping               // a probe went well: 10, 25, then 50 % are let in
)

func (s State) String() string {
	names := [...]string{"closed", "open", "half-open", "ramping"}
	if s < 0 || int(s) >= len(names) {
		return "unknown"
	}
	return names[s]
}

// Outcome is what a request that was let in tells about the upstream.
type Outcome int

// The outcomes. Any other value counts as Neither.
const (
	Success Outcome = iota // the upstream works
	Failure                // it does not
	// Neither says nothing about the upstream and counts neither way: the client
	// left or is at fault, the pool had no key, the key is at fault. It makes room
	// for the next probe at once.
	Neither
)

var (
	errFailure = errors.New("health: failure")
	errNeither = errors.New("health: neither")
)

// err is the outcome as gobreaker has it.
func (o Outcome) err() error {
	switch o {
	case Success:
		return nil
	case Failure:
		return errFailure
	}
	return errNeither
}

// pass is one request that was let in.
type pass struct {
	generation uint64
	open       bool // it was sent while the breaker was not closed
	spent      bool // its outcome has come
}

// Breaker keeps requests away from one upstream, for one class of models, while it
// fails. It opens at 5 failures in a row, or at a failure that makes at least half
// of at least 20 samples of the last 10 s. It stays open for 5 s; then one request
// probes. A good probe closes it, and over 10 s a growing share of the requests is
// let in. A bad one opens it for twice as long, up to 60 s, and so do 2 failures in
// a row while it ramps, or whatever opens it before it has been fully closed for
// 60 s.
//
// Samples count when their outcome comes, however long the request took, and only
// while the breaker has not changed between closed and open since it was let in.
// All methods may be called concurrently.
type Breaker struct {
	onChange func(from, to State)

	mu   sync.Mutex
	now  time.Time // when mu was locked
	told State     // what the last caller saw

	// gate counts the samples, decides when to open and keeps the probe's place.
	// How long it stays open is not its matter: it is ready for a probe at once,
	// and until says when one may come.
	gate       *gobreaker.TwoStepCircuitBreaker[struct{}]
	open       bool             // gate is not closed
	generation uint64           // of the samples that count
	failures   int              // in a row; gate forgets those that leave the window
	tripped    gobreaker.Counts // when gate last opened by its samples
	passed     tally            // since then, while it is not closed

	openFor time.Duration // this time, or last time
	until   time.Time     // nobody is let in: the end of the open time or of the probe's place
	prober  *pass         // has the probe's place; nil: nobody
	settle  func(error)   // gate's, for prober

	closed time.Time // when a good probe closed it last; zero: never, so long ago
	credit int       // percent of a request that the ramp may let in

	held      State // Open or Closed
	heldUntil time.Time

	passes []pass // unused ones: a slice saves an allocation each
}

// NewBreaker returns a closed breaker. onChange is told each change of Status's
// State once, by the call that makes it or is the first to meet it: time alone
// calls nobody. It is called outside the lock, so that two changes at the same
// moment may be told in either order. It may be nil.
func NewBreaker(onChange func(from, to State)) *Breaker {
	b := &Breaker{onChange: onChange}
	b.gate = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Interval:      window,
		BucketPeriod:  windowStep,
		Timeout:       1, // the shortest: 0 stands for 60 s
		ReadyToTrip:   b.tripsLocked,
		OnStateChange: b.changedLocked,
		IsExcluded:    func(err error) bool { return errors.Is(err, errNeither) },
	})
	return b
}

// Allow asks whether a request may be sent now; false means not now. Where it may,
// done must be called with what came of it, as soon as that is known, on every
// path. Calling it again does nothing. A probe whose done has not been called for
// 60 s loses its place to the next; its success still counts.
func (b *Breaker) Allow() (done func(Outcome), ok bool) {
	b.lock()
	defer b.unlock()
	switch {
	case b.now.Before(b.heldUntil):
		ok = b.held == Closed
	case b.open:
		return b.probeLocked()
	default:
		ok = !b.rampingLocked() || b.turnLocked()
	}
	if !ok {
		return nil, false
	}
	return b.done(b.passLocked()), true
}

// Try lets a request through whatever the state, even where an operator holds the
// breaker open: for the least bad of upstreams that are all open. done is as for
// Allow. While the breaker is open a success counts as a good probe and a failure
// changes nothing; otherwise both are samples.
func (b *Breaker) Try() (done func(Outcome)) {
	b.lock()
	defer b.unlock()
	return b.done(b.passLocked())
}

// Hold is an operator's word: for d the breaker refuses all (Open) or lets all
// through as Try does (any other state). It replaces an earlier word; 0 or less
// takes it back. Below it the breaker goes on as its samples and its times have it,
// and that is what it returns to.
func (b *Breaker) Hold(state State, d time.Duration) {
	b.lock()
	defer b.unlock()
	if state != Open {
		state = Closed
	}
	b.held, b.heldUntil = state, b.now.Add(d)
}

// Probed tells what an active check found. While the breaker is open, good ends the
// open time, so that the next request probes; bad starts it again, no longer than
// it was. It changes nothing while a probe is out or the breaker is closed.
func (b *Breaker) Probed(good bool) {
	b.lock()
	defer b.unlock()
	switch {
	case !b.open || b.prober != nil:
	case good:
		b.until = b.now
	default:
		b.until = b.now.Add(b.openFor)
	}
}

// Status is what a breaker does and why.
type Status struct {
	State State
	// Until is when the state ends by itself: what an operator holds, the open
	// time, the probe's place, the ramp. Zero where nothing is to end.
	Until    time.Time
	Forced   bool    // State is an operator's
	Failures float64 // share of the samples, 0 to 1; 0 where there are none
	// Samples are those of the last 10 s and since the breaker last closed. While it
	// is open or half-open they are the ones that opened it, however long ago; where
	// an operator holds it then, what came of the requests of the last 10 s.
	Samples int
}

// Status returns what the breaker does now. It changes nothing.
func (b *Breaker) Status() Status {
	b.lock()
	defer b.mu.Unlock()
	s := Status{State: b.stateLocked(), Forced: b.now.Before(b.heldUntil)}
	s.Failures, s.Samples = b.samplesLocked()
	switch {
	case s.Forced:
		s.Until = b.heldUntil
	case s.State == Ramping:
		s.Until = b.closed.Add(ramp)
	case b.open && b.now.Before(b.until):
		s.Until = b.until
	}
	return s
}

// Share returns Status's Failures.
func (b *Breaker) Share() float64 {
	b.lock()
	defer b.mu.Unlock()
	share, _ := b.samplesLocked()
	return share
}

func (b *Breaker) lock() {
	b.mu.Lock()
	b.now = time.Now()
}

// unlock tells the change of state that the caller made or was the first to meet.
func (b *Breaker) unlock() {
	from, to := b.told, b.stateLocked()
	b.told = to
	b.mu.Unlock()
	if from != to && b.onChange != nil {
		b.onChange(from, to)
	}
}

func (b *Breaker) stateLocked() State {
	switch {
	case b.now.Before(b.heldUntil):
		return b.held
	case b.open && b.prober == nil && b.now.Before(b.until):
		return Open
	case b.open:
		return HalfOpen
	case b.rampingLocked():
		return Ramping
	}
	return Closed
}

func (b *Breaker) rampingLocked() bool {
	return b.now.Sub(b.closed) < ramp
}

// turnLocked reports whether the ramp lets this request in. It counts: of n
// requests in a step its share of n is let in, give or take one.
func (b *Breaker) turnLocked() bool {
	b.credit += [...]int{10, 25, 50}[3*b.now.Sub(b.closed)/ramp]
	if b.credit < 100 {
		return false
	}
	b.credit -= 100
	return true
}

// probeLocked lets one request in once the time has come.
func (b *Breaker) probeLocked() (func(Outcome), bool) {
	if b.now.Before(b.until) {
		return nil, false
	}
	if b.prober != nil {
		b.answerLocked(Neither)
	}
	settle, err := b.gate.Allow()
	if err != nil { // it opened within this nanosecond
		return nil, false
	}
	b.settle, b.prober, b.until = settle, b.passLocked(), b.now.Add(longestProbe)
	return b.done(b.prober), true
}

func (b *Breaker) passLocked() *pass {
	if len(b.passes) == 0 {
		b.passes = make([]pass, 32)
	}
	p := &b.passes[0]
	b.passes = b.passes[1:]
	p.generation, p.open = b.generation, b.open
	return p
}

func (b *Breaker) done(p *pass) func(Outcome) {
	return func(o Outcome) { b.report(p, o) }
}

func (b *Breaker) report(p *pass, o Outcome) {
	b.lock()
	defer b.unlock()
	if p.spent {
		return
	}
	p.spent = true
	if b.open {
		b.passed.count(o, b.now)
	}
	switch {
	case !b.open && p.generation == b.generation:
		b.sampleLocked(o)
	case b.open && p == b.prober:
		b.answerLocked(o)
	case b.open && p.open && o == Success:
		b.recoverLocked()
	}
}

// sampleLocked counts one outcome. It takes and gives gate's place at once: gate
// books an outcome under the time of its request, and would drop those of requests
// that took longer than the window, timeouts before all.
func (b *Breaker) sampleLocked(o Outcome) {
	switch o {
	case Success:
		b.failures = 0
	case Failure:
		b.failures++
	}
	if settle, err := b.gate.Allow(); err == nil { // closed, it refuses nobody
		settle(o.err())
	}
}

// answerLocked gives the probe's place back.
func (b *Breaker) answerLocked(o Outcome) {
	settle := b.settle
	b.settle, b.prober, b.until = nil, nil, time.Time{}
	settle(o.err())
}

// recoverLocked closes the breaker; a probe that is out is answered by this.
func (b *Breaker) recoverLocked() {
	if b.settle == nil {
		settle, err := b.gate.Allow()
		if err != nil { // it opened within this nanosecond
			return
		}
		b.settle = settle
	}
	b.answerLocked(Success)
}

// tripsLocked is asked by gate after each failure while it is closed.
func (b *Breaker) tripsLocked(c gobreaker.Counts) bool {
	most := maxFailures
	if b.rampingLocked() {
		most = rampFailures
	}
	samples := c.TotalSuccesses + c.TotalFailures
	trips := b.failures >= most || samples >= minSamples && 2*c.TotalFailures >= samples
	if trips {
		b.tripped = c
	}
	return trips
}

// changedLocked is told by gate.
func (b *Breaker) changedLocked(_ string, from, to gobreaker.State) {
	switch to {
	case gobreaker.StateOpen:
		b.openFor = min(2*b.openFor, longestOpen)
		if from == gobreaker.StateClosed {
			b.passed = tally{since: b.now}
			if b.now.Sub(b.closed) >= ramp+forget {
				b.openFor = firstOpen
			}
		}
		b.open, b.until = true, b.now.Add(b.openFor)
	case gobreaker.StateClosed:
		b.open, b.closed = false, b.now
		b.credit = 90 // the first is let in
	default:
		return
	}
	b.failures = 0
	b.generation++
}

func (b *Breaker) samplesLocked() (share float64, samples int) {
	var good, bad int
	switch {
	case !b.open:
		_ = b.gate.State() // moves the window; Counts alone does not
		c := b.gate.Counts()
		good, bad = int(c.TotalSuccesses), int(c.TotalFailures)
	case b.now.Before(b.heldUntil):
		good, bad = b.passed.sum(b.now)
	default:
		good, bad = int(b.tripped.TotalSuccesses), int(b.tripped.TotalFailures)
	}
	return float64(bad) / float64(max(1, good+bad)), good + bad
}
