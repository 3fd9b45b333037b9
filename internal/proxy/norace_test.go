//go:build !race

package proxy_test

// heavy is how many requests a second make a heavy load.
const heavy = 200

// tries is how often something is measured to compare times.
const tries = 100_000
