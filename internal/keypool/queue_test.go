package keypool_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// queue is a pool with one key, empty, of 1,000 input tokens a second, and requests
// that wait for it.
type queue struct {
	*testing.T
	pool   *keypool.KeyPool
	key    keypool.KeyConfig
	start  time.Time
	mu     sync.Mutex
	served []string // names and when, in order; guarded by mu
}

const margin = 600 // tokens above its prompt that a request needs of a large bucket

func newQueue(t *testing.T, maxWait time.Duration) *queue {
	q := &queue{T: t, key: keyOf(0, plenty, 60_000, plenty), start: time.Now()}
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: []keypool.KeyConfig{q.key}, MaxWait: &maxWait})
	require.NoError(t, err)
	q.pool = p
	q.empty()
	return q
}

func (q *queue) empty() {
	require.NoError(q, q.pool.UpdateClassFromHeaders(q.key.ID(), opus, rateHeaders(plenty, plenty, 60_000, 0)))
}

// ask has a request of a client wait from now on. It returns once it waits.
func (q *queue) ask(ctx context.Context, name string, d keypool.Demand) {
	d.Class = opus
	go func() {
		lease, err := q.pool.Acquire(ctx, d)
		took := time.Since(q.start).Round(time.Millisecond)
		q.mu.Lock()
		defer q.mu.Unlock()
		if err != nil {
			q.served = append(q.served, fmt.Sprintf("%s refused %s", name, took))
			return
		}
		q.served = append(q.served, fmt.Sprintf("%s %s", name, took))
		lease.Settle(keypool.Usage{Input: lease.Held().Input, Partial: true}) // which teaches nothing
	}()
	synctest.Wait()
}

// order waits until all are served, checks that nothing is left, and returns who was
// served and when.
func (q *queue) order() []string {
	time.Sleep(time.Minute)
	synctest.Wait()
	assert.Zero(q, keypool.InnerOf(q.pool), "left over")
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.served
}

// end checks who was served and when. Who was at the same instant writes itself down in
// any order.
func (q *queue) end(want ...string) {
	q.Helper()
	assert.ElementsMatch(q, want, q.order())
}

func of1000(client string) keypool.Demand { return keypool.Demand{Client: client, Bytes: 4000} }

func TestRequestsWaitInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10*time.Second)
		q.ask(t.Context(), "large", keypool.Demand{Bytes: 4 * 3400})
		for i := range 3 {
			time.Sleep(time.Millisecond)
			q.ask(t.Context(), fmt.Sprint("small-", i), keypool.Demand{Bytes: 4})
		}
		q.end("large 4s", "small-0 4.001s", "small-1 4.002s", "small-2 4.003s")
	})
}

func TestANewRequestDoesNotOvertake(t *testing.T) {
	for name, d := range map[string]keypool.Demand{"the same client's": of1000(""), "another's": of1000("b")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, 10*time.Second)
				q.ask(t.Context(), "first", keypool.Demand{Bytes: 4 * 3000})
				time.Sleep(1600 * time.Millisecond) // enough for the second alone
				q.ask(t.Context(), "second", d)
				q.end("first 3.6s", "second 4.6s")
			})
		})
	}
}

func TestLeavingAndTimeoutsReturnTheContextsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := q.pool.Acquire(ctx, keypool.Demand{Class: opus, Bytes: 4000})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, keypool.ErrAllKeysExhausted)
		assert.Equal(t, 300*time.Millisecond, time.Since(q.start))
		assert.Zero(t, keypool.InnerOf(q.pool))
		assert.Equal(t, 300, of(t, q.pool, opus, q.key.ID()).Remaining.ITPM, "nothing was taken")
	})
}

// What comes back is given out at once, not when it would have refilled.
func TestWhoWaitsIsWoken(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(q *queue, lease keypool.Lease)
		want []string
	}{
		{"by an answer that shows more", func(_ *queue, lease keypool.Lease) {
			lease.Answered(http.StatusOK, rateHeaders(plenty, plenty, 60_000, 30_000))
		}, []string{"first 1s", "second 1s"}},
		{"by a request that was not admitted", func(_ *queue, lease keypool.Lease) { lease.Settle(keypool.Usage{}) },
			[]string{"first 1s", "second 1s"}},
		{"by one that took less", func(_ *queue, lease keypool.Lease) {
			lease.Settle(keypool.Usage{Input: 1, Partial: true})
		}, []string{"first 1s", "second 1s"}},
		{"by nothing", func(*queue, keypool.Lease) {}, []string{"first 5.6s", "second 6.6s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, 30*time.Second)
				time.Sleep(time.Minute)
				lease := acquire(t, q.pool, keypool.Demand{Class: opus, Bytes: 4 * 40_000})
				require.NoError(t, q.pool.UpdateClassFromHeaders(q.key.ID(), opus, rateHeaders(plenty, plenty, 60_000, 0)))
				q.start = time.Now()
				q.ask(t.Context(), "first", keypool.Demand{Bytes: 4 * 5000})
				q.ask(t.Context(), "second", of1000(""))
				time.Sleep(time.Second)
				tc.do(q, lease)
				synctest.Wait()
				lease.Settle(keypool.Usage{Input: 40_000})
				q.end(tc.want...)
			})
		})
	}
}

