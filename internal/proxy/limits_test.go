package proxy_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/simulator"
)

// limitHeaders are the limits of the pool that an answer tells, by kind.
func limitHeaders(t *testing.T, h http.Header) map[string]poolLimit {
	t.Helper()
	got := map[string]poolLimit{}
	for name, values := range h {
		rest, ok := strings.CutPrefix(name, "Anthropic-Ratelimit-")
		if !ok {
			continue
		}
		at := strings.LastIndex(rest, "-")
		kind, what := strings.ToLower(rest[:at]), rest[at+1:]
		l := got[kind]
		var err error
		switch what {
		case "Limit":
			l.limit, err = strconv.Atoi(values[0])
		case "Remaining":
			l.remaining, err = strconv.Atoi(values[0])
		case "Reset":
			l.reset, err = time.Parse(time.RFC3339, values[0])
		default:
			t.Errorf("a header of no meaning: %s", name)
		}
		require.NoError(t, err, name)
		require.Len(t, values, 1, name)
		got[kind] = l
	}
	return got
}

type poolLimit struct {
	limit, remaining int
	reset            time.Time
}

// tenRequests are limits that are soon half used, so that the next key is tried.
func tenRequests(factor int) simulator.Limits {
	return simulator.Limits{RPM: 10 * factor, ITPM: 100_000 * factor, OTPM: 10_000 * factor}
}

// learned sends requests until every organization of a provider has told its
// limits, and returns the answer after that.
func learned(t *testing.T, r *relay, a *sim, c call, organizations int) reply {
	t.Helper()
	seen := map[string]bool{}
	for range 40 {
		got := r.do(c)
		require.Equal(t, 200, got.status, got.body)
		if len(seen) == organizations {
			return got
		}
		all := a.Seen()
		seen[all[len(all)-1].Org] = true
	}
	require.Len(t, seen, organizations, "organizations asked")
	return reply{}
}

// The limits a client is told are those of all organizations together, each once,
// as the provider itself would add them up.
func TestPoolLimits(t *testing.T) {
	for _, stream := range []bool{false, true} {
		t.Run("stream="+strconv.FormatBool(stream), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				two := owner("a", 1, tenRequests(1))
				two.Keys = append(two.Keys, simulator.Key{Key: keyOf("a", 3)})
				net := newPipes()
				a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{two, owner("a", 2, tenRequests(2))}})
				r := net.relay(t, a)
				c := call{body: ask(opus, stream)}
				first := r.do(c)
				assert.Empty(t, limitHeaders(t, first.header), "the others' limits are not known")

				got := limitHeaders(t, learned(t, r, a, c, 2).header)
				require.Len(t, got, 3)
				var requests, input, output simulator.Level
				for _, acc := range a.Snapshot(time.Now()).Accounts {
					for sum, one := range map[*simulator.Level]simulator.Level{&requests: acc.Levels.Requests, &input: acc.Levels.Input, &output: acc.Levels.Output} {
						sum.Limit += one.Limit
						sum.Remaining += one.Remaining
						if one.Full.After(sum.Full) {
							sum.Full = one.Full
						}
					}
				}
				for kind, want := range map[string]simulator.Level{"requests": requests, "input-tokens": input, "output-tokens": output} {
					assert.Equal(t, want.Limit, got[kind].limit, "%s limit", kind)
					assert.InDelta(t, want.Remaining, got[kind].remaining, 2000, "%s remaining", kind)
					assert.False(t, got[kind].reset.Before(time.Now().Truncate(time.Second)), "%s reset %s", kind, got[kind].reset)
				}
				assert.Equal(t, requests.Remaining, got["requests"].remaining)
				assert.WithinDuration(t, requests.Full, got["requests"].reset, 2*time.Second)
			})
		})
	}
}

