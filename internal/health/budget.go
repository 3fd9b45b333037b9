package health

import (
	"math"
	"sync"
	"time"
)

// The numbers of the budget, in requests. Their source is the project's decisions,
// section 2, "Attempts"; the one marked * is chosen here.
const (
	repeatCost = 10 // a repeat to 10 requests
	perSecond  = 3 * repeatCost
	spare      = 3 * repeatCost // what it starts with and may save without requests
	memory     = 10             // * seconds
)

// Budget bounds the requests that are sent once more, so that repeats do not bury
// upstreams that are in trouble: to 10 % of the requests and 3 a second on top. What
// is not used is saved, up to 3 repeats and 10 % of the requests of about the last
// 10 s. It is shared by all clients; its methods may be called concurrently. A nil
// Budget allows everything.
type Budget struct {
	mu     sync.Mutex
	level  float64 // in requests
	recent float64 // requests, each counting e times less with every 10 s of age
	last   time.Time
}

// NewBudget returns a budget that has saved 3 repeats.
func NewBudget() *Budget { return &Budget{level: spare, last: time.Now()} }

// Request tells that a client's request began. Its repeats are none.
func (b *Budget) Request() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked()
	b.recent++
	b.level++
}

// Take reports whether a repeat may be sent now, and takes it from the budget.
func (b *Budget) Take() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked()
	if b.level < repeatCost {
		return false
	}
	b.level -= repeatCost
	return true
}

func (b *Budget) advanceLocked() {
	now := time.Now()
	passed := now.Sub(b.last).Seconds()
	b.last = now
	b.recent *= math.Exp(-passed / memory)
	b.level = min(b.level+perSecond*passed, spare+b.recent)
}
