package router

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
)

// Upstream is one provider with its keys, its connections and its health.
type Upstream struct {
	Provider  provider.Provider
	Pool      *keypool.KeyPool
	Transport http.RoundTripper

	// Origin names who makes its models: what they think can be read by models of
	// the same origin only.
	Origin string

	FirstTokenTimeout time.Duration // until a stream shows content
	ResponseTimeout   time.Duration // until the end of an answer that is no stream
	IdleTimeout       time.Duration // longest silence of an open stream
	// HealthCheck is how often a provider that is left alone is asked, by a free
	// call, whether it is back; 0: only requests find out.
	HealthCheck time.Duration

	// OnHealth, where set, is told of each change of a breaker. It must not block.
	OnHealth func(class string, from, to health.State)

	inFlight atomic.Int64

	mu      sync.Mutex
	missing *simplelru.LRU[string, time.Time] // model → until when it is believed not to be there
	lanes   *simplelru.LRU[string, *Lane]     // by class
}

// How long, and for how many models, a provider's 404 is remembered; and for how
// many classes its health: clients choose the names of models.
const (
	missingLife = 10 * time.Minute
	maxMissing  = 1000
	maxLanes    = 256
)

// Lane is an upstream's state for one model class.
type Lane struct {
	Class string
	*health.Breaker
	latency latency
}

// Lane returns the state for a class.
func (u *Upstream) Lane(class string) *Lane {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.lanes == nil {
		// The only error is a size that is not positive.
		u.lanes, _ = simplelru.NewLRU[string, *Lane](maxLanes, nil)
	}
	lane, ok := u.lanes.Get(class)
	if !ok {
		lane = &Lane{Class: class}
		lane.Breaker = health.NewBreaker(func(from, to health.State) {
			if u.OnHealth != nil {
				u.OnHealth(class, from, to)
			}
		})
		u.lanes.Add(class, lane)
	}
	return lane
}

// Lanes returns the state of every class seen lately, in no order.
func (u *Upstream) Lanes() []*Lane {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.lanes == nil {
		return nil
	}
	return u.lanes.Values()
}

// Probe calls ask, if a breaker of the upstream is not closed, and tells all such what
// it found: whether the upstream is well.
func (u *Upstream) Probe(ask func() bool) {
	var open []*Lane
	for _, l := range u.Lanes() {
		if s := l.Status().State; s == health.Open || s == health.HalfOpen {
			open = append(open, l)
		}
	}
	if len(open) == 0 {
		return
	}
	well := ask()
	for _, l := range open {
		l.Probed(well)
	}
}

// wait is how long the breaker keeps requests away; 0: it lets one try.
func (l *Lane) wait(now time.Time) time.Duration {
	s := l.Status()
	if s.State != health.Open && s.State != health.HalfOpen {
		return 0
	}
	return max(0, s.Until.Sub(now))
}

// Observe notes how long a request waited for the first content of its answer.
func (l *Lane) Observe(took time.Duration, now time.Time) { l.latency.observe(took, now) }

// Begin counts a request that is on its way to the upstream, until End.
func (u *Upstream) Begin() { u.inFlight.Add(1) }

// End takes back Begin.
func (u *Upstream) End() { u.inFlight.Add(-1) }

// InFlight is the number of requests at the upstream now.
func (u *Upstream) InFlight() int64 { return u.inFlight.Load() }

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