// What is not known of all organizations is not said at all.
func TestPoolLimitsThatAreLeftOut(t *testing.T) {
	without := func(change func(*simulator.Limits)) simulator.Limits {
		l := tenRequests(1)
		change(&l)
		return l
	}
	none := simulator.Limits{}
	messages, counting, models := call{body: ask(opus, false)}, call{path: "/v1/messages/count_tokens", body: ask(opus, false)}, call{method: http.MethodGet, path: "/v1/models"}
	for name, tt := range map[string]struct {
		first, second simulator.Limits
		call          call
		want          []string
	}{
		"all are known":         {tenRequests(1), tenRequests(1), messages, []string{"requests", "input-tokens", "output-tokens"}},
		"one has no output":     {without(func(l *simulator.Limits) { l.OTPM = 0 }), tenRequests(1), messages, []string{"requests", "input-tokens"}},
		"another has no input":  {tenRequests(1), without(func(l *simulator.Limits) { l.ITPM = 0 }), messages, []string{"requests", "output-tokens"}},
		"none names any":        {none, none, messages, nil},
		"token counting":        {tenRequests(1), tenRequests(1), counting, []string{"requests"}},
		"the listing of models": {tenRequests(1), tenRequests(1), models, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one, two := owner("a", 1, tt.first), owner("a", 2, tt.second)
				one.CountTokensRPM, two.CountTokensRPM = 10, 10
				net := newPipes()
				a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{one, two}})
				if tt.call.method != "" { // listing takes no limits, though some are configured
					a.limits = keypool.KeyConfig{RPMLimit: 10, ITPMLimit: 1000, OTPMLimit: 1000}
				}
				r := net.relay(t, a)
				organizations := 2
				if tt.first == none || tt.call.method != "" {
					organizations = 1
				}
				got := limitHeaders(t, learned(t, r, a, tt.call, organizations).header)
				var kinds []string
				for kind, l := range got {
					kinds = append(kinds, kind)
					assert.Positive(t, l.limit, kind)
				}
				assert.ElementsMatch(t, tt.want, kinds)
			})
		})
	}
}

// An organization whose key is dead gives nothing, and is not counted.
func TestDeadKeysAreNoLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{owner("a", 1, tenRequests(1)), owner("a", 2, tenRequests(2))}})
		r := net.relay(t, a)
		c := call{body: ask(opus, false)}
		require.Equal(t, 30, limitHeaders(t, learned(t, r, a, c, 2).header)["requests"].limit)
		require.NoError(t, a.SetFaults(faults(key(2, status(401)))))
		time.Sleep(time.Minute)
		for range 8 {
			got := r.do(c)
			requireServed(t, got, false)
			if strings.Contains(r.log.String(), "key is out") {
				assert.Equal(t, 10, limitHeaders(t, got.header)["requests"].limit)
			}
		}
		assert.Contains(t, r.log.String(), "key is out", "the dead key was asked")
	})
}

// Only answers that serve tell limits.
func TestErrorsTellNoLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{RPM: 2, ITPM: 100_000, OTPM: 10_000})}})
		r := net.relay(t, a)
		good, bad := call{body: ask(opus, false)}, call{body: `{"model":"` + opus + `","max_tokens":1,"messages":[]}`}
		for _, tt := range []struct {
			call   call
			status int
			limits int
		}{{good, 200, 3}, {bad, 400, 0}, {good, 200, 3}, {good, 429, 0}} {
			got := r.do(tt.call)
			require.Equal(t, tt.status, got.status, got.body)
			assert.Len(t, limitHeaders(t, got.header), tt.limits)
		}
	})
}

// tooLarge is a prompt of 15,000 tokens.
var tooLarge = strings.Replace(ask(opus, false), "hello", strings.Repeat("four", 15_000), 1)

// oversizeRelay is a relay before keys whose limits it knows: 5,000 and 10,000
// input tokens a minute.
func oversizeRelay(t *testing.T, net *pipes, others []*sim, f ...simulator.Fault) (*relay, *sim) {
	a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{
		owner("a", 1, simulator.Limits{RPM: 2, ITPM: 5_000}), owner("a", 2, simulator.Limits{RPM: 4, ITPM: 10_000})}})
	a.maxWait = 3 * time.Second
	r := net.relay(t, append([]*sim{a}, others...)...)
	learned(t, r, a, call{body: ask(opus, false)}, 2)
	time.Sleep(2 * time.Minute) // all is full again
	require.NoError(t, a.SetFaults(f))
	return r, a
}

