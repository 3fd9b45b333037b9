package keypool_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

func TestGetStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(5, 50, 30_000, 8000)
		keys[4].Priority, keys[4].Weight = new(keypool.PriorityHigh), new(7)
		p := newPool(t, keypool.StrategyRandom, keys...)
		require.NoError(t, p.UpdateKeyFromHeaders(ids[0], rateHeaders(50, 0)))
		p.MarkKeyExhausted(ids[1], time.Minute)
		p.MarkKeyDead(ids[2], keypool.ReasonSpent)
		lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4_000, MaxTokens: 100}) // the only high one
		p.MarkKeyForbidden(ids[3], opus, "", true)

		stats := p.GetStats()
		assert.Equal(t, "test", stats.Provider)
		assert.Equal(t, "random", stats.Strategy)
		assert.Equal(t, [5]int{5, 2, 1, 1, 1}, [5]int{stats.Total, stats.Available, stats.Exhausted, stats.Cooling, stats.Dead})
		require.Len(t, stats.Classes, 2)

		plain, busy := stats.Classes[0], stats.Classes[1]
		assert.Equal(t, keypool.ClassAny, plain.Class)
		assert.Equal(t, ratelimit.Limits{RPM: 200, ITPM: 120_000, OTPM: 32_000}, plain.Limits, "without the dead one")
		assert.Equal(t, ratelimit.Limits{RPM: 150, ITPM: 120_000, OTPM: 32_000}, plain.Remaining)
		assert.Zero(t, plain.InFlight)
		assert.Equal(t, opus, busy.Class)
		assert.Equal(t, ratelimit.Limits{RPM: 150, ITPM: 90_000, OTPM: 24_000}, busy.Limits, "nor the forbidden one")
		assert.Equal(t, ratelimit.Limits{RPM: 149, ITPM: 89_000, OTPM: 24_000}, busy.Remaining)
		assert.Equal(t, 1, busy.InFlight)

		assert.Equal(t, plain.Keys, p.Keys())
		now := time.Now()
		for i, want := range []keypool.KeyMetadata{
			{State: keypool.StateExhausted, Until: now.Add(1200 * time.Millisecond)},
			{State: keypool.StateCooling, Until: now.Add(time.Minute)},
			{State: keypool.StateDead, Until: now.Add(time.Hour), Reason: keypool.ReasonSpent},
			{State: keypool.StateDead, Until: now.Add(5 * time.Minute), Reason: keypool.ReasonForbidden},
			{State: keypool.StateAvailable},
		} {
			class := busy.Keys
			if i == 0 {
				class = plain.Keys
			}
			got := class[i]
			assert.Equal(t, ids[i], got.ID)
			assert.Equal(t, i, got.Index)
			assert.Equal(t, want.State, got.State, "key %d", i)
			assert.Equal(t, want.Reason, got.Reason, "key %d", i)
			assert.True(t, want.Until.Equal(got.Until), "key %d: got %s, want %s", i, got.Until, want.Until)
		}
		assert.Equal(t, [4]int{1, 1, 2, 7}, [4]int{busy.Keys[0].Priority, busy.Keys[0].Weight, busy.Keys[4].Priority, busy.Keys[4].Weight})
		lease.Settle(keypool.Usage{})
		assert.Zero(t, p.GetStats().Classes[1].InFlight)
	})
}

func TestHeadroom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := []keypool.KeyConfig{keyOf(0, 10, 1000, 100), keyOf(1, 0, 0, 0)}
		p := newPool(t, "", keys...)
		for i := range 2 { // one each
			acquire(t, p, keypool.Demand{Class: opus, Bytes: 400, MaxTokens: 40, Exclude: []string{keys[i].ID()}})
		}
		assert.InDelta(t, 0.6, of(t, p, opus, keys[0].ID()).Headroom, 1e-9, "60 of 100 output tokens")
		assert.InDelta(t, 0.3, of(t, p, opus, keys[1].ID()).Headroom, 1e-9, "0.5 − 0.2 for one in flight")
	})
}

// What is returned is the caller's: changing it changes no pool.
func TestStatsAreCopies(t *testing.T) {
	keys, ids := keysOf(2, 50, 0, 0)
	p := newPool(t, "", keys...)
	for i, k := range p.Keys() {
		k.ID, k.Index, k.Priority, k.InFlight = "x", 9, -5, 1000
		p.Keys()[i] = k
	}
	stats := p.GetStats()
	stats.Classes[0].Keys[0] = keypool.KeyMetadata{}
	stats.Classes[0] = keypool.ClassStats{}
	got := p.Keys()
	assert.Equal(t, ids, []string{got[0].ID, got[1].ID})
	assert.Equal(t, ids[0], getKey(t, p))
	assert.Equal(t, ids[1], getKey(t, p))
}

// Nothing that a pool shows or logs may contain a key: not in any encoding, not
// under any verb, not at any level.
func TestNothingShowsAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		keys, ids := keysOf(3, 5, 3000, 800)
		cfg := keypool.PoolConfig{Strategy: keypool.StrategyRandom, Keys: keys, Logger: zerolog.New(&out).Level(zerolog.TraceLevel)}
		p, err := keypool.NewKeyPool("test", cfg)
		require.NoError(t, err)
		lease := acquire(t, p, keypool.Demand{Class: opus, Conversation: 7})
		for range 15 {
			getKey(t, p)
		}
		_, _, err = p.GetKey(t.Context())
		require.Error(t, err)
		fmt.Fprintln(&out, err, p.UpdateKeyFromHeaders("nobody", nil))
		for _, id := range ids {
			p.MarkKeyExhausted(id, 0)
			p.MarkClassExhausted(id, opus, 0)
			p.MarkKeyForbidden(id, opus, "client", true)
			p.MarkKeyDead(id, keypool.ReasonUnauthorized)
		}
		fmt.Fprintln(&out, refused(t, p, keypool.Demand{Class: opus}))
		time.Sleep(5 * time.Minute)
		probe := acquire(t, p, keypool.Demand{Class: opus})
		probe.Succeeded()

		for _, v := range []any{p.GetStats(), p.Keys(), p, lease, probe, cfg, keys} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
				fmt.Fprintf(&out, verb+"\n", v)
			}
			text, err := json.Marshal(v)
			require.NoError(t, err)
			out.Write(text)
		}
		text, err := yaml.Marshal(p.GetStats())
		require.NoError(t, err)
		out.Write(text)

		assert.NotContains(t, out.String(), canary)
		assert.NotContains(t, out.String(), fmt.Sprintf("%x", canary), "nor in hexadecimal")
		for _, want := range []string{"key chosen", "no key can serve", "key cools down", "key is out", "key may not serve", "key serves again", ids[0]} {
			assert.Contains(t, out.String(), want, "the search must have something to search in")
		}
	})
}
