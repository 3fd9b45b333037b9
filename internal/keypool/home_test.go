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
func TestAHomeIsLeftWhenItCannotServe(t *testing.T) {
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

func TestHowLongACacheIsCountedOn(t *testing.T) {
	for _, life := range []time.Duration{5 * time.Minute, time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(2, plenty, plenty, plenty)
				p := newPool(t, keypool.StrategyRoundRobin, keys...)
				d := talk(42, 40_000)
				d.Prefix[0].Life = life
				require.Equal(t, ids[0], turn(t, p, d)) // the next turn is the other key's
				for range 3 {
					time.Sleep(life - 2*time.Second - 1)
					require.Equal(t, ids[0], turn(t, p, d), "each turn renews it")
				}
				time.Sleep(life - 2*time.Second) // a request must still get there
				lease := acquire(t, p, d)
				assert.Equal(t, 10_000, lease.Held().Input)
				assert.Equal(t, ids[1], lease.KeyID())
			})
		})
	}
}

func TestALifeThatNoProviderKnows(t *testing.T) {
	for name, tc := range map[string]struct{ said, want time.Duration }{
		"a second": {time.Second, 5 * time.Minute},
		"a day":    {24 * time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, "", keyOf(0, plenty, plenty, plenty))
				d := talk(42, 40_000)
				d.Prefix[0].Life = tc.said
				turn(t, p, d)
				time.Sleep(tc.want - 2*time.Second - 1)
				found := acquire(t, p, d)
				assert.Zero(t, found.Held().Input)
				found.Settle(keypool.Usage{})
				time.Sleep(time.Nanosecond)
				assert.Equal(t, 10_000, acquire(t, p, d).Held().Input)
			})
		})
	}
}

// Reading an entry renews it, also where nothing is written there again.
func TestReadingRenews(t *testing.T) {
	for name, read := range map[string]bool{"read": true, "not read": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, "", keyOf(0, plenty, plenty, plenty))
				system := keypool.Mark{Hash: 7, Bytes: 40_000, Life: 5 * time.Minute}
				question := func(conversation uint64) keypool.Demand {
					d := talk(conversation, 80_000)
					d.Prefix = append(d.Prefix[:1], keypool.Mark{Hash: system.Hash, Bytes: system.Bytes})
					return d
				}
				first := question(1)
				first.Prefix[1] = system
				turn(t, p, first)
				time.Sleep(4 * time.Minute)
				if read {
					turn(t, p, question(2))
				}
				time.Sleep(4 * time.Minute)
				want := map[bool]int{true: 10_000, false: 20_000}[read]
				assert.Equal(t, want, acquire(t, p, question(3)).Held().Input)
			})
		})
	}
}

// What was forgotten is written anew.
func TestWritingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, plenty, plenty, plenty))
		d := talk(42, 40_000)
		turn(t, p, d)
		time.Sleep(10 * time.Minute)
		d.Prefix[0].Life = time.Hour
		turn(t, p, d)
		time.Sleep(50 * time.Minute)
		assert.Zero(t, acquire(t, p, d).Held().Input)
	})
}

// What an answer did not confirm is in no cache.
func TestOnlyAnswersFillTheCache(t *testing.T) {
	for status, want := range map[int]int{0: 10_000, 200: 0, 400: 10_000, 429: 10_000, 529: 10_000} {
		p := newPool(t, "", keyOf(0, plenty, plenty, plenty))
		lease := acquire(t, p, talk(1, 40_000))
		if status > 0 {
			lease.Answered(status, nil)
		}
		lease.Settle(keypool.Usage{})
		assert.Equal(t, want, acquire(t, p, talk(1, 40_000)).Held().Input, "status %d", status)
	}
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

// A cache belongs to an organization and a workspace.
func TestKeysOfOneCache(t *testing.T) {
	for _, tc := range []struct {
		name                    string
		organization, workspace [2]string
		together                bool
	}{
		{name: "the same", organization: [2]string{"o", "o"}, workspace: [2]string{"w", "w"}, together: true},
		{name: "no workspaces told", organization: [2]string{"o", "o"}, together: true},
		{name: "another workspace", organization: [2]string{"o", "o"}, workspace: [2]string{"w", "v"}},
		{name: "another organization", organization: [2]string{"o", "p"}},
		{name: "workspaces of one name", organization: [2]string{"o", "p"}, workspace: [2]string{"w", "w"}},
		{name: "nothing told"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(2, plenty, plenty, plenty)
				p := newPool(t, "", keys...)
				for i := range ids {
					h := http.Header{"Anthropic-Organization-Id": {tc.organization[i]}, "Anthropic-Workspace-Id": {tc.workspace[i]}}
					require.NoError(t, p.UpdateClassFromHeaders(ids[i], opus, h))
				}
				turn(t, p, talk(1, 80_000), ids[1])
				p.MarkKeyDead(ids[0], keypool.ReasonUnauthorized)
				want := 21_000
				if tc.together {
					want = 1000
				}
				assert.Equal(t, want, acquire(t, p, talk(1, 84_000)).Held().Input)
			})
		})
	}
}

// The caches of keys that turn out to be one organization's were one all along.
func TestCachesMergeWithTheirOrganizations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, plenty, plenty, plenty)
		p := newPool(t, "", keys...)
		turn(t, p, talk(1, 80_000), ids[1])
		turn(t, p, talk(2, 80_000), ids[0])
		belongs(t, p, opus, ids[0], "org-1")
		belongs(t, p, opus, ids[1], "org-1")
		for i, id := range ids {
			d := talk(uint64(1+i), 84_000)
			d.Exclude = []string{id}
			assert.Equal(t, 1000, acquire(t, p, d).Held().Input, "what key %d has written", i)
		}
	})
}
