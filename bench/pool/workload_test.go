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
				if turn.Parent >= 0 {
					require.Equal(t, tr[turn.Parent].Conversation, turn.Conversation, "turn %d", i)
				}
			}
		})
	}
}

func TestAgentSessionsFollowTheRecipe(t *testing.T) {
	tr := workloads["agent"].generate(1, 40, 18*time.Minute)
	sessions := len(tr.sessions())
	assert.InDelta(t, agentTurns, float64(len(tr))/float64(sessions), 2, "turns of a session")
	for i, turn := range tr {
		require.LessOrEqual(t, turn.Input, compactAt, "turn %d", i)
		require.GreaterOrEqual(t, turn.Input, agentPrefixMin, "turn %d", i)
		if turn.Parent >= 0 {
			require.GreaterOrEqual(t, turn.Gap, 2*time.Second, "turn %d", i)
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
