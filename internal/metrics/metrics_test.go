package metrics_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/metrics"
)

// scrape returns what h shows, as text and by series.
func scrape(t testing.TB, h http.Handler) (string, map[string]float64) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	shown := map[string]float64{}
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[at:]), 64)
		require.NoError(t, err, line)
		if _, twice := shown[line[:at]]; twice {
			t.Fatalf("shown twice: %s", line)
		}
		shown[line[:at]] = v
	}
	return w.Body.String(), shown
}

// only is the series of shown that belong to a metric.
func only(shown map[string]float64, metric string) map[string]float64 {
	found := map[string]float64{}
	for series, v := range shown {
		if series == metric || strings.HasPrefix(series, metric+"{") {
			found[series] = v
		}
	}
	return found
}

// everything is metrics of which each has at least one series.
func everything() *metrics.Metrics {
	m := metrics.New(metrics.Options{
		Version: "v1.2.3", Commit: "abc123",
		Pools:      func() []metrics.Pool { return pools },
		LogDropped: func() uint64 { return 7 },
		InFlight:   func() int64 { return 3 },

		SpansDropped: func() uint64 { return 5 },
		Expiries:     func() map[string]time.Time { return map[string]time.Time{"server": time.Unix(1_800_000_000, 0)} },
	})
	m.Request(metrics.Request{
		Client: "laptop", Class: "opus-5", Provider: "anthropic", Outcome: "served", Status: 200,
		Duration: 3 * time.Second, FirstToken: 600 * time.Millisecond, Overhead: 300 * time.Microsecond,
		Wait: 2 * time.Second, ThinkingStripped: 2,
	})
	m.Attempt(metrics.Attempt{
		Client: "laptop", Provider: "anthropic", Class: "opus-5", Verdict: "served",
		InputUncached: 10, CacheRead: 200, CacheWrite: 30, Output: 4,
	})
	m.EventLag(30 * time.Microsecond)
	m.Reload(true)
	m.Alert("spent", "anthropic")
	m.Shed("concurrency")
	return m
}

var pools = []metrics.Pool{
	{Provider: "anthropic", Classes: []metrics.Class{
		{Class: "", Keys: []metrics.Key{{ID: "0a1b", State: "available"}}},
		{Class: "opus-5", Breaker: "half-open", Keys: []metrics.Key{
			{ID: "0a1b", State: "cooling", CoolDown: 1500 * time.Millisecond, InFlight: 2, ReservedInput: 900, ReservedOutput: 80,
				Requests: metrics.Level{Limit: 50, Remaining: 49}, Output: metrics.Level{Limit: 8000, Remaining: -20}},
			{ID: "2c3d", State: "dead", Reason: "spent"},
		}},
	}},
	{Provider: "spare", Draining: true},
}

func TestRequest(t *testing.T) {
	_, got := scrape(t, everything().Handler())
	for series, want := range map[string]float64{
		`cc_relay_requests_total{class="opus-5",client="laptop",outcome="served",provider="anthropic",status="200"}`: 1,
		`cc_relay_request_duration_seconds_count{class="opus-5",provider="anthropic"}`:                               1,
		`cc_relay_request_duration_seconds_sum{class="opus-5",provider="anthropic"}`:                                 3,
		`cc_relay_time_to_first_token_seconds_sum{class="opus-5",provider="anthropic"}`:                              0.6,
		`cc_relay_key_wait_seconds_sum{class="opus-5",provider="anthropic"}`:                                         2,
		`cc_relay_overhead_seconds_sum`:                                                                    300e-6,
		`cc_relay_thinking_blocks_stripped_total`:                                                          2,
		`cc_relay_event_lag_seconds_sum`:                                                                   30e-6,
		`cc_relay_event_lag_seconds_count`:                                                                 1,
		`cc_relay_requests_in_flight`:                                                                      3,
		`cc_relay_trace_spans_dropped_total`:                                                               5,
		`cc_relay_certificate_expiry_timestamp_seconds{listener="server"}`:                                 1_800_000_000,
		`cc_relay_log_records_dropped_total`:                                                               7,
		`cc_relay_config_last_reload_successful`:                                                           1,
		`cc_relay_config_reloads_total{result="ok"}`:                                                       1,
		`cc_relay_config_reloads_total{result="failed"}`:                                                   0,
		`cc_relay_attempts_total{class="opus-5",provider="anthropic",verdict="served"}`:                    1,
		`cc_relay_tokens_total{class="opus-5",client="laptop",kind="input_uncached",provider="anthropic"}`: 10,
		`cc_relay_tokens_total{class="opus-5",client="laptop",kind="cache_read",provider="anthropic"}`:     200,
		`cc_relay_tokens_total{class="opus-5",client="laptop",kind="cache_write",provider="anthropic"}`:    30,
		`cc_relay_tokens_total{class="opus-5",client="laptop",kind="output",provider="anthropic"}`:         4,
		`cc_relay_alerts_total{kind="spent",provider="anthropic"}`:                                         1,
		`cc_relay_requests_shed_total{reason="concurrency"}`:                                               1,
	} {
		if assert.Contains(t, got, series) {
			assert.InDelta(t, want, got[series], 1e-9, series)
		}
	}
	assert.NotZero(t, got["go_goroutines"])
	assert.NotZero(t, got["process_start_time_seconds"])
	build := only(got, "cc_relay_build_info")
	require.Len(t, build, 1)
	for series := range build {
		assert.Contains(t, series, `{commit="abc123",goversion="go1.`)
		assert.Contains(t, series, `version="v1.2.3"}`)
	}
}

