package proxy_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/ratelimit"
	"cc-relay/internal/simulator"
)

// An error event counts for its key as the status of its type would: the next
// request meets what a 429 or a 401 would have left.
func testErrorEvents(t *testing.T) {
	leakFree(t)
	for kind, tt := range map[messages.ErrorType]struct {
		status int
		kind   string
	}{
		messages.RateLimit:      {429, "rate_limit_error"},
		messages.Authentication: {502, "api_error"},
		messages.Billing:        {429, "billing_error"},
		messages.Overloaded:     {200, ""},
		messages.InvalidRequest: {200, ""},
		messages.Permission:     {200, ""},
		messages.APIError:       {200, ""},
	} {
		t.Run(string(kind), func(t *testing.T) {
			a := newSim(t, "a", 1, simulator.Fault{Kind: simulator.FaultErrorEvent, AfterEvents: 4, ErrorType: kind, Nth: 1})
			r := relayOf(t, a)
			first := r.do(call{body: ask(opus, true)})
			assert.Equal(t, "broken", first.record["outcome"])
			next := r.do(call{body: ask(opus, true)})
			if tt.kind == "" {
				requireServed(t, next, true)
				return
			}
			requireError(t, next, tt.status, tt.kind)
			assert.Len(t, a.Seen(), 1)
		})
	}
}

// A delta need not be a token: what counts is what the end of a stream says.
func TestTheLastUsageCounts(t *testing.T) {
	leakFree(t)
	up := newRaw(t, "a", say(sseHead+startFrame+strings.Repeat(deltaFrame, 20)+usageFrame+stopFrame))
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	rec := r.do(call{body: ask(opus, true)}).record
	assert.InDelta(t, 7, rec["output_tokens"], 0)
	assert.InDelta(t, 11, rec["input_tokens"], 0)
}

// Usage goes to the log and to the key's buckets as the provider counted it. In
// the bubble no time passes, so nothing refills.
func TestUsageIsSettledAsCounted(t *testing.T) {
	cached := func(stream bool) string {
		system := `"system":[{"type":"text","text":"` + strings.Repeat("rule ", 2000) + `","cache_control":{"type":"ephemeral"}}],"messages"`
		return strings.Replace(ask(opus, stream), `"messages"`, system, 1)
	}
	for name, tt := range map[string]struct {
		stream bool
		fault  []simulator.Fault
		status int
		deltas int // tokens of output known from the deltas alone; 0: all is known
	}{
		"JSON":                   {stream: false, status: 200},
		"stream":                 {stream: true, status: 200},
		"cut after two deltas":   {stream: true, fault: faults(simulator.Fault{Kind: simulator.FaultCut, AfterEvents: 5}), status: 200, deltas: 2},
		"error after two deltas": {stream: true, fault: faults(simulator.Fault{Kind: simulator.FaultErrorEvent, AfterEvents: 5}), status: 200, deltas: 2},
		"cut before the end":     {stream: true, fault: faults(simulator.Fault{Kind: simulator.FaultNoStop}), status: 200},
		"refused":                {stream: true, fault: faults(status(400)), status: 400},
		"no answer":              {stream: true, fault: faults(status(403)), status: 403},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const limit = 1_000_000
				b := newBubble(t, 1, keypool.KeyConfig{RPMLimit: limit, ITPMLimit: limit, OTPMLimit: limit}, tt.fault...)
				var input, output int
				for n := 1; n <= 3; n++ {
					require.Equal(t, tt.status, b.ask(cached(tt.stream)).Code)
					rec, theirs := b.log.next(t), b.Seen()[n-1].Usage
					assert.InDelta(t, theirs.Input, rec["input_tokens"], 0, "input")
					assert.InDelta(t, theirs.Written(), rec["cache_write_tokens"], 0, "cache write")
					assert.InDelta(t, theirs.CacheRead, rec["cache_read_tokens"], 0, "cache read")
					if tt.deltas > 0 {
						theirs.Output = tt.deltas
					}
					assert.InDelta(t, theirs.Output, rec["output_tokens"], 0, "output")
					assert.Equal(t, tt.fault != nil && tt.status == 200, rec["partial"])
					input, output = input+theirs.Uncached(), output+theirs.Output
				}
				admitted := 3
				if tt.status != 200 { // what was not admitted is no request, either
					admitted = 0
				}
				for _, c := range b.pool.GetStats().Classes {
					if c.Class == keypool.ClassOf(opus) {
						assert.Equal(t, ratelimit.Limits{RPM: limit - admitted, ITPM: limit - input, OTPM: limit - output}, c.Remaining)
						assert.Zero(t, c.InFlight)
					}
				}
			})
		})
	}
}
