package ratelimit_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"cc-relay/internal/ratelimit"
)

// unit is one request or token in the model's exact arithmetic: a limit of L a
// minute refills L of unit's parts each nanosecond.
const unit = int64(time.Minute)

// event is something that happened to one bucket. The model knows no levels; it
// replays the whole history each time it is asked.
type event struct {
	at    time.Duration
	limit int64 // ≥ 0: the limit from now on; -1: unchanged
	held  int64 // what is in flight, for a limit that was unknown
	taken int64 // negative: given back
	seen  int64 // ≥ 0: an observed level; -1: none
}

type model struct{ events []event }

func (m *model) took(at time.Duration, n int) {
	m.events = append(m.events, event{at, -1, 0, int64(n), -1})
}
func (m *model) saw(at time.Duration, n int) {
	m.events = append(m.events, event{at, -1, 0, 0, int64(n)})
}
func (m *model) limited(at time.Duration, limit, held int) {
	m.events = append(m.events, event{at, int64(limit), int64(held), 0, -1})
}

// replay returns the limit in force and the level, in parts, at a time.
func (m *model) replay(at time.Duration) (limit, level int64) {
	var last time.Duration
	for _, e := range append(m.events, event{at, -1, 0, 0, -1}) {
		level = min(limit*unit, level+limit*int64(e.at-last))
		last = e.at
		if e.limit >= 0 {
			if limit == 0 {
				level = (e.limit - e.held) * unit
			}
			limit = e.limit
		}
		if e.seen >= 0 {
			level = min(level, e.seen*unit)
		}
		level = min(level-e.taken*unit, limit*unit)
		if limit == 0 {
			level = 0
		}
	}
	return limit, level
}

func tokens(largest int) *rapid.Generator[ratelimit.Tokens] {
	return rapid.Custom(func(t *rapid.T) ratelimit.Tokens {
		return ratelimit.Tokens{Input: rapid.IntRange(-10, largest).Draw(t, "input"), Output: rapid.IntRange(-10, largest/4).Draw(t, "output")}
	})
}

func limits() *rapid.Generator[ratelimit.Limits] {
	return rapid.Custom(func(t *rapid.T) ratelimit.Limits {
		return ratelimit.Limits{RPM: rapid.IntRange(-1, 20).Draw(t, "RPM"), ITPM: rapid.IntRange(-1, 5000).Draw(t, "ITPM"), OTPM: rapid.IntRange(-1, 1000).Draw(t, "OTPM")}
	})
}

// machine drives a limiter and three models side by side.
type machine struct {
	limiter                 *ratelimit.TokenBucketLimiter
	start                   time.Time
	now, wrote              time.Duration // wrote: when levels last changed
	requests, input, output model
	flying                  []ratelimit.Tokens
}

func (m *machine) held() (sum ratelimit.Tokens) {
	for _, est := range m.flying {
		sum.Input += max(0, est.Input)
		sum.Output += max(0, est.Output)
	}
	return sum
}

// allows is the model's answer; sure is false where rounding may decide.
func (m *machine) allows(est ratelimit.Tokens) (ok, sure bool) {
	ok, sure = true, true
	for _, b := range []struct {
		model *model
		need  int
	}{{&m.requests, 1}, {&m.input, max(0, est.Input)}, {&m.output, max(0, est.Output)}} {
		limit, level := b.model.replay(m.now)
		missing := int64(b.need)*unit - level
		if limit == 0 || missing <= 0 {
			continue
		}
		ok = false
		if float64(missing) < 2e-6*float64(unit) {
			sure = false
		}
	}
	return ok, sure
}

func (m *machine) setLimit(to ratelimit.Limits) {
	held := m.held()
	m.limiter.SetLimitAt(m.start.Add(m.now), to)
	m.wrote = m.now
	m.requests.limited(m.now, max(0, to.RPM), len(m.flying))
	m.input.limited(m.now, max(0, to.ITPM), held.Input)
	m.output.limited(m.now, max(0, to.OTPM), held.Output)
}

