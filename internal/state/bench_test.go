package state_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// entry is of the size of what a relay keeps most of.
type entry struct {
	Hash    uint64 `json:"h"`
	Scope   int    `json:"s"`
	Expires int64  `json:"e"`
	Life    int64  `json:"l"`
}

// table is as large as what a busy relay keeps at most: 6 MB.
func table() []entry {
	all := make([]entry, 100_000)
	for i := range all {
		all[i] = entry{uint64(i) * 0x9e3779b97f4a7c15, 1, 1_763_900_000_000, 300_000}
	}
	return all
}

func BenchmarkSave(b *testing.B) {
	d, v := newDir(b), table()
	b.ReportAllocs()
	for b.Loop() {
		require.NoError(b, d.Save("pools", 1, v))
	}
}

func BenchmarkLoad(b *testing.B) {
	d := newDir(b)
	require.NoError(b, d.Save("pools", 1, table()))
	b.ReportAllocs()
	for b.Loop() {
		var v []entry
		require.NoError(b, d.Load("pools", 1, &v))
	}
}
