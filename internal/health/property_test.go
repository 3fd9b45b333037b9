package health_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"cc-relay/internal/health"
)

// What the breaker promises, in numbers of its own.
const (
	shortest   = 5 * time.Second
	longest    = time.Minute
	rampTime   = 10 * time.Second
	healthyFor = 70 * time.Second // ramp included
	place      = time.Minute      // of a probe
)

// machine drives a breaker and a naive model of it side by side. The model keeps
// every outcome and decides by counting them.
type machine struct {
	b    *health.Breaker
	told health.State // by onChange

	open    bool
	since   time.Time // it closed, or was made
	ramps   bool      // it closed after an opening
	change  int       // between closed and open
	samples []sample  // since then
	row     int       // failures
	shown   []sample  // what opened it, while open
	opened  time.Time
	passed  []sample // since then

	until   time.Time // open
	openFor time.Duration
	probe   *flight // has the place
	placed  time.Time

	held      health.State
	heldUntil time.Time

	flying     []*flight
	step       int // of the ramp
	asked, let int // in this step
}

type sample struct {
	at     time.Time
	failed bool
}

type flight struct {
	done   func(health.Outcome)
	change int
	open   bool
	spent  bool
}

func newMachine(t *rapid.T) *machine {
	m := &machine{since: time.Now()}
	m.b = health.NewBreaker(func(from, to health.State) {
		if from != m.told || from == to {
			t.Fatalf("told %v to %v, was %v", from, to, m.told)
		}
		m.told = to
	})
	return m
}

func (m *machine) forced() bool { return time.Now().Before(m.heldUntil) }

func (m *machine) state() health.State {
	now := time.Now()
	switch {
	case m.forced():
		return m.held
	case !m.open && m.ramps && now.Before(m.since.Add(rampTime)):
		return health.Ramping
	case !m.open:
		return health.Closed
	case m.probe == nil && now.Before(m.until):
		return health.Open
	}
	return health.HalfOpen
}

// recent are the samples of this second and the nine before, seconds being counted
// from the last change; while open, those that opened it, or those since where an
// operator holds it.
func (m *machine) recent() []sample {
	switch {
	case !m.open:
		return within(m.samples, m.since)
	case m.forced():
		return within(m.passed, m.opened)
	}
	return m.shown
}

func within(samples []sample, since time.Time) (recent []sample) {
	for _, s := range samples {
		if time.Since(since)/time.Second-s.at.Sub(since)/time.Second < 10 {
			recent = append(recent, s)
		}
	}
	return recent
}

func failed(samples []sample) (n int) {
	for _, s := range samples {
		if s.failed {
			n++
		}
	}
	return n
}

func (m *machine) allow(t *rapid.T) {
	before := m.state()
	done, ok := m.b.Allow()
	f := &flight{done: done, change: m.change, open: m.open}
	want := ok
	switch {
	case before == health.Closed:
		want = true
	case before == health.Open:
		want = false
	case before == health.HalfOpen:
		want = m.probe == nil || !time.Now().Before(m.placed.Add(place))
		if want {
			m.probe, m.placed = f, time.Now()
		}
	default:
		m.ramp(t, ok)
	}
	if ok != want {
		t.Fatalf("let in: %v, want %v, %v", ok, want, before)
	}
	if (done != nil) != ok {
		t.Fatal("done without a yes, or a yes without done")
	}
	if ok {
		m.flying = append(m.flying, f)
	}
	m.checkTold(t)
}

func (m *machine) ramp(t *rapid.T, ok bool) {
	if step := int(3 * time.Since(m.since) / rampTime); step != m.step {
		m.step, m.asked, m.let = step, 0, 0
	}
	m.asked++
	if ok {
		m.let++
	}
	share := []float64{0.10, 0.25, 0.50}[m.step] * float64(m.asked)
	if float64(m.let) < share-1 || float64(m.let) > share+1 {
		t.Fatalf("step %d of the ramp let %d of %d in", m.step+1, m.let, m.asked)
	}
}

func (m *machine) try(t *rapid.T) {
	m.flying = append(m.flying, &flight{done: m.b.Try(), change: m.change, open: m.open})
	m.checkTold(t)
}

// finish reports one outcome, sometimes twice.
func (m *machine) finish(t *rapid.T) {
	if len(m.flying) == 0 {
		t.Skip("nothing flies")
	}
	i := rapid.IntRange(0, len(m.flying)-1).Draw(t, "which")
	f := m.flying[i]
	m.report(t, f, outcomes.Draw(t, "outcome"))
	if !rapid.Bool().Draw(t, "again later") {
		m.flying = append(m.flying[:i], m.flying[i+1:]...)
	}
}