func (m *machine) allow(t *rapid.T) {
	est := tokens(6000).Draw(t, "est")
	want, sure := m.allows(est)
	got := m.limiter.AllowAt(m.start.Add(m.now), est)
	m.wrote = m.now
	if got != want && sure {
		t.Fatalf("Allow(%+v) at %s = %t, want %t", est, m.now, got, want)
	}
	if got {
		m.requests.took(m.now, 1)
		m.input.took(m.now, max(0, est.Input))
		m.output.took(m.now, max(0, est.Output))
		m.flying = append(m.flying, est)
	}
}

func (m *machine) settle(t *rapid.T) {
	if len(m.flying) == 0 {
		t.Skip("nothing is in flight")
	}
	i := rapid.IntRange(0, len(m.flying)-1).Draw(t, "which")
	est, used := m.flying[i], tokens(8000).Draw(t, "used")
	m.flying = append(m.flying[:i:i], m.flying[i+1:]...)
	late := m.now - time.Duration(rapid.IntRange(0, int(2*time.Minute)).Draw(t, "late"))
	m.limiter.SettleAt(m.start.Add(late), est, used)
	m.wrote = max(m.wrote, late) // a time before the last is taken as the last
	m.input.took(m.wrote, max(0, used.Input)-max(0, est.Input))
	m.output.took(m.wrote, max(0, used.Output)-max(0, est.Output))
}

func (m *machine) lower(t *rapid.T) {
	seen := ratelimit.Levels{
		Requests: rapid.IntRange(-1, 25).Draw(t, "requests"),
		Input:    rapid.IntRange(-1, 6000).Draw(t, "input"),
		Output:   rapid.IntRange(-1, 1200).Draw(t, "output"),
	}
	m.limiter.LowerAt(m.start.Add(m.now), seen)
	m.wrote = m.now
	m.requests.saw(m.now, seen.Requests)
	m.input.saw(m.now, seen.Input)
	m.output.saw(m.now, seen.Output)
}

func (m *machine) check(t *rapid.T) {
	u := m.limiter.UsageAt(m.start.Add(m.now))
	for _, b := range []struct {
		name  string
		model *model
		limit int
		level float64
	}{{"requests", &m.requests, u.Limits.RPM, u.Requests}, {"input", &m.input, u.Limits.ITPM, u.Input}, {"output", &m.output, u.Limits.OTPM, u.Output}} {
		limit, parts := b.model.replay(m.now)
		level := float64(parts) / float64(unit)
		if int64(b.limit) != limit || b.level < level-precision || b.level > level+precision {
			t.Fatalf("%s at %s: level %.6f of %d, want %.6f of %d", b.name, m.now, b.level, b.limit, level, limit)
		}
	}
	if u.Held != m.held() || u.InFlight != len(m.flying) {
		t.Fatalf("in flight %d holding %+v, want %d holding %+v", u.InFlight, u.Held, len(m.flying), m.held())
	}
}

func TestLimiterAgreesWithAReplayOfItsHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{limiter: ratelimit.NewTokenBucketLimiter(ratelimit.Limits{}), start: time.Now().Add(time.Hour)}
		m.setLimit(limits().Draw(t, "limits"))
		t.Repeat(map[string]func(*rapid.T){
			"":       m.check,
			"allow":  m.allow,
			"Allow":  m.allow, // twice as often
			"settle": m.settle,
			"lower":  m.lower,
			"limit":  func(t *rapid.T) { m.setLimit(limits().Draw(t, "limits")) },
			"wait":   func(t *rapid.T) { m.now += time.Duration(rapid.IntRange(0, int(90*time.Second)).Draw(t, "wait")) },
		})
	})
}

// grant is what one Allow or one settlement took of a bucket.
type grant struct {
	at time.Duration
	n  float64
}

