package keypool_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// belongs tells the pool whose key it is.
func belongs(tb testing.TB, p *keypool.KeyPool, class, id, organization string, rates ...int) {
	tb.Helper()
	h := rateHeaders(rates...)
	h.Set("Anthropic-Organization-Id", organization)
	require.NoError(tb, p.UpdateClassFromHeaders(id, class, h))
}

func classStats(tb testing.TB, p *keypool.KeyPool, class string) keypool.ClassStats {
	tb.Helper()
	for _, c := range p.GetStats().Classes {
		if c.Class == class {
			return c
		}
	}
	tb.Fatalf("no class %q", class)
	return keypool.ClassStats{}
}

func TestKeysOfOneOrganizationShareItsLimits(t *testing.T) {
	for name, share := range map[string]func(*testing.T, []keypool.KeyConfig) *keypool.KeyPool{
		"configured": func(t *testing.T, keys []keypool.KeyConfig) *keypool.KeyPool {
			keys[0].Organization, keys[1].Organization = "acme", "acme"
			return newPool(t, "", keys...)
		},
		"learned": func(t *testing.T, keys []keypool.KeyConfig) *keypool.KeyPool {
			p := newPool(t, "", keys...)
			for _, k := range keys {
				belongs(t, p, "", k.ID(), "org-1")
			}
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, _ := keysOf(2, 50, 30_000, 8000)
				p := share(t, keys)
				for i := range 50 {
					_, _, err := p.GetKey(context.Background())
					require.NoError(t, err, "request %d", i)
				}
				_, _, err := p.GetKey(context.Background())
				require.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
				assert.Equal(t, ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, classStats(t, p, "").Limits, "counted once")
			})
		})
	}
}

func TestMergingTakesOverWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 50, 30_000, 8000)
		p := newPool(t, keypool.StrategyRoundRobin, keys...)
		a := acquire(t, p, keypool.Demand{Class: opus, Bytes: 20_000, MaxTokens: 100})
		b := acquire(t, p, keypool.Demand{Class: opus, Bytes: 28_000, MaxTokens: 200})
		require.NotEqual(t, a.KeyID(), b.KeyID())

		belongs(t, p, opus, ids[0], "org-1")
		belongs(t, p, opus, ids[1], "org-1")
		want := ratelimit.Limits{RPM: 48, ITPM: 18_000, OTPM: 8000}
		assert.Equal(t, want, of(t, p, opus, ids[0]).Remaining, "both sides' requests are taken from one set of buckets")
		assert.Equal(t, want, of(t, p, opus, ids[1]).Remaining)
		assert.Equal(t, want, classStats(t, p, opus).Remaining)
		assert.ElementsMatch(t, ids, b.OwnerKeys())

		a.Settle(keypool.Usage{Input: 1000, Output: 100})
		b.Settle(keypool.Usage{})
		assert.Equal(t, ratelimit.Limits{RPM: 49, ITPM: 29_000, OTPM: 7900}, classStats(t, p, opus).Remaining)
		assert.Zero(t, classStats(t, p, opus).InFlight)
	})
}

func TestOneKeyAtItsLimitRestsItsOrganization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, 50, 30_000, 8000)
		p := newPool(t, "", keys...)
		belongs(t, p, opus, ids[0], "org-1")
		belongs(t, p, opus, ids[1], "org-1")
		belongs(t, p, opus, ids[2], "org-2")
		p.MarkClassExhausted(ids[0], opus, time.Minute)
		for range 5 {
			assert.Equal(t, ids[2], acquire(t, p, keypool.Demand{Class: opus}).KeyID())
		}
		assert.Equal(t, keypool.StateCooling, of(t, p, opus, ids[1]).State)

		p.MarkKeyDead(ids[0], keypool.ReasonUnauthorized)
		time.Sleep(2 * time.Second)
		used := map[string]bool{}
		for range 20 {
			used[acquire(t, p, keypool.Demand{Class: opus}).KeyID()] = true
		}
		assert.Equal(t, map[string]bool{ids[1]: true, ids[2]: true}, used, "a dead key takes only itself out")
		assert.Equal(t, 100, classStats(t, p, opus).Limits.RPM, "its organization still counts, through the other key")
	})
}

