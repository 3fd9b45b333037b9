package admin_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/admin"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

func fail(up *router.Upstream, class string) {
	for range 5 {
		if done, ok := up.Lane(class).Allow(); ok {
			done(health.Failure)
		}
	}
}

func codes(s admin.Status) []string {
	all := []string{}
	for _, r := range s.Reasons {
		all = append(all, r.Code+" "+r.Provider)
	}
	return all
}

func TestStatus(t *testing.T) {
	kill := func(up *router.Upstream) {
		for _, k := range up.Pool.Keys() {
			up.Pool.MarkKeyDead(k.ID, keypool.ReasonUnauthorized)
		}
	}
	cool := func(up *router.Upstream) {
		for _, k := range up.Pool.Keys() {
			up.Pool.MarkKeyExhausted(k.ID, time.Minute)
		}
	}
	drain := func(w *world, up *router.Upstream) { w.draining[up] = true }
	for name, tc := range map[string]struct {
		happens func(w *world)
		want    string
		reasons []string
	}{
		"nothing":             {func(*world) {}, admin.Healthy, []string{}},
		"one key dead":        {func(w *world) { w.one.Pool.MarkKeyDead(idOf(keyA), keypool.ReasonSpent) }, admin.Degraded, []string{"keys_dead one"}},
		"one provider's dead": {func(w *world) { kill(w.one) }, admin.Degraded, []string{"keys_dead one"}},
		"all dead":            {func(w *world) { kill(w.one); kill(w.two) }, admin.Down, []string{"no_provider ", "keys_dead one", "keys_dead two"}},
		"all cooling":         {func(w *world) { cool(w.one); cool(w.two) }, admin.Down, []string{"no_provider ", "keys_cooling one", "keys_cooling two"}},
		"one class cools": {func(w *world) { w.one.Pool.MarkClassExhausted(idOf(keyA), "opus-5", time.Minute) }, admin.Degraded,
			[]string{"keys_cooling one"}},
		"shuts down":          {func(w *world) { w.stopping = true }, admin.Down, []string{"stopping "}},
		"drains":              {func(w *world) { drain(w, w.one) }, admin.Degraded, []string{"draining one"}},
		"all drain":           {func(w *world) { drain(w, w.one); drain(w, w.two) }, admin.Down, []string{"no_provider ", "draining one", "draining two"}},
		"dead and drains":     {func(w *world) { kill(w.one); drain(w, w.two) }, admin.Down, []string{"no_provider ", "keys_dead one", "draining two"}},
		"a breaker":           {func(w *world) { fail(w.one, "x"); w.one.Lane("y") }, admin.Degraded, []string{"breaker_open one"}},
		"a provider's":        {func(w *world) { fail(w.one, "x") }, admin.Degraded, []string{"breaker_open one"}},
		"all breakers":        {func(w *world) { fail(w.one, "x"); fail(w.two, "x") }, admin.Down, []string{"no_provider ", "breaker_open one", "breaker_open two"}},
		"held open":           {func(w *world) { w.one.Force("", health.Open, time.Minute) }, admin.Degraded, []string{"breaker_forced one"}},
		"held, and asked for": {func(w *world) { w.one.Force("", health.Open, time.Minute); w.one.Lane("x") }, admin.Degraded, []string{"breaker_forced one"}},
		"all are held open":   {func(w *world) { w.one.Force("", health.Open, time.Minute); w.two.Force("", health.Open, time.Minute) }, admin.Degraded, []string{"breaker_forced one", "breaker_forced two"}},
		"held for one class, and others fail": {func(w *world) {
			for _, up := range []*router.Upstream{w.one, w.two} {
				fail(up, "x")
				up.Lane("y")
				up.Force("y", health.Open, time.Minute)
			}
		}, admin.Down, []string{"no_provider ", "breaker_forced one", "breaker_open one", "breaker_forced two", "breaker_open two"}},
		"held closed":         {func(w *world) { w.one.Force("", health.Closed, time.Minute) }, admin.Healthy, []string{}},
		"let go":              {func(w *world) { w.one.Force("", health.Open, time.Minute); w.one.Unforce("") }, admin.Healthy, []string{}},
		"reload refused":      {func(w *world) { w.reload = &admin.LastReload{Error: "bad"} }, admin.Degraded, []string{"reload_failed "}},
		"reload well":         {func(w *world) { w.reload = &admin.LastReload{} }, admin.Healthy, []string{}},
		"breakers, one class": {func(w *world) { fail(w.one, "x"); fail(w.two, "x"); w.two.Lane("y") }, admin.Degraded, []string{"breaker_open one", "breaker_open two"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.happens(w)
			got := answered[admin.Status](t, w.do("GET", "/api/v1/status", w.viewer, ""))
			assert.Equal(t, tc.want, got.Status)
			assert.Equal(t, tc.reasons, codes(got))
			assert.Equal(t, "1.2.3", got.Version)
			for _, r := range got.Reasons {
				assert.NotEmpty(t, r.Message)
			}
			assert.Equal(t, got, answered[admin.Stats](t, w.do("GET", "/api/v1/stats", w.viewer, "")).Status)
		})
	}
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		lease, err := w.one.Pool.Acquire(context.Background(), keypool.Demand{Class: "opus-5", Bytes: 4000, MaxTokens: 100})
		require.NoError(t, err)
		defer lease.Settle(keypool.Usage{})
		w.one.Begin()
		w.two.Begin()
		w.two.Lane("opus-5").Hold(health.Open, time.Minute)
		w.two.Lane("b")
		w.two.Pool.MarkKeyDead(idOf(keyB), keypool.ReasonSpent)

		got := answered[admin.Stats](t, w.do("GET", "/api/v1/stats", w.viewer, ""))
		now := time.Now().UTC()
		assert.Equal(t, now, got.At)
		assert.Equal(t, int64(60), got.UptimeSeconds)
		assert.Equal(t, int64(2), got.InFlight)
		assert.Equal(t, admin.Totals{Requests: 5}, got.Totals)
		require.Len(t, got.Providers, 2)

		one := got.Providers[0]
		assert.Equal(t, "one", one.Name)
		assert.Equal(t, "least_loaded", one.Strategy)
		assert.Equal(t, admin.KeyCounts{Total: 2, Available: 2}, one.Keys)
		assert.Equal(t, []admin.Breaker{}, one.Breakers)
		require.Len(t, one.Classes, 2)
		assert.Equal(t, "", one.Classes[0].Class)
		opus := one.Classes[1]
		assert.Equal(t, "opus-5", opus.Class)
		assert.Equal(t, admin.Amounts{RPM: 200, ITPM: 20_000, OTPM: 2000}, opus.Limits)
		assert.Equal(t, 199, opus.Remaining.RPM)
		assert.Less(t, opus.Remaining.ITPM, 20_000)
		assert.Equal(t, admin.Tokens{Input: 14, Output: 6}, opus.Reserved)
		assert.Equal(t, 1, opus.InFlight)
		assert.Equal(t, []string{idOf(keyA), idOf(keyBoth)}, []string{opus.Keys[0].ID, opus.Keys[1].ID})
		assert.Equal(t, 1, opus.Keys[0].InFlight+opus.Keys[1].InFlight)
		assert.Equal(t, admin.Amounts{RPM: 100, ITPM: 10_000, OTPM: 1000}, opus.Keys[0].Limits)
		assert.Equal(t, admin.Tokens{Input: 7, Output: 3}, opus.Keys[0].Reserved)

		two := got.Providers[1]
		assert.Equal(t, admin.KeyCounts{Total: 2, Available: 1, Dead: 1}, two.Keys)
		assert.Equal(t, []admin.Breaker{
			{Class: "b", State: "closed"}, {Class: "opus-5", State: "open", Until: now.Add(time.Minute), Forced: true},
		}, two.Breakers)

		keys := answered[admin.Keys](t, w.do("GET", "/api/v1/keys", w.viewer, "")).Keys
		require.Len(t, keys, 4)
		assert.Equal(t, "one", keys[0].Provider)
		assert.Equal(t, 1, keys[0].InFlight+keys[1].InFlight)
		require.Len(t, keys[0].Classes, 1)
		assert.Equal(t, "opus-5", keys[0].Classes[0].Class)
		assert.Equal(t, opus.Keys[0], keys[0].Classes[0].KeyClass)
		assert.Equal(t, admin.Key{
			Provider: "two", ID: idOf(keyB), Priority: 1, Weight: 1, State: "dead", Until: keys[2].Until, Reason: "spent", Classes: []admin.KeyOfClass{},
		}, keys[2])
		assert.True(t, keys[2].Until.After(now))

		assert.Equal(t, got.Providers, answered[admin.Providers](t, w.do("GET", "/api/v1/providers", w.viewer, "")).Providers)
	})
}