// A prompt larger than every limit is sent once, to the largest organization. If
// that refuses it, no wait will help, and the client is told so.
func TestPromptsLargerThanEveryLimit(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a := oversizeRelay(t, newPipes(), nil, limit429("30"))
			before := len(a.Seen())
			got := r.do(call{body: tooLarge})
			e := requireError(t, got, 429, "rate_limit_error")
			assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
			assert.Empty(t, got.header.Get("Retry-After"))
			assert.Contains(t, e.Error.Message, "10000 input tokens")
			assert.Regexp(t, `about 1[45]\d{3} tokens`, e.Error.Message)
			assert.Equal(t, []string{"key-2"}, a.keysSeen()[before:], "it is sent once, to the largest")

			require.NoError(t, a.SetFaults(nil))
			next := r.do(call{body: ask(opus, false)})
			requireServed(t, next, false)
			assert.Zero(t, waited(t, next), "its refusal cools nobody")
		})
	})
	t.Run("admitted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a := oversizeRelay(t, newPipes(), nil)
			before := len(a.Seen())
			requireServed(t, r.do(call{body: tooLarge}), false)
			assert.Equal(t, []string{"key-2"}, a.keysSeen()[before:])
			assert.Zero(t, a.sumOf(opus).Refused)
		})
	})
	t.Run("only by a full bucket", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a := oversizeRelay(t, newPipes(), nil)
			requireServed(t, r.do(call{body: tooLarge}), false)
			got := r.do(call{body: tooLarge})
			requireError(t, got, 429, "rate_limit_error")
			after, err := strconv.Atoi(got.header.Get("Retry-After"))
			require.NoError(t, err)
			assert.InDelta(t, 60, after, 30, "retry-after")
			assert.Empty(t, got.header.Get("X-Should-Retry"), "a wait helps here")
			time.Sleep(95 * time.Second) // a debt of 5,000, and the whole bucket
			requireServed(t, r.do(call{body: tooLarge}), false)
			assert.Zero(t, a.sumOf(opus).Refused, "429s of the provider")
		})
	})
	t.Run("another provider has larger limits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			b := net.sim(t, "b", simulator.Config{Organizations: []simulator.Organization{owner("b", 1, simulator.Limits{ITPM: 100_000})}})
			r, a := oversizeRelay(t, net, []*sim{b}, limit429("30"))
			before := len(a.Seen())
			got := r.do(call{body: tooLarge})
			requireServed(t, got, false)
			assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
			assert.Equal(t, []string{"key-2"}, a.keysSeen()[before:])
		})
	})
}

// Any max_tokens is free where a provider counts output as it is produced, and
// fits where it is reserved up to the whole limit.
func TestLargeMaxTokensOnASmallKey(t *testing.T) {
	for _, mode := range []simulator.OutputMode{simulator.OutputProduced, simulator.OutputReserved} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.sim(t, "a", simulator.Config{
					Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{RPM: 500, ITPM: 100_000, OTPM: 8_000})},
					Output:        mode, Speed: pace, Answers: simulator.Answers{MedianTokens: 40},
				})
				a.maxWait = 3 * time.Second
				r := net.relay(t, a)
				body := strings.Replace(ask(opus, true), `"max_tokens":64`, `"max_tokens":128000`, 1)
				for n := range 30 {
					got := r.do(call{body: body})
					requireServed(t, got, true)
					if mode == simulator.OutputProduced {
						assert.Zero(t, waited(t, got), "request %d", n+1)
					}
				}
				assert.Zero(t, a.sumOf(opus).Refused, "429s of the provider")
			})
		})
	}
}

// A picture of a megabyte is a prompt of some two thousand tokens: a key with little room
// serves it, and what follows.
func TestAPictureIsNoLongPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000})}})
		r := net.relay(t, a)
		requireServed(t, r.do(call{body: ask(opus, false)}), false) // the limits are known then
		picture := `{"model":"` + opus + `","max_tokens":64,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` +
			strings.Repeat("A", 1_333_333) + `"}},{"type":"text","text":"what is this?"}]}]}`
		for range 5 {
			requireServed(t, r.do(call{body: picture}), false)
		}
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		assert.Zero(t, a.sumOf(opus).Refused, "429s at the provider")
	})
}

// Requests in fast mode have limits of their own, learned from headers of their own, and
// are told of by those.
func TestFastModeHasLimitsOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		org := owner("a", 1, simulator.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000})
		org.Classes = map[string]simulator.Limits{"opus-5-5+fast": {RPM: 2, ITPM: 20_000, OTPM: 4000}}
		a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{org}})
		r := net.relay(t, a)
		fast := strings.Replace(ask(opus, false), "{", `{"speed":"fast",`, 1)
		for range 2 {
			got := r.do(call{body: fast})
			requireServed(t, got, false)
			assert.Equal(t, "20000", got.header.Get("Anthropic-Fast-Input-Tokens-Limit"))
			assert.Equal(t, "4000", got.header.Get("Anthropic-Fast-Output-Tokens-Limit"))
			assert.Equal(t, "2", got.header.Get("Anthropic-Ratelimit-Requests-Limit"))
			assert.Empty(t, got.header.Values("Anthropic-Ratelimit-Input-Tokens-Limit"))
			account, ok := r.handler.Explain(got.header.Get("X-Cc-Relay-Request-Id"))
			require.True(t, ok)
			assert.Equal(t, "opus-5-5+fast", account.Class)
		}
		requireError(t, r.do(call{body: fast}), 429, "rate_limit_error")
		got := r.do(call{body: ask(opus, false)})
		requireServed(t, got, false)
		assert.Equal(t, "30000", got.header.Get("Anthropic-Ratelimit-Input-Tokens-Limit"))
		assert.Empty(t, got.header.Values("Anthropic-Fast-Input-Tokens-Limit"))
		assert.Len(t, a.Seen(), 3, "what the pool refuses is not sent")
	})
}
