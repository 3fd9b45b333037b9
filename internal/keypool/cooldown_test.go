package keypool_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// cooling is how long the key will cool for the class; 0 where it does not.
func cooling(tb testing.TB, p *keypool.KeyPool, class, id string) time.Duration {
	tb.Helper()
	k := of(tb, p, class, id)
	if k.State != keypool.StateCooling {
		return 0
	}
	return time.Until(k.Until)
}

func TestMarkKeyExhaustedCoolsAllClasses(t *testing.T) {
	for _, tc := range []struct {
		name       string
		retryAfter time.Duration
		want       time.Duration
	}{
		{"as told", 17 * time.Second, 17 * time.Second},
		{"below a second as told", time.Millisecond, time.Millisecond},
		{"at most an hour", 2 * time.Hour, time.Hour},
		{"absurd", math.MaxInt64, time.Hour},
		{"no time named", 0, time.Second},
		{"negative", -time.Minute, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 50, 30_000, 8000)
				p := newPool(t, "", k)
				acquire(t, p, keypool.Demand{Class: "seen before"})
				p.MarkKeyExhausted(k.ID(), tc.retryAfter)
				for _, class := range []string{keypool.ClassAny, "seen before", "new", keypool.ClassCountTokens, keypool.ClassModels} {
					assert.Equal(t, tc.want, refused(t, p, keypool.Demand{Class: class}).RetryAfter, "class %q", class)
					assert.Equal(t, tc.want, cooling(t, p, class, k.ID()), "class %q", class)
				}
				assert.Equal(t, tc.want, p.GetEarliestResetTime())
				time.Sleep(tc.want - 1)
				_ = refused(t, p, keypool.Demand{Class: opus})
				time.Sleep(time.Nanosecond)
				acquire(t, p, keypool.Demand{Class: opus})
				getKey(t, p)
			})
		})
	}
}

func TestGuessedCoolDownsDouble(t *testing.T) {
	for _, mark := range []struct {
		name string
		call func(p *keypool.KeyPool, id string)
	}{
		{"key", func(p *keypool.KeyPool, id string) { p.MarkKeyExhausted(id, 0) }},
		{"class with limits", func(p *keypool.KeyPool, id string) { p.MarkClassExhausted(id, opus, -1) }},
	} {
		t.Run(mark.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 50, 0, 0)
				p := newPool(t, "", k)
				lease := acquire(t, p, keypool.Demand{Class: opus})
				guess := func() time.Duration {
					mark.call(p, k.ID())
					got := cooling(t, p, opus, k.ID())
					time.Sleep(got / 2)
					mark.call(p, k.ID()) // answers a request sent before: neither doubles nor lengthens
					require.Equal(t, got-got/2, cooling(t, p, opus, k.ID()))
					lease.Succeeded() // and so does a success
					require.Equal(t, got-got/2, cooling(t, p, opus, k.ID()))
					time.Sleep(got - got/2)
					return got
				}
				for i, want := range []int{1, 2, 4, 8, 16, 32, 60, 60, 60} {
					require.Equal(t, time.Duration(want)*time.Second, guess(), "guess %d", i+1)
				}
				lease.Succeeded()
				assert.Equal(t, time.Second, guess(), "after a success")
				lease.Settle(keypool.Usage{})
				lease.Succeeded()
				assert.Equal(t, 2*time.Second, guess(), "a settled lease proves nothing more")
			})
		})
	}
}

// Concurrent requests bring their refusals in any order.
func TestNoRefusalCutsACoolDownShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		p.MarkKeyExhausted(k.ID(), time.Minute)
		p.MarkKeyExhausted(k.ID(), time.Second)
		assert.Equal(t, time.Minute, p.GetEarliestResetTime())
		p.MarkKeyExhausted(k.ID(), 2*time.Minute)
		assert.Equal(t, 2*time.Minute, p.GetEarliestResetTime(), "a longer one counts")

		p.MarkClassExhausted(k.ID(), opus, 10*time.Minute)
		p.MarkClassExhausted(k.ID(), opus, 3*time.Minute)
		assert.Equal(t, 10*time.Minute, cooling(t, p, opus, k.ID()))
	})
}

