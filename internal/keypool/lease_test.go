package keypool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

const opus = "opus-5"

func TestAcquireHolds(t *testing.T) {
	limits := ratelimit.Limits{RPM: 10, ITPM: 30_000, OTPM: 8000}
	for _, tc := range []struct {
		name   string
		limits ratelimit.Limits
		demand keypool.Demand
		want   int // tokens of input
	}{
		{"a token for four bytes", limits, keypool.Demand{Class: opus, Bytes: 20_000, MaxTokens: 300}, 5000},
		{"nothing of max_tokens", limits, keypool.Demand{Class: opus, Bytes: 20_000, MaxTokens: 128_000}, 5000},
		{"nor of an unknown one", limits, keypool.Demand{Class: opus, Bytes: 20_000}, 5000},
		{"no more than there is", limits, keypool.Demand{Class: opus, Bytes: 400_000}, 30_000},
		{"all where no limit is known", ratelimit.Limits{}, keypool.Demand{Class: opus, Bytes: 400_000}, 100_000},
		{"nothing of negative numbers", limits, keypool.Demand{Class: opus, Bytes: -5, MaxTokens: -5}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, tc.limits.RPM, tc.limits.ITPM, tc.limits.OTPM)
				p := newPool(t, "", k)
				lease := acquire(t, p, tc.demand)
				assert.Equal(t, k.ID(), lease.KeyID())
				assert.Equal(t, k.Key.Reveal(), lease.APIKey())
				assert.Equal(t, ratelimit.Tokens{Input: tc.want}, lease.Held())

				got, want := of(t, p, opus, k.ID()), tc.limits
				assert.Equal(t, 1, got.InFlight)
				if want.RPM > 0 {
					want.RPM, want.ITPM = want.RPM-1, want.ITPM-tc.want
				}
				assert.Equal(t, want, got.Remaining)

				lease.Settle(keypool.Usage{})
				assert.Equal(t, tc.limits, of(t, p, opus, k.ID()).Remaining, "all is returned that was not used")
				assert.Zero(t, of(t, p, opus, k.ID()).InFlight)
				assert.Zero(t, lease.Held())
			})
		})
	}
}

// From which levels a request is admitted: what it takes and a margin, because the
// levels told are rounded.
func TestWhatARequestNeeds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		levels []int // limit and remaining of requests, input and output
		tokens int   // of the prompt
		want   time.Duration
	}{
		{"enough", []int{60, 1, 60_000, 10_600, 60_000, 500}, 10_000, 0},
		{"a request", []int{60, 0, 60_000, 60_000, 60_000, 60_000}, 10_000, time.Second},
		{"600 tokens more", []int{60, 60, 60_000, 10_000, 60_000, 60_000}, 10_000, 600 * time.Millisecond},
		{"2 % of a small bucket", []int{60, 60, 6000, 1000, 60_000, 60_000}, 1000, 1200 * time.Millisecond},
		{"no more than it holds", []int{60, 60, 6000, 5000, 60_000, 60_000}, 5950, 9500 * time.Millisecond},
		{"for nothing the margin", []int{60, 60, 60_000, 0, 60_000, 60_000}, 0, 600 * time.Millisecond},
		{"500 tokens of output", []int{60, 60, 60_000, 60_000, 60_000, 0}, 1, 500 * time.Millisecond},
		{"2 % of little output", []int{60, 60, 60_000, 60_000, 600, 0}, 1, 1200 * time.Millisecond},
		{"the longest counts", []int{60, 0, 60_000, 7600, 60_000, 0}, 10_000, 3 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, tc.levels[0], tc.levels[2], tc.levels[4])
				p := newPool(t, "", k)
				require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(tc.levels...)))
				d := keypool.Demand{Class: opus, Bytes: 4 * tc.tokens, MaxTokens: 128_000}
				if tc.want > 0 {
					require.Equal(t, tc.want, refused(t, p, d).RetryAfter)
					time.Sleep(tc.want - time.Millisecond)
					_ = refused(t, p, d)
					time.Sleep(time.Millisecond)
				}
				assert.Equal(t, tc.tokens, acquire(t, p, d).Held().Input)
			})
		})
	}
}

