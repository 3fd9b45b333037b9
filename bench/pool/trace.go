package main

import (
	"cmp"
	"slices"
	"time"
)

// blockTokens is the grain of a trace: prefixes are shared in whole blocks.
const blockTokens = 512

// Turn is one request of a conversation and its answer.
type Turn struct {
	Conversation int
	Input        int // tokens of the whole prompt
	Output       int // tokens of the answer
	Parent       int // index of an earlier turn, whose answer it waits for; -1: none
	Shared       int // leading blocks in common with the parent
	System       int // id of a prefix common to many conversations
	SystemBlocks int // its length; 0: none
	// Start is the time of the first turn of a session, from the start of the run.
	Start time.Duration
	// Gap is the time between the parent's answer and this turn.
	Gap time.Duration
	// Bytes of one token of the prompt.
	Bytes float64
	// Gone: the client leaves when Output tokens have been made.
	Gone bool

	chain    []uint64
	points   []int
	children []int
	session  int // index of the first turn of its session
}

// blocks is how many whole blocks the prompt has.
func (t *Turn) blocks() int { return t.Input / blockTokens }

// Trace is a sequence of turns, parents before their children.
type Trace []Turn

// link derives what replaying needs: chains, breakpoints, children, sessions.
func (tr Trace) link() {
	extended := make([]bool, len(tr)) // the chain's spare room is taken
	for i := range tr {
		t := &tr[i]
		t.children, t.chain, t.session = nil, nil, i
		shared := 0
		if t.Parent >= 0 {
			p := &tr[t.Parent]
			p.children = append(p.children, i)
			t.session = p.session
			shared = min(t.Shared, len(p.chain), t.blocks())
			if shared == len(p.chain) && !extended[t.Parent] {
				t.chain, extended[t.Parent] = p.chain, true
			} else {
				t.chain = slices.Clone(p.chain[:shared])
			}
		}
		for b := shared; b < t.blocks(); b++ {
			if b < t.SystemBlocks {
				t.chain = append(t.chain, mix(0x53, uint64(t.System), uint64(b)))
			} else {
				t.chain = append(t.chain, mix(0x54, uint64(i), uint64(b)))
			}
		}
		t.points = breakpoints(t.SystemBlocks, shared, t.blocks())
	}
}

// breakpoints are where a coding agent sets them: behind the system prompt, at the
// end of the last prompt, and at the end of this one.
func breakpoints(system, shared, blocks int) []int {
	var points []int
	for _, n := range []int{min(system, blocks), shared, blocks} {
		if n > 0 {
			points = append(points, n-1)
		}
	}
	slices.Sort(points)
	return slices.Compact(points)
}

// keep is the trace without the sessions for which take, given the index of their
// first turn, is false.
func (tr Trace) keep(take func(session int) bool) Trace {
	var kept Trace
	at := make([]int, len(tr))
	for i, t := range tr {
		if !take(t.session) {
			continue
		}
		at[i] = len(kept)
		if t.Parent >= 0 {
			t.Parent = at[t.Parent]
		}
		kept = append(kept, t)
	}
	kept.link()
	return kept
}

// sessions are the first turns in order of their start.
func (tr Trace) sessions() []int {
	var first []int
	for i, t := range tr {
		if t.Parent < 0 {
			first = append(first, i)
		}
	}
	slices.SortStableFunc(first, func(a, b int) int { return cmp.Compare(tr[a].Start, tr[b].Start) })
	return first
}

// mix hashes a few numbers to one, as splitmix64 does
// (https://prng.di.unimi.it/splitmix64.c).
func mix(values ...uint64) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, v := range values {
		h ^= v
		h += 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}
