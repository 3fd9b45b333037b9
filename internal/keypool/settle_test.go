package keypool_test

import (
	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// story is one key of 60 requests, 60,000 input and 60,000 output tokens a minute
// (1, 1,000 and 1,000 a second) with requests under way, in order of dispatch.
type story struct {
	*testing.T
	pool   *keypool.KeyPool
	leases []keypool.Lease
}

func (s *story) dispatch(tokens ...int) {
	for _, n := range tokens {
		s.leases = append(s.leases, acquire(s, s.pool, keypool.Demand{Class: opus, Bytes: 4 * n, MaxTokens: 5000}))
	}
}

// answered brings the head of the nth request's answer; reset tells when the
// buckets are full, 0 where it does not.
func (s *story) answered(n, status, requests, input, output int, reset time.Duration) {
	h := rateHeaders(60, requests, 60_000, input, 60_000, output)
	if reset > 0 {
		h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
		for _, kind := range []string{"Requests", "Input-Tokens", "Output-Tokens"} {
			h.Set("Anthropic-Ratelimit-"+kind+"-Reset", time.Now().Add(reset).Format(time.RFC3339))
		}
	}
	s.leases[n].Answered(status, h)
}

func testSettlement(t *testing.T) {
	type limits = ratelimit.Limits
	partial := func(input, output int) keypool.Usage {
		return keypool.Usage{Input: input, Output: output, Partial: true}
	}
	for _, tc := range []struct {
		name string
		play func(*story)
		want limits
	}{
		{"headers raise", func(s *story) {
			s.dispatch(40_000)
			s.answered(0, 200, 59, 55_000, 60_000, 0)
		}, limits{RPM: 59, ITPM: 55_000, OTPM: 60_000}},
		{"headers lower", func(s *story) {
			s.dispatch(1000)
			s.answered(0, 200, 7, 20_000, 30_000, 0)
		}, limits{RPM: 7, ITPM: 20_000, OTPM: 30_000}},
		{"and are carried on from the dispatch", func(s *story) {
			s.dispatch(1000)
			time.Sleep(5 * time.Second)
			s.answered(0, 200, 7, 20_000, 30_000, 0)
		}, limits{RPM: 12, ITPM: 25_000, OTPM: 35_000}},
		{"less what was dispatched since", func(s *story) {
			s.dispatch(1000, 2000, 3000)
			s.answered(0, 200, 50, 50_000, 50_000, 0)
		}, limits{RPM: 48, ITPM: 45_000, OTPM: 50_000}},
		{"and not what was dispatched before", func(s *story) {
			s.dispatch(1000, 2000, 3000)
			s.answered(1, 200, 50, 50_000, 50_000, 0)
		}, limits{RPM: 49, ITPM: 47_000, OTPM: 50_000}},
		{"what has ended without an answer was dispatched all the same", func(s *story) {
			s.dispatch(1000, 2000, 3000)
			s.leases[2].Settle(keypool.Usage{Unreported: true})
			s.answered(0, 200, 50, 50_000, 50_000, 0)
		}, limits{RPM: 48, ITPM: 45_000, OTPM: 50_000}},
		{"what never got there was not", func(s *story) {
			s.dispatch(1000, 2000, 3000)
			s.leases[2].Settle(keypool.Usage{})
			s.answered(0, 200, 50, 50_000, 50_000, 0)
		}, limits{RPM: 49, ITPM: 48_000, OTPM: 50_000}},
		{"a slow answer: what was made meanwhile has refilled", func(s *story) {
			s.dispatch(1000)
			for range 10 {
				s.leases[0].Produced(5000)
				time.Sleep(10 * time.Second)
			}
			s.answered(0, 200, 59, 59_000, 60_000, 0)
		}, limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}},
		{"an older answer changes no level", func(s *story) {
			s.dispatch(1000, 2000, 3000)
			s.answered(1, 200, 50, 50_000, 50_000, 0)
			s.answered(0, 200, 58, 58_000, 58_000, 0)
		}, limits{RPM: 49, ITPM: 47_000, OTPM: 50_000}},
		{"a newer one does", func(s *story) {
			s.dispatch(1000, 2000, 3000)
			s.answered(1, 200, 50, 50_000, 50_000, 0)
			s.answered(2, 200, 40, 40_000, 40_000, 0)
		}, limits{RPM: 40, ITPM: 40_000, OTPM: 40_000}},
		{"a refusal's headers count as any", func(s *story) {
			s.dispatch(1000)
			s.answered(0, 429, 7, 300, 30_000, 0)
		}, limits{RPM: 7, ITPM: 300, OTPM: 30_000}},
		{"nothing remaining lowers", func(s *story) {
			s.dispatch(1000)
			s.answered(0, 200, 0, 0, 0, 0)
		}, limits{}},
		{"and hides a debt", func(s *story) {
			s.dispatch(1000, 1000)
			s.leases[0].Settle(partial(80_000, 0))
			s.answered(1, 200, 10, 0, 0, 0)
		}, limits{RPM: 10, ITPM: -21_000}},
		{"a reset tells the capacity", func(s *story) {
			s.dispatch(1000)
			s.answered(0, 200, 10, 10_000, 20_000, 20*time.Second)
			time.Sleep(time.Hour)
		}, limits{RPM: 30, ITPM: 30_000, OTPM: 40_000}},
		{"without anything remaining it does not", func(s *story) {
			s.dispatch(1000)
			s.answered(0, 200, 0, 0, 0, 20*time.Second)
			time.Sleep(time.Hour)
		}, limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}},
		{"what remains fits in the capacity", func(s *story) {
			s.dispatch(1000, 1000)
			s.answered(0, 200, 10, 10_000, 20_000, 20*time.Second)
			s.answered(1, 200, 50, 50_000, 50_000, 0)
		}, limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},
		{"more than the limit remaining", func(s *story) {
			s.dispatch(1000)
			s.answered(0, 200, 70, 900_000, 61_000, 0)
		}, limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}},

		{"not admitted: all is given back", func(s *story) {
			s.dispatch(5000)
			s.leases[0].Settle(keypool.Usage{})
		}, limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}},
		{"also what was seen of it", func(s *story) {
			s.dispatch(5000)
			s.leases[0].Produced(300)
			s.leases[0].Settle(keypool.Usage{})
		}, limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}},
		{"its own headers have given it back", func(s *story) {
			s.dispatch(5000)
			s.answered(0, 429, 50, 50_000, 50_000, 0)
			s.leases[0].Settle(keypool.Usage{})
		}, limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},
		{"or a later request's", func(s *story) {
			s.dispatch(5000, 1000)
			s.answered(1, 200, 50, 50_000, 50_000, 0)
			s.leases[0].Settle(keypool.Usage{})
		}, limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},
		{"an earlier one's have not", func(s *story) {
			s.dispatch(5000, 1000)
			s.answered(0, 200, 50, 50_000, 50_000, 0)
			s.leases[1].Settle(keypool.Usage{})
		}, limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},

		{"without headers the usage counts", func(s *story) {
			s.dispatch(5000)
			s.leases[0].Answered(200, nil)
			s.leases[0].Settle(keypool.Usage{Input: 3000, CacheWrite: 500, CacheRead: 90_000, Output: 700})
		}, limits{RPM: 59, ITPM: 56_500, OTPM: 59_300}},
		{"with headers they have counted the prompt", func(s *story) {
			s.dispatch(5000)
			s.answered(0, 200, 50, 40_000, 50_000, 0)
			s.leases[0].Settle(keypool.Usage{Input: 7000, Output: 700})
		}, limits{RPM: 50, ITPM: 40_000, OTPM: 49_300}},
		{"headers of requests alone have not", func(s *story) {
			s.dispatch(5000)
			s.leases[0].Answered(200, rateHeaders(60, 50))
			s.leases[0].Settle(keypool.Usage{Input: 7000, Output: 700})
		}, limits{RPM: 50, ITPM: 53_000, OTPM: 59_300}},

		{"output counts as it is produced", func(s *story) {
			s.dispatch(1000)
			s.leases[0].Produced(300)
			s.leases[0].Produced(200)
			s.leases[0].Produced(0)
			s.leases[0].Produced(-50)
		}, limits{RPM: 59, ITPM: 59_000, OTPM: 59_500}},
		{"the end adds what was missing", func(s *story) {
			s.dispatch(1000)
			s.leases[0].Produced(300)
			s.leases[0].Settle(keypool.Usage{Input: 1000, Output: 800})
		}, limits{RPM: 59, ITPM: 59_000, OTPM: 59_200}},
		{"or gives back what was too much", func(s *story) {
			s.dispatch(1000)
			s.leases[0].Produced(900)
			s.leases[0].Settle(keypool.Usage{Input: 1000, Output: 800})
		}, limits{RPM: 59, ITPM: 59_000, OTPM: 59_200}},
		{"a broken answer counts what was seen", func(s *story) {
			s.dispatch(1000)
			s.leases[0].Produced(900)
			s.leases[0].Settle(partial(1000, 1))
		}, limits{RPM: 59, ITPM: 59_000, OTPM: 59_100}},
		{"or what it told, if that is more", func(s *story) {
			s.dispatch(1000)
			s.leases[0].Produced(900)
			s.leases[0].Settle(partial(1000, 950))
		}, limits{RPM: 59, ITPM: 59_000, OTPM: 59_050}},
		{"what was not reported stays taken", func(s *story) {
			s.dispatch(5000)
			s.leases[0].Produced(300)
			s.leases[0].Settle(keypool.Usage{Unreported: true})
		}, limits{RPM: 59, ITPM: 55_000, OTPM: 59_700}},
		{"headers do not know what was produced since", func(s *story) {
			s.dispatch(1000, 1000)
			s.leases[1].Produced(700)
			s.answered(0, 200, 50, 50_000, 50_000, 0)
		}, limits{RPM: 49, ITPM: 49_000, OTPM: 49_300}},
		{"but what was before", func(s *story) {
			s.dispatch(1000)
			s.leases[0].Produced(700)
			s.dispatch(1000)
			s.answered(1, 200, 50, 50_000, 50_000, 0)
		}, limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},

		{"nothing is given back twice", func(s *story) {
			s.dispatch(5000)
			for range 3 {
				s.leases[0].Settle(keypool.Usage{})
			}
			s.dispatch(20_000)
		}, limits{RPM: 59, ITPM: 40_000, OTPM: 60_000}},
		{"nor above what a bucket holds", func(s *story) {
			s.dispatch(50_000)
			time.Sleep(time.Minute)
			s.leases[0].Settle(keypool.Usage{})
		}, limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 60, 60_000, 60_000)
				s := &story{T: t, pool: newPool(t, "", k)}
				tc.play(s)
				assert.Equal(t, tc.want, of(t, s.pool, opus, k.ID()).Remaining)
				for _, lease := range s.leases {
					lease.Settle(keypool.Usage{})
				}
				assert.Zero(t, keypool.InnerOf(s.pool), "under way at the end")
			})
		})
	}
}

