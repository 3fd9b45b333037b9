package keypool_test

import (
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

func TestHeadersTeachLimitsAndLevels(t *testing.T) {
	for _, tc := range []struct {
		name              string
		configured        ratelimit.Limits
		header            http.Header
		limits, remaining ratelimit.Limits
	}{
		{"unknown limits are learned", ratelimit.Limits{}, rateHeaders(50, 40, 30_000, 20_000, 8000, 7000),
			ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, ratelimit.Limits{RPM: 40, ITPM: 20_000, OTPM: 7000}},
		{"a higher limit replaces, and keeps the level", ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, rateHeaders(1000, 999, 450_000, 449_000, 90_000, 90_000),
			ratelimit.Limits{RPM: 1000, ITPM: 450_000, OTPM: 90_000}, ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}},
		{"a lower limit replaces, and clamps", ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, rateHeaders(5, 5, 300, 300, 80, 80),
			ratelimit.Limits{RPM: 5, ITPM: 300, OTPM: 80}, ratelimit.Limits{RPM: 5, ITPM: 300, OTPM: 80}},
		{"remaining lowers", ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, rateHeaders(50, 3, 30_000, 1000, 8000, 0),
			ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, ratelimit.Limits{RPM: 3, ITPM: 1000, OTPM: 0}},
		{"remaining without a limit lowers what is known", ratelimit.Limits{RPM: 50}, header("requests-remaining", "3", "input-tokens-remaining", "3"),
			ratelimit.Limits{RPM: 50}, ratelimit.Limits{RPM: 3}},
		{"a limit without remaining", ratelimit.Limits{}, header("requests-limit", "50"),
			ratelimit.Limits{RPM: 50}, ratelimit.Limits{RPM: 50}},
		{"one kind says nothing of the others", ratelimit.Limits{RPM: 50}, rateHeaders(50, 49),
			ratelimit.Limits{RPM: 50}, ratelimit.Limits{RPM: 49}},
		{"no headers", ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, http.Header{},
			ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}, ratelimit.Limits{RPM: 50, ITPM: 30_000, OTPM: 8000}},
		{"the most restrictive limit is another kind", ratelimit.Limits{RPM: 50}, header("tokens-limit", "7", "tokens-remaining", "0"),
			ratelimit.Limits{RPM: 50}, ratelimit.Limits{RPM: 50}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, tc.configured.RPM, tc.configured.ITPM, tc.configured.OTPM)
				p := newPool(t, "", k)
				require.NoError(t, p.UpdateKeyFromHeaders(k.ID(), tc.header))
				assert.Equal(t, tc.limits, p.Keys()[0].Limits, "limits")
				assert.Equal(t, tc.remaining, p.Keys()[0].Remaining, "remaining")
			})
		})
	}
}

// header makes rate-limit headers of pairs of name and value.
func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Set("anthropic-ratelimit-"+pairs[i], pairs[i+1])
	}
	return h
}

func TestUnreadableHeadersChangeNothing(t *testing.T) {
	for _, value := range []string{"", " ", "-1", "-9223372036854775808", "1000000001", "9223372036854775807", "99999999999999999999",
		"4.5", "1e3", "0x10", "many", "50 ", " 50", "50,50", "５０", "\x00", "NaN", "+Inf"} {
		t.Run(strconv.Quote(value), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 60, 30_000, 8000)
				p := newPool(t, "", k)
				before := p.Keys()
				for _, kind := range []string{"requests", "input-tokens", "output-tokens"} {
					h := header(kind+"-limit", value, kind+"-remaining", value, kind+"-reset", value)
					h.Set("Date", "Mon, 02 Nov 2026 10:00:00 GMT")
					require.NoError(t, p.UpdateKeyFromHeaders(k.ID(), h))
				}
				assert.Equal(t, before, p.Keys())
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // a limit of zero is no limit that anybody has; nothing remaining is common
		k := keyOf(0, 60, 0, 0)
		p := newPool(t, "", k)
		require.NoError(t, p.UpdateKeyFromHeaders(k.ID(), rateHeaders(0, 0)))
		assert.Equal(t, ratelimit.Limits{RPM: 60}, p.Keys()[0].Limits)
		assert.Equal(t, ratelimit.Limits{}, p.Keys()[0].Remaining)
	})
}

// The answer is older than what was sent since: its remaining must not give back
// what others hold.
func TestRemainingNeverRaises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 50, 30_000, 8000)
		p := newPool(t, "", k)
		for range 5 {
			acquire(t, p, keypool.Demand{Class: opus, Bytes: 8_000, MaxTokens: 400})
		}
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(50, 49, 30_000, 29_000, 8000, 8000)))
		assert.Equal(t, ratelimit.Limits{RPM: 45, ITPM: 20_000, OTPM: 8000}, of(t, p, opus, k.ID()).Remaining)
	})
}

func TestLimitsLearnedInFlightStartLessWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keyOf(0, 0, 0, 0)
		p := newPool(t, "", k)
		lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 8_000, MaxTokens: 400})
		acquire(t, p, keypool.Demand{Class: opus, Bytes: 12_000, MaxTokens: 400})
		require.NoError(t, p.UpdateClassFromHeaders(k.ID(), opus, rateHeaders(50, 49, 30_000, 28_000, 8000, 8000)))
		assert.Equal(t, ratelimit.Limits{RPM: 48, ITPM: 25_000, OTPM: 8000}, of(t, p, opus, k.ID()).Remaining)
		lease.Settle(keypool.Usage{Input: 500, Output: 900})
		assert.Equal(t, ratelimit.Limits{RPM: 48, ITPM: 26_500, OTPM: 7100}, of(t, p, opus, k.ID()).Remaining)
	})
}

