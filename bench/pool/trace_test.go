package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseTrace(t *testing.T) {
	// Row 0 takes 1 s, 0.2 s for 2,000 uncached tokens, and 1 s for 60 tokens.
	tr, err := parseTrace(strings.NewReader(traceHeader + "\n" +
		"1500,a,2000,60,-1,0,7,2\n" +
		"9700,a,2600,10,0,3,7,2\n" +
		" 9800 , b , 1100 , 10 , -1 , 0 , -1 , 0 \n"))
	require.NoError(t, err)
	require.Len(t, tr, 3)
	assert.Equal(t, 1500*time.Millisecond, tr[0].Start)
	assert.InDelta(t, 6*time.Second, tr[1].Gap, float64(time.Microsecond), "pause behind the assumed end of the answer")
	assert.Equal(t, []int{0, 0, 2}, []int{tr[0].session, tr[1].session, tr[2].session})
	assert.Equal(t, []int{0, 0, 1}, []int{tr[0].Conversation, tr[1].Conversation, tr[2].Conversation})
	assert.Equal(t, []int{1}, tr[0].children)
	assert.Equal(t, []int{2, 3}, tr[0].ends, "the system prompt, then what was said")
	assert.Equal(t, []int{2, 3, 4, 5}, tr[1].ends, "a turn adds up to three content blocks")
	assert.Equal(t, tr[0].chain, tr[1].chain[:2])
	assert.Equal(t, []int{0, 1, 3}, tr[1].points, "behind system, last prompt, this prompt")
	for i := range tr {
		assert.GreaterOrEqual(t, tr[i].Bytes, 3.2, "row %d", i)
		assert.LessOrEqual(t, tr[i].Bytes, 4.8, "row %d", i)
	}
}

func TestParseTraceNamesTheLineAndTheMistake(t *testing.T) {
	const first = "1000,a,2000,60,-1,0,7,2\n"
	for name, tc := range map[string]struct{ text, want string }{
		"empty":                   {"", "line 1: want the header"},
		"other header":            {"t,conversation\n", "line 1: want the header"},
		"no rows":                 {traceHeader + "\n", "line 2: want at least one row"},
		"columns":                 {traceHeader + "\n1,a,2\n", "line 2: got 3 columns, want 8"},
		"no number":               {traceHeader + "\n" + first + "x,a,2000,60,0,0,7,2\n", `line 3: t_ms: got "x"`},
		"huge":                    {traceHeader + "\n1000,a,99999999999,60,-1,0,7,2\n", `line 2: input_tokens: got "99999999999"`},
		"minus two":               {traceHeader + "\n1000,a,2000,60,-2,0,7,2\n", `line 2: parent: got "-2"`},
		"negative time":           {traceHeader + "\n-1,a,2000,60,-1,0,7,2\n", "line 2: t_ms"},
		"no name":                 {traceHeader + "\n1, ,2000,60,-1,0,7,2\n", "line 2: conversation"},
		"no input":                {traceHeader + "\n1,a,0,60,-1,0,7,2\n", "line 2: input_tokens"},
		"no output":               {traceHeader + "\n1,a,2000,0,-1,0,7,2\n", "line 2: input_tokens and output_tokens"},
		"parent is itself":        {traceHeader + "\n" + first + "2000,a,2000,60,1,0,7,2\n", "line 3: parent: got 1"},
		"shared without parent":   {traceHeader + "\n1000,a,2000,60,-1,1,7,2\n", "line 2: shared_blocks: got 1 without a parent"},
		"shares more than it has": {traceHeader + "\n" + first + "2000,a,1000,60,0,2,7,1\n", "line 3: shared_blocks: got 2, want at most the 1"},
		"shares more than parent": {traceHeader + "\n" + first + "2000,a,9000,60,0,4,7,1\n", "line 3: shared_blocks: got 4, want at most the 3"},
		"before its parent":       {traceHeader + "\n" + first + "900,a,2000,60,0,0,7,2\n", "line 3: t_ms: got 900"},
		"system too long":         {traceHeader + "\n1000,a,2000,60,-1,0,7,4\n", "line 2: system_blocks: got 4"},
		"system without id":       {traceHeader + "\n1000,a,2000,60,-1,0,-1,2\n", "line 2: system: got -1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseTrace(strings.NewReader(tc.text))
			assert.ErrorContains(t, err, tc.want)
		})
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add("1000,a,2000,60,-1,0,7,2\n2000,a,2600,60,0,3,7,2\n")
	f.Add("1000,a,2000,60,-1,0,-1,0\n2000,b,2600,60,0,1,7,2\n2500,c,2600,60,0,3,7,2")
	f.Fuzz(func(t *testing.T, rows string) {
		if len(rows) > 400 {
			return // many rows only cost time
		}
		tr, err := parseTrace(strings.NewReader(traceHeader + "\n" + rows))
		if err != nil {
			return
		}
		for i, turn := range tr {
			require.Less(t, turn.Parent, i, "turn %d", i)
			require.Len(t, turn.ends, len(turn.chain), "turn %d", i)
			require.True(t, turn.blocks() == 0 || turn.ends[len(turn.ends)-1] == turn.blocks(), "turn %d: all whole blocks are in the chain", i)
			for b, end := range turn.ends {
				require.True(t, b == 0 || end > turn.ends[b-1], "turn %d: %v rise", i, turn.ends)
				require.Equal(t, tr.hash(i, end), turn.chain[b], "turn %d: what is shared has one hash", i)
			}
			for _, at := range turn.points {
				require.Less(t, at, len(turn.chain), "turn %d", i)
			}
		}
	})
}

