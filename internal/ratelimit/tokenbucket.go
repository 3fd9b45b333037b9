package ratelimit

import (
	"math"
	"sync"
	"time"
)

// maxTokens bounds what one settlement may take, so that an absurd usage report
// cannot put a bucket in debt for longer than it takes to notice.
const maxTokens = 100_000_000

// maxLimit bounds a limit, so that levels keep fractions of a token: a float64
// loses them above.
const maxLimit = 1_000_000_000

// longest is the longest wait told, 146 years in nanoseconds: beyond it a
// time.Duration overflows and would say that nothing is missing.
const longest = 1 << 62

// slack forgives the rounding of a level that was computed from a wait: after
// exactly the time WaitFor names, the bucket must admit.
const slack = 1e-6

// TokenBucketLimiter is a RateLimiter of three token buckets: requests, uncached
// input tokens and output tokens. Each holds up to one minute's limit, starts
// full and refills continuously, as Anthropic describes its own limits
// (https://platform.claude.com/docs/en/api/rate-limits).
//
// The methods that take a time do the arithmetic; the others read the clock once
// and call them. Times may come in any order: one before the last is taken as
// the last. Create it with [NewTokenBucketLimiter]; safe for concurrent use.
type TokenBucketLimiter struct {
	mu       sync.Mutex
	at       time.Time // of the levels below; guarded by mu, as all that follows
	limits   Limits
	requests bucket
	input    bucket
	output   bucket
	inFlight int
	held     Tokens
}

var _ RateLimiter = (*TokenBucketLimiter)(nil)

// NewTokenBucketLimiter returns a limiter with full buckets.
func NewTokenBucketLimiter(limits Limits) *TokenBucketLimiter {
	return NewTokenBucketLimiterAt(time.Now(), limits)
}

// NewTokenBucketLimiterAt is NewTokenBucketLimiter at a given time.
func NewTokenBucketLimiterAt(now time.Time, limits Limits) *TokenBucketLimiter {
	l := &TokenBucketLimiter{}
	l.SetLimitAt(now, limits)
	return l
}

// Allow implements RateLimiter.
func (l *TokenBucketLimiter) Allow(est Tokens) bool { return l.AllowAt(time.Now(), est) }

// Settle implements RateLimiter.
func (l *TokenBucketLimiter) Settle(est, used Tokens) { l.SettleAt(time.Now(), est, used) }

// SetLimit implements RateLimiter.
func (l *TokenBucketLimiter) SetLimit(limits Limits) { l.SetLimitAt(time.Now(), limits) }

// GetUsage implements RateLimiter.
func (l *TokenBucketLimiter) GetUsage() Usage { return l.UsageAt(time.Now()) }

// AllowAt is Allow at a given time.
func (l *TokenBucketLimiter) AllowAt(now time.Time, est Tokens) bool {
	est = est.clamp()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	if !l.requests.has(1) || !l.input.has(float64(est.Input)) || !l.output.has(float64(est.Output)) {
		return false
	}
	l.requests.take(1)
	l.input.take(float64(est.Input))
	l.output.take(float64(est.Output))
	l.inFlight++
	l.held.Input += est.Input
	l.held.Output += est.Output
	return true
}

// SettleAt is Settle at a given time.
func (l *TokenBucketLimiter) SettleAt(now time.Time, est, used Tokens) {
	est, used = est.clamp(), used.clamp()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.input.take(float64(used.Input - est.Input))
	l.output.take(float64(used.Output - est.Output))
	l.inFlight = max(0, l.inFlight-1)
	l.held.Input = max(0, l.held.Input-est.Input)
	l.held.Output = max(0, l.held.Output-est.Output)
}

// AdjustAt takes what was used without having been held, and gives back what is
// negative, up to a full bucket: output as it is produced, a refund of a request
// that the provider never admitted.
func (l *TokenBucketLimiter) AdjustAt(now time.Time, requests, input, output float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.requests.take(requests)
	l.input.take(input)
	l.output.take(output)
}

// SetLimitAt is SetLimit at a given time.
func (l *TokenBucketLimiter) SetLimitAt(now time.Time, limits Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.limits = limits.clamp()
	l.requests.setLimit(l.limits.RPM, float64(l.inFlight))
	l.input.setLimit(l.limits.ITPM, float64(l.held.Input))
	l.output.setLimit(l.limits.OTPM, float64(l.held.Output))
}

