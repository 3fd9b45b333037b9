package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/secret"
)

// Lengths of the demo's load. In a shorter one the faults of the script come so
// close together that one request could meet two of them.
const (
	demoLength   = 30 * time.Second
	demoShortest = 3 * time.Second
)

// demoDrain is how long the demo waits for open answers when it ends.
const demoDrain = 10 * time.Second

// demo is one run of cc-relay demo: its flags, and where it writes.
type demo struct {
	listen  string
	length  time.Duration // of the load; 0: demoLength, and the relay serves on
	json    bool
	verbose bool
	policy  string // a strategy to choose keys by, without affinity; "": the relay's own way

	stdout, stderr io.Writer
}

func demoCommand() *cobra.Command {
	var d demo
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See the relay at work against a simulated provider; needs no key and no network",
		Long: "Serve the relay in front of a simulated provider with three keys of unlike limits, and drive\n" +
			"agent-like sessions through it at half of what the pool can give, while the provider fails by\n" +
			"a script: a 529, a 429, a connection that breaks and a key that dies. Then sum up, and serve on\n" +
			"for a client of yours until Ctrl-C.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("for") && d.length < demoShortest {
				return fmt.Errorf("--for %s is too short for the faults of the script; give %s or more", d.length, demoShortest)
			}
			d.stdout, d.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&d.listen, "listen", config.Default().Server.Listen, "loopback address to serve on")
	cmd.Flags().DurationVar(&d.length, "for", 0, "length of the load, such as 20s; then end instead of serving on")
	cmd.Flags().StringVar(&d.policy, "policy", "", "to compare: choose keys by this strategy alone and leave the prompt cache to chance\n("+strings.Join(keypool.Strategies(), ", ")+")")
	cmd.Flags().BoolVar(&d.json, "json", false, "print one JSON object instead of the summary")
	cmd.Flags().BoolVar(&d.verbose, "verbose", false, "log the relay's warnings to standard error")
	return cmd
}

// run puts everything together: the provider, the relay in front of it, the load.
func (d *demo) run(ctx context.Context) error {
	up, err := newDemoUpstream()
	if err != nil {
		return err
	}
	defer up.close()
	log := zerolog.Nop()
	if d.verbose {
		var sink *logSink
		log, sink = newLogger(config.Logging{Level: "warn", Format: "console"}, d.stderr)
		defer sink.close()
	}
	cfg, err := demoConfig(d.listen, up.url, d.policy)
	if err != nil {
		return err
	}
	r, parts, err := startRelay(cfg, log)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = d.drive(ctx, r, up, parts.upstreams()[0].Pool)
	if err == nil && d.length == 0 && ctx.Err() == nil {
		err = d.serveOn(ctx, r)
	}
	hurry := make(chan os.Signal, 1)
	signal.Notify(hurry, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(hurry)
	r.drain(demoDrain, hurry)
	return err
}

// drive runs the load, while the provider is spoiled and the view looks on, and
// sums up. When ctx ends, what is under way still finishes.
func (d *demo) drive(ctx context.Context, r *relay, up *demoUpstream, pool *keypool.KeyPool) error {
	length := d.length
	if length == 0 {
		length = demoLength
	}
	v := &demoView{up: up, pool: pool, out: io.Discard}
	if !d.json && isTerminal(d.stdout) {
		v.out = d.stdout
	}
	v.say("relay on http://%s, three simulated keys behind it, %s of agent sessions", r.addr(), length)
	if d.policy != "" {
		v.say("keys are chosen by %s alone; without --policy each conversation keeps its cache", d.policy)
	}
	l := newDemoLoad("http://"+r.addr(), length)
	aside, done := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var scriptErr error
	wg.Go(func() { v.watch(aside) })
	wg.Go(func() { scriptErr = up.spoil(aside, l.pace.start, length, v.say) })
	l.run(ctx)
	done()
	wg.Wait()
	res := l.result(up)
	res.Policy = d.policy
	if d.json {
		return errors.Join(scriptErr, json.NewEncoder(d.stdout).Encode(res))
	}
	return errors.Join(scriptErr, res.write(d.stdout))
}

// serveOn says how to use the relay and waits for the end.
func (d *demo) serveOn(ctx context.Context, r *relay) error {
	out := d.stdout
	if d.json { // where only the object is awaited
		out = d.stderr
	}
	_, err := fmt.Fprintf(out, "\nThe relay serves on until Ctrl-C. To point Claude Code at it:\n\n"+
		"export ANTHROPIC_BASE_URL=http://%s\nexport ANTHROPIC_AUTH_TOKEN=%s\n", r.addr(), demoToken)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-r.failed:
		return fmt.Errorf("listener %s: %w", r.addr(), err)
	}
}

// demoConfig is a pool of all keys of the simulated provider. Their limits are
// left for the relay to learn. A policy is a strategy to choose keys by alone.
func demoConfig(listen, upstream, policy string) (*config.Config, error) {
	p := config.Provider{
		Config: provider.Config{Name: "simulator", BaseURL: upstream}.WithDefaults(),
		Pool:   keypool.PoolConfig{Strategy: cmp.Or(policy, keypool.StrategyLeastLoaded)},
	}
	if policy != "" {
		p.Pool.Affinity = keypool.AffinityOff
	}
	for _, org := range demoOrganizations() {
		for _, k := range org.Keys {
			p.Keys = append(p.Keys, keypool.KeyConfig{Key: secret.New(k.Key)})
		}
	}
	cfg := config.Default()
	cfg.Server.Listen = listen
	cfg.Server.State = config.StateOff // it must not touch what the user's own relay remembers
	cfg.Admin.Listen = config.AdminOff
	cfg.Providers = []config.Provider{p}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("flags --listen %s, --policy %q: %w", listen, policy, err)
	}
	return &cfg, nil
}