func TestSiblingsDoNotOverwriteEachOther(t *testing.T) {
	tr := Trace{
		{Input: 4 * blockTokens, Output: 1, Parent: -1},
		{Input: 6 * blockTokens, Output: 1, Parent: 0, Shared: 4},
		{Input: 8 * blockTokens, Output: 1, Parent: 0, Shared: 4},
		{Input: 7 * blockTokens, Output: 1, Parent: 1, Shared: 6},
	}
	tr.link()
	for i := 1; i < len(tr); i++ {
		p := tr[tr[i].Parent]
		assert.Equal(t, p.chain, tr[i].chain[:len(p.chain)], "turn %d", i)
	}
	first := len(tr[0].chain)
	for _, hash := range tr[2].chain[first:] {
		assert.NotContains(t, tr[3].chain, hash, "blocks that differ have hashes that differ")
	}
}

// Two prompts that leave a third one at the same place find each other there.
func TestAPrefixThatEndsInsideABlockIsShared(t *testing.T) {
	tr := Trace{
		{Input: 30 * blockTokens, Output: 1, Parent: -1},
		{Input: 40 * blockTokens, Output: 1, Parent: 0, Shared: 7},
		{Input: 50 * blockTokens, Output: 1, Parent: 0, Shared: 7},
	}
	tr.link()
	for i := 1; i < len(tr); i++ {
		at := slices.Index(tr[i].ends, 7)
		require.NotEqual(t, -1, at, "turn %d: got ends %v", i, tr[i].ends)
		assert.Contains(t, tr[i].points, at, "turn %d", i)
		assert.Equal(t, tr.hash(0, 7), tr[i].chain[at], "turn %d", i)
	}
}

func TestCopiesFillTheHorizon(t *testing.T) {
	file := Trace{
		{Conversation: 3, Start: time.Minute, Input: 1000, Output: 10, Parent: -1},
		{Conversation: 3, Input: 1500, Output: 10, Parent: 0, Shared: 1},
		{Conversation: 4, Start: 11 * time.Minute, Input: 1000, Output: 10, Parent: -1},
	}
	got := file.copies(3, 10*time.Minute)
	require.Len(t, got, 6, "the session beyond the horizon is left out of every copy")
	conversations := map[int]bool{}
	for i, turn := range got {
		conversations[turn.Conversation] = true
		if turn.Parent < 0 {
			assert.Less(t, turn.Start, 10*time.Minute, "turn %d", i)
		} else {
			assert.Equal(t, i-1, turn.Parent)
		}
	}
	assert.Len(t, conversations, 3)
}