func TestAKeyThatMovesToAnotherOrganization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 50, 30_000, 8000)
		p := newPool(t, keypool.StrategyRoundRobin, keys...)
		belongs(t, p, opus, ids[0], "org-1")
		belongs(t, p, opus, ids[1], "org-1")
		a := acquire(t, p, keypool.Demand{Class: opus, Bytes: 20_000})
		b := acquire(t, p, keypool.Demand{Class: opus, Bytes: 28_000})
		moved, left := b, a
		belongs(t, p, opus, moved.KeyID(), "org-2")
		assert.Equal(t, []string{moved.KeyID()}, moved.OwnerKeys())
		assert.Equal(t, 100, classStats(t, p, opus).Limits.RPM)
		assert.Equal(t, 23_000, of(t, p, opus, moved.KeyID()).Remaining.ITPM, "its request in flight moves along")
		assert.Equal(t, 25_000, of(t, p, opus, left.KeyID()).Remaining.ITPM)
		moved.Settle(keypool.Usage{Input: 7000})
		left.Settle(keypool.Usage{Input: 5000})
		assert.Equal(t, 23_000, of(t, p, opus, moved.KeyID()).Remaining.ITPM)
		assert.Equal(t, 25_000, of(t, p, opus, left.KeyID()).Remaining.ITPM)
		assert.Zero(t, classStats(t, p, opus).InFlight)
	})
}

// In a class where one key has learned the limit and the other has only what was
// configured, what the first one took was never measured against the second's.
func TestMergingKeepsTheLimitThatWasLearned(t *testing.T) {
	for name, learner := range map[string]int{"by the first": 0, "by the second": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(2, 50, 0, 0)
				p := newPool(t, keypool.StrategyRoundRobin, keys...)
				require.NoError(t, p.UpdateClassFromHeaders(ids[learner], opus, rateHeaders(4000, 3400)))
				time.Sleep(time.Minute) // the level reaches 4000
				lease := acquire(t, p, keypool.Demand{Class: opus, Exclude: []string{ids[learner]}})

				belongs(t, p, "another", ids[0], "org-1")
				belongs(t, p, "another", ids[1], "org-1")
				got := of(t, p, opus, ids[0])
				assert.Equal(t, 4000, got.Limits.RPM)
				assert.GreaterOrEqual(t, got.Remaining.RPM, 3399)
				assert.Equal(t, keypool.StateAvailable, got.State)
				lease.Settle(keypool.Usage{})
				assert.Zero(t, classStats(t, p, opus).InFlight)
			})
		})
	}
}

// Headers of a request that was under way when its key changed owners do not show what
// has been made since, by whomever.
func TestOutputMadeBeforeTheOwnerWasKnown(t *testing.T) {
	for name, move := range map[string]func(t *testing.T, p *keypool.KeyPool, ids []string){
		"the second joins the first": func(t *testing.T, p *keypool.KeyPool, ids []string) {
			belongs(t, p, opus, ids[0], "org-1")
			belongs(t, p, opus, ids[1], "org-1")
		},
		"the first joins the second": func(t *testing.T, p *keypool.KeyPool, ids []string) {
			belongs(t, p, opus, ids[1], "org-1")
			belongs(t, p, opus, ids[0], "org-1")
		},
	} {
		for i, want := range []int{49_300, 49_500} {
			t.Run(fmt.Sprint(name, ", answer ", i), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					keys, ids := keysOf(2, 60, 60_000, 60_000)
					p := newPool(t, keypool.StrategyRoundRobin, keys...)
					leases := []keypool.Lease{acquire(t, p, of1000Class()), acquire(t, p, of1000Class())}
					leases[0].Produced(700)
					leases[1].Produced(500)
					move(t, p, ids)
					leases[i].Answered(200, rateHeaders(60, 50, 60_000, 50_000, 60_000, 50_000))
					assert.Equal(t, want, of(t, p, opus, ids[i]).Remaining.OTPM)
					leases[0].Settle(keypool.Usage{Input: 1000, Output: 700})
					leases[1].Settle(keypool.Usage{Input: 1000, Output: 500})
					assert.Zero(t, keypool.InnerOf(p))
				})
			})
		}
	}
}

func TestOutputOfAKeyThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 60, 60_000, 60_000)
		p := newPool(t, keypool.StrategyRoundRobin, keys...)
		belongs(t, p, opus, ids[0], "org-1")
		belongs(t, p, opus, ids[1], "org-2")
		first, second := acquire(t, p, of1000Class()), acquire(t, p, of1000Class())
		first.Produced(700)
		belongs(t, p, opus, ids[1], "org-1")
		second.Answered(200, rateHeaders(60, 50, 60_000, 50_000, 60_000, 50_000))
		assert.Equal(t, 50_000, of(t, p, opus, ids[1]).Remaining.OTPM, "what the other owner's requests made before is no loss since")
		second.Settle(keypool.Usage{Input: 1000, Output: 1})
		first.Settle(keypool.Usage{Input: 1000, Output: 700})
		assert.Zero(t, keypool.InnerOf(p))
	})
}

func TestMergingTakesOverCoolDowns(t *testing.T) {
	for i, name := range []string{"the first key's", "the second key's"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(2, 0, 0, 0)
				p := newPool(t, "", keys...)
				p.MarkClassExhausted(ids[i], opus, 30*time.Second)
				p.MarkClassExhausted(ids[1-i], opus, 10*time.Second)
				belongs(t, p, "another", ids[0], "org-1")
				belongs(t, p, "another", ids[1], "org-1")
				for _, id := range ids {
					assert.Equal(t, 30*time.Second, cooling(t, p, opus, id))
				}
			})
		})
	}
}

// Requests that wait go with their key. Here nothing is left of what two empty buckets
// of one organization were believed to be.
func TestWaitersOfMergedOrganizations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{T: t, key: keyOf(0, plenty, 60_000, plenty), start: time.Now()}
		keys := []keypool.KeyConfig{q.key, keyOf(1, plenty, 60_000, plenty)}
		ids := []string{keys[0].ID(), keys[1].ID()}
		q.pool = patient(t, "", keys...)
		for i, id := range ids {
			require.NoError(t, q.pool.UpdateClassFromHeaders(id, opus, rateHeaders(plenty, plenty, 60_000, 0)))
			q.ask(t.Context(), fmt.Sprint("waits-", i), keypool.Demand{Bytes: 4000, Exclude: []string{ids[1-i]}})
		}
		time.Sleep(100 * time.Millisecond)
		belongs(t, q.pool, opus, ids[0], "org-1")
		belongs(t, q.pool, opus, ids[1], "org-1")
		q.end("waits-0 refused 100ms", "waits-1 refused 100ms")
	})
}

func TestAnOrganizationHasOneLimit(t *testing.T) {
	keys := []keypool.KeyConfig{keyOf(0, 0, 30_000, 0), keyOf(1, 50, 0, 0), keyOf(2, 50, 30_000, 0)}
	for i := range keys {
		keys[i].Organization = "acme"
	}
	p := newPool(t, "", keys...)
	assert.Equal(t, ratelimit.Limits{RPM: 50, ITPM: 30_000}, classStats(t, p, "").Limits)

	keys[2].RPMLimit = 60
	_, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys})
	assert.ErrorContains(t, err, "keys[2]: organization acme: rpm_limit is 60 here and 50 before")
}

