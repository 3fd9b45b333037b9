package ratelimit_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/ratelimit"
)

// precision is how far a level may lie from the exact one, in requests or tokens.
const precision = 1e-5

func assertLevels(t *testing.T, want ratelimit.Usage, got ratelimit.Usage) {
	t.Helper()
	assert.Equal(t, want.Limits, got.Limits, "limits")
	assert.InDelta(t, want.Requests, got.Requests, precision, "requests")
	assert.InDelta(t, want.Input, got.Input, precision, "input")
	assert.InDelta(t, want.Output, got.Output, precision, "output")
	assert.Equal(t, want.InFlight, got.InFlight, "in flight")
	assert.Equal(t, want.Held, got.Held, "held")
}

func TestAllowTakesAllOrNothing(t *testing.T) {
	limits := ratelimit.Limits{RPM: 2, ITPM: 1000, OTPM: 100}
	full := ratelimit.Usage{Limits: limits, Requests: 2, Input: 1000, Output: 100}
	for _, tc := range []struct {
		name  string
		est   ratelimit.Tokens
		allow bool
		want  ratelimit.Usage
	}{
		{"fits", ratelimit.Tokens{Input: 600, Output: 40}, true,
			ratelimit.Usage{Limits: limits, Requests: 1, Input: 400, Output: 60, InFlight: 1, Held: ratelimit.Tokens{Input: 600, Output: 40}}},
		{"everything there is", ratelimit.Tokens{Input: 1000, Output: 100}, true,
			ratelimit.Usage{Limits: limits, Requests: 1, InFlight: 1, Held: ratelimit.Tokens{Input: 1000, Output: 100}}},
		{"too much input", ratelimit.Tokens{Input: 1001, Output: 1}, false, full},
		{"too much output", ratelimit.Tokens{Input: 1, Output: 101}, false, full},
		{"negative counts as zero", ratelimit.Tokens{Input: -500, Output: -1}, true,
			ratelimit.Usage{Limits: limits, Requests: 1, Input: 1000, Output: 100, InFlight: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := ratelimit.NewTokenBucketLimiter(limits)
				assert.Equal(t, tc.allow, l.Allow(tc.est))
				assertLevels(t, tc.want, l.GetUsage())
			})
		})
	}
}

func TestRequestsRunOutWhileTokensRemain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := ratelimit.Limits{RPM: 1, ITPM: 1000, OTPM: 100}
		l := ratelimit.NewTokenBucketLimiter(limits)
		require.True(t, l.Allow(ratelimit.Tokens{Input: 1, Output: 1}))
		assert.False(t, l.Allow(ratelimit.Tokens{Input: 1, Output: 1}))
		assertLevels(t, ratelimit.Usage{Limits: limits, Input: 999, Output: 99, InFlight: 1, Held: ratelimit.Tokens{Input: 1, Output: 1}}, l.GetUsage())
	})
}

func TestWithoutLimitsEverythingIsAllowed(t *testing.T) {
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: -1, ITPM: -5})
	for range 1000 {
		require.True(t, l.Allow(ratelimit.Tokens{Input: math.MaxInt, Output: 1_000_000}))
	}
	u := l.GetUsage()
	assert.Equal(t, ratelimit.Limits{}, u.Limits)
	assert.Equal(t, 1000, u.InFlight)
	assert.Zero(t, u.WaitFor(ratelimit.Tokens{Input: 1_000_000, Output: 1_000_000}))
}

func TestRefillIsContinuous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 60})
		allowed := func() (n int) {
			for l.Allow(ratelimit.Tokens{}) {
				l.Settle(ratelimit.Tokens{}, ratelimit.Tokens{})
				n++
			}
			return n
		}
		require.Equal(t, 60, allowed(), "a full bucket is one minute's limit")
		for i := range 10 {
			time.Sleep(999 * time.Millisecond)
			require.Equal(t, 0, allowed(), "before second %d", i+1)
			time.Sleep(time.Millisecond)
			require.Equal(t, 1, allowed(), "after second %d", i+1)
		}
		time.Sleep(30 * time.Second)
		require.Equal(t, 30, allowed(), "half a minute")
		time.Sleep(time.Hour)
		assert.Equal(t, 60, allowed(), "never more than one minute's limit")
	})
}