func TestWhatIsNotKnownIsNotCounted(t *testing.T) {
	m := metrics.New(metrics.Options{})
	m.Request(metrics.Request{Outcome: "refused", Status: 401})
	m.Attempt(metrics.Attempt{Provider: "anthropic", Class: "opus-5", Verdict: "limited", Output: -1})
	_, got := scrape(t, m.Handler())
	assert.Equal(t, map[string]float64{
		`cc_relay_requests_total{class="none",client="none",outcome="refused",provider="none",status="401"}`: 1,
	}, only(got, "cc_relay_requests_total"))
	for _, series := range []string{
		`cc_relay_time_to_first_token_seconds_count{class="none",provider="none"}`,
		`cc_relay_key_wait_seconds_count{class="none",provider="none"}`,
		`cc_relay_overhead_seconds_count`,
		`cc_relay_thinking_blocks_stripped_total`,
	} {
		require.Contains(t, got, series)
		assert.Zero(t, got[series], series)
	}
	for _, metric := range []string{"cc_relay_tokens_total", "cc_relay_requests_in_flight", "cc_relay_log_records_dropped_total", "cc_relay_key_state"} {
		assert.Empty(t, only(got, metric))
	}
}

func TestPartOfTheTokens(t *testing.T) {
	m := metrics.New(metrics.Options{})
	m.Attempt(metrics.Attempt{Client: "ci", Provider: "p", Class: "c", Verdict: "lost", InputUncached: 5, Output: -1})
	_, got := scrape(t, m.Handler())
	assert.Equal(t, map[string]float64{
		`cc_relay_tokens_total{class="c",client="ci",kind="input_uncached",provider="p"}`: 5,
		`cc_relay_tokens_total{class="c",client="ci",kind="cache_read",provider="p"}`:     0,
		`cc_relay_tokens_total{class="c",client="ci",kind="cache_write",provider="p"}`:    0,
		`cc_relay_tokens_total{class="c",client="ci",kind="output",provider="p"}`:         0,
	}, only(got, "cc_relay_tokens_total"))
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New(metrics.Options{})
		look := func() (ok, at, good, bad float64) {
			_, got := scrape(t, m.Handler())
			return got["cc_relay_config_last_reload_successful"], got["cc_relay_config_last_reload_success_timestamp_seconds"],
				got[`cc_relay_config_reloads_total{result="ok"}`], got[`cc_relay_config_reloads_total{result="failed"}`]
		}
		start := float64(time.Now().Unix())
		ok, at, good, bad := look()
		assert.Equal(t, []float64{1, start, 0, 0}, []float64{ok, at, good, bad}, "at the start")
		time.Sleep(time.Minute)
		m.Reload(false)
		ok, at, good, bad = look()
		assert.Equal(t, []float64{0, start, 0, 1}, []float64{ok, at, good, bad}, "after one that failed")
		time.Sleep(time.Minute)
		m.Reload(true)
		ok, at, good, bad = look()
		assert.Equal(t, []float64{1, start + 120, 1, 1}, []float64{ok, at, good, bad}, "after a good one")
	})
}

func TestNilCountsNothing(t *testing.T) {
	var m *metrics.Metrics
	m.Request(metrics.Request{})
	m.Attempt(metrics.Attempt{})
	m.EventLag(time.Second)
	m.Reload(true)
	m.Alert("spent", "p")
	m.Shed("memory")
	assert.Nil(t, m.Handler())
}

func TestTwoDoNotShare(t *testing.T) {
	a, b := metrics.New(metrics.Options{}), metrics.New(metrics.Options{})
	a.EventLag(time.Millisecond)
	_, got := scrape(t, b.Handler())
	assert.Zero(t, got["cc_relay_event_lag_seconds_count"])
}

func TestOpenMetrics(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	w := httptest.NewRecorder()
	everything().Handler().ServeHTTP(w, r)
	assert.Contains(t, w.Header().Get("Content-Type"), "application/openmetrics-text")
	assert.True(t, strings.HasSuffix(w.Body.String(), "# EOF\n"))
}

