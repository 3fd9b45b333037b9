package proxy_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
	"cc-relay/internal/simulator"
)

// When providers failed in different ways, the client gets what tells it most.
func TestMixedFailures(t *testing.T) {
	leakFree(t)
	const (
		dry        = "429 dry"
		overloaded = "529"
		broken     = "500"
		forbidden  = "403"
		noModel    = "404"
		spentOut   = "spent"
		dead       = "401"
	)
	kinds := []string{dry, overloaded, broken, forbidden, noModel, spentOut, dead} // the first that applies wins
	fault := map[string]simulator.Fault{
		dry: limit429("7"), overloaded: status(529), broken: status(500), forbidden: status(403),
		noModel: worded(404, "model: x"), spentOut: status(402), dead: status(401),
	}
	want := map[string]struct {
		status int
		kind   string
	}{
		dry: {429, "rate_limit_error"}, overloaded: {529, "overloaded_error"}, broken: {500, "api_error"}, forbidden: {403, "permission_error"},
		noModel: {404, "not_found_error"}, spentOut: {429, "billing_error"}, dead: {502, "api_error"},
	}
	t.Run("all", func(t *testing.T) {
		for i, winner := range kinds {
			for _, loser := range kinds[i+1:] {
				for _, order := range [][2]string{{winner, loser}, {loser, winner}} {
					t.Run(strings.Join(order[:], ", then "), func(t *testing.T) {
						t.Parallel()
						a, b := newSim(t, "a", 1, fault[order[0]]), newSim(t, "b", 1, fault[order[1]])
						r := relayOf(t, a, b)
						requireError(t, r.do(call{body: ask(opus, false)}), want[winner].status, want[winner].kind)
					})
				}
			}
		}
	})
	t.Run("a connect failure counts as 502", func(t *testing.T) {
		down := upstream{keys: []string{keyOf("a", 1)}}
		down.Name, down.BaseURL = "a", nowhereURL(t)
		r := newRelay(t, setup{upstreams: []upstream{down, newSim(t, "b", 1, status(403)).upstream}})
		requireError(t, r.do(call{body: ask(opus, false)}), 502, "api_error")
	})
	t.Run("the last of the broken", func(t *testing.T) {
		r := relayOf(t, newSim(t, "a", 1, status(500)), newSim(t, "b", 1, status(504)))
		requireError(t, r.do(call{body: ask(opus, false)}), 504, "timeout_error")
	})
	t.Run("spent and dead keys", func(t *testing.T) {
		r := relayOf(t, newSim(t, "a", 3, key(1, status(401)), key(2, status(402)), key(3, status(401))))
		for range 2 {
			requireError(t, r.do(call{body: ask(opus, false)}), 429, "billing_error")
		}
	})
}

// At most four attempts may cost providers work, however many there are.
func TestAttemptsAreBounded(t *testing.T) {
	leakFree(t)
	for code, asked := range map[int]int{
		529: 4,
		500: 2, // one move for what is broken
		401: 6, // walked past
		429: 6,
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			var sims []*sim
			for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
				sims = append(sims, newSim(t, name, 1, status(code)))
			}
			r := relayOf(t, sims...)
			got := r.do(call{body: ask(opus, true)})
			require.GreaterOrEqual(t, got.status, 429)
			assert.Equal(t, itoa(asked), got.header.Get("X-Cc-Relay-Attempts"))
			for i, s := range sims {
				assert.Len(t, s.Seen(), min(1, max(0, asked-i)), "requests at provider %d", i+1)
			}
		})
	}
	t.Run("dead keys are walked past", func(t *testing.T) {
		var f []simulator.Fault
		for n := 1; n <= 10; n++ {
			f = append(f, key(n, status(401)))
		}
		a := newSim(t, "a", 11, f...)
		r := relayOf(t, a)
		requireServed(t, r.do(call{body: ask(opus, true)}), true)
		assert.Len(t, a.Seen(), 11)
	})
	t.Run("what walks past does not count", func(t *testing.T) {
		a := newSim(t, "a", 4, key(1, status(429)), key(2, status(401)), key(3, status(403)), key(4, status(529)))
		b := newSim(t, "b", 1, status(529))
		r := relayOf(t, a, b)
		requireError(t, r.do(call{body: ask(opus, true)}), 429, "rate_limit_error")
		assert.Equal(t, []string{"key-1", "key-2", "key-3", "key-4"}, a.keysSeen(), "nobody is asked again who said no")
		assert.Len(t, b.Seen(), 2)
	})
}

