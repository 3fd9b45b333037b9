package keypool_test

import (
	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// Whatever an answer says, the key serves again, after no longer than its wait.
func TestContradictoryAnswers(t *testing.T) {
	const date = "Mon, 02 Nov 2026 10:00:00 GMT"
	start := ratelimit.Limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}
	for _, tc := range []struct {
		name   string
		header http.Header
		want   ratelimit.Limits // after a request of 1,000 tokens
	}{
		{"nothing", nil, ratelimit.Limits{RPM: 59, ITPM: 59_000, OTPM: 60_000}},
		{"negative", header("input-tokens-limit", "-5", "input-tokens-remaining", "-1", "requests-remaining", "-60"),
			ratelimit.Limits{RPM: 59, ITPM: 59_000, OTPM: 60_000}},
		{"huge", header("input-tokens-remaining", "99999999999999999999", "requests-limit", "1000000001"),
			ratelimit.Limits{RPM: 59, ITPM: 59_000, OTPM: 60_000}},
		{"more remaining than the limit", rateHeaders(60, 1000, 60_000, 1_000_000), ratelimit.Limits{RPM: 60, ITPM: 60_000, OTPM: 60_000}},
		{"a limit of zero", rateHeaders(0, 0, 0, 0, 0, 0), ratelimit.Limits{}},
		{"a tiny limit", rateHeaders(1, 1, 1, 1, 1, 1), ratelimit.Limits{RPM: 1, ITPM: 1, OTPM: 1}},
		{"nearly nothing remains, and is full at once", with(rateHeaders(60, 1, 60_000, 1, 60_000, 1), "2026-11-02T10:00:00.1Z", date), ratelimit.Limits{RPM: 1, ITPM: 1, OTPM: 1}},
		{"a reset long past", with(rateHeaders(60, 50, 60_000, 50_000, 60_000, 50_000), "2001-01-01T00:00:00Z", date), ratelimit.Limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},
		{"a reset far away", with(rateHeaders(60, 50, 60_000, 50_000, 60_000, 50_000), "2099-01-01T00:00:00Z", date), ratelimit.Limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},
		{"a reset in Unix seconds", with(rateHeaders(60, 50, 60_000, 50_000, 60_000, 50_000), "1793613642", date), ratelimit.Limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},
		{"a reset in seconds from now", with(rateHeaders(60, 50, 60_000, 50_000, 60_000, 50_000), "30s", date), ratelimit.Limits{RPM: 50, ITPM: 50_000, OTPM: 50_000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, start.RPM, start.ITPM, start.OTPM)
				p := newPool(t, "", k)
				lease := acquire(t, p, of1000Class())
				lease.Answered(200, tc.header)
				assert.Equal(t, tc.want, of(t, p, opus, k.ID()).Remaining)
				lease.Settle(keypool.Usage{Input: 1000, Output: 1})
				servesInTime(t, p, 90*time.Second)
			})
		})
	}
}

// with adds a reset to all three limits.
func with(h http.Header, reset, date string) http.Header {
	for _, kind := range []string{"Requests", "Input-Tokens", "Output-Tokens"} {
		h.Set("Anthropic-Ratelimit-"+kind+"-Reset", reset)
	}
	h.Set("Date", date)
	return h
}

// servesInTime has the pool serve a small request after the waits that it names, each
// at most this long.
func servesInTime(t *testing.T, p *keypool.KeyPool, most time.Duration) {
	t.Helper()
	d := keypool.Demand{Class: opus, Bytes: 40}
	from := time.Now()
	for range 3 {
		lease, err := p.Acquire(t.Context(), d)
		if err == nil {
			lease.Settle(keypool.Usage{})
			return
		}
		var exhausted *keypool.ExhaustedError
		require.ErrorAs(t, err, &exhausted)
		require.LessOrEqual(t, exhausted.RetryAfter, most)
		time.Sleep(exhausted.RetryAfter)
	}
	t.Fatalf("refused after waiting three times, %s", time.Since(from))
}

