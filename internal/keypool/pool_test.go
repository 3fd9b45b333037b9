package keypool_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
	"cc-relay/internal/secret"
)

// canary is in every test key, so that one search finds a key that leaked.
const canary = "sk-canary"

// plenty is a limit a minute that no test uses up.
const plenty = 1_000_000_000

// keyOf is the nth key with these limits a minute.
func keyOf(n, rpm, itpm, otpm int) keypool.KeyConfig {
	return keypool.KeyConfig{Key: secret.New(fmt.Sprintf("%s-%d", canary, n)), RPMLimit: rpm, ITPMLimit: itpm, OTPMLimit: otpm}
}

// keysOf are n keys with the same limits, and their IDs.
func keysOf(n, rpm, itpm, otpm int) (keys []keypool.KeyConfig, ids []string) {
	for i := range n {
		keys = append(keys, keyOf(i, rpm, itpm, otpm))
		ids = append(ids, keys[i].ID())
	}
	return keys, ids
}

// newPool is a pool that never waits.
func newPool(tb testing.TB, strategy string, keys ...keypool.KeyConfig) *keypool.KeyPool {
	tb.Helper()
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Strategy: strategy, Keys: keys, MaxWait: new(time.Duration)})
	require.NoError(tb, err)
	return p
}

// patient is a pool whose requests wait as long as by default.
func patient(tb testing.TB, strategy string, keys ...keypool.KeyConfig) *keypool.KeyPool {
	tb.Helper()
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Strategy: strategy, Keys: keys})
	require.NoError(tb, err)
	return p
}

func getKey(tb testing.TB, p *keypool.KeyPool) string {
	tb.Helper()
	id, _, err := p.GetKey(context.Background())
	require.NoError(tb, err)
	return id
}

func acquire(tb testing.TB, p *keypool.KeyPool, d keypool.Demand) keypool.Lease {
	tb.Helper()
	lease, err := p.Acquire(context.Background(), d)
	require.NoError(tb, err)
	return lease
}

// refused asserts that the demand is refused, and returns how.
func refused(tb testing.TB, p *keypool.KeyPool, d keypool.Demand) *keypool.ExhaustedError {
	tb.Helper()
	lease, err := p.Acquire(context.Background(), d)
	require.ErrorIs(tb, err, keypool.ErrAllKeysExhausted, "got key %q", lease.KeyID())
	var exhausted *keypool.ExhaustedError
	require.ErrorAs(tb, err, &exhausted)
	return exhausted
}

// of returns what is known of a key for a class.
func of(tb testing.TB, p *keypool.KeyPool, class, id string) keypool.KeyMetadata {
	tb.Helper()
	for _, c := range p.GetStats().Classes {
		for _, k := range c.Keys {
			if c.Class == class && k.ID == id {
				return k
			}
		}
	}
	require.Failf(tb, "no such key or class", "key %s, class %q", id, class)
	return keypool.KeyMetadata{}
}

// rateHeaders are an answer's headers of limit and remaining for requests, input and output.
func rateHeaders(values ...int) http.Header {
	h := http.Header{}
	for i, v := range values {
		kind := []string{"requests", "input-tokens", "output-tokens"}[i/2]
		h.Set("anthropic-ratelimit-"+kind+[]string{"-limit", "-remaining"}[i%2], strconv.Itoa(v))
	}
	return h
}

func TestTwoKeysOf50GrantExactly100(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, _ := keysOf(2, 50, 0, 0)
				p := newPool(t, strategy, keys...)
				granted := map[string]int{}
				for range 100 {
					granted[getKey(t, p)]++
				}
				assert.Equal(t, map[string]int{keys[0].ID(): 50, keys[1].ID(): 50}, granted)
				_, _, err := p.GetKey(context.Background())
				require.Equal(t, keypool.ErrAllKeysExhausted, err)

				wait := p.GetEarliestResetTime()
				assert.Equal(t, time.Minute/50, wait, "one request refills")
				time.Sleep(wait)
				for range 2 { // one on each key
					getKey(t, p)
				}
				_, _, err = p.GetKey(context.Background())
				require.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
				time.Sleep(time.Minute)
				for range 100 {
					getKey(t, p)
				}
			})
		})
	}
}

func TestGetKeyReturnsTheKeyOfItsID(t *testing.T) {
	keys, ids := keysOf(3, 0, 0, 0)
	p := newPool(t, keypool.StrategyRoundRobin, keys...)
	for i := range 3 {
		id, apiKey, err := p.GetKey(context.Background())
		require.NoError(t, err)
		assert.Equal(t, ids[i], id)
		assert.Equal(t, keys[i].Key.Reveal(), apiKey)
	}
}

