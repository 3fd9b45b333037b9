package keypool_test

import (
	"math"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// The model is a pool written to be obviously right: levels are replayed from
// their whole history in exact arithmetic, cool-downs are a list of ends, and
// nothing is shared with the code under test.

// unit is one request or token: a limit of L a minute refills L parts of it each
// nanosecond.
const unit = int64(time.Minute)

type change struct {
	at    time.Time
	limit int // ≥ 0: from now on
	held  int // in flight, where the limit was unknown
	taken int
	seen  int // ≥ 0: observed level
}

type modelBucket struct{ history []change }

func (b *modelBucket) limited(at time.Time, limit, held int) {
	b.history = append(b.history, change{at, limit, held, 0, -1})
}
func (b *modelBucket) took(at time.Time, n int) {
	b.history = append(b.history, change{at, -1, 0, n, -1})
}
func (b *modelBucket) saw(at time.Time, level int) {
	b.history = append(b.history, change{at, -1, 0, 0, level})
}

// replay returns the limit in force and the level in parts.
func (b *modelBucket) replay(now time.Time) (limit int, level int64) {
	var last time.Time
	refill := func(at time.Time) {
		if !last.IsZero() {
			level = min(int64(limit)*unit, level+int64(limit)*int64(at.Sub(last)))
		}
		last = at
	}
	for _, c := range b.history {
		refill(c.at)
		if c.limit >= 0 {
			if limit == 0 {
				level = int64(c.limit-c.held) * unit
			}
			limit = c.limit
		}
		if c.seen >= 0 {
			level = min(level, int64(c.seen)*unit)
		}
		level = min(level-int64(c.taken)*unit, int64(limit)*unit)
		if limit == 0 {
			level = 0
		}
	}
	refill(now)
	return limit, level
}

// wait is how long until there is one; blurred is true where rounding may decide.
func (b *modelBucket) wait(now time.Time) (wait time.Duration, blurred bool) {
	limit, level := b.replay(now)
	if limit == 0 || level >= unit {
		return 0, false
	}
	missing := unit - level
	return time.Duration(math.Ceil(float64(missing) / float64(limit))), missing < unit/100_000
}

// whole is the level rounded down.
func (b *modelBucket) whole(now time.Time) int {
	_, level := b.replay(now)
	return int(math.Floor(float64(level) / float64(unit)))
}

type modelCool struct {
	ends    []time.Time
	began   time.Time
	guesses int
}

func (c *modelCool) wait(now time.Time) (wait time.Duration) {
	for _, end := range c.ends {
		wait = max(wait, end.Sub(now))
	}
	return wait
}

func (c *modelCool) start(now time.Time, d time.Duration) {
	cooling := c.wait(now) > 0
	if d <= 0 && cooling {
		return
	}
	if d <= 0 {
		d = min(time.Minute, time.Duration(math.Pow(2, float64(c.guesses)))*time.Second)
		c.guesses++
	}
	if !cooling {
		c.began = now
	}
	c.ends = append(c.ends, now.Add(min(d, time.Hour)))
}

// again reports whether a cool-down is over that began less than 10 s ago.
func (c *modelCool) again(now time.Time) bool {
	return len(c.ends) > 0 && c.wait(now) == 0 && now.Sub(c.began) < 10*time.Second
}

func (c *modelCool) forgive(now time.Time) {
	if c.wait(now) == 0 {
		c.guesses = 0
	}
}

type modelOutage struct {
	reason      keypool.Reason
	since, next time.Time
	pause       time.Duration
	tried       bool
}

func (o *modelOutage) wait(now time.Time) time.Duration {
	if o.reason == "" {
		return 0
	}
	return max(0, o.next.Sub(now))
}

func (o *modelOutage) strike(now time.Time, why keypool.Reason) {
	first := 5 * time.Minute
	if why == keypool.ReasonSpent {
		first = time.Hour
	}
	switch {
	case o.reason == "":
		*o = modelOutage{reason: why, since: now, next: now.Add(first), pause: first}
	case o.tried && o.reason == why:
		o.pause = min(time.Hour, 2*o.pause)
		o.next, o.tried = now.Add(o.pause), false
	case o.tried:
		o.reason, o.pause, o.next, o.tried = why, first, now.Add(first), false
	}
}

func (o *modelOutage) try(now time.Time) {
	if o.reason != "" {
		o.tried, o.next = true, now.Add(o.pause)
	}
}

func (o *modelOutage) forgive(sent time.Time) {
	if o.reason != "" && sent.After(o.since) {
		*o = modelOutage{}
	}
}

type modelKey struct {
	id       string
	priority int
	start    ratelimit.Limits
	cool     modelCool
	dead     modelOutage
	classes  map[string]*modelSlot
}

// modelSlot is one key for one class.
type modelSlot struct {
	requests, input, output modelBucket
	cool                    modelCool
	blocked                 modelOutage
	met                     []string // clients that met a 403 since the last success
	flying                  int
	held                    ratelimit.Tokens
}

func (k *modelKey) slot(class string, now time.Time) *modelSlot {
	if s, ok := k.classes[class]; ok {
		return s
	}
	s, start := &modelSlot{}, k.start
	if class == keypool.ClassCountTokens {
		start = ratelimit.Limits{RPM: start.RPM}
	}
	if class == keypool.ClassModels {
		start = ratelimit.Limits{}
	}
	s.requests.limited(now, start.RPM, 0)
	s.input.limited(now, start.ITPM, 0)
	s.output.limited(now, start.OTPM, 0)
	k.classes[class] = s
	return s
}

// wait is how long until the key can serve the class.
func (k *modelKey) wait(class string, now time.Time) (wait time.Duration, blurred bool) {
	s := k.slot(class, now)
	wait = max(k.cool.wait(now), k.dead.wait(now), s.cool.wait(now), s.blocked.wait(now))
	barred := wait > 0
	for _, b := range []*modelBucket{&s.requests, &s.input, &s.output} {
		w, blur := b.wait(now)
		wait, blurred = max(wait, w), blurred || blur
	}
	return wait, blurred && !barred
}

// isDead tells a key that is out for the class from one that only waits.
func (k *modelKey) isDead(class string, now time.Time) bool {
	return k.dead.reason != "" || k.slot(class, now).blocked.reason != ""
}

// grant records what the pool gave away.
func (k *modelKey) grant(class string, now time.Time, held ratelimit.Tokens, flies bool) {
	s := k.slot(class, now)
	s.requests.took(now, 1)
	s.input.took(now, held.Input)
	s.output.took(now, held.Output)
	k.dead.try(now)
	s.blocked.try(now)
	if flies {
		s.flying++
		s.held.Input += held.Input
		s.held.Output += held.Output
	}
}