// A reset is a time by the provider's clock; ours may be hours off.
func TestResetIsMeasuredAgainstTheAnswersDate(t *testing.T) {
	for _, tc := range []struct {
		name, date, reset string
		want              time.Duration // from now; 0: unknown
	}{
		{"in the future", "Mon, 02 Nov 2026 10:00:00 GMT", "2026-11-02T10:00:42Z", 42 * time.Second},
		{"with an offset", "Mon, 02 Nov 2026 10:00:00 GMT", "2026-11-02T12:00:42+02:00", 42 * time.Second},
		{"with fractions", "Mon, 02 Nov 2026 10:00:00 GMT", "2026-11-02T10:00:00.25Z", 250 * time.Millisecond},
		{"already past", "Mon, 02 Nov 2026 10:00:00 GMT", "2026-11-02T09:59:59Z", 0},
		{"far away is an hour", "Mon, 02 Nov 2026 10:00:00 GMT", "2099-01-01T00:00:00Z", time.Hour},
		{"without a date", "", "2026-11-02T10:00:42Z", 0},
		{"an unreadable date", "yesterday", "2026-11-02T10:00:42Z", 0},
		{"Unix seconds are another header's", "Mon, 02 Nov 2026 10:00:00 GMT", "1793613642", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := keyOf(0, 50, 0, 0)
				p := newPool(t, "", k)
				h := header("requests-reset", tc.reset)
				if tc.date != "" {
					h.Set("Date", tc.date)
				}
				require.NoError(t, p.UpdateKeyFromHeaders(k.ID(), h))
				want := time.Time{}
				if tc.want > 0 {
					want = time.Now().Add(tc.want)
				}
				got := p.Keys()[0]
				assert.True(t, want.Equal(got.RequestsReset), "got %s, want %s", got.RequestsReset, want)
				assert.Zero(t, got.InputReset)
				assert.Zero(t, got.OutputReset)
			})
		})
	}
}

func TestUnknownKeys(t *testing.T) {
	p := newPool(t, "", keyOf(0, 50, 0, 0))
	require.ErrorIs(t, p.UpdateKeyFromHeaders("nobody", rateHeaders(1, 0)), keypool.ErrKeyNotFound)
	require.ErrorIs(t, p.UpdateClassFromHeaders("", opus, rateHeaders(1, 0)), keypool.ErrKeyNotFound)
	p.MarkKeyExhausted("nobody", time.Hour)
	p.MarkClassExhausted("nobody", opus, time.Hour)
	p.MarkKeyDead("nobody", keypool.ReasonSpent)
	p.MarkKeyForbidden("nobody", opus, "client", true)
	assert.Zero(t, p.GetEarliestResetTime())
	assert.Len(t, p.GetStats().Classes, 1, "nor is a class made for it")
}

func retryAfter(value, date string) http.Header {
	h := http.Header{}
	if value != "" {
		h.Set("Retry-After", value)
	}
	if date != "" {
		h.Set("Date", date)
	}
	return h
}

func TestParseRetryAfter(t *testing.T) {
	const date = "Mon, 02 Nov 2026 10:00:00 GMT"
	for _, tc := range []struct {
		name, value, date string
		want              time.Duration
	}{
		{"absent", "", "", 0},
		{"seconds", "17", "", 17 * time.Second},
		{"with spaces", " 17 ", "", 17 * time.Second},
		{"fractional", "2.5", "", 2500 * time.Millisecond},
		{"less than a second", "0.2", "", time.Second},
		{"zero", "0", "", time.Second},
		{"negative", "-1", "", 0},
		{"an hour", "3600", "", time.Hour},
		{"more than an hour", "3601", "", 3601 * time.Second},
		{"a billion", "1000000000", "", 31 * 24 * time.Hour},
		{"1e9", "1e9", "", 31 * 24 * time.Hour},
		{"too large for a float", "1e999", "", 0},
		{"infinite", "Inf", "", 0},
		{"not a number", "NaN", "", 0},
		{"garbage", "soon", date, 0},
		{"two values", "5, 6", date, 0},
		{"a date", "Mon, 02 Nov 2026 10:00:30 GMT", date, 30 * time.Second},
		{"an RFC 850 date", "Monday, 02-Nov-26 10:00:30 GMT", date, 30 * time.Second},
		{"a date in the past", "Mon, 02 Nov 2026 09:00:00 GMT", date, time.Second},
		{"a date far away", "Mon, 02 Nov 2099 10:00:00 GMT", date, 31 * 24 * time.Hour},
		{"a date without the answer's", "Mon, 02 Nov 2026 10:00:30 GMT", "", 0},
		{"a date against garbage", "Mon, 02 Nov 2026 10:00:30 GMT", "now", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			assert.Equal(t, tc.want, keypool.ParseRetryAfter(retryAfter(tc.value, tc.date)))
		})
	}
}
