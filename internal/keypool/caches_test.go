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
