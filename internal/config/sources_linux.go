package config

import (
	"bytes"
	"os"
	"strconv"
)

// blank overwrites a variable in the block that the kernel gave the process at its start
// and goes on to show as /proc/PID/environ: Go's own environment is a copy. It does
// nothing where the process may not write to its memory there, as one that is not
// dumpable and not root's may not; then only root can read the block, either.
func blank(name, value string) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	// The second field, a name in brackets, may hold anything; env_start and env_end
	// are the 50th and the 51st. https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 49 {
		return
	}
	start, err := strconv.ParseInt(string(fields[47]), 10, 64)
	if err != nil {
		return
	}
	end, err := strconv.ParseInt(string(fields[48]), 10, 64)
	if err != nil || start <= 0 || end <= start {
		return
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer func() { _ = mem.Close() }()
	block := make([]byte, end-start)
	if _, err := mem.ReadAt(block, start); err != nil {
		return
	}
	entry := []byte(name + "=" + value + "\x00")
	for at := 0; at < len(block); {
		if bytes.HasPrefix(block[at:], entry) {
			_, _ = mem.WriteAt(make([]byte, len(value)), start+int64(at+len(name)+1))
		}
		next := bytes.IndexByte(block[at:], 0)
		if next < 0 {
			return
		}
		at += next + 1
	}
}
