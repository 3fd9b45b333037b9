package main

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The package is a command: there is no public door but its functions.

func TestQueueGivesEventsInOrderOfTimeThenOfMaking(t *testing.T) {
	var q queue
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		q.push(time.Duration(rng.IntN(100)), nil, nil)
	}
	last, ok := q.pop()
	require.True(t, ok)
	for n := 1; n < 1000; n++ {
		e, ok := q.pop()
		require.True(t, ok, "event %d", n)
		assert.True(t, last.before(&e), "got %v/%d after %v/%d", e.at, e.seq, last.at, last.seq)
		last = e
	}
	_, ok = q.pop()
	assert.False(t, ok, "an empty queue gave an event")
}