// Labels and their values are the whole of what a scrape tells apart: this list is
// what may be in it, and a new label must be added on purpose.
func TestLabelsAreAClosedSet(t *testing.T) {
	may := map[string]string{
		"client": "laptop|none", "class": "opus-5|none", "provider": "anthropic|spare|none", "key": "0a1b|2c3d",
		"outcome": "served|other", "verdict": "served|other", "status": "200|other", "kind": "input_uncached|cache_read|cache_write|output|requests|input_tokens|output_tokens|spent|other",
		"state": "available|exhausted|cooling|dead|off|closed|ramping|half-open|open", "reason": "spent|concurrency|other",
		"result": "ok|failed", "listener": "server|admin", "version": ".*", "commit": ".*", "goversion": ".*", "le": ".*", "quantile": ".*",
	}
	m := everything()
	for _, bad := range []string{"claude-opus-5-20261001", "/v1/messages", "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "with space", "Upper", strings.Repeat("x", 33), "\xff"} {
		m.Request(metrics.Request{Outcome: bad, Status: 1234})
		m.Attempt(metrics.Attempt{Verdict: bad})
		m.Alert(bad, "")
		m.Shed(bad)
	}
	label := regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
	_, got := scrape(t, m.Handler())
	for series := range got {
		for _, l := range label.FindAllStringSubmatch(series, -1) {
			require.Contains(t, may, l[1], series)
			assert.Regexp(t, "^("+may[l[1]]+")$", l[2], series)
		}
	}
}

func TestNamesThatCannotBeShown(t *testing.T) {
	m := metrics.New(metrics.Options{Version: "\xff"})
	for _, bad := range []string{"\xff", strings.Repeat("x", 129)} {
		m.Attempt(metrics.Attempt{Provider: bad, Class: bad, Client: bad, Verdict: "served", Output: 1})
	}
	_, got := scrape(t, m.Handler())
	assert.Equal(t, map[string]float64{`cc_relay_attempts_total{class="other",provider="other",verdict="served"}`: 2},
		only(got, "cc_relay_attempts_total"))
	assert.Contains(t, got, `cc_relay_tokens_total{class="other",client="other",kind="output",provider="other"}`)
}

func TestStatuses(t *testing.T) {
	for code, want := range map[int]string{0: "none", -1: "other", 99: "other", 100: "100", 499: "499", 529: "529", 599: "599", 600: "other"} {
		m := metrics.New(metrics.Options{})
		m.Request(metrics.Request{Status: code})
		text, _ := scrape(t, m.Handler())
		assert.Contains(t, text, `status="`+want+`"} 1`, code)
	}
}

func TestTooManyAreCountedTogether(t *testing.T) {
	m := metrics.New(metrics.Options{})
	const more = 50
	for i := range metrics.MaxSeries + more {
		who := strconv.Itoa(i)
		m.Request(metrics.Request{Client: who, Class: "c", Provider: "p", Outcome: "served", Status: 200})
		m.Attempt(metrics.Attempt{Client: who, Provider: "p", Class: who, Verdict: "served", Output: 1})
		m.Alert("spent", who)
		m.Shed("r" + who)
	}
	_, got := scrape(t, m.Handler())
	for metric, rest := range map[string]string{
		"cc_relay_requests_total":      `{class="other",client="other",outcome="other",provider="other",status="other"}`,
		"cc_relay_attempts_total":      `{class="other",provider="other",verdict="other"}`,
		"cc_relay_alerts_total":        `{kind="other",provider="other"}`,
		"cc_relay_requests_shed_total": `{reason="other"}`,
	} {
		assert.Len(t, only(got, metric), metrics.MaxSeries+1, metric)
		assert.EqualValues(t, more, got[metric+rest], metric)
	}
	assert.Len(t, only(got, "cc_relay_tokens_total"), 4*(metrics.MaxSeries+1))
	assert.EqualValues(t, more, got[`cc_relay_tokens_total{class="other",client="other",kind="output",provider="other"}`])
}

func TestTogether(t *testing.T) {
	m := everything()
	var all sync.WaitGroup
	const each, rounds = 4, 200
	for g := range each {
		all.Go(func() {
			for i := range rounds {
				class := fmt.Sprint("class-", i%20)
				m.Request(metrics.Request{Client: "many", Class: class, Provider: "p", Outcome: "served", Status: 200})
				m.Attempt(metrics.Attempt{Client: "many", Class: class, Provider: "p", Verdict: "served", Output: 1})
				m.EventLag(time.Microsecond)
				m.Reload(i%2 == 0)
				m.Alert("spent", "p")
				m.Shed("memory")
				if g == 0 && i%50 == 0 {
					m.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
				}
			}
		})
	}
	all.Wait()
	_, got := scrape(t, m.Handler())
	sum := 0.0
	for series, v := range only(got, "cc_relay_requests_total") {
		if strings.Contains(series, `client="many"`) {
			sum += v
		}
	}
	assert.EqualValues(t, each*rounds, sum)
	assert.EqualValues(t, each*rounds+1, got["cc_relay_event_lag_seconds_count"])
}