// Where no later provider can serve, the one that failed is asked once more; who
// has already said no is not.
func TestBackToTheOneThatFailed(t *testing.T) {
	leakFree(t)
	once := status(529)
	once.To = 1
	t.Run("all", func(t *testing.T) {
		for name, second := range map[string]simulator.Fault{
			"the other is dry":          limit429("60"),
			"the other refuses the key": status(401),
			"the other forbids it":      status(403),
			"the other lacks the model": worded(404, "model: x"),
			"the other is spent":        status(402),
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				a, b := newSim(t, "a", 1, once), newSim(t, "b", 1, second)
				r := relayOf(t, a, b)
				got := r.do(call{body: ask(opus, true)})
				requireServed(t, got, true)
				requirePause(t, got)
				assert.Len(t, a.Seen(), 2)
				assert.Len(t, b.Seen(), 1)
			})
			t.Run(name+", in vain", func(t *testing.T) {
				t.Parallel()
				a, b := newSim(t, "a", 1, status(529)), newSim(t, "b", 1, second)
				r := relayOf(t, a, b)
				require.NotEqual(t, 200, r.do(call{body: ask(opus, true)}).status)
				assert.Len(t, a.Seen(), 2)
				assert.Len(t, b.Seen(), 1, "nobody is asked again who said no")
			})
		}
		t.Run("but not to a key that refused", func(t *testing.T) {
			t.Parallel()
			a, b := newSim(t, "a", 2, key(1, status(403)), key(2, status(529))), newSim(t, "b", 1, status(401))
			r := relayOf(t, a, b)
			requireError(t, r.do(call{body: ask(opus, true)}), 529, "overloaded_error")
			assert.Equal(t, []string{"key-1", "key-2", "key-2"}, a.keysSeen())
		})
		t.Run("the other was dry before", func(t *testing.T) {
			t.Parallel()
			a, b := newSim(t, "a", 1, status(529)), newSim(t, "b", 1, limit429("60"))
			r := relayOf(t, a, b)
			requireError(t, r.do(call{body: ask(opus, true)}), 429, "rate_limit_error")
			require.NoError(t, a.SetFaults(faults(once)))
			got := r.do(call{body: ask(opus, true)})
			requireServed(t, got, true)
			requirePause(t, got)
			assert.Len(t, b.Seen(), 1)
		})
	})
}

// Two providers may be two doors to the same account: what one door refuses the
// other may let through.
func TestOneKeyAtTwoProviders(t *testing.T) {
	leakFree(t)
	a, b := newSim(t, "a", 1, status(429)), newSim(t, "a", 1)
	second := b.upstream
	second.Name = "b"
	r := newRelay(t, setup{upstreams: []upstream{a.upstream, second}})
	got := r.do(call{body: ask(opus, false)})
	requireServed(t, got, false)
	assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
}

