package rig_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/bench/rig"
)

// binary is a relay that says what it is given and then runs until it is told to end.
func binary(t *testing.T, says string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "relay")
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"+says), 0o700))
	return file
}

func TestStartWaitsForTheAddress(t *testing.T) {
	var log bytes.Buffer
	r, err := rig.Start(t.Context(), binary(t, `echo '{"message":"a warning"}
{"listen":"127.0.0.1:80","message":"relay serves"}' >&2; exec sleep 60`), t.TempDir(), "config.yaml", &log)
	require.NoError(t, err)
	assert.Equal(t, "http://127.0.0.1:80", r.URL)
	assert.ErrorContains(t, r.Stop(), "signal: terminated")
	assert.Contains(t, log.String(), "a warning")
}

func TestStartTellsWhatARelaySaidThatDidNot(t *testing.T) {
	_, err := rig.Start(t.Context(), binary(t, `printf 'one\ntwo' >&2`), t.TempDir(), "config.yaml", &bytes.Buffer{})
	assert.EqualError(t, err, "the relay did not start: one two")
}
