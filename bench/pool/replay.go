package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"cc-relay/internal/simulator"
)

// How a provider answers and what its clients do. These are assumptions.
const (
	firstByte     = time.Second            // of an answer to a cached prompt …
	perUncached   = time.Second / 10_000   // … and more for each uncached token
	perOutput     = time.Second / 60       // one token of output
	refusalTime   = 100 * time.Millisecond // until a 429 is there
	stepTokens    = 50                     // a policy hears of output in such steps
	maxTokens     = 128_000                // what Claude Code asks for
	maxDispatches = 4                      // of one HTTP request
	clientRetries = 2                      // of the SDKs
	maxRetryWait  = 60 * time.Second       // above it, clients give up
	clientWaits   = 180 * time.Second      // up to here the relay says at most maxRetryWait
	backoffFirst  = 500 * time.Millisecond // of the SDKs, where retry-after says nothing; doubling …
	backoffMost   = 8 * time.Second        // … up to this, less up to a quarter
	moveAfter     = 250 * time.Millisecond // an overloaded provider is asked once more, after this to twice this
)

var errStuck = errors.New("policy waits without letting time pass")

// epoch is when every run begins: a moment that no clock of today shows, for what a
// pool makes by its own clock must not be younger than the run.
var epoch = time.Date(2100, 1, 4, 9, 0, 0, 0, time.UTC)

// status is what became of a turn.
type status uint8

const (
	unasked status = iota
	pending
	completed
	gone // the client left in the middle
	failed
)

// outcome is what became of a turn, times from the start of the run.
type outcome struct {
	status         status
	asked          time.Duration // first, of the relay
	served         time.Duration // dispatch of the attempt that was served
	refusals       int           // 429s of providers
	read, uncached int           // of the prompt
}

// task is a turn under way.
type task struct {
	turn       int
	policy     Policy // that was in force when req arrived
	req        *Request
	call       *call
	refused    *refusal
	sent       time.Duration
	knew       bool // the policy had been told of the event when this was dispatched
	retries    int  // of the client
	dispatches int  // of req
	moved      bool // req has been asked once more after a 529
	output     int
}

// replay plays one trace against one provider through one policy.
type replay struct {
	trace     Trace
	policy    Policy
	provider  *provider
	horizon   time.Duration // no turn is first asked at this time or later
	stop      bool          // a turn that failed ends its session
	step      int
	restarted func(now time.Time, old Policy) Policy

	queue    queue
	now      time.Duration
	requests int
	rng      *rand.Rand // of the clients' jitter
	blocks   []simulator.Block
	outcomes []outcome
	err      error
}

func newReplay(tr Trace, from *provider, p Policy, horizon time.Duration) *replay {
	return &replay{
		trace: tr, policy: p, provider: from, horizon: horizon, step: stepTokens,
		rng: rand.New(rand.NewPCG(1, 2)), outcomes: make([]outcome, len(tr)),
	}
}

// run plays all turns to their ends and answers what became of each.
func (x *replay) run() ([]outcome, error) {
	for _, i := range x.trace.sessions() {
		x.queue.push(x.trace[i].Start, (*replay).ask, &task{turn: i})
	}
	if x.provider.event > 0 {
		x.queue.push(x.provider.event, (*replay).happen, nil)
	}
	for x.err == nil {
		e, ok := x.queue.pop()
		if !ok {
			break
		}
		x.now = e.at
		e.what(x, e.task)
	}
	return x.outcomes, x.err
}

// happen is the event of the scenario.
func (x *replay) happen(*task) {
	if x.provider.scenario.restarts {
		x.policy = x.restarted(x.clock(), x.policy)
	}
	if err := x.provider.happen(x.now); err != nil {
		x.err = err
	}
}

func (x *replay) clock() time.Time { return epoch.Add(x.now) }

func (x *replay) after(d time.Duration, what func(*replay, *task), t *task) {
	x.queue.push(x.now+d, what, t)
}

// ask begins a turn.
func (x *replay) ask(t *task) {
	if x.now >= x.horizon {
		return
	}
	x.outcomes[t.turn].status = pending
	x.outcomes[t.turn].asked = x.now
	x.send(t)
}

// send is one HTTP request of the client.
func (x *replay) send(t *task) {
	turn := &x.trace[t.turn]
	x.requests++
	t.policy = x.policy
	t.dispatches, t.moved = 0, false
	t.req = &Request{
		ID:           x.requests,
		Class:        simulator.ClassOf(model),
		Conversation: mix(0x43, uint64(turn.Conversation)),
		Bytes:        int(float64(turn.Input) * turn.Bytes),
		MaxTokens:    maxTokens,
		Chain:        turn.chain,
		Breakpoints:  turn.points,
		Since:        x.clock(),
		ends:         turn.ends,
		blockBytes:   blockTokens * turn.Bytes,
	}
	x.decide(t)
}

func (x *replay) decide(t *task) {
	d := t.policy.Pick(x.clock(), t.req)
	switch {
	case d.Serve:
		x.dispatch(t, d.Key)
	case d.Until.After(x.clock()):
		x.queue.push(d.Until.Sub(epoch), (*replay).decide, t)
	case !d.Until.IsZero():
		x.err = fmt.Errorf("at %v: %w", x.now, errStuck)
	case t.moved && len(t.req.Tried) > 0: // rather the overloaded provider's same key than none
		t.req.Tried = nil
		x.decide(t)
	default:
		x.reject(t, d.RetryAfter)
	}
}