// Output counts as it is produced: what a request might produce keeps nobody out,
// however small the key.
func TestLargeMaxTokensOnSmallKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 50, 30_000, 8000))
		d := keypool.Demand{Class: opus, Bytes: 400, MaxTokens: 128_000}
		leases := make([]keypool.Lease, 50)
		for i := range leases {
			leases[i] = acquire(t, p, d)
		}
		for _, lease := range leases {
			lease.Settle(keypool.Usage{Input: 100, Output: 200})
		}
		time.Sleep(1200 * time.Millisecond)
		assert.Equal(t, 15*time.Second, refused(t, p, d).RetryAfter, "10,000 of 8,000 are gone and 160 refilled; 160 are needed")
	})
}

func TestRefusal(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(p *keypool.KeyPool, ids []string)
		d    keypool.Demand
		want keypool.ExhaustedError
	}{
		{"the earliest of the keys", func(p *keypool.KeyPool, ids []string) {
			p.MarkClassExhausted(ids[0], opus, 40*time.Second) // cools 1 s: limits are known
			_ = p.UpdateClassFromHeaders(ids[0], opus, rateHeaders(4, 0))
			_ = p.UpdateClassFromHeaders(ids[1], opus, rateHeaders(3, 0))
			p.MarkKeyExhausted(ids[2], time.Minute)
		}, keypool.Demand{Class: opus}, keypool.ExhaustedError{RetryAfter: 15 * time.Second, Left: 3}},
		{"an empty output bucket", func(p *keypool.KeyPool, ids []string) {
			for _, id := range ids {
				_ = p.UpdateClassFromHeaders(id, opus, rateHeaders(100, 100, 6000, 6000, 600, 0))
			}
		}, keypool.Demand{Class: opus, Bytes: 20_000, MaxTokens: 400}, keypool.ExhaustedError{RetryAfter: 1200 * time.Millisecond, Left: 3}},
		{"dead keys tell the next probe", func(p *keypool.KeyPool, ids []string) {
			for _, id := range ids {
				p.MarkKeyDead(id, keypool.ReasonUnauthorized)
			}
		}, keypool.Demand{Class: opus}, keypool.ExhaustedError{RetryAfter: 5 * time.Minute, Reason: keypool.ReasonUnauthorized}},
		{"spent goes before other reasons", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyForbidden(ids[0], opus, "", true)
			p.MarkKeyDead(ids[1], keypool.ReasonSpent)
			p.MarkKeyDead(ids[2], keypool.ReasonUnauthorized)
		}, keypool.Demand{Class: opus}, keypool.ExhaustedError{RetryAfter: 5 * time.Minute, Reason: keypool.ReasonSpent}},
		{"no reason while a key is left", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyExhausted(ids[0], 10*time.Minute)
			p.MarkKeyDead(ids[1], keypool.ReasonSpent)
			p.MarkKeyDead(ids[2], keypool.ReasonSpent)
		}, keypool.Demand{Class: opus}, keypool.ExhaustedError{RetryAfter: 10 * time.Minute, Left: 1}},
		{"all excluded", func(*keypool.KeyPool, []string) {}, keypool.Demand{Class: opus, Exclude: []string{"0", "1", "2"}},
			keypool.ExhaustedError{}},
		{"excluded keys do not count", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyExhausted(ids[0], time.Second)
			p.MarkKeyExhausted(ids[1], 20*time.Second)
			p.MarkKeyDead(ids[2], keypool.ReasonSpent)
		}, keypool.Demand{Class: opus, Exclude: []string{"0"}}, keypool.ExhaustedError{RetryAfter: 20 * time.Second, Left: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(3, 100, 6000, 600)
				p := newPool(t, "", keys...)
				for i, n := range tc.d.Exclude {
					tc.d.Exclude[i] = ids[n[0]-'0']
				}
				tc.set(p, ids)
				got := refused(t, p, tc.d)
				tc.want.Provider = "test"
				assert.Equal(t, tc.want, *got)
				if tc.want.RetryAfter > 0 {
					time.Sleep(tc.want.RetryAfter - time.Millisecond)
					_ = refused(t, p, tc.d)
					time.Sleep(time.Millisecond)
					acquire(t, p, tc.d)
				}
			})
		})
	}
}

func TestExhaustedErrorIsNothingElse(t *testing.T) {
	err := error(&keypool.ExhaustedError{Provider: "main", RetryAfter: 1500 * time.Millisecond})
	require.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
	assert.NotErrorIs(t, err, keypool.ErrKeyNotFound)
	assert.Equal(t, "keypool: all keys exhausted (provider main, again in 1.5s)", err.Error())
	assert.NotErrorIs(t, errors.New("keypool: all keys exhausted"), keypool.ErrAllKeysExhausted)
}

func testSettleOnlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 100, 10_000, 1000)
		p := newPool(t, "", k)
		lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4000, MaxTokens: 100})
		kept := lease
		lease.Settle(keypool.Usage{Input: 400, Output: 40, Partial: true})
		want := ratelimit.Limits{RPM: 99, ITPM: 9600, OTPM: 960}
		require.Equal(t, want, of(t, p, opus, k.ID()).Remaining)
		lease.Settle(keypool.Usage{Input: 400, Output: 40})
		kept.Settle(keypool.Usage{})
		require.Equal(t, want, of(t, p, opus, k.ID()).Remaining, "second call, and a copy")

		// The hold is now another's; the old lease and its copy must not touch it.
		next := acquire(t, p, keypool.Demand{Class: opus, Bytes: 12_000, MaxTokens: 300})
		lease.Settle(keypool.Usage{})
		kept.Answered(429, rateHeaders(100, 0, 10_000, 0, 1000, 0))
		kept.Limited(time.Minute)
		kept.Produced(100)
		kept.Succeeded()
		kept.Settle(keypool.Usage{Input: 9000, Output: 900})
		assert.Zero(t, kept.Held())
		_, _, oversized := kept.Oversized()
		assert.False(t, oversized)
		assert.Equal(t, ratelimit.Tokens{Input: 3000}, next.Held())
		require.Equal(t, 1, of(t, p, opus, k.ID()).InFlight)
		require.Equal(t, ratelimit.Limits{RPM: 98, ITPM: 6600, OTPM: 960}, of(t, p, opus, k.ID()).Remaining)
		next.Settle(keypool.Usage{})
		assert.Equal(t, ratelimit.Limits{RPM: 99, ITPM: 9600, OTPM: 960}, of(t, p, opus, k.ID()).Remaining)
	})
}

func TestTheZeroLeaseHoldsNothing(t *testing.T) {
	var lease keypool.Lease
	lease.Answered(200, rateHeaders(1, 1))
	lease.Produced(1)
	lease.Limited(time.Second)
	lease.Settle(keypool.Usage{Input: 1})
	lease.Succeeded()
	assert.Empty(t, lease.KeyID())
	assert.Empty(t, lease.APIKey())
	assert.Empty(t, lease.OwnerKeys())
	assert.Zero(t, lease.Held())
	_, _, oversized := lease.Oversized()
	assert.False(t, oversized)
}

func TestDebtAfterSettlementDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 100, 6000, 600))
		d := keypool.Demand{Class: opus, Bytes: 4000, MaxTokens: 100}
		acquire(t, p, d).Settle(keypool.Usage{Input: 12_000, Partial: true})
		wait := refused(t, p, d).RetryAfter
		assert.Equal(t, 71200*time.Millisecond, wait, "6,000 short of nothing, then 1,000 and the margin")
		time.Sleep(wait - time.Millisecond)
		_ = refused(t, p, d)
		time.Sleep(time.Millisecond)
		acquire(t, p, d)
	})
}

func TestExclude(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			keys, ids := keysOf(3, plenty, plenty, plenty)
			p := newPool(t, strategy, keys...)
			for range 30 {
				got := acquire(t, p, keypool.Demand{Class: opus, Exclude: []string{ids[1], "nobody"}}).KeyID()
				require.NotEqual(t, ids[1], got)
			}
			assert.Equal(t, ids[1], acquire(t, p, keypool.Demand{Class: opus, Exclude: []string{ids[0], ids[2]}}).KeyID())
			assert.Zero(t, refused(t, p, keypool.Demand{Class: opus, Exclude: ids}).RetryAfter)
		})
	}
}

// Choice and debit are one step: of many that ask at once nobody is promised
// what another holds.
func testConcurrentAcquires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := keysOf(3, 1000, 10_000, 1_000_000)
		p := newPool(t, "", keys...)
		held := make(chan int, 1000)
		for range 1000 {
			go func() {
				lease, err := p.Acquire(context.Background(), keypool.Demand{Class: opus, Bytes: 2800, MaxTokens: 1})
				if err != nil {
					held <- 0
					return
				}
				held <- lease.Held().Input
			}()
		}
		total := 0
		for range 1000 {
			total += <-held
		}
		assert.Equal(t, 3*14*700, total, "each bucket has 14 times 700 and a margin of 200")
	})
}
