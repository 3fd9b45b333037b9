// Command cuts cuts answers of providers at random places, in every way that a
// network or a provider can, and checks what the client of the relay gets: one
// provider's whole answer, byte for byte, or an error that it cannot overlook. A
// truncated answer that a client could take for complete is what must never be.
//
// The relay is the real handler behind a server, with its router and key pools; it,
// its providers and its clients talk over loopback in this process. Each client has
// a relay of its own. With every answer the rest is checked, too: each lease is
// settled, there is one access record, and it says what the client was told of usage.
//
//	go run ./bench/cuts                       # 100,000 cuts, from the repository's root
//	go run ./bench/cuts -n 1000 -seed 7
//	go run ./bench/cuts -seed 7 -case 123     # that one alone, with pools and breakers new
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err == nil {
		return
	}
	if !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench/cuts:", err)
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("cuts", flag.ContinueOnError)
	n := flags.Int("n", 100_000, "how many answers to cut")
	seed := flags.Uint64("seed", 0, "of all that is chosen; 0: another each time")
	clients := flags.Int("clients", 64, "clients side by side, each with a relay")
	streams := flags.String("streams", "testdata/streams", "where the recorded streams are")
	one := flags.Uint64("case", 0, "play only this one of the seed's cases, by its number")
	if err := flags.Parse(args); err != nil {
		return err
	}
	golden, err := readGolden(*streams)
	if err != nil {
		return err
	}
	s := newScore(cmp.Or(*seed, uint64(time.Now().UnixNano())))
	began := time.Now()
	if *one > 0 {
		s.alone = true
		s.number.Store(*one - 1)
		*clients = 1
	}
	if err := s.play(ctx, golden, *n, *clients); err != nil {
		return err
	}
	s.write(stdout, time.Since(began))
	if s.wrong > 0 {
		return fmt.Errorf("%d of %d answers ended dishonestly", s.wrong, s.cut)
	}
	return ctx.Err()
}

// score is what came of all cases.
type score struct {
	seed   uint64
	number atomic.Uint64 // of the case begun last
	alone  bool          // one case is enough

	mu       sync.Mutex
	cut      int
	tally    map[string]map[string]int // cases by how the first answer was cut and how it ended
	stopped  int
	wrong    int
	mistakes []string // the first of them
}

func newScore(seed uint64) *score { return &score{seed: seed, tally: map[string]map[string]int{}} }

// most is how many mistakes are told.
const most = 20

// play plays cases until n answers have been cut.
func (s *score) play(ctx context.Context, golden []string, n, clients int) error {
	var wg sync.WaitGroup
	failed := make([]error, clients)
	for i := range clients {
		wg.Go(func() { failed[i] = s.client(ctx, golden, n) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

func (s *score) client(ctx context.Context, golden []string, n int) error {
	st, err := newStand(golden)
	if err != nil {
		return err
	}
	defer st.close()
	for ctx.Err() == nil && s.more(n) {
		t, res, err := st.run(ctx, s.seed, s.number.Add(1))
		if ctx.Err() != nil {
			break
		}
		s.add(t, res, err)
		if s.alone {
			break
		}
	}
	return st.finish()
}

func (s *score) more(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cut < n && s.wrong < most
}

func (s *score) add(t *turn, res result, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	how := whole
	switch {
	case len(t.plays) > 0 && t.how != whole:
		how = t.how
		if res.end != endSlow {
			s.cut++
		}
	case len(t.plays) == 0:
		how = "not asked"
	}
	if s.tally[how] == nil {
		s.tally[how] = map[string]int{}
	}
	s.tally[how][res.end]++
	if res.stopped {
		s.stopped++
	}
	if err != nil {
		s.wrong++
		s.mistakes = append(s.mistakes, fmt.Sprintf("%s:\n    %v", t, err))
	}
}

func (s *score) write(w io.Writer, took time.Duration) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "cut\tcases\t")
	for _, end := range ends {
		fmt.Fprintf(table, "%s\t", end)
	}
	fmt.Fprintln(table)
	for _, how := range append(cuts, whole, "not asked") {
		cases := 0
		for _, n := range s.tally[how] {
			cases += n
		}
		fmt.Fprintf(table, "%s\t%d\t", how, cases)
		for _, end := range ends {
			fmt.Fprintf(table, "%d\t", s.tally[how][end])
		}
		fmt.Fprintln(table)
	}
	_ = table.Flush()
	fmt.Fprintf(w, "\n%d cuts in %.0f s, seed %d: %d that a client could take for complete, or wrong otherwise\n", s.cut, took.Seconds(), s.seed, s.wrong)
	fmt.Fprintf(w, "%d of the errors came after stop_reason, with all content shown\n", s.stopped)
	for _, m := range s.mistakes {
		fmt.Fprintln(w, "\n"+m)
	}
}
