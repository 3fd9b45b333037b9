package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

// walk is where a request stands in its plan.
type walk struct {
	plan     []router.Candidate
	resort   *router.Candidate // the least bad of those whose breaker is open
	at       int
	over     bool             // no more attempts, but for the one after a wait
	done     bool             // not even that
	again    bool             // an upstream is being asked once more
	forced   bool             // it is asked although its breaker is open
	paid     bool             // the next repeat has been taken from the budget; sending it uses that up
	promised bool             // neither budget nor breaker refuses to go back: for that an attempt was given up
	left     *walk            // where it was when it moved on from an upstream that may be asked again
	counted  int              // attempts that may have cost an upstream work
	moved    bool             // the one move for broken answers is spent
	tried    []string         // keys of this upstream that the request must not use again
	avoid    []string         // keys of the organization that has just failed, used only if no others are left
	failed   map[int][]string // keys by place in the plan that failed otherwise than for want of room

	dry    time.Duration // how soon an upstream that is merely out of room may serve; 0 = none is
	dryAt  int           // which
	waited bool          // the request has waited for that one
}

// lease is a key of a candidate and the word of its breaker.
type lease struct {
	keypool.Lease
	done   func(health.Outcome) // to be told once how it went
	choice *keypool.Account     // how the key was chosen
}

// here is the candidate that is to be asked.
func (w *walk) here() *router.Candidate { return &w.plan[w.at] }

// enter asks the candidate's breaker, then its pool. An error is the pool's; false
// means that the breaker keeps the request away.
func (w *walk) enter(x *exchange) (lease, bool, error) {
	c := w.here()
	done, ok := w.ask(c.Lane)
	if !ok {
		if w.resort == nil || c.Lane.Status().State == health.Ramping { // one that is coming back is better than any that is away
			w.resort = c
		}
		x.wrote(step{upstream: c.Upstream.Provider.Name(), model: c.Asks(x.model), class: x.classAt(c), closed: true})
		return lease{}, false, nil
	}
	choice := takeAccount()
	key, err := w.acquire(x, c, choice)
	if err != nil {
		done(health.Neither) // neither good nor bad: the provider has seen nothing
		x.wrote(step{upstream: c.Upstream.Provider.Name(), model: c.Asks(x.model), class: x.classAt(c), choice: choice})
		return lease{}, true, err
	}
	return lease{key, done, choice}, true, nil
}

func (w *walk) ask(lane *router.Lane) (done func(health.Outcome), ok bool) {
	if w.forced {
		return lane.Try(), true
	}
	return lane.Allow()
}

// acquire takes a key. While another upstream may still serve, it waits for none
// but the conversation's home: the key, or, while the client answers tool calls,
// the provider. choice gets to know how it was chosen.
func (w *walk) acquire(x *exchange, c *router.Candidate, choice *keypool.Account) (keypool.Lease, error) {
	x.demandAt(c)
	demand, began := x.demand, time.Now()
	demand.Account = choice
	defer func() { x.waited += time.Since(began).Truncate(time.Millisecond) }()
	demand.OnlyHome = len(w.plan) > 1 && !w.waited && !(c.Home() && x.msg.OpenTools)
	if len(w.avoid) > 0 {
		demand.Exclude = append(w.tried[:len(w.tried):len(w.tried)], w.avoid...)
		if key, err := c.Upstream.Pool.Acquire(x.r.Context(), demand); err == nil {
			return key, nil
		}
	}
	demand.Exclude = w.tried
	return c.Upstream.Pool.Acquire(x.r.Context(), demand)
}

// ran notes an upstream that has keys, but none with room.
func (w *walk) ran(err error) {
	var exhausted *keypool.ExhaustedError
	if errors.As(err, &exhausted) && exhausted.Left > 0 {
		w.dried(exhausted.RetryAfter)
	}
}

func (w *walk) dried(after time.Duration) {
	after = max(after, time.Millisecond)
	if w.dry == 0 || after < w.dry {
		w.dry, w.dryAt = after, w.at
	}
}

// next goes on where a key could not be had, or where nothing is left to move to:
// to the next upstream, back to one that failed, and last, once, to the one that
// has room soonest, in order to wait there. Where every breaker is open, the least
// bad upstream gets one attempt: a relay with one provider is never worse than none.
func (w *walk) next(x *exchange) bool {
	if w.done {
		return false
	}
	if !w.over && (w.onward(x) || w.back(x)) {
		return true
	}
	if w.mayResort(x) {
		w.plan, w.at = append(w.plan, *w.resort), len(w.plan)
		w.forced, w.over, w.tried, w.avoid = true, true, nil, nil
		return true
	}
	if w.dry == 0 || w.waited || w.counted > 0 && !w.maySend(x, w.dryAt) {
		return false
	}
	w.waited, w.over, w.at = true, true, w.dryAt
	w.tried, w.avoid = w.failed[w.at], nil // what was merely full may be asked once more
	return true
}

// mayResort reports whether the least bad upstream is to be asked: where no other was,
// or where it is coming back, was merely not let in this time, and others failed.
func (w *walk) mayResort(x *exchange) bool {
	if w.resort == nil || w.dry > 0 || w.forced {
		return false
	}
	return x.attempts == 0 || w.resort.Lane.Status().State == health.Ramping && w.pay(x)
}

func (w *walk) nextUpstream() bool {
	if w.again || w.at+1 >= len(w.plan) { // again: who comes later has had its turn
		return false
	}
	w.at++
	w.avoid, w.tried = nil, nil
	return true
}

// onward is nextUpstream for a request that may have failed already: it passes over what
// the budget does not allow.
func (w *walk) onward(x *exchange) bool {
	for w.nextUpstream() {
		if w.counted == 0 || w.maySend(x, w.at) {
			return true
		}
	}
	return false
}

