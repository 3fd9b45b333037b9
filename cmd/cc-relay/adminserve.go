package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"cc-relay/internal/admin"
	"cc-relay/internal/config"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/metrics"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	statedir "cc-relay/internal/state"
)

// adminSection is the admin listener's part of the configuration. It speaks HTTP/1.1
// alone: few ask it, and what HTTP/2 lets a client do to a server need not be looked at.
const adminSection = "admin"

// serveAdmin serves the admin listener, if there is to be one, until the func that it
// returns is called, and returns its address. dir keeps its tokens and its audit;
// without it there is none.
func (r *running) serveAdmin(cfg config.Admin, dir *statedir.Dir, failed chan<- error) (string, func(), error) {
	if _, address := cfg.Address(); address == "" {
		return config.AdminOff, func() {}, nil
	}
	if dir == nil {
		r.log.Warn().Msg("there is no admin listener, for its tokens have no state directory to be in; mend server.state_dir, or set admin.listen: off to have it so")
		return config.AdminOff, func() {}, nil
	}
	h, err := admin.New(admin.Config{Dir: dir, AllowedHosts: cfg.AllowedHosts, Pprof: cfg.PProf, Log: r.log, Relay: r.adminView()})
	if err != nil {
		return "", nil, err
	}
	l, err := r.listen(adminSection, cfg.Listen, cfg.TLS, r.boundedAdmin)
	if err != nil {
		return "", nil, fmt.Errorf("admin.listen: %w", err)
	}
	r.admin.Store(h)
	address := cfg.Listen
	if l.Addr().Network() == "tcp" {
		address = l.Addr().String() // port 0 was any
	}
	server := newServer(h, r.now.Load().cfg.Server.Limits, r.log)
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("admin listener %s: %w", address, err)
		}
	}()
	return address, func() {
		h.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
	}, nil
}

// adminView is the relay as its operator sees it.
func (r *running) adminView() admin.Relay {
	handler := r.handler.Load()
	return admin.Relay{
		Version: version(), StartedAt: r.started,
		Upstreams:   r.upstreams,
		DisableKey:  func(up *router.Upstream, id string) error { return up.Pool.Disable(id) },
		EnableKey:   func(up *router.Upstream, id string) error { return up.Pool.Enable(id) },
		Draining:    (*router.Upstream).Draining,
		SetDraining: (*router.Upstream).SetDraining,
		ForceBreaker: func(up *router.Upstream, class string, state health.State, d time.Duration) {
			up.Force(handler.Scrub(class), state, d) // it is logged
		},
		Reserved: func(m *keypool.KeyMetadata) admin.Tokens {
			return admin.Tokens{Input: m.Reserved.Input, Output: m.Reserved.Output}
		},
		Stopping:   handler.Draining,
		Totals:     r.totals,
		LastReload: r.last.Load,
		Reload:     func(context.Context) (admin.Reload, error) { return r.reload() },
		Requests:   func(limit int) any { return handler.Recent(limit) },
		Explain: func(id string) (any, bool) {
			account, ok := handler.Explain(id)
			return account, ok
		},
		DryRun: func(_ context.Context, q admin.DryRunRequest) (any, error) {
			if err := r.knows(q.Client); err != nil {
				return nil, err
			}
			return handler.DryRun(proxy.Trial{Client: q.Client, Model: q.Model, Tokens: q.Tokens, MaxTokens: q.MaxTokens})
		},
		Config:     func() ([]byte, error) { return config.Redacted(r.now.Load().cfg) },
		ConfigDiff: func(context.Context) (admin.ConfigDiff, error) { return r.difference() },
		Metrics:    r.metrics.Handler(),
		Scrub:      handler.Scrub,
	}
}

// knows returns an error that lists the clients where none is called so; "" is one
// without a name.
func (r *running) knows(client string) error {
	var names []string
	for _, c := range r.now.Load().cfg.Clients {
		names = append(names, c.Name)
	}
	switch {
	case client == "" || slices.Contains(names, client):
		return nil
	case len(names) == 0:
		return errors.New("the configuration has no clients: leave the client out")
	}
	return fmt.Errorf("there is no client %q; the clients are %s", client, strings.Join(names, ", "))
}

func (r *running) totals() admin.Totals {
	t := r.handler.Load().Totals()
	return admin.Totals{
		Requests: t.Requests, Succeeded: t.Served, Failed: t.Failed, Refused: t.Refused, Failovers: t.Failovers,
		InputTokens: t.Input, OutputTokens: t.Output, CacheReadTokens: t.CacheRead, CacheWriteTokens: t.Written,
	}
}

// pools is the state of all pools for the metrics.
func (r *running) pools() []metrics.Pool {
	var pools []metrics.Pool
	for _, up := range r.upstreams() {
		pools = append(pools, r.pool(up))
	}
	return pools
}

func (r *running) pool(up *router.Upstream) metrics.Pool {
	one := metrics.Pool{Provider: up.Provider.Name(), Draining: up.Draining()}
	breakers := map[string]health.State{}
	for _, lane := range up.Health() {
		breakers[lane.Class] = lane.State
	}
	for _, c := range up.Pool.GetStats().Classes {
		if c.Class == "" {
			continue
		}
		class := metrics.Class{Class: r.live().Classes.Label(c.Class)}
		if state, ok := breakers[c.Class]; ok {
			class.Breaker = state.String()
		}
		for i := range c.Keys {
			k := &c.Keys[i]
			shown := metrics.Key{
				ID: k.ID, State: string(k.State), Reason: string(k.Reason),
				Requests:      metrics.Level{Limit: k.Limits.RPM, Remaining: k.Remaining.RPM},
				Input:         metrics.Level{Limit: k.Limits.ITPM, Remaining: k.Remaining.ITPM},
				Output:        metrics.Level{Limit: k.Limits.OTPM, Remaining: k.Remaining.OTPM},
				InFlight:      k.InFlight,
				ReservedInput: k.Reserved.Input, ReservedOutput: k.Reserved.Output,
			}
			if k.State == keypool.StateCooling {
				shown.CoolDown = max(0, time.Until(k.Until))
			}
			class.Keys = append(class.Keys, shown)
		}
		one.Classes = append(one.Classes, class)
	}
	return one
}
