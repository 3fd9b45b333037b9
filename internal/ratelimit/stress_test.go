package ratelimit_test

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/ratelimit"
)

func TestConcurrentAllowGrantsExactlyTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 1000, ITPM: 5000, OTPM: 100_000})
		var granted atomic.Int64
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for range 100 {
					if l.Allow(ratelimit.Tokens{Input: 10, Output: 1}) {
						granted.Add(1)
					}
				}
			})
		}
		wg.Wait()
		assert.Equal(t, int64(500), granted.Load(), "5,000 tokens of input in requests of 10")
	})
}

func TestConcurrentUseAddsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 1_000_000, ITPM: 1_000_000_000, OTPM: 1_000_000_000})
		var used atomic.Int64
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for range 200 {
					est := ratelimit.Tokens{Input: rand.IntN(1000), Output: rand.IntN(100)}
					if !l.Allow(est) {
						t.Error("refused below every limit")
						return
					}
					_ = l.GetUsage().WaitFor(est)
					_ = l.BucketsAt(time.Now())
					l.LowerAt(time.Now(), ratelimit.Levels{Requests: 999_000, Input: -1, Output: 1_000_000_000})
					l.SetLimit(ratelimit.Limits{RPM: 1_000_000 + rand.IntN(3), ITPM: 1_000_000_000, OTPM: 1_000_000_000})
					input := rand.IntN(2000)
					used.Add(int64(input))
					l.Settle(est, ratelimit.Tokens{Input: input})
				}
			})
		}
		wg.Wait()
		u := l.GetUsage()
		assert.Zero(t, u.InFlight)
		assert.Zero(t, u.Held)
		assert.LessOrEqual(t, u.Requests, 999_000.0, "an observation lowered it")
		assert.InDelta(t, 1_000_000_000-used.Load(), u.Input, 1, "what was used is what is missing")
	})
}
