package main

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The test of a row of the catalogue of faults, by the row's name.

func TestFault(t *testing.T) {
	t.Run("P01", testKills)
}

// testKills is `make crash` with two kills, one of them where the relay saves.
func testKills(t *testing.T) {
	dir := t.TempDir()
	o := options{kills: 2, lanes: 1, seed: 1, binary: filepath.Join(dir, "cc-relay"), within: 20 * time.Second} // the machine does other things, too
	require.NoError(t, build(t.Context(), o.binary, "../.."))
	sum, err := crash(t.Context(), dir, o)
	require.NoError(t, err)
	var text bytes.Buffer
	sum.print(&text, o, 0)
	t.Log("\n" + text.String())
	assert.Empty(t, sum.wrong)
	assert.Equal(t, 2, sum.kills)
	assert.Positive(t, sum.whole)
	assert.Positive(t, sum.cut)
	assert.Positive(t, sum.actions)
	assert.GreaterOrEqual(t, len(sum.starts), 2)
}
