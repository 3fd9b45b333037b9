package simulator

import "time"

// unit is what one token weighs in a bucket: with it a limit of L tokens a minute
// refills by exactly L·ns, and no step of the arithmetic rounds.
const unit = int64(time.Minute)

// maxLimit keeps every sum of levels within an int64.
const maxLimit = 50_000_000

// bucket is a token bucket with continuous refill whose capacity is its limit.
// The zero bucket has no limit: it is never short and never empty.
type bucket struct {
	limit int64 // a minute; 0: none
	level int64 // in units; below zero: in debt
	at    time.Time
}

func newBucket(limit int, fill float64, now time.Time) bucket {
	return bucket{limit: int64(limit), level: int64(fill*float64(limit)) * unit, at: now}
}

func (b *bucket) capacity() int64 { return b.limit * unit }

// refill brings the level up to now; a clock that stands or runs back adds nothing.
func (b *bucket) refill(now time.Time) {
	elapsed := int64(now.Sub(b.at))
	if b.limit == 0 || elapsed <= 0 {
		return
	}
	b.at = now
	if elapsed >= b.untilLevel(b.capacity()) { // also keeps limit·elapsed from overflowing
		b.level = b.capacity()
		return
	}
	b.level += b.limit * elapsed
}

// untilLevel is the time in nanoseconds until the level is want, as of b.at.
func (b *bucket) untilLevel(want int64) int64 {
	if want <= b.level {
		return 0
	}
	return (want - b.level + b.limit - 1) / b.limit
}

// take removes n tokens and may leave a debt; a negative n gives tokens back, at
// most up to the capacity.
func (b *bucket) take(now time.Time, n int) {
	if b.limit == 0 {
		return
	}
	b.refill(now)
	n = min(max(n, -maxLimit), maxLimit)
	b.level = min(max(b.level-int64(n)*unit, -maxLimit*unit), b.capacity())
}

// wait is how long until n tokens are there. More than the capacity never are:
// for such a request a full bucket is enough. For n = 0 the level must be above
// zero, not at it.
func (b *bucket) wait(now time.Time, n int) time.Duration {
	if b.limit == 0 {
		return 0
	}
	b.refill(now)
	want := min(int64(n), b.limit) * unit
	return time.Duration(b.untilLevel(max(want, 1)))
}

// Level is what one bucket holds at a moment.
type Level struct {
	Limit     int       // a minute, and the capacity; 0: no limit, and the other fields mean nothing
	Remaining int       // whole tokens or requests, rounded down; negative in debt
	Full      time.Time // when the bucket is full again; not later than the moment: it is full
}

func (b *bucket) read(now time.Time) Level {
	if b.limit == 0 {
		return Level{}
	}
	b.refill(now)
	whole := b.level / unit
	if b.level%unit < 0 {
		whole--
	}
	full := now.Add(time.Duration(b.untilLevel(b.capacity())))
	return Level{Limit: int(b.limit), Remaining: int(whole), Full: full}
}
