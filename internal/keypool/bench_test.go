package keypool_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"testing"
	"time"

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
func matrix(b *testing.B, set func(*keypool.KeyPool), op func(*keypool.KeyPool) error) {
	for _, keys := range []int{8, 10, 64} {
		b.Run(fmt.Sprintf("keys=%d/goroutines=1", keys), func(b *testing.B) {
			p := benchPool(b, keys)
			set(p)
			b.ReportAllocs()
			for b.Loop() {
				if err := op(p); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("keys=%d/goroutines=64", keys), func(b *testing.B) {
			p := benchPool(b, keys)
			set(p)
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

func nothing(*keypool.KeyPool) {}

func BenchmarkGetKey(b *testing.B) {
	ctx := context.Background()
	matrix(b, nothing, func(p *keypool.KeyPool) error {
		_, _, err := p.GetKey(ctx)
		return err
	})
}

// long is a turn of a long conversation: 80 points up to which it may be cached, four
// of which it writes.
func long(conversation uint64) keypool.Demand {
	d := keypool.Demand{Class: opus, Bytes: 320_000, MaxTokens: 32_000, Conversation: conversation, Client: "a"}
	for i := range 80 {
		d.Prefix = append(d.Prefix, keypool.Mark{Hash: conversation<<8 + uint64(i), Bytes: 320_000 - 3_900*i})
	}
	for i := range 4 {
		d.Prefix[i].Life = 5 * time.Minute
	}
	return d
}

// pick is all that the pool does for one request.
func pick(p *keypool.KeyPool, d keypool.Demand, h http.Header) error {
	lease, err := p.Acquire(context.Background(), d)
	if err != nil {
		return err
	}
	if h != nil {
		lease.Answered(http.StatusOK, h)
		lease.Succeeded()
	}
	lease.Settle(keypool.Usage{})
	return nil
}

// BenchmarkPickSettle: warm is a request at home, cold one that nothing is known of;
// answered adds an answer's headers,
// and explained an account.
func BenchmarkPickSettle(b *testing.B) {
	warm, cold := long(1), long(2)
	atHome := func(p *keypool.KeyPool) { _ = pick(p, warm, http.Header{}) }
	headers := rateHeaders(benchLimit, benchLimit, benchLimit, benchLimit, benchLimit, benchLimit)
	b.Run("warm", func(b *testing.B) {
		matrix(b, atHome, func(p *keypool.KeyPool) error { return pick(p, warm, nil) })
	})
	b.Run("cold", func(b *testing.B) {
		matrix(b, nothing, func(p *keypool.KeyPool) error { return pick(p, cold, nil) })
	})
	b.Run("explained", func(b *testing.B) {
		explained := cold
		explained.Account = &keypool.Account{}
		for _, keys := range []int{8, 64} {
			b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
				p := benchPool(b, keys)
				b.ReportAllocs()
				for b.Loop() {
					require.NoError(b, pick(p, explained, nil))
				}
			})
		}
	})
	b.Run("answered", func(b *testing.B) {
		matrix(b, atHome, func(p *keypool.KeyPool) error { return pick(p, warm, headers) })
	})
}

// BenchmarkApply exchanges a key of a pool that knows as many conversations and prompts
// as it may: requests are held up for as long.
func BenchmarkApply(b *testing.B) {
	keys, _ := keysOf(8, benchLimit, benchLimit, benchLimit)
	other := append(keys[:7:7], keyOf(9, benchLimit, benchLimit, benchLimit))
	p := newPool(b, "", keys...)
	for i := range uint64(100_000) {
		d := keypool.Demand{Class: opus, Bytes: 40_000, Conversation: i + 1, Prefix: []keypool.Mark{{Hash: i + 1, Bytes: 40_000, Life: time.Hour}}}
		require.NoError(b, pick(p, d, http.Header{}))
	}
	for b.Loop() {
		keys, other = other, keys
		require.NoError(b, p.Apply(keypool.PoolConfig{Keys: keys}))
	}
}

func BenchmarkUpdateClassFromHeaders(b *testing.B) {
	p := benchPool(b, 8)
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
