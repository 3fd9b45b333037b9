package simulator_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

func timeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}

func TestSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := oneOrg(simulator.Limits{})
		cfg.KeepBodies = true
		cfg.Speed.FirstEvent = 3 * time.Second
		sim := newSim(t, cfg)
		r := request(http.MethodPost, "/v1/messages?beta=true", "k1", say("hi", false, 9))
		r.Header.Set("X-Claude-Code-Session-Id", "s1")
		start := time.Now()
		done := make(chan struct{})
		w := httptest.NewRecorder()
		go func() {
			defer close(done)
			sim.ServeHTTP(w, r)
		}()
		synctest.Wait()
		early := sim.Seen()[0]
		assert.False(t, early.Done)
		assert.Zero(t, early.Status)
		<-done

		got := sim.Seen()[0]
		assert.Equal(t, start, got.Time)
		assert.Equal(t, 3*time.Second, got.Duration)
		assert.Equal(t, []string{"POST", "/v1/messages?beta=true", "key-1", "org-a", "wrkspc_org-a", "claude-opus-5-5"},
			[]string{got.Method, got.Target, got.Key, got.Org, got.Workspace, got.Model})
		assert.Equal(t, "s1", got.Header.Get("X-Claude-Code-Session-Id"))
		assert.Equal(t, "k1", got.Header.Get("X-Api-Key"))
		assert.Equal(t, say("hi", false, 9), string(got.Body))
		assert.Equal(t, 200, got.Status)
		assert.Equal(t, simulator.Usage{Input: 3, Output: 9}, got.Usage)
		assert.Equal(t, w.Header().Get("Request-Id"), got.RequestID)
		assert.True(t, got.Done)
		assert.False(t, got.ClientLeft)
		assert.False(t, early.Done, "an earlier copy does not change")
	})
}

func TestSeenIsBounded(t *testing.T) {
	cfg := oneOrg(simulator.Limits{})
	cfg.MaxRecords = 3
	sim := newSim(t, cfg)
	assert.Empty(t, sim.Seen())
	for i := range 8 {
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, httptest.NewRequest(http.MethodGet, fmt.Sprintf("/%d", i), nil))
		var got []string
		for _, r := range sim.Seen() {
			assert.Nil(t, r.Body, "bodies are kept only when asked for")
			got = append(got, r.Target)
		}
		var want []string
		for j := max(i-2, 0); j <= i; j++ {
			want = append(want, fmt.Sprintf("/%d", j))
		}
		assert.Equal(t, want, got)
	}
}

func TestSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := replying(simulator.ReplyBlock{Text: "12345678"})
		cfg.Organizations[0].Limits = simulator.Limits{RPM: 2, ITPM: 30_000, OTPM: 6_000}
		cfg.Organizations = append(cfg.Organizations, simulator.Organization{ID: "org-b", Limits: simulator.Limits{RPM: 10, ITPM: 60_000, OTPM: 6_000}, Keys: []simulator.Key{{Key: "k2"}}})
		sim := newSim(t, cfg)
		b := body(`"messages":[{"role":"user","content":[` + blockJSON(bigText, mark) + `,` + blockJSON("abc", "") + `]}]`)
		assert.Equal(t, 200, post(sim, "k1", b).Code)
		assert.Equal(t, 200, post(sim, "k1", b).Code)
		assert.Equal(t, 429, post(sim, "k1", b).Code)
		time.Sleep(30 * time.Second)

		s := sim.Snapshot(time.Now())
		require.Len(t, s.Accounts, 2)
		a, idle := s.Accounts[0], s.Accounts[1]
		assert.Equal(t, []string{"org-a", "opus-5-5", "org-b", "opus-5-5"}, []string{a.Org, a.Class, idle.Org, idle.Class})
		assert.Equal(t, simulator.Totals{Offered: 3, Admitted: 2, Refused: 1, Input: 6, CacheRead: 1002, Written: 1002, Output: 4}, a.Totals)
		assert.Equal(t, simulator.Limits{RPM: 2, ITPM: 30_000, OTPM: 6_000}, a.Limits)
		assert.Equal(t, 1, a.Levels.Requests.Remaining)
		assert.Equal(t, simulator.Totals{}, idle.Totals, "an organization without traffic has its row")
		assert.Equal(t, 30*time.Second, s.At.Sub(s.Start))
	})
}