func TestOrganizationsThatSayNothing(t *testing.T) {
	keys, ids := keysOf(2, 50, 0, 0)
	p := newPool(t, "", keys...)
	for _, organization := range []string{"", strings.Repeat("x", 129)} {
		belongs(t, p, "", ids[0], organization)
		belongs(t, p, "", ids[1], organization)
	}
	assert.Equal(t, 100, classStats(t, p, "").Limits.RPM)
}

// Whatever keys turn out to share an organization, at whatever moment: what is
// there and what was taken add up to the capacity, each owner counted once.
func TestMergingConservesCapacity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { rapid.SyncTest(t, conservesCapacity) })
}

func conservesCapacity(t *rapid.T) {
	const n, limit = 5, 100_000
	keys, ids := keysOf(n, 1000, limit, plenty)
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys, Strategy: keypool.StrategyRandom, MaxWait: new(time.Duration)})
	require.NoError(t, err)
	organization := make([]int, n)                                  // 0 unknown
	require.NoError(t, p.UpdateClassFromHeaders(ids[0], opus, nil)) // the class begins
	taken := 0
	var open []keypool.Lease
	var holds []int
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		switch rapid.IntRange(0, 2).Draw(t, "do") {
		case 0:
			tokens := rapid.IntRange(1, 500).Draw(t, "tokens")
			lease, err := p.Acquire(context.Background(), keypool.Demand{Class: opus, Bytes: 4 * tokens})
			require.NoError(t, err)
			open, holds = append(open, lease), append(holds, tokens)
			taken += tokens
		case 1:
			if len(open) == 0 {
				continue
			}
			i := rapid.IntRange(0, len(open)-1).Draw(t, "lease")
			used := rapid.IntRange(0, 600).Draw(t, "used")
			open[i].Settle(keypool.Usage{Input: used, Partial: true}) // which teaches nothing about the size of tokens
			taken += used - holds[i]
			open, holds = append(open[:i], open[i+1:]...), append(holds[:i], holds[i+1:]...)
		case 2:
			k := rapid.IntRange(0, n-1).Draw(t, "key")
			if organization[k] == 0 { // keys learn theirs once; moving is a test of its own
				organization[k] = rapid.IntRange(1, 3).Draw(t, "organization")
				h := rateHeaders()
				h.Set("Anthropic-Organization-Id", fmt.Sprint("org-", organization[k]))
				require.NoError(t, p.UpdateClassFromHeaders(ids[k], opus, h))
			}
		}
		owners, seen := 0, map[int]bool{}
		for _, o := range organization {
			if o == 0 || !seen[o] {
				owners++
			}
			seen[o] = true
		}
		var got keypool.ClassStats
		for _, c := range p.GetStats().Classes {
			if c.Class == opus {
				got = c
			}
		}
		require.Equal(t, owners*limit, got.Limits.ITPM)
		require.Equal(t, owners*limit-taken, got.Remaining.ITPM)
		require.Equal(t, len(open), got.InFlight)
	}
}

// The limits of an organization are those that any of its keys is configured with, in
// classes that nobody has used yet as well, and stay the operator's.
func TestMergingKeepsConfiguredLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := keyOf(0, 0, 0, 0), keyOf(1, 7, 1000, 0)
		p := newPool(t, "", a, b)
		org := http.Header{"Anthropic-Organization-Id": {"org-1"}}
		for _, k := range []keypool.KeyConfig{a, b} {
			require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, org))
		}
		want := ratelimit.Limits{RPM: 7, ITPM: 1000}
		assert.Equal(t, want, of(t, p, opus, a.ID()).Limits)
		acquire(t, p, keypool.Demand{Class: "sonnet-5"}).Settle(keypool.Usage{})
		assert.Equal(t, want, of(t, p, "sonnet-5", a.ID()).Limits)
		acquire(t, p, keypool.Demand{Class: opus}).Settle(keypool.Usage{Input: 10})

		next := reborn(t, p, a, keyOf(1, 14, 2000, 0))
		assert.Equal(t, ratelimit.Limits{RPM: 14, ITPM: 2000}, of(t, next, opus, a.ID()).Limits, "another one is written")
	})
}
