package keypool_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
)

// whys are the reasons that an account gives, by key, in configured order.
func whys(a *keypool.Account) (all []keypool.Why) {
	for _, k := range a.Keys {
		all = append(all, k.Why)
	}
	return all
}

func TestAccountsSayWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keys []keypool.KeyConfig
		var ids []string
		for i, k := range []keypool.KeyConfig{
			keyOf(0, 600, 60_000, 6000), // excluded
			keyOf(1, 600, 60_000, 6000), // off
			keyOf(2, 600, 60_000, 6000), // dead
			keyOf(3, 600, 60_000, 6000), // cooling
			keyOf(4, 600, 60_000, 6000), // no requests
			keyOf(5, 600, 60_000, 6000), // no input
			keyOf(6, 600, 60_000, 6000), // no output
			keyOf(7, 600, 60_000, 6000), // low
			keyOf(8, 600, 60_000, 6000), // less room
			keyOf(9, 600, 60_000, 6000), // chosen
			keyOf(10, 600, 4000, 6000),  // too small
		} {
			if i == 7 {
				k.Priority = ptr(keypool.PriorityLow)
			}
			keys, ids = append(keys, k), append(ids, k.ID())
		}
		p := newPool(t, "", keys...)
		require.NoError(t, p.Disable(ids[1]))
		p.MarkKeyDead(ids[2], keypool.ReasonSpent)
		p.MarkKeyExhausted(ids[3], time.Minute)
		for i, remaining := range map[int][]int{4: {0, 60_000, 6000}, 5: {600, 1000, 6000}, 6: {600, 60_000, 0}, 8: {600, 30_000, 6000}} {
			require.NoError(t, p.UpdateClassFromHeaders(ids[i], opus, rateHeaders(600, remaining[0], 60_000, remaining[1], 6000, remaining[2])))
		}
		held := acquire(t, p, keypool.Demand{Class: opus, Bytes: 4000, MaxTokens: 300, Exclude: append(append([]string{}, ids[:9]...), ids[10])})
		require.Equal(t, ids[9], held.KeyID())

		var a keypool.Account
		d := keypool.Demand{Class: opus, Bytes: 20_000, MaxTokens: 300, Exclude: ids[:1], Account: &a, Arrived: time.Now().Add(-time.Second)}
		preview := p.Preview(time.Now(), d)
		assert.Zero(t, a, "Preview fills no account but its own")
		lease := acquire(t, p, d)
		assert.Equal(t, preview, a)
		assert.Equal(t, []keypool.Why{keypool.WhyExcluded, keypool.WhyOff, keypool.WhyDead, keypool.WhyCooling, keypool.WhyNoRequests, keypool.WhyNoInput,
			keypool.WhyNoOutput, keypool.WhyLowerPriority, keypool.WhyLessRoom, keypool.WhyChosen, keypool.WhyTooLarge}, whys(&a))
		assert.Equal(t, lease.KeyID(), a.Key)
		assert.Equal(t, keypool.Estimate{Input: 5000, Output: 300}, a.Estimate)
		assert.Equal(t, int64(1000), a.WaitedMS)
		assert.Equal(t, 11, a.Considered)
		assert.Equal(t, keypool.KeyAccount{ID: ids[9], Why: keypool.WhyChosen, State: keypool.StateAvailable, Priority: 1,
			Requests: keypool.Room{Limit: 600, Level: 599}, Input: keypool.Room{Limit: 60_000, Level: 59_000}, Output: keypool.Room{Limit: 6000, Level: 6000},
			InFlight: 1, ReservedInput: 1000, ReservedOutput: 300, Tokens: 5000, Headroom: 0.9}, a.Keys[9])
		assert.Equal(t, keypool.ReasonSpent, a.Keys[2].Reason)
		assert.Equal(t, int64(60_000), a.Keys[3].WaitMS)

		text, err := json.Marshal(a)
		require.NoError(t, err)
		var back map[string]any
		require.NoError(t, json.Unmarshal(text, &back))
		assert.Len(t, back["keys"], 11)
		assert.Equal(t, "served", back["outcome"])
		assert.NotContains(t, string(text), canary)
	})
}

func TestAccountsOfHomesWaitsAndRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 600, 60_000, 6000)
		p := patient(t, "", keys...)
		home := turn(t, p, talk(1, 80_000))
		a := p.Preview(time.Now(), talk(1, 84_000))
		assert.Equal(t, home, a.HomeKey)
		assert.True(t, a.Home)
		assert.InDelta(t, 20_000, a.Estimate.Cached, 200)
		assert.Contains(t, whys(&a), keypool.WhyNotHome)

		for _, id := range ids {
			require.NoError(t, p.UpdateClassFromHeaders(id, opus, rateHeaders(600, 600, 60_000, 0, 6000, 6000)))
		}
		var last keypool.Account
		d := keypool.Demand{Class: opus, Bytes: 4000, Account: &last}
		var turn keypool.Turn
		_, wait, err := p.AcquireAt(time.Now(), d, &turn)
		require.NoError(t, err)
		assert.Equal(t, keypool.OutcomeWait, last.Outcome)
		assert.Equal(t, wait.Milliseconds(), last.WaitMS)
		assert.NotEmpty(t, last.Key)
		a = p.Preview(time.Now(), keypool.Demand{Class: opus, Bytes: 4000, Exclude: []string{ids[0], ids[1]}})
		assert.Equal(t, keypool.OutcomeRefused, a.Outcome)
		a = p.Preview(time.Now(), keypool.Demand{Class: opus, Bytes: 16_000})
		assert.Equal(t, keypool.OutcomeRefused, a.Outcome)
		assert.Equal(t, int64(4600), a.WaitMS)
		assert.Equal(t, []keypool.Why{keypool.WhyNoInput, keypool.WhyNoInput}, whys(&a))
		time.Sleep(wait)
		a = p.Preview(time.Now(), keypool.Demand{Class: opus, Bytes: 4000, Exclude: []string{otherThan(ids, last.Key)}})
		assert.Equal(t, keypool.OutcomeWait, a.Outcome)
		assert.Equal(t, 1, a.Keys[index(ids, last.Key)].Ahead)
		p.Leave(&turn)

		fresh := newPool(t, "", keyOf(0, 0, 0, 0))
		for range 2 {
			acquire(t, fresh, keypool.Demand{Class: opus, Bytes: 4})
		}
		a = fresh.Preview(time.Now(), keypool.Demand{Class: opus, Bytes: 4})
		assert.Equal(t, []keypool.Why{keypool.WhyTrying}, whys(&a))
	})
}

// Waiting is cut short where nobody finds a free key for long. Who only asks is nobody.
func TestPreviewsAreNoCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, plenty, 60_000, plenty)
		p := patient(t, "", k)
		for range 50 {
			require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(plenty, plenty, 60_000, 0)))
			p.Preview(time.Now(), keypool.Demand{Class: opus, Bytes: 4000})
			time.Sleep(100 * time.Millisecond)
		}
		a := p.Preview(time.Now(), keypool.Demand{Class: opus, Bytes: 4000})
		assert.Equal(t, int64(3000), a.BudgetMS)
		acquire(t, p, keypool.Demand{Class: opus, Bytes: 8000})
	})
}

func TestAccountsOfAFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 60_000, 0, 0)
		p := patient(t, "", k)
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(60_000, 0)))
		turns := make([]keypool.Turn, 1001)
		var a keypool.Account
		for i := range turns {
			preview := p.Preview(time.Now(), keypool.Demand{Class: opus})
			_, wait, err := p.AcquireAt(time.Now(), keypool.Demand{Class: opus, Account: &a}, &turns[i])
			require.Equal(t, preview, a)
			require.Equal(t, i < 1000, err == nil && wait > 0, "request %d", i)
		}
		assert.Equal(t, keypool.OutcomeRefused, a.Outcome)
		assert.Empty(t, a.Key)
		assert.Equal(t, []keypool.Why{keypool.WhyQueue}, whys(&a))
		for i := range turns {
			p.Leave(&turns[i])
		}
	})
}

