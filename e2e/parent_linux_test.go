package e2e_test

import (
	"os/exec"
	"syscall"
)

// dieWithTest makes the kernel end cmd with the test process, however that ends.
func dieWithTest(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
