// Command open measures what many open streams cost the relay, and how it bears what
// it cannot serve:
//
//	open      resident memory of the relay for each of 8,000 open streams
//	stalled   event lag of 50 streams beside 1,000 readers that do not read
//	overload  1,500 requests a second where 500 can be served
//
// Relay and provider are processes of their own, the clients are this one. Each part
// prints its figures and the bar it is held to; the exit status is 1 where one is missed.
//
//	go run ./bench/open                      # all, a few minutes
//	go run ./bench/open -part open -streams 1000 -time 5s
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"
)

// options are the flags.
type options struct {
	relay   string
	streams int
	stalled int
	rounds  int
	time    time.Duration
	profile string
}

func main() {
	var o options
	role := flag.String("role", "", "internal: provider, the process this command starts")
	part := flag.String("part", "", "open, stalled or overload; empty: all")
	flag.StringVar(&o.relay, "relay", "", "a built cc-relay to measure; empty: build the one of this tree")
	flag.IntVar(&o.streams, "streams", 8000, "streams that are open at once")
	flag.IntVar(&o.stalled, "stalled", 1000, "readers that do not read")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of stalled, each with and without them; medians are printed")
	flag.DurationVar(&o.time, "time", 0, "length of a measurement; 0: 20s of open, 6s of stalled, 60s of overload")
	flag.StringVar(&o.profile, "profile", "", "write the relay's heap and goroutine profiles, taken with all streams open, to files of this prefix")
	flag.Parse()
	if *role == "provider" {
		fatal(serveProvider())
		return
	}
	parts := []struct {
		name string
		run  func(*lab, options) (bool, error)
	}{{"open", measureOpen}, {"stalled", measureStalled}, {"overload", measureOverload}}
	passed := true
	for _, p := range parts {
		if *part != "" && *part != p.name {
			continue
		}
		ok, err := inLab(o, p.name, p.run)
		fatal(err)
		passed = passed && ok
	}
	if !passed {
		os.Exit(1)
	}
}

// inLab runs a part with a relay and a provider of its own.
func inLab(o options, name string, run func(*lab, options) (bool, error)) (bool, error) {
	l, err := newLab(o.relay, configs[name])
	if err != nil {
		return false, err
	}
	defer l.close()
	fmt.Printf("%s\n", name)
	return run(l, o)
}

// configs are what a relay is told besides its addresses and its provider.
var configs = map[string]string{
	"open":     "  limits: { requests: 20000, connections: 20000, connections_per_source: 20000 }\n",
	"stalled":  "  limits: { write_time: 5m }\n", // else they are ended while the measurement goes on
	"overload": "  limits: { requests: 100 }\n",
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "open:", err)
		os.Exit(1)
	}
}

// bar prints a figure and whether it is as it should be.
func bar(ok bool, format string, args ...any) bool {
	word := "ok  "
	if !ok {
		word = "MISS"
	}
	fmt.Printf("  %s %s\n", word, fmt.Sprintf(format, args...))
	return ok
}

func quantile(v []time.Duration, q float64) time.Duration {
	if len(v) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(v))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
