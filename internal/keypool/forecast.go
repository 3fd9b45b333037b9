package keypool

import "time"

// Forecast is what a request would probably cost at a pool, in tokens.
type Forecast struct {
	Input          int // neither read from the cache nor written to it
	CacheRead      int
	CacheWrite     int // kept for 5 minutes
	CacheWriteLong int // kept for an hour
	Output         int // as long as answers of the class have been, at most max_tokens
}

// Forecast estimates what a request would cost, if it went to the usable key that
// has most of its prompt cached. It takes nothing.
func (p *KeyPool) Forecast(now time.Time, d Demand) Forecast {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.classLocked(d.Class, now)
	d.least = c.leastCached(d.Model)
	cached := 0
	if !p.affinityOff && len(d.Prefix) > 0 {
		p.prefixes.fill(p.hits, d.Prefix, d.least, now)
		for _, s := range c.slots {
			if s.usable() {
				cached = max(cached, p.hits[s.key.scope])
			}
		}
	}
	f := Forecast{CacheRead: int(float64(cached) * c.ratio), Output: int(c.predicted(&d))}
	kept, life := 0, time.Duration(0) // up to the last breakpoint
	for i := range d.Prefix {
		if m := &d.Prefix[i]; m.Life > 0 && m.Bytes >= d.least {
			kept, life = m.Bytes, m.Life
			break
		}
	}
	written := int(float64(max(kept-cached, 0)) * c.ratio)
	if life > cacheLife {
		f.CacheWriteLong = written
	} else {
		f.CacheWrite = written
	}
	f.Input = max(0, int(float64(d.Bytes)*c.ratio)-f.CacheRead-written)
	return f
}
