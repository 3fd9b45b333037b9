//go:build race

package proxy_test

// heavy is how many requests a second make a heavy load: less under the race
// detector, where each costs ten times as much.
const heavy = 50

// tries is how often something is measured to compare times.
const tries = 10_000
