//go:build !race

package proxy_test

// heavy is how many requests a second make a heavy load.
const heavy = 200
