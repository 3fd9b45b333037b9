package keypool_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

func TestClassOf(t *testing.T) {
	long := strings.Repeat("m", 129)
	for _, tc := range []struct {
		model, class string
	}{
		// One row for each set of buckets in the published table, and its members.
		{"claude-fable-5", "fable-5"},
		{"claude-fable-5-1", "fable-5"},
		{"claude-fable-5-2-20261001", "fable-5"},
		{"claude-opus-5", "opus-5"},
		{"claude-opus-5-20260301", "opus-5"},
		{"claude-opus-5-latest", "opus-5"},
		{"claude-opus-5-5", "opus-5-5"},
		{"claude-opus-5-5-20261001", "opus-5-5"},
		{"claude-opus-5-5[1m]", "opus-5-5"},
		{"claude-opus-4-5-20251101", "opus-4"},
		{"claude-opus-4-6", "opus-4"},
		{"claude-opus-4-7", "opus-4"},
		{"claude-opus-4-8", "opus-4"},
		{"claude-opus-4-8[1m]", "opus-4"},
		{"claude-opus-4-20250514", "opus-4"},
		{"claude-sonnet-5", "sonnet-5"},
		{"claude-sonnet-5-20260401", "sonnet-5"},
		{"claude-sonnet-5-5", "sonnet-5-5"},
		{"claude-sonnet-4-5-20250929", "sonnet-4"},
		{"claude-sonnet-4-5@20250929", "sonnet-4"},
		{"claude-sonnet-4-6", "sonnet-4"},
		{"claude-haiku-5-5", "haiku-5-5"},
		{"claude-haiku-5-5-20261015", "haiku-5-5"},
		{"claude-haiku-4-5", "haiku-4-5"},
		{"claude-haiku-4-5-20251001", "haiku-4-5"},
		{"claude-3-5-haiku-20241022", "haiku-3-5"},
		{"claude-3-5-haiku-latest", "haiku-3-5"},
		// Unknown models are their own class, also where they begin like a family.
		{"claude-opus-50", "claude-opus-50"},
		{"claude-opus-5x", "claude-opus-5x"},
		{"claude-haiku-5", "claude-haiku-5"},
		{"claude-3-opus-20240229", "claude-3-opus-20240229"},
		{"my-claude-opus-5", "my-claude-opus-5"},
		{"Claude-Opus-5", "Claude-Opus-5"},
		{"gpt-oss:120b", "gpt-oss:120b"},
		{long[:128], long[:128]},
		// No client's model may be one of our own classes, nor grow without bound.
		{long, "other"},
		{"claude-opus-5-" + long, "opus-5"},
		{"", "other"},
		{"models", "other"},
		{"count_tokens", "other"},
	} {
		t.Run(tc.model[:min(len(tc.model), 40)], func(t *testing.T) {
			assert.Equal(t, tc.class, keypool.ClassOf(tc.model))
		})
	}
}

func TestClassesAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 2, 10_000, 1000)
		p := newPool(t, "", k)
		for _, class := range []string{opus, "sonnet-5", keypool.ClassAny} {
			first := acquire(t, p, keypool.Demand{Class: class, Bytes: 400})
			acquire(t, p, keypool.Demand{Class: class})
			_ = refused(t, p, keypool.Demand{Class: class})
			first.Settle(keypool.Usage{Input: 100})
		}
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(7, 0)))
		assert.Equal(t, 7, of(t, p, opus, k.ID()).Limits.RPM)
		assert.Equal(t, 2, of(t, p, "sonnet-5", k.ID()).Limits.RPM)
		assert.Equal(t, 2, p.Keys()[0].Limits.RPM, "class-less methods act on a class of their own")
	})
}

func TestCountTokensCountsRequestsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 3, 100, 10)
		p := newPool(t, "", k)
		d := keypool.Demand{Class: keypool.ClassCountTokens, Bytes: 4_000_000, MaxTokens: 1000}
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), d.Class, rateHeaders(3, 3, 100, 0, 10, 0)))
		for range 3 {
			acquire(t, p, d).Settle(keypool.Usage{Input: 1_000_000})
		}
		assert.Equal(t, 20*time.Second, refused(t, p, d).RetryAfter)
		assert.Equal(t, ratelimit.Limits{RPM: 3}, of(t, p, d.Class, k.ID()).Limits)
		acquire(t, p, keypool.Demand{Class: opus, Bytes: 400})
	})
}

func TestListingModelsHasNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 1, 1, 1)
		p := newPool(t, "", k)
		d := keypool.Demand{Class: keypool.ClassModels}
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), d.Class, rateHeaders(1, 0, 1, 0, 1, 0)))
		for range 100 {
			acquire(t, p, d)
		}
		assert.Equal(t, ratelimit.Limits{}, of(t, p, d.Class, k.ID()).Limits, "its answers teach nothing")
		acquire(t, p, keypool.Demand{Class: opus})
	})
}

// Model names come from clients: a pool must not grow with their imagination,
// nor forget what is in flight.
func TestTheNumberOfClassesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 1000, 10_000, 10_000)
		p := newPool(t, "", k)
		flying := acquire(t, p, keypool.Demand{Class: opus, Bytes: 16_000, MaxTokens: 100})
		acquire(t, p, keypool.Demand{Class: "idle"}).Settle(keypool.Usage{})
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), "in use", rateHeaders(777, 777)))
		for i := range 10_000 {
			time.Sleep(time.Millisecond)
			class := keypool.ClassOf(fmt.Sprintf("invented-%d", i))
			acquire(t, p, keypool.Demand{Class: class, Bytes: 40}).Settle(keypool.Usage{})
			require.NoError(t, p.UpdateClassFromHeaders(k.ID(), class, rateHeaders(9, 3)))
			p.MarkClassExhausted(k.ID(), class, time.Second)
			if i%100 == 0 {
				acquire(t, p, keypool.Demand{Class: "in use"}).Settle(keypool.Usage{})
			}
			if i%1000 == 0 {
				require.LessOrEqual(t, len(p.GetStats().Classes), 256)
			}
		}
		stats := p.GetStats()
		assert.Len(t, stats.Classes, 256)
		assert.Equal(t, keypool.ClassAny, stats.Classes[0].Class)
		assert.Equal(t, 9, of(t, p, "invented-9999", k.ID()).Limits.RPM, "the newest are kept")
		assert.Equal(t, 777, of(t, p, "in use", k.ID()).Limits.RPM, "those in use, with what they know")
		assert.False(t, slices.ContainsFunc(stats.Classes, func(c keypool.ClassStats) bool { return c.Class == "idle" }))
		assert.Equal(t, 1, of(t, p, opus, k.ID()).InFlight, "and what is in flight")
		assert.Equal(t, ratelimit.Tokens{Input: 4000}, flying.Held())
		flying.Settle(keypool.Usage{Input: 20_000})
		assert.Less(t, of(t, p, opus, k.ID()).Remaining.ITPM, 0, "settled where it was acquired")
		assert.Zero(t, of(t, p, opus, k.ID()).InFlight)
	})
}

// When every class is busy a new one shares that of the class-less methods.
func TestWhenAllClassesAreBusyTheRestShareOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 1000, plenty, plenty)
		p := newPool(t, "", k)
		leases := make([]keypool.Lease, 400)
		for i := range leases {
			leases[i] = acquire(t, p, keypool.Demand{Class: fmt.Sprintf("busy-%d", i)})
		}
		require.Len(t, p.GetStats().Classes, 256)
		assert.Equal(t, 400-255, p.Keys()[0].InFlight)
		for _, lease := range leases {
			lease.Settle(keypool.Usage{})
		}
		for _, c := range p.GetStats().Classes {
			require.Zero(t, c.InFlight, "class %q", c.Class)
		}
		acquire(t, p, keypool.Demand{Class: "new"})
		assert.Equal(t, 1, of(t, p, "new", k.ID()).InFlight, "idle classes make room again")
	})
}