// Levels is an observation of a provider's own buckets. A negative value means
// that nothing was observed.
type Levels struct{ Requests, Input, Output int }

// LowerAt brings levels down to what was observed and never raises one: an
// observation is older than the requests sent since. Buckets without a limit
// have no level to lower.
func (l *TokenBucketLimiter) LowerAt(now time.Time, seen Levels) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.requests.lower(seen.Requests)
	l.input.lower(seen.Input)
	l.output.lower(seen.Output)
}

// AbsorbAt merges another limiter into l: both counted the same buckets, each
// only its own requests. Where they agree on a limit, the level becomes what was
// there less what either side took. Where they do not, l is taken to know better,
// and only what the other has in flight is taken from it: what it took before
// was measured against another limit. The other limiter must not be used any more.
func (l *TokenBucketLimiter) AbsorbAt(now time.Time, other *TokenBucketLimiter) {
	o := other.UsageAt(now)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.requests.absorb(o.buckets.Requests, l.inFlight, o.InFlight)
	l.input.absorb(o.buckets.Input, l.held.Input, o.Held.Input)
	l.output.absorb(o.buckets.Output, l.held.Output, o.Held.Output)
	l.limits = Limits{RPM: int(l.requests.limit), ITPM: int(l.input.limit), OTPM: int(l.output.limit)}
	l.inFlight += o.InFlight
	l.held.Input += o.Held.Input
	l.held.Output += o.Held.Output
}

// MoveAt hands requests in flight and what they hold over to another limiter,
// which will see their settlement.
func (l *TokenBucketLimiter) MoveAt(now time.Time, to *TokenBucketLimiter, inFlight int, held Tokens) {
	l.shift(now, -inFlight, Tokens{-held.Input, -held.Output})
	to.shift(now, inFlight, held)
}

func (l *TokenBucketLimiter) shift(now time.Time, inFlight int, held Tokens) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.input.take(float64(held.Input))
	l.output.take(float64(held.Output))
	l.inFlight = max(0, l.inFlight+inFlight)
	l.held.Input = max(0, l.held.Input+held.Input)
	l.held.Output = max(0, l.held.Output+held.Output)
}

// UsageAt is GetUsage at a given time. It writes nothing, so that readers of
// statistics see the levels of their own moment and disturb nobody's.
func (l *TokenBucketLimiter) UsageAt(now time.Time) Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	minutes := l.minutes(now)
	b := Buckets{l.requests.at(minutes), l.input.at(minutes), l.output.at(minutes), l.inFlight}
	return Usage{
		Limits:   l.limits,
		Requests: b.Requests.Level,
		Input:    b.Input.Level,
		Output:   b.Output.Level,
		InFlight: l.inFlight,
		Held:     l.held,
		buckets:  b,
	}
}

// Bucket is one of a limiter's buckets at one moment. The zero Bucket has no
// limit and enforces nothing.
type Bucket struct {
	Limit    float64 // a minute; 0 = none known
	Capacity float64 // most that it holds, at most Limit
	Level    float64 // what could be taken now; negative while more was used than held
}

// Buckets are a limiter's three buckets at one moment.
type Buckets struct {
	Requests, Input, Output Bucket
	InFlight                int // allowed and not settled
}

// BucketsAt is what a choice among limiters compares. It writes nothing.
func (l *TokenBucketLimiter) BucketsAt(now time.Time) Buckets {
	var b Buckets
	l.ReadBuckets(now, &b)
	return b
}

// ReadBuckets is BucketsAt into b, which spares a hot loop the copies.
func (l *TokenBucketLimiter) ReadBuckets(now time.Time, b *Buckets) {
	l.mu.Lock()
	defer l.mu.Unlock()
	minutes := l.minutes(now)
	b.Requests = l.requests.at(minutes)
	b.Input = l.input.at(minutes)
	b.Output = l.output.at(minutes)
	b.InFlight = l.inFlight
}

// Missing is how long until the bucket's level reaches need, if nothing else is
// taken: 0 when it does now or has no limit, and as long as a full bucket takes
// where need is more than it can hold.
func (b Bucket) Missing(need float64) time.Duration {
	want := min(need, b.Capacity)
	if b.Limit == 0 || b.Level >= want-slack {
		return 0
	}
	return time.Duration(min(longest, math.Ceil((want-b.Level)/b.Limit*float64(time.Minute))))
}

