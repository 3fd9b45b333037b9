package keypool

import (
	"slices"
	"strings"
	"time"

	"cc-relay/internal/ratelimit"
)

// PoolStats is a pool at one moment.
type PoolStats struct {
	Provider string
	Strategy string
	// Keys by state for the class-less methods; they add up to Total.
	Total, Available, Exhausted, Cooling, Dead, Off int
	// Classes in alphabetical order, "" first.
	Classes []ClassStats
}

// ClassStats is one model class in a pool. Sums count each owner once, and those
// of limits and levels leave out keys that are dead or off. A key that knows no limit of a kind
// adds nothing to that kind's sum: the pool's own limit is then unknown, too.
type ClassStats struct {
	Class     string
	Limits    ratelimit.Limits // sums, per minute
	Remaining ratelimit.Limits // sums of the levels now
	InFlight  int              // also of keys that were removed meanwhile
	Keys      []KeyMetadata    // configured order
}

// GetStats returns the state of every key and class. It shares the pool's lock
// with other readers, computes refills without writing them, and returns copies.
func (p *KeyPool) GetStats() PoolStats {
	now := time.Now()
	p.mu.RLock()
	defer p.mu.RUnlock()
	stats := PoolStats{Provider: p.provider, Strategy: p.selector.Name(), Total: len(p.keys)}
	for _, c := range p.classes {
		stats.Classes = append(stats.Classes, c.stats(now))
	}
	slices.SortFunc(stats.Classes, func(a, b ClassStats) int { return strings.Compare(a.Class, b.Class) })
	for _, k := range stats.Classes[0].Keys {
		switch k.State {
		case StateAvailable:
			stats.Available++
		case StateExhausted:
			stats.Exhausted++
		case StateCooling:
			stats.Cooling++
		case StateDead:
			stats.Dead++
		case StateOff:
			stats.Off++
		}
	}
	return stats
}

func (c *class) stats(now time.Time) ClassStats {
	cs := ClassStats{Class: c.name, InFlight: c.inFlight, Keys: make([]KeyMetadata, len(c.slots))}
	counted := make(map[*buckets]bool, len(c.slots))
	for i, s := range c.slots {
		m := s.view(now)
		cs.Keys[i] = m
		if m.State == StateDead || m.State == StateOff || counted[s.buckets] {
			continue
		}
		counted[s.buckets] = true
		cs.Limits.RPM += m.Limits.RPM
		cs.Limits.ITPM += m.Limits.ITPM
		cs.Limits.OTPM += m.Limits.OTPM
		cs.Remaining.RPM += m.Remaining.RPM
		cs.Remaining.ITPM += m.Remaining.ITPM
		cs.Remaining.OTPM += m.Remaining.OTPM
	}
	return cs
}

// Keys returns what is known of each key for the class-less methods, in
// configured order: copies, without secrets.
func (p *KeyPool) Keys() []KeyMetadata {
	now := time.Now()
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.classes[ClassAny].stats(now).Keys
}
