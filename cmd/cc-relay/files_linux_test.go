package main

import (
	"fmt"
	"os"

	"github.com/stretchr/testify/require"
)

// files counts what the process has open.
func (p *process) files() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	require.NoError(p.t, err)
	return len(list)
}
