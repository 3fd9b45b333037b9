package keypool_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
	"cc-relay/internal/secret"
)

func TestADeadKeyIsNotOffered(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			keys, ids := keysOf(3, plenty, plenty, plenty)
			p := newPool(t, strategy, keys...)
			p.MarkKeyDead(ids[1], keypool.ReasonUnauthorized)
			for i := range 60 {
				require.NotEqual(t, ids[1], getKey(t, p))
				require.NotEqual(t, ids[1], acquire(t, p, keypool.Demand{Class: fmt.Sprint(i % 3)}).KeyID())
			}
		})
	}
}

// untilProbe is how long the pool of one dead key refuses.
func untilProbe(t *testing.T, p *keypool.KeyPool, class string) time.Duration {
	t.Helper()
	return refused(t, p, keypool.Demand{Class: class}).RetryAfter
}

func TestExactlyOneRequestProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
		require.Equal(t, 5*time.Minute, untilProbe(t, p, opus))
		for range 3 { // a probe whose answer says nothing is tried again after the same time
			time.Sleep(5*time.Minute - 1)
			_ = refused(t, p, keypool.Demand{Class: opus})
			time.Sleep(time.Nanosecond)
			var granted atomic.Int64
			var wg sync.WaitGroup
			for i := range 90 {
				wg.Go(func() {
					var err error
					if i%3 == 0 {
						_, _, err = p.GetKey(context.Background())
					} else {
						_, err = p.Acquire(context.Background(), keypool.Demand{Class: fmt.Sprint(i % 5)})
					}
					if err == nil {
						granted.Add(1)
					}
				})
			}
			wg.Wait()
			require.Equal(t, int64(1), granted.Load())
			require.Equal(t, 5*time.Minute, p.GetEarliestResetTime())
		}
	})
}

func TestFailedProbesDoubleThePause(t *testing.T) {
	for _, tc := range []struct {
		name    string
		reasons []keypool.Reason // the first, then of each probe
		minutes []int
	}{
		{"refused credential", []keypool.Reason{keypool.ReasonUnauthorized, keypool.ReasonUnauthorized, keypool.ReasonUnauthorized, keypool.ReasonUnauthorized, keypool.ReasonUnauthorized, keypool.ReasonUnauthorized},
			[]int{5, 10, 20, 40, 60, 60}},
		{"spent is hourly", []keypool.Reason{keypool.ReasonSpent, keypool.ReasonSpent, keypool.ReasonSpent}, []int{60, 60, 60}},
		{"accepted again, but spent", []keypool.Reason{keypool.ReasonUnauthorized, keypool.ReasonSpent, keypool.ReasonSpent}, []int{5, 60, 60}},
		{"paid, but refused", []keypool.Reason{keypool.ReasonSpent, keypool.ReasonUnauthorized, keypool.ReasonUnauthorized}, []int{60, 5, 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 0, 0, 0)
				p := newPool(t, "", k)
				for i, why := range tc.reasons {
					p.MarkKeyDead(k.ID(), why)
					want := time.Duration(tc.minutes[i]) * time.Minute
					require.Equal(t, want, untilProbe(t, p, opus), "outage %d", i+1)
					got := of(t, p, opus, k.ID())
					require.Equal(t, keypool.StateDead, got.State)
					require.Equal(t, why, got.Reason)
					require.Equal(t, want, time.Until(got.Until))
					time.Sleep(want)
					acquire(t, p, keypool.Demand{Class: opus}).Settle(keypool.Usage{})
				}
			})
		})
	}
}

func TestLateRefusalsDoNotLengthen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
		for range 20 {
			time.Sleep(time.Second)
			p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
			p.MarkKeyDead(k.ID(), keypool.ReasonSpent)
		}
		assert.Equal(t, 5*time.Minute-20*time.Second, untilProbe(t, p, opus))
		assert.Equal(t, keypool.ReasonUnauthorized, p.Keys()[0].Reason)
	})
}

