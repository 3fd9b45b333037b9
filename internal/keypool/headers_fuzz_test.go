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
)

// Laws: nothing but 0 and 1 s to 31 days; whole seconds mean what they say; numbers
// need no date, and a date shifts with the answer's.
func FuzzRetryAfter(f *testing.F) {
	const date = "Mon, 02 Nov 2026 10:00:00 GMT"
	for _, seed := range [][2]string{{"17", ""}, {"0.5", date}, {"-3", ""}, {"1e9", ""}, {"Inf", ""}, {"soon", "later"},
		{"Mon, 02 Nov 2026 10:00:30 GMT", date}, {"Sunday, 01-Nov-26 10:00:30 GMT", date}, {"0x1p4", ""}, {"  7", date}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, value, date string) {
		got := keypool.ParseRetryAfter(http.Header{"Retry-After": {value}, "Date": {date}})
		if got != 0 && (got < time.Second || got > 31*24*time.Hour) {
			t.Fatalf("retry-after %q, date %q: got %s, want 0 or 1 s to 31 days", value, date, got)
		}
		if n, err := strconv.ParseUint(value, 10, 32); err == nil {
			if want := time.Duration(min(max(n, 1), 31*24*3600)) * time.Second; got != want {
				t.Fatalf("retry-after %q: got %s, want %s", value, got, want)
			}
		}
		at, err := http.ParseTime(value)
		if err != nil {
			if alone := keypool.ParseRetryAfter(http.Header{"Retry-After": {value}}); alone != got {
				t.Fatalf("retry-after %q: got %s with a date, %s without", value, got, alone)
			}
			return
		}
		if from, err := http.ParseTime(date); err == nil {
			if want := min(max(at.Sub(from), time.Second), 31*24*time.Hour); got != want {
				t.Fatalf("retry-after %q, date %q: got %s, want %s", value, date, got, want)
			}
		} else if got != 0 {
			t.Fatalf("retry-after %q without a readable date %q: got %s, want 0", value, date, got)
		}
	})
}

// Laws, for any text in any header: a limit becomes a number within 1 and 1e9
// that the header carries, or stays; no level rises above what it was; a level
// is at most its limit; a readable remaining bounds the level; other classes and
// keys are untouched; and reading the same headers again changes nothing.
func FuzzRateHeaders(f *testing.F) {
	f.Add("50", "49", "2026-11-02T10:00:00Z", "30000", "29000", "8000", "Mon, 02 Nov 2026 10:00:00 GMT")
	f.Add("-1", "0", "x", "1000000001", "1000000000", "", "x")
	f.Add("+5", "007", "", "1", "2", "3", "")
	f.Fuzz(func(t *testing.T, requests, requestsLeft, reset, input, inputLeft, output, date string) {
		synctest.Test(t, func(t *testing.T) {
			keys, ids := keysOf(2, 60, 20_000, 0)
			p := newPool(t, "", keys...)
			lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 2_000, MaxTokens: 50, Exclude: ids[1:]})
			before, other, anyClass := of(t, p, opus, ids[0]), of(t, p, opus, ids[1]), p.Keys()
			h := http.Header{
				"Anthropic-Ratelimit-Requests-Limit": {requests}, "Anthropic-Ratelimit-Requests-Remaining": {requestsLeft}, "Anthropic-Ratelimit-Requests-Reset": {reset},
				"Anthropic-Ratelimit-Input-Tokens-Limit": {input}, "Anthropic-Ratelimit-Input-Tokens-Remaining": {inputLeft}, "Anthropic-Ratelimit-Input-Tokens-Reset": {reset},
				"Anthropic-Ratelimit-Output-Tokens-Limit": {output}, "Anthropic-Ratelimit-Output-Tokens-Remaining": {inputLeft}, "Date": {date},
			}
			require.NoError(t, p.UpdateClassFromHeaders(ids[0], opus, h))
			after := of(t, p, opus, ids[0])
			for _, b := range []struct {
				name, limit, remaining                           string
				limitBefore, levelBefore, limitAfter, levelAfter int
				held                                             int
			}{
				{"requests", requests, requestsLeft, before.Limits.RPM, before.Remaining.RPM, after.Limits.RPM, after.Remaining.RPM, 1},
				{"input", input, inputLeft, before.Limits.ITPM, before.Remaining.ITPM, after.Limits.ITPM, after.Remaining.ITPM, 500},
				{"output", output, inputLeft, before.Limits.OTPM, before.Remaining.OTPM, after.Limits.OTPM, after.Remaining.OTPM, 0},
			} {
				want := b.limitBefore
				if n, err := strconv.Atoi(b.limit); err == nil && n >= 1 && n <= 1_000_000_000 {
					want = n
				}
				if b.limitAfter != want {
					t.Fatalf("%s limit %q: got %d, want %d", b.name, b.limit, b.limitAfter, want)
				}
				most := min(b.levelBefore, want)
				if b.limitBefore == 0 {
					most = want - b.held
				}
				if want == 0 {
					most = 0
				}
				if n, err := strconv.Atoi(b.remaining); err == nil && n >= 0 && n <= 1_000_000_000 {
					most = min(most, n)
				}
				if b.levelAfter != most {
					t.Fatalf("%s: level %d after limit %q and remaining %q, want %d", b.name, b.levelAfter, b.limit, b.remaining, most)
				}
			}
			require.NoError(t, p.UpdateClassFromHeaders(ids[0], opus, h))
			assert.Equal(t, after, of(t, p, opus, ids[0]), "read again")
			assert.Equal(t, other, of(t, p, opus, ids[1]), "another key")
			assert.Equal(t, anyClass, p.Keys(), "another class")
			lease.Settle(keypool.Usage{})
			assert.Zero(t, of(t, p, opus, ids[0]).InFlight)
		})
	})
}
