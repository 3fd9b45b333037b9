package health_test

import (
	"runtime"
	"testing"
	"time"

	"cc-relay/internal/health"
)

func BenchmarkAllow(b *testing.B) {
	x := health.NewBreaker(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := x.Allow(); !ok {
			b.Fatal("refused")
		}
	}
}

func BenchmarkAllowDone(b *testing.B) {
	x := health.NewBreaker(nil)
	b.ReportAllocs()
	for b.Loop() {
		done, ok := x.Allow()
		if !ok {
			b.Fatal("refused")
		}
		done(health.Success)
	}
}

func BenchmarkAllowDoneParallel(b *testing.B) {
	x := health.NewBreaker(nil)
	b.ReportAllocs()
	b.SetParallelism(max(1, 64/runtime.GOMAXPROCS(0)))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			done, ok := x.Allow()
			if !ok {
				b.Error("refused")
				return
			}
			done(health.Success)
		}
	})
}

func BenchmarkAllowHeldOpen(b *testing.B) {
	x := health.NewBreaker(nil)
	x.Hold(health.Open, time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := x.Allow(); ok {
			b.Fatal("let in")
		}
	}
}

func BenchmarkShare(b *testing.B) {
	x := health.NewBreaker(nil)
	b.ReportAllocs()
	for b.Loop() {
		_ = x.Share()
	}
}

func BenchmarkBudget(b *testing.B) {
	x := health.NewBudget()
	b.ReportAllocs()
	for b.Loop() {
		x.Request()
		_ = x.Take()
	}
}
