package keypool_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// talk is a turn of a conversation of its own: a prompt of this many bytes, four a
// token, that asks for caching at its end and repeats all shorter ones.
func talk(conversation uint64, bytes int) keypool.Demand {
	d := keypool.Demand{Class: opus, Bytes: bytes, MaxTokens: 1000, Conversation: conversation}
	for at := bytes; at > 0; at -= 4000 {
		d.Prefix = append(d.Prefix, keypool.Mark{Hash: conversation<<32 + uint64(at), Bytes: at})
	}
	d.Prefix[0].Life = 5 * time.Minute
	return d
}

// finish has a lease's request answered as it was estimated.
func finish(lease keypool.Lease, d keypool.Demand) {
	lease.Answered(http.StatusOK, nil)
	lease.Succeeded()
	uncached := lease.Held().Input
	lease.Settle(keypool.Usage{Input: uncached, CacheRead: d.Bytes/4 - uncached, Output: 100})
}

// turn has a request served, and returns by which key.
func turn(tb testing.TB, p *keypool.KeyPool, d keypool.Demand, not ...string) string {
	tb.Helper()
	d.Exclude = not
	lease := acquire(tb, p, d)
	finish(lease, d)
	return lease.KeyID()
}

func TestAConversationKeepsItsKey(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, _ := keysOf(5, 1000, 1_000_000, 100_000)
				p := newPool(t, strategy, keys...)
				home := map[uint64]string{}
				for i := range 20 {
					for conversation := uint64(1); conversation <= 7; conversation++ {
						got := turn(t, p, talk(conversation, 20_000+4000*i))
						if home[conversation] == "" {
							home[conversation] = got
						}
						require.Equal(t, home[conversation], got, "conversation %d", conversation)
					}
					time.Sleep(time.Second)
				}
			})
		})
	}
}

// What only the organization that wrote it can read is a reason to stay where nothing is
// cached: not to wait for long, and in the middle of a turn a little.
func TestAConversationStaysThatLeftSomethingBehind(t *testing.T) {
	next := func(stays, open bool) keypool.Demand {
		return keypool.Demand{Class: opus, Bytes: 4000, Conversation: 42, Stays: stays, OpenTools: open}
	}
	for name, tc := range map[string]struct {
		demand keypool.Demand
		busy   time.Duration // until the key has room
		home   bool          // it is served there
		waits  time.Duration
	}{
		"nothing left behind":       {next(false, false), 0, false, 0},
		"a container":               {next(true, false), 0, true, 0},
		"tool calls":                {next(true, true), 0, true, 0},
		"a container, busy":         {next(true, false), time.Second, false, 0},
		"tool calls, busy":          {next(true, true), time.Second, true, time.Second},
		"tool calls, busy for long": {next(true, true), 3 * time.Second, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(2, plenty, plenty, plenty)
				p := patient(t, keypool.StrategyRoundRobin, keys...)
				first := next(false, false)
				first.Tools = tc.demand.Stays
				require.Equal(t, ids[0], turn(t, p, first))
				assert.Equal(t, first.Tools, len(p.Snapshot().Homes) > 0, "what has nothing to come back to is not remembered")
				if tc.busy > 0 {
					require.NoError(t, p.UpdateClassFromHeaders(ids[0], opus, rateHeaders(int(time.Minute/tc.busy), 0)))
				}
				began := time.Now()
				assert.Equal(t, tc.home, turn(t, p, tc.demand) == ids[0])
				assert.Equal(t, tc.waits, time.Since(began))
			})
		})
	}
}

func TestWhatHasNoHome(t *testing.T) {
	for name, d := range map[string]keypool.Demand{
		"no conversation": talk(0, 40_000),
		"nothing cached":  {Class: opus, Bytes: 40_000, Conversation: 42},
		"a short prompt":  talk(42, 4000), // below 1,024 tokens moving is cheap
	} {
		t.Run(name, func(t *testing.T) {
			keys, ids := keysOf(2, plenty, plenty, plenty)
			p := newPool(t, keypool.StrategyRoundRobin, keys...)
			for i := range 6 {
				assert.Equal(t, ids[i%2], turn(t, p, d))
			}
		})
	}
}

