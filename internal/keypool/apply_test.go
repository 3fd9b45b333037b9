package keypool_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

func apply(tb testing.TB, p *keypool.KeyPool, cfg keypool.PoolConfig) {
	tb.Helper()
	if cfg.MaxWait == nil {
		cfg.MaxWait = new(time.Duration)
	}
	require.NoError(tb, p.Apply(cfg))
}

func idsOf(p *keypool.KeyPool) (ids []string) {
	for i, k := range p.Keys() {
		if k.Index != i {
			panic(fmt.Sprintf("key %d says that it is key %d", i, k.Index))
		}
		ids = append(ids, k.ID)
	}
	return ids
}

func TestWhatCannotBeAppliedChangesNothing(t *testing.T) {
	bad := map[string]keypool.PoolConfig{
		"strategy": {Strategy: "wish", Keys: []keypool.KeyConfig{keyOf(5, 1, 1, 1)}},
		"twice":    {Keys: []keypool.KeyConfig{keyOf(5, 1, 1, 1), keyOf(5, 1, 1, 1)}},
		"limit":    {Keys: []keypool.KeyConfig{keyOf(5, -1, 1, 1)}},
		"max_wait": {Keys: []keypool.KeyConfig{keyOf(5, 1, 1, 1)}, MaxWait: ptr(time.Hour)},
		"affinity": {Keys: []keypool.KeyConfig{keyOf(5, 1, 1, 1)}, Affinity: "maybe"},
	}
	for name, cfg := range bad {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, "", keyOf(0, 50, 1000, 1000), keyOf(1, 50, 1000, 1000))
				acquire(t, p, keypool.Demand{Class: opus, Bytes: 400})
				before := p.GetStats()
				require.Error(t, p.Apply(cfg))
				assert.Equal(t, before, p.GetStats())
			})
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestKeysThatStayKeepWhatTheyKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(4, 0, 0, 0)
		p := newPool(t, "", keys...)
		for i, id := range ids {
			h := rateHeaders(100+i, 90, 10_000, 9000, 5000, 4000)
			h.Set("Anthropic-Organization-Id", fmt.Sprint("org-", i/2))
			require.NoError(t, p.UpdateClassFromHeaders(id, opus, h))
		}
		lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4000, Exclude: []string{ids[0], ids[1], ids[2]}})
		p.MarkKeyExhausted(ids[1], time.Minute)
		p.MarkKeyDead(ids[2], keypool.ReasonSpent)
		p.MarkKeyForbidden(ids[3], "sonnet-5", "a", true)
		before := map[string]keypool.KeyMetadata{}
		for _, id := range ids {
			before[id] = of(t, p, opus, id)
		}
		apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{keyOf(9, 0, 0, 0), keys[3], keys[2], keys[1]}})

		assert.Equal(t, []string{keyOf(9, 0, 0, 0).ID(), ids[3], ids[2], ids[1]}, idsOf(p))
		for _, id := range ids[1:] {
			after := of(t, p, opus, id)
			want := before[id]
			want.Index = after.Index
			assert.Equal(t, want, after)
		}
		assert.Equal(t, keypool.StateDead, of(t, p, "sonnet-5", ids[3]).State)
		assert.Equal(t, ratelimit.Limits{}, of(t, p, opus, keyOf(9, 0, 0, 0).ID()).Limits, "a new key")
		lease.Settle(keypool.Usage{})
		assert.Zero(t, keypool.InnerOf(p))
	})
}

func TestWhatTheOperatorChangesCountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told, plain, unsaid := keyOf(0, 50, 1000, 1000), keyOf(1, 50, 1000, 1000), keyOf(2, 0, 0, 0)
		p := newPool(t, keypool.StrategyRoundRobin, told, plain, unsaid)
		require.NoError(t, p.UpdateClassFromHeaders(told.ID(), opus, rateHeaders(80, 70)))
		for _, k := range []keypool.KeyConfig{told, plain, unsaid} {
			lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 400})
			require.Equal(t, k.ID(), lease.KeyID())
		}
		for _, k := range []*keypool.KeyConfig{&told, &plain, &unsaid} {
			k.RPMLimit, k.ITPMLimit, k.OTPMLimit = 500, 2000, 0
			k.Weight, k.Priority = ptr(7), ptr(keypool.PriorityLow)
		}
		apply(t, p, keypool.PoolConfig{Strategy: keypool.StrategyWeighted, Keys: []keypool.KeyConfig{told, plain, unsaid}})

		for _, tc := range []struct {
			key       keypool.KeyConfig
			limits    ratelimit.Limits
			remaining ratelimit.Limits
		}{
			{told, ratelimit.Limits{RPM: 80, ITPM: 2000}, ratelimit.Limits{RPM: 49, ITPM: 900}},
			{plain, ratelimit.Limits{RPM: 500, ITPM: 2000}, ratelimit.Limits{RPM: 49, ITPM: 900}},
			{unsaid, ratelimit.Limits{RPM: 500, ITPM: 2000}, ratelimit.Limits{RPM: 499, ITPM: 1900}},
		} {
			k := of(t, p, opus, tc.key.ID())
			assert.Equal(t, tc.limits, k.Limits, "key %d", k.Index)
			assert.Equal(t, tc.remaining, k.Remaining, "key %d", k.Index)
			assert.Equal(t, 7, k.Weight)
			assert.Equal(t, keypool.PriorityLow, k.Priority)
		}
		assert.Equal(t, keypool.StrategyWeighted, p.GetStats().Strategy)
	})
}

func TestOrganizationsOfTheOperatorCanChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := keyOf(0, 100, 10_000, 0), keyOf(1, 100, 10_000, 0), keyOf(2, 100, 10_000, 0)
		named := func(k keypool.KeyConfig, name string) keypool.KeyConfig {
			k.Organization = name
			return k
		}
		p := newPool(t, "", a, b)
		limits := func() ratelimit.Limits {
			assert.Zero(t, p.ClassLimits(opus).Output.Limit)
			l := p.ClassLimits(opus)
			return ratelimit.Limits{RPM: l.Requests.Limit, ITPM: l.Input.Limit}
		}
		one := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4000})
		two := acquire(t, p, keypool.Demand{Class: opus, Bytes: 8000})
		require.NotEqual(t, one.KeyID(), two.KeyID())

		apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{named(a, "x"), named(b, "x"), named(c, "x")}})
		assert.Equal(t, ratelimit.Limits{RPM: 100, ITPM: 10_000}, limits(), "one organization")
		for _, k := range p.GetStats().Classes[1].Keys {
			assert.Equal(t, ratelimit.Limits{RPM: 98, ITPM: 7000}, k.Remaining)
		}
		assert.Len(t, one.OwnerKeys(), 3)

		apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{a, b, named(c, "x")}})
		assert.Equal(t, ratelimit.Limits{RPM: 300, ITPM: 30_000}, limits(), "three")
		assert.Equal(t, []string{one.KeyID()}, one.OwnerKeys())
		one.Settle(keypool.Usage{})
		two.Settle(keypool.Usage{})
		assert.Zero(t, keypool.InnerOf(p))

		h := http.Header{}
		h.Set("Anthropic-Organization-Id", "org-1")
		require.NoError(t, p.UpdateClassFromHeaders(a.ID(), opus, h))
		require.NoError(t, p.UpdateClassFromHeaders(b.ID(), opus, h))
		apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{named(b, "y"), named(a, "z"), named(c, "y")}})
		assert.Equal(t, ratelimit.Limits{RPM: 100, ITPM: 10_000}, limits(), "the provider knows better, and c is of b's")
	})
}

