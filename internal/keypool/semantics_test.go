package keypool_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// work is a class's traffic against one simulated provider.
type work struct {
	t        *testing.T
	pool     *keypool.KeyPool
	provider *provider
	mu       sync.Mutex // of what follows, and the provider
	rand     *rand.Rand
	refused  int
}

// one sends a request with this max_tokens, if the pool lets it, and streams its answer.
func (w *work) one(maxTokens int, streamed bool) {
	lease, wait, err := w.pool.AcquireAt(time.Now(), keypool.Demand{Class: opus, Bytes: 4000, MaxTokens: maxTokens}, new(keypool.Turn))
	if err != nil || wait > 0 {
		return
	}
	w.mu.Lock()
	status, h, retryAfter := w.provider.admit(time.Now(), 1000, maxTokens)
	output := 100 + w.rand.IntN(400)
	if status != 200 {
		w.refused++
	}
	w.mu.Unlock()
	time.Sleep(700 * time.Millisecond)
	lease.Answered(status, h)
	if status != 200 {
		lease.Limited(retryAfter)
		lease.Settle(keypool.Usage{})
		return
	}
	lease.Succeeded()
	for range 10 {
		time.Sleep(200 * time.Millisecond)
		w.mu.Lock()
		w.provider.produce(time.Now(), output/10)
		w.mu.Unlock()
		if streamed {
			lease.Produced(output / 10)
		}
	}
	w.mu.Lock()
	w.provider.end(time.Now(), maxTokens, output/10*10)
	w.mu.Unlock()
	lease.Settle(keypool.Usage{Input: 1000, Output: output / 10 * 10})
}

func (w *work) draw(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rand.IntN(n)
}

func (w *work) reserves() bool {
	for _, c := range w.pool.Snapshot().Classes {
		if c.Name == opus {
			return c.Reserve
		}
	}
	return false
}

// How a provider counts max_tokens is found out from its answers, whichever way it
// is, one request after the other or many at once.
func TestHowOutputCountsIsFoundOut(t *testing.T) {
	for name, reserves := range map[string]bool{"as it is produced": false, "max_tokens in advance": true} {
		for _, streamed := range []bool{true, false} {
			for how, run := range map[string]func(w *work){
				"one after the other": func(w *work) {
					for range 40 {
						w.one(8000, streamed)
						time.Sleep(time.Duration(w.draw(10_000)) * time.Millisecond) // refills
					}
				},
				"many at once": func(w *work) {
					for range 60 {
						go w.one(4000+w.draw(4000), streamed)
						time.Sleep(time.Duration(w.draw(700)) * time.Millisecond)
					}
					time.Sleep(10 * time.Second)
				},
			} {
				t.Run(name+"/"+how+"/streamed "+map[bool]string{true: "yes", false: "no"}[streamed], func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := &work{t: t, pool: newPool(t, "", keyOf(0, 0, 0, 0)), rand: rand.New(rand.NewPCG(1, 2))}
						w.provider = newProvider("", 1000, 400_000, 80_000, time.Now())
						w.provider.reserves = reserves
						run(w)
						assert.Equal(t, reserves, w.reserves())
						w.refused = 0
						run(w)
						assert.Equal(t, reserves, w.reserves(), "and stays so")
						assert.Zero(t, w.refused, "refused once it is known")
						assert.Zero(t, keypool.InnerOf(w.pool))
					})
				})
			}
		}
	}
}

// Six of ten answers are shorter than what is predicted.
func TestPredictedOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "", keyOf(0, plenty, plenty, plenty))
		r := rand.New(rand.NewPCG(1, 2))
		for range 5000 {
			lease := acquire(t, p, of1000Class())
			lease.Answered(200, rateHeaders(plenty, plenty, plenty, plenty, plenty, plenty))
			lease.Settle(keypool.Usage{Input: 1000, Output: 1 + r.IntN(2000)})
		}
		for _, c := range p.Snapshot().Classes {
			assert.InDelta(t, 1200, c.Output, 200, "class %s", c.Name)
		}
		require.NotEmpty(t, p.Snapshot().Classes)
	})
}

// What requests in flight will produce counts for the choice before they do.
func TestPredictedOutputRanks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := []keypool.KeyConfig{keyOf(0, plenty, plenty, 10_000), keyOf(1, plenty, plenty, 9900)}
		p := newPool(t, "", keys...)
		first := acquire(t, p, keypool.Demand{Class: opus, MaxTokens: 8000})
		assert.Equal(t, keys[0].ID(), first.KeyID())
		assert.Equal(t, keys[1].ID(), acquire(t, p, keypool.Demand{Class: opus, MaxTokens: 8000}).KeyID())
		first.Produced(100)
		assert.InDelta(t, 0.96, of(t, p, opus, keys[0].ID()).Headroom, 1e-9, "100 are made, 300 are to come")
	})
}

// Small requests differ too little from either guess to tell.
func TestSmallRequestsTellNothingOfOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &work{t: t, pool: newPool(t, "", keyOf(0, 0, 0, 0)), rand: rand.New(rand.NewPCG(1, 2))}
		w.provider = newProvider("", 1000, 400_000, 80_000, time.Now())
		w.provider.reserves = true
		for range 100 {
			w.one(3999, true)
		}
		assert.False(t, w.reserves())
	})
}

// Where max_tokens is taken in advance, it is held, and what was not used is given
// back.
func TestReservedOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, plenty, plenty, 20_000)
		p := newPool(t, "", k)
		p.Restore(keypool.Snapshot{At: time.Now().UnixMilli(), Classes: []keypool.ClassSnapshot{{Name: opus, Ratio: 0.25, Reserve: true}}})
		left := func() int { return of(t, p, opus, k.ID()).Remaining.OTPM }
		d := keypool.Demand{Class: opus, Bytes: 400, MaxTokens: 12_000}
		lease := acquire(t, p, d)
		assert.Equal(t, 12_000, lease.Held().Output)
		assert.Equal(t, 8000, left())
		assert.Equal(t, 12*time.Second, refused(t, p, d).RetryAfter, "4,000 are missing")
		lease.Produced(700)
		assert.Equal(t, 8000, left(), "that is taken already")
		lease.Settle(keypool.Usage{Input: 100, Output: 900})
		assert.Equal(t, 19_100, left())

		for name, u := range map[string]keypool.Usage{"not admitted": {}, "nothing came": {Input: 100}} {
			lease = acquire(t, p, d)
			require.Equal(t, 7100, left())
			lease.Settle(u)
			assert.Equal(t, 19_100, left(), name)
		}
		lease = acquire(t, p, d)
		lease.Produced(700)
		lease.Settle(keypool.Usage{Input: 100, Output: 300, Partial: true})
		assert.Equal(t, 18_400, left())

		time.Sleep(time.Minute)
		d.MaxTokens = 128_000
		lease = acquire(t, p, d)
		assert.Equal(t, 20_000, lease.Held().Output, "all there is, where it can never be enough")
		lease.Settle(keypool.Usage{Input: 100, Output: 1000})
		assert.Equal(t, 19_000, left())
		assert.Equal(t, 3*time.Second, refused(t, p, d).RetryAfter)
	})
}
