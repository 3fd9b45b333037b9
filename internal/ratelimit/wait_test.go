package ratelimit_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/ratelimit"
)

// What WaitFor promises must hold to the nanosecond, at rates that no duration
// divides evenly, and must not be generous either.
func TestAfterExactlyTheWaitItAdmits(t *testing.T) {
	for _, limit := range []int{1, 3, 7, 50, 999, 1000, 30_000, 450_001, 77_777_777, 1_000_000_000} {
		for _, share := range []int{1, 3, 10, 1000} { // of the limit
			need := ratelimit.Tokens{Input: max(1, limit/share)}
			need.Input = min(need.Input, 100_000_000)
			t.Run(fmt.Sprintf("need %d of %d", need.Input, limit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{ITPM: limit})
					for l.GetUsage().Input > -float64(limit)/3 {
						l.Settle(ratelimit.Tokens{}, ratelimit.Tokens{Input: max(1, limit/7)})
					}
					time.Sleep(time.Duration(limit) % 977)
					wait := l.GetUsage().WaitFor(need)
					require.Positive(t, wait)
					early := wait / 1000
					time.Sleep(wait - early)
					if float64(limit)*early.Minutes() > precision {
						assert.False(t, l.Allow(need), "admitted %s before the wait of %s was over", early, wait)
					}
					time.Sleep(early)
					assert.True(t, l.Allow(need), "refused after the wait of %s, now %s more", wait, l.GetUsage().WaitFor(need))
				})
			})
		}
	}
}

// Sizes that no provider has must not turn into a free pass.
func TestAbsurdNumbers(t *testing.T) {
	huge := ratelimit.Tokens{Input: math.MaxInt, Output: math.MaxInt}
	tiny := ratelimit.Tokens{Input: math.MinInt, Output: math.MinInt}
	sane := func(t *testing.T, l *ratelimit.TokenBucketLimiter) {
		t.Helper()
		u := l.GetUsage()
		for name, level := range map[string]float64{"requests": u.Requests, "input": u.Input, "output": u.Output} {
			assert.False(t, math.IsNaN(level) || math.IsInf(level, 0), "%s is %v", name, level)
		}
		for name, limit := range map[string]int{"RPM": u.Limits.RPM, "ITPM": u.Limits.ITPM, "OTPM": u.Limits.OTPM} {
			assert.GreaterOrEqual(t, limit, 0, name)
		}
		assert.GreaterOrEqual(t, u.InFlight, 0)
		assert.GreaterOrEqual(t, u.Held.Input, 0)
		for _, need := range []ratelimit.Tokens{{}, {Input: 1, Output: 1}, huge, tiny} {
			assert.GreaterOrEqual(t, u.WaitFor(need), time.Duration(0), "wait for %+v at %+v", need, u)
		}
	}
	t.Run("estimates and usage", func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 5, ITPM: 5, OTPM: 5})
		assert.False(t, l.Allow(huge))
		assert.True(t, l.Allow(tiny))
		l.Settle(huge, tiny)
		sane(t, l)
		l.Settle(tiny, huge)
		sane(t, l)
		assert.Less(t, l.GetUsage().Input, 0.0, "an absurd usage is still a debt")
	})
	t.Run("a debt of many lifetimes", func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 1, ITPM: 1, OTPM: 1})
		for range 100 {
			l.Settle(tiny, huge)
		}
		sane(t, l)
		assert.False(t, l.Allow(tiny))
		assert.Greater(t, l.GetUsage().WaitFor(ratelimit.Tokens{Input: 1}), 100*365*24*time.Hour, "a wait that overflows must not become none")
	})
	t.Run("limits", func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: math.MaxInt, ITPM: math.MaxInt, OTPM: math.MinInt})
		assert.Equal(t, ratelimit.Limits{RPM: 1_000_000_000, ITPM: 1_000_000_000}, l.GetUsage().Limits)
		assert.True(t, l.Allow(huge))
		sane(t, l)
		l.SetLimit(ratelimit.Limits{RPM: 1, ITPM: math.MinInt, OTPM: math.MaxInt})
		sane(t, l)
	})
	t.Run("times", func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 1})
		require.True(t, l.Allow(tiny))
		far := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
		require.True(t, l.AllowAt(far, tiny))
		assert.InDelta(t, 0, l.UsageAt(far).Requests, precision)
		sane(t, l)
	})
}
