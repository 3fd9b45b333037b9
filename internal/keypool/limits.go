package keypool

import (
	"time"

	"cc-relay/internal/ratelimit"
)

// PoolLimit is one limit of a whole pool for one model class.
type PoolLimit struct {
	Limit     int           // a minute; 0 = not known, or none: then nothing else is said
	Remaining int           // what is left of it, less what is in flight; never negative
	Full      time.Duration // until nothing of it is used any more, if nothing else is
}

// PoolLimits are the limits of a pool's usable keys together, each organization
// counted once. A limit is left out while any of them does not know its own, or
// has none.
type PoolLimits struct{ Requests, Input, Output PoolLimit }

// ClassLimits returns the pool's limits for a class, zero for one never asked for.
// It shares the pool's lock with other readers and writes nothing.
func (p *KeyPool) ClassLimits(class string) PoolLimits {
	now := time.Now()
	p.mu.RLock()
	defer p.mu.RUnlock()
	var sum PoolLimits
	c, ok := p.classes[class]
	if !ok {
		return sum
	}
	missing := [limitKinds]bool{}
	counted := 0
	for i := range c.slots {
		b := c.slots[i].buckets
		if !c.slots[i].usable() || c.countedBefore(i) {
			continue
		}
		counted++
		for kind, k := range b.know {
			missing[kind] = missing[kind] || k != known
		}
		levels := b.limiter.BucketsAt(now)
		levels.Output.Level -= b.reserved
		sum.Requests.add(&levels.Requests)
		sum.Input.add(&levels.Input)
		sum.Output.add(&levels.Output)
	}
	for kind, limit := range []*PoolLimit{&sum.Requests, &sum.Input, &sum.Output} {
		if missing[kind] || counted == 0 {
			*limit = PoolLimit{}
		}
	}
	return sum
}

// countedBefore reports whether a usable key before this one has the same buckets.
func (c *class) countedBefore(i int) bool {
	for j := range c.slots[:i] {
		if c.slots[j].buckets == c.slots[i].buckets && c.slots[j].usable() {
			return true
		}
	}
	return false
}

func (l *PoolLimit) add(b *ratelimit.Bucket) {
	l.Limit += int(b.Limit)
	l.Remaining += max(0, int(b.Level))
	l.Full = max(l.Full, lack(b, b.Capacity))
}