func TestMarkClassExhausted(t *testing.T) {
	type refusal struct {
		after, retryAfter time.Duration
		want              time.Duration // cooling from then on
	}
	known, unknown := keyOf(0, 50, plenty, 0), keyOf(0, 0, 0, 0)
	for _, tc := range []struct {
		name     string
		key      keypool.KeyConfig
		refusals []refusal
	}{
		{"unknown limits cool as long as told", unknown, []refusal{{0, 42 * time.Second, 42 * time.Second}}},
		{"at most an hour", unknown, []refusal{{0, 5 * time.Hour, time.Hour}}},
		{"known limits encode the wait", known, []refusal{{0, 42 * time.Second, time.Second}}},
		{"and less where less is told", known, []refusal{{0, 300 * time.Millisecond, 300 * time.Millisecond}}},
		{"the second within 10 s counts in full", known, []refusal{{0, 42 * time.Second, time.Second}, {2 * time.Second, 42 * time.Second, 42 * time.Second}}},
		{"just within", known, []refusal{{0, 42 * time.Second, time.Second}, {10*time.Second - 1, 42 * time.Second, 42 * time.Second}}},
		{"just not", known, []refusal{{0, 42 * time.Second, time.Second}, {10 * time.Second, 42 * time.Second, time.Second}}},
		{"one that was sent before the first is no second", known, []refusal{{0, 42 * time.Second, time.Second}, {500 * time.Millisecond, 42 * time.Second, time.Second}}},
		{"nor does it count from then on", known, []refusal{{0, 42 * time.Second, time.Second}, {900 * time.Millisecond, 42 * time.Second, time.Second}, {9500 * time.Millisecond, 42 * time.Second, time.Second}}},
		{"nor does it cut the full one short", known, []refusal{{0, 42 * time.Second, time.Second}, {2 * time.Second, 42 * time.Second, 42 * time.Second}, {time.Second, 42 * time.Second, 41 * time.Second}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, "", tc.key)
				for i, r := range tc.refusals {
					time.Sleep(r.after)
					p.MarkClassExhausted(tc.key.ID(), opus, r.retryAfter)
					require.Equal(t, r.want, cooling(t, p, opus, tc.key.ID()), "refusal %d", i+1)
					require.Equal(t, r.want, refused(t, p, keypool.Demand{Class: opus}).RetryAfter)
				}
				assert.Zero(t, p.GetEarliestResetTime(), "other classes serve")
				acquire(t, p, keypool.Demand{Class: "sonnet-5"})
			})
		})
	}
}

func TestLimitsLearnedWithTheRefusalCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(60, 59, 6000, 200)))
		p.MarkClassExhausted(k.ID(), opus, 42*time.Second)
		assert.Equal(t, time.Second, refused(t, p, keypool.Demand{Class: opus}).RetryAfter)
		time.Sleep(time.Second)
		assert.Equal(t, 100, acquire(t, p, keypool.Demand{Class: opus, Bytes: 400}).Held().Input, "a small, cached turn may go with what refilled")
	})
}

// refusal has a request that wants so many tokens refused, with this wait and what
// the headers tell, and returns for how long its class cools.
func refusal(t *testing.T, p *keypool.KeyPool, id string, tokens int, retryAfter time.Duration, rates ...int) time.Duration {
	t.Helper()
	lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4 * tokens})
	lease.Answered(429, rateHeaders(rates...))
	lease.Limited(retryAfter)
	lease.Settle(keypool.Usage{})
	return cooling(t, p, opus, id)
}

func TestARefusalWithHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		told := []int{60, 50, 60_000, 4000, 60_000, 60_000}
		assert.Equal(t, time.Second, refusal(t, p, k.ID(), 30_000, 26*time.Second, told...), "the level says it, too")
		time.Sleep(time.Second)
		assert.Equal(t, ratelimit.Limits{RPM: 51, ITPM: 5000, OTPM: 60_000}, of(t, p, opus, k.ID()).Remaining, "and nothing is given back on top")
		assert.Equal(t, 25600*time.Millisecond, refused(t, p, keypool.Demand{Class: opus, Bytes: 120_000}).RetryAfter)
		assert.Equal(t, 26*time.Second, refusal(t, p, k.ID(), 1000, 26*time.Second, told...), "the second within 10 s: it does not")
		assert.Equal(t, 26*time.Second, refused(t, p, of1000Class()).RetryAfter)
	})
}

// Without a level the wait tells it: after it the request would have been served.
func TestARefusalWithoutHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, plenty, 60_000, plenty)
		p := newPool(t, "", k)
		assert.Equal(t, time.Second, refusal(t, p, k.ID(), 50_000, 40*time.Second))
		assert.Equal(t, 10_000, of(t, p, opus, k.ID()).Remaining.ITPM, "50,000 in 40 s")
		time.Sleep(time.Second)
		acquire(t, p, keypool.Demand{Class: opus, Bytes: 4 * 5000}).Settle(keypool.Usage{})
		assert.Equal(t, 39600*time.Millisecond, refused(t, p, keypool.Demand{Class: opus, Bytes: 4 * 50_000}).RetryAfter, "the margin comes on top")

		// A level that is lower already is not raised.
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(plenty, plenty, 60_000, 6000)))
		time.Sleep(20 * time.Second)
		refusal(t, p, k.ID(), 5000, time.Second)
		assert.Equal(t, 4000, of(t, p, opus, k.ID()).Remaining.ITPM)
	})
}

