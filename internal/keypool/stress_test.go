package keypool_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

const goroutines = 128

// Random actions of many goroutines on one pool. Time stands still meanwhile, so
// that nothing refills and every request and token can be accounted for.
func testStressAddsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 100_000_000
		keys, ids := keysOf(5, limit, limit, limit)
		p := newPool(t, keypool.StrategyLeastLoaded, keys...)
		var granted, refusals, plain, input, output atomic.Int64
		turn := func(r *rand.Rand) {
			d := keypool.Demand{Class: opus, Bytes: 4 * r.IntN(2000), MaxTokens: r.IntN(600), Conversation: uint64(r.IntN(50))}
			if r.IntN(3) == 0 {
				d.Exclude = []string{ids[r.IntN(len(ids))]}
			}
			lease, err := p.Acquire(context.Background(), d)
			if err != nil {
				refusals.Add(1)
				return
			}
			granted.Add(1)
			used := keypool.Usage{Input: r.IntN(3000), Output: r.IntN(1000)}
			input.Add(int64(used.Input))
			output.Add(int64(used.Output))
			var wg sync.WaitGroup // stream's end and client's leaving race for the settlement
			for range 1 + r.IntN(2) {
				wg.Go(func() { lease.Settle(used) })
			}
			wg.Wait()
			lease.Succeeded()
			lease.Settle(keypool.Usage{Input: 1 << 30})
		}
		other := []func(*rand.Rand){
			turn, turn, turn, turn, turn, turn,
			func(*rand.Rand) {
				if _, _, err := p.GetKey(context.Background()); err == nil {
					plain.Add(1)
				}
			},
			func(r *rand.Rand) {
				_ = p.UpdateClassFromHeaders(ids[r.IntN(5)], "sonnet-5", rateHeaders(50, r.IntN(50)))
			},
			func(r *rand.Rand) { p.MarkKeyExhausted(ids[r.IntN(2)], time.Second) },
			func(r *rand.Rand) { p.MarkClassExhausted(ids[r.IntN(3)], fmt.Sprint("class-", r.IntN(200)), 0) },
			func(r *rand.Rand) { p.MarkKeyDead(ids[2], keypool.ReasonSpent) },
			func(r *rand.Rand) { p.MarkKeyForbidden(ids[r.IntN(3)], opus, fmt.Sprint(r.IntN(3)), false) },
			func(*rand.Rand) { p.Keys(); p.GetEarliestResetTime() },
		}
		var wg sync.WaitGroup
		for g := range uint64(goroutines) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(g, 1))
				for range 150 {
					other[r.IntN(len(other))](r)
				}
				p.GetStats()
			})
		}
		wg.Wait()

		assert.Positive(t, granted.Load())
		for _, c := range p.GetStats().Classes {
			assert.Zero(t, c.InFlight, "class %q", c.Class)
		}
		var left ratelimit.Limits
		for _, id := range ids {
			k := of(t, p, opus, id)
			left.RPM += k.Remaining.RPM
			left.ITPM += k.Remaining.ITPM
			left.OTPM += k.Remaining.OTPM
		}
		assert.Equal(t, ratelimit.Limits{RPM: 5*limit - int(granted.Load()), ITPM: 5*limit - int(input.Load()), OTPM: 5*limit - int(output.Load())}, left)
		requests := 0
		for _, k := range p.Keys() {
			requests += limit - k.Remaining.RPM
		}
		assert.Equal(t, int(plain.Load()), requests)
	})
}

// Many that ask without end get what the keys have: never more in total, and
// nothing is lost.
func testNeverOverTheLimit(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(3, 50, 0, 0)
				p := newPool(t, strategy, keys...)
				granted := make(map[string]*atomic.Int64)
				for _, id := range ids {
					granted[id] = &atomic.Int64{}
				}
				end := time.Now().Add(2 * time.Minute)
				var wg sync.WaitGroup
				for range goroutines {
					wg.Go(func() {
						for time.Now().Before(end) {
							if id, _, err := p.GetKey(context.Background()); err == nil {
								granted[id].Add(1)
							}
							time.Sleep(p.GetEarliestResetTime() + time.Duration(rand.IntN(int(400*time.Millisecond))))
						}
					})
				}
				wg.Wait()
				for _, id := range ids {
					n := int(granted[id].Load())
					assert.LessOrEqual(t, n, 50+100, "key %s: a full bucket and two minutes' refill", id)
					assert.GreaterOrEqual(t, n, 50+98, "key %s", id)
				}
			})
		})
	}
}
