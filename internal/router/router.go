// Package router decides which upstreams a request may go to and in which order.
// It sends nothing; the pool of each upstream chooses the key.
package router

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
)

// Upstream is one provider with its keys and its connections.
type Upstream struct {
	Provider  provider.Provider
	Pool      *keypool.KeyPool
	Transport http.RoundTripper

	FirstTokenTimeout time.Duration // until the first frame of a stream
	ResponseTimeout   time.Duration // until the end of an answer that is no stream
	IdleTimeout       time.Duration // longest silence of an open stream

	mu      sync.Mutex
	missing *simplelru.LRU[string, time.Time] // model → until when it is believed not to be there
}

// How long, and for how many models, a provider's 404 is remembered.
const (
	missingLife = 10 * time.Minute
	maxMissing  = 1000
)

// Miss remembers that the upstream does not know the model.
func (u *Upstream) Miss(model string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.missing == nil {
		// The only error is a size that is not positive.
		u.missing, _ = simplelru.NewLRU[string, time.Time](maxMissing, nil)
	}
	u.missing.Add(model, now.Add(missingLife))
}

// Lacks reports whether the upstream said within the last 10 minutes that it
// does not know the model.
func (u *Upstream) Lacks(model string, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.missing == nil {
		return false
	}
	until, ok := u.missing.Peek(model)
	return ok && now.Before(until)
}

// StrategyFailover tries the upstreams in configured order.
const StrategyFailover = "failover"

// Strategy orders the upstreams that may serve a request. It may reorder its
// argument and return it.
type Strategy func([]*Upstream) []*Upstream

// strategies is the table of orderings: a new one is a function and a line here.
var strategies = map[string]Strategy{
	StrategyFailover: func(up []*Upstream) []*Upstream { return up },
}

// Strategies returns the names of all strategies, sorted.
func Strategies() []string {
	names := make([]string, 0, len(strategies))
	for name := range strategies {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Router plans the way of a request. It is immutable and safe for concurrent use.
type Router struct {
	upstreams []*Upstream
	order     Strategy
}

// New returns a router over upstreams in configured order; an empty strategy
// means failover. Error: an unknown strategy.
func New(strategy string, upstreams []*Upstream) (*Router, error) {
	if strategy == "" {
		strategy = StrategyFailover
	}
	order, ok := strategies[strategy]
	if !ok {
		return nil, fmt.Errorf("router: strategy %q is unknown; write one of %s", strategy, strings.Join(Strategies(), ", "))
	}
	return &Router{upstreams: upstreams, order: order}, nil
}

// Upstreams returns all upstreams in configured order; the slice must not be changed.
func (r *Router) Upstreams() []*Upstream { return r.upstreams }

// Plan returns the upstreams to try for a model, in order. One that lately said
// it does not know the model is left out, unless all of them did: then asking
// again is better than refusing.
func (r *Router) Plan(model string, now time.Time) []*Upstream {
	plan := make([]*Upstream, 0, len(r.upstreams))
	for _, u := range r.upstreams {
		if model == "" || !u.Lacks(model, now) {
			plan = append(plan, u)
		}
	}
	if len(plan) == 0 {
		plan = append(plan, r.upstreams...)
	}
	return r.order(plan)
}
