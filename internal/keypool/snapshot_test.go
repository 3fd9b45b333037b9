package keypool_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// snapshotOf is the pool's snapshot after it was in a file.
func snapshotOf(tb require.TestingT, p *keypool.KeyPool) keypool.Snapshot {
	text, err := json.Marshal(p.Snapshot())
	require.NoError(tb, err)
	var s keypool.Snapshot
	require.NoError(tb, json.Unmarshal(text, &s))
	return s
}

// reborn is the pool of the next start, with these keys.
func reborn(tb testing.TB, p *keypool.KeyPool, keys ...keypool.KeyConfig) *keypool.KeyPool {
	tb.Helper()
	s := snapshotOf(tb, p)
	next := newPool(tb, "", keys...)
	next.Restore(s)
	return next
}

// served has one request served by another key than these.
func served(tb testing.TB, p *keypool.KeyPool, d keypool.Demand, h http.Header, not ...string) string {
	tb.Helper()
	d.Exclude = not
	lease := acquire(tb, p, d)
	lease.Answered(http.StatusOK, h)
	lease.Succeeded()
	lease.Settle(keypool.Usage{Input: 1000, Output: 100})
	return lease.KeyID()
}

func TestLimitsAndLevelsOutliveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		served(t, p, keypool.Demand{Class: opus}, rateHeaders(1000, 500, 100_000, 0, 20_000, 2000))
		before := of(t, p, opus, k.ID())

		next := reborn(t, p, k)
		after := of(t, next, opus, k.ID())
		assert.Equal(t, ratelimit.Limits{RPM: 1000, ITPM: 100_000, OTPM: 20_000}, after.Limits)
		assert.Equal(t, before.Remaining, after.Remaining)

		s := snapshotOf(t, p)
		time.Sleep(30 * time.Second) // while the relay is down the buckets refill
		late := newPool(t, "", k)
		late.Restore(s)
		assert.Equal(t, 50_000, of(t, late, opus, k.ID()).Remaining.ITPM)
		time.Sleep(time.Hour)
		late = newPool(t, "", k)
		late.Restore(s)
		assert.Equal(t, ratelimit.Limits{RPM: 1000, ITPM: 100_000, OTPM: 20_000}, of(t, late, opus, k.ID()).Remaining, "never more than full")
	})
}

func TestTheFirstHeadersReplaceWhatWasRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		served(t, p, keypool.Demand{Class: opus}, rateHeaders(1000, 900, 100_000, 90_000, 20_000, 18_000))
		next := reborn(t, p, k)
		served(t, next, keypool.Demand{Class: opus}, rateHeaders(50, 40, 200_000, 190_000, 9000, 8000))
		got := of(t, next, opus, k.ID())
		assert.Equal(t, ratelimit.Limits{RPM: 50, ITPM: 200_000, OTPM: 9000}, got.Limits)
		assert.Equal(t, 190_000, got.Remaining.ITPM)
	})
}

// What the operator writes goes before what he wrote last time, but not before
// what the provider has said since.
func TestConfiguredLimitsAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := keyOf(0, 50, 30_000, 0)
		p := newPool(t, "", old)
		served(t, p, keypool.Demand{Class: opus}, rateHeaders(50, 20, 90_000, 80_000)) // of output nothing is told
		next := reborn(t, p, keyOf(0, 80, 40_000, 7000))
		got := of(t, next, opus, old.ID())
		assert.Equal(t, ratelimit.Limits{RPM: 80, ITPM: 90_000, OTPM: 7000}, got.Limits)
		assert.Equal(t, 20, got.Remaining.RPM)
		assert.Equal(t, 7000, got.Remaining.OTPM)
		assert.Equal(t, 80, of(t, reborn(t, p, keyOf(0, 80, 0, 0)), keypool.ClassAny, old.ID()).Limits.RPM, "other classes begin as configured")
	})
}

func TestOrganizationsOutliveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, 0, 0, 0)
		p := newPool(t, keypool.StrategyRoundRobin, keys...)
		for i, organization := range []string{"org-1", "org-1", "org-2"} {
			h := rateHeaders(100, 60+10*i)
			h.Set("Anthropic-Organization-Id", organization)
			require.Equal(t, ids[i], served(t, p, keypool.Demand{Class: opus}, h))
		}
		var log bytes.Buffer
		next, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys, Logger: zerolog.New(&log)})
		require.NoError(t, err)
		next.Restore(snapshotOf(t, p))
		assert.Equal(t, 200, classStats(t, next, opus).Limits.RPM)
		assert.Equal(t, classStats(t, p, opus).Remaining, classStats(t, next, opus).Remaining)
		assert.Equal(t, 1, strings.Count(log.String(), "two keys belong to one organization"), log.String())

		two := reborn(t, p, keys[1], keys[2])
		assert.Equal(t, 200, classStats(t, two, opus).Limits.RPM, "through the key that is left")
	})
}

func TestCoolDownsOutliveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, 0, 0, 0)
		p := newPool(t, "", keys...)
		p.MarkKeyExhausted(ids[0], time.Minute)
		p.MarkClassExhausted(ids[1], opus, 2*time.Minute)
		p.MarkKeyExhausted(ids[2], time.Second)
		time.Sleep(time.Second)
		next := reborn(t, p, keys...)
		assert.Equal(t, keypool.StateCooling, of(t, next, keypool.ClassAny, ids[0]).State)
		assert.WithinDuration(t, time.Now().Add(59*time.Second), of(t, next, opus, ids[0]).Until, time.Millisecond)
		assert.WithinDuration(t, time.Now().Add(119*time.Second), of(t, next, opus, ids[1]).Until, time.Millisecond)
		assert.Equal(t, keypool.StateAvailable, of(t, next, keypool.ClassAny, ids[1]).State)
		assert.Equal(t, keypool.StateAvailable, of(t, next, opus, ids[2]).State, "it is over")
	})
}

func TestDeadKeysOutliveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(4, 0, 0, 0)
		p := newPool(t, "", keys...)
		p.MarkKeyDead(ids[0], keypool.ReasonUnauthorized)
		p.MarkKeyDead(ids[1], keypool.ReasonSpent)
		p.MarkKeyForbidden(ids[2], opus, "client", true)
		time.Sleep(time.Minute)
		var log bytes.Buffer
		next, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys, Logger: zerolog.New(&log)})
		require.NoError(t, err)
		next.Restore(snapshotOf(t, p))
		for i, want := range []struct {
			reason keypool.Reason
			next   time.Duration
		}{{keypool.ReasonUnauthorized, 4 * time.Minute}, {keypool.ReasonSpent, 59 * time.Minute}, {keypool.ReasonForbidden, 4 * time.Minute}} {
			got := of(t, next, opus, ids[i])
			assert.Equal(t, keypool.StateDead, got.State)
			assert.Equal(t, want.reason, got.Reason)
			assert.WithinDuration(t, time.Now().Add(want.next), got.Until, time.Millisecond)
		}
		assert.Equal(t, keypool.StateAvailable, of(t, next, keypool.ClassAny, ids[2]).State, "for one class alone")
		assert.Equal(t, 2, strings.Count(log.String(), "key is out since before the restart"), log.String())

		time.Sleep(4 * time.Minute)
		probe := acquire(t, next, keypool.Demand{Class: opus, Exclude: []string{ids[1], ids[2], ids[3]}})
		probe.Answered(http.StatusOK, nil)
		probe.Succeeded()
		assert.Equal(t, keypool.StateAvailable, of(t, next, opus, ids[0]).State, "a probe brings it back")
	})
}

// turnOf is a demand whose prompt of 200,000 bytes is cached up to its end.
func turnOf(id uint64) keypool.Demand {
	return keypool.Demand{Class: opus, Model: "claude-opus-5", Bytes: 200_000, MaxTokens: 1000, Conversation: id,
		Prefix: []keypool.Mark{{Hash: 1000 + id, Bytes: 200_000, Life: 5 * time.Minute}}}
}

func TestHomesAndCachesOutliveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, 0, 0, 0)
		p := newPool(t, "", keys...)
		full := rateHeaders(1000, 1000, 1_000_000, 1_000_000, 100_000, 100_000)
		home := map[uint64]string{}
		for id := uint64(1); id <= 3; id++ {
			var others []string
			for _, used := range home {
				others = append(others, used)
			}
			home[id] = served(t, p, turnOf(id), full, others...)
		}
		require.Len(t, home, len(ids))
		turns := func(p *keypool.KeyPool) (same int) {
			for range 10 {
				for id, key := range home {
					lease := acquire(t, p, turnOf(id))
					if lease.KeyID() == key {
						same++
					}
					if held := lease.Held().Input; lease.KeyID() == key && held != 0 {
						t.Errorf("conversation %d: %d tokens of a cached prompt were held", id, held)
					}
					lease.Settle(keypool.Usage{})
				}
			}
			return same
		}
		s := snapshotOf(t, p)
		time.Sleep(time.Minute)
		next := newPool(t, "", keys...)
		next.Restore(s)
		assert.Equal(t, 30, turns(next), "turns at home")

		// Another order of the keys, and one that is gone.
		time.Sleep(time.Minute)
		other := newPool(t, "", keys[2], keys[1])
		other.Restore(s)
		for id, key := range home {
			if key != ids[0] {
				assert.Equal(t, key, acquire(t, other, turnOf(id)).KeyID())
			}
		}

		time.Sleep(4 * time.Minute)
		late := newPool(t, "", keys...)
		late.Restore(s)
		assert.Positive(t, acquire(t, late, turnOf(1)).Held().Input, "the provider's cache has forgotten it")
		assert.Empty(t, snapshotOf(t, late).Prefixes)
	})
}

func TestAnEmptySnapshotChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 50, 0, 0)
		p := newPool(t, "", k)
		want := p.GetStats()
		p.Restore(keypool.Snapshot{})
		p.Restore(reborn(t, p, k).Snapshot())
		assert.Equal(t, want, p.GetStats())
	})
}

// What a client names is not kept unless the provider knows it, and no secret ever.
func TestWhatASnapshotHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 0, 0, 0)
		p := newPool(t, "", keys...)
		served(t, p, turnOf(7), rateHeaders(1000, 900))
		for _, status := range []int{http.StatusNotFound, http.StatusBadRequest, 529} {
			lease := acquire(t, p, keypool.Demand{Class: "written-by-a-client", Client: "anna"})
			lease.Answered(status, nil)
			lease.Settle(keypool.Usage{})
		}
		p.MarkKeyForbidden(ids[0], opus, "anna", true)
		text, err := json.Marshal(p.Snapshot())
		require.NoError(t, err)
		for _, never := range []string{canary, "written-by-a-client", "anna"} {
			assert.NotContains(t, string(text), never)
		}
		assert.Contains(t, string(text), ids[0])
	})
}

// What was seen of one limit says nothing of how much another one lets save up.
func TestALimitRaisedBetweenTwoRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 0, 20_000, 0))
		served(t, p, keypool.Demand{Class: opus}, nil)
		raised := keyOf(0, 0, 200_000, 0)
		next := reborn(t, p, raised)
		assert.Equal(t, 19_000, of(t, next, opus, raised.ID()).Remaining.ITPM, "the level stays")
		time.Sleep(time.Minute)
		assert.Equal(t, 200_000, of(t, next, opus, raised.ID()).Remaining.ITPM)
		assert.Equal(t, 0, of(t, reborn(t, next, keyOf(0, 0, 0, 0)), opus, raised.ID()).Limits.ITPM, "what the operator takes back is not learned")
	})
}

// An organization that only the operator has named is another one when he says so.
func TestAnOrganizationCorrectedBetweenTwoRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 0, 0, 0)
		keys[0].Organization, keys[1].Organization = "one", "one"
		p := newPool(t, "", keys...)
		h := rateHeaders(1000, 0)
		h.Set("Anthropic-Organization-Id", "org-1")
		require.NoError(t, p.UpdateClassFromHeaders(ids[0], opus, h))
		require.Equal(t, 0, of(t, reborn(t, p, keys...), opus, ids[1]).Remaining.RPM)
		keys[1].Organization = "two"
		next := reborn(t, p, keys...)
		assert.Equal(t, ids[1], acquire(t, next, keypool.Demand{Class: opus}).KeyID())
		assert.Zero(t, of(t, next, opus, ids[1]).Limits.RPM, "nothing is known of it")
	})
}
