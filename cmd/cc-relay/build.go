package main

import (
	"errors"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"cc-relay/internal/auth"
	"cc-relay/internal/config"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/metrics"
	"cc-relay/internal/price"
	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
	"cc-relay/internal/trace"
)

// built is a configuration with its running parts, ready to be put in force.
type built struct {
	cfg  *config.Config
	live *proxy.Live
	// change makes the pools that stay what the configuration says.
	change []func() error
	// after is for when requests go by the configuration.
	after []func()
}

// watchers are told of what happens in the parts.
type watchers struct {
	log     zerolog.Logger
	metrics *metrics.Metrics
	trace   *trace.Tracer
	alert   func(kind, provider string) // nil: nobody is
	told    func(id string)             // of a request that has ended; nil: nobody is
}

// build turns a configuration into running parts: the one place where they are
// put together. It opens no connection and no listener. Where before is in force, its
// pools, connections and what is known of providers and conversations go on; nothing of
// it is changed yet. nil: there is none.
func build(cfg *config.Config, before *built, w watchers) (*built, error) {
	next := &built{cfg: cfg}
	clients, err := auth.NewClients(cfg.Clients)
	if err != nil {
		return nil, err
	}
	upstreams := make([]*router.Upstream, 0, len(cfg.Providers))
	for _, p := range cfg.Providers {
		up, err := next.upstream(p, before, w)
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
	next.live = &proxy.Live{
		Config:  handlerConfig(cfg.Server),
		Clients: clients,
		Router:  routes,
		Classes: classes,
		Secrets: secrets(cfg),
		Hosts:   auth.NewHosts(cfg.Server.AllowedHosts),
		Origins: cfg.Server.AllowedOrigins,
		Metrics: w.metrics,
		Trace:   w.trace,
		Told:    w.told,

		Passthrough: cfg.Passthrough,
	}
	if before != nil {
		routes.Inherit(before.live.Router)
		next.live.Seed = before.live.Seed
	}
	return next, nil
}

func handlerConfig(s config.Server) proxy.Config {
	l := s.Limits
	return proxy.Config{
		MaxBodyBytes: s.MaxBodyBytes, HideRelay: !s.Expose,
		WriteTimeout: l.WriteTime, BodyTimeout: l.BodySilence, BodyRate: l.BodyRate, BodyTime: l.BodyTime,
		BodiesBytes: l.BodiesBytes, Requests: l.Requests, TotalTime: l.TotalTime, FrameBytes: l.FrameBytes,
	}
}

// of finds a provider by its name, nil if b has none.
func (b *built) of(name string) (*router.Upstream, *config.Provider) {
	if b == nil {
		return nil, nil
	}
	for i, up := range b.live.Router.Upstreams() {
		if up.Provider.Name() == name {
			return up, &b.cfg.Providers[i]
		}
	}
	return nil, nil
}

// upstream makes the parts of one provider, or finds those of before that it can have.
func (b *built) upstream(p config.Provider, before *built, w watchers) (*router.Upstream, error) {
	endpoint := p.Config.WithDefaults()
	old, was := before.of(endpoint.Name)
	prov, err := provider.New(endpoint)
	if err != nil {
		return nil, err
	}
	transport, err := transportOf(endpoint, old)
	if err != nil {
		return nil, err
	}
	poolConfig := p.PoolConfig()
	poolConfig.Logger = w.log
	poolConfig.OnDead = func(_ string, why keypool.Reason) { w.alarm(string(why), endpoint.Name) }
	pool, err := keypool.NewKeyPool(endpoint.Name, poolConfig) // where there is one: to see whether it can be
	if err != nil {
		return nil, err
	}
	next := &router.Upstream{
		Provider: prov, Pool: pool, Transport: transport, Origin: endpoint.Origin,
		FirstTokenTimeout: endpoint.FirstTokenTimeout,
		ResponseTimeout:   endpoint.ResponseTimeout,
		IdleTimeout:       endpoint.IdleTimeout,
		HealthCheck:       endpoint.HealthCheck,
		OnHealth: func(class string, from, to health.State) {
			w.log.Warn().Str("provider", endpoint.Name).Str("class", class).Str("from", from.String()).Str("to", to.String()).
				Msg("provider's health changed: " + healthMeans[to])
			if to == health.Open {
				w.alarm("breaker_open", endpoint.Name)
			}
		},
	}
	if old == nil {
		return next, nil
	}
	if was.BaseURL != p.BaseURL || was.Config.WithDefaults().Kind != endpoint.Kind {
		// Requests that began before go on with the address and the pool of before:
		// keys of another address must not be in it.
		b.change = append(b.change, func() error { next.Forget(); return nil })
		old.Renew(next).Pool = pool
		return next, stayOff(old.Pool, pool)
	}
	b.change = append(b.change, func() error { return old.Pool.Apply(poolConfig) })
	if was.Auth != p.Auth || !reflect.DeepEqual(was.Headers, p.Headers) {
		b.after = append(b.after, old.Pool.Reconsider)
	}
	if old.Transport == next.Transport && reflect.DeepEqual(was.Config, p.Config) {
		return old, nil
	}
	return old.Renew(next), nil
}

// stayOff takes the keys out of next that an operator has taken out of old.
func stayOff(old, next *keypool.KeyPool) error {
	for _, k := range old.GetStats().Classes[0].Keys { // of no class: pools have it always
		if k.State != keypool.StateOff {
			continue
		}
		if err := next.Disable(k.ID); err != nil && !errors.Is(err, keypool.ErrKeyNotFound) {
			return err
		}
	}
	return nil
}

func transportOf(endpoint provider.Config, old *router.Upstream) (*provider.Transport, error) {
	if old != nil {
		if t, ok := old.Transport.(*provider.Transport); ok {
			return t.Renew(endpoint)
		}
	}
	return provider.NewTransport(endpoint)
}

// alarm tells of a change that an operator should know of.
func (w *watchers) alarm(kind, provider string) {
	w.metrics.Alert(kind, provider)
	if w.alert != nil {
		w.alert(kind, provider)
	}
}

// healthMeans says what a state of a provider's breaker means for its requests.
var healthMeans = map[health.State]string{
	health.Closed:   "it gets all its requests",
	health.Open:     "it is left alone for a while: it failed too often, or an operator holds its breaker open",
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
		all = append(all, headerSecrets(p.Headers)...)
	}
	return append(all, headerSecrets(cfg.Tracing.Headers)...)
}

// headerSecrets are the values of headers that are likely secrets. Of one with the name
// of an authorization scheme before it, the credential alone may come back, too.
func headerSecrets(headers map[string]secret.Value) (all []secret.Value) {
	for _, h := range headers {
		value := h.Reveal()
		if len(value) < likelySecret {
			continue
		}
		all = append(all, h)
		if scheme, credential, ok := strings.Cut(value, " "); ok && slices.Contains(schemes, strings.ToLower(scheme)) {
			all = append(all, secret.New(strings.TrimSpace(credential)))
		}
	}
	return all
}

var schemes = []string{"bearer", "basic", "token"}

// newLogger returns a logger that never blocks its callers, and what is behind it:
// close that to flush.
func newLogger(cfg config.Logging, out io.Writer) (zerolog.Logger, *logSink) {
	if cfg.Format == "console" {
		out = newConsoleLog(out)
	}
	sink := &logSink{level: &liveLevel{}, queue: newLogQueue(out)}
	_ = sink.SetLevel("")
	_ = sink.SetLevel(cfg.Level) // another name leaves the default
	return zerolog.New(sink.queue).Level(zerolog.TraceLevel).Sample(sink.level).With().Timestamp().Logger(), sink
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
