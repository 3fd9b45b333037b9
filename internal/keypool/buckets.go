package keypool

import (
	"math"
	"slices"
	"time"

	"cc-relay/internal/ratelimit"
)

// knowledge is what is known of one limit of one owner and class.
type knowledge uint8

const (
	unknown knowledge = iota // no answer has come yet
	absent                   // the answers name none: nothing is enforced
	known                    // configured, or named by an answer
)

// The three kinds of limit, as indexes.
const (
	requestLimit = iota
	inputLimit
	outputLimit
	limitKinds
)

// buckets are one owner's limits for one class, with what is under way to them.
type buckets struct {
	limiter *ratelimit.TokenBucketLimiter
	know    [limitKinds]knowledge
	told    [limitKinds]bool // by headers
	// newest is, of each limit, the dispatch whose headers were merged last: what
	// was dispatched before it is in the level already.
	newest   [limitKinds]uint64
	unacked  []*hold // dispatched and not answered, oldest first
	lost     []loss
	reserved float64 // output tokens predicted for requests in flight and not produced yet
	produced float64 // output tokens seen so far
	promised float64 // max_tokens of all dispatched, less what of it the ended ones did not use
	guesses  [2]guess
	waiters  []*waiter // oldest first
	// round is the one in which a cold request was served last, and lastRound of each
	// client that of its newest one, while any request waits.
	round     int
	lastRound map[string]int
	cool      coolDown
}

func newBuckets(now time.Time, limits ratelimit.Limits, class string) *buckets {
	b := &buckets{limiter: ratelimit.NewTokenBucketLimiterAt(now, limits)}
	for i, limit := range []int{limits.RPM, limits.ITPM, limits.OTPM} {
		switch {
		case limit > 0:
			b.know[i] = known
		case class == ClassModels, class == ClassCountTokens && i != requestLimit:
			b.know[i] = absent
		}
	}
	return b
}

// learned reports whether headers have told a limit.
func (b *buckets) learned() bool { return b.told != [limitKinds]bool{} }

// trial is how long a request must wait because others are finding out what the
// owner admits: its limits, or whether a cool-down was long enough. Those that
// wait ahead of it try before it. Of limits, what has been out for longer than a
// refusal takes was admitted, however long its answer takes: as many may follow.
func (b *buckets) trial(now time.Time, ahead int) time.Duration {
	under, admitted := ahead, 0
	for _, h := range b.unacked {
		switch {
		case h.at.Before(b.cool.until): // what went before it shows nothing of how it ended
		case now.Sub(h.at) < refusalTime:
			under++
		default:
			admitted++
		}
	}
	most := math.MaxInt
	if slices.Contains(b.know[:], unknown) {
		most = max(maxUnacked, admitted)
	}
	if b.cool.guarded && !now.Before(b.cool.until) {
		most, under = 1, under+admitted
	}
	if under >= most {
		return probeInterval
	}
	return 0
}

// covered reports whether an answer has shown the bucket as it was after the
// dispatch seq: with what that one took, or without it if it was not admitted.
func (b *buckets) covered(kind int, seq uint64) bool { return b.newest[kind] >= seq }

// merge sets levels to what an answer's headers say, carried on from the dispatch
// to now, less what was dispatched since. Headers of a request older than the
// newest merged change nothing.
func (b *buckets) merge(now time.Time, h *hold, seen rateHeaders) {
	kinds := [limitKinds]triple{seen.requests, seen.input, seen.output}
	limits := b.limiter.UsageAt(now).Limits
	was := b.limiter.BucketsAt(now)
	next := limits
	for i, limit := range []*int{&next.RPM, &next.ITPM, &next.OTPM} {
		if kinds[i].limit == unseen || h.seq < b.newest[i] {
			continue
		}
		*limit = kinds[i].limit
		b.know[i], b.told[i] = known, true
	}
	if next != limits {
		b.limiter.SetLimitAt(now, next)
		h.class.weights = nil
	}
	var observed [limitKinds]ratelimit.Observation
	age := max(0, now.Sub(h.at)).Minutes()
	for i, before := range []ratelimit.Bucket{was.Requests, was.Input, was.Output} {
		t := kinds[i]
		if t.remaining == unseen || b.know[i] != known || h.seq < b.newest[i] {
			continue
		}
		b.newest[i] = h.seq
		limit := float64([limitKinds]int{next.RPM, next.ITPM, next.OTPM}[i])
		if i == outputLimit {
			b.judge(now, h, t, limit, age)
		}
		observed[i] = b.observation(i, h, t, limit, age, before)
	}
	b.limiter.ObserveAt(now, observed[requestLimit], observed[inputLimit], observed[outputLimit])
}

