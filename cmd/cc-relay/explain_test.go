package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const fullAccount = `{"id":"01JABC","at":"2026-11-26T11:59:57Z","client":"anna","model":"claude-sonnet-4-5","class":"sonnet","outcome":"served",
"status":200,"duration_ms":3210.5,"ttft_ms":812,"overhead_ms":0.41,"wait_ms":250,"rule":"claude-*","strategy":"failover","home":true,
"tokens":{"input":120,"cache_write":0,"cache_read":30000,"output":560},"unheard_of":[1],
"skipped":[{"provider":"bedrock","model":"claude-sonnet-4-5","class":"sonnet","why":"breaker_open","until":"2026-11-26T12:00:43Z"},{"provider":"vertex","model":"claude-sonnet-4-5@1","why":"draining"}],
"attempts":[
{"provider":"anthropic","model":"claude-sonnet-4-5","class":"sonnet","key":"1b2c3d4e5f60","verdict":"rate limited","status":429,"duration_ms":95,
 "choice":{"class":"sonnet","strategy":"least_loaded","outcome":"served","key":"1b2c3d4e5f60","home_key":"1b2c3d4e5f60","home":true,"waited_ms":0,"budget_ms":3000,"considered":2,
 "estimate":{"input":30120,"cached":30000,"output":900},
 "keys":[{"id":"0a1b2c3d4e5f","why":"not_home","state":"available","requests":{"limit":1000,"level":900},"input":{"limit":2000000,"level":1800000},"output":{"limit":400000,"level":390000},"in_flight":3},
         {"id":"1b2c3d4e5f60","why":"chosen","state":"available","requests":{"limit":1000,"level":400},"input":{"limit":2000000,"level":90000},"output":{"limit":400000,"level":100000},"in_flight":12,"cached":30000}]}},
{"provider":"anthropic","key":"0a1b2c3d4e5f","verdict":"served","status":200,"duration_ms":3000,
 "choice":{"strategy":"least_loaded","outcome":"served","key":"0a1b2c3d4e5f","home_key":"1b2c3d4e5f60","waited_ms":110,"considered":14,
 "keys":[{"id":"0a1b2c3d4e5f","why":"chosen","requests":{"limit":0,"level":0},"input":{"limit":0,"level":0},"output":{"limit":0,"level":0}},
         {"id":"1b2c3d4e5f60","why":"cooling","wait_ms":43000,"ahead":2,"requests":{"limit":1000,"level":-5},"input":{"limit":2000000,"level":90000},"output":{"limit":400000,"level":100000}},
         {"id":"3d4e5f607182","why":"dead","reason":"unauthorized"}]}}]}`

const dryAccount = `{"model":"claude-sonnet-4-5","class":"sonnet","strategy":"failover","attempts":[
{"provider":"anthropic","model":"claude-sonnet-4-5","choice":{"strategy":"least_loaded","outcome":"wait","key":"0a1b2c3d4e5f","wait_ms":1200,"budget_ms":3000,"considered":1,"keys":[{"id":"0a1b2c3d4e5f","why":"no_input","wait_ms":1200,"requests":{"limit":50,"level":49}}]}},
{"provider":"bedrock","choice":{"outcome":"refused","wait_ms":90000,"budget_ms":3000,"considered":0}}]}`

func TestExplainIsReadable(t *testing.T) {
	for name, text := range map[string]string{"full": fullAccount, "dry": dryAccount, "bare": `{"id":"x"}`} {
		for _, width := range []int{60, 80, 160} {
			t.Run(fmt.Sprintf("%s at %d", name, width), func(t *testing.T) {
				var a account
				require.NoError(t, json.Unmarshal([]byte(text), &a))
				v := accountView{screen: screen{width: width}, now: noon}
				got := v.render(&a)
				golden(t, fmt.Sprintf("explain_%s_%d", name, width), got)
				for line := range strings.Lines(string(got)) {
					assert.LessOrEqual(t, ansi.StringWidth(strings.TrimSuffix(line, "\n")), width, line)
				}
				colored := accountView{screen: screen{width: width, color: true}, now: noon}
				assert.Equal(t, string(got), ansi.Strip(string(colored.render(&a))), "with colours")
			})
		}
	}
}

