package keypool_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// What no key can hold is sent once, by the largest when it is full: the estimate
// may be wrong, and a provider that refuses it says so better than we could.
func TestAPromptLargerThanAllKeys(t *testing.T) {
	for _, strategy := range keypool.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys := []keypool.KeyConfig{keyOf(0, 60, 30_000, plenty), keyOf(1, 60, 60_000, plenty), keyOf(2, 60, 40_000, plenty)}
				d := keypool.Demand{Class: opus, Bytes: 4 * 61_000}
				for range 10 {
					p := newPool(t, strategy, keys...)
					lease := acquire(t, p, d)
					require.Equal(t, keys[1].ID(), lease.KeyID())
					assert.Equal(t, 60_000, lease.Held().Input, "all there is")
					tokens, limit, oversized := lease.Oversized()
					assert.True(t, oversized)
					assert.Equal(t, []int{61_000, 60_000}, []int{tokens, limit})

					assert.Equal(t, time.Minute, refused(t, p, d).RetryAfter, "the others stay as they are")
					lease.Limited(30 * time.Second)
					lease.Settle(keypool.Usage{})
					assert.Equal(t, keypool.StateAvailable, of(t, p, opus, lease.KeyID()).State, "its refusal cools nobody")
					acquire(t, p, d)
				}
			})
		})
	}
}

func TestTheLargestKeyIsWaitedFor(t *testing.T) {
	for _, tc := range []struct {
		name  string
		level int // of the largest key's 60,000
		want  time.Duration
		err   bool
	}{
		{"full", 60_000, 0, false},
		{"soon", 58_000, 2 * time.Second, false},
		{"just", 57_000, 3 * time.Second, false},
		{"not within max_wait", 56_000, 4 * time.Second, true},
		{"empty", 0, time.Minute, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				small, large := keyOf(0, 60, 50_000, plenty), keyOf(1, 60, 60_000, plenty)
				p := patient(t, "", small, large)
				d := keypool.Demand{Class: opus, Bytes: 4 * 60_500}
				require.NoError(t, p.UpdateClassFromHeaders(large.ID(), opus, rateHeaders(60, 60, 60_000, tc.level)))
				from := time.Now()
				if tc.err {
					assert.Equal(t, tc.want, refused(t, p, d).RetryAfter)
					assert.Zero(t, time.Since(from))
					return
				}
				assert.Equal(t, large.ID(), acquire(t, p, d).KeyID())
				assert.Equal(t, tc.want, time.Since(from))
			})
		})
	}
}

func TestWhatIsNotOversized(t *testing.T) {
	for _, tc := range []struct {
		name string
		keys []keypool.KeyConfig
		want int // the key
	}{
		{"one that just fits", []keypool.KeyConfig{keyOf(0, 0, 40_000, 0), keyOf(1, 0, 30_000, 0)}, 0},
		{"one key can", []keypool.KeyConfig{keyOf(0, 0, 30_000, 0), keyOf(1, 0, 40_100, 0)}, 1},
		{"one key is unknown", []keypool.KeyConfig{keyOf(0, 0, 30_000, 0), keyOf(1, 0, 0, 0)}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, "", tc.keys...)
				lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 160_000})
				assert.Equal(t, tc.keys[tc.want].ID(), lease.KeyID())
				_, _, oversized := lease.Oversized()
				assert.False(t, oversized)
			})
		})
	}
}

// A large prompt that is cached takes little.
func TestACachedPromptIsNotOversized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 60, 30_000, plenty))
		for tokens := 20_000; tokens <= 100_000; tokens += 20_000 {
			d := talk(1, 4*tokens)
			lease := acquire(t, p, d)
			_, _, oversized := lease.Oversized()
			assert.False(t, oversized)
			finish(lease, d)
			time.Sleep(time.Minute)
		}
	})
}
