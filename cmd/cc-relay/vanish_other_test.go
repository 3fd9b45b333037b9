//go:build !linux

package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// testPeersThatVanish: there is nothing to set, and listening works without it.
func testPeersThatVanish(t *testing.T) {
	l, err := listen("127.0.0.1:0", nil, nil)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}
