package keypool_test

import (
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// room is how many requests of a class the pool admits at once, up to 20.
func room(tb testing.TB, p *keypool.KeyPool, class string) int {
	tb.Helper()
	var leases []keypool.Lease
	for range 20 {
		lease, wait, err := p.AcquireAt(time.Now(), keypool.Demand{Class: class, Bytes: 400}, new(keypool.Turn))
		if err != nil || wait > 0 {
			break
		}
		leases = append(leases, lease)
	}
	for _, lease := range leases {
		lease.Settle(keypool.Usage{})
	}
	return len(leases)
}

// Nobody knows what an owner admits before it has answered: two requests find out.
func TestUnknownLimits(t *testing.T) {
	all := rateHeaders(1000, 999, 100_000, 99_000, 100_000, 99_000)
	for _, tc := range []struct {
		name   string
		class  string
		rpm    int
		answer func(lease keypool.Lease)
		want   int
	}{
		{"no answer yet", opus, 0, func(keypool.Lease) {}, 1},
		{"an answer that names them", opus, 0, func(l keypool.Lease) { l.Answered(200, all) }, 20},
		{"an answer that names none", opus, 0, func(l keypool.Lease) { l.Answered(200, nil) }, 20},
		{"an answer that names some", opus, 0, func(l keypool.Lease) { l.Answered(200, rateHeaders(1000, 999)) }, 20},
		{"one is configured", opus, 1000, func(keypool.Lease) {}, 1},
		{"the others are not named", opus, 1000, func(l keypool.Lease) { l.Answered(200, nil) }, 20},
		{"an error says nothing", opus, 0, func(l keypool.Lease) { l.Answered(529, nil) }, 2},
		{"a refusal that names them does", opus, 0, func(l keypool.Lease) { l.Answered(429, all) }, 20},
		{"no connection", opus, 0, func(l keypool.Lease) { l.Settle(keypool.Usage{}) }, 2},
		{"counting tokens has one limit", keypool.ClassCountTokens, 0, func(keypool.Lease) {}, 1},
		{"which may be known", keypool.ClassCountTokens, 1000, func(keypool.Lease) {}, 20},
		{"listing models has none", keypool.ClassModels, 0, func(keypool.Lease) {}, 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPool(t, "", keyOf(0, tc.rpm, 0, 0))
			tc.answer(acquire(t, p, keypool.Demand{Class: tc.class, Bytes: 400}))
			assert.Equal(t, tc.want, room(t, p, tc.class))
		})
	}
}

// What has been out for longer than a refusal takes was admitted, however long its answer
// takes: as many may follow, and a burst is not refused for want of knowledge.
func TestSilenceIsNoRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 0, 0, 0))
		out := 0
		for _, want := range []int{2, 2, 4, 8} {
			got := 0
			for range want + 1 {
				if _, wait, err := p.AcquireAt(time.Now(), of1000Class(), new(keypool.Turn)); err == nil && wait == 0 {
					got++
				}
			}
			assert.Equal(t, want, got, "with %d out", out)
			out += got
			time.Sleep(500 * time.Millisecond)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := patient(t, "", keyOf(0, 0, 0, 0)) // waits for 3 s
		var served atomic.Int32
		for range 10 {
			go func() {
				if _, err := p.Acquire(t.Context(), of1000Class()); err == nil {
					served.Add(1)
				}
			}()
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		assert.EqualValues(t, 10, served.Load())
	})
}

// After a refusal one tries, and nobody follows until it has its answer.
func TestSilenceDoesNotEndACoolDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 0, 0, 0))
		lease := acquire(t, p, of1000Class())
		lease.Answered(429, nil)
		lease.Limited(5 * time.Second)
		lease.Settle(keypool.Usage{})
		time.Sleep(5 * time.Second)
		acquire(t, p, of1000Class())
		time.Sleep(10 * time.Second)
		assert.Equal(t, 100*time.Millisecond, refused(t, p, of1000Class()).RetryAfter)
	})
}

func TestPartlyKnownLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		acquire(t, p, keypool.Demand{Class: opus}).Answered(200, rateHeaders(5, 4))
		assert.Equal(t, 4, room(t, p, opus), "the limit that is named holds")
		lease := acquire(t, p, keypool.Demand{Class: opus})
		lease.Answered(200, rateHeaders(5, 3, 60_000, 750))
		lease.Settle(keypool.Usage{Input: 1})
		assert.Equal(t, 1, room(t, p, opus), "and one that is named later: 750 are room for 100 and the margin once")
		assert.Equal(t, 3, of(t, p, opus, k.ID()).Remaining.RPM)
	})
}

