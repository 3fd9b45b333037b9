package proxy_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// dry starts a relay before two providers and spends what both have left, with a
// conversation that is at home at the first.
func dry(t *testing.T, first, second int, maxWait time.Duration) (r *relay, a, b *sim) {
	net := newPipes()
	a, b = net.slowSim(t, "a", first, maxWait), net.slowSim(t, "b", second, maxWait)
	r = net.relay(t, a, b)
	got := r.do(call{header: ofSession("at home"), body: cached(opus, "at home", false)})
	requireServed(t, got, false)
	require.Equal(t, "a", got.header.Get("X-Cc-Relay-Provider"))
	return r, a, b
}

// A cold request does not wait while another provider can serve it; a
// conversation waits for the one that has its prompt, if it is not for long.
func TestWaitingWithAnotherProvider(t *testing.T) {
	cold, warm := call{body: ask(opus, true)}, call{header: ofSession("at home"), body: cached(opus, "at home", true)}
	for name, tt := range map[string]struct {
		call  call
		first int // seconds until the first provider has room
		at    string
		waits time.Duration
	}{
		"a cold request goes on":                {cold, 1, "b", 0},
		"a conversation waits for its home":     {warm, 1, "a", time.Second},
		"its home has no room for all the time": {warm, 10, "b", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, _, _ := dry(t, tt.first, 1, 3*time.Second)
				got := r.do(tt.call)
				requireServed(t, got, true)
				assert.Equal(t, tt.at, got.header.Get("X-Cc-Relay-Provider"))
				assert.Equal(t, tt.waits, waited(t, got))
				if tt.waits > 0 {
					assert.Greater(t, got.record["cache_read_tokens"], 1900.)
				}
			})
		})
	}
}

// When all providers are dry, the request waits where there will be room first.
func TestWaitingWhereItIsShortest(t *testing.T) {
	for name, tt := range map[string]struct {
		first, second int // seconds
		maxWait       time.Duration
		at            string // "": refused
	}{
		"the second":        {2, 1, 3 * time.Second, "b"},
		"the first":         {1, 2, 3 * time.Second, "a"},
		"too long for both": {12, 10, 3 * time.Second, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, a, b := dry(t, tt.first, tt.second, tt.maxWait)
				requireServed(t, r.do(call{body: ask(opus, false)}), false)
				require.Len(t, b.Seen(), 1, "both are dry")
				shorter := time.Duration(min(tt.first, tt.second)) * time.Second
				got := r.do(call{body: ask(opus, true)})
				if tt.at == "" {
					requireError(t, got, 429, "rate_limit_error")
					assert.Equal(t, retryAfterOf(shorter), got.header.Get("Retry-After"))
					assert.Zero(t, waited(t, got))
				} else {
					requireServed(t, got, true)
					assert.Equal(t, tt.at, got.header.Get("X-Cc-Relay-Provider"))
					assert.Equal(t, shorter, waited(t, got))
				}
				assert.NotContains(t, append(a.statuses(), b.statuses()...), 429)
			})
		})
	}
}

func retryAfterOf(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// A refusal that was not foreseen is waited out, too, and max_wait is one budget
// for all the waiting of a request.
func TestOneBudgetOfWaiting(t *testing.T) {
	second := func(retryAfter string) simulator.Fault {
		f := limit429(retryAfter)
		f.Nth = 2
		return f
	}
	for name, tt := range map[string]struct {
		again  string        // retry-after of the refusal that follows the first wait
		waits  time.Duration // in all
		status int
	}{
		"within it":                    {"1", 2 * time.Second, 200},
		"at its end":                   {"2", 3 * time.Second, 200},
		"beyond it, though not itself": {"3", time.Second, 429},
		"far beyond it":                {"30", time.Second, 429},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.slowSim(t, "a", 1, 3*time.Second, second(tt.again))
				r := net.relay(t, a)
				requireServed(t, r.do(call{body: ask(opus, false)}), false)
				start := time.Now()
				got := r.do(call{body: ask(opus, false)})
				assert.Equal(t, tt.waits, waited(t, got))
				assert.Equal(t, tt.waits, time.Since(start))
				if tt.status == 429 {
					requireError(t, got, 429, "rate_limit_error")
					assert.Equal(t, tt.again, got.header.Get("Retry-After"))
					assert.Equal(t, []int{200, 429}, a.statuses())
					return
				}
				requireServed(t, got, false)
				assert.Equal(t, "2", got.header.Get("X-Cc-Relay-Attempts"))
				assert.Equal(t, []int{200, 429, 200}, a.statuses())
			})
		})
	}
}

// With two providers that both refuse, the one budget goes to the one that has
// room first.
func TestRefusalsOfTwoProvidersAreWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		once := func(retryAfter string) simulator.Fault {
			f := limit429(retryAfter)
			f.Nth = 1
			return f
		}
		net := newPipes()
		a, b := net.slowSim(t, "a", 1, 3*time.Second, once("20")), net.slowSim(t, "b", 1, 3*time.Second, once("2"))
		r := net.relay(t, a, b)
		got := r.do(call{body: ask(opus, true)})
		requireServed(t, got, true)
		assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
		assert.Equal(t, "3", got.header.Get("X-Cc-Relay-Attempts"))
		assert.Equal(t, 2*time.Second, waited(t, got))
		assert.Equal(t, []int{429}, a.statuses())
	})
}

// Where one key is full and another failed, the wait is for the full one: the
// failed one is not asked a third time.
func TestTheWaitIsNotForAKeyThatFailed(t *testing.T) {
	for name, fault := range map[string]simulator.Fault{"529": status(529), "403": status(403), "401": status(401), "402": status(402)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				full := limit429("2")
				full.Nth = 1
				net := newPipes()
				a := net.sim(t, "a", simulator.Config{
					Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{}), owner("a", 2, simulator.Limits{})},
					Faults:        faults(key(1, full), key(2, fault)),
				})
				a.maxWait = 3 * time.Second
				r := net.relay(t, a)
				got := r.do(call{body: ask(opus, false)})
				requireServed(t, got, false)
				seen := a.keysSeen()
				assert.Equal(t, "key-1", seen[len(seen)-1])
				assert.LessOrEqual(t, len(seen), 4, "keys: %v", seen)
				assert.Less(t, time.Duration(0), waited(t, got))
			})
		})
	}
}
