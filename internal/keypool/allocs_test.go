//go:build !race

package keypool_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/keypool"
)

// The race detector allocates by itself, so this file is left out under -race.
func TestChoosingAllocatesNothing(t *testing.T) {
	ctx := context.Background()
	headers := rateHeaders(benchLimit, benchLimit-1, benchLimit, benchLimit-1, benchLimit, benchLimit-1)
	for _, strategy := range keypool.Strategies() {
		keys, ids := keysOf(10, benchLimit, benchLimit, benchLimit)
		p := newPool(t, strategy, keys...)
		d := keypool.Demand{Class: opus, Bytes: 80_000, MaxTokens: 4000, Conversation: 7, Exclude: ids[:2]}
		for _, op := range []struct {
			name string
			run  func()
		}{
			{"GetKey", func() { _, _, _ = p.GetKey(ctx) }},
			{"Acquire, Succeeded, Settle", func() {
				lease, _ := p.Acquire(ctx, d)
				lease.Succeeded()
				lease.Settle(keypool.Usage{})
			}},
			{"UpdateClassFromHeaders", func() { _ = p.UpdateClassFromHeaders(ids[0], opus, headers) }},
			{"UpdateClassFromHeaders, none", func() { _ = p.UpdateClassFromHeaders(ids[0], opus, nil) }},
			{"GetEarliestResetTime", func() { _ = p.GetEarliestResetTime() }},
			{"ClassOf", func() { _ = keypool.ClassOf("claude-haiku-4-5-20251001") }},
		} {
			t.Run(strategy+"/"+op.name, func(t *testing.T) {
				assert.Zero(t, testing.AllocsPerRun(200, op.run))
			})
		}
	}
}
