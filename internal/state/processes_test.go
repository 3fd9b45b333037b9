package state_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/state"
)

// writeOften is a process that saves a large value of its own again and again.
func writeOften(path string) int {
	d, err := state.Open(path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	mine := kept{Count: uint64(os.Getpid()), Raw: []byte(strings.Repeat(fmt.Sprint(os.Getpid(), " "), 20_000))}
	for range 100 {
		if err := d.Save("pools", 1, mine); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return 0
}

func TestSeveralProcessesNeverMakeAMix(t *testing.T) {
	d := newDir(t)
	ended := make(chan error)
	const writers = 2
	for range writers {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asWriter+"="+d.Path())
		go func() {
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			ended <- err
		}()
	}
	seen := map[uint64]int{}
	for left := writers; left > 0; {
		select {
		case err := <-ended:
			require.NoError(t, err)
			left--
		default:
		}
		var got kept
		err := d.Load("pools", 1, &got)
		if len(seen) == 0 && err == state.ErrNone { //nolint:errorlint // before the first one has written
			continue
		}
		require.NoError(t, err)
		require.Equal(t, strings.Repeat(fmt.Sprint(got.Count, " "), 20_000), string(got.Raw))
		seen[got.Count]++
	}
	assert.Len(t, seen, writers, "processes whose value was read")
	assert.Equal(t, []string{"pools"}, names(t, d))
}
