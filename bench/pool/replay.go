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
)

var errStuck = errors.New("policy waits without letting time pass")

// epoch is when every run begins; any moment would do.
var epoch = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)

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
	call       *simulator.Call
	refused    *simulator.Refused
	retries    int // of the client
	dispatches int // of req
	output     int
}

// replay plays one trace against one pool through one policy. The zero values of
// goOn and step mean: a failed turn ends its session, and stepTokens.
type replay struct {
	trace   Trace
	policy  Policy
	core    *simulator.Core
	orgs    []string
	horizon time.Duration // no turn is first asked at this time or later
	goOn    bool          // a session survives a turn that failed
	step    int

	queue    queue
	now      time.Duration
	requests int
	rng      *rand.Rand // of the clients' jitter
	blocks   []simulator.Block
	outcomes []outcome
	err      error
}

func newReplay(tr Trace, pool Pool, p Policy, horizon time.Duration) (*replay, error) {
	core, orgs, err := pool.core(epoch)
	if err != nil {
		return nil, err
	}
	return &replay{
		trace: tr, policy: p, core: core, orgs: orgs, horizon: horizon, step: stepTokens,
		rng: rand.New(rand.NewPCG(1, 2)), outcomes: make([]outcome, len(tr)),
	}, nil
}

// run plays all turns to their ends and answers what became of each.
func (x *replay) run() ([]outcome, error) {
	for _, i := range x.trace.sessions() {
		x.queue.push(x.trace[i].Start, (*replay).ask, &task{turn: i})
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
	t.dispatches = 0
	t.req = &Request{
		ID:           x.requests,
		Class:        simulator.ClassOf(model),
		Conversation: mix(0x43, uint64(turn.Conversation)),
		Bytes:        int(float64(turn.Input) * turn.Bytes),
		MaxTokens:    maxTokens,
		Chain:        turn.chain,
		Breakpoints:  turn.points,
		Since:        x.clock(),
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
	default:
		x.reject(t, d.RetryAfter)
	}
}

func (x *replay) dispatch(t *task, key int) {
	t.req.Key = key
	t.dispatches++
	call, err := x.core.Admit(x.clock(), x.demand(t.turn, key))
	t.call, t.refused = call, nil
	if errors.As(err, &t.refused) {
		x.outcomes[t.turn].refusals++
		x.after(refusalTime, (*replay).refused, t)
		return
	}
	if err != nil {
		x.err = err
		return
	}
	x.outcomes[t.turn].served = x.now
	x.after(timeToFirstByte(call.Usage().Uncached()), (*replay).begin, t)
}

func timeToFirstByte(uncached int) time.Duration {
	return firstByte + time.Duration(uncached)*perUncached
}

// demand is the turn as the provider weighs it; valid until the next call.
func (x *replay) demand(i, key int) simulator.Demand {
	turn := &x.trace[i]
	x.blocks = x.blocks[:0]
	for _, h := range turn.chain {
		x.blocks = append(x.blocks, simulator.Block{Hash: h, Tokens: blockTokens})
	}
	for _, at := range turn.points {
		x.blocks[at].TTL = 5 * time.Minute
	}
	x.blocks = append(x.blocks, simulator.Block{Hash: mix(0x52, uint64(i)), Tokens: turn.Input - blockTokens*len(turn.chain)})
	return simulator.Demand{Org: x.orgs[key], Workspace: "w", Model: model, Blocks: x.blocks, MaxTokens: maxTokens}
}

// refused is the arrival of a 429: another key's turn, or the client's.
func (x *replay) refused(t *task) {
	h := newHead(x.clock(), 429, t.refused.Levels)
	h.RetryAfter = t.refused.RetryAfter
	t.policy.Answered(x.clock(), t.req, h)
	if t.dispatches == maxDispatches {
		x.reject(t, h.RetryAfter)
		return
	}
	t.req.Tried = append(t.req.Tried, t.req.Key)
	x.decide(t)
}

// reject tells the client to come back, which it does as the SDKs do.
func (x *replay) reject(t *task, retryAfter time.Duration) {
	wait := max((retryAfter + time.Second - 1).Truncate(time.Second), time.Second)
	if wait <= clientWaits {
		wait = min(wait, maxRetryWait)
	}
	if t.retries == clientRetries || wait > maxRetryWait {
		x.finish(t, failed)
		return
	}
	t.retries++
	x.after(wait, (*replay).send, t)
}

func (x *replay) begin(t *task) {
	t.call.Begin(x.clock())
	t.policy.Answered(x.clock(), t.req, newHead(x.clock(), 200, t.call.Levels()))
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
	if s == failed && !x.goOn {
		return
	}
	for _, c := range x.trace[t.turn].children {
		x.after(x.trace[c].Gap, (*replay).ask, &task{turn: c})
	}
}