func TestOnlyAProbeForgives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, plenty, plenty, plenty)
		p := newPool(t, "", k)
		before := acquire(t, p, keypool.Demand{Class: opus})
		time.Sleep(time.Second)
		sameMoment := acquire(t, p, keypool.Demand{Class: opus})
		p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
		before.Succeeded()
		sameMoment.Succeeded()
		time.Sleep(time.Minute)
		before.Succeeded()
		require.Equal(t, 4*time.Minute, untilProbe(t, p, opus), "answers to requests sent before prove nothing")

		time.Sleep(4 * time.Minute)
		probe := acquire(t, p, keypool.Demand{Class: "sonnet-5"})
		_ = refused(t, p, keypool.Demand{Class: opus})
		before.Succeeded()
		_ = refused(t, p, keypool.Demand{Class: opus})
		probe.Succeeded()
		acquire(t, p, keypool.Demand{Class: opus})
		assert.Equal(t, keypool.StateAvailable, p.Keys()[0].State)
		assert.Empty(t, p.Keys()[0].Reason)

		p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
		assert.Equal(t, 5*time.Minute, untilProbe(t, p, opus), "the next outage starts short again")
		time.Sleep(5 * time.Minute)
		settled := acquire(t, p, keypool.Demand{Class: opus})
		settled.Settle(keypool.Usage{})
		settled.Succeeded()
		_ = refused(t, p, keypool.Demand{Class: opus})
	})
}

// What costs nothing is served also where nothing is left to spend: it neither tries a
// spent key nor shows that it is one no more.
func TestFreeCallsDoNotTryASpentKey(t *testing.T) {
	free := []string{keypool.ClassCountTokens, keypool.ClassModels}
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, plenty, plenty, plenty)
		p := newPool(t, "", k)
		p.MarkKeyDead(k.ID(), keypool.ReasonSpent)
		time.Sleep(time.Hour)
		for _, class := range free {
			assert.Equal(t, keypool.ReasonSpent, refused(t, p, keypool.Demand{Class: class}).Reason)
			assert.Equal(t, keypool.OutcomeRefused, p.Preview(time.Now(), keypool.Demand{Class: class}).Outcome)
		}
		acquire(t, p, keypool.Demand{Class: opus}).Succeeded() // the try was still to be had
		for _, class := range free {
			acquire(t, p, keypool.Demand{Class: class})
		}
	})
	for _, class := range free {
		t.Run("a refused key that turns out to be spent, "+class, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, plenty, plenty, plenty)
				p := newPool(t, "", k)
				p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
				time.Sleep(5 * time.Minute)
				probe := acquire(t, p, keypool.Demand{Class: class}) // a refused credential it may try
				p.MarkKeyDead(k.ID(), keypool.ReasonSpent)
				probe.Succeeded()
				assert.Equal(t, time.Hour, untilProbe(t, p, opus))
			})
		})
	}
}

func TestMarkKeyForbidden(t *testing.T) {
	type step func(p *keypool.KeyPool, id string)
	meets := func(client string) step {
		return func(p *keypool.KeyPool, id string) { p.MarkKeyForbidden(id, opus, client, false) }
	}
	account := func(p *keypool.KeyPool, id string) { p.MarkKeyForbidden(id, opus, "a", true) }
	elsewhere := func(p *keypool.KeyPool, id string) { p.MarkKeyForbidden(id, "sonnet-5", "b", false) }
	succeeds := func(class string) step {
		return func(p *keypool.KeyPool, _ string) {
			lease, err := p.Acquire(context.Background(), keypool.Demand{Class: class})
			if err == nil {
				lease.Succeeded()
				lease.Settle(keypool.Usage{})
			}
		}
	}
	for _, tc := range []struct {
		name  string
		steps []step
		dead  bool
	}{
		{"one", []step{meets("a")}, false},
		{"the same client many times", []step{meets("a"), meets("a"), meets("a")}, false},
		{"two clients", []step{meets("a"), meets("b")}, true},
		{"two clients, one of them twice", []step{meets("a"), meets("a"), meets("b")}, true},
		{"a client without a name is one client", []step{meets(""), meets("")}, false},
		{"and differs from one with a name", []step{meets(""), meets("a")}, true},
		{"a success between", []step{meets("a"), succeeds(opus), meets("b")}, false},
		{"and then two again", []step{meets("a"), succeeds(opus), meets("b"), meets("a")}, true},
		{"a success of another class between", []step{meets("a"), succeeds("sonnet-5"), meets("b")}, true},
		{"the other client's was another class", []step{meets("a"), elsewhere}, false},
		{"the account is blamed", []step{account}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, plenty, plenty, plenty)
				p := newPool(t, "", k)
				for _, do := range tc.steps {
					do(p, k.ID())
				}
				acquire(t, p, keypool.Demand{Class: "sonnet-5"})
				acquire(t, p, keypool.Demand{Class: keypool.ClassAny})
				if !tc.dead {
					acquire(t, p, keypool.Demand{Class: opus})
					return
				}
				assert.Equal(t, 5*time.Minute, untilProbe(t, p, opus), "only this class")
				assert.Equal(t, keypool.ReasonForbidden, of(t, p, opus, k.ID()).Reason)
			})
		})
	}
}

func TestAForbiddenClassIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, plenty, plenty, plenty)
		p := newPool(t, "", k)
		before := acquire(t, p, keypool.Demand{Class: opus})
		p.MarkKeyForbidden(k.ID(), opus, "a", true)
		p.MarkKeyForbidden(k.ID(), opus, "b", true) // late
		for _, pause := range []time.Duration{5, 10, 20, 40, 60, 60} {
			require.Equal(t, pause*time.Minute, untilProbe(t, p, opus))
			time.Sleep(pause * time.Minute)
			acquire(t, p, keypool.Demand{Class: opus})
			_ = refused(t, p, keypool.Demand{Class: opus})
			p.MarkKeyForbidden(k.ID(), opus, "a", false) // a probe's 403 needs no second client
		}
		before.Succeeded()
		_ = refused(t, p, keypool.Demand{Class: opus})
		time.Sleep(time.Hour)
		acquire(t, p, keypool.Demand{Class: opus}).Succeeded()
		acquire(t, p, keypool.Demand{Class: opus})
		p.MarkKeyForbidden(k.ID(), opus, "b", false)
		acquire(t, p, keypool.Demand{Class: opus})
	})
}

func TestInFlightWorkOfADeadKeyIsSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 50, 10_000, 1000)
		p := newPool(t, "", k)
		lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 2_000, MaxTokens: 50})
		p.MarkKeyDead(k.ID(), keypool.ReasonUnauthorized)
		lease.Settle(keypool.Usage{Input: 600, Output: 60})
		got := of(t, p, opus, k.ID())
		assert.Zero(t, got.InFlight)
		assert.Equal(t, ratelimit.Limits{RPM: 49, ITPM: 9400, OTPM: 940}, got.Remaining)
	})
}

// Whoever is told of dead keys hears of each outage once.
func TestOnDeadIsToldOnceAnOutage(t *testing.T) {
	var told []string
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{
		Keys:   []keypool.KeyConfig{{Key: secret.New("sk-one")}, {Key: secret.New("sk-two")}},
		OnDead: func(_ string, why keypool.Reason) { told = append(told, string(why)) },
	})
	require.NoError(t, err)
	ids := []string{p.Keys()[0].ID, p.Keys()[1].ID}
	for range 3 {
		p.MarkKeyDead(ids[0], keypool.ReasonSpent)
		p.MarkKeyForbidden(ids[1], "opus-5", "ann", true)
	}
	p.MarkKeyDead("unknown", keypool.ReasonSpent)
	assert.Equal(t, []string{"spent", "forbidden"}, told)
}

// An answer that shows that the credential was read ends that outage and no other.
func TestAccepted(t *testing.T) {
	for why, back := range map[keypool.Reason]bool{keypool.ReasonUnauthorized: true, keypool.ReasonSpent: false} {
		t.Run(string(why), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, plenty, plenty, plenty)
				p := newPool(t, "", k)
				late := acquire(t, p, keypool.Demand{Class: opus})
				p.MarkKeyDead(k.ID(), why)
				late.Accepted()
				require.Equal(t, keypool.StateDead, of(t, p, opus, k.ID()).State, "it was sent before")
				time.Sleep(time.Hour)
				probe := acquire(t, p, keypool.Demand{Class: opus})
				probe.Accepted()
				assert.Equal(t, back, of(t, p, opus, k.ID()).State == keypool.StateAvailable)
			})
		})
	}
	keypool.Lease{}.Accepted() // holds nothing
}