// Observation is what became known of one bucket from outside: Level is what it
// holds, Capacity the most it can, at most the limit. The zero Observation is none.
type Observation struct {
	Seen            bool
	Level, Capacity float64
}

// ObserveAt sets levels and capacities to what was observed, up and down. Buckets
// without a limit have nothing to set. A capacity of 0 or less, or above the
// limit, stands for the limit.
func (l *TokenBucketLimiter) ObserveAt(now time.Time, requests, input, output Observation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill(now)
	l.requests.observe(requests)
	l.input.observe(input)
	l.output.observe(output)
}

// WaitFor is how long until these levels reach one request and need tokens, if
// nothing else is taken; 0 when they do now. A need above what a bucket can hold
// is counted as the bucket's capacity: no wait makes a bucket larger.
func (u Usage) WaitFor(need Tokens) time.Duration {
	need = need.clamp()
	return max(u.buckets.Requests.Missing(1), u.buckets.Input.Missing(float64(need.Input)), u.buckets.Output.Missing(float64(need.Output)))
}

// minutes is the time since the levels were written, never negative.
func (l *TokenBucketLimiter) minutes(now time.Time) float64 {
	return float64(max(0, now.Sub(l.at))) / float64(time.Minute)
}

func (l *TokenBucketLimiter) refill(now time.Time) {
	minutes := l.minutes(now)
	if minutes == 0 {
		return
	}
	l.requests.level = l.requests.after(minutes)
	l.input.level = l.input.after(minutes)
	l.output.level = l.output.after(minutes)
	l.at = now
}

// bucket is one limit a minute, the most that can be saved up of it, and what is
// left. limit 0: nothing is enforced, and capacity and level stay 0.
type bucket struct{ limit, capacity, level float64 }

// after is the level once these minutes have passed.
func (b *bucket) after(minutes float64) float64 {
	level := b.level + b.limit*minutes
	if level > b.capacity { // min also cares about NaN, which costs more than the rest
		return b.capacity
	}
	return level
}

func (b *bucket) at(minutes float64) Bucket {
	return Bucket{Limit: b.limit, Capacity: b.capacity, Level: b.after(minutes)}
}

func (b *bucket) has(n float64) bool { return b.limit == 0 || b.level >= n-slack }

func (b *bucket) take(n float64) {
	if b.limit > 0 {
		b.level = min(b.capacity, b.level-n)
	}
}

// setLimit begins a capacity of the whole limit where the limit is another one:
// what was seen of the old one's says nothing about it.
func (b *bucket) setLimit(limit int, inFlight float64) {
	next := float64(limit)
	if b.limit == 0 {
		b.level = next - inFlight
	}
	if b.limit != next {
		b.limit, b.capacity = next, next
	}
	b.level = min(b.level, next)
	if next == 0 {
		b.level = 0
	}
}

func (b *bucket) observe(seen Observation) {
	if b.limit == 0 || !seen.Seen {
		return
	}
	b.capacity = b.limit
	if seen.Capacity > 0 {
		b.capacity = min(b.limit, seen.Capacity)
	}
	b.level = min(b.capacity, seen.Level)
}

func (b *bucket) absorb(other Bucket, inFlight, otherInFlight int) {
	switch {
	case b.limit == 0:
		*b = bucket{other.Limit, other.Capacity, other.Level}
		b.take(float64(inFlight))
	case b.limit == other.Limit:
		b.level -= other.Capacity - other.Level
	default:
		b.take(float64(otherInFlight))
	}
}

func (b *bucket) lower(seen int) {
	if b.limit > 0 && seen >= 0 {
		b.level = min(b.level, float64(seen))
	}
}

func (t Tokens) clamp() Tokens {
	return Tokens{Input: min(max(0, t.Input), maxTokens), Output: min(max(0, t.Output), maxTokens)}
}

func (l Limits) clamp() Limits {
	return Limits{RPM: clampLimit(l.RPM), ITPM: clampLimit(l.ITPM), OTPM: clampLimit(l.OTPM)}
}

func clampLimit(n int) int { return min(max(0, n), maxLimit) }
