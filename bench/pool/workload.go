package main

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// session is the generator of one kind of conversation. It appends the turns of one
// session that starts at start, parents first.
type session func(g *generator, start time.Duration)

// workload is a kind of traffic. Sessions arrive at random, at a rate that no
// answer slows; within a session each turn waits for the answer before.
type workload struct {
	name    string
	session session
	// length is about how long a session lasts: so many are under way at the start.
	// Since the number of turns has no memory, they need no past.
	length time.Duration
}

var workloads = map[string]workload{
	"agent": {name: "agent", session: agentSession, length: 11 * time.Minute},
	"conv":  {name: "conv", session: convSession, length: 4 * time.Minute},
	"plain": {name: "plain", session: plainSession},
	"syn":   {name: "syn", session: synSession},
}

func workloadNames() []string { return slices.Sorted(maps.Keys(workloads)) }

// settle is the time over which the sessions under way at the start begin.
const settle = time.Minute

// generator makes a trace; equal seeds make equal traces.
type generator struct {
	rng           *rand.Rand
	trace         Trace
	conversations int
}

// generate makes a trace of horizon with so many sessions arriving a minute.
func (w workload) generate(seed uint64, rate float64, horizon time.Duration) Trace {
	g := &generator{rng: rand.New(rand.NewPCG(seed, 0x776f726b))}
	for range int(rate * w.length.Minutes()) {
		w.session(g, time.Duration(g.rng.Int64N(int64(settle))))
	}
	for at := g.exponential(1 / rate); at < horizon.Minutes(); at += g.exponential(1 / rate) {
		w.session(g, time.Duration(at*float64(time.Minute)))
	}
	g.trace.link()
	return g.trace
}

// add appends a turn; parent -1 starts a conversation.
func (g *generator) add(t Turn) int {
	if t.Parent < 0 {
		t.Conversation = g.converse()
	}
	t.Bytes = 4 * (0.8 + 0.4*g.rng.Float64()) // what a policy takes for a token is wrong by 20 %
	g.trace = append(g.trace, t)
	return len(g.trace) - 1
}

// converse starts a conversation.
func (g *generator) converse() int {
	g.conversations++
	return g.conversations
}

// Of the sessions of a coding agent: the prefix of tools and system prompt, which
// many share; tool results, in tokens; when the agent compacts its context.
const (
	agentPrefixes  = 8
	agentPrefixMin = 19_000
	agentPrefixMax = 22_000
	agentTurns     = 28
	agentGone      = 50 // of so many answers one is interrupted
	agentSends     = 30 // of so many answers one sends sub-agents out, …
	agentHelpers   = 3  // … at most so many, …
	helperTurns    = 6  // … for so many turns each
	compactAt      = 160_000
)

// agentSession is one task of a coding agent: nothing but tool results is new in a
// prompt, and each prompt contains the one before. Now and then it sends out
// sub-agents, which work beside it.
func agentSession(g *generator, start time.Duration) {
	id := g.rng.IntN(agentPrefixes)
	prefix := agentPrefixMin + id*(agentPrefixMax-agentPrefixMin)/(agentPrefixes-1)
	first := Turn{Parent: -1, Start: start, System: id, SystemBlocks: prefix / blockTokens, Input: prefix + g.logNormal(500, 0.8, 8_000)}
	for _, sender := range g.agent(first, prefix, agentTurns) {
		for range 1 + g.rng.IntN(agentHelpers) {
			helper := first
			helper.Parent, helper.Conversation, helper.Start = sender, g.converse(), 0
			helper.Input = prefix + g.logNormal(500, 0.8, 8_000)
			g.agent(helper, prefix, helperTurns)
		}
	}
}

// agent adds the turns of one agent, on the mean so many, and answers those of them
// that send out sub-agents.
func (g *generator) agent(turn Turn, prefix int, turns float64) (senders []int) {
	for range g.geometric(turns) {
		turn.Output = g.logNormal(190, 1, 8_000)
		if turn.Gone = g.rng.IntN(agentGone) == 0; turn.Gone {
			turn.Output = 1 + g.rng.IntN(turn.Output)
		}
		last := g.add(turn)
		if g.rng.IntN(agentSends) == 0 {
			senders = append(senders, last)
		}
		before := g.trace[last]
		turn = Turn{
			Conversation: before.Conversation, Parent: last, System: before.System, SystemBlocks: before.SystemBlocks,
			Input:  before.Input + before.Output + g.logNormal(700, 1.6, 25_000),
			Shared: before.blocks(),
			Gap:    2*time.Second + g.seconds(6),
		}
		if g.rng.IntN(10) == 0 {
			turn.Gap += g.seconds(110)
		}
		if turn.Input > compactAt { // the agent goes on with a summary
			turn.Input = prefix + g.logNormal(4_000, 0.3, 10_000)
			turn.Shared = turn.SystemBlocks
		}
	}
	return senders
}

// Of chats. Every second conversation has one of a few system prompts.
const (
	convTurns   = 5
	convSystems = 20
)

// convSession is a chat: each prompt contains all that was said before, and people
// take tens of seconds to minutes to go on.
func convSession(g *generator, start time.Duration) {
	turn := Turn{Parent: -1, Start: start, Input: g.logNormal(1_200, 0.9, 30_000)}
	if g.rng.IntN(2) == 0 {
		turn.System = g.zipf(convSystems)
		turn.SystemBlocks = 2 + turn.System%4
		turn.Input += turn.SystemBlocks * blockTokens
	}
	for range g.geometric(convTurns) {
		turn.Output = g.logNormal(230, 0.8, 4_000)
		last := g.add(turn)
		turn.Conversation = g.trace[last].Conversation
		turn.Parent, turn.Shared = last, turn.blocks()
		turn.Input += turn.Output + g.logNormal(150, 1.2, 10_000)
		turn.Gap = time.Duration(g.logNormal(40_000, 0.9, 1_200_000)) * time.Millisecond
	}
}

const synSystems = 50

// synSession is one independent prompt; most begin like many others.
func synSession(g *generator, start time.Duration) {
	turn := Turn{Parent: -1, Start: start, Input: g.logNormal(1_500, 1, 60_000), Output: g.logNormal(180, 0.9, 4_000)}
	if g.rng.IntN(10) < 7 {
		turn.System = g.zipf(synSystems)
		turn.SystemBlocks = 2 + turn.System%15
		turn.Input += turn.SystemBlocks * blockTokens
	}
	g.add(turn)
}

// plainSession is one independent prompt that has nothing in common with another.
func plainSession(g *generator, start time.Duration) {
	g.add(Turn{Parent: -1, Start: start, Input: g.logNormal(1_500, 1, 60_000), Output: g.logNormal(230, 0.8, 4_000)})
}

// logNormal draws a whole number of 1 to most.
func (g *generator) logNormal(median, sigma float64, most int) int {
	return max(1, min(int(median*math.Exp(sigma*g.rng.NormFloat64())), most))
}

// geometric draws a number of turns, at least one.
func (g *generator) geometric(mean float64) int {
	return 1 + int(math.Log(1-g.rng.Float64())/math.Log(1-1/mean))
}

func (g *generator) exponential(mean float64) float64 { return mean * g.rng.ExpFloat64() }

func (g *generator) seconds(mean float64) time.Duration {
	return time.Duration(g.exponential(mean) * float64(time.Second))
}

// zipf draws one of n ids, the lower the more often.
func (g *generator) zipf(n int) int {
	return int(math.Exp(g.rng.Float64()*math.Log(float64(n)+1))) - 1
}
