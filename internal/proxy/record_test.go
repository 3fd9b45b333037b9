package proxy_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// recordFields are the fields of an access record.
var recordFields = []string{
	"attempts", "cache_read_tokens", "cache_write_tokens", "client", "duration_ms", "input_tokens", "key_id", "level", "message", "method",
	"model", "outcome", "output_tokens", "partial", "path", "request_id", "status", "stream", "ttfb_ms", "upstream", "verdict", "wait_ms",
}

// plain leaves out of a record what differs from run to run.
func plainRecord(rec record) record {
	rec = maps.Clone(rec)
	for _, name := range []string{"request_id", "duration_ms", "ttfb_ms", "wait_ms", "key_id"} {
		delete(rec, name)
	}
	return rec
}

// requireTries checks what is said of each of the two attempts, and takes it out.
func requireTries(t *testing.T, rec record) {
	t.Helper()
	tries, ok := rec["tries"].([]any)
	require.True(t, ok && len(tries) == 2, "tries: %v", rec["tries"])
	delete(rec, "tries")
	first, second := tries[0].(map[string]any), tries[1].(map[string]any)
	assert.Equal(t, "a", first["upstream"])
	assert.Equal(t, "overloaded", first["verdict"])
	assert.InDelta(t, 529, first["status"], 0)
	assert.Zero(t, first["output_tokens"])
	assert.NotEqual(t, first["key_id"], second["key_id"])
	for _, name := range []string{"upstream", "verdict", "status", "key_id", "model", "input_tokens", "output_tokens"} {
		assert.Equal(t, rec[name], second[name], name)
	}
}

func TestOneRecordARequest(t *testing.T) {
	leakFree(t)
	a, b := newSim(t, "a", 1, key(1, status(529))), newSim(t, "b", 1)
	r := relayOf(t, a, b)
	base := record{
		"level": "info", "message": "request", "client": "alice", "method": "POST", "path": "/v1/messages", "model": "", "stream": false,
		"upstream": "", "attempts": 0., "verdict": "", "outcome": "refused", "status": 0., "partial": false,
		"input_tokens": 0., "cache_write_tokens": 0., "cache_read_tokens": 0., "output_tokens": 0.,
	}
	for name, tt := range map[string]struct {
		call call
		want record
	}{
		"served by the second provider": {call{path: "/v1/messages?beta=true", body: ask(opus, true)}, record{
			"model": opus, "stream": true, "upstream": "b", "attempts": 2., "verdict": "served", "outcome": "served", "status": 200., "input_tokens": 4., "output_tokens": 12.,
		}},
		"not streamed": {call{token: bobToken, body: ask(haiku, false)}, record{
			"client": "bob", "model": haiku, "upstream": "b", "attempts": 2., "verdict": "served", "outcome": "served", "status": 200., "input_tokens": 4., "output_tokens": 12.,
		}},
		"count_tokens": {call{path: "/v1/messages/count_tokens", body: ask(opus, true)}, record{
			"path": "/v1/messages/count_tokens", "model": opus, "upstream": "b", "attempts": 2., "verdict": "served", "outcome": "served", "status": 200.,
		}},
		"models": {call{method: "GET", path: "/v1/models?limit=3"}, record{
			"method": "GET", "path": "/v1/models", "outcome": "served", "status": 200.,
		}},
		"no token":   {call{token: "-", body: ask(opus, true)}, record{"client": "", "status": 401.}},
		"bad body":   {call{body: "{"}, record{"status": 400.}},
		"no path":    {call{path: "/v2", body: "{"}, record{"client": "", "path": "/v2", "status": 404.}},
		"bad method": {call{method: "GET"}, record{"client": "", "method": "GET", "status": 405.}},
		"a probe": {call{method: "GET", path: "/livez", token: "-"}, record{
			"level": "debug", "client": "", "method": "GET", "path": "/livez", "outcome": "served", "status": 200.,
		}},
		"not ready": {call{method: "POST", path: "/livez"}, record{"client": "", "path": "/livez", "status": 405.}},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.do(tt.call)
			if tt.want["upstream"] == "b" {
				requireTries(t, got.record)
			}
			assert.Equal(t, recordFields, slices.Sorted(maps.Keys(got.record)))
			want := maps.Clone(base)
			maps.Copy(want, tt.want)
			assert.Equal(t, want, plainRecord(got.record))
			assert.InDelta(t, got.status, got.record["status"], 0, "the status the client got")
			for _, name := range []string{"duration_ms", "ttfb_ms", "wait_ms"} {
				ms, ok := got.record[name].(float64)
				assert.True(t, ok && ms >= 0 && ms < 10_000, "%s: %v", name, got.record[name])
			}
			if want["upstream"] == "b" {
				assert.Equal(t, got.header.Get("X-Cc-Relay-Key"), got.record["key_id"])
				assert.NotZero(t, got.record["ttfb_ms"])
			}
		})
	}
	assert.Empty(t, r.log.records, "more than one record for a request")
}

