package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"cc-relay/internal/config"
	"cc-relay/internal/proxy"
)

func serveCommand() *cobra.Command {
	var file, listen string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Relay requests until told to stop",
		Long: "Relay requests of the Messages API until SIGTERM or Ctrl-C, then let open streams finish.\n" +
			"The configuration is --config, ./config.yaml or ~/.config/cc-relay/config.yaml; without a\n" +
			"file, the keys in ANTHROPIC_API_KEY or ANTHROPIC_API_KEYS (comma separated) are served.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, source, err := loadConfig(file)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("listen") {
				cfg.Server.Listen = listen
				if err := cfg.Validate(); err != nil {
					return fmt.Errorf("--listen %s: %w", listen, err)
				}
			}
			log, flush := newLogger(cfg.Logging, cmd.ErrOrStderr())
			defer flush()
			return serve(cmd.Context(), cfg, source, log)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	cmd.Flags().StringVar(&listen, "listen", "", "address to serve on, over the file's server.listen")
	return cmd
}

// loadConfig finds and reads the configuration, and says where it came from.
func loadConfig(file string) (*config.Config, string, error) {
	path, ok, err := config.Find(file)
	if err != nil {
		return nil, "", err
	}
	if ok {
		cfg, err := config.Load(path)
		return cfg, path, err
	}
	cfg, ok, err := config.FromEnv(os.LookupEnv)
	if err != nil {
		return nil, "", err
	}
	if !ok {
		return nil, "", errors.New("no configuration: write one with `cc-relay config init`, or set ANTHROPIC_API_KEY; `cc-relay demo` needs neither")
	}
	return cfg, "environment", nil
}

// serve runs the relay until ctx ends or a signal comes, then drains.
func serve(ctx context.Context, cfg *config.Config, source string, log zerolog.Logger) error {
	live, err := build(cfg, log)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 2) // from before the first request on: nothing is cut by an early signal
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	l, err := listenOn(cfg.Server.Listen)
	if err != nil {
		return err
	}
	kept := remember(cfg.Server, live, log)
	defer kept.close()
	r := startOn(l, live, log)
	log.Info().Str("listen", r.addr()).Str("config", source).Str("version", version()).Int("providers", len(cfg.Providers)).Bool("restored", kept.restored()).Msg("relay serves")
	select {
	case <-ctx.Done():
	case <-signals:
	case err := <-r.failed:
		return fmt.Errorf("listener %s: %w", r.addr(), err)
	}
	log.Info().Dur("drain_timeout_ms", cfg.Server.DrainTimeout).Int64("open", r.handler.Active()).Msg("relay drains; a second signal ends it at once")
	r.drain(cfg.Server.DrainTimeout, signals)
	log.Info().Msg("relay stopped")
	return nil
}

// relay is a running data listener.
type relay struct {
	handler  *proxy.Handler
	server   *http.Server
	listener net.Listener
	failed   chan error
}

func startRelay(listen string, live *proxy.Live, log zerolog.Logger) (*relay, error) {
	l, err := listenOn(listen)
	if err != nil {
		return nil, err
	}
	return startOn(l, live, log), nil
}

func startOn(l net.Listener, live *proxy.Live, log zerolog.Logger) *relay {
	h := proxy.NewHandler(live, log)
	r := &relay{handler: h, listener: l, failed: make(chan error, 1), server: newServer(h, log)}
	r.server.BaseContext = func(net.Listener) context.Context { return h.Context() }
	go tick(h.Context())
	h.Refresh()
	for _, up := range live.Router.Upstreams() {
		go h.Watch(h.Context(), up)
	}
	go func() {
		if err := r.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			r.failed <- err
		}
	}()
	return r
}

// ballast is memory that is never touched, so it takes none of the machine's. Go
// collects garbage when the heap has doubled, and an idle relay's heap is so small
// that this would be every few hundred requests, for a twentieth of their CPU time.
var ballast = make([]byte, 32<<20)

// tick keeps a runtime timer less than a second away. Go's network poller sleeps
// until the next timer, and each new one that comes before it wakes a thread to
// say so; with the poller up every second anyway, the deadlines of requests and
// connections, all of them longer, wake nobody. Of a 200 KB request that was a
// tenth of the CPU time.
func tick(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	defer runtime.KeepAlive(ballast)
	for ctx.Err() == nil {
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// newServer bounds what a client may take before it has said anything. There is
// no write timeout: streams last, and each write has its own deadline.
func newServer(h http.Handler, log zerolog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          serverLog(log),
	}
}

func listenOn(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use by another program; choose another address with --listen", address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return l, nil
}

func (r *relay) addr() string { return r.listener.Addr().String() }

// drain ends the relay in order: not ready and no new work, open requests finish
// within timeout, those left get an error event, then the listener closes. A
// value in hurry ends it at once. The listener stays open meanwhile, so that
// probes see that the relay is not ready instead of a refused connection.
func (r *relay) drain(timeout time.Duration, hurry <-chan os.Signal) {
	r.handler.Drain()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for open := true; open && r.handler.Active() > 0; {
		select {
		case <-poll.C:
		case <-deadline.C:
			open = false
		case <-hurry:
			open = false
		}
	}
	r.handler.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = r.server.Shutdown(ctx) // what does not end within it is closed
	_ = r.server.Close()
	for end := time.Now().Add(time.Second); r.handler.Active() > 0 && time.Now().Before(end); { // each still writes its record
		<-poll.C
	}
}