// A refusal says that there is a limit after all.
func TestARefusalMakesAbsentLimitsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, 0, 0, 0))
		acquire(t, p, of1000Class()).Answered(200, nil)
		require.Equal(t, 20, room(t, p, opus))
		lease := acquire(t, p, of1000Class())
		lease.Answered(429, nil)
		lease.Limited(5 * time.Second)
		lease.Settle(keypool.Usage{})
		time.Sleep(5 * time.Second)
		probe := acquire(t, p, of1000Class())
		assert.Equal(t, 100*time.Millisecond, refused(t, p, of1000Class()).RetryAfter, "one tries")
		probe.Succeeded()
		assert.Equal(t, 1, room(t, p, opus), "then two")
		probe.Answered(200, nil)
		assert.Equal(t, 20, room(t, p, opus), "until an answer names none")
	})
}

func TestOthersWaitWhileTwoTry(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.Header
		want   []string
	}{
		"no limits":        {nil, []string{"third 450ms", "fourth 450ms", "fifth 450ms"}},
		"room for two":     {rateHeaders(plenty, plenty, 60_000, 2600), []string{"third 450ms", "fourth 450ms", "fifth 1s"}},
		"room for one":     {rateHeaders(60, 0), []string{"third 1s", "fourth 2s", "fifth 3s"}},
		"still nobody":     {rateHeaders(6, 0), []string{"third refused 450ms", "fourth refused 450ms", "fifth refused 450ms"}},
		"an unread answer": {header("requests-limit", "many"), []string{"third 450ms", "fourth 450ms", "fifth 450ms"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &queue{T: t, key: keyOf(0, 0, 0, 0), start: time.Now()}
				q.pool = patient(t, "", q.key)
				first, second := acquire(t, q.pool, of1000Class()), acquire(t, q.pool, of1000Class())
				for _, name := range []string{"third", "fourth", "fifth"} {
					q.ask(t.Context(), name, of1000(""))
				}
				time.Sleep(450 * time.Millisecond)
				first.Answered(200, tc.answer)
				synctest.Wait()
				second.Settle(keypool.Usage{})
				first.Settle(keypool.Usage{Input: 1000})
				q.end(tc.want...)
			})
		})
	}
}

// Who has waited for an unknown key goes before who comes now.
func TestWhoTriesNextIsWhoHasWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := patient(t, "", keyOf(0, 0, 0, 0))
		first, _ := acquire(t, p, of1000Class()), acquire(t, p, of1000Class())
		var waits, comes keypool.Turn
		_, wait, err := p.AcquireAt(time.Now(), of1000Class(), &waits)
		require.NoError(t, err)
		require.Equal(t, 100*time.Millisecond, wait)
		first.Settle(keypool.Usage{}) // it never got there: one more may try
		_, wait, err = p.AcquireAt(time.Now(), of1000Class(), &comes)
		require.NoError(t, err)
		assert.Equal(t, 100*time.Millisecond, wait, "the one that came last")
		_, wait, err = p.AcquireAt(time.Now(), of1000Class(), &waits)
		require.NoError(t, err)
		assert.Zero(t, wait, "the one that waits")
	})
}

func TestGetKeyTriesNothingOut(t *testing.T) {
	p := newPool(t, "", keyOf(0, 0, 0, 0))
	for range 1000 {
		getKey(t, p)
	}
	assert.Equal(t, 1, room(t, p, opus)-1, "nor does it count for others")
	assert.Zero(t, keypool.InnerOf(p))
}

// A key of which nothing is known is worth a try before one that is half spent.
func TestUnknownKeysAmongKnownOnes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		level int // of 100,000 at the known key
		want  []int
	}{
		{"fresh", 100_000, []int{0, 0, 0}},
		{"half spent", 49_000, []int{1, 0, 0}},
		{"nearly", 25_000, []int{1, 1, 0}},
		{"spent", 0, []int{1, 1, -1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				known, unknown := keyOf(0, plenty, 100_000, plenty), keyOf(1, 0, 0, 0)
				p := newPool(t, "", known, unknown)
				require.NoError(t, p.UpdateClassFromHeaders(known.ID(), opus, rateHeaders(plenty, plenty, 100_000, tc.level)))
				for i, want := range tc.want {
					if want < 0 {
						_ = refused(t, p, of1000Class())
						continue
					}
					got := acquire(t, p, of1000Class())
					assert.Equal(t, []string{known.ID(), unknown.ID()}[want], got.KeyID(), "request %d", i)
				}
			})
		})
	}
}
