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
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"cc-relay/internal/config"
	"cc-relay/internal/proxy"
	statedir "cc-relay/internal/state"
)

func serveCommand() *cobra.Command {
	var file, listen, adminListen string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Relay requests until told to stop",
		Long: "Relay requests of the Messages API until SIGTERM or Ctrl-C, then let open streams finish.\n" +
			"The configuration is --config, or config.yaml or config.toml here or in ~/.config/cc-relay;\n" +
			"without a file, the keys in ANTHROPIC_API_KEY or ANTHROPIC_API_KEYS (comma separated) are\n" +
			"served. A change of the file takes effect without a restart.\n\n" +
			"cc-relay status, explain, key and others ask and steer the running relay at its admin\n" +
			"listener: 127.0.0.1:8788, or what --admin-listen or the file's admin.listen says.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			from := &config.Sources{Take: true}
			cfg, source, err := loadConfig(from, file)
			if err != nil {
				return err
			}
			exposed := harden() // not before: variables are taken through /proc/self/mem
			adapt := func(cfg *config.Config) error {
				var said []string
				for _, f := range []struct {
					name, value string
					setting     *string
				}{{"listen", listen, &cfg.Server.Listen}, {"admin-listen", adminListen, &cfg.Admin.Listen}} {
					if !cmd.Flags().Changed(f.name) {
						continue
					}
					*f.setting = f.value
					said = append(said, "--"+f.name+" "+f.value)
				}
				if len(said) == 0 {
					return nil
				}
				if err := cfg.Validate(); err != nil { // of both, or one may be in the way of the other
					return fmt.Errorf("%s: %w", strings.Join(said, " "), err)
				}
				return nil
			}
			if err := adapt(cfg); err != nil {
				return err
			}
			log, sink := newLogger(cfg.Logging, cmd.ErrOrStderr())
			defer sink.close()
			if exposed != nil {
				log.Warn().Err(exposed).Msg("memory with keys in it is less protected than it should be")
			}
			r, err := newRunning(cfg, log, sink)
			if err != nil {
				return err
			}
			if source != fromEnvironment {
				r.source, r.load = source, func() (*config.Config, error) {
					cfg, err := from.Load(source)
					if err != nil {
						return nil, err
					}
					return cfg, adapt(cfg)
				}
			}
			return r.serve(cmd.Context())
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	cmd.Flags().StringVar(&listen, "listen", "", "address to serve on, over the file's server.listen")
	cmd.Flags().StringVar(&adminListen, "admin-listen", "", "address of the admin listener, or off, over the file's admin.listen")
	return cmd
}

// fromEnvironment is the source of a configuration that no file holds.
const fromEnvironment = "environment"

// loadConfig finds and reads the configuration, and says where it came from.
func loadConfig(from *config.Sources, file string) (*config.Config, string, error) {
	path, ok, err := config.Find(file)
	if err != nil {
		return nil, "", err
	}
	if ok {
		cfg, err := from.Load(path)
		return cfg, path, err
	}
	cfg, ok, err := from.FromEnv()
	if err != nil {
		return nil, "", err
	}
	if !ok {
		return nil, "", errors.New("no configuration: write one with `cc-relay config init`, or set ANTHROPIC_API_KEY; `cc-relay demo` needs neither")
	}
	return cfg, fromEnvironment, nil
}

// serve runs the relay until ctx ends or a signal comes, then drains.
func (r *running) serve(ctx context.Context) error {
	cfg := r.now.Load().cfg
	signals, hangups := make(chan os.Signal, 2), make(chan os.Signal, 1) // from before the first request on: nothing is cut by an early signal
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	l, err := r.listen("server", cfg.Server.Listen, cfg.Server.TLS, r.bounded)
	if err != nil {
		return err
	}
	dir, err := openState(cfg.Server)
	if errors.As(err, new(*statedir.InUseError)) {
		_ = l.Close()
		return err
	}
	if err != nil {
		r.log.Warn().Err(err).Msg("what the relay learns is not kept for its next start; mend server.state_dir, or set server.state: off to have it so")
	}
	r.kept = remember(dir, r.now.Load(), r.log)
	defer r.kept.close()
	served := startOn(l, r)
	adminAddr, closeAdmin, err := r.serveAdmin(cfg.Admin, dir, served.failed)
	if err != nil {
		_ = l.Close()
		return err
	}
	defer closeAdmin()
	stopWatching := r.follow(hangups)
	defer stopWatching()
	r.log.Info().Str("listen", served.addr()).Str("admin", adminAddr).Str("config", r.source).Str("version", version()).Int("providers", len(cfg.Providers)).Bool("restored", r.kept.restored()).Msg("relay serves")
	select {
	case <-ctx.Done():
	case <-signals:
	case err := <-served.failed:
		return err
	}
	r.log.Info().Dur("drain_timeout_ms", r.now.Load().cfg.Server.DrainTimeout).Int64("open", served.handler.Active()).Msg("relay drains; a second signal ends it at once")
	served.drain(r.now.Load().cfg.Server.DrainTimeout, signals)
	if err := r.trace.Close(context.Background()); err != nil {
		r.log.Warn().Err(err).Msg("the last traces are lost")
	}
	r.log.Info().Msg("relay stopped")
	return nil
}