func TestARefusalThatSaysNothing(t *testing.T) {
	for name, k := range map[string]keypool.KeyConfig{"known limits": keyOf(0, plenty, plenty, plenty), "unknown ones": keyOf(0, 0, 0, 0)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, "", k)
				for _, want := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
					got := refusal(t, p, k.ID(), 1000, 0)
					require.Equal(t, time.Duration(want)*time.Second, got)
					time.Sleep(got)
				}
				lease := acquire(t, p, of1000Class())
				lease.Answered(200, nil)
				lease.Succeeded()
				assert.Equal(t, time.Second, refusal(t, p, k.ID(), 1000, 0), "a success makes it short again")
			})
		})
	}
}

// An answer to a request sent after the refused one shows that the provider admits
// again; one sent before shows nothing.
func TestOnlyALaterAnswerEndsACoolDown(t *testing.T) {
	const told = 30 * time.Second
	for _, tc := range []struct {
		name string
		play func(leases []keypool.Lease)
		want time.Duration
	}{
		{"a later one", func(l []keypool.Lease) { l[1].Limited(told); l[2].Answered(200, nil) }, 0},
		{"an earlier one", func(l []keypool.Lease) { l[1].Limited(told); l[0].Answered(200, nil) }, told},
		{"its own", func(l []keypool.Lease) { l[1].Limited(told); l[1].Answered(200, nil) }, told},
		{"a later refusal", func(l []keypool.Lease) { l[1].Limited(told); l[2].Answered(429, nil) }, told},
		{"a later error", func(l []keypool.Lease) { l[1].Limited(told); l[2].Answered(529, nil) }, told},
		{"the end of a later one", func(l []keypool.Lease) { l[1].Limited(told); l[2].Settle(keypool.Usage{}) }, told},
		{"one between two refusals", func(l []keypool.Lease) { l[2].Limited(told); l[0].Limited(told); l[1].Answered(200, nil) }, told},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, plenty, 0, plenty)
				p := newPool(t, "", k)
				acquire(t, p, of1000Class()).Answered(200, nil)
				leases := []keypool.Lease{acquire(t, p, of1000Class()), acquire(t, p, of1000Class()), acquire(t, p, of1000Class())}
				tc.play(leases)
				assert.Equal(t, tc.want, cooling(t, p, opus, k.ID()))
			})
		})
	}
}

// Many wait for the end of a cool-down whose length was a guess: one of them finds
// out whether it was long enough.
func testOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		acquire(t, p, of1000Class()).Answered(200, nil)
		require.Equal(t, 20, room(t, p, opus))
		for range 3 { // each probe fails
			got := refusal(t, p, k.ID(), 1000, 20*time.Second)
			require.Equal(t, 20*time.Second, got)
			time.Sleep(got - 1)
			require.Equal(t, 0, room(t, p, opus))
			time.Sleep(time.Nanosecond)
			require.Equal(t, 1, room(t, p, opus))
		}
		probe := acquire(t, p, of1000Class())
		assert.Equal(t, 100*time.Millisecond, refused(t, p, of1000Class()).RetryAfter)
		probe.Answered(200, nil)
		probe.Succeeded()
		assert.Equal(t, 20, room(t, p, opus))
	})
}

func TestACoolDownIsOfOneClassAndAllKeysOfAnOrganization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, plenty, plenty, plenty)
		keys[0].Organization, keys[1].Organization = "acme", "acme"
		p := newPool(t, "", keys...)
		lease := acquire(t, p, keypool.Demand{Class: opus, Exclude: ids[1:]})
		assert.ElementsMatch(t, ids[:2], lease.OwnerKeys())
		lease.Limited(30 * time.Second)
		assert.Equal(t, time.Second, cooling(t, p, opus, ids[1]))
		assert.Zero(t, cooling(t, p, opus, ids[2]))
		assert.Zero(t, cooling(t, p, keypool.ClassAny, ids[0]))
		time.Sleep(time.Second)
		lease.Limited(2 * time.Hour)
		assert.Equal(t, time.Hour, cooling(t, p, opus, ids[1]), "at most an hour, and then somebody tries")
		require.NoError(t, p.Release(ids[1]))
		assert.Zero(t, cooling(t, p, opus, ids[0]), "the operator knows better")
		assert.ErrorIs(t, p.Release("nobody"), keypool.ErrKeyNotFound)
	})
}

// A bucket is full within a minute: a longer wait that comes without levels is another
// limit's, and leaves no debt behind.
func TestALongWaitWithoutHeaders(t *testing.T) {
	for name, back := range map[string]func(p *keypool.KeyPool, id string){
		"somebody tries after an hour": func(*keypool.KeyPool, string) { time.Sleep(time.Hour) },
		"the operator knows better":    func(p *keypool.KeyPool, id string) { _ = p.Release(id) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 0, 60_000, 0)
				p := newPool(t, "", k)
				require.Equal(t, time.Hour, refusal(t, p, k.ID(), 1000, 31*24*time.Hour))
				require.Equal(t, 0, room(t, p, opus))
				back(p, k.ID())
				assert.Positive(t, room(t, p, opus))
			})
		})
	}
}
