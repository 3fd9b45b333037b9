package keypool

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is believed of a header: a limit above maxLimit and a wait
// outside minRetryAfter and maxRetryAfter are the sender's mistake or malice.
const (
	maxLimit      = 1_000_000_000
	minRetryAfter = time.Second
	maxRetryAfter = 31 * 24 * time.Hour // a monthly limit
)

// unseen marks a figure that the headers did not carry, or not readably.
const unseen = -1

// triple is what one limit's headers say. limit and remaining are unseen where
// absent or unreadable; reset is how long until the bucket is full, by the
// provider's own clock, and 0 where unknown.
type triple struct {
	limit, remaining int
	reset            time.Duration
}

// rateHeaders is what one answer says of its organization's buckets.
type rateHeaders struct {
	requests, input, output triple
	fastInput, fastOutput   triple // of fast mode; see of
}

// parseRateHeaders reads anthropic-ratelimit-{requests,input-tokens,output-tokens}-{limit,remaining,reset},
// and of fast mode anthropic-fast-{input-tokens,output-tokens}-… .
// Anything unreadable is as if it were absent. The reset is measured against the
// Date of the same answer, never against the local clock.
// Source: https://platform.claude.com/docs/en/api/rate-limits#response-headers.
func parseRateHeaders(h http.Header) rateHeaders {
	return rateHeaders{
		requests: parseTriple(h, "Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"),
		input:    parseTriple(h, "Anthropic-Ratelimit-Input-Tokens-Limit", "Anthropic-Ratelimit-Input-Tokens-Remaining", "Anthropic-Ratelimit-Input-Tokens-Reset"),
		output:   parseTriple(h, "Anthropic-Ratelimit-Output-Tokens-Limit", "Anthropic-Ratelimit-Output-Tokens-Remaining", "Anthropic-Ratelimit-Output-Tokens-Reset"),

		fastInput:  parseTriple(h, "Anthropic-Fast-Input-Tokens-Limit", "Anthropic-Fast-Input-Tokens-Remaining", "Anthropic-Fast-Input-Tokens-Reset"),
		fastOutput: parseTriple(h, "Anthropic-Fast-Output-Tokens-Limit", "Anthropic-Fast-Output-Tokens-Remaining", "Anthropic-Fast-Output-Tokens-Reset"),
	}
}

func parseTriple(h http.Header, limit, remaining, reset string) triple {
	t := triple{limit: parseAmount(h, limit, 1), remaining: parseAmount(h, remaining, 0)}
	at := headerValue(h, reset)
	if at == "" { // common, and an error costs an allocation
		return t
	}
	until, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return t
	}
	date, err := http.ParseTime(headerValue(h, "Date"))
	if err != nil {
		return t
	}
	t.reset = min(max(0, until.Sub(date)), time.Hour) // a bucket of one minute's limit is full long before
	return t
}

// headerValue is h.Get for a name in canonical form, without canonicalizing again.
func headerValue(h http.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func parseAmount(h http.Header, name string, least int) int {
	value := headerValue(h, name)
	if value == "" {
		return unseen
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > maxLimit {
		return unseen
	}
	return n
}

// ParseRetryAfter reads retry-after as seconds (also fractional) or as an HTTP
// date, which is measured against the Date of the same answer. The result lies
// within 1 s and 31 days; it is 0 where the header is absent, negative or
// unreadable. Source: RFC 9110 §10.2.3.
func ParseRetryAfter(h http.Header) time.Duration {
	value := strings.TrimSpace(headerValue(h, "Retry-After"))
	if seconds, err := strconv.ParseFloat(value, 64); err == nil {
		if math.IsNaN(seconds) || math.IsInf(seconds, 0) || seconds < 0 {
			return 0
		}
		return time.Duration(min(max(seconds, minRetryAfter.Seconds()), maxRetryAfter.Seconds()) * float64(time.Second))
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	date, err := http.ParseTime(headerValue(h, "Date"))
	if err != nil {
		return 0
	}
	return min(max(at.Sub(date), minRetryAfter), maxRetryAfter)
}
