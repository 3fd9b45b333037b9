package keypool_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// Limits that a benchmark does not use up, so that every choice looks at three
// buckets of every key and succeeds.
const benchLimit = 1_000_000_000

func benchPool(tb testing.TB, keys int) *keypool.KeyPool {
	tb.Helper()
	configs := make([]keypool.KeyConfig, keys)
	for i := range configs {
		configs[i] = keyOf(i, benchLimit, benchLimit, benchLimit)
	}
	return newPool(tb, keypool.StrategyLeastLoaded, configs...)
}

// matrix runs op for pools of several sizes, alone and from 64 goroutines.
func matrix(b *testing.B, op func(*keypool.KeyPool) error) {
	for _, keys := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("keys=%d/goroutines=1", keys), func(b *testing.B) {
			p := benchPool(b, keys)
			b.ReportAllocs()
			for b.Loop() {
				if err := op(p); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("keys=%d/goroutines=64", keys), func(b *testing.B) {
			p := benchPool(b, keys)
			b.ReportAllocs()
			b.SetParallelism(max(1, 64/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := op(p); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkGetKey(b *testing.B) {
	ctx := context.Background()
	matrix(b, func(p *keypool.KeyPool) error {
		_, _, err := p.GetKey(ctx)
		return err
	})
}

func BenchmarkAcquireSettle(b *testing.B) {
	ctx := context.Background()
	matrix(b, func(p *keypool.KeyPool) error {
		lease, err := p.Acquire(ctx, keypool.Demand{Class: opus, Bytes: 80_000, MaxTokens: 4000})
		if err == nil {
			lease.Succeeded()
			lease.Settle(keypool.Usage{})
		}
		return err
	})
}

func BenchmarkUpdateClassFromHeaders(b *testing.B) {
	p := benchPool(b, 10)
	id := keyOf(3, 0, 0, 0).ID()
	h := rateHeaders(benchLimit, benchLimit-10, benchLimit, benchLimit-1000, benchLimit, benchLimit-400)
	h.Set("Date", "Mon, 02 Nov 2026 10:00:00 GMT")
	h.Set("Anthropic-Ratelimit-Requests-Reset", "2026-11-02T10:00:01Z")
	h.Set("Anthropic-Ratelimit-Input-Tokens-Reset", "2026-11-02T10:00:02Z")
	h.Set("Anthropic-Ratelimit-Output-Tokens-Reset", "2026-11-02T10:00:03Z")
	b.ReportAllocs()
	for b.Loop() {
		require.NoError(b, p.UpdateClassFromHeaders(id, opus, h))
	}
}
