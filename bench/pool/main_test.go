package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTableOfATraceFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.csv")
	rows := traceHeader + "\n1000,a,5000,200,-1,0,1,4\n60000,a,5700,200,0,9,1,4\n200000,b,5000,200,-1,0,1,4\n"
	require.NoError(t, os.WriteFile(path, []byte(rows), 0o600))
	args := []string{"-trace", path, "-pools", "2mix", "-loads", "0.01", "-policies", "random,reference", "-seeds", "2", "-minutes", "8"}
	var out bytes.Buffer
	require.NoError(t, run(args, &out, io.Discard))
	assert.Contains(t, out.String(), "| | random | reference |\n|---|---|---|\n| trace on 2mix at 0.01 | 1.00 / 0 | 1.00 / 0 |\n")
	assert.Contains(t, out.String(), "| trace | 2mix | 0.01 | reference | 1.000 | 0.0 | 0.0 |")

	out.Reset()
	require.NoError(t, run(append(args, "-json"), &out, io.Discard))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3, "a strategy to compare with has one seed")
	var r Result
	require.NoError(t, json.Unmarshal([]byte(lines[2]), &r))
	assert.Equal(t, "reference", r.Policy)
	assert.Equal(t, uint64(2), r.Seed)
}

// What is not played has an empty cell.
func TestSideBySide(t *testing.T) {
	s := suite{policies: []string{"ours", "random", "reference"}}
	var b strings.Builder
	s.sideBySide(&b, []Result{
		{Workload: "conv", Pool: "8eq", Load: 0.8, Policy: "ours", Goodput: 1},
		{Workload: "conv", Pool: "8eq", Load: 0.8, Policy: "random", Goodput: 0.5, Refused: 7},
		{Workload: "conv", Pool: "8eq", Load: 1.2, Policy: "ours", Goodput: 0.9},
		{Workload: "conv", Pool: "8eq", Load: 1.2, Policy: "reference", Goodput: 0.95},
	})
	assert.Equal(t, "| | ours | random | reference |\n|---|---|---|---|\n"+
		"| conv on 8eq at 0.8 | 1.00 / 0 | 0.50 / 7 | |\n"+
		"| conv on 8eq at 1.2 | 0.90 / 0 | | 0.95 / 0 |\n", b.String())
}

func TestDefaultPoliciesBeginWithOurs(t *testing.T) {
	names := defaultPolicies()
	assert.Equal(t, "ours", names[0])
	assert.Equal(t, "ours-least-loaded", names[1])
	assert.NotContains(t, names, "reference")
	assert.Len(t, names, len(policies)-1)
}

func TestCheckNamesWhatIsMissed(t *testing.T) {
	args := []string{"-workloads", "plain", "-pools", "2mix", "-loads", "0.8", "-seeds", "1", "-minutes", "8", "-policies", "random,reference", "-check"}
	assert.NoError(t, run(append(args, "reference"), io.Discard, io.Discard))
	assert.ErrorContains(t, run(append(args, "random"), io.Discard, io.Discard), "plain on 2mix at 0.8: 429s per 1,000")
}

func TestFlagsSayWhatTheyWant(t *testing.T) {
	for name, tc := range map[string]struct{ args, want string }{
		"policy":   {"-policies nobody", `-policies: got "nobody", want some of`},
		"pool":     {"-pools 9eq", `-pools: got "9eq"`},
		"workload": {"-workloads agent,", `-workloads: got ""`},
		"load":     {"-loads 0", `-loads: got "0"`},
		"minutes":  {"-minutes 7", "-minutes: got 7, want 8"},
		"scenario": {"-scenario flood", `-scenario: got "flood"`},
		"check":    {"-policies random -check reference", `-check: got "reference"`},
		"seeds":    {"-seeds 0", "-seeds: got 0"},
		"trace":    {"-trace no-such-file", "no-such-file"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(strings.Fields(tc.args), io.Discard, io.Discard)
			assert.ErrorContains(t, err, tc.want)
		})
	}
}
