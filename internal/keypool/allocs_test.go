//go:build !race

package keypool_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/keypool"
)

// The race detector allocates by itself, so this file is left out under -race.
func TestChoosingAllocatesNothing(t *testing.T) {
	ctx := context.Background()
	headers := rateHeaders(benchLimit, benchLimit-1, benchLimit, benchLimit-1, benchLimit, benchLimit-1)
	for _, strategy := range keypool.Strategies() {
		for _, n := range []int{8, 64} {
			keys, ids := keysOf(n, benchLimit, benchLimit, benchLimit)
			p := newPool(t, strategy, keys...)
			warm, cold, other := long(1), long(2), long(3)
			other.Exclude = ids[:2]
			explained := cold
			explained.Account = &keypool.Account{}
			assert.NoError(t, pick(p, warm, http.Header{}))
			for _, op := range []struct {
				name string
				run  func()
			}{
				{"GetKey", func() { _, _, _ = p.GetKey(ctx) }},
				{"at home", func() { _ = pick(p, warm, nil) }},
				{"cold", func() { _ = pick(p, cold, nil) }},
				{"explained", func() { _ = pick(p, explained, nil) }},
				{"with keys excluded", func() { _ = pick(p, other, nil) }},
				{"answered", func() { _ = pick(p, warm, headers) }},
				{"answered without headers", func() { _ = pick(p, warm, http.Header{}) }},
				{"streamed", func() {
					lease, _ := p.Acquire(ctx, warm)
					lease.Answered(http.StatusOK, headers)
					for range 10 {
						lease.Produced(30)
					}
					lease.Settle(keypool.Usage{CacheRead: 80_000, Output: 310})
				}},
				{"UpdateClassFromHeaders", func() { _ = p.UpdateClassFromHeaders(ids[0], opus, headers) }},
				{"UpdateClassFromHeaders, none", func() { _ = p.UpdateClassFromHeaders(ids[0], opus, nil) }},
				{"GetEarliestResetTime", func() { _ = p.GetEarliestResetTime() }},
				{"ClassOf", func() { _ = keypool.ClassOf("claude-haiku-4-5-20251001") }},
			} {
				t.Run(fmt.Sprintf("%s/%d keys/%s", strategy, n, op.name), func(t *testing.T) {
					assert.Zero(t, testing.AllocsPerRun(200, op.run))
				})
			}
		}
	}
}
