package metrics_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/metrics"
)

var (
	request = metrics.Request{
		Client: "laptop", Class: "opus-5", Provider: "anthropic", Outcome: "served", Status: 200,
		Duration: 3 * time.Second, FirstToken: 600 * time.Millisecond, Overhead: 300 * time.Microsecond, Wait: time.Second,
	}
	attempt = metrics.Attempt{
		Client: "laptop", Provider: "anthropic", Class: "opus-5", Verdict: "served",
		InputUncached: 10, CacheRead: 200, CacheWrite: 30, Output: 4,
	}
)

func TestCountingAllocatesNothing(t *testing.T) {
	m := metrics.New(metrics.Options{})
	assert.Zero(t, testing.AllocsPerRun(1000, func() {
		m.Request(request)
		m.Attempt(attempt)
		m.EventLag(40 * time.Microsecond)
		m.Alert("spent", "anthropic")
		m.Shed("memory")
	}))
}

func BenchmarkRequestAndAttempt(b *testing.B) {
	m := metrics.New(metrics.Options{})
	b.ReportAllocs()
	for b.Loop() {
		m.Request(request)
		m.Attempt(attempt)
	}
}

func BenchmarkRequestAndAttemptParallel(b *testing.B) {
	m := metrics.New(metrics.Options{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Request(request)
			m.Attempt(attempt)
		}
	})
}

func BenchmarkEventLag(b *testing.B) {
	m := metrics.New(metrics.Options{})
	b.ReportAllocs()
	for b.Loop() {
		m.EventLag(40 * time.Microsecond)
	}
}
