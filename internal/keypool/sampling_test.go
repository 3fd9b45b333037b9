package keypool_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// drawn is the share of choices in which the first key, which is always the best of
// those that are looked at, is chosen.
func drawn(t *testing.T, p *keypool.KeyPool, best string, n int) float64 {
	t.Helper()
	chosen := 0
	for range n {
		lease := acquire(t, p, of1000Class())
		if lease.KeyID() == best {
			chosen++
		}
		lease.Settle(keypool.Usage{})
	}
	return float64(chosen) / float64(n)
}

// Four of many keys are drawn in proportion to their limits: one whose limit is a
// part x of all is among them with 1 − (1 − x)^4.
func TestManyKeysAreDrawnInProportion(t *testing.T) {
	const n = 10_000
	for name, tc := range map[string]struct {
		keys, best int // and its limit; the others have 100,000
		unknown    bool
		want       float64
	}{
		"one of 64 equals, almost":       {64, 100_001, false, 1 - math.Pow(63./64, 4)},
		"a tenth of all":                 {64, 700_000, false, 1 - math.Pow(0.9, 4)},
		"half of all":                    {64, 6_300_000, false, 1 - math.Pow(0.5, 4)},
		"of 16 all are looked at":        {16, 100_001, false, 1},
		"of 17 no more":                  {17, 100_001, false, 1 - math.Pow(16./17, 4)},
		"an unknown limit is a middling": {17, 0, true, 1 - math.Pow(1600./2050, 4)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(tc.keys, plenty, 100_000, plenty)
				keys[0].ITPMLimit = tc.best
				p := newPool(t, "", keys...)
				if tc.unknown { // and better than the others
					for _, id := range ids[1:] {
						require.NoError(t, p.UpdateClassFromHeaders(id, opus, rateHeaders(plenty, plenty, 100_000, 20_000)))
					}
				}
				sigma := math.Sqrt(tc.want*(1-tc.want)/n) + 1e-9
				assert.InDelta(t, tc.want, drawn(t, p, ids[0], n), 5*sigma)
			})
		})
	}
}

// A key that is drawn and cannot serve is no help: half of all draws are of one that
// is dead, and where all four are, all keys are looked at.
func TestDrawsOfADeadKey(t *testing.T) {
	const n = 20_000
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(64, plenty, 100_000, plenty)
		keys[0].ITPMLimit, keys[5].ITPMLimit = 6_300_000, 100_001
		p := newPool(t, "", keys...)
		p.MarkKeyDead(ids[0], keypool.ReasonSpent)
		want := 1 - math.Pow(1-1./126, 4) + math.Pow(0.5, 4)
		assert.InDelta(t, want, drawn(t, p, ids[5], n), 5*math.Sqrt(want*(1-want)/n))
	})
}

// Limits that headers teach change the draw.
func TestDrawsFollowLearnedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(64, plenty, 100_000, plenty)
		p := newPool(t, "", keys...)
		drawn(t, p, ids[0], 10)
		h := rateHeaders(plenty, plenty, 6_300_000, 6_300_000)
		lease := acquire(t, p, keypool.Demand{Class: opus, Exclude: ids[1:]})
		lease.Answered(200, h)
		lease.Settle(keypool.Usage{})
		time.Sleep(time.Minute)
		assert.InDelta(t, 1-math.Pow(0.5, 4), drawn(t, p, ids[0], 10_000), 0.02)
	})
}

// Nobody is refused, or sent to a worse key than there is at home, because of the
// draw.
func TestWhatADrawMustNotMiss(t *testing.T) {
	const n = 64
	only := func(t *testing.T, p *keypool.KeyPool, ids []string) { // the last can serve
		for _, id := range ids[:n-1] {
			p.MarkKeyExhausted(id, time.Hour)
		}
	}
	for _, tc := range []struct {
		name string
		set  func(t *testing.T, p *keypool.KeyPool, ids []string)
		d    keypool.Demand
	}{
		{"the only one that can serve", only, of1000Class()},
		{"the home, however little it has left", func(t *testing.T, p *keypool.KeyPool, ids []string) {
			turn(t, p, talk(1, 80_000), ids[:n-1]...)
			require.NoError(t, p.UpdateClassFromHeaders(ids[n-1], opus, rateHeaders(plenty, plenty, 100_000, 3000)))
		}, talk(1, 84_000)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(n, plenty, 100_000, plenty)
				p := newPool(t, "", keys...)
				tc.set(t, p, ids)
				for range 50 {
					lease := acquire(t, p, tc.d)
					require.Equal(t, ids[n-1], lease.KeyID())
					lease.Settle(keypool.Usage{})
				}
			})
		})
	}
	t.Run("the home that is worth a wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			keys, ids := keysOf(n, plenty, 60_000, plenty)
			p := patient(t, "", keys...)
			turn(t, p, talk(1, 80_000), ids[:n-1]...)
			require.NoError(t, p.UpdateClassFromHeaders(ids[n-1], opus, rateHeaders(plenty, plenty, 60_000, 0)))
			for range 50 {
				var turn keypool.Turn
				_, wait, err := p.AcquireAt(time.Now(), talk(1, 84_000), &turn)
				require.NoError(t, err)
				require.Equal(t, 1600*time.Millisecond, wait)
				p.Leave(&turn)
			}
		})
	})
	t.Run("the key that is free first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			keys, ids := keysOf(n, plenty, 60_000, plenty)
			p := newPool(t, "", keys...)
			for i, id := range ids {
				p.MarkKeyExhausted(id, time.Minute-time.Duration(i)*time.Millisecond)
			}
			assert.Equal(t, time.Minute-63*time.Millisecond, refused(t, p, of1000Class()).RetryAfter)
		})
	})
}

// Turns, weights and priorities are over all keys, however many.
func TestOnlyTheLeastLoadedIsDrawn(t *testing.T) {
	keys, ids := keysOf(64, plenty, plenty, plenty)
	p := newPool(t, keypool.StrategyRoundRobin, keys...)
	for i := range 200 {
		require.Equal(t, ids[i%64], acquire(t, p, of1000Class()).KeyID())
	}
	keys[50].Priority = new(keypool.PriorityHigh)
	p = newPool(t, "", keys...)
	for range 50 {
		require.Equal(t, ids[50], acquire(t, p, of1000Class()).KeyID())
	}
}
