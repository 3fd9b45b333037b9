// Command leaks looks for secrets and prompts where none belong. It sends fuzzed requests
// with canaries in every place through the built relay, at each log level and in both log
// formats, to providers that say all they know in bodies, headers, errors and streams,
// and collects everything that comes out: logs, answers, metrics, traces, events, what
// the admin listener and the command line tell, and what is kept on disk.
//
//	go run ./bench/leaks                     # from the repository's root; 1,000,000 requests
//	go run ./bench/leaks -n 10000            # what the tests do
//
// A secret is a provider's key, a client's token or an extra header's value; it belongs in
// a request to a provider. A prompt belongs there, too, and in the answer to the client
// that sent it. In each run one canary is planted for each kind of output, and one that
// the relay cannot know of is sent through it: if one of them is not found, the run fails.
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
		fmt.Fprintln(os.Stderr, "bench/leaks:", err)
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("leaks", flag.ContinueOnError)
	flags.SetOutput(stderr)
	n := flags.Int("n", 1_000_000, "how many requests to send")
	seed := flags.Uint64("seed", 1, "of what is sent and answered")
	binary := flags.String("relay", "", "a built cc-relay; empty: build the one of this tree")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "leaks")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if *binary == "" {
		*binary = filepath.Join(dir, "cc-relay")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", *binary, "./cmd/cc-relay").CombinedOutput(); err != nil {
			return fmt.Errorf("build the relay from the repository's root: %w\n%s", err, out)
		}
	}
	began := time.Now()
	got, err := search(ctx, *binary, dir, *n, *seed, func(done int) { fmt.Fprintf(stderr, "%d requests\n", done) })
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\nTime: %v, seed %d.\n", got, time.Since(began).Round(time.Second), *seed)
	return got.check()
}

// levels and formats of logs; a round has one of each.
var (
	levels  = []string{"trace", "debug", "info", "warn", "error"}
	formats = []string{"json", "console"}
)

// roundSize is how many requests a relay gets before another takes its place: keys that
// providers refuse stay refused, and a pool of dead keys asks no provider.
const roundSize = 2500

// search sends n requests through as many relays as that takes, and returns what came out.
func search(ctx context.Context, binary, dir string, n int, seed uint64, progress func(done int)) (*findings, error) {
	got := newFindings()
	w, err := newWorld(got, seed)
	if err != nil {
		return nil, err
	}
	defer w.close()
	settings := len(levels) * len(formats)
	rounds := max(settings, (n+roundSize-1)/roundSize)
	for i := range rounds {
		size := n*(i+1)/rounds - n*i/rounds
		setting := i % settings
		err := w.round(ctx, round{
			binary: binary, dir: filepath.Join(dir, fmt.Sprint(i)), number: i, size: size,
			level: levels[setting%len(levels)], format: formats[setting/len(levels)],
		})
		if err != nil {
			return nil, fmt.Errorf("round %d, level %s, format %s: %w", i, levels[setting%len(levels)], formats[setting/len(levels)], err)
		}
		if done := n * (i + 1) / rounds; (i+1)%settings == 0 {
			progress(done)
		}
	}
	got.plantOneInEach()
	return got, nil
}