func TestSettle(t *testing.T) {
	limits := ratelimit.Limits{RPM: 10, ITPM: 1000, OTPM: 100}
	est := ratelimit.Tokens{Input: 500, Output: 50}
	for _, tc := range []struct {
		name          string
		used          ratelimit.Tokens
		input, output float64
	}{
		{"as estimated", est, 500, 50},
		{"less is given back", ratelimit.Tokens{Input: 100, Output: 10}, 900, 90},
		{"nothing used", ratelimit.Tokens{}, 1000, 100},
		{"more than there was is a debt", ratelimit.Tokens{Input: 5000, Output: 130}, -4000, -30},
		{"negative counts as zero", ratelimit.Tokens{Input: -100, Output: -100}, 1000, 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := ratelimit.NewTokenBucketLimiter(limits)
				require.True(t, l.Allow(est))
				l.Settle(est, tc.used)
				assertLevels(t, ratelimit.Usage{Limits: limits, Requests: 9, Input: tc.input, Output: tc.output}, l.GetUsage())
			})
		})
	}
}

func TestDebtIsPaidBeforeAnythingIsAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{ITPM: 600})
		require.True(t, l.Allow(ratelimit.Tokens{Input: 600}))
		l.Settle(ratelimit.Tokens{Input: 600}, ratelimit.Tokens{Input: 1200})
		assert.False(t, l.Allow(ratelimit.Tokens{}), "not even a request without tokens")
		time.Sleep(time.Minute)
		assert.True(t, l.Allow(ratelimit.Tokens{}))
		assert.False(t, l.Allow(ratelimit.Tokens{Input: 1}))
		time.Sleep(100 * time.Millisecond)
		assert.True(t, l.Allow(ratelimit.Tokens{Input: 1}))
	})
}

func TestRefundNeverFillsAboveTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := ratelimit.Limits{RPM: 10, ITPM: 1000, OTPM: 100}
		est := ratelimit.Tokens{Input: 1000, Output: 100}
		l := ratelimit.NewTokenBucketLimiter(limits)
		require.True(t, l.Allow(est))
		time.Sleep(time.Minute)
		l.Settle(est, ratelimit.Tokens{})
		assertLevels(t, ratelimit.Usage{Limits: limits, Requests: 10, Input: 1000, Output: 100}, l.GetUsage())
	})
}

func TestSettlingTooOftenKeepsCountsAtZero(t *testing.T) {
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 10})
	l.Settle(ratelimit.Tokens{Input: 5, Output: 5}, ratelimit.Tokens{})
	u := l.GetUsage()
	assert.Zero(t, u.InFlight)
	assert.Zero(t, u.Held)
}

func TestSetLimit(t *testing.T) {
	est := ratelimit.Tokens{Input: 300, Output: 30}
	held := ratelimit.Tokens{Input: 300, Output: 30}
	start := ratelimit.Limits{RPM: 10, ITPM: 1000, OTPM: 100}
	none := ratelimit.Limits{}
	for _, tc := range []struct {
		name string
		from ratelimit.Limits
		to   []ratelimit.Limits
		want ratelimit.Usage // with one request of est in flight
	}{
		{"the same", start, []ratelimit.Limits{start},
			ratelimit.Usage{Limits: start, Requests: 9, Input: 700, Output: 70}},
		{"higher keeps the level", start, []ratelimit.Limits{{RPM: 20, ITPM: 9000, OTPM: 200}},
			ratelimit.Usage{Limits: ratelimit.Limits{RPM: 20, ITPM: 9000, OTPM: 200}, Requests: 9, Input: 700, Output: 70}},
		{"lower clamps", start, []ratelimit.Limits{{RPM: 5, ITPM: 500, OTPM: 80}},
			ratelimit.Usage{Limits: ratelimit.Limits{RPM: 5, ITPM: 500, OTPM: 80}, Requests: 5, Input: 500, Output: 70}},
		{"lower and higher again does not refill", start, []ratelimit.Limits{{RPM: 1, ITPM: 1, OTPM: 1}, start},
			ratelimit.Usage{Limits: start, Requests: 1, Input: 1, Output: 1}},
		{"unknown starts full less in flight", none, []ratelimit.Limits{start},
			ratelimit.Usage{Limits: start, Requests: 9, Input: 700, Output: 70}},
		{"unknown with more in flight than the limit starts in debt", none, []ratelimit.Limits{{RPM: 1, ITPM: 100, OTPM: 10}},
			ratelimit.Usage{Limits: ratelimit.Limits{RPM: 1, ITPM: 100, OTPM: 10}, Requests: 0, Input: -200, Output: -20}},
		{"to unknown enforces nothing", start, []ratelimit.Limits{none},
			ratelimit.Usage{}},
		{"negative is unknown", start, []ratelimit.Limits{{RPM: -1, ITPM: math.MinInt, OTPM: -7}},
			ratelimit.Usage{}},
		{"each bucket on its own", ratelimit.Limits{RPM: 10}, []ratelimit.Limits{{OTPM: 100}},
			ratelimit.Usage{Limits: ratelimit.Limits{OTPM: 100}, Output: 70}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := ratelimit.NewTokenBucketLimiter(tc.from)
				require.True(t, l.Allow(est))
				for _, limits := range tc.to {
					l.SetLimit(limits)
				}
				tc.want.InFlight, tc.want.Held = 1, held
				assertLevels(t, tc.want, l.GetUsage())
			})
		})
	}
}

func TestAHigherLimitRefillsFaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{ITPM: 600})
		require.True(t, l.Allow(ratelimit.Tokens{Input: 600}))
		time.Sleep(10 * time.Second) // 100 at the old rate
		l.SetLimit(ratelimit.Limits{ITPM: 6000})
		time.Sleep(time.Second) // 100 at the new one
		assert.InDelta(t, 200, l.GetUsage().Input, precision)
	})
}

func TestSettlementAfterALimitBecameKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{})
		est := ratelimit.Tokens{Input: 400, Output: 40}
		require.True(t, l.Allow(est))
		l.SetLimit(ratelimit.Limits{RPM: 10, ITPM: 1000, OTPM: 100})
		l.Settle(est, ratelimit.Tokens{Input: 100, Output: 90})
		assertLevels(t, ratelimit.Usage{Limits: ratelimit.Limits{RPM: 10, ITPM: 1000, OTPM: 100}, Requests: 9, Input: 900, Output: 10}, l.GetUsage())
	})
}

func TestLowerAt(t *testing.T) {
	limits := ratelimit.Limits{RPM: 10, ITPM: 1000, OTPM: 100}
	for _, tc := range []struct {
		name                    string
		limits                  ratelimit.Limits
		seen                    ratelimit.Levels
		requests, input, output float64
	}{
		{"lower", limits, ratelimit.Levels{Requests: 3, Input: 300, Output: 30}, 3, 300, 30},
		{"zero", limits, ratelimit.Levels{}, 0, 0, 0},
		{"higher raises nothing", limits, ratelimit.Levels{Requests: 11, Input: 5000, Output: math.MaxInt}, 10, 1000, 100},
		{"nothing observed", limits, ratelimit.Levels{Requests: -1, Input: -1, Output: math.MinInt}, 10, 1000, 100},
		{"each bucket on its own", limits, ratelimit.Levels{Requests: -1, Input: 7, Output: -1}, 10, 7, 100},
		{"no limit, no level", ratelimit.Limits{ITPM: 1000}, ratelimit.Levels{Requests: 1, Input: 1, Output: 1}, 0, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := ratelimit.NewTokenBucketLimiter(tc.limits)
				l.LowerAt(time.Now(), tc.seen)
				assertLevels(t, ratelimit.Usage{Limits: tc.limits, Requests: tc.requests, Input: tc.input, Output: tc.output}, l.GetUsage())
			})
		})
	}
}

func TestLowerAtLeavesADebt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{ITPM: 100})
		l.Settle(ratelimit.Tokens{}, ratelimit.Tokens{Input: 150})
		l.LowerAt(time.Now(), ratelimit.Levels{Requests: -1, Input: 0, Output: -1})
		assert.InDelta(t, -50, l.GetUsage().Input, precision)
	})
}

func TestTimesOutOfOrder(t *testing.T) {
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{ITPM: 60_000})
	now := time.Now().Add(time.Minute)
	require.True(t, l.AllowAt(now, ratelimit.Tokens{Input: 60_000}))
	earlier := now.Add(-time.Hour)
	assert.InDelta(t, 0, l.UsageAt(earlier).Input, precision, "an earlier time is taken as the last one")
	assert.False(t, l.AllowAt(earlier, ratelimit.Tokens{Input: 1}))
	l.SettleAt(earlier, ratelimit.Tokens{Input: 60_000}, ratelimit.Tokens{Input: 59_000})
	l.LowerAt(earlier, ratelimit.Levels{Requests: -1, Input: 500, Output: -1})
	l.SetLimitAt(earlier, ratelimit.Limits{ITPM: 60_000})
	assert.InDelta(t, 500, l.UsageAt(now).Input, precision)
	assert.InDelta(t, 1500, l.UsageAt(now.Add(time.Second)).Input, precision, "the hour is not refilled twice")
	assert.False(t, l.AllowAt(time.Time{}, ratelimit.Tokens{Input: 501}), "nor is the time since year 1")
}

func TestUsageAtChangesNothing(t *testing.T) {
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{ITPM: 60_000})
	now := time.Now().Add(time.Minute)
	require.True(t, l.AllowAt(now, ratelimit.Tokens{Input: 60_000}))
	assert.InDelta(t, 60_000, l.UsageAt(now.Add(time.Hour)).Input, precision)
	assert.False(t, l.AllowAt(now, ratelimit.Tokens{Input: 1}), "a look ahead must not refill")
}
