package proxy_test

import (
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/router"
	"cc-relay/internal/simulator"
)

// A key that is out is left alone: the next requests go to others, or are refused
// without asking.
func TestTroubleIsRemembered(t *testing.T) {
	lasts := func(tr trouble) bool {
		return tr.next == otherKey && tr.status != http.StatusForbidden && tr.wait != "1"
	}
	eachTrouble(t, lasts, func(t *testing.T, tr trouble, stream bool) {
		a := tr.start(t, 2, "1")
		r := relayOf(t, a)
		for range 4 {
			requireServed(t, r.do(call{body: ask(opus, stream)}), stream)
		}
		assert.Equal(t, []string{"key-1", "key-2", "key-2", "key-2", "key-2"}, a.keysSeen())

		b := tr.start(t, 1, "")
		r = relayOf(t, b)
		first := r.do(call{body: ask(opus, stream)})
		second := r.do(call{body: ask(opus, stream)})
		assert.Len(t, b.Seen(), 1, "the provider was asked again")
		assert.InDelta(t, 0, second.record["attempts"], 0)
		requireError(t, second, tr.status, tr.kind)
		assert.Equal(t, first.header.Get("X-Should-Retry"), second.header.Get("X-Should-Retry"))
		want := first.header.Get("Retry-After")
		if seconds, _ := strconv.Atoi(want); seconds > 3600 {
			want = "3600" // then the key is tried, whatever was said
		}
		assert.Equal(t, want, second.header.Get("Retry-After"))
		assert.Empty(t, second.header.Get("X-Cc-Relay-Key"), "no key was asked")
	})
}

// A pool that is dry does not ask its provider before the time it told the client
// is over, and does ask when it is.
func testCoolDowns(t *testing.T) {
	for header, tt := range map[string]struct {
		told   string
		cooled time.Duration
	}{
		"5":    {"5", 5 * time.Second},
		"2.5":  {"3", 2500 * time.Millisecond},
		"100":  {"60", 100 * time.Second},
		"180":  {"60", 180 * time.Second},
		"181":  {"181", 181 * time.Second},
		"200":  {"200", 200 * time.Second},
		"3600": {"3600", time.Hour},
		"9999": {"9999", time.Hour},
		"":     {"1", time.Second},
		"-4":   {"1", time.Second},
		"0":    {"1", time.Second},
		"soon": {"1", time.Second},

		"1000000000":                    {"2678400", time.Hour},
		"Sat, 01 Jan 2000 00:00:42 GMT": {"42", 42 * time.Second}, // when bubbles begin
	} {
		t.Run("retry-after "+header, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := limit429(header)
				f.To = 1
				b := newBubble(t, 1, unlimited, f)
				w := b.ask(ask(opus, false))
				require.Equal(t, 429, w.Code)
				assert.Equal(t, tt.told, w.Header().Get("Retry-After"))

				time.Sleep(tt.cooled - time.Millisecond)
				w = b.ask(ask(opus, false))
				require.Equal(t, 429, w.Code, "the pool is still dry")
				assert.Equal(t, "1", w.Header().Get("Retry-After"), "the time that is left")
				assert.Len(t, b.Seen(), 1, "the provider was asked while its key cools down")

				time.Sleep(time.Millisecond)
				require.Equal(t, 200, b.ask(ask(opus, false)).Code, "the cool-down is over")
			})
		})
	}
}

// Where the provider names no time, the client is told what the pool makes of it: that
// doubles with each refusal.
func testGuessedCoolDowns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, unlimited, limit429(""))
		for i, want := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
			w := b.ask(ask(opus, false))
			require.Equal(t, 429, w.Code)
			require.Len(t, b.Seen(), i+1, "what was told is over, and the provider was not asked")
			assert.Equal(t, itoa(want), w.Header().Get("Retry-After"), "refusal %d", i+1)
			time.Sleep(time.Duration(want) * time.Second)
		}
	})
}

// Nor is a provider waited for that names no time and cools for longer than another.
func testTheWaitIsForWhoHasRoomFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newPipes()
		limited := func(retryAfter string) act {
			return func(w http.ResponseWriter, r *http.Request, q asked) {
				w.Header().Set("Retry-After", retryAfter)
				answers(429)(w, r, q)
			}
		}
		a, b := network.actor(t, "a", limited("")), network.actor(t, "b", well)
		r := network.cast(t, router.Config{}, a, b)
		r.holdClosed("a", "b")
		for _, cools := range []time.Duration{time.Second, 2 * time.Second} {
			requireServed(t, r.do(call{body: ask(opus, false)}), false)
			time.Sleep(cools)
		}
		b.fares(limited("2"))
		start := time.Now()
		time.AfterFunc(time.Second, func() { b.fares(well) })
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		assert.Equal(t, 2*time.Second, time.Since(start))
		assert.Len(t, a.got(), 3)
		assert.Len(t, b.got(), 4)
	})
}