func TestCapacity(t *testing.T) {
	account := func(org string, l simulator.Limits, t simulator.Totals) simulator.Account {
		return simulator.Account{Org: org, Class: "opus-5", Limits: l, Totals: t}
	}
	limits := simulator.Limits{RPM: 60, ITPM: 30_000, OTPM: 6_000}
	tests := map[string]struct {
		accounts []simulator.Account
		want     simulator.Capacity
		used     float64
	}{
		"nothing asked for": {nil, simulator.Capacity{}, 0},
		"input is tightest": {
			[]simulator.Account{account("a", limits, simulator.Totals{Admitted: 10, Input: 20_000, Written: 10_000, CacheRead: 900_000, Output: 100})},
			simulator.Capacity{Kind: simulator.InputTokens, Served: 30_000, Available: 75_000}, 0.4,
		},
		"output is tightest": {
			[]simulator.Account{account("a", limits, simulator.Totals{Admitted: 10, Input: 20_000, Output: 15_000})},
			simulator.Capacity{Kind: simulator.OutputTokens, Served: 15_000, Available: 15_000}, 1,
		},
		"requests are tightest": {
			[]simulator.Account{account("a", limits, simulator.Totals{Admitted: 75, Input: 1, Output: 1})},
			simulator.Capacity{Kind: simulator.Requests, Served: 75, Available: 150}, 0.5,
		},
		"an idle organization halves it": {
			[]simulator.Account{account("a", limits, simulator.Totals{Input: 75_000}), account("b", limits, simulator.Totals{})},
			simulator.Capacity{Kind: simulator.InputTokens, Served: 75_000, Available: 150_000}, 0.5,
		},
		"a kind that one organization does not limit is left out": {
			[]simulator.Account{account("a", limits, simulator.Totals{Input: 75_000, Output: 600}), account("b", simulator.Limits{OTPM: 6_000}, simulator.Totals{})},
			simulator.Capacity{Kind: simulator.OutputTokens, Served: 600, Available: 30_000}, 0.02,
		},
		"no limits at all": {
			[]simulator.Account{account("a", simulator.Limits{}, simulator.Totals{Input: 75_000})},
			simulator.Capacity{}, 0,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := simulator.Snapshot{Start: epoch, At: epoch.Add(2 * time.Minute), StartLevel: 0.5, Accounts: tt.accounts}
			got := s.Capacity("opus-5")
			assert.Equal(t, tt.want, got)
			assert.InDelta(t, tt.used, got.Used(), 1e-9)
			assert.Zero(t, s.Capacity("another"))
		})
	}
}

// Everything at once, for the race detector; what is counted must add up.
func TestManyClientsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := simulator.DefaultConfig()
		cfg.Speed = simulator.Speed{FirstEvent: 200 * time.Millisecond, EventsPerSecond: 50}
		cfg.Faults = []simulator.Fault{
			{Kind: simulator.FaultStatus, Status: 529, Every: 11},
			{Kind: simulator.FaultStall, AfterEvents: 5, Duration: time.Second, Every: 7},
			{Kind: simulator.FaultErrorEvent, AfterEvents: 3, Every: 13},
		}
		sim := newSim(t, cfg)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				for range 40 {
					ctx, cancel := timeout(t, time.Duration(rng.IntN(20_000))*time.Millisecond)
					key := fmt.Sprintf("sim-key-%d", 1+rng.IntN(3))
					r := request(http.MethodPost, "/v1/messages", key, say("hi", rng.IntN(2) == 0, 400)).WithContext(ctx)
					sim.ServeHTTP(httptest.NewRecorder(), r)
					cancel()
					sim.Seen()
					sim.Snapshot(time.Now())
				}
			})
		}
		wg.Wait()
		var got, want simulator.Totals
		for _, a := range sim.Snapshot(time.Now()).Accounts {
			got.Admitted += a.Admitted
			got.Refused += a.Refused
			got.Input += a.Input
			got.Output += a.Output
		}
		for _, r := range sim.Seen() {
			assert.True(t, r.Done)
			if r.Status == 429 {
				want.Refused++
			} else if r.Status != 529 {
				want.Admitted++
			}
			want.Input += r.Usage.Input
			want.Output += r.Usage.Output
		}
		assert.Equal(t, want, got)
		assert.Len(t, sim.Seen(), 8*40)
	})
}
