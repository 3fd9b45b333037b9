package simulator

import "time"

// Usage is what one answer cost, in tokens, as the API reports it.
type Usage struct {
	Input     int // input_tokens: after the last breakpoint
	CacheRead int // cache_read_input_tokens; no limit counts them
	Write5m   int // the part of cache_creation_input_tokens that lives 5 minutes
	Write1h   int // … and 1 hour
	Output    int
}

// Written is cache_creation_input_tokens.
func (u Usage) Written() int { return u.Write5m + u.Write1h }

// Uncached is what counts towards ITPM.
// Source: https://platform.claude.com/docs/en/api/rate-limits.
func (u Usage) Uncached() int { return u.Input + u.Written() }

// Call is one admitted request. Begin, Produce and End may be called from any
// goroutine, but belong to one request.
type Call struct {
	core           *Core
	org            *organization
	account        *account
	start          time.Time
	plan           plan
	held, reserved int
	levels         Levels
	output         int
	begun, ended   bool
}

// Levels is what the buckets held right after this request was admitted, which is
// what the headers of its answer say.
func (c *Call) Levels() Levels { return c.levels }

// Usage is the cost so far; all but Output is known from the start.
func (c *Call) Usage() Usage {
	c.core.mu.Lock()
	defer c.core.mu.Unlock()
	u := c.plan.usage
	u.Output = c.output
	return u
}

// Begin marks the first byte of the answer: what the request writes to the prompt
// cache exists from here on, and the estimate of its input is corrected.
func (c *Call) Begin(now time.Time) {
	c.core.mu.Lock()
	defer c.core.mu.Unlock()
	if c.begun || c.ended {
		return
	}
	c.begun = true
	c.account.input.take(now, c.plan.usage.Uncached()-c.held)
	c.org.cache.store(now, c.start, c.plan.write)
}

// Produce counts n tokens of output at the moment they are made. A reservation is
// used up first.
func (c *Call) Produce(now time.Time, n int) {
	c.core.mu.Lock()
	defer c.core.mu.Unlock()
	if c.ended {
		return
	}
	over := max(c.output+n-c.reserved, 0) - max(c.output-c.reserved, 0)
	c.account.output.take(now, over)
	c.output += n
	c.account.totals.Output += n
}

// End gives back what is left of the reservation; calls after the first do
// nothing. An answer that never began still costs its true input, but leaves
// nothing in the cache.
func (c *Call) End(now time.Time) {
	c.core.mu.Lock()
	defer c.core.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	if !c.begun {
		c.account.input.take(now, c.plan.usage.Uncached()-c.held)
	}
	c.account.output.take(now, -max(c.reserved-c.output, 0))
}