// Laws, for any text in any header of any answer: levels stay within limits; the
// next request is served after at most the time named; and nothing is left over.
func FuzzAnswered(f *testing.F) {
	const date = "Mon, 02 Nov 2026 10:00:00 GMT"
	f.Add(200, "60", "1", "60000", "1", "60000", "1", "2026-11-02T10:00:01Z", date, "org-1", 5000)
	f.Add(429, "60", "0", "60000", "0", "60000", "0", "2026-11-02T10:01:00Z", date, "", 0)
	f.Add(200, "", "7", "1", "9999", "3", "", "x", "x", "org-2", -1)
	f.Add(529, "1000000000", "1000000000", "1", "0", "2", "1", "2026-11-02T10:00:00.5Z", date, "o", 1<<40)
	f.Fuzz(func(t *testing.T, status int, requests, requestsLeft, input, inputLeft, output, outputLeft, reset, date, organization string, used int) {
		synctest.Test(t, func(t *testing.T) {
			keys, _ := keysOf(2, 60, 60_000, 60_000)
			p := newPool(t, keypool.StrategyRoundRobin, keys...)
			h := with(http.Header{
				"Anthropic-Ratelimit-Requests-Limit": {requests}, "Anthropic-Ratelimit-Requests-Remaining": {requestsLeft},
				"Anthropic-Ratelimit-Input-Tokens-Limit": {input}, "Anthropic-Ratelimit-Input-Tokens-Remaining": {inputLeft},
				"Anthropic-Ratelimit-Output-Tokens-Limit": {output}, "Anthropic-Ratelimit-Output-Tokens-Remaining": {outputLeft},
				"Anthropic-Organization-Id": {organization}, "Anthropic-Workspace-Id": {organization},
			}, reset, date)
			first, second := acquire(t, p, talk(1, 8000)), acquire(t, p, talk(2, 8000))
			time.Sleep(1500 * time.Millisecond)
			second.Answered(status, h)
			first.Answered(status, h)
			second.Produced(100)
			for _, c := range p.GetStats().Classes {
				for _, k := range c.Keys {
					if k.Remaining.RPM > k.Limits.RPM || k.Remaining.ITPM > k.Limits.ITPM || k.Remaining.OTPM > k.Limits.OTPM {
						t.Fatalf("levels %+v above the limits %+v", k.Remaining, k.Limits)
					}
				}
			}
			first.Settle(keypool.Usage{})
			second.Settle(keypool.Usage{Input: min(used, 3000), Output: min(used, 3000)})
			require.Zero(t, keypool.InnerOf(p), "under way at the end")
			least := 60_000
			for _, l := range classStats(t, p, opus).Keys {
				least = min(least, l.Limits.RPM*1000, l.Limits.ITPM, l.Limits.OTPM)
			}
			debt := time.Duration(10_000/least+2) * time.Minute // of both requests, by the smallest limit
			servesInTime(t, p, debt)
		})
	})
}

// The clock of a computer is set, and the machine sleeps.
func testClocksThatJump(t *testing.T) {
	k := keyOf(0, 60, 60_000, 60_000)
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	far := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, jump := range map[string]time.Time{"back an hour": now.Add(-time.Hour), "to the beginning": {}, "ahead an hour": now.Add(time.Hour), "to the end": far} {
		t.Run(name, func(t *testing.T) {
			p := patient(t, "", k)
			ask := func(at time.Time, d keypool.Demand) keypool.Lease {
				var turn keypool.Turn
				lease, wait, err := p.AcquireAt(at, d, &turn)
				for range 100 {
					if err != nil || wait == 0 {
						break
					}
					require.LessOrEqual(t, wait, 3*time.Second)
					at = at.Add(wait)
					lease, wait, err = p.AcquireAt(at, d, &turn)
				}
				p.Leave(&turn)
				require.Zero(t, wait)
				if err != nil {
					require.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
				}
				return lease
			}
			before := ask(now, talk(1, 80_000))
			require.NotEmpty(t, before.KeyID())
			_ = ask(now, talk(2, 160_000)) // too much is in use: it waits or is refused
			before.AnsweredAt(jump, 200, rateHeaders(60, 50, 60_000, 30_000, 60_000, 60_000))
			before.ProducedAt(jump, 100)
			before.LimitedAt(jump, 2*time.Second)
			before.SucceededAt(jump)
			before.SettleAt(jump, keypool.Usage{Input: 20_000, Output: 100})
			p.MarkKeyDeadAt(jump, k.ID(), keypool.ReasonUnauthorized)
			require.NoError(t, p.Release(k.ID()))
			d := talk(1, 84_000)
			d.Arrived = now
			ask(jump, d).SettleAt(now, keypool.Usage{})
			later := now.Add(2 * time.Minute)
			if jump.After(now) {
				later = jump.Add(2 * time.Minute)
			}
			assert.NotEmpty(t, ask(later, keypool.Demand{Class: opus, Bytes: 400}).KeyID(), "two minutes later it serves")
		})
	}
}

func TestAbsurdDemands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _ := keysOf(2, 60, 60_000, 60_000)
		p := newPool(t, "", keys...)
		for _, d := range []keypool.Demand{
			{Class: opus, Bytes: math.MaxInt, MaxTokens: math.MaxInt},
			{Class: opus, Bytes: math.MinInt, MaxTokens: math.MinInt},
			{Class: opus, Bytes: 100, Prefix: []keypool.Mark{{Hash: 1, Bytes: math.MaxInt, Life: math.MaxInt64}, {Hash: 2, Bytes: -1, Life: -1}}, Conversation: 1},
			{Class: opus, Bytes: 100, Prefix: make([]keypool.Mark, 1000), Conversation: 1},
			{Class: opus, Bytes: 100, Arrived: time.Now().Add(1000 * time.Hour)},
		} {
			for range 2 {
				lease, err := p.Acquire(t.Context(), d)
				if err == nil {
					lease.Answered(200, nil)
					lease.Settle(keypool.Usage{Input: 1})
				}
				require.Zero(t, keypool.InnerOf(p))
			}
		}
		time.Sleep(time.Minute)
		acquire(t, p, of1000Class())
	})
}
