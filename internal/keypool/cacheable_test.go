package keypool_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/keypool"
)

// A prompt below the model's minimum is silently not cached: nothing of it is
// there for the next turn.
func TestShortPromptsAreNotCached(t *testing.T) {
	for model, tokens := range map[string]int{
		"claude-fable-5":             512,
		"claude-fable-5-1":           512,
		"claude-mythos-5":            512,
		"claude-mythos-preview":      2048,
		"claude-opus-5":              512,
		"claude-opus-5-5-20261001":   512,
		"claude-opus-4-8[1m]":        1024,
		"claude-opus-4-7":            2048,
		"claude-opus-4-6":            4096,
		"claude-opus-4-5-20251101":   4096,
		"claude-opus-4-1":            1024,
		"claude-opus-4-20250514":     1024,
		"claude-sonnet-5":            1024,
		"claude-sonnet-5-5":          512,
		"claude-sonnet-4-6":          1024,
		"claude-haiku-5-5":           512,
		"claude-haiku-4-5@20251001":  4096,
		"claude-3-5-haiku-20241022":  2048,
		"claude-opus-50":             1024, // unknown
		"gpt-oss:120b":               1024,
		"":                           512, // then the class's: opus-5
		"claude-sonnet-5-20260401":   1024,
		"claude-haiku-5-5-20261015":  512,
		"claude-mythos-5-1-20260901": 512,
	} {
		t.Run(model, func(t *testing.T) {
			for short, want := range map[int]bool{0: true, 1: false} {
				synctest.Test(t, func(t *testing.T) {
					p := newPool(t, "", keyOf(0, 0, 0, 0))
					const bytesPerToken = 4 // what a new class begins with
					n := tokens*bytesPerToken - short
					d := keypool.Demand{Class: opus, Model: model, Bytes: n, Conversation: 1,
						Prefix: []keypool.Mark{{Hash: 1, Bytes: n, Life: 5 * time.Minute}}}
					first := acquire(t, p, d)
					first.Answered(http.StatusOK, nil)
					first.Settle(keypool.Usage{})
					assert.Equal(t, want, acquire(t, p, d).Held().Input == 0, "of %d bytes all is cached", n)
				})
			}
		})
	}
}
