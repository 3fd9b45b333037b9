package simulator_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// everything names each field once.
const everything = `
organizations:
  - id: org-one
    limits: {rpm: 50, itpm: 30000, otpm: 8000}
    classes:
      opus-4: {rpm: 10}
    count_tokens_rpm: 100
    keys:
      - key: sim-key-1
        name: first
        workspace: wrkspc_main
      - key: sim-key-2
models: [claude-opus-5-5]
start_level: 0.33
output: reserved
estimate: 1.1
speed: {first_event: 300ms, events_per_second: 25, tokens_per_event: 3}
answers: {median_tokens: 200, sigma: 0.5, seed: 9}
faults:
  - {key: first, nth: 3, kind: status, status: 529, headers: {retry-after: "2"}, body: "{}", error_type: api_error, message: m, error_code: c}
  - {org: org-one, path: /v1/messages, from: 2, to: 9, every: 2, kind: cut, after_events: 4, mid_frame: true, rst: true, after_bytes: 10}
  - {kind: stall, delay: 1s, duration: 1m30s}
  - {kind: redirect, location: "http://127.0.0.1/"}
max_records: 10
keep_bodies: true
`

func TestLoadConfig(t *testing.T) {
	got, err := simulator.LoadConfig(strings.NewReader(everything))
	require.NoError(t, err)
	want := simulator.Config{
		Organizations: []simulator.Organization{{
			ID:             "org-one",
			Limits:         simulator.Limits{RPM: 50, ITPM: 30_000, OTPM: 8_000},
			Classes:        map[string]simulator.Limits{"opus-4": {RPM: 10}},
			CountTokensRPM: 100,
			Keys:           []simulator.Key{{Key: "sim-key-1", Name: "first", Workspace: "wrkspc_main"}, {Key: "sim-key-2"}},
		}},
		Models: []string{"claude-opus-5-5"}, StartLevel: 0.33, Output: simulator.OutputReserved, Estimate: 1.1,
		Speed:   simulator.Speed{FirstEvent: 300 * time.Millisecond, EventsPerSecond: 25, TokensPerEvent: 3},
		Answers: simulator.Answers{MedianTokens: 200, Sigma: 0.5, Seed: 9},
		Faults: []simulator.Fault{
			{Key: "first", Nth: 3, Kind: simulator.FaultStatus, Status: 529, Headers: map[string]string{"retry-after": "2"}, Body: "{}", ErrorType: "api_error", Message: "m", ErrorCode: "c"},
			{Org: "org-one", Path: "/v1/messages", From: 2, To: 9, Every: 2, Kind: simulator.FaultCut, AfterEvents: 4, MidFrame: true, RST: true, AfterBytes: 10},
			{Kind: simulator.FaultStall, Delay: time.Second, Duration: 90 * time.Second},
			{Kind: simulator.FaultRedirect, Location: "http://127.0.0.1/"},
		},
		MaxRecords: 10, KeepBodies: true,
	}
	assert.Equal(t, want, got)
	newSim(t, got)
}

func TestLoadConfigFillsDefaults(t *testing.T) {
	got, err := simulator.LoadConfig(strings.NewReader("keep_bodies: true\n"))
	require.NoError(t, err)
	assert.Equal(t, simulator.DefaultConfig().Organizations, got.Organizations)
	assert.Zero(t, got.Speed.FirstEvent)
	assert.Equal(t, []any{1.0, 1.0, simulator.OutputProduced, 4, 190, 1000},
		[]any{got.StartLevel, got.Estimate, got.Output, got.Speed.TokensPerEvent, got.Answers.MedianTokens, got.MaxRecords})
}

