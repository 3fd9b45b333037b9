package keypool_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

func TestAConversationKeepsItsKey(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, _ := keysOf(5, 1000, 100_000, 10_000)
				p := newPool(t, strategy, keys...)
				home := map[uint64]string{}
				for range 20 {
					for conversation := uint64(1); conversation <= 7; conversation++ {
						lease := acquire(t, p, keypool.Demand{Class: opus, Input: 100, Conversation: conversation})
						if home[conversation] == "" {
							home[conversation] = lease.KeyID()
						}
						require.Equal(t, home[conversation], lease.KeyID(), "conversation %d", conversation)
						lease.Settle(ratelimit.Tokens{Input: 100})
					}
					time.Sleep(time.Second)
				}
			})
		})
	}
}

func TestRequestsOfNoConversationHaveNoHome(t *testing.T) {
	keys, ids := keysOf(2, 0, 0, 0)
	p := newPool(t, keypool.StrategyRoundRobin, keys...)
	for i := range 6 {
		assert.Equal(t, ids[i%2], acquire(t, p, keypool.Demand{Class: opus}).KeyID())
	}
}

// A home that cannot serve is left, and the conversation stays where it went.
func TestAHomeIsLeftWhenItCannotServe(t *testing.T) {
	for _, tc := range []struct {
		name  string
		leave func(t *testing.T, p *keypool.KeyPool, id string)
		d     func(d keypool.Demand, id string) keypool.Demand
	}{
		{"it cools", func(_ *testing.T, p *keypool.KeyPool, id string) { p.MarkKeyExhausted(id, time.Second) }, nil},
		{"the class cools", func(_ *testing.T, p *keypool.KeyPool, id string) { p.MarkClassExhausted(id, opus, time.Second) }, nil},
		{"it is dead", func(_ *testing.T, p *keypool.KeyPool, id string) { p.MarkKeyDead(id, keypool.ReasonSpent) }, nil},
		{"its bucket is empty", func(t *testing.T, p *keypool.KeyPool, id string) {
			require.NoError(t, p.UpdateClassFromHeaders(id, opus, rateHeaders(1000, 999, 100_000, 0)))
		}, nil},
		{"it is excluded", nil, func(d keypool.Demand, id string) keypool.Demand {
			d.Exclude = []string{id}
			return d
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, _ := keysOf(3, 1000, 100_000, 10_000)
				p := newPool(t, "", keys...)
				d := keypool.Demand{Class: opus, Input: 100, Conversation: 42}
				home := acquire(t, p, d).KeyID()
				second := d
				if tc.leave != nil {
					tc.leave(t, p, home)
				}
				if tc.d != nil {
					second = tc.d(d, home)
				}
				moved := acquire(t, p, second).KeyID()
				require.NotEqual(t, home, moved)
				time.Sleep(2 * time.Minute) // the old home serves again, and has more room
				assert.Equal(t, moved, acquire(t, p, d).KeyID())
			})
		})
	}
}

func TestAHomeIsKeptFiveMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 0, 0, 0)
		p := newPool(t, keypool.StrategyRoundRobin, keys...)
		d := keypool.Demand{Class: opus, Conversation: 42}
		require.Equal(t, ids[0], acquire(t, p, d).KeyID()) // the next turn is the other key's
		for range 3 {
			time.Sleep(5 * time.Minute)
			require.Equal(t, ids[0], acquire(t, p, d).KeyID(), "each turn keeps it for five minutes more")
		}
		time.Sleep(5*time.Minute + 1)
		assert.Equal(t, ids[1], acquire(t, p, d).KeyID())
	})
}

func TestTenThousandHomesAreKept(t *testing.T) {
	for _, tc := range []struct {
		name   string
		others uint64 // divisible by 3, or one more: so the turns tell home from no home
		want   int
	}{
		{"the last of 10,000", 9_999, 0},
		{"one too many", 10_000, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys, ids := keysOf(3, 0, 0, 0)
			p := newPool(t, keypool.StrategyRoundRobin, keys...)
			require.Equal(t, ids[0], acquire(t, p, keypool.Demand{Class: opus, Conversation: 1}).KeyID())
			for i := range tc.others {
				acquire(t, p, keypool.Demand{Class: opus, Conversation: 2 + i}).Settle(ratelimit.Tokens{})
			}
			assert.Equal(t, ids[tc.want], acquire(t, p, keypool.Demand{Class: opus, Conversation: 1}).KeyID())
		})
	}
}

// The next prompt repeats the last one, which the home's prompt cache holds.
func TestAtHomeOnlyWhatIsNewIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := keysOf(2, 1000, 100_000, 10_000)
		p := newPool(t, "", keys...)
		turn := func(input int, exclude ...string) keypool.Lease {
			return acquire(t, p, keypool.Demand{Class: opus, Input: input, Conversation: 42, Exclude: exclude})
		}
		first := turn(20_000)
		assert.Equal(t, 20_000, first.Held().Input)
		assert.Equal(t, 1500, turn(21_500).Held().Input)
		assert.Equal(t, 500, turn(22_000).Held().Input, "against the last prompt, not the first")
		assert.Equal(t, 0, turn(5000).Held().Input, "a shorter one holds nothing")
		assert.Equal(t, 1000, turn(6000).Held().Input)
		moved := turn(7000, first.KeyID())
		assert.Equal(t, 7000, moved.Held().Input, "another key's cache has nothing of it")
		assert.Equal(t, 250, turn(7250).Held().Input, "the new home has")
		assert.Equal(t, 9000, acquire(t, p, keypool.Demand{Class: opus, Input: 9000, Conversation: 43}).Held().Input, "nor another conversation's")
		time.Sleep(5*time.Minute + 1)
		assert.Equal(t, 8000, turn(8000).Held().Input, "caches expire with the home")
	})
}