func (m *machine) report(t *rapid.T, f *flight, o health.Outcome) {
	f.done(o)
	defer m.checkTold(t)
	if f.spent {
		return
	}
	f.spent = true
	if m.open && o != health.Neither {
		m.passed = append(m.passed, sample{time.Now(), o == health.Failure})
	}
	switch {
	case !m.open && f.change == m.change && !f.open:
		m.sample(o)
	case m.open && f == m.probe:
		m.probe = nil
		m.until = time.Now()
		switch o {
		case health.Success:
			m.close()
		case health.Failure:
			m.reopen()
		}
	case m.open && f.open && o == health.Success:
		m.close()
	}
}

func (m *machine) sample(o health.Outcome) {
	if o == health.Neither {
		return
	}
	m.samples = append(m.samples, sample{time.Now(), o == health.Failure})
	if o == health.Success {
		m.row = 0
		return
	}
	m.row++
	most := 5
	if m.ramps && time.Since(m.since) < rampTime {
		most = 2
	}
	recent := m.recent()
	if m.row < most && (len(recent) < 20 || 2*failed(recent) < len(recent)) {
		return
	}
	if time.Since(m.since) >= healthyFor {
		m.openFor = 0
	}
	m.open, m.shown, m.opened, m.passed = true, recent, time.Now(), nil
	m.change++
	m.reopen()
}

func (m *machine) reopen() {
	m.openFor = max(shortest, min(longest, 2*m.openFor))
	m.until = time.Now().Add(m.openFor)
}

func (m *machine) close() {
	m.open, m.ramps, m.since, m.probe, m.samples, m.row = false, true, time.Now(), nil, nil, 0
	m.step, m.asked, m.let = 0, 0, 0
	m.change++
}

func (m *machine) probed(t *rapid.T) {
	good := rapid.Bool().Draw(t, "good")
	m.b.Probed(good)
	if m.open && m.probe == nil {
		m.until = time.Now()
		if !good {
			m.until = m.until.Add(m.openFor)
		}
	}
	m.checkTold(t)
}

func (m *machine) hold(t *rapid.T) {
	m.held = rapid.SampledFrom([]health.State{health.Open, health.Closed}).Draw(t, "state")
	d := rapid.SampledFrom([]time.Duration{-1, 0, time.Second, 20 * time.Second}).Draw(t, "for")
	m.heldUntil = time.Now().Add(d)
	m.b.Hold(m.held, d)
	m.checkTold(t)
}

// burst sends some requests that all end alike.
func (m *machine) burst(t *rapid.T) {
	o := outcomes.Draw(t, "outcome")
	for range rapid.IntRange(1, 12).Draw(t, "requests") {
		n := len(m.flying)
		m.allow(t)
		time.Sleep(time.Microsecond)
		if len(m.flying) > n {
			m.report(t, m.flying[n], o)
			m.flying = m.flying[:n]
		}
	}
}

func (m *machine) pause(t *rapid.T) { time.Sleep(pauses.Draw(t, "pause")) }

// ends waits until the state changes by itself, or just not.
func (m *machine) ends(t *rapid.T) {
	until := m.b.Status().Until
	if until.IsZero() {
		t.Skip("nothing is to end")
	}
	time.Sleep(time.Until(until) - time.Duration(rapid.IntRange(0, 1).Draw(t, "early")))
}

// checkTold checks that the last call told what it made or met.
func (m *machine) checkTold(t *rapid.T) {
	if m.told != m.state() {
		t.Fatalf("told of %v, it is %v", m.told, m.state())
	}
}

// check compares what may be seen, and that seeing changes nothing.
func (m *machine) check(t *rapid.T) {
	recent := m.recent()
	want := health.Status{State: m.state(), Forced: m.forced(), Samples: len(recent)}
	if len(recent) > 0 {
		want.Failures = float64(failed(recent)) / float64(len(recent))
	}
	switch {
	case want.Forced:
		want.Until = m.heldUntil
	case want.State == health.Ramping:
		want.Until = m.since.Add(rampTime)
	case want.State == health.Open:
		want.Until = m.until
	case want.State == health.HalfOpen && m.probe != nil && time.Now().Before(m.placed.Add(place)):
		want.Until = m.placed.Add(place)
	}
	for range 2 {
		if got := m.b.Status(); got != want {
			t.Fatalf("status %+v, want %+v", got, want)
		}
		if got := m.b.Share(); got != want.Failures {
			t.Fatalf("share %v, want %v", got, want.Failures)
		}
	}
	time.Sleep(10 * time.Nanosecond) // gobreaker is ready for a probe 2 ns after it opened
}

