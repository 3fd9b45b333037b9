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
	for _, tc := range []struct {
		name   string
		limits ratelimit.Limits
		demand keypool.Demand
		want   ratelimit.Tokens
	}{
		{"the estimate, and max_tokens below the usual length", ratelimit.Limits{RPM: 10, ITPM: 30_000, OTPM: 8000},
			keypool.Demand{Class: opus, Input: 5000, MaxTokens: 300}, ratelimit.Tokens{Input: 5000, Output: 300}},
		{"400 of a large max_tokens", ratelimit.Limits{RPM: 10, ITPM: 30_000, OTPM: 8000},
			keypool.Demand{Class: opus, Input: 5000, MaxTokens: 128_000}, ratelimit.Tokens{Input: 5000, Output: 400}},
		{"400 of an unknown max_tokens", ratelimit.Limits{RPM: 10, ITPM: 30_000, OTPM: 8000},
			keypool.Demand{Class: opus, Input: 5000}, ratelimit.Tokens{Input: 5000, Output: 400}},
		{"no more than there is", ratelimit.Limits{RPM: 10, ITPM: 30_000, OTPM: 200},
			keypool.Demand{Class: opus, Input: 100_000, MaxTokens: 128_000}, ratelimit.Tokens{Input: 30_000, Output: 200}},
		{"all where no limit is known", ratelimit.Limits{},
			keypool.Demand{Class: opus, Input: 100_000, MaxTokens: 128_000}, ratelimit.Tokens{Input: 100_000, Output: 400}},
		{"nothing of a negative estimate", ratelimit.Limits{RPM: 10, ITPM: 30_000, OTPM: 8000},
			keypool.Demand{Class: opus, Input: -5, MaxTokens: -5}, ratelimit.Tokens{Output: 400}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, tc.limits.RPM, tc.limits.ITPM, tc.limits.OTPM)
				p := newPool(t, "", k)
				lease := acquire(t, p, tc.demand)
				assert.Equal(t, k.ID(), lease.KeyID())
				assert.Equal(t, k.Key.Reveal(), lease.APIKey())
				assert.Equal(t, tc.want, lease.Held())

				full, got := tc.limits, of(t, p, opus, k.ID())
				assert.Equal(t, 1, got.InFlight)
				want := ratelimit.Limits{}
				if full.RPM > 0 {
					want = ratelimit.Limits{RPM: full.RPM - 1, ITPM: full.ITPM - tc.want.Input, OTPM: full.OTPM - tc.want.Output}
				}
				assert.Equal(t, want, got.Remaining)

				lease.Settle(ratelimit.Tokens{})
				if full.RPM > 0 {
					full.RPM--
				}
				assert.Equal(t, full, of(t, p, opus, k.ID()).Remaining, "all tokens are returned, the request is not")
				assert.Zero(t, of(t, p, opus, k.ID()).InFlight)
				assert.Zero(t, lease.Held())
			})
		})
	}
}

// A prompt larger than what is left, or than the whole bucket, is sent while
// there is a token: what it costs is known only at the provider.
func TestAboveZeroAdmits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 100, 6000, 600))
		big := keypool.Demand{Class: opus, Input: 50_000, MaxTokens: 100}
		lease := acquire(t, p, big)
		assert.Equal(t, ratelimit.Tokens{Input: 6000, Output: 100}, lease.Held())
		assert.Equal(t, 10*time.Millisecond, refused(t, p, keypool.Demand{Class: opus}).RetryAfter, "one token of 6,000 a minute")
		time.Sleep(10 * time.Millisecond)
		assert.Equal(t, 1, acquire(t, p, big).Held().Input)
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
		}, keypool.Demand{Class: opus, Input: 5000, MaxTokens: 400}, keypool.ExhaustedError{RetryAfter: 100 * time.Millisecond, Left: 3}},
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

func TestSettleOnlyOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 100, 10_000, 1000)
		p := newPool(t, "", k)
		lease := acquire(t, p, keypool.Demand{Class: opus, Input: 1000, MaxTokens: 100})
		kept := lease
		lease.Settle(ratelimit.Tokens{Input: 400, Output: 40})
		want := ratelimit.Limits{RPM: 99, ITPM: 9600, OTPM: 960}
		require.Equal(t, want, of(t, p, opus, k.ID()).Remaining)
		lease.Settle(ratelimit.Tokens{Input: 400, Output: 40})
		kept.Settle(ratelimit.Tokens{})
		require.Equal(t, want, of(t, p, opus, k.ID()).Remaining, "second call, and a copy")

		// The hold is now another's; the old lease and its copy must not touch it.
		next := acquire(t, p, keypool.Demand{Class: opus, Input: 3000, MaxTokens: 300})
		lease.Settle(ratelimit.Tokens{})
		kept.Succeeded()
		kept.Settle(ratelimit.Tokens{Input: 9000, Output: 900})
		assert.Zero(t, kept.Held())
		assert.Equal(t, ratelimit.Tokens{Input: 3000, Output: 300}, next.Held())
		require.Equal(t, 1, of(t, p, opus, k.ID()).InFlight)
		require.Equal(t, ratelimit.Limits{RPM: 98, ITPM: 6600, OTPM: 660}, of(t, p, opus, k.ID()).Remaining)
		next.Settle(ratelimit.Tokens{})
		assert.Equal(t, ratelimit.Limits{RPM: 98, ITPM: 9600, OTPM: 960}, of(t, p, opus, k.ID()).Remaining)
	})
}

func TestTheZeroLeaseHoldsNothing(t *testing.T) {
	var lease keypool.Lease
	lease.Settle(ratelimit.Tokens{Input: 1})
	lease.Succeeded()
	assert.Empty(t, lease.KeyID())
	assert.Empty(t, lease.APIKey())
	assert.Zero(t, lease.Held())
}

func TestDebtAfterSettlementDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 100, 6000, 600))
		d := keypool.Demand{Class: opus, Input: 1000, MaxTokens: 100}
		acquire(t, p, d).Settle(ratelimit.Tokens{Input: 12_000, Output: 100})
		// 6,000 short of nothing, and one token more.
		assert.Equal(t, time.Minute+10*time.Millisecond, refused(t, p, d).RetryAfter)
		time.Sleep(time.Minute)
		_ = refused(t, p, d)
		time.Sleep(10 * time.Millisecond)
		acquire(t, p, d)
	})
}

func TestExclude(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			keys, ids := keysOf(3, 0, 0, 0)
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
func TestConcurrentAcquiresShareNoTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := keysOf(3, 1000, 10_000, 1_000_000)
		p := newPool(t, "", keys...)
		held := make(chan int, 1000)
		for range 1000 {
			go func() {
				lease, err := p.Acquire(context.Background(), keypool.Demand{Class: opus, Input: 700, MaxTokens: 1})
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
		assert.Equal(t, 30_000, total, "exactly what the three buckets had")
	})
}
