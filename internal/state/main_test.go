package state_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/state"
)

// asWriter makes the test binary save to the directory it names: what several
// processes do at once takes several processes.
const asWriter = "CC_RELAY_TEST_STATE_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(asWriter); dir != "" {
		os.Exit(writeOften(dir))
	}
	os.Exit(m.Run())
}

// kept is what the tests keep.
type kept struct {
	Name  string            `json:"name"`
	Count uint64            `json:"count"`
	Of    map[string]string `json:"of"`
	Raw   []byte            `json:"raw"`
}

var something = kept{Name: "a \"name\" <ü\u2028>", Count: 1<<64 - 1, Of: map[string]string{"k": "v"}, Raw: []byte{0, 255}}

func open(t testing.TB, path string) *state.Dir {
	t.Helper()
	d, err := state.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// newDir is a state directory of the test's own.
func newDir(t testing.TB) *state.Dir { return open(t, filepath.Join(t.TempDir(), "state")) }

func at(d *state.Dir, name string) string { return filepath.Join(d.Path(), name) }

// names lists the directory.
func names(t testing.TB, d *state.Dir) []string {
	t.Helper()
	entries, err := os.ReadDir(d.Path())
	require.NoError(t, err)
	all := []string{}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}
