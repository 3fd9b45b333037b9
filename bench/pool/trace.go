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

	chain    []uint64 // of content blocks: each stands for the prompt through it
	ends     []int    // of the same, in blocks of blockTokens
	points   []int    // indexes of chain where a breakpoint stands
	children []int
	session  int // index of the first turn of its session
}

// blocks is how many whole blocks the prompt has.
func (t *Turn) blocks() int { return t.Input / blockTokens }

// Trace is a sequence of turns, parents before their children.
type Trace []Turn

// turnBlocks is how many content blocks a turn adds to a prompt: what the model
// said, its tool call, and the tool's result. Caches know prefixes by these.
const turnBlocks = 3

// link derives what replaying needs: chains, breakpoints, children, sessions.
func (tr Trace) link() {
	extended := make([]bool, len(tr)) // the chain's spare room is taken
	for i := range tr {
		t := &tr[i]
		t.children, t.chain, t.ends, t.session = nil, nil, nil, i
		shared := 0
		if t.Parent >= 0 {
			p := &tr[t.Parent]
			p.children = append(p.children, i)
			t.session = p.session
			shared = min(t.Shared, p.blocks(), t.blocks())
			n, _ := slices.BinarySearch(p.ends, shared+1) // that many ends are shared
			if n == len(p.ends) && !extended[t.Parent] {
				t.chain, t.ends, extended[t.Parent] = p.chain, p.ends, true
			} else {
				t.chain, t.ends = slices.Clone(p.chain[:n]), slices.Clone(p.ends[:n])
			}
		}
		tr.extend(i, shared)
		t.points = t.breakpoints(shared)
	}
}

// extend adds the content blocks that turn i does not share with its parent.
func (tr Trace) extend(i, shared int) {
	t := &tr[i]
	add := func(end int) {
		if n := len(t.ends); end > 0 && (n == 0 || end > t.ends[n-1]) {
			t.ends = append(t.ends, end)
			t.chain = append(t.chain, tr.hash(i, end))
		}
	}
	if shared < t.SystemBlocks {
		add(min(t.SystemBlocks, t.blocks()))
	}
	add(shared)
	from := max(shared, t.SystemBlocks)
	for n := 1; n <= turnBlocks; n++ {
		add(from + (t.blocks()-from)*n/turnBlocks)
	}
}

// hash stands for the prompt of turn i through its block number end: equal where
// the trace says that two prompts are.
func (tr Trace) hash(i, end int) uint64 {
	t := &tr[i]
	for t.Parent >= 0 && end <= min(t.Shared, tr[t.Parent].blocks()) {
		i = t.Parent
		t = &tr[i]
	}
	if end <= t.SystemBlocks {
		return mix(0x53, uint64(t.System), uint64(end))
	}
	return mix(0x54, uint64(i), uint64(end))
}

// breakpoints are indexes into the chain where a coding agent sets them: behind the
// system prompt, at the end of the last prompt, and at the end of this one.
func (t *Turn) breakpoints(shared int) []int {
	var points []int
	for _, end := range []int{min(t.SystemBlocks, t.blocks()), shared, t.blocks()} {
		if at, ok := slices.BinarySearch(t.ends, end); ok {
			points = append(points, at)
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
