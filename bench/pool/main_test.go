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
	args := []string{"-trace", path, "-pools", "2mix", "-loads", "0.01", "-policies", "random,reference", "-seeds", "2", "-minutes", "5"}
	var out bytes.Buffer
	require.NoError(t, run(args, &out, io.Discard))
	assert.Contains(t, out.String(), "| trace | 2mix | 0.01 | random |")
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

func TestFlagsSayWhatTheyWant(t *testing.T) {
	for name, tc := range map[string]struct{ args, want string }{
		"policy":   {"-policies nobody", `-policies: got "nobody", want some of`},
		"pool":     {"-pools 9eq", `-pools: got "9eq"`},
		"workload": {"-workloads agent,", `-workloads: got ""`},
		"load":     {"-loads 0", `-loads: got "0"`},
		"minutes":  {"-minutes 3", "-minutes: got 3, want 4"},
		"seeds":    {"-seeds 0", "-seeds: got 0"},
		"trace":    {"-trace no-such-file", "no-such-file"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(strings.Fields(tc.args), io.Discard, io.Discard)
			assert.ErrorContains(t, err, tc.want)
		})
	}
}
