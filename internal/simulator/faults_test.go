package simulator_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// served is a provider behind a real listener whose first answer has the fault.
func served(t *testing.T, f simulator.Fault) (*simulator.Simulator, string) {
	t.Helper()
	cfg := replying(simulator.ReplyBlock{Text: strings.Repeat("abcd", 12)})
	f.Nth = 1
	cfg.Faults = []simulator.Fault{f}
	sim := newSim(t, cfg)
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	return sim, srv.URL
}

func TestFaultsThatAnswerByThemselves(t *testing.T) {
	tests := map[string]struct {
		fault   simulator.Fault
		status  int
		headers map[string]string
		body    string // exactly; "" not looked at
		kind    string // error type of the body
	}{
		"overloaded":       {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 529}, status: 529, kind: "overloaded_error"},
		"unauthorized":     {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 401}, status: 401, kind: "authentication_error", headers: map[string]string{"Anthropic-Organization-Id": ""}},
		"forbidden":        {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 403}, status: 403, kind: "permission_error", headers: map[string]string{"Anthropic-Organization-Id": "org-a"}},
		"429 with headers": {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 429, Headers: map[string]string{"retry-after": "7", "x-should-retry": "true"}}, status: 429, kind: "rate_limit_error", headers: map[string]string{"Retry-After": "7", "X-Should-Retry": "true"}},
		"429 without":      {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 429}, status: 429, kind: "rate_limit_error", headers: map[string]string{"Retry-After": "", rate + "Requests-Limit": ""}},
		"own type":         {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 400, ErrorType: "billing_error"}, status: 400, kind: "billing_error"},
		"own body":         {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 503, Body: "busy", Headers: map[string]string{"content-type": "text/plain"}}, status: 503, body: "busy", headers: map[string]string{"Content-Type": "text/plain"}},
		"an error as 200":  {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 200, ErrorType: "api_error"}, status: 200, kind: "api_error"},
		"no content":       {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 204}, status: 204},
		"html":             {fault: simulator.Fault{Kind: simulator.FaultHTML}, status: 502, headers: map[string]string{"Content-Type": "text/html; charset=utf-8"}},
		"html of 413":      {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 413, Body: "<p>too large"}, status: 413, body: "<p>too large"},
		"empty":            {fault: simulator.Fault{Kind: simulator.FaultEmpty}, status: 200, headers: map[string]string{"Content-Length": "0"}},
		"redirect":         {fault: simulator.Fault{Kind: simulator.FaultRedirect, Location: "http://127.0.0.1:1/x"}, status: 307, headers: map[string]string{"Location": "http://127.0.0.1:1/x"}},
		"redirect 302":     {fault: simulator.Fault{Kind: simulator.FaultRedirect, Status: 302, Location: "/x"}, status: 302},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sim, url := served(t, tt.fault)
			resp, body, err := postOver(t, url, "k1", say("hi", true, 100))
			require.NoError(t, err)
			assert.Equal(t, tt.status, resp.StatusCode)
			assert.NotEmpty(t, resp.Header.Get("Request-Id"))
			for h, want := range tt.headers {
				assert.Equal(t, want, resp.Header.Get(h), h)
			}
			if tt.kind != "" {
				assert.Equal(t, tt.kind, errorType(t, body))
				assert.Contains(t, body, resp.Header.Get("Request-Id"))
			}
			if tt.body != "" {
				assert.Equal(t, tt.body, body)
			}
			assert.Equal(t, tt.fault.Kind, sim.Seen()[0].Fault)
			assert.Equal(t, tt.status, sim.Seen()[0].Status)
			assert.Empty(t, sim.Snapshot(time.Now()).Accounts, "nothing came to the limits")

			resp, body, err = postOver(t, url, "k1", say("hi", true, 100))
			require.NoError(t, err)
			assert.Equal(t, 200, resp.StatusCode, "the second one is served")
			assert.Contains(t, body, "message_stop")
		})
	}
}