var (
	outcomes = rapid.SampledFrom([]health.Outcome{health.Success, health.Failure, health.Failure, health.Neither})
	pauses   = rapid.SampledFrom([]time.Duration{time.Nanosecond, time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, time.Minute})
)

// Whatever happens in whatever order, the breaker does as the naive model of it:
// nothing passes before its time, one probes at a time, the ramp lets its share in,
// what says nothing counts nothing.
func TestTheBreakerDoesAsItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			m := newMachine(t)
			t.Repeat(map[string]func(*rapid.T){
				"":        m.check,
				"allow":   m.allow,
				"allow2":  m.allow, // more often than the others
				"burst":   m.burst,
				"burst2":  m.burst,
				"try":     m.try,
				"finish":  m.finish,
				"finish2": m.finish,
				"probed":  m.probed,
				"hold":    m.hold,
				"pause":   m.pause,
				"ends":    m.ends,
				"ends2":   m.ends,
			})
		})
	})
}

// However many ask at the moment the open time ends, one of them probes.
func TestNoStampede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		time.Sleep(5 * time.Second)
		var probe func(health.Outcome)
		for range 100 {
			var in atomic.Int32
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() {
					if done, ok := b.Allow(); ok {
						in.Add(1)
						probe = done
					}
				})
			}
			wg.Wait()
			if !assert.EqualValues(t, 1, in.Load()) {
				return
			}
			for range 2 {
				wg.Go(func() { probe(health.Neither) })
			}
			wg.Wait()
		}
	})
}

// Many goroutines do everything at once; time goes on meanwhile. The changes they
// are told make one way from the first state to the last, in whatever order.
func TestStress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var balance [4]atomic.Int64 // times it came to a state less times it went
		var changes atomic.Int64
		b := health.NewBreaker(func(from, to health.State) {
			balance[from].Add(-1)
			balance[to].Add(1)
			changes.Add(1)
		})
		budget := health.NewBudget()
		var granted, sent atomic.Int64
		began := time.Now()
		turn := func(r *rand.Rand) {
			var done func(health.Outcome)
			ok := true
			switch r.IntN(40) {
			case 0:
				b.Probed(r.IntN(2) == 0)
			case 1:
				b.Hold(health.State(r.IntN(2)), time.Duration(r.IntN(2000)-1000)*time.Millisecond)
			case 2:
				done = b.Try()
			default:
				done, ok = b.Allow()
			}
			sent.Add(1)
			budget.Request()
			if budget.Take() {
				granted.Add(1)
			}
			s := b.Status()
			assert.True(t, s.Failures >= 0 && s.Failures <= 1 && s.Samples >= 0, "%+v", s)
			_ = b.Share()
			time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
			if done == nil || !ok {
				return
			}
			o := health.Outcome(r.IntN(3))
			if time.Since(began)/(20*time.Second)%2 == 0 {
				o = health.Success // good times and bad ones
			}
			var wg sync.WaitGroup // the stream's end and the client's leaving may race
			for range 2 {
				wg.Go(func() { done(o) })
			}
			wg.Wait()
		}
		var wg sync.WaitGroup
		for seed := range uint64(64) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, 1))
				for range 300 {
					turn(r)
				}
			})
		}
		wg.Wait()

		b.Hold(health.Closed, time.Hour)
		for s := range balance { // it began closed and ends there
			assert.Zero(t, balance[s].Load(), "%v", health.State(s))
		}
		assert.Greater(t, changes.Load(), int64(20))
		assert.LessOrEqual(t, float64(granted.Load()), 3+0.1*float64(sent.Load())+3*time.Since(began).Seconds())

		b.Hold(health.Closed, 0)
		time.Sleep(2 * time.Minute)
		b.Probed(true)
		if done, ok := b.Allow(); ok {
			done(health.Success)
		}
		time.Sleep(2 * time.Minute)
		const successes = 1000
		for range successes {
			wg.Go(func() {
				done, ok := b.Allow()
				assert.True(t, ok, "it recovers whatever has been")
				done(health.Success)
				done(health.Failure)
			})
		}
		wg.Wait()
		assert.Equal(t, health.Status{Samples: successes}, b.Status())
	})
}