// A key that serves again is seen at once by those who wait for another.
func TestWhoWaitsIsWokenByAKeyThatServesAgain(t *testing.T) {
	for name, back := range map[string]func(p *keypool.KeyPool, id string, later keypool.Lease){
		"an answer to a later request": func(_ *keypool.KeyPool, _ string, later keypool.Lease) { later.Answered(200, nil) },
		"the operator":                 func(p *keypool.KeyPool, id string, _ keypool.Lease) { _ = p.Release(id) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, 10*time.Second)
				time.Sleep(time.Minute)
				first, later := acquire(t, q.pool, of1000Class()), acquire(t, q.pool, of1000Class())
				first.Answered(429, rateHeaders(plenty, plenty, 60_000, 58_000))
				first.Limited(9 * time.Second)
				first.Settle(keypool.Usage{})
				require.Equal(t, time.Second, cooling(t, q.pool, opus, q.key.ID()))
				q.start = time.Now()
				q.ask(t.Context(), "waits", keypool.Demand{Bytes: 4})
				time.Sleep(300 * time.Millisecond)
				back(q.pool, q.key.ID(), later)
				synctest.Wait()
				later.Settle(keypool.Usage{Input: 1000})
				q.end("waits 300ms")
			})
		})
	}
}

func of1000Class() keypool.Demand { return keypool.Demand{Class: opus, Bytes: 4000} }

// All waits of one request add up, on however many pools and keys.
func TestOneBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 3*time.Second)
		d := keypool.Demand{Class: opus, Bytes: 4 * 1400, Arrived: time.Now()}
		first, err := q.pool.Acquire(t.Context(), d)
		require.NoError(t, err)
		assert.Equal(t, 2*time.Second, time.Since(q.start))
		first.Settle(keypool.Usage{Input: 1400})
		d.Bytes = 4
		_, err = q.pool.Acquire(t.Context(), d)
		require.NoError(t, err, "1 ms is left of it")
		d.Bytes = 4 * 1001
		got := refused(t, q.pool, d)
		assert.Equal(t, 1001*time.Millisecond, got.RetryAfter.Round(time.Millisecond))
		assert.Equal(t, 2001*time.Millisecond, time.Since(q.start).Round(time.Millisecond), "at once: it cannot be served in time")
		d.Arrived = time.Time{}
		_, err = q.pool.Acquire(t.Context(), d)
		require.NoError(t, err, "another request has its own")
	})
}

// A request that may be served by another provider does not wait for a cold key.
func TestOnlyHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10*time.Second)
		time.Sleep(time.Minute)
		turn(t, q.pool, talk(1, 80_000))
		q.empty()
		q.start = time.Now()
		d := talk(2, 12_000)
		d.OnlyHome = true
		assert.Equal(t, 3600*time.Millisecond, refused(t, q.pool, d).RetryAfter, "though that is soon enough")
		assert.Zero(t, time.Since(q.start))
		d = talk(1, 84_000)
		d.OnlyHome = true
		acquire(t, q.pool, d)
		assert.Equal(t, 1600*time.Millisecond, time.Since(q.start))
	})
}

func TestTheQueueIsBounded(t *testing.T) {
	for name, tc := range map[string]struct{ bytes, fit int }{
		"by number": {4, 1000},
		"by memory": {4 << 20, 64},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := patient(t, "", keyOf(0, plenty, plenty, plenty))
				p.MarkKeyExhausted(p.Keys()[0].ID, 2*time.Second)
				d := keypool.Demand{Class: opus, Bytes: tc.bytes}
				turns := make([]keypool.Turn, tc.fit)
				for i := range turns {
					_, wait, err := p.AcquireAt(time.Now(), d, &turns[i])
					require.NoError(t, err)
					require.Equal(t, 2*time.Second, wait)
				}
				from := time.Now()
				assert.Equal(t, 2*time.Second, refused(t, p, d).RetryAfter)
				assert.Zero(t, time.Since(from), "at once")
				_, wait, err := p.AcquireAt(time.Now(), d, &turns[5])
				require.NoError(t, err, "who has a place keeps it")
				assert.Equal(t, 2*time.Second, wait)
				p.Leave(&turns[5])
				p.Leave(&turns[5])
				_, _, err = p.AcquireAt(time.Now(), d, &turns[5])
				require.NoError(t, err, "a place that was left is free")
				for i := range turns {
					p.Leave(&turns[i])
				}
				assert.Zero(t, keypool.InnerOf(p))
			})
		})
	}
}

