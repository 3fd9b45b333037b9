//go:build !unix

package main

// harden does nothing: cores are none of this system's.
func harden() error { return nil }