func (x *replay) dispatch(t *task, key int) {
	t.req.Key = key
	t.dispatches++
	t.sent, t.knew = x.now, x.provider.told[key]
	t.call, t.refused, x.err = x.provider.ask(x.now, key, x.demand(t.turn))
	switch {
	case x.err != nil:
	case t.refused != nil:
		x.after(refusalTime, (*replay).refused, t)
	default:
		x.outcomes[t.turn].served = x.now
		x.after(timeToFirstByte(t.call.Usage().Uncached()), (*replay).begin, t)
	}
}

func timeToFirstByte(uncached int) time.Duration {
	return firstByte + time.Duration(uncached)*perUncached
}

// demand is the turn as the provider weighs it; valid until the next call.
func (x *replay) demand(i int) simulator.Demand {
	turn := &x.trace[i]
	x.blocks = x.blocks[:0]
	before := 0
	for k, h := range turn.chain {
		x.blocks = append(x.blocks, simulator.Block{Hash: h, Tokens: blockTokens * (turn.ends[k] - before)})
		before = turn.ends[k]
	}
	for _, at := range turn.points {
		x.blocks[at].TTL = 5 * time.Minute
	}
	x.blocks = append(x.blocks, simulator.Block{Hash: mix(0x52, uint64(i)), Tokens: turn.Input - blockTokens*before})
	return simulator.Demand{Workspace: "w", Model: model, Blocks: x.blocks, MaxTokens: maxTokens}
}

// refused is the arrival of another answer than 200: another key's turn, or the
// client's.
func (x *replay) refused(t *task) {
	h := newHead(x.clock(), t.refused.status, t.refused.levels)
	h.RetryAfter = t.refused.retryAfter
	x.tell(t, h)
	if h.Status == 429 {
		x.outcomes[t.turn].refusals++
	}
	if h.Status == 529 && !t.moved {
		t.moved = true
		t.req.Tried = append(t.req.Tried, t.req.Key)
		x.after(moveAfter+time.Duration(x.rng.Int64N(int64(moveAfter))), (*replay).decide, t)
		return
	}
	if h.Status == 529 {
		backoff := min(backoffFirst<<t.retries, backoffMost)
		x.retry(t, backoff-time.Duration(x.rng.Int64N(int64(backoff/4))))
		return
	}
	if t.dispatches == maxDispatches {
		x.reject(t, h.RetryAfter)
		return
	}
	t.req.Tried = append(t.req.Tried, t.req.Key)
	x.decide(t)
}

// tell gives the policy the head of an answer.
func (x *replay) tell(t *task, h *Head) {
	p, key := x.provider, t.req.Key
	p.answered(x.now, key, h.Status, t.knew)
	if p.concerns(key) && p.happened(t.sent) {
		p.told[key] = true
	}
	t.policy.Answered(x.clock(), t.req, h)
}

// reject tells the client to come back later.
func (x *replay) reject(t *task, retryAfter time.Duration) {
	wait := max((retryAfter + time.Second - 1).Truncate(time.Second), time.Second)
	if wait <= clientWaits {
		wait = min(wait, maxRetryWait)
	}
	x.retry(t, wait)
}

// retry is what the client does about an error: it comes back, as the SDKs do, or
// gives up.
func (x *replay) retry(t *task, wait time.Duration) {
	if t.retries == clientRetries || wait > maxRetryWait {
		x.finish(t, failed)
		return
	}
	t.retries++
	x.after(wait, (*replay).send, t)
}

func (x *replay) begin(t *task) {
	t.call.Begin(x.clock())
	x.tell(t, newHead(x.clock(), 200, t.call.Levels()))
	x.pace(t)
}

// pace waits for the next step of output, or ends the answer.
func (x *replay) pace(t *task) {
	left := x.trace[t.turn].Output - t.output
	if left > 0 {
		x.after(time.Duration(min(left, x.step))*perOutput, (*replay).produce, t)
		return
	}
	x.end(t)
}

func (x *replay) produce(t *task) {
	n := min(x.trace[t.turn].Output-t.output, x.step)
	t.output += n
	t.call.Produce(x.clock(), n)
	t.policy.Produced(x.clock(), t.req, n)
	x.pace(t)
}

func (x *replay) end(t *task) {
	t.call.End(x.clock())
	usage := t.call.Usage()
	o := &x.outcomes[t.turn]
	o.read, o.uncached = usage.CacheRead, usage.Uncached()
	if x.trace[t.turn].Gone {
		t.policy.Ended(x.clock(), t.req, simulator.Usage{}, true)
		x.finish(t, gone)
		return
	}
	t.policy.Ended(x.clock(), t.req, usage, false)
	x.finish(t, completed)
}

// finish ends a turn; the session goes on after the gap, unless it has failed.
func (x *replay) finish(t *task, s status) {
	x.outcomes[t.turn].status = s
	if s == failed && x.stop {
		return
	}
	for _, c := range x.trace[t.turn].children {
		x.after(x.trace[c].Gap, (*replay).ask, &task{turn: c})
	}
}
