package router

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"cc-relay/internal/health"
)

// How long, and for how many models, a provider's 404 is remembered; and for how
// many classes its health: clients choose the names of models.
const (
	missingLife = 10 * time.Minute
	maxMissing  = 1000
	maxLanes    = 256
)

// memory is what is known of a provider. It outlives the configuration.
type memory struct {
	draining atomic.Bool
	inFlight atomic.Int64
	onHealth atomic.Pointer[func(class string, from, to health.State)]

	forcing sync.Mutex // one operator at a time; taken before mu

	mu      sync.Mutex
	missing *simplelru.LRU[string, time.Time] // model → until when it is believed not to be there
	lanes   *simplelru.LRU[string, *Lane]     // by class
	forces  map[string]force                  // by class, "" for those that are not in it
}

// force is an operator's word on a breaker. One that is over keeps that on all
// classes away.
type force struct {
	state health.State
	until time.Time
}

// Lane is a provider's state for one model class.
type Lane struct {
	Class string
	*health.Breaker
	latency latency
}

func newMemory(onHealth func(class string, from, to health.State)) *memory {
	m := &memory{forces: map[string]force{}}
	m.tell(onHealth)
	m.forget()
	return m
}

// tell sets who is told of changes.
func (m *memory) tell(onHealth func(class string, from, to health.State)) {
	m.onHealth.Store(&onHealth)
}

func (m *memory) told(class string, from, to health.State) {
	if onHealth := *m.onHealth.Load(); onHealth != nil {
		onHealth(class, from, to)
	}
}

func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	// The only error is a size that is not positive.
	m.missing, _ = simplelru.NewLRU[string, time.Time](maxMissing, nil)
	m.lanes, _ = simplelru.NewLRU[string, *Lane](maxLanes, nil)
}

// lane is the state for a class, made where there is none.
func (m *memory) lane(class string) *Lane {
	m.mu.Lock()
	lane, ok := m.lanes.Get(class)
	if ok {
		m.mu.Unlock()
		return lane
	}
	lane = m.newLaneLocked(class)
	state := lane.Status().State
	m.lanes.Add(class, lane)
	m.mu.Unlock()
	if state != health.Closed { // told outside the lock: who is told may want to look
		m.told(class, health.Closed, state)
	}
	return lane
}

// look is lane, but changes nothing: what it makes is kept by nobody.
func (m *memory) look(class string) *Lane {
	m.mu.Lock()
	defer m.mu.Unlock()
	if lane, ok := m.lanes.Peek(class); ok {
		return lane
	}
	return m.newLaneLocked(class)
}

// newLaneLocked makes a lane that is as an operator has forced it.
func (m *memory) newLaneLocked(class string) *Lane {
	lane, known := &Lane{Class: class}, false
	lane.Breaker = health.NewBreaker(func(from, to health.State) {
		if known {
			m.told(class, from, to)
		}
	})
	if len(m.forces) > 0 {
		f, ok := m.forces[class]
		if !ok {
			f = m.forces[""]
		}
		lane.Hold(f.state, time.Until(f.until))
	}
	known = true
	return lane
}

func (m *memory) all() []*Lane {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lanes.Values()
}

func (m *memory) force(class string, state health.State, d time.Duration) {
	m.forcing.Lock()
	defer m.forcing.Unlock()
	m.note(class, force{state, time.Now().Add(d)})
	lanes := m.all()
	if class != "" {
		lanes = []*Lane{m.lane(class)}
	}
	for _, l := range lanes {
		l.Hold(state, d)
	}
}

func (m *memory) unforce(class string) {
	m.forcing.Lock()
	defer m.forcing.Unlock()
	m.note(class, force{})
	for _, l := range m.all() {
		if class == "" || l.Class == class {
			l.Hold(health.Closed, 0)
		}
	}
}

// note remembers the last word on a class; one on all replaces every other.
func (m *memory) note(class string, f force) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if class == "" {
		clear(m.forces)
	}
	m.forces[class] = f
	if now.Before(m.forces[""].until) {
		return
	}
	for c, f := range m.forces {
		if !now.Before(f.until) {
			delete(m.forces, c)
		}
	}
}

func (m *memory) miss(model string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.missing.Add(model, now.Add(missingLife))
}

// lacks is until when a model is believed not to be there; zero if nothing says so.
func (m *memory) lacks(model string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	until, _ := m.missing.Peek(model)
	return until
}

// Observe notes how long a request waited for the first content of its answer.
func (l *Lane) Observe(took time.Duration, now time.Time) { l.latency.observe(took, now) }
