package simulator_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

const rate = "Anthropic-Ratelimit-"

func TestRateLimitHeaders(t *testing.T) {
	level := func(limit, remaining int, full time.Duration) simulator.Level {
		return simulator.Level{Limit: limit, Remaining: remaining, Full: epoch.Add(full)}
	}
	tests := map[string]struct {
		levels simulator.Levels
		want   map[string]string
	}{
		"all, rounded to the nearest thousand": {
			simulator.Levels{Requests: level(50, 49, 1200*time.Millisecond), Input: level(30_000, 20_499, 20*time.Second), Output: level(8_000, 7_500, 4*time.Second)},
			map[string]string{
				"requests-limit": "50", "requests-remaining": "49", "requests-reset": "2026-11-23T12:00:02Z",
				"input-tokens-limit": "30000", "input-tokens-remaining": "20000", "input-tokens-reset": "2026-11-23T12:00:20Z",
				"output-tokens-limit": "8000", "output-tokens-remaining": "8000", "output-tokens-reset": "2026-11-23T12:00:04Z",
				"tokens-limit": "38000", "tokens-remaining": "28000", "tokens-reset": "2026-11-23T12:00:20Z",
			},
		},
		"never negative": {
			simulator.Levels{Input: level(30_000, -60_000, time.Minute), Output: level(8_000, 8_000, 0)},
			map[string]string{
				"input-tokens-limit": "30000", "input-tokens-remaining": "0", "input-tokens-reset": "2026-11-23T12:01:00Z",
				"output-tokens-limit": "8000", "output-tokens-remaining": "8000", "output-tokens-reset": "2026-11-23T12:00:00Z",
				"tokens-limit": "38000", "tokens-remaining": "8000", "tokens-reset": "2026-11-23T12:01:00Z",
			},
		},
		"requests only": {
			simulator.Levels{Requests: level(2_000, 1_999, time.Second)},
			map[string]string{"requests-limit": "2000", "requests-remaining": "1999", "requests-reset": "2026-11-23T12:00:01Z"},
		},
		"no limits, no headers": {simulator.Levels{}, map[string]string{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want, got := http.Header{}, http.Header{}
			for k, v := range tt.want {
				want.Set(rate+k, v)
			}
			tt.levels.SetHeaders(got)
			assert.Equal(t, want, got)
		})
	}
}

func TestHeadersOfAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := newSim(t, oneOrg(simulator.Limits{RPM: 60, ITPM: 30_000, OTPM: 6_000}))
		w := post(sim, "k1", say(strings.Repeat("word", 5_000), false, 10))
		require.Equal(t, http.StatusOK, w.Code, w.Body.String())
		assert.Regexp(t, regexp.MustCompile(`^req_[A-Z0-9]{24}$`), w.Header().Get("Request-Id"))
		assert.Equal(t, "org-a", w.Header().Get("Anthropic-Organization-Id"))
		assert.Equal(t, "wrkspc_org-a", w.Header().Get("Anthropic-Workspace-Id"))
		assert.Equal(t, "Sat, 01 Jan 2000 00:00:00 GMT", w.Header().Get("Date"))
		assert.Equal(t, "59", w.Header().Get(rate+"requests-remaining"))
		assert.Equal(t, "25000", w.Header().Get(rate+"input-tokens-remaining"))
		assert.Equal(t, "2000-01-01T00:00:11Z", w.Header().Get(rate+"input-tokens-reset"), "5,002 tokens at 500 a second, rounded up")
		assert.Equal(t, "6000", w.Header().Get(rate+"output-tokens-remaining"), "taken at admission, before any output")
		assert.Empty(t, w.Header().Get("Retry-After"))
	})
}

func TestHeadersOfAGenuine429(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := newSim(t, oneOrg(simulator.Limits{RPM: 60, ITPM: 30_000, OTPM: 6_000}))
		body := say(strings.Repeat("word", 20_000), false, 10)
		require.Equal(t, http.StatusOK, post(sim, "k1", body).Code)
		w := post(sim, "k1", body)
		require.Equal(t, http.StatusTooManyRequests, w.Code)
		assert.Equal(t, "rate_limit_error", errorType(t, w.Body.String()))
		assert.Equal(t, "21", w.Header().Get("Retry-After"), "10,004 tokens short at 500 a second")
		assert.Equal(t, "10000", w.Header().Get(rate+"input-tokens-remaining"))
		assert.Equal(t, "60", w.Header().Get(rate+"requests-limit"))
		assert.Equal(t, "36000", w.Header().Get(rate+"tokens-limit"))
		assert.Equal(t, "org-a", w.Header().Get("Anthropic-Organization-Id"))
		assert.Contains(t, w.Body.String(), w.Header().Get("Request-Id"))

		time.Sleep(20 * time.Second)
		assert.Equal(t, http.StatusTooManyRequests, post(sim, "k1", body).Code)
		time.Sleep(time.Second)
		assert.Equal(t, http.StatusOK, post(sim, "k1", body).Code, "as retry-after said")
	})
}

func TestHeadersWhenAuthenticationFailed(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{RPM: 60}))
	w := post(sim, "nobody", say("hi", false, 10))
	require.Equal(t, http.StatusUnauthorized, w.Code)
	assert.NotEmpty(t, w.Header().Get("Request-Id"))
	for name := range w.Header() {
		assert.False(t, strings.HasPrefix(name, "Anthropic-"), "got %s", name)
	}
	assert.NotContains(t, w.Body.String(), "nobody")
}