// The client is told the earliest of all keys and providers.
func testEveryKeyIsLimited(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 3, key(1, limit429("90")), key(2, limit429("20")), key(3, limit429("300")))
	b := newSim(t, "b", 1, limit429("40"))
	r := relayOf(t, a, b)
	for range 2 {
		got := r.do(call{body: ask(opus, false)})
		requireError(t, got, 429, "rate_limit_error")
		assert.Equal(t, "20", got.header.Get("Retry-After"))
	}
	assert.Equal(t, []string{"key-1", "key-2", "key-3"}, a.keysSeen())
	assert.Len(t, b.Seen(), 1)
	t.Run("a class of its own", func(t *testing.T) {
		require.NoError(t, a.SetFaults(nil))
		requireServed(t, r.do(call{body: ask(haiku, false)}), false)
		assert.Equal(t, 429, r.do(call{body: ask(opus, false)}).status)
	})
}

// One 403 says more about a request than about a key; two of different clients
// say that the key may not do this.
func testForbidden(t *testing.T) {
	leakFree(t)
	forbid := func(r *relay, token string) reply { return r.do(call{token: token, body: ask(opus, false)}) }
	t.Run("by one client: the key stays", func(t *testing.T) {
		a := newSim(t, "a", 1, status(403))
		r := relayOf(t, a)
		for range 3 {
			assert.Equal(t, 403, forbid(r, aliceToken).status)
		}
		assert.Len(t, a.Seen(), 3)
	})
	t.Run("by two clients: it is out for the class", func(t *testing.T) {
		a := newSim(t, "a", 1, status(403))
		r := relayOf(t, a)
		assert.Equal(t, 403, forbid(r, aliceToken).status)
		assert.Equal(t, 403, forbid(r, bobToken).status)
		got := forbid(r, aliceToken)
		requireError(t, got, 502, "api_error")
		assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
		assert.Len(t, a.Seen(), 2)
		require.NoError(t, a.SetFaults(nil))
		requireServed(t, r.do(call{body: ask(haiku, false)}), false)
	})
	t.Run("with a success between: the key stays", func(t *testing.T) {
		two := status(403)
		two.Every = 2
		a := newSim(t, "a", 1, two)
		r := relayOf(t, a)
		var got []int
		for _, token := range []string{aliceToken, aliceToken, bobToken, bobToken, aliceToken} {
			got = append(got, forbid(r, token).status)
		}
		assert.Equal(t, []int{403, 200, 403, 200, 403}, got)
	})
	t.Run("blaming the account: it is out at once", func(t *testing.T) {
		a := newSim(t, "a", 1, coded(403, "organization_on_hold"))
		r := relayOf(t, a)
		assert.Equal(t, 403, forbid(r, aliceToken).status)
		requireError(t, forbid(r, aliceToken), 502, "api_error")
		assert.Len(t, a.Seen(), 1)
	})
}

// An account that is spent is found out by a request that costs money, and by no other:
// those are served, and show nothing.
func testSpentKeysAreTriedByWhatCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spent := status(402)
		spent.Path, spent.To = "/v1/messages", 1
		network := newPipes()
		a := network.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{})}, Faults: faults(spent)})
		r := network.relay(t, a)
		free := []call{{path: "/v1/messages/count_tokens", body: ask(opus, false)}, listModels("")}
		requireError(t, r.do(call{body: ask(opus, false)}), 429, "billing_error")
		time.Sleep(time.Hour)
		for _, c := range free {
			requireError(t, r.do(c), 429, "billing_error")
		}
		require.Len(t, a.Seen(), 1)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		time.Sleep(time.Minute) // a list that could not be had is not asked for at once
		for _, c := range free {
			assert.Equal(t, 200, r.do(c).status, c.path)
		}
	})
}

func testUnknownModels(t *testing.T) {
	leakFree(t)
	a, b := startSim(t, "a", 1, simulator.Config{Models: []string{haiku}}), newSim(t, "b", 1)
	requireLacksOpus(t, a, b)
}

// requireLacksOpus checks that opus is asked for at a once, and then at b alone.
func requireLacksOpus(t *testing.T, a, b *sim) {
	t.Helper()
	r := relayOf(t, a, b)
	for range 3 {
		got := r.do(call{body: ask(opus, true)})
		requireServed(t, got, true)
		assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
	}
	assert.Len(t, a.Seen(), 1, "a provider that lacks a model is asked once")
	got := r.do(call{body: ask(haiku, true)})
	requireServed(t, got, true)
	assert.Equal(t, "a", got.header.Get("X-Cc-Relay-Provider"), "other models are not concerned")
}

func TestAModelNobodyKnows(t *testing.T) {
	leakFree(t)
	a, b := newSim(t, "a", 2), newSim(t, "b", 1)
	r := relayOf(t, a, b)
	for n := 1; n <= 2; n++ {
		got := r.do(call{body: ask("gpt-17", false)})
		e := requireError(t, got, 404, "not_found_error")
		assert.Equal(t, "model: gpt-17", e.Error.Message)
		assert.Len(t, a.Seen(), n, "when all are believed to lack it, asking is better than refusing")
		assert.Len(t, b.Seen(), n)
	}
}
