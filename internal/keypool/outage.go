package keypool

import "time"

// outage takes a key out until a live request shows that it works. The zero
// outage is none.
type outage struct {
	reason  Reason
	since   time.Time
	next    time.Time     // when one request may try
	pause   time.Duration // between tries
	probing bool          // a try is under way, or its answer said nothing
}

const (
	firstPause = 5 * time.Minute
	spentPause = time.Hour
	longPause  = time.Hour
)

func (o *outage) active() bool { return o.reason != "" }

func (o *outage) wait(now time.Time) time.Duration {
	if !o.active() {
		return 0
	}
	return max(0, o.next.Sub(now))
}

// strike starts the outage, or lengthens it when a probe failed; late answers to
// requests sent before it began change nothing. A probe that failed for another
// reason starts with that reason's pause. It reports whether the outage began.
func (o *outage) strike(now time.Time, why Reason) bool {
	began := !o.active()
	if !began && !o.probing {
		return false
	}
	if began {
		o.since = now
	}
	switch {
	case why == o.reason:
		o.pause = min(2*o.pause, longPause)
	case why == ReasonSpent:
		o.pause = spentPause
	default:
		o.pause = firstPause
	}
	o.reason, o.probing, o.next = why, false, now.Add(o.pause)
	return began
}

// probe notes that a request tries the key; no other does until the pause is over.
func (o *outage) probe(now time.Time) {
	if o.active() {
		o.probing, o.next = true, now.Add(o.pause)
	}
}

// forgive ends the outage if a request sent at this time, and answered well, was
// a probe of it. It reports whether it did. One sent at the very moment it began
// was none: probes come later, and clocks are coarse.
func (o *outage) forgive(sent time.Time) bool {
	if !o.active() || !sent.After(o.since) {
		return false
	}
	*o = outage{}
	return true
}

// coolDown keeps a key from serving for a time. The zero coolDown is none.
type coolDown struct {
	until   time.Time
	last    time.Time // when the last one began
	strikes int       // without a named time, since the last success
	seq     uint64    // dispatch of the request whose refusal began it
	guarded bool      // how it ends is a guess: until an answer succeeds, one request at a time tries
}

const (
	firstCool    = time.Second
	longestGuess = time.Minute
	longestCool  = time.Hour // then a request tries, whatever the provider said
	repeatWithin = 10 * time.Second
)

func (c *coolDown) wait(now time.Time) time.Duration {
	if c.until.IsZero() { // most keys, and cheaper than to compare
		return 0
	}
	return max(0, c.until.Sub(now))
}

// repeated reports whether the last cool-down ended and began less than 10 s ago:
// it was too short.
func (c *coolDown) repeated(now time.Time) bool {
	return !c.last.IsZero() && !now.Before(c.until) && now.Sub(c.last) < repeatWithin
}

// start cools for d, at most 1 h; 0 or less stands for 1 s, doubling to 60 s. What
// comes while already cooling answers a request sent before: a guess does not
// double, and no time shortens a longer one. It returns how long the cool-down
// lasts from now.
func (c *coolDown) start(now time.Time, d time.Duration) time.Duration {
	running := now.Before(c.until)
	if d <= 0 {
		if running {
			return c.until.Sub(now)
		}
		d = min(firstCool<<min(c.strikes, 6), longestGuess)
		c.strikes++
	}
	if !running {
		c.last = now
	}
	if until := now.Add(min(d, longestCool)); until.After(c.until) {
		c.until = until
	}
	return c.until.Sub(now)
}

// join takes over a cool-down of the same owner that lasts longer.
func (c *coolDown) join(other coolDown) {
	if other.until.After(c.until) {
		*c = other
	}
}

// forgive makes the next guess short again. A running cool-down runs out: the
// success may be older than the refusal.
func (c *coolDown) forgive(now time.Time) {
	if !now.Before(c.until) {
		c.strikes, c.guarded = 0, false
	}
}

// recovered ends the cool-down where an answer to a request sent after the one
// that began it shows that the provider admits again.
func (c *coolDown) recovered(now time.Time, seq uint64) {
	if seq > c.seq && now.Before(c.until) {
		c.until = now
	}
}

// lift ends the cool-down and forgets what it has learned of earlier ones.
func (c *coolDown) lift() { *c = coolDown{} }
