package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cc-relay/bench/rig"
)

// binary is the relay of this tree.
var binary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cc-relay-soak-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "cc-relay")
	return m.Run()
}

// short is a run of a few seconds, small enough for two busy processors.
func short(t *testing.T, o options) *report {
	t.Helper()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Log("there is no /proc to measure the relay by: nothing is tested")
		return nil
	}
	if _, err := os.Stat(binary); err != nil {
		require.NoError(t, rig.Build(t.Context(), binary))
	}
	o.relay, o.length, o.rps = binary, 8*time.Second, 30
	o.shortest, o.longest, o.within = time.Second, 3*time.Second, 5*time.Second
	r, err := soak(t.Context(), o, io.Discard)
	require.NoError(t, err)
	t.Log("\n" + r.text())
	return r
}

// nothingRuns waits for what ends by itself; on a busy machine that takes longer than
// goleak waits.
func nothingRuns(t *testing.T) {
	t.Helper()
	var err error
	for range 10 {
		if err = goleak.Find(); err == nil {
			return
		}
	}
	t.Error(err)
}

func TestNothingIsLostWhileTheConfigurationChanges(t *testing.T) {
	defer nothingRuns(t)
	r := short(t, options{reloads: 80, streams: 40})
	if r == nil {
		return
	}
	assert.Empty(t, r.wrong())
	assert.Greater(t, r.changer.done, 5)
	assert.Greater(t, r.log.applied, 3)
	assert.Greater(t, r.account.compared[complete], 100)
	assert.Zero(t, r.account.partial)
	assert.True(t, r.after.told, "no metrics")
}

func TestTheAccountIsRightWhateverFails(t *testing.T) {
	defer nothingRuns(t)
	r := short(t, options{mixed: true, reloads: 8, streams: 100, faults: 300})
	if r == nil {
		return
	}
	assert.Empty(t, r.wrong())
	assert.Greater(t, r.account.compared[complete], 100)
	assert.Positive(t, r.account.compared[left])
	assert.Positive(t, r.account.partial)
	assert.Positive(t, r.broken)
	assert.Equal(t, r.account.client, r.account.relay)
	assert.Equal(t, r.account.client, r.account.provider)
	assert.Positive(t, r.account.relay.CacheRead)
}