// Reports that no provider makes must not become a debt that nobody lives to see
// paid, nor a level that is no number.
func testAbsurdUsage(t *testing.T) {
	for name, u := range map[string]keypool.Usage{
		"huge":          {Input: math.MaxInt, CacheWrite: math.MaxInt, CacheRead: math.MaxInt, Output: math.MaxInt},
		"negative":      {Input: math.MinInt, CacheWrite: math.MinInt, CacheRead: math.MinInt, Output: math.MinInt},
		"huge, partial": {Input: math.MaxInt, Output: math.MaxInt, Partial: true},
		"a cached one":  {CacheRead: math.MaxInt},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 60, plenty, plenty)
				p := newPool(t, "", k)
				d := keypool.Demand{Class: opus, Bytes: 4000}
				for range 3 {
					lease := acquire(t, p, d)
					lease.Produced(math.MaxInt)
					lease.Settle(u)
					assert.Zero(t, keypool.InnerOf(p), "under way")
					got := of(t, p, opus, k.ID())
					assert.LessOrEqual(t, got.Remaining.ITPM, plenty)
					assert.GreaterOrEqual(t, got.Remaining.ITPM, plenty-3*200_000_000, "at most 100 million of each kind")
					assert.GreaterOrEqual(t, got.Remaining.OTPM, plenty-3*100_000_000)
				}
				time.Sleep(time.Minute)
				lease := acquire(t, p, d)
				assert.LessOrEqual(t, lease.Held().Input, 8000, "a token is at most half a byte")
				assert.GreaterOrEqual(t, lease.Held().Input, 40)
			})
		})
	}
}

func TestTheSizeOfATokenIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, plenty, plenty, plenty)
		p := newPool(t, "", k)
		d := keypool.Demand{Class: opus, Bytes: 100_000}
		held := func(u keypool.Usage) int {
			lease := acquire(t, p, d)
			defer lease.Settle(u)
			return lease.Held().Input
		}
		for range 300 { // 100,000 bytes are 40,000 tokens, most of them cached
			held(keypool.Usage{Input: 1000, CacheWrite: 4000, CacheRead: 35_000, Output: 1})
		}
		assert.InDelta(t, 40_000, held(keypool.Usage{}), 100)
		for range 300 {
			held(keypool.Usage{Input: 90_000, Partial: true})
			held(keypool.Usage{Output: 10, Unreported: true})
			held(keypool.Usage{})
			held(keypool.Usage{Output: 5})
		}
		assert.InDelta(t, 40_000, held(keypool.Usage{}), 100, "from complete answers alone")
		other := d
		other.Class = "sonnet-5"
		assert.Equal(t, 25_000, acquire(t, p, other).Held().Input, "each class for itself")
	})
}