// bounded bounds the connections of the data listener, as the configuration in force
// says.
func (r *running) bounded(l net.Listener) net.Listener {
	files := openFiles()
	if most := r.now.Load().cfg.Server.Limits.Connections; files/2 < uint64(most) {
		total, _ := connectionBounds(r.now.Load().cfg.Server.Limits, files)
		r.log.Debug().Uint64("files", files).Int("connections", total).Msg("the limit of open files allows fewer connections than server.limits.connections")
	}
	limits := func() config.Limits { return r.now.Load().cfg.Server.Limits }
	return newCrowd(l, func() (total, perSource int) { return connectionBounds(limits(), files) }, func() time.Duration { return limits().WriteTime })
}

// boundedAdmin keeps who asks the admin listener, with a token or without, from taking
// the files that the relay needs for its work.
func (r *running) boundedAdmin(l net.Listener) net.Listener {
	return newCrowd(l, func() (total, perSource int) { return adminConnections, adminConnections }, func() time.Duration { return proxy.DefaultWriteTimeout })
}

// listen opens a listener, with TLS where that is configured. wrap, where not nil,
// is put around it below TLS. section is its part of the configuration.
func (r *running) listen(section, address string, t config.TLS, wrap func(net.Listener) net.Listener) (net.Listener, error) {
	if t.CertFile == "" {
		return listen(address, nil, wrap)
	}
	cert, err := newCertificate(t.CertFile, t.KeyFile, func(err error) { r.log.Error().Err(err).Msg("the new certificate is not used") })
	if err != nil {
		return nil, err
	}
	if section == adminSection {
		cert.protocols = []string{"http/1.1"}
	}
	r.certs[section] = cert
	return listen(address, cert, wrap)
}

// relay is a running data listener.
type relay struct {
	handler  *proxy.Handler
	server   *http.Server
	listener net.Listener
	failed   chan error
}

// startRelay serves a configuration without a file and without an admin listener.
func startRelay(cfg *config.Config, log zerolog.Logger) (*relay, *running, error) {
	r, err := newRunning(cfg, log, nil)
	if err != nil {
		return nil, nil, err
	}
	l, err := listen(cfg.Server.Listen, nil, r.bounded)
	if err != nil {
		return nil, nil, err
	}
	return startOn(l, r), r, nil
}

func startOn(l net.Listener, r *running) *relay {
	h := proxy.NewHandler(r.live(), r.log)
	r.handler.Store(h)
	s := &relay{handler: h, listener: l, failed: make(chan error, 2), server: newServer(h, r.now.Load().cfg.Server.Limits, r.log)}
	s.server.ConnContext = connContext
	s.server.BaseContext = func(net.Listener) context.Context { return h.Context() }
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbageShare)
	}
	go tick(h.Context())
	h.Refresh()
	r.watch(r.live())
	go s.serve()
	return s
}

func (r *relay) serve() {
	if err := r.server.Serve(r.listener); !errors.Is(err, http.ErrServerClosed) {
		r.failed <- fmt.Errorf("listener %s: %w", r.addr(), err)
	}
}

// ballast is memory that is never touched, so it takes none of the machine's. Go
// collects garbage when the heap has grown by a share, and an idle relay's heap is so
// small that this would be every few hundred requests, for a twentieth of their CPU
// time. The share is half of Go's default: thousands of open streams make little
// garbage, and at twice their memory would take what nobody uses.
var ballast = make([]byte, 64<<20)

const garbageShare = 50 // percent; the environment variable GOGC goes before it

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
func newServer(h http.Handler, l config.Limits, log zerolog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: l.HeaderTime,
		IdleTimeout:       l.IdleConnection,
		MaxHeaderBytes:    int(l.HeaderBytes),
		ErrorLog:          serverLog(log),
		HTTP2:             http2Bounds(int(l.StreamsPerConnection), l.WriteTime),
	}
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