func TestExplain(t *testing.T) {
	f := newFakeAdmin(t, map[string]any{
		"GET /api/v1/requests":        json.RawMessage(`{"requests":[` + fullAccount + `]}`),
		"GET /api/v1/requests/01JABC": json.RawMessage(fullAccount),
		"POST /api/v1/explain":        json.RawMessage(dryAccount),
		"GET /api/v1/requests/odd":    json.RawMessage(`{"id":7,"why":"a form of later"}`),
		"GET /api/v1/requests/esc":    json.RawMessage("{\"id\":\"esc\",\"model\":\"\\u001b[2Jgone\\u202e\u009b1m\\n\"}"),
	})
	for name, tc := range map[string]struct {
		args  []string
		asked string
		want  string
	}{
		"one":             {[]string{"01JABC"}, "GET /api/v1/requests/01JABC", "request 01JABC"},
		"the last":        {[]string{"--last"}, "GET /api/v1/requests/01JABC", "request 01JABC"},
		"none, as yet":    {[]string{"--dry-run", "--model", "m", "--tokens", "5", "--max-tokens", "6", "--client", "anna"}, `POST /api/v1/explain {"model":"m","tokens":5,"max_tokens":6,"client":"anna"}`, "a request like this, now"},
		"JSON":            {[]string{"01JABC", "--json"}, "GET /api/v1/requests/01JABC", `"unheard_of": [`},
		"an unknown form": {[]string{"odd"}, "GET /api/v1/requests/odd", `"why": "a form of later"`},
		"escapes":         {[]string{"esc"}, "GET /api/v1/requests/esc", "model [2Jgone 1m"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := f.command(append([]string{"explain"}, tc.args...)...)
			assert.Zero(t, code, stderr)
			assert.Equal(t, tc.asked, f.last())
			assert.Contains(t, stdout, tc.want)
			assert.NotContains(t, stdout, "\x1b")
		})
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"none":             {nil, "which request?"},
		"two":              {[]string{"x", "--last"}, "which request?"},
		"no model":         {[]string{"--dry-run"}, "--dry-run needs a --model"},
		"a model for what": {[]string{"x", "--model", "m"}, "--model is for --dry-run"},
		"negative":         {[]string{"--dry-run", "--model", "m", "--tokens", "-1"}, "cannot be negative"},
		"an unknown one":   {[]string{"nope"}, "there is no key /api/v1/requests/nope"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := f.command(append([]string{"explain"}, tc.args...)...)
			assert.Equal(t, 1, code)
			assert.Empty(t, stdout)
			assert.Contains(t, stderr, tc.want)
		})
	}
}

func TestRequests(t *testing.T) {
	f := newFakeAdmin(t, map[string]any{"GET /api/v1/requests": json.RawMessage(`{"requests":[` + fullAccount + `]}`)})
	code, stdout, stderr := f.command("requests", "--limit", "5")
	assert.Zero(t, code, stderr)
	assert.Equal(t, "GET /api/v1/requests?limit=5", f.last())
	assert.Equal(t, "11:59:57  01JABC  anna  claude-sonnet-4-5  anthropic/0a1b2c3d4e5f (2 attempts)  200 served  3.2s  30.1k in, 560 out\n", stdout)
	f.answers["GET /api/v1/requests"] = json.RawMessage(`{"requests":[]}`)
	_, stdout, _ = f.command("requests")
	assert.Equal(t, "no requests yet\n", stdout)
	code, _, stderr = f.command("explain", "--last")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "the relay has served no request yet")
	code, _, stderr = f.command("requests", "--limit", "0")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "--limit is not within 1 and 1000")
}

// Whatever text an answer holds, what is left of it steers no terminal and is JSON
// of the same form.
func TestPlainKeepsTheFormOfJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		was := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "answer")
		list := []any{was, "\x1b[31m\u202e\u200b", "plain \"quoted\" \\ / é 世"}
		data, err := json.Marshal(list)
		require.NoError(t, err)
		lines := rapid.Bool().Draw(t, "lines")
		got := plain(data, lines)
		for _, r := range string(got) {
			assert.False(t, steers(r), "%q", r)
		}
		var back []any
		require.NoError(t, json.Unmarshal(got, &back), "%s", got)
		require.Len(t, back, 3)
		assert.Equal(t, "  plain"[2:], back[2].(string)[:5])
		assert.Equal(t, list[2], back[2])
		for k, v := range back[0].(map[string]any) {
			for _, r := range k + v.(string) {
				assert.False(t, steers(r) && !(lines && r == '\n'), "%q", r)
			}
		}
	})
}

func TestNumbersForReading(t *testing.T) {
	for n, want := range map[int]string{0: "0", 7: "7", 999: "999", 1000: "1k", 1234: "1.2k", 99_940: "99.9k", 99_960: "100k", 999_499: "999k", 999_500: "1M", 98_765_432: "98.8M", -12_000: "-12k"} {
		assert.Equal(t, want, count(n), "%d", n)
	}
	for d, want := range map[time.Duration]string{0: "0s", time.Millisecond: "1s", 59 * time.Second: "59s", 59*time.Second + 1: "1m", 95 * time.Second: "1m35s",
		time.Hour: "1h0m", 27 * time.Hour: "1d3h", -time.Second: "0s"} {
		assert.Equal(t, want, short(d), d.String())
	}
	for ms, want := range map[float64]string{0: "0ms", 0.414: "0.41ms", 12.6: "13ms", 1250: "1.2s", 61_000: "1m1s"} {
		assert.Equal(t, want, millis(ms), "%g", ms)
	}
}