func TestErrorCodeAndMessageOfAFault(t *testing.T) {
	_, url := served(t, simulator.Fault{Kind: simulator.FaultStatus, Status: 429, ErrorCode: "enforced_spend_limit_reached", Message: "spend limit"})
	_, body, err := postOver(t, url, "k1", say("hi", false, 100))
	require.NoError(t, err)
	assert.Contains(t, body, `"message":"spend limit"`)
	assert.Contains(t, body, `"details":{"error_code":"enforced_spend_limit_reached"}`)
}

func TestConnectionFaultsBeforeHeaders(t *testing.T) {
	t.Run("plain close", func(t *testing.T) {
		_, url := served(t, simulator.Fault{Kind: simulator.FaultReset})
		_, _, err := postOver(t, url, "k1", say("hi", true, 100))
		assert.ErrorIs(t, err, io.EOF)
	})
	t.Run("rst", func(t *testing.T) {
		_, url := served(t, simulator.Fault{Kind: simulator.FaultReset, RST: true})
		_, _, err := postOver(t, url, "k1", say("hi", true, 100))
		assert.True(t, errors.Is(err, syscall.ECONNRESET), "got %v", err)
	})
	t.Run("rst inside TLS", func(t *testing.T) {
		cfg := oneOrg(simulator.Limits{})
		cfg.Faults = []simulator.Fault{{Kind: simulator.FaultReset, RST: true}}
		srv := httptest.NewTLSServer(newSim(t, cfg))
		defer srv.Close()
		r := request(http.MethodPost, srv.URL+"/v1/messages", "k1", say("hi", true, 9))
		r.RequestURI = ""
		_, err := srv.Client().Do(r)
		assert.True(t, errors.Is(err, syscall.ECONNRESET), "got %v", err)
	})
	t.Run("rst without a network", func(t *testing.T) {
		cfg := oneOrg(simulator.Limits{})
		cfg.Faults = []simulator.Fault{{Kind: simulator.FaultReset, RST: true}}
		assert.PanicsWithError(t, http.ErrAbortHandler.Error(), func() { post(newSim(t, cfg), "k1", say("hi", true, 9)) })
	})
}

// whole is what the stream of served is without a fault.
func wholeStream(t *testing.T) string {
	t.Helper()
	return post(newSim(t, replying(simulator.ReplyBlock{Text: strings.Repeat("abcd", 12)})), "k1", say("hi", true, 100)).Body.String()
}

func frames(stream string) int { return strings.Count(stream, "\n\n") }

func TestCutStreams(t *testing.T) {
	full := wholeStream(t)
	tests := map[string]struct {
		fault  simulator.Fault
		frames int
		tail   bool // half a frame follows
	}{
		"before the first frame": {simulator.Fault{AfterEvents: 0}, 0, false},
		"inside the first frame": {simulator.Fault{AfterEvents: 0, MidFrame: true}, 0, true},
		"after four":             {simulator.Fault{AfterEvents: 4}, 4, false},
		"inside the fifth":       {simulator.Fault{AfterEvents: 4, MidFrame: true}, 4, true},
		"inside message_stop":    {simulator.Fault{AfterEvents: frames(full) - 1, MidFrame: true}, frames(full) - 1, true},
		"after four, by reset":   {simulator.Fault{AfterEvents: 4, RST: true}, 4, false},
		"later than the end":     {simulator.Fault{AfterEvents: 1000}, frames(full), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.fault.Kind = simulator.FaultCut
			_, url := served(t, tt.fault)
			resp, body, err := postOver(t, url, "k1", say("hi", true, 100))
			require.NotNil(t, resp, "the headers came: %v", err)
			assert.Equal(t, 200, resp.StatusCode)
			switch {
			case tt.frames == frames(full):
				assert.NoError(t, err)
			case tt.fault.RST:
				assert.True(t, errors.Is(err, syscall.ECONNRESET), "got %v", err)
			default:
				assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
			}
			assert.Equal(t, tt.frames, frames(body))
			_, tail, _ := cutLast(body, "\n\n")
			assert.Equal(t, tt.tail, tail != "", "tail %q", tail)
		})
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+len(sep):], true
}

