package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
)

// claims is a provider that serves everybody and says these things of it.
func claims(usage string, header http.Header) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for name, values := range header {
			w.Header()[name] = values
		}
		if strings.Contains(string(body), `"stream":true`) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, frameOf("message_start", `{"type":"message_start","message":{"type":"message"`+usage+`}}`)+
				frameOf("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}`)+
				frameOf("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn"}`+usage+`}`)+
				frameOf("message_stop", `{"type":"message_stop"}`))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"type":"message"`+usage+`}`)
	})
}

// rates are the headers of one kind of limit.
func rates(kind, limit, remaining, reset string) http.Header {
	name := "Anthropic-Ratelimit-" + kind
	h := http.Header{}
	for what, value := range map[string]string{"-Limit": limit, "-Remaining": remaining, "-Reset": reset} {
		if value != "" {
			h.Set(name+what, value)
		}
	}
	return h
}

// What a provider says of usage and limits may be absurd. Whoever asks a minute
// later is served, whatever it was.
func testAbsurdClaims(t *testing.T) {
	usage := func(input, output string) string {
		return fmt.Sprintf(`,"usage":{"input_tokens":%s,"output_tokens":%s,"cache_read_input_tokens":%[1]s,"cache_creation_input_tokens":0}`, input, output)
	}
	const far, past = "2999-01-01T00:00:00Z", "1999-01-01T00:00:00Z"
	for name, tt := range map[string]struct {
		usage  string
		header http.Header
	}{
		"no usage":               {"", nil},
		"usage of null":          {`,"usage":null`, nil},
		"usage of another kind":  {`,"usage":[1,2]`, nil},
		"usage in words":         {usage(`"many"`, `"more"`), nil},
		"negative usage":         {usage("-5", "-7"), nil},
		"negative, far":          {usage("-9223372036854775808", "-1e300"), nil},
		"fractions":              {usage("0.5", "1e-9"), nil},
		"no limits":              {usage("5", "5"), nil},
		"limit 0":                {usage("5", "5"), rates("Requests", "0", "0", far)},
		"negative limit":         {usage("5", "5"), rates("Input-Tokens", "-1000", "-1000", past)},
		"a limit beyond numbers": {usage("5", "5"), rates("Output-Tokens", "99999999999999999999999", "1", far)},
		"a limit in words":       {usage("5", "5"), rates("Requests", "unlimited", "lots", "soon")},
		"more left than allowed": {usage("5", "5"), rates("Requests", "100", "100000", past)},
		"left, but no limit":     {usage("5", "5"), rates("Requests", "", "0", far)},
		"a limit, nothing else":  {usage("5", "5"), rates("Input-Tokens", "50000", "", "")},
		"full again in 2999":     {usage("5", "5"), rates("Requests", "100", "50", far)},
		"full again in 1999":     {usage("5", "5"), rates("Requests", "100", "50", past)},
		"retry-after on a 200":   {usage("5", "5"), http.Header{"Retry-After": {"3600"}}},
		"fractional limits":      {usage("5", "5"), rates("Requests", "1e3", "0.5", "1")},
		"an empty organization":  {usage("5", "5"), http.Header{"Anthropic-Organization-Id": {""}}},
		"a long organization":    {usage("5", "5"), http.Header{"Anthropic-Organization-Id": {strings.Repeat("o", 10_000)}, "Anthropic-Workspace-Id": {strings.Repeat("w", 10_000)}}},
		"the limit is everyones": {usage("5", "5"), http.Header{"Anthropic-Ratelimit-Requests-Limit": {"50", "0"}, "Anthropic-Ratelimit-Requests-Remaining": {"50", "0"}}},
	} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, stream=%t", name, stream), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := newPipes()
					a := net.handler(t, "a", claims(tt.usage, tt.header))
					a.keys, a.maxWait = []string{keyOf("a", 1), keyOf("a", 2)}, 3*time.Second
					r := net.relay(t, &a.sim)
					for range 6 {
						got := r.do(call{body: cached(opus, "one", stream)})
						require.Equal(t, 200, got.status, got.body)
						require.NoError(t, got.err)
						assert.Equal(t, "served", got.record["outcome"])
						time.Sleep(time.Minute)
					}
				})
			})
		}
	}
}

// Usage beyond all measure is held against the key that it was said of, but not
// for ever: the limits an operator configured are those of a minute.
func TestAbsurdUsageIsNotADebtForHours(t *testing.T) {
	for name, limits := range map[string]keypool.KeyConfig{
		"no limits known":   {},
		"limits configured": {RPMLimit: 100, ITPMLimit: 50_000, OTPMLimit: 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.handler(t, "a", claims(`,"usage":{"input_tokens":9007199254740993,"output_tokens":1e18,"cache_creation_input_tokens":9223372036854775807}`, nil))
				a.keys, a.maxWait, a.limits = []string{keyOf("a", 1)}, 3*time.Second, limits
				r := net.relay(t, &a.sim)
				require.Equal(t, 200, r.do(call{body: ask(opus, false)}).status)
				a.serve(claims(`,"usage":{"input_tokens":5,"output_tokens":5}`, nil))
				time.Sleep(5 * time.Minute)
				require.Equal(t, 200, r.do(call{body: ask(opus, false)}).status)
			})
		})
	}
}

// An organization's id may differ from answer to answer, and keys may share and
// part while requests are under way: everybody is served and nothing stays held.
func TestOrganizationsThatChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		healthy := rates("Requests", "1000", "900", "")
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			i := n.Add(1)
			time.Sleep(time.Duration(i%7) * 50 * time.Millisecond)
			header := healthy.Clone()
			header.Set("Anthropic-Organization-Id", []string{"one", "two", "three"}[i%3])
			header.Set("Anthropic-Workspace-Id", []string{"w1", "w2"}[i%2])
			claims(`,"usage":{"input_tokens":2000,"output_tokens":20}`, header).ServeHTTP(w, r)
		})
		net := newPipes()
		a := net.handler(t, "a", h)
		a.keys, a.maxWait = []string{keyOf("a", 1), keyOf("a", 2), keyOf("a", 3)}, 3*time.Second
		r := net.relay(t, &a.sim)
		var wg sync.WaitGroup
		var got outcomes
		for client := range 20 {
			wg.Go(func() {
				for turn := range 10 {
					got.add(r.send(call{header: ofSession(itoa(client)), body: cached(opus, itoa(client), turn%2 == 0)}))
					time.Sleep(time.Duration(client) * 10 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		assert.Equal(t, 200, got.served, "others: %v", got.others)
		assert.Empty(t, r.inFlight())
		last := limitHeaders(t, r.send(call{body: ask(opus, false)}).header)
		assert.Contains(t, []int{1000, 2000, 3000}, last["requests"].limit, "the limits of one to three organizations")
	})
}
