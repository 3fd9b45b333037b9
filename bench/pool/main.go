// Command pool measures what different ways to choose a key make of a pool: it
// replays the same traffic through each of them, in virtual time, against
// simulated providers with limits, prompt caches and 429s, and clients that retry.
// It shows shares of what is possible, not speed; equal flags give equal figures.
//
//	go run ./bench/pool            # the whole table, in minutes
//	go run ./bench/pool -policies reference,random -pools 8mix -loads 0.95
//	go run ./bench/pool -trace requests.csv
//
// # Terms
//
// Load, or rho, is the demand over the tightest summed limit of the pool when every
// prompt is read from cache as far as it can be: the trace is first played against
// one key without limits (the ideal run), and sessions are drawn until they demand
// that much. Goodput is the prompt and output tokens of completed turns over
// min(1, 1/rho) of those of the ideal run. A run lasts 18 minutes, of which the
// first 3 do not count; policies start without knowing a limit.
//
// # Assumptions
//
// An answer begins 1 s after admission, and 1 s later for each 10,000 uncached
// tokens, and comes at 60 tokens a second; a 429 takes 0.1 s. Headers come with the
// first byte and show the levels at admission, tokens to the nearest thousand. A
// policy sees bytes; one token has 3.2 to 4.8 of them, different for each turn. A
// request is sent to at most 4 keys; a client tries 3 times in all, and comes back
// after what retry-after says if that is up to 60 s. A turn that fails even so ends
// its session, unless -go-on is set. Breakpoints stand behind the system prompt,
// behind the last prompt, and behind this one; the prompt's last, incomplete block
// of 512 tokens is never cached.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench/pool:", err)
		}
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("pool", flag.ContinueOnError)
	flags.SetOutput(stderr)
	names := flags.String("policies", strings.Join(policyNames(), ","), "which strategies")
	works := flags.String("workloads", strings.Join(workloadNames(), ","), "which traffic")
	where := flags.String("pools", strings.Join(poolNames(), ","), "which sets of keys")
	loads := flags.String("loads", "0.5,0.8,0.95,1.2", "demand over the tightest limit")
	seeds := flags.Int("seeds", 5, "runs of each; the worst figures are printed")
	peerSeeds := flags.Int("peer-seeds", 1, "runs of each strategy that is there to compare with, at most -seeds")
	first := flags.Uint64("seed", 1, "the first seed")
	minutes := flags.Int("minutes", 18, "simulated time; the first 3 minutes do not count")
	file := flags.String("trace", "", "replay this CSV instead of generated traffic: "+traceHeader)
	goOn := flags.Bool("go-on", false, "a turn that failed does not end its session")
	restart := flags.Duration("restart", 0, "restart the relay at this time of each run; 0: never")
	asJSON := flags.Bool("json", false, "one JSON object a run instead of a table")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s := suite{seeds: *seeds, peerSeeds: *peerSeeds, restart: *restart, firstSeed: *first, goOn: *goOn, window: Window{From: 3 * time.Minute, To: time.Duration(*minutes) * time.Minute}}
	var err error
	if s.policies, err = pick(*names, "policies", policyNames()); err != nil {
		return err
	}
	if s.pools, err = pick(*where, "pools", poolNames()); err != nil {
		return err
	}
	if s.workloads, err = pick(*works, "workloads", workloadNames()); err != nil {
		return err
	}
	if s.loads, err = parseLoads(*loads); err != nil {
		return err
	}
	if *minutes < 4 || *minutes > 1440 || *seeds < 1 || *peerSeeds < 1 || *restart < 0 {
		return fmt.Errorf("-minutes: got %d, want 4 to 1440; -seeds: got %d, -peer-seeds: got %d, want at least 1; -restart: got %v, want 0 or more",
			*minutes, *seeds, *peerSeeds, *restart)
	}
	if *file != "" {
		if s.file, err = readTraceFile(*file); err != nil {
			return err
		}
		s.workloads = []string{"trace"}
	}
	results, err := s.run(stderr)
	if err != nil {
		return err
	}
	if !*asJSON {
		return s.table(stdout, results)
	}
	enc := json.NewEncoder(stdout)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// pick splits a list of names, all of which must be known.
func pick(list, flag string, known []string) ([]string, error) {
	names := strings.Split(list, ",")
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("-%s: got %q, want some of %s", flag, n, strings.Join(known, ","))
		}
	}
	return names, nil
}

func parseLoads(list string) ([]float64, error) {
	var loads []float64
	for _, s := range strings.Split(list, ",") {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !(v > 0 && v <= 5) {
			return nil, fmt.Errorf("-loads: got %q, want numbers above 0 and up to 5", s)
		}
		loads = append(loads, v)
	}
	return loads, nil
}
