package ratelimit_test

import (
	"runtime"
	"testing"

	"cc-relay/internal/ratelimit"
)

func BenchmarkAllowSettle(b *testing.B) {
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 1_000_000_000, ITPM: 1_000_000_000, OTPM: 1_000_000_000})
	est := ratelimit.Tokens{Input: 20_000, Output: 400}
	b.ReportAllocs()
	for b.Loop() {
		if !l.Allow(est) {
			b.Fatal("refused")
		}
		l.Settle(est, ratelimit.Tokens{})
	}
}

func BenchmarkAllowSettleParallel(b *testing.B) {
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 1_000_000_000, ITPM: 1_000_000_000, OTPM: 1_000_000_000})
	est := ratelimit.Tokens{Input: 200, Output: 4}
	b.ReportAllocs()
	b.SetParallelism(max(1, 64/runtime.GOMAXPROCS(0)))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if !l.Allow(est) {
				b.Error("refused")
				return
			}
			l.Settle(est, ratelimit.Tokens{})
		}
	})
}

func BenchmarkGetUsage(b *testing.B) {
	l := ratelimit.NewTokenBucketLimiter(ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8_000})
	b.ReportAllocs()
	for b.Loop() {
		_ = l.GetUsage()
	}
}
