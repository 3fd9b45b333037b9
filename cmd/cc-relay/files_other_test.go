//go:build !linux

package main

import (
	"bytes"
	"os/exec"
	"strconv"

	"github.com/stretchr/testify/require"
)

// files counts what the process has open.
func (p *process) files() int {
	out, err := exec.Command("lsof", "-n", "-P", "-p", strconv.Itoa(p.cmd.Process.Pid)).Output()
	require.NoError(p.t, err)
	return bytes.Count(out, []byte("\n"))
}