// others reports whether an attempt that brings nothing in time is given up for another,
// and then sees to it that there will be one: what has begun must not be thrown away for a
// repeat that the budget refuses, or a breaker that opens meanwhile.
func (w *walk) others(x *exchange) bool {
	if w.over || w.moved || w.counted+1 >= maxCounted || w.again {
		return false
	}
	for at := w.at + 1; at < len(w.plan); at++ {
		if w.well(at) && w.serves(x, at) {
			w.promised = true // should it be full or without a key in a moment
			return true
		}
	}
	// Breakers may have opened since it began; the last one may be asked once more.
	w.promised = slices.ContainsFunc(w.plan[w.at:], letsIn) && w.pay(x)
	return w.promised
}

// serves reports whether a place of the plan has a key for the request now.
func (w *walk) serves(x *exchange, at int) bool {
	c := &w.plan[at]
	demand := x.demand
	demand.Class, demand.Model, demand.Account = x.classAt(c), c.Asks(x.model), nil
	return c.Upstream.Pool.Preview(time.Now(), demand).Outcome == keypool.OutcomeServed
}

// letsIn reports whether a candidate's breaker would let a request in.
func letsIn(c router.Candidate) bool {
	s := c.Lane.Status()
	return s.State == health.Closed || s.State == health.Ramping || s.State == health.HalfOpen && s.Until.IsZero()
}

// move goes to where the request may be tried next: another key, the next
// upstream, or the same one once more after a moment. It returns false where
// that is nowhere.
func (w *walk) move(x *exchange, a *answer) bool {
	c := conducts[a.verdict]
	switch {
	case a.large:
		for _, k := range a.up.Pool.Keys() { // the others are smaller
			w.tried = append(w.tried, k.ID)
		}
		return true
	case a.verdict == limited:
		w.dried(max(a.dryFor(), time.Second))
	default:
		w.fail(a, c)
	}
	switch {
	case c.nextOwner:
		w.tried = append(w.tried, a.lease.OwnerKeys()...)
		return true
	case c.nextKey:
		w.tried = append(w.tried, a.lease.KeyID())
		return true
	case w.over:
		return false
	}
	if c.counted {
		w.counted++
	}
	if w.counted >= maxCounted || (c.oneMove && w.moved) || (a.verdict == lost && !x.live.Router.RetryUnknown) {
		w.done = true
		return false
	}
	w.moved = w.moved || c.oneMove
	if c.again {
		w.left = &walk{at: w.at, tried: w.tried, avoid: a.lease.OwnerKeys()}
	}
	if c.counted && !w.mayRepeat(x) {
		w.done = true
		return false
	}
	return w.nextUpstream() || w.back(x)
}

// mayRepeat reports whether the move that comes next may be made. A provider that is
// well may be asked at once; any other repeat is taken from the retry budget, lest a
// failing provider be asked twice for each request of everybody. What the budget does
// not allow is passed over.
func (w *walk) mayRepeat(x *exchange) bool {
	if w.again || w.paid {
		return true // there is no move to pay for
	}
	next := w.at + 1
	if next == len(w.plan) {
		return !w.mayReturn() || w.pay(x)
	}
	if w.maySend(x, next) {
		return true
	}
	for ; next < len(w.plan); next++ {
		if w.well(next) {
			w.at = next - 1
			return true
		}
	}
	return false
}

// maySend reports whether a request that has failed may be sent to this place of the plan.
func (w *walk) maySend(x *exchange, at int) bool { return w.well(at) || w.pay(x) }

// pay takes the next repeat from the retry budget, once.
func (w *walk) pay(x *exchange) bool {
	w.paid = w.paid || x.live.Router.Budget.Take()
	return w.paid
}

func (w *walk) well(at int) bool {
	s := w.plan[at].Lane.Status()
	// What an operator holds closed may have opened below: its samples are old then.
	return s.State == health.Closed && !s.Forced && s.Failures < wellShare
}

// wellShare is the share of failures below which a provider is well.
const wellShare = 0.1

// fail notes the keys that are not to be asked again when the wait is over.
func (w *walk) fail(a *answer, c conduct) {
	keys := a.lease.OwnerKeys()
	if c.nextKey {
		keys = []string{a.lease.KeyID()}
	}
	if w.failed == nil {
		w.failed = map[int][]string{}
	}
	w.failed[w.at] = append(w.failed[w.at], keys...)
}

// oversized reports whether a prompt was refused that is larger than any limit:
// no wait and no other key will do.
func (a *answer) oversized() bool {
	_, _, oversized := a.lease.Oversized()
	return oversized && a.verdict == limited
}

// back returns, once and after a moment, to the upstream that failed last, where
// no later one can serve. It avoids the organization that failed.
func (w *walk) back(x *exchange) bool {
	if !w.mayReturn() || w.counted > 0 && !w.promised && !w.pay(x) {
		return false
	}
	w.again, w.at, w.tried, w.avoid = true, w.left.at, w.left.tried, w.left.avoid
	w.forced = w.forced || w.promised
	x.pause(250*time.Millisecond + rand.N(250*time.Millisecond))
	return !x.clientGone()
}

// mayReturn reports whether there is an upstream to go back to, and its breaker has
// not opened since it was promised another attempt.
func (w *walk) mayReturn() bool {
	return w.left != nil && !w.again && (w.promised || letsIn(w.plan[w.left.at]))
}

// pause waits a little, or until the client leaves.
func (x *exchange) pause(d time.Duration) {
	ctx, cancel := context.WithTimeout(x.r.Context(), d)
	defer cancel()
	<-ctx.Done()
	x.waited += d
}
