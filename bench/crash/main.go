// Command crash kills the built relay with SIGKILL at random instants under load, on a
// state directory that stays, and starts it again each time. After each start it must
// serve within two seconds; no file of its state may be a reason not to, or be damaged;
// and no client may take an answer that was cut for a whole one. It prints a summary,
// and ends with 1 where something of that did not hold.
//
//	go run ./bench/crash          # from the repository's root: 200 times, about ten minutes
//	go run ./bench/crash -n 1000 -seed 7
//
// Half of the kills come at any moment of the first second and a half, the start
// included; the others where the relay saves what it has learned.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil {
		return
	}
	if !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench/crash:", err)
	}
	os.Exit(1)
}

// options say how often and how.
type options struct {
	kills  int
	lanes  int // relays at a time, each on a directory of its own
	seed   uint64
	binary string
	within time.Duration // that a start may take until the first answer
}

var errNotHeld = errors.New("the relay did not hold what is asked of it")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("crash", flag.ContinueOnError)
	flags.SetOutput(stderr)
	o := options{}
	flags.IntVar(&o.kills, "n", 200, "how often to kill")
	flags.IntVar(&o.lanes, "lanes", 2, "how many relays at a time")
	flags.Uint64Var(&o.seed, "seed", 1, "of the instants")
	flags.DurationVar(&o.within, "within", 2*time.Second, "how long a start may take until the first answer")
	flags.StringVar(&o.binary, "relay", "", "a built cc-relay; empty: build the one of this tree")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cc-relay-crash-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if o.binary == "" {
		o.binary = filepath.Join(dir, "cc-relay")
		if err := build(ctx, o.binary, "."); err != nil {
			return err
		}
	}
	began := time.Now()
	sum, err := crash(ctx, dir, o)
	if err != nil {
		return err
	}
	sum.print(stdout, o, time.Since(began))
	if len(sum.wrong) > 0 {
		return errNotHeld
	}
	return nil
}

// build builds the relay of the repository at root.
func build(ctx context.Context, binary, root string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/cc-relay")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the relay from the repository's root: %w\n%s", err, out)
	}
	return nil
}

// summary is what came of the kills.
type summary struct {
	kills, early int             // early: before the relay served
	listens      []time.Duration // until the relay said that it serves
	starts       []time.Duration // until the first answer
	restored     int             // starts that found what the last run had saved
	whole, cut   int             // answers
	refused      int
	actions      int // of the operator, that were told to be done
	torn         int // lines of audits
	wrong        []string
}

func (s *summary) add(o *summary) {
	s.kills += o.kills
	s.early += o.early
	s.listens = append(s.listens, o.listens...)
	s.starts = append(s.starts, o.starts...)
	s.restored += o.restored
	s.whole += o.whole
	s.cut += o.cut
	s.refused += o.refused
	s.actions += o.actions
	s.torn += o.torn
	s.wrong = append(s.wrong, o.wrong...)
}

func (s *summary) print(w io.Writer, o options, took time.Duration) {
	_, _ = fmt.Fprintf(w, "kills      %d in %s, %d of them before the relay served; seed %d\n", s.kills, took.Round(time.Second), s.early, o.seed)
	_, _ = fmt.Fprintf(w, "starts     %d; they serve after %s; the first answer after %s (at most %s)\n", len(s.starts), spread(s.listens), spread(s.starts), o.within)
	_, _ = fmt.Fprintf(w, "state      found %d times, damaged never unless listed below\n", s.restored)
	_, _ = fmt.Fprintf(w, "answers    %d whole, %d cut by a kill and seen as cut, %d refused\n", s.whole, s.cut, s.refused)
	_, _ = fmt.Fprintf(w, "audit      %d actions told to be done are all recorded; %d torn lines\n", s.actions, s.torn)
	for _, what := range s.wrong {
		_, _ = fmt.Fprintln(w, "WRONG     ", what)
	}
}

// spread is median, 99th percentile and maximum.
func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "nothing"
	}
	all = slices.Sorted(slices.Values(all))
	at := func(share float64) time.Duration {
		return all[int(share*float64(len(all)-1))].Round(time.Millisecond)
	}
	return fmt.Sprintf("%s, p99 %s, longest %s", at(0.5), at(0.99), at(1))
}

// crash spreads the kills over lanes.
func crash(ctx context.Context, dir string, o options) (*summary, error) {
	up, err := newUpstream()
	if err != nil {
		return nil, err
	}
	defer up.close()
	sum := &summary{}
	var failed error
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range min(o.lanes, o.kills) {
		kills := o.kills / o.lanes
		if i < o.kills%o.lanes {
			kills++
		}
		all.Go(func() {
			l, err := newLane(filepath.Join(dir, fmt.Sprint("lane-", i)), up.url, o, uint64(i))
			if err == nil {
				err = l.run(ctx, kills)
			}
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			if l != nil {
				sum.add(&l.sum)
			}
		})
	}
	all.Wait()
	return sum, failed
}
