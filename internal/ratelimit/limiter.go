// Package ratelimit keeps one account's requests and tokens inside a provider's
// limits a minute. It knows nothing of keys, models or HTTP, and it never waits:
// callers ask, and settle afterwards.
package ratelimit

// Tokens is what one request takes besides itself: uncached input tokens and
// output tokens. Negative values count as zero.
type Tokens struct{ Input, Output int }

// Limits are amounts a minute: requests, uncached input tokens, output tokens.
// 0 (and anything below) means that no limit is known, and none is enforced;
// anything above 1,000,000,000 counts as that.
type Limits struct{ RPM, ITPM, OTPM int }

// Usage is a limiter's state at one moment. The levels are what could be taken
// now; they are fractional because buckets refill continuously, negative while
// more was used than held, and 0 where no limit is known.
type Usage struct {
	Limits                  Limits
	Requests, Input, Output float64
	InFlight                int    // allowed and not settled
	Held                    Tokens // sum of the estimates in flight

	buckets Buckets // the same with their capacities
}

// RateLimiter decides whether a request may be sent now. Implementations are
// safe for concurrent use.
type RateLimiter interface {
	// Allow takes one request and holds est, all or nothing. It never waits.
	Allow(est Tokens) bool
	// Settle replaces the estimate of one allowed request by what it really
	// used; a bucket may go below zero. Call it once for each Allow that
	// returned true, with the same est.
	Settle(est, used Tokens)
	// SetLimit changes limits and keeps levels: a lower limit clamps, a higher
	// one only lets the level grow. A limit that was unknown starts full, less
	// what is in flight.
	SetLimit(Limits)
	// GetUsage returns limits and levels as they are now.
	GetUsage() Usage
}