// The length of the queue is what the configuration says, also after a reload.
func TestMaxWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, three, five, none := keyOf(0, 60_000, 0, 0), 3, 5, 0
		cfg := keypool.PoolConfig{Keys: []keypool.KeyConfig{k}, MaxWaiting: &three}
		p, err := keypool.NewKeyPool("a", cfg)
		require.NoError(t, err)
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(60_000, 0)))
		turns := make([]keypool.Turn, 7)
		waits := func(i int) bool {
			_, wait, err := p.AcquireAt(time.Now(), keypool.Demand{Class: opus}, &turns[i])
			return err == nil && wait > 0
		}
		for i := range 4 {
			require.Equal(t, i < three, waits(i), "request %d", i)
		}
		cfg.MaxWaiting = &five
		require.NoError(t, p.Apply(cfg))
		for i := 4; i < 7; i++ {
			require.Equal(t, i < 6, waits(i), "request %d", i) // three wait already
		}
		for i := range turns {
			p.Leave(&turns[i])
		}
		cfg.MaxWaiting = &none
		require.ErrorContains(t, p.Apply(cfg), "max_waiting 0 is not above 0")
	})
}

func index(ids []string, id string) int {
	for i := range ids {
		if ids[i] == id {
			return i
		}
	}
	return -1
}

func otherThan(ids []string, id string) string { return ids[1-index(ids, id)] }

// A warm home is chosen without drawing any: its account is not about those that were
// drawn for the request before.
func TestAccountsOfAHomeAmongManyKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := keysOf(20, plenty, plenty, plenty)
		p := newPool(t, "", keys...)
		home := turn(t, p, talk(1, 80_000))
		for range 200 { // in about 40 of them the home is drawn
			acquire(t, p, of1000Class()).Settle(keypool.Usage{})
			a := p.Preview(time.Now(), talk(1, 84_000))
			require.True(t, a.Home)
			require.Equal(t, home, a.Key)
			require.Len(t, a.Keys, 12, "of all 20 keys, not of the at most 5 that were drawn")
			for _, k := range a.Keys {
				want := keypool.WhyNotHome
				if k.ID == home {
					want = keypool.WhyChosen
				}
				require.Equal(t, want, k.Why)
			}
		}
	})
}

// Of many keys the account tells of the chosen one and those that came nearest to it.
func TestAccountsOfManyKeys(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			keys, ids := keysOf(40, 600, 60_000, 6000)
			p := newPool(t, strategy, keys...)
			for i, id := range ids {
				if i%2 == 0 {
					require.NoError(t, p.Disable(id))
				}
			}
			for range 100 {
				var a keypool.Account
				lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 400, Account: &a})
				assert.Equal(t, 40, a.Considered)
				if strategy == keypool.StrategyLeastLoaded { // draws some, and looks at no others
					assert.LessOrEqual(t, len(a.Keys), 12)
				} else {
					assert.Len(t, a.Keys, 12)
				}
				chosen, before := 0, -1
				for _, k := range a.Keys {
					assert.NotEqual(t, keypool.WhyOff, k.Why)
					assert.Greater(t, index(ids, k.ID), before, "configured order")
					before = index(ids, k.ID)
					if k.Why == keypool.WhyChosen {
						chosen++
						assert.Equal(t, lease.KeyID(), k.ID)
					}
				}
				assert.Equal(t, 1, chosen)
				lease.Settle(keypool.Usage{})
			}
		})
	}
}