func TestCutCountsWhatWasProduced(t *testing.T) {
	cfg := replying(simulator.ReplyBlock{Text: strings.Repeat("abcd", 12)})
	cfg.Faults = []simulator.Fault{{Kind: simulator.FaultCut, AfterEvents: 5}}
	sim := newSim(t, cfg)
	assert.PanicsWithError(t, http.ErrAbortHandler.Error(), func() { post(sim, "k1", say("hi", true, 100)) })
	rec := sim.Seen()[0]
	assert.True(t, rec.Done)
	assert.False(t, rec.ClientLeft, "it was us")
	assert.Equal(t, 8, rec.Usage.Output, "start, ping, block start, two deltas of 4")
}

func TestErrorEvents(t *testing.T) {
	t.Run("as the first frame", func(t *testing.T) {
		_, url := served(t, simulator.Fault{Kind: simulator.FaultErrorEvent})
		resp, body, err := postOver(t, url, "k1", say("hi", true, 100))
		require.NoError(t, err, "it ends cleanly")
		assert.Equal(t, 200, resp.StatusCode)
		list := events(t, body)
		assert.Equal(t, []string{"error"}, names(list))
		assert.Equal(t, "overloaded_error", list[0].data["error"].(map[string]any)["type"])
	})
	t.Run("in the middle", func(t *testing.T) {
		_, url := served(t, simulator.Fault{Kind: simulator.FaultErrorEvent, AfterEvents: 4, ErrorType: "api_error", Message: "broken"})
		_, body, err := postOver(t, url, "k1", say("hi", true, 100))
		require.NoError(t, err)
		list := events(t, body)
		assert.Equal(t, []string{"message_start", "ping", "content_block_start", "content_block_delta", "error"}, names(list))
		assert.Equal(t, map[string]any{"type": "api_error", "message": "broken"}, list[4].data["error"])
	})
	t.Run("of a JSON answer", func(t *testing.T) {
		_, url := served(t, simulator.Fault{Kind: simulator.FaultErrorEvent})
		resp, body, err := postOver(t, url, "k1", say("hi", false, 100))
		require.NoError(t, err)
		assert.Equal(t, 200, resp.StatusCode)
		assert.Equal(t, "overloaded_error", errorType(t, body))
	})
}

func TestMalformedLine(t *testing.T) {
	_, url := served(t, simulator.Fault{Kind: simulator.FaultMalformed, AfterEvents: 3})
	_, body, err := postOver(t, url, "k1", say("hi", true, 100))
	require.NoError(t, err)
	broken := 0
	for line := range strings.Lines(body) {
		if data, ok := strings.CutPrefix(line, "data: "); ok && !json.Valid([]byte(data)) {
			broken++
		}
	}
	assert.Equal(t, 1, broken)
	assert.Equal(t, frames(wholeStream(t))+1, frames(body), "the rest of the stream follows")
	assert.Contains(t, body, "message_stop")
}

func TestStreamWithoutAStop(t *testing.T) {
	for after, last := range map[int]string{0: "message_delta", 2: "ping", 4: "content_block_delta", 1000: "message_delta"} {
		_, url := served(t, simulator.Fault{Kind: simulator.FaultNoStop, AfterEvents: after})
		_, body, err := postOver(t, url, "k1", say("hi", true, 100))
		require.NoError(t, err, "it ends cleanly")
		list := events(t, body)
		assert.Equal(t, last, list[len(list)-1].name)
		if after > 0 && after < 1000 {
			assert.Len(t, list, after)
		}
	}
}