// Each attempt that failed is one warning; one that did not fail is none.
func TestFailedAttemptsAreWarnedOf(t *testing.T) {
	leakFree(t)
	r := relayOf(t, newSim(t, "a", 2, status(429)), newSim(t, "b", 1, status(500)), newSim(t, "c", 1))
	got := r.do(call{body: ask(opus, false)})
	requireServed(t, got, false)
	var verdicts []string
	for line := range strings.Lines(r.log.String()) {
		var rec map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &rec))
		if rec["message"] == "attempt failed" {
			assert.Equal(t, "warn", rec["level"])
			assert.Equal(t, got.record["request_id"], rec["request_id"])
			verdicts = append(verdicts, rec["upstream"].(string)+" "+rec["verdict"].(string))
		}
	}
	assert.Equal(t, []string{"a limited", "a limited", "b failed"}, verdicts)
}

// What comes from outside cannot forge a line, and is bounded.
func TestRecordsCannotBeForged(t *testing.T) {
	leakFree(t)
	r := relayOf(t, newSim(t, "a", 1))
	forged := "x\n{\"level\":\"info\",\"message\":\"request\",\"client\":\"root\"}\r\x1b[2J\u2028"
	body, err := json.Marshal(map[string]any{"model": forged, "messages": []any{}})
	require.NoError(t, err)
	r.do(call{body: string(body)})
	r.do(call{path: "/a%0a%7b%22message%22:%22request%22%7d"})
	r.do(call{path: "/" + strings.Repeat("long", 1000)})
	r.do(call{body: ask(strings.Repeat("é", 250), false)})
	assert.Empty(t, r.log.records)
	for line := range strings.Lines(r.log.String()) {
		assert.Less(t, len(line), 1500, "line: %.200s", line)
		assert.NotContains(t, line, "\x1b")
		assert.NotContains(t, line, "\r")
		assert.NotContains(t, line, `"client":"root"`)
	}
}

// Prompts and answers are nobody's business but the client's.
func TestPromptsAreNotLogged(t *testing.T) {
	leakFree(t)
	r := relayOf(t, newSim(t, "a", 1, key(1, worded(500, "cannot parse: PROMPT-CANARY"))), newSim(t, "b", 1))
	body := strings.Replace(ask(opus, true), "hello", "PROMPT-CANARY", 1)
	got := r.do(call{header: http.Header{"X-Claude-Code-Session-Id": {"SESSION-CANARY"}}, body: body})
	requireServed(t, got, true)
	assert.NotContains(t, r.log.String(), "CANARY")
	assert.NotContains(t, r.log.String(), "answer of the simulator")
}

// promptCanaries are what clients say, in every place where a conversation is known by it.
func promptCanaries(stream bool, size int) call {
	body := cached(opus, "SYSTEM-CANARY", stream)
	body = strings.Replace(body, "hello", "PROMPT-CANARY"+strings.Repeat("four", size), 1)
	return call{header: ofSession("SESSION-CANARY"), body: withUserID(body, `{"device_id":"DEVICE-CANARY","session_id":"SESSION-CANARY"}`)}
}

// Nor is what the pool knows of them: not where it waits, refuses, cools keys down,
// finds whose they are, or sends a conversation home.
func TestThePoolTellsNothingOfPrompts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := limit429("2")
		full.Nth = 3
		one := owner("a", 1, simulator.Limits{RPM: 6, ITPM: 20_000, OTPM: 10_000})
		one.Keys = append(one.Keys, simulator.Key{Key: keyOf("a", 2)})
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{one, owner("a", 3, simulator.Limits{RPM: 6})}, Faults: faults(full, key(3, status(401)))})
		a.maxWait = 12 * time.Second
		r := net.relay(t, a)
		statuses, all := map[int]int{}, &strings.Builder{}
		for n := range 16 {
			got := r.do(promptCanaries(n%2 == 0, 1000))
			statuses[got.status]++
			if got.status != 200 {
				all.WriteString(got.body)
			}
		}
		require.NoError(t, a.SetFaults(faults(limit429("30"))))
		time.Sleep(5 * time.Minute)
		got := r.do(promptCanaries(true, 30_000))
		assert.Equal(t, "false", got.header.Get("X-Should-Retry"), "the prompt is too large: %d %s", got.status, got.body)
		all.WriteString(got.body)
		r.do(promptCanaries(true, 10))
		crowd(r, promptCanaries(true, 10), promptCanaries(true, 10), promptCanaries(true, 10))

		log := r.log.String()
		for _, part := range []string{"key chosen", "key cools down", "no key can serve", "belong to one organization", "key is out", `"cache_read_tokens":2`} {
			require.Contains(t, log, part, "the log proves little; statuses %v", statuses)
		}
		assert.NotContains(t, log+all.String(), "CANARY")
		assert.NotContains(t, log+all.String(), "c0ffee5eed1e55", "a part of every key")
		assert.NotContains(t, log+all.String(), "relay-token-")
		assert.NotContains(t, log, "org-a", "whose a key is")
	})
}