// Where headers have told one limit of an organization, the others stay the operator's.
func TestLimitsOfKeysThatAreJoined(t *testing.T) {
	a, b := keyOf(0, 100, 0, 0), keyOf(1, 200, 20_000, 0)
	p := newPool(t, "", a, b)
	require.NoError(t, p.UpdateClassFromHeaders(b.ID(), opus, rateHeaders(0, 0, 0, 0, 300, 300)))
	a.RPMLimit, b.RPMLimit, a.Organization, b.Organization = 150, 150, "x", "x"
	apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{a, b}})
	assert.Equal(t, ratelimit.Limits{RPM: 150, ITPM: 20_000, OTPM: 300}, of(t, p, opus, a.ID()).Limits)
	assert.Equal(t, ratelimit.Limits{RPM: 150, ITPM: 20_000}, of(t, p, keypool.ClassAny, a.ID()).Limits)
	a.RPMLimit, b.RPMLimit, b.ITPMLimit = 0, 0, 0
	apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{b}})
	assert.Equal(t, ratelimit.Limits{OTPM: 300}, of(t, p, opus, b.ID()).Limits)
}

func TestARemovedKeyServesWhatIsInFlight(t *testing.T) {
	for name, organization := range map[string]string{"alone": "", "of an organization that stays": "x"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := keyOf(0, 100, 10_000, 1000), keyOf(1, 100, 10_000, 1000)
				a.Organization, b.Organization = organization, organization
				p := newPool(t, "", a, b)
				demand := keypool.Demand{Class: opus, Bytes: 4000, MaxTokens: 100, Exclude: []string{b.ID()}}
				lease, silent := acquire(t, p, demand), acquire(t, p, demand)
				apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{b}})
				assert.Equal(t, 2, p.GetStats().Classes[1].InFlight)
				assert.Equal(t, b.ID(), getKey(t, p))
				_ = refused(t, p, keypool.Demand{Class: opus, Bytes: 4, Exclude: []string{b.ID()}})
				assert.Contains(t, lease.OwnerKeys(), a.ID())
				require.ErrorIs(t, p.Release(a.ID()), keypool.ErrKeyNotFound)
				p.MarkKeyDead(a.ID(), keypool.ReasonSpent)

				h := rateHeaders(100, 90, 10_000, 5000, 1000, 900)
				h.Set("Anthropic-Organization-Id", "org-1")
				require.NoError(t, p.UpdateClassFromHeaders(b.ID(), opus, h))
				h.Set("Anthropic-Organization-Id", "org-2")
				lease.Answered(http.StatusOK, h)
				lease.Produced(10)
				lease.Succeeded()
				lease.Settle(keypool.Usage{Input: 1000, Output: 20})
				if organization == "" {
					silent.Limited(time.Minute)
				}
				silent.Settle(keypool.Usage{})
				assert.Zero(t, keypool.InnerOf(p))
				assert.Equal(t, 0, p.GetStats().Classes[1].InFlight)
				want := ratelimit.Limits{RPM: 90, ITPM: 5000, OTPM: 900}
				if organization != "" {
					want.OTPM = 880
				}
				assert.Equal(t, want, of(t, p, opus, b.ID()).Remaining)
			})
		})
	}
}

// What a merge of organizations does to buckets must reach the leases of removed keys.
func TestARemovedKeysLeaseFollowsItsOrganization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := keyOf(0, 100, 10_000, 1000), keyOf(1, 100, 10_000, 1000), keyOf(2, 100, 10_000, 1000)
		a.Organization, b.Organization = "x", "x"
		p := newPool(t, "", a, b, c)
		lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4000, Exclude: []string{b.ID(), c.ID()}})
		apply(t, p, keypool.PoolConfig{Keys: []keypool.KeyConfig{b, c}})
		h := http.Header{}
		h.Set("Anthropic-Organization-Id", "org-1")
		for _, k := range []keypool.KeyConfig{c, b} { // b's joins c's
			require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, h))
		}
		assert.ElementsMatch(t, []string{a.ID(), b.ID(), c.ID()}, lease.OwnerKeys())
		lease.Settle(keypool.Usage{})
		assert.Zero(t, keypool.InnerOf(p))
		assert.Equal(t, ratelimit.Limits{RPM: 100, ITPM: 10_000, OTPM: 1000}, of(t, p, opus, c.ID()).Remaining)
	})
}

func TestHomesSurviveAndThoseOfRemovedKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, plenty, plenty, plenty)
		p := newPool(t, keypool.StrategyRoundRobin, keys...)
		homes := map[uint64]string{}
		for i := range uint64(3) {
			lease := acquire(t, p, talk(i+1, 80_000))
			lease.Answered(http.StatusOK, nil)
			lease.Settle(keypool.Usage{CacheWrite: 20_000})
			homes[i+1] = lease.KeyID()
		}
		late := acquire(t, p, keypool.Demand{Class: opus, Bytes: 80_000, Prefix: talk(9, 80_000).Prefix, Conversation: 9})
		require.Equal(t, ids[0], late.KeyID())

		added := []keypool.KeyConfig{keyOf(7, plenty, plenty, plenty), keys[2], keyOf(8, plenty, plenty, plenty), keys[1]}
		apply(t, p, keypool.PoolConfig{Strategy: keypool.StrategyRoundRobin, Keys: added})
		late.Answered(http.StatusOK, nil) // its scope may be another's now
		late.Settle(keypool.Usage{CacheWrite: 20_000})
		apply(t, p, keypool.PoolConfig{Strategy: keypool.StrategyRoundRobin, Keys: append(added, keyOf(11, plenty, plenty, plenty))})
		for conversation, was := range homes {
			a := p.Preview(time.Now(), talk(conversation, 84_000))
			if was == ids[0] {
				assert.Empty(t, a.HomeKey)
				assert.Zero(t, a.Estimate.Cached)
				for _, k := range a.Keys {
					assert.Zero(t, k.Cached, "at %s", k.ID)
				}
				continue
			}
			assert.Equal(t, was, a.Key)
			assert.True(t, a.Home)
			assert.Positive(t, a.Estimate.Cached)
		}
		for _, k := range ptr(p.Preview(time.Now(), talk(9, 84_000))).Keys {
			assert.Zero(t, k.Cached, "at %s", k.ID)
		}
		s := snapshotOf(t, p)
		assert.Len(t, s.Homes, 2)
		next := newPool(t, "", keys...)
		next.Restore(s)
		assert.Equal(t, homes[2], next.Preview(time.Now(), talk(2, 84_000)).HomeKey)
	})
}

func TestTurnsGoOnAfterAReload(t *testing.T) {
	keys, ids := keysOf(5, 0, 0, 0)
	for _, tc := range []struct {
		name string
		last int // index of the key chosen last
		next []int
		want int
	}{
		{"nothing changed", 2, []int{0, 1, 2, 3, 4}, 3},
		{"another order", 2, []int{4, 2, 0, 1, 3}, 0},
		{"the last is gone", 2, []int{0, 1, 3, 4}, 3},
		{"all before it are gone", 2, []int{3, 4}, 3},
		{"all others are gone", 2, []int{2}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPool(t, keypool.StrategyRoundRobin, keys...)
			for i := range tc.last + 1 {
				require.Equal(t, ids[i], getKey(t, p))
			}
			var next []keypool.KeyConfig
			for _, i := range tc.next {
				next = append(next, keys[i])
			}
			apply(t, p, keypool.PoolConfig{Strategy: keypool.StrategyRoundRobin, Keys: next})
			assert.Equal(t, ids[tc.want], getKey(t, p))
		})
	}
}

func TestFromNoKeysToKeysAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "")
		none := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4})
		require.Empty(t, none.APIKey())
		keys, ids := keysOf(20, 50, 1000, 1000)
		apply(t, p, keypool.PoolConfig{Keys: keys})
		assert.Equal(t, ids, idsOf(p))
		lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4})
		assert.NotEmpty(t, lease.APIKey())
		apply(t, p, keypool.PoolConfig{})
		again := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4})
		assert.Empty(t, again.APIKey())
		for _, l := range []keypool.Lease{none, lease, again} {
			l.Settle(keypool.Usage{Input: 1})
		}
		assert.Zero(t, keypool.InnerOf(p))
		assert.Len(t, p.Keys(), 1)
	})
}