// A failure that shows key material or tokens in its words does not pass them on.
func testSecretsInErrorBodies(t *testing.T) {
	leakFree(t)
	said := "bad key " + keyOf("a", 1) + ", bad key " + keyOf("a", 2) + ", bad token " + aliceToken + "."
	want := "bad key [redacted], bad key [redacted], bad token [redacted]."
	for _, code := range []int{400, 403, 404, 500, 529} {
		t.Run(itoa(code), func(t *testing.T) {
			f := worded(code, said)
			if code == 404 {
				f.Message = "model: " + said
			}
			r := relayOf(t, newSim(t, "a", 2, f))
			got := r.do(call{body: ask(opus, false)})
			assert.Equal(t, code, got.status)
			assert.Contains(t, got.body, want)
		})
	}
	t.Run("error event", func(t *testing.T) {
		f := errorFirst("invalid_request_error", said)
		r := relayOf(t, newSim(t, "a", 2, f))
		assert.Contains(t, r.do(call{body: ask(opus, true)}).body, want)
		f.AfterEvents = 3
		r = relayOf(t, newSim(t, "a", 2, f))
		got := r.do(call{body: ask(opus, true)})
		assert.Contains(t, got.body, "event: error\n")
		assert.Contains(t, got.body, want)
	})
}

// Secrets are taken out whole and as they are written, and nothing else is.
func TestWhatCountsAsASecret(t *testing.T) {
	leakFree(t)
	secrets := []string{"token-of-team", "token-of-team-blue", `quoted"and\slashed`, "12345678", "seven77"}
	for name, tt := range map[string]struct{ said, want string }{
		"alone":                    {"token-of-team", "[redacted]"},
		"the longer one":           {"token-of-team-blue", "[redacted]"},
		"in the middle":            {"atoken-of-teamz", "a[redacted]z"},
		"at the end":               {"the end: 12345678", "the end: [redacted]"},
		"twice, and another":       {"token-of-team token-of-team 12345678", "[redacted] [redacted] [redacted]"},
		"as JSON writes it":        {`quoted\"and\\slashed`, "[redacted]"},
		"the beginning of one":     {"token-of-tea 1234567 token-of", "token-of-tea 1234567 token-of"},
		"too short to be replaced": {"seven77", "seven77"},
		"in capitals":              {"TOKEN-OF-TEAM", "TOKEN-OF-TEAM"},
		"nothing of the kind":      {"token", "token"},
	} {
		t.Run(name, func(t *testing.T) {
			r := relayOf(t, newSim(t, "a", 1, bodied(400, `{"said":"`+tt.said+`"}`)))
			r.live.Secrets = nil
			for _, s := range secrets {
				r.live.Secrets = append(r.live.Secrets, secret.New(s))
			}
			r.handler.Swap(r.live)
			got := r.do(call{body: ask(opus, false)})
			require.Equal(t, 400, got.status)
			assert.Equal(t, `{"said":"`+tt.want+`"}`, got.body)
			// And where the text ends with it.
			assert.Equal(t, "/"+tt.want, r.do(call{method: "GET", path: "/" + url.PathEscape(tt.said)}).record["path"])
		})
	}
}

// What the provider says of its limits is learned for the class, and held to.
func TestLimitsAreLearnedFromAnswers(t *testing.T) {
	leakFree(t)
	a := startSim(t, "a", 0, simulator.Config{Organizations: []simulator.Organization{
		{ID: "org", Limits: simulator.Limits{RPM: 3, ITPM: 100_000, OTPM: 50_000}, Keys: []simulator.Key{{Key: keyOf("a", 1)}}},
	}})
	a.keys = []string{keyOf("a", 1)}
	r := relayOf(t, a)
	for range 3 {
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
	}
	got := r.do(call{body: ask(opus, false)})
	requireError(t, got, 429, "rate_limit_error")
	assert.Equal(t, "20", got.header.Get("Retry-After"), "a request refills in 20 s")
	assert.Len(t, a.Seen(), 3, "the provider was asked beyond its limit")
	var known keypool.ClassStats
	for _, c := range r.live.Router.Upstreams()[0].Pool.GetStats().Classes {
		if c.Class == keypool.ClassOf(opus) {
			known = c
		}
	}
	assert.Equal(t, 3, known.Limits.RPM)
	assert.Equal(t, 100_000, known.Limits.ITPM)
	assert.WithinDuration(t, time.Now().Add(time.Minute), known.Keys[0].RequestsReset, 5*time.Second)
}
