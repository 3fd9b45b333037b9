package router

import (
	"cmp"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
)

// Upstream is one provider with its keys, its connections and its health. The fields
// are set before its first use and not changed after it; a reload makes another
// Upstream of the same provider by Renew. Its methods may be called concurrently.
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
	// After Renew that of the newest Upstream is told, also of older requests.
	OnHealth func(class string, from, to health.State)

	parts atomic.Pointer[parts]
}

// parts are what an Upstream may share with others of the same provider.
type parts struct {
	*memory
	*connections
}

// live returns the parts, and makes them at the first use.
func (u *Upstream) live() *parts {
	if p := u.parts.Load(); p != nil {
		return p
	}
	p := &parts{newMemory(u.OnHealth), &connections{transport: u.Transport}}
	if u.parts.CompareAndSwap(nil, p) {
		return p
	}
	return u.parts.Load()
}

// Renew makes next, which nobody uses yet, another Upstream of u's provider: it takes
// over the pool, the breakers and latencies, the requests in flight, what models are
// missing, and whether it drains. Everything else is its own. Requests that are under
// way at u go on there, and what they find out counts for next as well. It returns next.
func (u *Upstream) Renew(next *Upstream) *Upstream {
	old := u.live()
	p := &parts{old.memory, old.connections}
	if !sameTransport(u.Transport, next.Transport) {
		p.connections = &connections{transport: next.Transport}
	}
	next.Pool = u.Pool
	next.parts.Store(p)
	p.tell(next.OnHealth)
	return next
}

// Forget drops what was learned of the provider's health and of the models it lacks:
// for one whose address has changed. What an operator has forced stays.
func (u *Upstream) Forget() { u.live().forget() }

// SetDraining takes the provider out of all plans, also as the last resort, or puts it
// back. Requests that are under way go on.
func (u *Upstream) SetDraining(on bool) { u.live().draining.Store(on) }

// Draining reports whether the provider is out of all plans.
func (u *Upstream) Draining() bool { return u.live().draining.Load() }

// Lane returns the state for a class.
func (u *Upstream) Lane(class string) *Lane { return u.live().lane(class) }

// Lanes returns the state of every class seen lately, those seen last at the end.
func (u *Upstream) Lanes() []*Lane { return u.live().all() }

// Probe calls ask, if a breaker of the upstream is not closed, and tells all such what
// it found: whether the upstream is well, if that is known.
func (u *Upstream) Probe(ask func() (well, known bool)) {
	var open []*Lane
	for _, l := range u.Lanes() {
		if s := l.Status().State; s == health.Open || s == health.HalfOpen {
			open = append(open, l)
		}
	}
	if len(open) == 0 {
		return
	}
	well, known := ask()
	if !known {
		return
	}
	for _, l := range open {
		l.Probed(well)
	}
}

// Force is an operator's word on the breaker of a class, or of every class where it is
// empty, also of those that are seen for the first time while the word lasts: for d it
// keeps all requests away (Open) or lets all through (any other state), and then goes
// on as it would have. It replaces earlier words on the class; 0 or less is Unforce.
// A request that nothing else can serve may still be sent once to one that is held
// open, as to any whose breaker is open; SetDraining is what takes a provider out.
func (u *Upstream) Force(class string, state health.State, d time.Duration) {
	if d <= 0 {
		u.Unforce(class)
		return
	}
	u.live().force(class, state, d)
}

// Unforce takes Force back, for one class or, where it is empty, for all.
func (u *Upstream) Unforce(class string) { u.live().unforce(class) }

// Forced is what Force holds all classes at, for one that was never asked for; false:
// nothing.
func (u *Upstream) Forced() (health.Status, bool) {
	s := u.live().look("").Status()
	return s, s.Forced
}

// LaneStatus is how an upstream fares with one model class.
type LaneStatus struct {
	Class         string
	health.Status // where Forced, Until is when the operator's word ends
	// Latency is the decaying mean of the times to the first content; 0: not known.
	Latency time.Duration
}

// Health is the state of every class seen lately, sorted by class. It changes nothing.
func (u *Upstream) Health() []LaneStatus {
	lanes := u.Lanes()
	list := make([]LaneStatus, len(lanes))
	for i, l := range lanes {
		list[i] = LaneStatus{Class: l.Class, Status: l.Status(), Latency: l.latency.learned()}
	}
	slices.SortFunc(list, func(a, b LaneStatus) int { return cmp.Compare(a.Class, b.Class) })
	return list
}

// Begin counts a request that is on its way to the upstream, until End.
func (u *Upstream) Begin() {
	p := u.live()
	p.inFlight.Add(1)
	p.begin()
}

// End takes back Begin, when the request's connection is no longer in use.
func (u *Upstream) End() {
	p := u.live()
	p.inFlight.Add(-1)
	p.end()
}

// InFlight is the number of requests at the provider now.
func (u *Upstream) InFlight() int64 { return u.live().inFlight.Load() }

// Retire closes the idle connections of the transport, now and whenever no request
// uses it any more: to be called where, after a reload, no Upstream in force has this
// transport. Requests under way keep their connections to the end.
func (u *Upstream) Retire() { u.live().retire() }

// Miss remembers that the upstream does not know the model.
func (u *Upstream) Miss(model string, now time.Time) { u.live().miss(model, now) }

// Lacks reports whether the upstream said within the last 10 minutes that it
// does not know the model.
func (u *Upstream) Lacks(model string, now time.Time) bool {
	return now.Before(u.live().lacks(model))
}