func TestWhoWaitsLooksAgainAfterAReload(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(q *queue)
		want []string
	}{
		{"the same again", func(q *queue) { q.apply(10*time.Second, q.key) }, []string{"first 1.6s", "second 2.6s"}},
		{"a key is added", func(q *queue) { q.apply(10*time.Second, q.key, keyOf(5, plenty, plenty, plenty)) }, []string{"first 500ms", "second 500ms"}},
		{"it is replaced", func(q *queue) { q.apply(10*time.Second, keyOf(5, plenty, plenty, plenty)) }, []string{"first 500ms", "second 500ms"}},
		{"it is off", func(q *queue) { require.NoError(q, q.pool.Disable(q.key.ID())) }, []string{"first refused 500ms", "second refused 500ms"}},
		{"no more waiting", func(q *queue) { q.apply(0, q.key) }, []string{"first refused 500ms", "second refused 500ms"}},
		{"a higher limit", func(q *queue) {
			k := q.key
			k.ITPMLimit = 600_000 // headers have told another
			q.apply(10*time.Second, k)
		}, []string{"first 1.6s", "second 2.6s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, 10*time.Second)
				q.ask(t.Context(), "first", of1000(""))
				q.ask(t.Context(), "second", of1000(""))
				time.Sleep(500 * time.Millisecond)
				tc.do(q)
				got := q.order()
				slices.Sort(got) // those woken together come in any order
				assert.Equal(t, tc.want, got)
			})
		})
	}
}

func (q *queue) apply(maxWait time.Duration, keys ...keypool.KeyConfig) {
	q.Helper()
	require.NoError(q, q.pool.Apply(keypool.PoolConfig{Keys: keys, MaxWait: &maxWait}))
}

func TestAKeyThatIsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, 60, 60_000, 6000)
		p := newPool(t, "", keys...)
		open := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4, Exclude: ids[1:]})
		require.NoError(t, p.Disable(ids[0]))
		require.NoError(t, p.Disable(ids[0]))
		require.ErrorIs(t, p.Disable("nobody"), keypool.ErrKeyNotFound)
		require.ErrorIs(t, p.Enable("nobody"), keypool.ErrKeyNotFound)
		for range 10 {
			assert.NotEqual(t, ids[0], getKey(t, p))
		}
		refusal := refused(t, p, keypool.Demand{Class: opus, Bytes: 4, Exclude: ids[1:]})
		assert.Equal(t, keypool.ExhaustedError{Provider: "test", Off: 1}, *refusal)
		assert.Equal(t, keypool.StateOff, of(t, p, opus, ids[0]).State)
		stats := p.GetStats()
		assert.Equal(t, []int{3, 2, 1}, []int{stats.Total, stats.Available, stats.Off})
		assert.Equal(t, 120, stats.Classes[0].Limits.RPM)
		assert.Equal(t, 120, p.ClassLimits(opus).Requests.Limit)

		p.MarkKeyDead(ids[0], keypool.ReasonUnauthorized)
		time.Sleep(time.Hour)
		_ = refused(t, p, keypool.Demand{Class: opus, Bytes: 4, Exclude: ids[1:]}) // nor is it probed
		require.NoError(t, p.Release(ids[0]))
		apply(t, p, keypool.PoolConfig{Keys: keys})
		assert.Equal(t, keypool.StateOff, of(t, p, opus, ids[0]).State, "after Release and Apply")
		apply(t, p, keypool.PoolConfig{Keys: keys[1:]})
		apply(t, p, keypool.PoolConfig{Keys: keys})
		assert.Equal(t, keypool.StateOff, of(t, p, opus, ids[0]).State, "after it has been away")
		assert.Equal(t, keypool.StateAvailable, of(t, reborn(t, p, keys...), keypool.ClassAny, ids[0]).State, "after a restart")
		open.Settle(keypool.Usage{Input: 1})

		for _, id := range ids[1:] {
			require.NoError(t, p.Disable(id))
		}
		assert.Equal(t, time.Hour, p.GetEarliestResetTime())
		_, _, err := p.GetKey(t.Context())
		require.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
		require.NoError(t, p.Enable(ids[0]))
		assert.Equal(t, ids[0], getKey(t, p))
		assert.Zero(t, p.GetEarliestResetTime())
	})
}