// While no cold request finds a free key for long, most waiting is in vain.
func TestWaitsGetShorterInACrowd(t *testing.T) {
	for _, tc := range []struct {
		name  string
		every time.Duration // one cold request is refused
		n     int
		want  time.Duration // then a request may wait
	}{
		{"at first", time.Second, 1, 3 * time.Second},
		{"for 3 s", time.Second, 4, 3 * time.Second},
		{"for longer", time.Second, 5, time.Second},
		{"now and then", 3100 * time.Millisecond, 10, 3 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t, 3*time.Second)
				for i := range tc.n {
					if i > 0 {
						time.Sleep(tc.every)
					}
					q.empty()
					_ = refused(t, q.pool, keypool.Demand{Class: opus, Bytes: 4 * 10_000})
				}
				waits := func(d time.Duration) error {
					tokens := int(d.Milliseconds()) - margin
					var turn keypool.Turn
					_, _, err := q.pool.AcquireAt(time.Now(), keypool.Demand{Class: opus, Bytes: 4 * tokens}, &turn)
					q.pool.Leave(&turn)
					return err
				}
				require.NoError(t, waits(tc.want))
				require.Error(t, waits(tc.want+time.Millisecond))
			})
		})
	}
}

// A request that finds another key sooner leaves its place to those behind it.
func TestAWaiterThatChangesQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{T: t, key: keyOf(0, plenty, 60_000, plenty), start: time.Now()}
		other := keyOf(1, plenty, 60_000, plenty)
		q.pool = patient(t, "", q.key, other)
		q.pool.MarkKeyExhausted(other.ID(), time.Minute)
		q.empty()
		q.ask(t.Context(), "first", keypool.Demand{Bytes: 4 * 2300})
		q.ask(t.Context(), "second", keypool.Demand{Bytes: 4, Exclude: []string{other.ID()}})
		time.Sleep(500 * time.Millisecond)
		require.NoError(t, q.pool.Release(other.ID()))
		require.NoError(t, q.pool.UpdateClassFromHeaders(other.ID(), opus, rateHeaders(plenty, plenty, 60_000, 2000)))
		require.NoError(t, q.pool.Release(q.key.ID())) // wakes the first, which is free sooner there
		q.end("second 601ms", "first 1.4s")
	})
}

// What happens to one key concerns those who wait for another.
func TestWhoWaitsForOneKeyLooksAtTheOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		second func(p *keypool.KeyPool, id string)                               // how the second key is out
		change func(p *keypool.KeyPool, first, second string, try keypool.Lease) // after 1 s
		at     int                                                               // which key serves; -1: none can in time
		after  time.Duration
	}{
		"another is released": {
			func(p *keypool.KeyPool, id string) { p.MarkKeyDead(id, keypool.ReasonUnauthorized) },
			func(p *keypool.KeyPool, _, second string, _ keypool.Lease) { _ = p.Release(second) }, 1, time.Second,
		},
		"another has recovered": {
			func(p *keypool.KeyPool, id string) { p.MarkKeyForbidden(id, opus, "", true) },
			func(_ *keypool.KeyPool, _, _ string, try keypool.Lease) { try.Succeeded() }, 1, time.Second,
		},
		"another was refused in vain": {
			func(p *keypool.KeyPool, id string) { p.MarkKeyDead(id, keypool.ReasonUnauthorized) },
			func(_ *keypool.KeyPool, _, _ string, try keypool.Lease) { try.Accepted() }, 1, time.Second,
		},
		"it is dead": {
			func(p *keypool.KeyPool, id string) { p.MarkKeyExhausted(id, 40*time.Second) },
			func(p *keypool.KeyPool, first, _ string, _ keypool.Lease) {
				p.MarkKeyDead(first, keypool.ReasonSpent)
			}, -1, time.Second,
		},
		"it may not serve the class": {
			func(p *keypool.KeyPool, id string) { p.MarkKeyExhausted(id, 40*time.Second) },
			func(p *keypool.KeyPool, first, _ string, _ keypool.Lease) {
				p.MarkKeyForbidden(first, opus, "", true)
			}, -1, time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys, ids := keysOf(2, plenty, 0, 0)
				wait := 30 * time.Second
				p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys, MaxWait: &wait})
				require.NoError(t, err)
				d := keypool.Demand{Class: opus}
				acquire(t, p, d).Settle(keypool.Usage{}) // now there is such a class
				tt.second(p, ids[1])
				var try keypool.Lease
				if of(t, p, opus, ids[1]).State == keypool.StateDead {
					time.Sleep(5 * time.Minute)
					d.Exclude = ids[:1]
					try = acquire(t, p, d) // the probe
					d.Exclude = nil
				}
				p.MarkKeyExhausted(ids[0], 9*time.Second)
				start, done := time.Now(), make(chan keypool.Lease)
				go func() {
					l, _ := p.Acquire(context.Background(), d)
					done <- l
				}()
				time.Sleep(time.Second)
				tt.change(p, ids[0], ids[1], try)
				got := <-done
				want := ""
				if tt.at >= 0 {
					want = ids[tt.at]
				}
				assert.Equal(t, want, got.KeyID())
				assert.Equal(t, tt.after, time.Since(start))
			})
		})
	}
}
