// Command pool measures what different ways to choose a key make of a pool: it
// replays the same traffic through each of them, in virtual time, against
// simulated providers with limits, prompt caches and 429s, and clients that retry.
// It shows shares of what is possible, not speed. Equal flags give equal figures,
// but for ways of ours that draw keys: random, weighted, and any on 64 keys.
//
//	go run ./bench/pool            # the whole table, in minutes
//	go run ./bench/pool -policies ours,reference -pools 8mix -loads 0.95
//	go run ./bench/pool -check ours -seed 100 -seeds 10
//	go run ./bench/pool -scenario dead,cut -policies ours
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
// # Policies
//
// ours is the relay's pool, internal/keypool, as it is; ours-… are its selectors
// with affinity off. The others are what gateways do, with the usual cool-down after
// a 429. reference is the pool's policy written down a second time as plainly as
// possible, against which ours can be checked.
//
// # Traffic
//
// agent: sessions of a coding agent and its sub-agents. conv: chats whose prompts
// contain what was said before. plain: independent prompts. syn: independent
// prompts that mostly begin with one of 50 system prompts.
//
// # Scenarios
//
// dead: a key answers 401. cut, cut-one: the limits of all keys, or of one, fall to
// a quarter. restart: the relay is restarted. All of them 4 minutes before the end.
// 529: one request in a hundred meets an overloaded provider, all the time.
//
// # Assumptions
//
// An answer begins 1 s after admission, and 1 s later for each 10,000 uncached
// tokens, and comes at 60 tokens a second; another answer than 200 takes 0.1 s.
// Headers come with the first byte and show the levels at admission, tokens to the
// nearest thousand. A policy sees bytes; one token has 3.2 to 4.8 of them, different
// for each turn. A request is sent to at most 4 keys; a client tries 3 times in all,
// and comes back after what retry-after says if that is up to 60 s. A session goes
// on after a turn that fails even so, unless -stop is set. A turn adds three content
// blocks to a prompt; breakpoints stand behind the system prompt, behind the last
// prompt, and behind this one, and a provider looks back 20 blocks from each. The
// prompt's last, incomplete block of 512 tokens is never cached.
package main

import (
	"cmp"
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
	names := flags.String("policies", strings.Join(defaultPolicies(), ","), "which strategies; also "+crossCheck)
	works := flags.String("workloads", "agent,conv,plain", "which traffic; also syn")
	where := flags.String("pools", "", "which sets of keys; none: 2mix,8eq,8mix,64mix, or the scenario's")
	loads := flags.String("loads", "", "demand over the tightest limit; none: 0.5,0.8,0.95,1.2, or the scenario's")
	seeds := flags.Int("seeds", 5, "runs of each; the worst figures are printed")
	large := flags.Int("large-seeds", 2, "runs of each with 64mix, at most -seeds: one has as much traffic as eight with the others")
	few := flags.Int("peer-seeds", 1, "runs of each strategy that is there to compare with, at most -seeds")
	first := flags.Uint64("seed", 1, "the first seed")
	minutes := flags.Int("minutes", 18, "simulated time; the first 3 minutes do not count")
	file := flags.String("trace", "", "replay this CSV instead of generated traffic: "+traceHeader)
	events := flags.String("scenario", "", "what goes wrong in the middle, some of "+strings.Join(scenarioNames(), ",")+"; none: nothing")
	stop := flags.Bool("stop", false, "a turn that failed ends its session")
	checked := flags.String("check", "", "fail, naming each bar that this policy misses")
	asJSON := flags.Bool("json", false, "one JSON object a run instead of a table")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s := suite{
		seeds: *seeds, fewSeeds: *few, large: *large, firstSeed: *first, stop: *stop, scenarios: []string{""},
		window: Window{From: 3 * time.Minute, To: time.Duration(*minutes) * time.Minute},
	}
	if *minutes < 8 || *minutes > 1440 || *seeds < 1 || *few < 1 || *large < 1 {
		return fmt.Errorf("-minutes: got %d, want 8 to 1440; -seeds: got %d, -peer-seeds: got %d; -large-seeds: got %d, want at least 1", *minutes, *seeds, *few, *large)
	}
	var errs [5]error
	if *events == "" {
		*loads, *where = cmp.Or(*loads, "0.5,0.8,0.95,1.2"), cmp.Or(*where, "2mix,8eq,8mix,64mix")
	} else {
		s.scenarios, errs[0] = pick(*events, "scenario", scenarioNames())
	}
	s.policies, errs[1] = pick(*names, "policies", policyNames())
	if *where != "" {
		s.pools, errs[2] = pick(*where, "pools", poolNames())
	}
	s.workloads, errs[3] = pick(*works, "workloads", workloadNames())
	s.loads, errs[4] = parseLoads(*loads)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if *checked != "" && !slices.Contains(s.policies, *checked) {
		return fmt.Errorf("-check: got %q, want one of -policies, %s", *checked, *names)
	}
	if *file != "" {
		var err error
		if s.file, err = readTraceFile(*file); err != nil {
			return err
		}
		s.workloads = []string{"trace"}
	}
	return s.report(*checked, *asJSON, stdout, stderr)
}

// report plays the suite and writes what came of it.
func (s suite) report(checked string, asJSON bool, stdout, stderr io.Writer) error {
	results, err := s.run(stderr)
	if err != nil {
		return err
	}
	rows := worsts(results)
	if asJSON {
		err = writeJSON(stdout, results)
	} else {
		err = s.table(stdout, rows)
	}
	if err != nil {
		return err
	}
	if missed := check(checked, rows); len(missed) > 0 {
		return fmt.Errorf("%s misses %d bars:\n%s", checked, len(missed), strings.Join(missed, "\n"))
	}
	return nil
}

func writeJSON(to io.Writer, results []Result) error {
	enc := json.NewEncoder(to)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// crossCheck is played only where it is asked for.
const crossCheck = "reference"

// defaultPolicies are ours, ours without affinity, then the others.
func defaultPolicies() []string {
	names := slices.DeleteFunc(policyNames(), func(n string) bool { return n == crossCheck })
	slices.SortStableFunc(names, func(a, b string) int { return policies[a].rank() - policies[b].rank() })
	return names
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

// parseLoads splits a list of loads; "" is none.
func parseLoads(list string) ([]float64, error) {
	if list == "" {
		return nil, nil
	}
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
