//go:build unix && !linux

package main

// harden keeps keys and prompts, which are in the relay's memory, out of cores.
func harden() error { return noCore() }
