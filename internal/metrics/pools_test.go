package metrics_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/metrics"
)

func scrapePools(t *testing.T, p ...metrics.Pool) map[string]float64 {
	_, got := scrape(t, metrics.New(metrics.Options{Pools: func() []metrics.Pool { return p }}).Handler())
	return got
}

func TestPools(t *testing.T) {
	got := scrapePools(t, pools...)
	for metric, want := range map[string]map[string]float64{
		"cc_relay_key_limit": {
			`{class="opus-5",key="0a1b",kind="requests",provider="anthropic"}`:      50,
			`{class="opus-5",key="0a1b",kind="output_tokens",provider="anthropic"}`: 8000,
		},
		"cc_relay_key_remaining": {
			`{class="opus-5",key="0a1b",kind="requests",provider="anthropic"}`:      49,
			`{class="opus-5",key="0a1b",kind="output_tokens",provider="anthropic"}`: -20,
		},
		"cc_relay_key_requests_in_flight": {
			`{class="opus-5",key="0a1b",provider="anthropic"}`: 2,
			`{class="opus-5",key="2c3d",provider="anthropic"}`: 0,
		},
		"cc_relay_key_reserved_tokens": {
			`{class="opus-5",key="0a1b",kind="input_tokens",provider="anthropic"}`:  900,
			`{class="opus-5",key="0a1b",kind="output_tokens",provider="anthropic"}`: 80,
			`{class="opus-5",key="2c3d",kind="input_tokens",provider="anthropic"}`:  0,
			`{class="opus-5",key="2c3d",kind="output_tokens",provider="anthropic"}`: 0,
		},
		"cc_relay_key_cooldown_seconds": {
			`{class="opus-5",key="0a1b",provider="anthropic"}`: 1.5,
			`{class="opus-5",key="2c3d",provider="anthropic"}`: 0,
		},
		"cc_relay_key_dead": {
			`{class="opus-5",key="2c3d",provider="anthropic",reason="spent"}`: 1,
		},
		"cc_relay_breaker_state": {
			`{class="opus-5",provider="anthropic",state="closed"}`:    0,
			`{class="opus-5",provider="anthropic",state="ramping"}`:   0,
			`{class="opus-5",provider="anthropic",state="half-open"}`: 1,
			`{class="opus-5",provider="anthropic",state="open"}`:      0,
		},
		"cc_relay_provider_draining": {
			`{provider="anthropic"}`: 0,
			`{provider="spare"}`:     1,
		},
	} {
		full := map[string]float64{}
		for labels, v := range want {
			full[metric+labels] = v
		}
		assert.Equal(t, full, only(got, metric))
	}
}

func TestKeyStates(t *testing.T) {
	all := []string{"available", "exhausted", "cooling", "dead", "off"}
	for state, shown := range map[string]string{
		"available": "available", "exhausted": "exhausted", "cooling": "cooling", "dead": "dead", "off": "off", "": "other", "odd": "other",
	} {
		got := only(scrapePools(t, metrics.Pool{Provider: "p", Classes: []metrics.Class{
			{Class: "c", Keys: []metrics.Key{{ID: "k", State: state}}},
		}}), "cc_relay_key_state")
		want := map[string]float64{}
		for _, s := range append(all[:5:5], shown) {
			want[`cc_relay_key_state{class="c",key="k",provider="p",state="`+s+`"}`] = map[bool]float64{true: 1}[s == shown]
		}
		assert.Equal(t, want, got, state)
	}
}

// Many models share the label "other": a series that came twice would fail the
// whole scrape.
func TestClassesOfOneLabel(t *testing.T) {
	class := func(breaker, state, reason string, left int, cool time.Duration) metrics.Class {
		return metrics.Class{Class: "other", Breaker: breaker, Keys: []metrics.Key{{
			ID: "k", State: state, Reason: reason, CoolDown: cool, InFlight: 1, ReservedInput: 10, ReservedOutput: 5,
			Requests: metrics.Level{Limit: 50, Remaining: left}, Input: metrics.Level{Remaining: 9},
		}}}
	}
	classes := []metrics.Class{
		class("open", "available", "", 50, 0), class("closed", "dead", "forbidden", -10, time.Second), class("", "exhausted", "", 1, time.Minute),
	}
	for range classes { // in any order
		classes = append(classes[1:], classes[0])
		got := scrapePools(t, metrics.Pool{Provider: "p", Classes: classes})
		for series, want := range map[string]float64{
			`cc_relay_key_limit{class="other",key="k",kind="requests",provider="p"}`:               150,
			`cc_relay_key_remaining{class="other",key="k",kind="requests",provider="p"}`:           41,
			`cc_relay_key_requests_in_flight{class="other",key="k",provider="p"}`:                  3,
			`cc_relay_key_reserved_tokens{class="other",key="k",kind="input_tokens",provider="p"}`: 30,
			`cc_relay_key_cooldown_seconds{class="other",key="k",provider="p"}`:                    60,
			`cc_relay_key_state{class="other",key="k",provider="p",state="dead"}`:                  1,
			`cc_relay_key_dead{class="other",key="k",provider="p",reason="forbidden"}`:             1,
			`cc_relay_breaker_state{class="other",provider="p",state="open"}`:                      1,
		} {
			require.Contains(t, got, series)
			assert.Equal(t, want, got[series], series)
		}
		assert.NotContains(t, got, `cc_relay_key_limit{class="other",key="k",kind="input_tokens",provider="p"}`)
	}
}

func TestTooManyKeysAreShownTogether(t *testing.T) {
	p := metrics.Pool{Provider: "p"}
	for i := range metrics.MaxSeries + 50 {
		p.Classes = append(p.Classes, metrics.Class{Class: strconv.Itoa(i), Breaker: "closed", Keys: []metrics.Key{{ID: "k", State: "available", InFlight: 1}}})
	}
	got := scrapePools(t, p)
	assert.Len(t, only(got, "cc_relay_key_requests_in_flight"), metrics.MaxSeries+1)
	assert.EqualValues(t, 50, got[`cc_relay_key_requests_in_flight{class="other",key="other",provider="other"}`])
	assert.Len(t, only(got, "cc_relay_breaker_state"), 4*(metrics.MaxSeries+1))
}
