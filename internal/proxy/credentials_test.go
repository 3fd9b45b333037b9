package proxy_test

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
)

// A comparison of medians, with bounds wide enough for a machine that does other
// things: it finds a refusal that goes another way (one that waits, looks something up
// or asks a provider), not nanoseconds. Against these there is no comparison to be
// measured: auth looks tokens up by their whole hash.
func testRefusalsTakeTheSameTime(t *testing.T) {
	live := newLive(t, setup{upstreams: []upstream{memory(roundTrip(func(*http.Request) (*http.Response, error) { panic("the provider was asked") }))}}, zerolog.Nop())
	h := proxy.NewHandler(live, zerolog.Nop())
	kinds := map[string]http.Header{
		"of another length":    {"X-Api-Key": {"x"}},
		"unknown":              {"X-Api-Key": {strings.Repeat("x", len(aliceToken))}},
		"wrong at its end":     {"X-Api-Key": {aliceToken[:len(aliceToken)-1] + "x"}},
		"wrong at its start":   {"X-Api-Key": {"x" + aliceToken[1:]}},
		"malformed":            {"Authorization": {"Basic " + aliceToken}},
		"none":                 {},
		"a provider's":         {"X-Api-Key": {keyOf("a", 1)}},
		"two that are unknown": {"X-Api-Key": {"x"}, "Authorization": {"Bearer y"}},
	}
	names, took := slices.Sorted(maps.Keys(kinds)), map[string][]time.Duration{}
	for range tries / len(kinds) {
		for _, name := range names { // by turns, so that what else goes on meets all alike
			req := httptest.NewRequest("POST", "/v1/messages", nil)
			req.Host, req.Header = "relay", kinds[name]
			w := &sink{header: http.Header{}}
			start := time.Now()
			h.ServeHTTP(w, req)
			took[name] = append(took[name], time.Since(start))
			require.Equal(t, 401, w.status)
		}
	}
	medians := map[string]time.Duration{}
	for name, list := range took {
		slices.Sort(list)
		medians[name] = list[len(list)/2]
	}
	all := slices.Sorted(maps.Values(medians))
	assert.Less(t, all[len(all)-1], all[0]*3/2, "median times: %v", medians)
}

// testCredentials sends every pair of what the two headers may hold, and compares with
// the rule: values that are no token of the relay do not count, two clients or a
// repeated header are refused, and nothing of a client's reaches the provider.
func testCredentials(t *testing.T) {
	const foreign = "sk-ant-api03-foreign"
	type sent struct {
		values []string
		means  string // "": nobody
	}
	as := func(prefix string, more ...sent) []sent {
		return append(more,
			sent{nil, ""}, sent{[]string{""}, ""},
			sent{[]string{prefix + aliceToken}, "alice"}, sent{[]string{prefix + bobToken}, "bob"},
			sent{[]string{prefix + foreign}, ""}, sent{[]string{prefix + aliceToken + "," + bobToken}, ""},
			sent{[]string{prefix + aliceToken, prefix + aliceToken}, ""}, sent{[]string{prefix + aliceToken, prefix + foreign}, ""})
	}
	keys := as("")
	auths := as("Bearer ", sent{[]string{"Basic " + aliceToken}, ""}, sent{[]string{"bearer  " + bobToken + " "}, "bob"})
	up := newRaw(t, "a", answersWell)
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	for _, key := range keys {
		for _, auth := range auths {
			header := http.Header{}
			if key.values != nil {
				header["X-Api-Key"] = key.values
			}
			if auth.values != nil {
				header["Authorization"] = auth.values
			}
			want, client := 401, key.means+auth.means
			switch {
			case len(key.values) > 1 || len(auth.values) > 1, key.means != "" && auth.means != "" && key.means != auth.means:
				want, client = 400, ""
			case key.means == auth.means && client != "":
				want, client = 200, key.means
			case client != "":
				want = 200
			}
			got := r.do(call{token: "-", header: header, body: ask(opus, false)})
			require.NoError(t, got.err)
			assert.Equal(t, want, got.status, "%v: %s", header, got.body)
			assert.Equal(t, client, got.record["client"], "%v", header)
			if want != 200 {
				assert.InDelta(t, 0, got.record["attempts"], 0)
				continue
			}
			seen := up.requireNext(t)
			assert.Equal(t, []string{keyOf("a", 1)}, headersOf(t, seen)["X-Api-Key"])
			for _, theirs := range []string{"authorization", "relay-token", "foreign", "basic"} {
				assert.NotContains(t, strings.ToLower(seen.head), theirs, "%v", header)
			}
		}
	}
	assert.Zero(t, up.calls(), "the provider was asked for somebody who was refused")
	assert.NotContains(t, r.log.String(), "relay-token")
	assert.NotContains(t, r.log.String(), "foreign")
}
