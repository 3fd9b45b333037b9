package simulator

import (
	"net/http"
	"strconv"
	"time"
)

// Levels is what the buckets of one organization and model class hold at a moment.
type Levels struct {
	Requests, Input, Output Level
	Fast                    bool // of fast mode, whose headers have names of their own
}

// SetHeaders writes the rate-limit headers of the API for these levels: limit,
// remaining (of tokens rounded to the nearest thousand, never below zero) and
// reset (RFC 3339, when the bucket is full again). A bucket without a limit sends
// nothing. The plain tokens triple is input and output together, because the
// simulator has no workspace limits that could be tighter.
// Source: https://platform.claude.com/docs/en/api/rate-limits, and of fast mode
// https://platform.claude.com/docs/en/build-with-claude/fast-mode.
func (l Levels) SetHeaders(h http.Header) {
	setLevel(h, "Anthropic-Ratelimit-requests", l.Requests, 1)
	if l.Fast {
		setLevel(h, "Anthropic-Fast-input-tokens", l.Input, 1000)
		setLevel(h, "Anthropic-Fast-output-tokens", l.Output, 1000)
		return
	}
	setLevel(h, "Anthropic-Ratelimit-input-tokens", l.Input, 1000)
	setLevel(h, "Anthropic-Ratelimit-output-tokens", l.Output, 1000)
	setLevel(h, "Anthropic-Ratelimit-tokens", sum(l.Input, l.Output), 1000)
}

func setLevel(h http.Header, name string, l Level, round int) {
	if l.Limit == 0 {
		return
	}
	remaining := (max(l.Remaining, 0) + round/2) / round * round
	h.Set(name+"-limit", strconv.Itoa(l.Limit))
	h.Set(name+"-remaining", strconv.Itoa(remaining))
	h.Set(name+"-reset", ceilSecond(l.Full).UTC().Format(time.RFC3339))
}

func sum(a, b Level) Level {
	full := a.Full
	if b.Full.After(full) {
		full = b.Full
	}
	return Level{
		Limit:     a.Limit + b.Limit,
		Remaining: max(a.Remaining, 0) + max(b.Remaining, 0),
		Full:      full,
	}
}

func ceilSecond(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); whole.Before(t) {
		return whole.Add(time.Second)
	}
	return t
}

// ceilSeconds is d in whole seconds, rounded up: the form of retry-after.
func ceilSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}
