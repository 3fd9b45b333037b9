package ratelimit_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/ratelimit"
)

// start is a limiter with these levels, of 60 requests, 600 input and 60 output
// tokens a minute.
func start(t *testing.T, requests, input, output float64) *ratelimit.TokenBucketLimiter {
	t.Helper()
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 60, ITPM: 600, OTPM: 60})
	l.ObserveAt(time.Now(), seen(requests), seen(input), seen(output))
	return l
}

func seen(level float64) ratelimit.Observation {
	return ratelimit.Observation{Seen: true, Level: level}
}

func TestWaitFor(t *testing.T) {
	for _, tc := range []struct {
		name                    string
		requests, input, output float64 // levels
		need                    ratelimit.Tokens
		want                    time.Duration
	}{
		{"full", 60, 600, 60, ratelimit.Tokens{Input: 600, Output: 60}, 0},
		{"just enough", 1, 10, 5, ratelimit.Tokens{Input: 10, Output: 5}, 0},
		{"a request", 0, 600, 60, ratelimit.Tokens{}, time.Second},
		{"half a request", 0.5, 600, 60, ratelimit.Tokens{}, 500 * time.Millisecond},
		{"input", 60, 0, 60, ratelimit.Tokens{Input: 100}, 10 * time.Second},
		{"output", 60, 600, 0, ratelimit.Tokens{Output: 20}, 20 * time.Second},
		{"the longest counts", 0, 0, 0, ratelimit.Tokens{Input: 100, Output: 20}, 20 * time.Second},
		{"debt", 60, -600, 60, ratelimit.Tokens{Input: 600}, 2 * time.Minute},
		{"debt without a need", 60, -600, 60, ratelimit.Tokens{}, time.Minute},
		{"a negative need is none", 60, -600, 60, ratelimit.Tokens{Input: -600}, time.Minute},
		{"more than the limit waits for a full bucket", 60, 300, 60, ratelimit.Tokens{Input: 10_000}, 30 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				assert.Equal(t, tc.want, start(t, tc.requests, tc.input, tc.output).GetUsage().WaitFor(tc.need))
			})
		})
	}
	assert.Zero(t, ratelimit.NewTokenBucketLimiter(ratelimit.Limits{}).GetUsage().WaitFor(ratelimit.Tokens{Input: 1 << 40, Output: 1 << 40}), "no limit")
}

func TestObserveAt(t *testing.T) {
	for _, tc := range []struct {
		name            string
		seen            ratelimit.Observation // of input, 600 a minute, at 300
		level           float64
		capacity        float64
		afterTenMinutes float64
	}{
		{"nothing", ratelimit.Observation{Level: 7, Capacity: 7}, 300, 600, 600},
		{"higher", ratelimit.Observation{Seen: true, Level: 500}, 500, 600, 600},
		{"lower", ratelimit.Observation{Seen: true, Level: 100}, 100, 600, 600},
		{"a debt", ratelimit.Observation{Seen: true, Level: -100}, -100, 600, 600},
		{"above the limit", ratelimit.Observation{Seen: true, Level: 5000}, 600, 600, 600},
		{"a capacity", ratelimit.Observation{Seen: true, Level: 100, Capacity: 200}, 100, 200, 200},
		{"a level above it", ratelimit.Observation{Seen: true, Level: 300, Capacity: 200}, 200, 200, 200},
		{"a capacity above the limit", ratelimit.Observation{Seen: true, Level: 100, Capacity: 5000}, 100, 600, 600},
		{"a negative capacity", ratelimit.Observation{Seen: true, Level: 100, Capacity: -5}, 100, 600, 600},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := start(t, 60, 300, 60)
				l.ObserveAt(time.Now(), ratelimit.Observation{}, tc.seen, ratelimit.Observation{})
				got := l.BucketsAt(time.Now())
				assert.Equal(t, ratelimit.Bucket{Limit: 600, Capacity: tc.capacity, Level: tc.level}, got.Input)
				assert.Equal(t, ratelimit.Bucket{Limit: 60, Capacity: 60, Level: 60}, got.Requests, "the others stay")
				assert.Equal(t, ratelimit.Bucket{Limit: 60, Capacity: 60, Level: 60}, got.Output)
				time.Sleep(10 * time.Minute)
				assert.InDelta(t, tc.afterTenMinutes, l.GetUsage().Input, precision)
			})
		})
	}
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{ITPM: 600})
	l.ObserveAt(time.Now(), seen(5), ratelimit.Observation{}, seen(5))
	assert.Equal(t, ratelimit.Bucket{}, l.BucketsAt(time.Now()).Requests, "without a limit there is no level")
}

func TestANewLimitForgetsTheCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, 60, 300, 60)
		l.ObserveAt(time.Now(), ratelimit.Observation{}, ratelimit.Observation{Seen: true, Level: 100, Capacity: 200}, ratelimit.Observation{})
		l.SetLimit(ratelimit.Limits{RPM: 60, ITPM: 600, OTPM: 60})
		assert.InDelta(t, 200, l.BucketsAt(time.Now()).Input.Capacity, precision, "the same limit says nothing new")
		l.SetLimit(ratelimit.Limits{RPM: 60, ITPM: 1200, OTPM: 60})
		assert.Equal(t, ratelimit.Bucket{Limit: 1200, Capacity: 1200, Level: 100}, l.BucketsAt(time.Now()).Input)
	})
}

func TestAdjustAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, 30, 300, 30)
		l.AdjustAt(time.Now(), 1, 50, 12.5)
		assertLevels(t, ratelimit.Usage{Limits: l.GetUsage().Limits, Requests: 29, Input: 250, Output: 17.5}, l.GetUsage())
		l.AdjustAt(time.Now(), -2, -50, -5000)
		assertLevels(t, ratelimit.Usage{Limits: l.GetUsage().Limits, Requests: 31, Input: 300, Output: 60}, l.GetUsage())
		l.AdjustAt(time.Now(), 0, 0, 100)
		assert.InDelta(t, -40, l.GetUsage().Output, precision, "a debt")
	})
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{})
	l.AdjustAt(time.Now(), 1, 1, 1)
	assert.Zero(t, l.GetUsage().Output, "without a limit nothing is counted")
}

func TestMissing(t *testing.T) {
	b := ratelimit.Bucket{Limit: 600, Capacity: 300, Level: 100}
	for need, want := range map[float64]time.Duration{-5: 0, 100: 0, 101: 100 * time.Millisecond, 300: 20 * time.Second, 900: 20 * time.Second} {
		assert.Equal(t, want, b.Missing(need), "%v", need)
	}
	assert.Zero(t, ratelimit.Bucket{}.Missing(1e9))
	assert.Positive(t, ratelimit.Bucket{Limit: 1, Capacity: 1, Level: -math.MaxFloat64}.Missing(1), "a wait that overflows must not become none")
}

func TestMoveAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := start(t, 60, 600, 60), start(t, 60, 600, 60)
		require.True(t, a.Allow(ratelimit.Tokens{Input: 100, Output: 10}))
		require.True(t, a.Allow(ratelimit.Tokens{Input: 20, Output: 2}))
		a.MoveAt(time.Now(), b, 1, ratelimit.Tokens{Input: 100, Output: 10})
		limits := a.GetUsage().Limits
		assertLevels(t, ratelimit.Usage{Limits: limits, Requests: 58, Input: 580, Output: 58, InFlight: 1, Held: ratelimit.Tokens{Input: 20, Output: 2}}, a.GetUsage())
		assertLevels(t, ratelimit.Usage{Limits: limits, Requests: 60, Input: 500, Output: 50, InFlight: 1, Held: ratelimit.Tokens{Input: 100, Output: 10}}, b.GetUsage())
		b.Settle(ratelimit.Tokens{Input: 100, Output: 10}, ratelimit.Tokens{Input: 30})
		assert.InDelta(t, 570, b.GetUsage().Input, precision)
		assert.Zero(t, b.GetUsage().Held)
	})
}

func TestAbsorbAt(t *testing.T) {
	for _, tc := range []struct {
		name    string
		a, b    ratelimit.Limits
		want    float64 // input: a took 100 and settled, b holds 50
		limited int
	}{
		{"of one limit both are taken", ratelimit.Limits{ITPM: 600}, ratelimit.Limits{ITPM: 600}, 450, 600},
		{"of another, what the other has in flight", ratelimit.Limits{ITPM: 600}, ratelimit.Limits{ITPM: 900}, 450, 600},
		{"an unknown one learns", ratelimit.Limits{}, ratelimit.Limits{ITPM: 600}, 550, 600},
		{"and knows no less", ratelimit.Limits{ITPM: 600}, ratelimit.Limits{}, 450, 600},
		{"nobody knows", ratelimit.Limits{}, ratelimit.Limits{}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := ratelimit.NewTokenBucketLimiter(tc.a), ratelimit.NewTokenBucketLimiter(tc.b)
				require.True(t, a.Allow(ratelimit.Tokens{Input: 100}))
				a.Settle(ratelimit.Tokens{Input: 100}, ratelimit.Tokens{Input: 100})
				require.True(t, b.Allow(ratelimit.Tokens{Input: 50}))
				a.AbsorbAt(time.Now(), b)
				assertLevels(t, ratelimit.Usage{Limits: ratelimit.Limits{ITPM: tc.limited}, Input: tc.want, InFlight: 1, Held: ratelimit.Tokens{Input: 50}}, a.GetUsage())
			})
		})
	}
}

// However far apart two limiters counted the same buckets: together they know what
// one would have known that had counted alone, while neither was full in between.
func TestAbsorbingIsCountingTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now().Add(time.Hour)
		limits := ratelimit.Limits{RPM: 1000, ITPM: 100_000, OTPM: 50_000}
		alone := ratelimit.NewTokenBucketLimiter(limits)
		parts := []*ratelimit.TokenBucketLimiter{ratelimit.NewTokenBucketLimiter(limits), ratelimit.NewTokenBucketLimiter(limits)}
		for range rapid.IntRange(0, 30).Draw(t, "requests") { // all at one time: nothing refills
			est := ratelimit.Tokens{Input: rapid.IntRange(0, 3000).Draw(t, "input"), Output: rapid.IntRange(0, 1000).Draw(t, "output")}
			used := ratelimit.Tokens{Input: rapid.IntRange(0, 3000).Draw(t, "used input"), Output: rapid.IntRange(0, 1000).Draw(t, "used output")}
			part := parts[rapid.IntRange(0, 1).Draw(t, "part")]
			settled := rapid.Bool().Draw(t, "settled")
			for _, l := range []*ratelimit.TokenBucketLimiter{alone, part} {
				if !l.AllowAt(now, est) {
					t.Fatal("refused below the limits")
				}
				if settled {
					l.SettleAt(now, est, used)
				}
			}
		}
		parts[0].AbsorbAt(now, parts[1])
		later := now.Add(time.Duration(rapid.IntRange(0, int(time.Minute)).Draw(t, "later")))
		got, want := parts[0].UsageAt(later), alone.UsageAt(later)
		if math.Abs(got.Requests-want.Requests)+math.Abs(got.Input-want.Input)+math.Abs(got.Output-want.Output) > precision || got.Held != want.Held || got.InFlight != want.InFlight {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}