// Previews between other operations change nothing at all, and say what then happens.
func TestPreviewsChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			n := rapid.IntRange(1, 5).Draw(t, "keys")
			keys, ids := keysOf(n, rapid.SampledFrom([]int{0, 20}).Draw(t, "RPM"), rapid.SampledFrom([]int{0, 9000}).Draw(t, "ITPM"), 2000)
			cfg := keypool.PoolConfig{Strategy: rapid.SampledFrom(drawless).Draw(t, "strategy"), Keys: keys}
			var pools [2]*keypool.KeyPool
			var turns [2]keypool.Turn
			var leases [2][]keypool.Lease
			for i := range pools {
				p, err := keypool.NewKeyPool("test", cfg)
				require.NoError(t, err)
				pools[i] = p
			}
			var waits bool
			var waiting keypool.Demand
			demand := func(t *rapid.T) keypool.Demand {
				tokens := rapid.IntRange(1, 9000).Draw(t, "tokens")
				d := talk(uint64(rapid.IntRange(1, 4).Draw(t, "conversation")), 4*tokens)
				d.Class = rapid.SampledFrom([]string{opus, "sonnet-5", "new"}).Draw(t, "class")
				d.Client = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "client")
				d.OnlyHome = rapid.IntRange(0, 4).Draw(t, "only home") == 0
				if rapid.IntRange(0, 4).Draw(t, "exclude") == 0 {
					d.Exclude = ids[:1]
				}
				return d
			}
			both := func(t *rapid.T, do func(*keypool.KeyPool)) {
				do(pools[0])
				do(pools[1])
			}
			actions := map[string]func(*rapid.T){
				"preview": func(t *rapid.T) { pools[1].Preview(time.Now(), demand(t)) },
				"ask": func(t *rapid.T) {
					d := demand(t)
					if waits {
						d = waiting
					}
					a := pools[1].Preview(time.Now(), d)
					var got [2]string
					for i, p := range pools {
						lease, wait, err := p.AcquireAt(time.Now(), d, &turns[i])
						got[i] = fmt.Sprint(lease.KeyID(), wait, err)
						if err == nil && wait == 0 {
							leases[i] = append(leases[i], lease)
						}
						if !waits && i == 1 { // who waits has a place that a preview has not
							outcome := keypool.OutcomeServed
							if err != nil {
								outcome = keypool.OutcomeRefused
							} else if wait > 0 {
								outcome = keypool.OutcomeWait
							}
							assert.Equal(t, outcome, a.Outcome)
							if err == nil && wait == 0 {
								assert.Equal(t, lease.KeyID(), a.Key)
							}
						}
						if i == 1 {
							waits, waiting = err == nil && wait > 0, d
							if waiting.Arrived.IsZero() {
								waiting.Arrived = time.Now()
							}
						}
					}
					require.Equal(t, got[0], got[1])
				},
				"end": func(t *rapid.T) {
					if len(leases[0]) == 0 {
						t.Skip("none")
					}
					u := keypool.Usage{Input: rapid.IntRange(0, 9000).Draw(t, "input"), Output: rapid.IntRange(0, 500).Draw(t, "output")}
					for i := range leases {
						l := leases[i][0]
						leases[i] = leases[i][1:]
						l.Answered(http.StatusOK, rateHeaders(20, 10, 9000, u.Input))
						l.Succeeded()
						l.Settle(u)
					}
				},
				"off": func(t *rapid.T) {
					id, off := rapid.SampledFrom(ids).Draw(t, "key"), rapid.Bool().Draw(t, "off")
					both(t, func(p *keypool.KeyPool) {
						if off {
							require.NoError(t, p.Disable(id))
						} else {
							require.NoError(t, p.Enable(id))
						}
					})
				},
				"cool": func(t *rapid.T) {
					id := rapid.SampledFrom(ids).Draw(t, "key")
					both(t, func(p *keypool.KeyPool) { p.MarkKeyExhausted(id, time.Second) })
				},
				"dead": func(t *rapid.T) {
					id := rapid.SampledFrom(ids).Draw(t, "key")
					both(t, func(p *keypool.KeyPool) { p.MarkKeyDead(id, keypool.ReasonUnauthorized) })
				},
				"pause": func(t *rapid.T) { time.Sleep(pauses.Draw(t, "pause")) },
				"": func(t *rapid.T) {
					require.Equal(t, pools[0].GetStats(), pools[1].GetStats())
					require.Equal(t, pools[0].Snapshot(), pools[1].Snapshot())
					inner := [2]keypool.Inner{keypool.InnerOf(pools[0]), keypool.InnerOf(pools[1])}
					for i := range inner {
						inner[i].Reserved = math.Round(inner[i].Reserved) // classes are added up in any order
					}
					require.Equal(t, inner[0], inner[1])
				},
			}
			actions["ask2"], actions["preview2"] = actions["ask"], actions["preview"]
			t.Repeat(actions)
		})
	})
}