// assertWithin checks every window between two grants: granted ≤ capacity + rate × elapsed.
func assertWithin(t *rapid.T, name string, limit int, grants []grant) {
	for i := range grants {
		sum := 0.0
		for _, g := range grants[i:] {
			sum += g.n
			most := float64(limit) * (1 + (g.at - grants[i].at).Minutes())
			if sum > most+precision {
				t.Fatalf("%s: %.6f granted from %s to %s, want at most %.6f", name, sum, grants[i].at, g.at, most)
			}
		}
	}
}

// Whatever is asked and settled, no window of time grants more than a full
// bucket and what refills meanwhile. Without refunds this holds for all that was
// held; with them, for what was held less what was given back.
func TestNeverOverTheLimitInAnyWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Now().Add(time.Hour)
		limits := ratelimit.Limits{RPM: rapid.IntRange(1, 20).Draw(t, "RPM"), ITPM: rapid.IntRange(1, 5000).Draw(t, "ITPM"), OTPM: rapid.IntRange(1, 1000).Draw(t, "OTPM")}
		refunds := rapid.Bool().Draw(t, "refunds")
		l := ratelimit.NewTokenBucketLimiter(limits)
		var now time.Duration
		var flying []ratelimit.Tokens
		var requests, input, output []grant
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, int(10*time.Second)).Draw(t, "wait"))
			if len(flying) > 0 && rapid.IntRange(0, 2).Draw(t, "action") == 0 {
				est := flying[0]
				flying = flying[1:]
				used := ratelimit.Tokens{Input: rapid.IntRange(0, 3000).Draw(t, "used input"), Output: rapid.IntRange(0, 500).Draw(t, "used output")}
				if !refunds {
					used = ratelimit.Tokens{Input: max(used.Input, est.Input), Output: max(used.Output, est.Output)}
				}
				l.SettleAt(start.Add(now), est, used)
				input = append(input, grant{now, min(0, float64(used.Input-est.Input))})
				output = append(output, grant{now, min(0, float64(used.Output-est.Output))})
				continue
			}
			est := ratelimit.Tokens{Input: rapid.IntRange(0, 2000).Draw(t, "input"), Output: rapid.IntRange(0, 400).Draw(t, "output")}
			if l.AllowAt(start.Add(now), est) {
				flying = append(flying, est)
				requests = append(requests, grant{now, 1})
				input = append(input, grant{now, float64(est.Input)})
				output = append(output, grant{now, float64(est.Output)})
			}
		}
		assertWithin(t, "requests", limits.RPM, requests)
		assertWithin(t, "input", limits.ITPM, input)
		assertWithin(t, "output", limits.OTPM, output)
	})
}

// Waiting exactly as long as told is always enough, from any state.
func TestWaitForIsAlwaysEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := ratelimit.Limits{RPM: rapid.IntRange(1, 5000).Draw(t, "RPM"), ITPM: rapid.IntRange(1, 4_000_000).Draw(t, "ITPM"), OTPM: rapid.IntRange(1, 800_000).Draw(t, "OTPM")}
		l := ratelimit.NewTokenBucketLimiter(limits)
		now := time.Now().Add(time.Hour)
		for range rapid.IntRange(0, 10).Draw(t, "settlements") {
			now = now.Add(time.Duration(rapid.IntRange(0, int(time.Minute)).Draw(t, "wait")))
			used := tokens(8_000_000).Draw(t, "used")
			if l.AllowAt(now, ratelimit.Tokens{}) {
				l.SettleAt(now, ratelimit.Tokens{}, used)
			}
		}
		need := ratelimit.Tokens{Input: rapid.IntRange(0, limits.ITPM).Draw(t, "need input"), Output: rapid.IntRange(0, limits.OTPM).Draw(t, "need output")}
		wait := l.UsageAt(now).WaitFor(need)
		if !l.AllowAt(now.Add(wait), need) {
			t.Fatalf("Allow(%+v) is refused after the wait of %s; then %+v", need, wait, l.UsageAt(now.Add(wait)))
		}
	})
}