// A home that cannot serve is left where requests do not wait, and the conversation
// stays where it went.
func testHomeThatCannotServe(t *testing.T) {
	for _, tc := range []struct {
		name    string
		leave   func(t *testing.T, p *keypool.KeyPool, id string)
		exclude bool
	}{
		{"it cools", func(_ *testing.T, p *keypool.KeyPool, id string) { p.MarkKeyExhausted(id, time.Second) }, false},
		{"the class cools", func(_ *testing.T, p *keypool.KeyPool, id string) { p.MarkClassExhausted(id, opus, time.Second) }, false},
		{"it is dead", func(_ *testing.T, p *keypool.KeyPool, id string) { p.MarkKeyDead(id, keypool.ReasonSpent) }, false},
		{"it is forbidden", func(_ *testing.T, p *keypool.KeyPool, id string) { p.MarkKeyForbidden(id, opus, "", true) }, false},
		{"its bucket is empty", func(t *testing.T, p *keypool.KeyPool, id string) {
			require.NoError(t, p.UpdateClassFromHeaders(id, opus, rateHeaders(1000, 999, 100_000, 0)))
		}, false},
		{"it is excluded", func(*testing.T, *keypool.KeyPool, string) {}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, _ := keysOf(3, 1000, 100_000, 10_000)
				p := newPool(t, "", keys...)
				d := talk(42, 40_000)
				home := turn(t, p, d)
				tc.leave(t, p, home)
				var not []string
				if tc.exclude {
					not = append(not, home)
				}
				moved := turn(t, p, d, not...)
				require.NotEqual(t, home, moved)
				time.Sleep(2 * time.Minute) // the old home serves again, and has more room
				assert.Equal(t, moved, turn(t, p, d))
			})
		})
	}
}

// worthCase is one conversation whose home can serve its next turn, 4,000 tokens
// longer, only after a while.
type worthCase struct {
	name   string
	cached int           // tokens at home
	home   time.Duration // until home can serve
	waited time.Duration // so far
	other  time.Duration // until the other key can, where nothing is cached
	stay   bool
}

var worthCases = []worthCase{
	{"a moment is always worth it", 2000, 2 * time.Second, 0, 0, true},
	{"and little more for a short prompt", 2000, 2200 * time.Millisecond, 0, 0, true},
	{"than it saves", 2000, 2300 * time.Millisecond, 0, 0, false},
	{"5,000 tokens are worth half a second more", 5000, 2500 * time.Millisecond, 0, 0, true},
	{"and not more", 5000, 2600 * time.Millisecond, 0, 0, false},
	{"what was waited already counts", 5000, 1500 * time.Millisecond, time.Second, 0, true},
	{"against staying", 5000, 1600 * time.Millisecond, time.Second, 0, false},
	{"never longer than max_wait", 50_000, 3 * time.Second, 0, 0, true},
	{"however much it saves", 50_000, 3100 * time.Millisecond, 0, 0, false},
	{"less what was waited", 50_000, 2100 * time.Millisecond, time.Second, 0, false},
	{"the other is no sooner", 2000, 2900 * time.Millisecond, 0, 2900 * time.Millisecond, true},
	{"the other is sooner, but not by much", 2000, 2900 * time.Millisecond, 0, 800 * time.Millisecond, true},
	{"the other is sooner by more than it saves", 2000, 2900 * time.Millisecond, 0, 600 * time.Millisecond, false},
	{"home is too late and the other is not", 50_000, 3100 * time.Millisecond, 0, 2900 * time.Millisecond, false},
}

func TestAHomeIsLeftWhenItsWaitCostsMoreThanItSaves(t *testing.T) {
	for _, tc := range worthCases {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { staysOrLeaves(t, tc) })
		})
	}
}

func staysOrLeaves(t *testing.T, tc worthCase) {
	home, other := keyOf(0, plenty, 60_000, plenty), keyOf(1, plenty, 60_000, plenty)
	p := patient(t, "", home, other)
	require.Equal(t, home.ID(), turn(t, p, talk(1, 4*tc.cached), other.ID()))
	short := func(key keypool.KeyConfig, need int, wait time.Duration) {
		level := need - int(wait.Minutes()*float64(key.ITPMLimit)) // both need 600 more than the prompt
		require.NoError(t, p.UpdateClassFromHeaders(key.ID(), opus, rateHeaders(plenty, plenty, key.ITPMLimit, level)))
	}
	short(home, 4600, tc.home)
	short(other, tc.cached+4600, tc.other)
	d := talk(1, 4*tc.cached+16_000)
	d.Arrived = time.Now().Add(-tc.waited)
	var turn keypool.Turn
	lease, wait, err := p.AcquireAt(time.Now(), d, &turn)
	require.NoError(t, err)
	switch {
	case tc.stay:
		assert.Equal(t, tc.home, wait.Round(time.Millisecond), "it waits for home")
	case tc.other > 0:
		assert.Equal(t, tc.other, wait.Round(time.Millisecond), "it waits for the other")
	default:
		assert.Zero(t, wait)
		assert.Equal(t, other.ID(), lease.KeyID())
	}
}

func TestAHomeIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		home, other := keyOf(0, plenty, 60_000, plenty), keyOf(1, plenty, 600_000, plenty)
		p := patient(t, "", home, other)
		turn(t, p, talk(1, 120_000), other.ID())
		require.NoError(t, p.UpdateClassFromHeaders(home.ID(), opus, rateHeaders(plenty, plenty, 60_000, 0)))
		from := time.Now()
		assert.Equal(t, home.ID(), turn(t, p, talk(1, 124_000)))
		assert.Equal(t, 1600*time.Millisecond, time.Since(from), "1,000 tokens and the margin of 600")
	})
}

func TestTenThousandHomesAreKept(t *testing.T) {
	for _, tc := range []struct {
		name   string
		others uint64 // divisible by 3, or one more: so the turns tell home from no home
		want   int
	}{
		{"the last of 100,000", 99_999, 0},
		{"one too many", 100_000, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			keys, ids := keysOf(3, plenty, plenty, plenty)
			p := newPool(t, keypool.StrategyRoundRobin, keys...)
			require.Equal(t, ids[0], turn(t, p, talk(1, 8000)))
			for i := range tc.others {
				turn(t, p, talk(2+i, 8000))
			}
			assert.Equal(t, ids[tc.want], turn(t, p, talk(1, 8000)))
		})
	}
}

// The next prompt repeats the last one, which the home's prompt cache holds.
func TestAtHomeOnlyWhatIsNewIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 1000, 400_000, 10_000)
		p := newPool(t, "", keys...)
		held := func(d keypool.Demand, not ...string) int {
			d.Exclude = not
			lease := acquire(t, p, d)
			defer finish(lease, d)
			return lease.Held().Input
		}
		home, other := ids[0], ids[1]
		turn(t, p, talk(42, 80_000), other)
		assert.Equal(t, 1000, held(talk(42, 84_000)))
		assert.Equal(t, 2000, held(talk(42, 92_000)), "against the last prompt, not the first")
		assert.Equal(t, 0, held(talk(42, 92_000)), "the same again")
		assert.Equal(t, 10_000, held(talk(42, 40_000), other), "one that was cut back is new")
		assert.Equal(t, 24_000, held(talk(42, 96_000), home), "another key's cache has nothing of it")
		assert.Equal(t, 1000, held(talk(42, 100_000), home), "the new home has")
		assert.Equal(t, 2000, held(talk(42, 100_000), other), "and the old one what it had")
		assert.Equal(t, 23_000, held(talk(43, 92_000)), "nor another conversation's")
	})
}

// A client's sub-agents begin with the same tools and instructions, and go on
// alone.
func TestSubAgentsShareThePrefixAndNotTheHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := keysOf(2, plenty, 1_000_000, plenty)
		p := newPool(t, "", keys...)
		agent := func(n uint64, bytes int) keypool.Demand {
			d := talk(n, bytes)
			d.Prefix = append(d.Prefix[:1], keypool.Mark{Hash: 99, Bytes: 40_000, Life: time.Hour})
			return d
		}
		main := turn(t, p, agent(1, 80_000))
		time.Sleep(time.Minute)
		first := acquire(t, p, agent(2, 80_000))
		assert.Equal(t, 10_000, first.Held().Input, "what they share is there already")
		assert.Equal(t, main, first.KeyID(), "so that key has the most room for it")
		first.Settle(keypool.Usage{})

		apart := turn(t, p, agent(3, 80_000), main)
		for range 5 {
			assert.Equal(t, apart, turn(t, p, agent(3, 80_000)))
			assert.Equal(t, main, turn(t, p, agent(1, 80_000)))
		}
	})
}

// Some clients name a new session with each request.
func TestSessionsThatNeverComeBack(t *testing.T) {
	keys, _ := keysOf(3, plenty, plenty, plenty)
	p := newPool(t, "", keys...)
	for i := range uint64(100_500) {
		d := talk(1, 80_000)
		d.Conversation = 1_000_000 + i
		lease := acquire(t, p, d)
		if i > 0 {
			require.LessOrEqual(t, lease.Held().Input, 20_000)
		}
		finish(lease, d)
	}
	s := p.Snapshot()
	assert.Equal(t, 100_000, len(s.Homes))
	assert.LessOrEqual(t, len(s.Prefixes), 3, "one prompt, on each key at most")
	d := talk(1, 84_000)
	d.Conversation = 1
	assert.Equal(t, 1000, acquire(t, p, d).Held().Input, "and it is found")
}
