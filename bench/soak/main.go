// Command soak runs the built relay for long, under load, while its configuration
// changes or everything around it fails, and looks whether anything is lost: a request,
// a stream, a token of the account, memory, a file descriptor. Providers are the
// product's simulator, clients retry nothing.
//
//	go run ./bench/soak            # 10 minutes: 1,000 reloads, 200 requests a second, 500 streams
//	go run ./bench/soak -mixed     # 10 minutes: faults, slow readers, leavers, 2,000 streams
//
// It exits with 1 when anything is missing. What the configuration is changed to and how
// the effect is seen is a line of the table in changes.go.
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
	"syscall"
	"time"
)

// options are what a run is made of.
type options struct {
	mixed             bool
	length            time.Duration
	reloads           int
	rps               int
	streams           int
	shortest, longest time.Duration // of a long stream
	within            time.Duration // in which a reload must have its effect
	faults            int           // a minute, at the network of the mixed run
	relay             string        // binary; empty: the one of this tree is built
	log               string        // file to keep the relay's log in; empty: none
}

// ramp is the time in which the long streams begin.
func (o options) ramp() time.Duration { return min(o.length/10, o.shortest) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil {
		return
	}
	if !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench/soak:", err)
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var o options
	var page string
	flags.BoolVar(&o.mixed, "mixed", false, "mixed traffic with faults of the network, slow readers and clients that leave")
	flags.DurationVar(&o.length, "for", 10*time.Minute, "length of the load")
	flags.IntVar(&o.reloads, "reloads", -1, "changes of the configuration meanwhile; -1: 1000 in 10 minutes, with -mixed 200")
	flags.IntVar(&o.rps, "rps", 200, "short requests a second")
	flags.IntVar(&o.streams, "streams", -1, "long streams that are open all the time; -1: 500, with -mixed 2000")
	flags.DurationVar(&o.shortest, "shortest", 20*time.Second, "shortest long stream")
	flags.DurationVar(&o.longest, "longest", 60*time.Second, "longest long stream")
	flags.DurationVar(&o.within, "within", 0, "time in which a change must be in force; 0: 1s, with -mixed 5s, since it is asked through the faults")
	flags.IntVar(&o.faults, "faults", 300, "faults a minute at the network, with -mixed")
	flags.StringVar(&o.relay, "relay", "", "a built cc-relay to run; empty: build the one of this tree")
	flags.StringVar(&o.log, "log", "", "keep what the relay logs in this file")
	flags.StringVar(&page, "write", "", "append the figures as a section to this file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := o.complete(); err != nil {
		return err
	}
	r, err := soak(ctx, o, stderr)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(stdout, r.text()); err != nil {
		return err
	}
	if page != "" {
		if err := appendTo(page, r.section()); err != nil {
			return err
		}
	}
	if n := len(r.wrong()); n > 0 {
		return fmt.Errorf("%d things went wrong", n)
	}
	return nil
}

// complete fills in what depends on the kind of run, and says what makes no sense.
func (o *options) complete() error {
	every, streams, within := 600*time.Millisecond, 500, time.Second
	if o.mixed {
		every, streams, within = 3*time.Second, 2000, 5*time.Second
	}
	o.within = cmp.Or(o.within, within)
	if o.reloads < 0 {
		o.reloads = int(o.length / every)
	}
	if o.streams < 0 {
		o.streams = streams
	}
	if o.length < time.Second || o.rps < 0 || o.faults < 0 || o.shortest < time.Second || o.longest < o.shortest {
		return errors.New("-for and -shortest are at least 1s, -longest is not below -shortest, and nothing is negative")
	}
	return nil
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