func TestSpoiltJSON(t *testing.T) {
	const length = "Content-Length"
	tests := map[string]struct {
		fault  simulator.Fault
		size   int // of what arrives, -1: half
		length bool
		err    error
	}{
		"cut at once":         {simulator.Fault{Kind: simulator.FaultCut}, 0, true, io.ErrUnexpectedEOF},
		"cut after 40 bytes":  {simulator.Fault{Kind: simulator.FaultCut, AfterBytes: 40}, 40, true, io.ErrUnexpectedEOF},
		"malformed":           {simulator.Fault{Kind: simulator.FaultMalformed}, -1, true, nil},
		"clean end, half way": {simulator.Fault{Kind: simulator.FaultNoStop}, -1, false, nil},
	}
	full := len(post(newSim(t, replying(simulator.ReplyBlock{Text: strings.Repeat("abcd", 12)})), "k1", say("hi", false, 100)).Body.String())
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, url := served(t, tt.fault)
			resp, body, err := postOver(t, url, "k1", say("hi", false, 100))
			require.NotNil(t, resp)
			assert.ErrorIs(t, err, tt.err)
			if tt.size < 0 {
				tt.size = full / 2
			}
			assert.Len(t, body, tt.size)
			assert.Equal(t, tt.length, resp.Header.Get(length) != "")
			assert.False(t, json.Valid([]byte(body)))
		})
	}
}

func TestStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := replying(simulator.ReplyBlock{Text: strings.Repeat("abcd", 12)})
		cfg.Speed.EventsPerSecond = 10
		cfg.Faults = []simulator.Fault{
			{Kind: simulator.FaultStall, AfterEvents: 4, Duration: time.Minute, Nth: 1},
			{Kind: simulator.FaultStall, AfterBytes: 10, Duration: time.Minute, Nth: 2},
			{Kind: simulator.FaultStall, AfterEvents: 0, Nth: 3},
		}
		sim := newSim(t, cfg)
		w := newClock()
		sim.ServeHTTP(w, request(http.MethodPost, "/v1/messages", "k1", say("hi", true, 100)))
		ms := time.Millisecond
		assert.Equal(t, []time.Duration{0, 0, 0, 0, 0, 60_000 * ms, 60_100 * ms, 60_100 * ms, 60_100 * ms, 60_100 * ms}, w.flushes,
			"four events, the flush of the stall, and then the old pace")
		assert.Contains(t, w.Body.String(), "message_stop")

		w = newClock()
		sim.ServeHTTP(w, request(http.MethodPost, "/v1/messages", "k1", say("hi", false, 100)))
		assert.Equal(t, []time.Duration{200 * ms, 60_200 * ms}, w.flushes)
		assert.Equal(t, []int{10, w.Body.Len()}, w.sizes)
		decode(t, w.Body.String())

		start := time.Now()
		r := request(http.MethodPost, "/v1/messages", "k1", say("hi", true, 100))
		ctx, cancel := timeout(t, 500*time.Second)
		defer cancel()
		sim.ServeHTTP(newClock(), r.WithContext(ctx))
		assert.Equal(t, 500*time.Second, time.Since(start), "for ever, until the client leaves")
		assert.True(t, sim.Seen()[2].ClientLeft)
		assert.Zero(t, sim.Seen()[2].Usage.Output)
	})
}

func TestDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := replying(simulator.ReplyBlock{Text: "abcd"})
		cfg.Speed.FirstEvent = time.Second
		cfg.Faults = []simulator.Fault{
			{Kind: simulator.FaultDelay, Delay: 10 * time.Second, Nth: 1},
			{Kind: simulator.FaultStatus, Status: 500, Delay: 20 * time.Second, Nth: 2},
		}
		sim := newSim(t, cfg)
		start := time.Now()
		assert.Equal(t, 200, post(sim, "k1", say("hi", true, 9)).Code)
		assert.Equal(t, 11*time.Second, time.Since(start))
		assert.Equal(t, 500, post(sim, "k1", say("hi", true, 9)).Code)
		assert.Equal(t, 31*time.Second, time.Since(start))
		assert.Equal(t, 20*time.Second, sim.Seen()[1].Duration)
	})
}

func TestDeadKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := oneOrg(simulator.Limits{})
		cfg.Organizations[0].Keys = append(cfg.Organizations[0].Keys, simulator.Key{Key: "k2"})
		cfg.Faults = []simulator.Fault{
			{Kind: simulator.FaultDeadKey, Key: "k1", Nth: 2},
			{Kind: simulator.FaultDeadKey, Key: "k2", Nth: 1, Duration: time.Minute},
		}
		sim := newSim(t, cfg)
		ask := func(key string) int { return post(sim, key, say("hi", false, 9)).Code }
		assert.Equal(t, []int{200, 401, 401}, []int{ask("k1"), ask("k1"), ask("k1")})
		assert.Equal(t, 401, ask("k2"))
		time.Sleep(time.Minute)
		assert.Equal(t, []int{401, 200}, []int{ask("k1"), ask("k2")}, "one is dead for good, one for a minute")
		assert.Empty(t, post(sim, "k1", say("hi", false, 9)).Header().Get("Anthropic-Organization-Id"))
		require.NoError(t, sim.SetFaults(nil))
		assert.Equal(t, 200, ask("k1"), "healed")
	})
}

func TestWhichRequestsAFaultPicks(t *testing.T) {
	cfg := simulator.Config{Organizations: []simulator.Organization{
		{ID: "org-a", Keys: []simulator.Key{{Key: "k1"}, {Key: "k2", Name: "second"}}},
		{ID: "org-b", Keys: []simulator.Key{{Key: "k3"}}},
	}}
	keys := []string{"k1", "k2", "k3", "k1", "k2", "k3", "k1", "k2", "k3"}
	tests := map[string]struct {
		fault simulator.Fault
		want  string // x: the fault acted
	}{
		"all":          {simulator.Fault{}, "xxxxxxxxx"},
		"nth":          {simulator.Fault{Nth: 2}, ".x......."},
		"from to":      {simulator.Fault{From: 3, To: 5}, "..xxx...."},
		"every":        {simulator.Fault{Every: 3}, "x..x..x.."},
		"every from":   {simulator.Fault{From: 2, Every: 3}, ".x..x..x."},
		"key":          {simulator.Fault{Key: "k3"}, "..x..x..x"},
		"key, nth":     {simulator.Fault{Key: "k3", Nth: 2}, ".....x..."},
		"name":         {simulator.Fault{Key: "second"}, ".x..x..x."},
		"default name": {simulator.Fault{Key: "key-1"}, "x..x..x.."},
		"place":        {simulator.Fault{Key: "3"}, "..x..x..x"},
		"organization": {simulator.Fault{Org: "org-a"}, "xx.xx.xx."},
		"path":         {simulator.Fault{Path: "/v1/messages"}, "xxxxxxxxx"},
		"another path": {simulator.Fault{Path: "/v1/models"}, "........."},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.fault.Kind, tt.fault.Status = simulator.FaultStatus, 529
			cfg.Faults = []simulator.Fault{tt.fault}
			sim := newSim(t, cfg)
			got := ""
			for _, k := range keys {
				mark := "."
				if post(sim, k, say("hi", false, 9)).Code == 529 {
					mark = "x"
				}
				got += mark
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestTheFirstFaultDueActsAndEveryOneCounts(t *testing.T) {
	cfg := oneOrg(simulator.Limits{})
	cfg.Faults = []simulator.Fault{
		{Kind: simulator.FaultStatus, Status: 500, To: 2},
		{Kind: simulator.FaultStatus, Status: 529, Nth: 2},
		{Kind: simulator.FaultStatus, Status: 503, Nth: 3},
	}
	sim := newSim(t, cfg)
	var got []int
	for range 4 {
		got = append(got, post(sim, "k1", say("hi", false, 9)).Code)
	}
	assert.Equal(t, []int{500, 500, 503, 200}, got)
}

func TestFaultsReachEveryPathWithAKey(t *testing.T) {
	cfg := oneOrg(simulator.Limits{})
	cfg.Faults = []simulator.Fault{{Kind: simulator.FaultStatus, Status: 500}}
	sim := newSim(t, cfg)
	for target, method := range map[string]string{"/v1/models": "GET", "/v1/models/claude-x": "GET", "/v1/messages/count_tokens": "POST"} {
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, request(method, target, "k1", "not even JSON"))
		assert.Equal(t, 500, w.Code, target)
	}
	w := httptest.NewRecorder()
	sim.ServeHTTP(w, request(http.MethodHead, "/api/hello", "k1", ""))
	assert.Equal(t, 200, w.Code)
}