// The home of a conversation that is off is no home, and becomes one again.
func TestAHomeThatIsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := keysOf(20, plenty, plenty, plenty) // some are drawn
		p := newPool(t, "", keys...)
		home := turn(t, p, talk(1, 80_000))
		require.NoError(t, p.Disable(home))
		for range 200 {
			assert.NotEqual(t, home, turn(t, p, talk(2, 4000)))
		}
		assert.NotEqual(t, home, p.Preview(time.Now(), talk(1, 84_000)).Key)
		require.NoError(t, p.Enable(home))
		assert.Equal(t, home, p.Preview(time.Now(), talk(1, 84_000)).Key)
	})
}

// Reloads without end, while many wait: nobody waits too long, nobody is lost, and
// nothing is left over.
func TestStressReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const maxWait = 3 * time.Second
		keys, ids := keysOf(6, 60, 30_000, 3000)
		for i := range keys[:4] {
			keys[i].Organization = fmt.Sprint("org-", i/2)
		}
		p := patient(t, "", keys...)
		end := time.Now().Add(time.Minute)
		var served, lost atomic.Int64
		var wg sync.WaitGroup
		for g := range uint64(64) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(g, 2))
				for time.Now().Before(end) {
					start := time.Now()
					d := talk(uint64(r.IntN(10)), 4000*(1+r.IntN(20)))
					d.Client, d.MaxTokens, d.Account = fmt.Sprint(r.IntN(5)), 500, &keypool.Account{}
					lease, err := p.Acquire(context.Background(), d)
					if waited := time.Since(start); waited > maxWait {
						t.Errorf("a request has waited %s", waited)
					}
					if errors.Is(err, keypool.ErrAllKeysExhausted) {
						lost.Add(1)
						time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
						continue
					}
					assert.NoError(t, err)
					served.Add(1)
					if r.IntN(3) > 0 {
						lease.Answered(http.StatusOK, rateHeaders(60, r.IntN(60), 30_000, r.IntN(30_000), 3000, r.IntN(3000)))
					}
					time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
					lease.Produced(r.IntN(200))
					lease.Settle(keypool.Usage{Input: r.IntN(5000), Output: r.IntN(300)})
				}
			})
		}
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, 3))
			strategies := keypool.Strategies()
			for time.Now().Before(end) {
				var next []keypool.KeyConfig
				for _, i := range r.Perm(len(keys))[r.IntN(len(keys)-1):] {
					next = append(next, keys[i])
				}
				assert.NoError(t, p.Apply(keypool.PoolConfig{Strategy: strategies[r.IntN(len(strategies))], Keys: next, MaxWait: ptr(time.Duration(r.IntN(2)+2) * time.Second)}))
				id := ids[r.IntN(len(ids))]
				_ = p.Disable(id)
				p.Preview(time.Now(), talk(1, 40_000))
				time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
				_ = p.Enable(id)
			}
		})
		wg.Go(func() {
			for time.Now().Before(end) {
				p.GetStats()
				p.Snapshot()
				p.GetEarliestResetTime()
				_, _, _ = p.GetKey(context.Background())
				time.Sleep(70 * time.Millisecond)
			}
		})
		wg.Wait()
		assert.Positive(t, served.Load())
		assert.Positive(t, lost.Load())
		assert.Zero(t, keypool.InnerOf(p), "left over")
	})
}
