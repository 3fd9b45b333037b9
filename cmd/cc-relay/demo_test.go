package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDemo takes real time, because it is about real sockets.
func TestDemo(t *testing.T) {
	code, stdout, stderr := command(t, "demo", "--for", "6s", "--listen", "127.0.0.1:0", "--json")
	require.Zero(t, code, stderr)
	assert.Empty(t, stderr)

	var res map[string]any
	require.NoError(t, json.Unmarshal([]byte(stdout), &res), "stdout must be one JSON object, got:\n%s", stdout)
	assert.NotContains(t, res, "errors", "what clients saw")
	number := func(name string) float64 {
		n, ok := res[name].(float64)
		require.True(t, ok, "%s is missing or no number in %s", name, stdout)
		return n
	}
	assert.Zero(t, number("client_errors"))
	assert.Greater(t, number("requests"), 20.0)
	assert.Greater(t, number("sessions"), 1.0)
	assert.GreaterOrEqual(t, number("upstream_429s"), number("scripted_429s"))
	assert.GreaterOrEqual(t, number("duration"), 3.0)
	// A slow machine may not get far in 3 s, but never beyond what is offered,
	// a last answer excepted.
	assert.InDelta(t, 0.35, number("capacity_used"), 0.25)
	assert.GreaterOrEqual(t, number("capacity_counted"), 0.9*number("capacity_used"))
	assert.InDelta(t, 0.85, number("cache_hit_share"), 0.15)

	// The provider failed, and the relay made up for it.
	assert.Subset(t, res["upstream_failures"], map[string]any{"529": 1.0, "cut": 1.0})
	assert.GreaterOrEqual(t, number("faults_injected"), 2.0)
	assert.GreaterOrEqual(t, number("failovers"), number("faults_injected"))
}

func TestDemoWithAnotherPolicy(t *testing.T) {
	code, stdout, stderr := command(t, "demo", "--for", "3s", "--listen", "127.0.0.1:0", "--json", "--policy", "random")
	require.Zero(t, code, stderr)
	var res map[string]any
	require.NoError(t, json.Unmarshal([]byte(stdout), &res), "stdout must be one JSON object, got:\n%s", stdout)
	assert.Equal(t, "random", res["policy"])
	assert.Contains(t, res, "cache_hit_share")

	code, _, stderr = command(t, "demo", "--policy", "psychic")
	assert.NotZero(t, code)
	assert.Contains(t, stderr, "least_loaded", "it must name the strategies there are")
}
