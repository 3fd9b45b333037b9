// Command fault plays what goes wrong at providers against the built relay and
// scores how it behaves: the sixteen scenarios of the public Failover Bench (S01
// to S16) in the form of the Messages API, with variants of them (S07b), and
// scenarios of our own (O01 …). Each has a primary and a fallback provider and is
// played streamed and not streamed, with a relay process of its own, in real time.
// All run side by side, so the whole takes as long as the longest: two minutes.
//
//	go run ./bench/fault                 # from the repository's root
//	go run ./bench/fault -only S08,O0
//	go run ./bench/fault -write docs/faultbench.md
//
// A scenario is a line of the table in scenarios.go; what is sent and checked is
// in plays.go, what an answer must look like in checks.go and bench/rig.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"cc-relay/bench/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil {
		return
	}
	if !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench/fault:", err)
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("fault", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "play only the scenarios whose id begins with one of these, comma separated")
	page := flags.String("write", "", "also write the result as a page to this file")
	binary := flags.String("relay", "", "a built cc-relay to play against; empty: build the one of this tree")
	logs := flags.String("logs", "", "keep what each relay logs in this directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *page != "" && *only != "" {
		return errors.New("-write and -only: a page shows all scenarios; leave one of both out")
	}
	chosen, err := pick(*only)
	if err != nil {
		return err
	}
	if *logs != "" {
		if err := os.MkdirAll(*logs, 0o755); err != nil {
			return err
		}
	}
	rows, err := playAll(ctx, chosen, *binary, *logs, stderr)
	if err != nil {
		return err
	}
	var table bytes.Buffer
	failed := writeTable(&table, rows)
	if _, err := stdout.Write(table.Bytes()); err != nil {
		return err
	}
	if *page != "" {
		if err := os.WriteFile(*page, append([]byte(introduction), table.Bytes()...), 0o644); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d failed", failed)
	}
	return nil
}

// pick chooses by the beginning of ids; "" is all.
func pick(only string) ([]scenario, error) {
	if only == "" {
		return scenarios, nil
	}
	var chosen []scenario
	prefixes := strings.Split(only, ",")
	for _, p := range prefixes {
		if p == "" || !slices.ContainsFunc(scenarios, func(s scenario) bool { return strings.HasPrefix(s.id, p) }) {
			return nil, fmt.Errorf("-only: no scenario begins with %q", p)
		}
	}
	for _, s := range scenarios {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s.id, p) }) {
			chosen = append(chosen, s)
		}
	}
	return chosen, nil
}

// playAll plays every scenario in both ways at once. Its error means that nothing
// could be played; what a scenario meets is in its row.
func playAll(ctx context.Context, chosen []scenario, binary, logs string, progress io.Writer) ([]row, error) {
	dir, err := os.MkdirTemp("", "cc-relay-fault")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if binary == "" {
		binary = filepath.Join(dir, "cc-relay")
		err = rig.Build(ctx, binary)
	} else {
		binary, err = filepath.Abs(binary) // relays run in dir
	}
	if err != nil {
		return nil, err
	}
	h := &hall{binary: binary, dir: dir, logs: logs, starts: make(chan struct{}, 2)}
	rows := make([]row, len(chosen))
	var wg sync.WaitGroup
	var mu sync.Mutex // guards progress
	for i, s := range chosen {
		rows[i].scenario = s
		for _, streamed := range []bool{true, false} {
			play, result := s.whole, &rows[i].whole
			if streamed {
				play, result = s.streamed, &rows[i].streamed
			}
			if play == nil {
				continue
			}
			wg.Go(func() {
				r := h.play(ctx, s, streamed, play)
				*result = &r
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintf(progress, "%s %s: %s in %.1f s\n", s.id, mode(streamed), r, r.took.Seconds())
			})
		}
	}
	wg.Wait()
	return rows, ctx.Err()
}

func mode(streamed bool) string {
	if streamed {
		return "streamed"
	}
	return "not streamed"
}