// observation carries one limit's remaining on to now.
func (b *buckets) observation(kind int, h *hold, t triple, limit, age float64, before ratelimit.Bucket) ratelimit.Observation {
	remaining := min(float64(t.remaining), limit)
	o := ratelimit.Observation{Seen: true, Capacity: max(before.Capacity, remaining)}
	if before.Limit != limit {
		o.Capacity = limit
	}
	if t.remaining > 0 && t.reset > 0 {
		// The reset is told in whole seconds by the answer's own clock, and the
		// level may be older than that by the age.
		o.Capacity = min(limit, remaining+(t.reset.Minutes()+age)*limit)
	}
	// What was taken since may have refilled again, or not: the belief decides within
	// these bounds. They lie apart where the answer took long.
	since := b.since(kind, h)
	least := min(o.Capacity, remaining+age*limit) - since
	most := min(o.Capacity, remaining+age*limit-since)
	o.Level = min(max(before.Level, least), most)
	if t.remaining == 0 && before.Limit > 0 { // a debt is told as 0
		o.Level = min(o.Level, before.Level)
	}
	return o
}

// since is what a bucket has lost, beyond what h's headers show, since h was
// dispatched.
func (b *buckets) since(kind int, h *hold) float64 {
	if kind == outputLimit {
		if h.class.reserving() {
			return b.promised - h.promisedAt
		}
		return b.produced - h.producedAt
	}
	requests, input := 0.0, 0.0
	for _, u := range b.unacked {
		if u.seq > h.seq {
			requests++
			input += float64(u.held.Input)
		}
	}
	for _, l := range b.lost {
		if l.seq > h.seq {
			requests++
			input += l.input
		}
	}
	if kind == requestLimit {
		return requests
	}
	return input
}

// loss is a request that ended without an answer, and counts.
type loss struct {
	seq   uint64 // of its dispatch
	input float64
}

// lose notes it while an answer to an older request, which does not show it, is still
// to come, and forgets those for which none is.
func (b *buckets) lose(seq uint64, input float64) {
	b.lost = slices.DeleteFunc(append(b.lost, loss{seq, input}), func(l loss) bool {
		return len(b.unacked) == 0 || l.seq < b.unacked[0].seq
	})
}

// acked takes an answered request out of those that the provider may not have
// seen yet.
func (b *buckets) acked(h *hold) {
	if h.acked {
		return
	}
	h.acked = true
	for i, u := range b.unacked {
		if u == h {
			b.unacked = append(b.unacked[:i], b.unacked[i+1:]...)
			return
		}
	}
}

// unnamed notes an answer that names some limits or none: what was unknown and is
// not named is absent, until a header or a refusal says otherwise.
func (b *buckets) unnamed(seen rateHeaders) {
	for i, t := range [limitKinds]triple{seen.requests, seen.input, seen.output} {
		if b.know[i] == unknown && t.limit == unseen {
			b.know[i] = absent
		}
	}
}

// suspect notes a refusal by limits that nobody has named.
func (b *buckets) suspect() {
	for i := range b.know {
		if b.know[i] == absent {
			b.know[i] = unknown
		}
	}
}

// made counts output tokens as they pass.
func (b *buckets) made(now time.Time, h *hold, n float64) {
	h.made += n
	b.produced += n
	b.guesses[asProduced].take(now, n)
	h.release(min(max(n, 0), h.outstanding))
	if h.held.Output == 0 { // else it was all taken in advance
		b.limiter.AdjustAt(now, 0, 0, n)
	}
}

// limited cools the buckets after a refusal, see Lease.Limited; u is what the
// request wanted of the input bucket, merged whether its answer or a newer one has
// set the levels. It returns how long from now nothing is admitted.
func (b *buckets) limited(now time.Time, seq uint64, u float64, merged bool, retryAfter time.Duration) time.Duration {
	b.suspect()
	// Headers tell levels, and debts of any size. Without them a wait is taken for that
	// of a bucket that refills only where it is no longer than one takes to be full:
	// what lasts longer is another limit, of a day or a month, and says nothing of levels.
	told := retryAfter > 0 && retryAfter <= longestCool && b.know[inputLimit] == known && (merged || retryAfter <= time.Minute)
	if input := b.limiter.BucketsAt(now).Input; told && !merged { // no level was told, but the wait tells it
		level := u - retryAfter.Minutes()*input.Limit
		b.newest[inputLimit] = max(b.newest[inputLimit], seq) // so that settlement gives nothing back
		b.limiter.ObserveAt(now, ratelimit.Observation{}, ratelimit.Observation{Seen: true, Capacity: input.Capacity, Level: min(level, input.Level)}, ratelimit.Observation{})
	}
	if told && !b.cool.repeated(now) { // the levels tell whom it concerns
		retryAfter = min(retryAfter, firstCool)
	} else {
		b.cool.guarded = true
	}
	b.cool.seq = max(b.cool.seq, seq) // a late refusal is not the newest
	return b.cool.start(now, retryAfter)
}

// of is what an answer's headers say about a class.
func (seen rateHeaders) of(class string) rateHeaders {
	none := triple{limit: unseen, remaining: unseen}
	switch {
	case class == ClassModels:
		return rateHeaders{none, none, none, none, none}
	case class == ClassCountTokens: // tokens in its headers are those of other classes
		seen.input, seen.output = none, none
	case isFast(class):
		seen.input, seen.output = seen.fastInput, seen.fastOutput
	}
	return seen
}