// After exactly the time told a key serves, whatever kept it: GetKey is refused
// a moment before and granted then.
func TestGetEarliestResetTimeIsExact(t *testing.T) {
	empty := rateHeaders(50, 0)
	for _, tc := range []struct {
		name string
		set  func(p *keypool.KeyPool, ids []string)
		want time.Duration
	}{
		{"free", func(*keypool.KeyPool, []string) {}, 0},
		{"one key free", func(p *keypool.KeyPool, ids []string) { p.MarkKeyExhausted(ids[0], time.Hour) }, 0},
		{"buckets", func(p *keypool.KeyPool, ids []string) {
			_ = p.UpdateKeyFromHeaders(ids[0], empty)
			_ = p.UpdateKeyFromHeaders(ids[1], empty)
		}, 1200 * time.Millisecond},
		{"cool-downs", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyExhausted(ids[0], 20*time.Second)
			p.MarkKeyExhausted(ids[1], 30*time.Second)
		}, 20 * time.Second},
		{"one cools, the other refills", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyExhausted(ids[0], 20*time.Second)
			_ = p.UpdateKeyFromHeaders(ids[1], rateHeaders(2, 0))
		}, 20 * time.Second},
		{"the longer of cool-down and bucket", func(p *keypool.KeyPool, ids []string) {
			for _, id := range ids {
				p.MarkKeyExhausted(id, 10*time.Second)
				_ = p.UpdateKeyFromHeaders(id, rateHeaders(2, 0))
			}
		}, 30 * time.Second},
		{"one dead, one cooling", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyDead(ids[0], keypool.ReasonUnauthorized)
			p.MarkKeyExhausted(ids[1], time.Minute)
		}, time.Minute},
		{"one dead, to be probed before the other has cooled", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyDead(ids[0], keypool.ReasonUnauthorized)
			p.MarkKeyExhausted(ids[1], 4*time.Minute+59*time.Second)
		}, 4*time.Minute + 59*time.Second},
		{"all dead", func(p *keypool.KeyPool, ids []string) {
			p.MarkKeyDead(ids[0], keypool.ReasonSpent)
			p.MarkKeyDead(ids[1], keypool.ReasonUnauthorized)
		}, 5 * time.Minute},
		{"a class that cools is not the class-less methods'", func(p *keypool.KeyPool, ids []string) {
			p.MarkClassExhausted(ids[0], "opus-5", time.Minute)
			p.MarkClassExhausted(ids[1], "opus-5", time.Minute)
		}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(2, 50, 0, 0)
				p := newPool(t, "", keys...)
				tc.set(p, ids)
				require.Equal(t, tc.want, p.GetEarliestResetTime())
				if tc.want > 0 {
					time.Sleep(tc.want - time.Millisecond)
					_, _, err := p.GetKey(context.Background())
					require.ErrorIs(t, err, keypool.ErrAllKeysExhausted, "a millisecond early")
					require.InDelta(t, time.Millisecond, p.GetEarliestResetTime(), float64(time.Microsecond))
					time.Sleep(time.Millisecond)
				}
				getKey(t, p)
			})
		})
	}
}

func TestACancelledContextTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 50, 1000, 100))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, _, err := p.GetKey(ctx)
		require.ErrorIs(t, err, context.Canceled)
		_, err = p.Acquire(ctx, keypool.Demand{Class: "opus-5"})
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, keypool.ErrAllKeysExhausted)
		assert.Equal(t, ratelimit.Limits{RPM: 50, ITPM: 1000, OTPM: 100}, p.Keys()[0].Remaining)
	})
}

func TestAPoolWithoutKeys(t *testing.T) {
	p := newPool(t, "")
	id, apiKey, err := p.GetKey(context.Background())
	require.NoError(t, err)
	assert.NotEmpty(t, id)
	assert.Empty(t, apiKey)
	acquire(t, p, keypool.Demand{Class: "a"}).Answered(http.StatusOK, nil)
	for range 1000 {
		lease := acquire(t, p, keypool.Demand{Class: "a", Bytes: 4_000_000, MaxTokens: 128_000})
		assert.Equal(t, id, lease.KeyID())
		assert.Empty(t, lease.APIKey())
	}
	require.NoError(t, p.UpdateKeyFromHeaders(id, rateHeaders(1, 0)))
	assert.Equal(t, 1, p.GetStats().Total)
}

func TestNewKeyPoolRefuses(t *testing.T) {
	with := func(change func(*keypool.KeyConfig)) []keypool.KeyConfig {
		k := keyOf(1, 50, 0, 0)
		change(&k)
		return []keypool.KeyConfig{keyOf(0, 50, 0, 0), k}
	}
	for _, tc := range []struct {
		name string
		cfg  keypool.PoolConfig
		want string
	}{
		{"strategy", keypool.PoolConfig{Strategy: "best"}, `"best" is unknown; write one of least_loaded, random, round_robin, weighted`},
		{"same key twice", keypool.PoolConfig{Keys: []keypool.KeyConfig{keyOf(0, 0, 0, 0), keyOf(1, 0, 0, 0), keyOf(0, 5, 0, 0)}}, "keys[2] is the same key as keys[0]"},
		{"empty key", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.Key = secret.Value{} })}, "keys[1]: key is empty"},
		{"priority above", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.Priority = new(3) })}, "keys[1]: priority 3 is not"},
		{"priority below", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.Priority = new(-1) })}, "keys[1]: priority -1 is not"},
		{"weight below", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.Weight = new(0) })}, "keys[1]: weight 0 is not"},
		{"weight above", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.Weight = new(1001) })}, "keys[1]: weight 1001 is not"},
		{"negative RPM", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.RPMLimit = -1 })}, "keys[1]: a limit is negative"},
		{"negative ITPM", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.ITPMLimit = -1 })}, "keys[1]: a limit is negative"},
		{"negative OTPM", keypool.PoolConfig{Keys: with(func(k *keypool.KeyConfig) { k.OTPMLimit = -1 })}, "keys[1]: a limit is negative"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := keypool.NewKeyPool("main", tc.cfg)
			require.ErrorContains(t, err, tc.want)
			assert.Nil(t, p)
			assert.NotContains(t, err.Error(), canary)
		})
	}
}
