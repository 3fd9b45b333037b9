package keypool_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

func TestPoolSettingsThatAreRefused(t *testing.T) {
	wait := func(d time.Duration) *time.Duration { return &d }
	for name, tc := range map[string]struct {
		cfg  keypool.PoolConfig
		want string
	}{
		"a negative wait": {keypool.PoolConfig{MaxWait: wait(-1)}, "max_wait -1ns is not within 0 and 1m0s"},
		"a long wait":     {keypool.PoolConfig{MaxWait: wait(time.Minute + 1)}, "max_wait 1m0.000000001s is not within 0 and 1m0s"},
		"affinity":        {keypool.PoolConfig{Affinity: "true"}, `affinity "true" is neither on nor off`},
		"the longest":     {keypool.PoolConfig{MaxWait: wait(time.Minute), Affinity: "on"}, ""},
		"nothing said":    {keypool.PoolConfig{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := keypool.NewKeyPool("test", tc.cfg)
			if tc.want == "" {
				assert.NoError(t, err)
				return
			}
			assert.EqualError(t, err, "keypool: provider test: "+tc.want)
		})
	}
}

func TestHowLongARequestWaits(t *testing.T) {
	for name, tc := range map[string]struct {
		maxWait *time.Duration
		need    time.Duration // until the key has refilled
		served  bool
	}{
		"by default, just":     {nil, 3 * time.Second, true},
		"by default, not":      {nil, 3*time.Second + time.Millisecond, false},
		"never":                {new(time.Duration), time.Millisecond, false},
		"a minute, if told so": {func() *time.Duration { d := time.Minute; return &d }(), 59 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: []keypool.KeyConfig{keyOf(0, 0, 0, 0)}, MaxWait: tc.maxWait})
				require.NoError(t, err)
				p.MarkKeyExhausted(p.Keys()[0].ID, 2*time.Minute)
				time.Sleep(2*time.Minute - tc.need)
				from := time.Now()
				_, err = p.Acquire(context.Background(), keypool.Demand{Class: opus})
				if tc.served {
					require.NoError(t, err)
					assert.Equal(t, tc.need, time.Since(from))
					return
				}
				assert.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
				assert.Zero(t, time.Since(from))
			})
		})
	}
}

func TestWithoutAffinityAConversationHasNoHome(t *testing.T) {
	for affinity, want := range map[string]int{keypool.AffinityOff: 50_000, keypool.AffinityOn: 0} {
		p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: []keypool.KeyConfig{keyOf(0, 0, 0, 0)}, Affinity: affinity})
		require.NoError(t, err)
		served(t, p, turnOf(1), nil)
		assert.InDelta(t, want, acquire(t, p, turnOf(1)).Held().Input, 5000, "affinity %s", affinity)
		assert.Len(t, p.Snapshot().Homes, map[bool]int{true: 1}[want == 0])
	}
}
