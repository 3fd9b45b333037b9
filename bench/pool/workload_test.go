package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWorkloads(t *testing.T) {
	for name, w := range workloads {
		t.Run(name, func(t *testing.T) {
			tr := w.generate(1, 20, 10*time.Minute)
			require.NotEmpty(t, tr)
			assert.Equal(t, tr, w.generate(1, 20, 10*time.Minute), "equal seeds")
			assert.NotEqual(t, tr, w.generate(2, 20, 10*time.Minute), "other seeds")
			for i, turn := range tr {
				require.Less(t, turn.Parent, i, "turn %d: parents come first", i)
				require.Positive(t, turn.Input, "turn %d", i)
				require.Positive(t, turn.Output, "turn %d", i)
				require.LessOrEqual(t, turn.SystemBlocks, turn.blocks(), "turn %d", i)
				if turn.Shared > turn.SystemBlocks {
					require.Equal(t, tr[turn.Parent].Conversation, turn.Conversation, "turn %d", i)
				}
			}
		})
	}
}

func TestAgentSessionsFollowTheRecipe(t *testing.T) {
	tr := workloads["agent"].generate(1, 40, 18*time.Minute)
	turns := make(map[bool]float64) // of sub-agents
	agents := make(map[bool]float64)
	helpers := make(map[int]bool) // conversations
	for _, turn := range tr {
		starts := turn.Parent < 0 || tr[turn.Parent].Conversation != turn.Conversation
		if starts && turn.Parent >= 0 {
			helpers[turn.Conversation] = true
			require.Equal(t, tr[turn.Parent].System, turn.System)
			require.Zero(t, turn.Shared, "what it has in common with its sender is the system prompt")
			require.Equal(t, tr[turn.Parent].chain[0], turn.chain[0])
		}
		helper := helpers[turn.Conversation]
		turns[helper]++
		if starts {
			agents[helper]++
		}
	}
	assert.InDelta(t, agentTurns, turns[false]/agents[false], 2, "turns of a session")
	assert.InDelta(t, helperTurns, turns[true]/agents[true], 0.5, "turns of a sub-agent")
	assert.InDelta(t, 28.0/30*2, agents[true]/agents[false], 0.2, "sub-agents of a session")
	for i, turn := range tr {
		require.LessOrEqual(t, turn.Input, compactAt, "turn %d", i)
		require.GreaterOrEqual(t, turn.Input, agentPrefixMin, "turn %d", i)
		if turn.Shared > 0 {
			require.GreaterOrEqual(t, turn.Gap, 2*time.Second, "turn %d", i)
		}
	}
}

func TestPlainPromptsShareNothing(t *testing.T) {
	tr := workloads["plain"].generate(1, 100, 18*time.Minute)
	seen := make(map[uint64]bool)
	for i, turn := range tr {
		require.Equal(t, -1, turn.Parent, "turn %d", i)
		for _, hash := range turn.chain {
			require.False(t, seen[hash], "turn %d", i)
			seen[hash] = true
		}
	}
}

func TestLoadIsWhatWasAskedFor(t *testing.T) {
	win := Window{From: time.Minute, To: 4 * time.Minute}
	pool := little
	for name, w := range workloads {
		t.Run(name, func(t *testing.T) {
			src, err := generated(w, pool, 3, 0.9, win)
			require.NoError(t, err)
			for _, load := range []float64{0.3, 0.9} {
				tr, ideal, err := src.at(load, pool, win)
				require.NoError(t, err)
				need, _ := offered(tr, ideal, win)
				assert.InDelta(t, load, need.over(pool.perWindow(win)), 0.02)
			}
		})
	}
}