func TestLoadConfigMistakes(t *testing.T) {
	org := "organizations:\n  - id: o\n    keys: [{key: secret-looking}]\n"
	tests := map[string]struct{ yaml, want string }{
		"empty":                {"", "is empty"},
		"syntax":               {"organizations: [", "simulator config"},
		"unknown field":        {"start_levels: 1\n", "start_levels"},
		"unknown in a fault":   {org + "faults:\n  - {kind: reset, nht: 1}\n", "nht"},
		"repeated field":       {"start_level: 1\nstart_level: 1\n", "start_level"},
		"wrong type":           {"start_level: much\n", "[1:"},
		"wrong duration":       {"speed: {first_event: soon}\n", "soon"},
		"two documents":        {"start_level: 1\n---\nstart_level: 1\n", "one YAML document"},
		"start level":          {"start_level: 1.5\n", "start_level: got 1.5"},
		"output":               {"output: guessed\n", `output: got "guessed"`},
		"negative":             {"estimate: -1\n", "must not be negative"},
		"no id":                {"organizations:\n  - keys: [{key: a}]\n", "organizations[0].id"},
		"the same id":          {org + "  - id: o\n    keys: [{key: b}]\n", "organizations[1].id"},
		"no keys":              {"organizations:\n  - id: o\n    keys: []\n", "organizations[0].keys: at least one"},
		"empty key":            {"organizations:\n  - id: o\n    keys: [{name: n}]\n", "organizations[0].keys[0].key"},
		"the same key":         {org + "  - id: p\n    keys: [{key: secret-looking}]\n", "organizations[1].keys[0].key"},
		"the same name":        {"organizations:\n  - id: o\n    keys: [{key: a, name: key-2}, {key: b}]\n", `two keys are named "key-2"`},
		"negative limit":       {org + "    limits: {itpm: -1}\n", "organizations[0].limits.itpm: got -1"},
		"huge limit":           {org + "    classes: {opus-4: {otpm: 999999999}}\n", "classes.opus-4.otpm"},
		"fault without a kind": {"faults:\n  - {status: 500}\n", "faults[0].kind"},
		"unknown kind":         {"faults:\n  - {kind: explode}\n", `faults[0].kind: got "explode"`},
		"no status":            {"faults:\n  - {kind: status}\n", "faults[0].status"},
		"impossible status":    {"faults:\n  - {kind: status, status: 99}\n", "faults[0].status: got 99"},
		"no location":          {"faults:\n  - {kind: redirect}\n", "faults[0].location"},
		"no delay":             {"faults:\n  - {kind: delay}\n", "faults[0].delay"},
		"negative count":       {"faults:\n  - {kind: reset, nth: -1}\n", "must not be negative"},
		"fault of no key":      {"faults:\n  - {kind: reset, key: sk-nobody}\n", "faults[0].key, org"},
		"key of another org":   {"faults:\n  - {kind: reset, key: sim-key-1, org: org-large}\n", "faults[0].key, org"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := simulator.LoadConfig(strings.NewReader(tt.yaml))
			require.Error(t, err)
			assert.Contains(t, err.Error(), tt.want)
			assert.NotContains(t, err.Error(), "secret-looking")
			assert.NotContains(t, err.Error(), "sk-nobody")
		})
	}
}

func TestEveryMistakeIsReported(t *testing.T) {
	_, err := simulator.New(simulator.Config{StartLevel: 2, Output: "x", Faults: []simulator.Fault{{Kind: "y"}, {Kind: simulator.FaultStatus}}})
	require.Error(t, err)
	for _, want := range []string{"start_level", "output", "faults[0].kind", "faults[1].status"} {
		assert.Contains(t, err.Error(), want)
	}
}

func TestZeroConfigServesTheDefaultKeys(t *testing.T) {
	sim := newSim(t, simulator.Config{})
	for _, key := range []string{"sim-key-1", "sim-key-2", "sim-key-3"} {
		assert.Equal(t, 200, post(sim, key, say("hi", false, 9)).Code, key)
	}
	require.NoError(t, simulator.DefaultConfig().Validate())
	assert.Error(t, sim.SetFaults([]simulator.Fault{{Kind: "no such"}}))
}
