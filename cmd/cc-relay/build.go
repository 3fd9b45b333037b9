package main

import (
	"io"
	"os"

	"github.com/rs/zerolog"

	"cc-relay/internal/auth"
	"cc-relay/internal/config"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/price"
	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
)

// build turns a configuration into running parts: the one place where they are
// put together. It opens no connection and no listener.
func build(cfg *config.Config, log zerolog.Logger) (*proxy.Live, error) {
	clients, err := auth.NewClients(cfg.Clients)
	if err != nil {
		return nil, err
	}
	upstreams := make([]*router.Upstream, 0, len(cfg.Providers))
	for _, p := range cfg.Providers {
		up, err := buildUpstream(p, log)
		if err != nil {
			return nil, err
		}
		upstreams = append(upstreams, up)
	}
	classes, err := keypool.NewClasses(cfg.Classes)
	if err != nil {
		return nil, err
	}
	var prices *price.Table
	if cfg.Prices != "" {
		own, err := config.LoadPrices(cfg.Prices)
		if err != nil {
			return nil, err
		}
		if prices, err = price.NewTable(own); err != nil {
			return nil, err
		}
	}
	routes, err := router.New(cfg.Routes(), upstreams, classes.Of, prices)
	if err != nil {
		return nil, err
	}
	return &proxy.Live{
		Config:  proxy.Config{MaxBodyBytes: cfg.Server.MaxBodyBytes, HideRelay: !cfg.Server.Expose},
		Clients: clients,
		Router:  routes,
		Classes: classes,
		Secrets: secrets(cfg),

		Passthrough: cfg.Passthrough,
	}, nil
}

func buildUpstream(p config.Provider, log zerolog.Logger) (*router.Upstream, error) {
	endpoint := p.Config.WithDefaults()
	prov, err := provider.New(endpoint)
	if err != nil {
		return nil, err
	}
	transport, err := provider.NewTransport(endpoint)
	if err != nil {
		return nil, err
	}
	poolConfig := p.PoolConfig()
	poolConfig.Logger = log
	pool, err := keypool.NewKeyPool(endpoint.Name, poolConfig)
	if err != nil {
		return nil, err
	}
	return &router.Upstream{
		Provider: prov, Pool: pool, Transport: transport, Origin: endpoint.Origin,
		FirstTokenTimeout: endpoint.FirstTokenTimeout,
		ResponseTimeout:   endpoint.ResponseTimeout,
		IdleTimeout:       endpoint.IdleTimeout,
		HealthCheck:       endpoint.HealthCheck,
		OnHealth: func(class string, from, to health.State) {
			log.Warn().Str("provider", endpoint.Name).Str("class", class).Str("from", from.String()).Str("to", to.String()).
				Msg("provider's health changed: " + healthMeans[to])
		},
	}, nil
}

// healthMeans says what a state of a provider's breaker means for its requests.
var healthMeans = map[health.State]string{
	health.Closed:   "it gets all its requests",
	health.Open:     "it failed too often and is left alone for a while",
	health.HalfOpen: "one request tries whether it is back",
	health.Ramping:  "it is back and gets more requests from moment to moment",
}

// likelySecret is the length from which the value of an extra header is taken
// for a credential: shorter ones are versions, flags and names, and taking those
// out of errors would garble them.
const likelySecret = 20

// secrets is all that must not come back from an upstream in an error.
func secrets(cfg *config.Config) []secret.Value {
	var all []secret.Value
	for _, c := range cfg.Clients {
		all = append(all, c.Token)
	}
	for _, p := range cfg.Providers {
		for _, k := range p.Keys {
			all = append(all, k.Key)
		}
		for _, h := range p.Headers {
			if len(h.Reveal()) >= likelySecret {
				all = append(all, h)
			}
		}
	}
	return all
}

// newLogger returns a logger that never blocks its callers, and what flushes it.
func newLogger(cfg config.Logging, out io.Writer) (zerolog.Logger, func()) {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil || cfg.Level == "" {
		level = zerolog.InfoLevel
	}
	queue := newLogQueue(out)
	var sink io.Writer = queue
	if cfg.Format == "console" {
		sink = zerolog.ConsoleWriter{Out: queue, NoColor: !isTerminal(out)}
	}
	return zerolog.New(sink).Level(level).With().Timestamp().Logger(), queue.close
}

// isTerminal reports whether w is a character device, as terminals are.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
