package simulator

import "time"

// Rules of prompt caching.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
const (
	maxBreakpoints = 4
	lookback       = 20 // positions tried from a breakpoint, itself the first
	ttlShort       = 5 * time.Minute
	ttlLong        = time.Hour
)

// Block is one cacheable piece of a prompt: a tool, a block of the system prompt,
// or a content block of a message, in that order.
type Block struct {
	// Hash stands for the prompt from its beginning through this block.
	Hash uint64
	// Tokens counts this block alone.
	Tokens int
	// TTL is 5 minutes or 1 hour where a cache breakpoint stands, else 0.
	TTL time.Duration
}

// promptCache holds the cached prefixes of one organization. An entry exists from
// the first byte of the answer that wrote it; its life counts from that request's
// start and begins anew, at the same length, with each read.
type promptCache struct {
	entries map[cacheKey]cacheEntry
	spaces  map[cacheSpace]int
	sweepAt int
}

// cacheSpace is where prefixes are shared: one workspace and model.
type cacheSpace struct{ workspace, model string }

// cacheKey names a prefix in a space by its number: a key without strings is cheap
// to look up, and a prompt is looked up block by block.
type cacheKey struct {
	space int
	hash  uint64
}

type cacheEntry struct {
	ttl     time.Duration
	expires time.Time
}

// plan says what a request reads from the cache and would write to it.
type plan struct {
	usage Usage
	reads []cacheKey
	write map[cacheKey]time.Duration
}

// look plans a request without changing the cache. From every breakpoint it goes
// back at most 20 blocks for a live entry; the longest one found is what is read.
// Everything between it and the last breakpoint is written, everything after that
// is plain input. Breakpoints below the model's minimum do not count.
func (c *promptCache) look(now time.Time, d Demand) plan {
	base := cacheKey{space: c.space(cacheSpace{d.Workspace, canonical(d.Model)})}
	minimum := CacheMinimum(d.Model)
	through := make([]int, len(d.Blocks)) // tokens up to and including the block
	total := 0
	p := plan{write: make(map[cacheKey]time.Duration)}
	var points []int
	for i, b := range d.Blocks {
		total += b.Tokens
		through[i] = total
		if b.TTL > 0 && total >= minimum {
			points = append(points, i)
		}
	}
	for _, at := range points {
		hit := c.hit(now, base, d.Blocks, at)
		if hit >= 0 {
			p.reads = append(p.reads, base.at(d.Blocks[hit]))
			p.usage.CacheRead = through[hit] // a later breakpoint finds the same or more
		}
		if hit != at {
			p.write[base.at(d.Blocks[at])] = d.Blocks[at].TTL
		}
	}
	cached := p.usage.CacheRead
	for _, at := range points {
		fresh := max(through[at]-cached, 0)
		if d.Blocks[at].TTL > ttlShort {
			p.usage.Write1h += fresh
		} else {
			p.usage.Write5m += fresh
		}
		cached += fresh
	}
	p.usage.Input = total - cached
	return p
}

// space numbers the spaces in the order they are first asked for.
func (c *promptCache) space(s cacheSpace) int {
	n, ok := c.spaces[s]
	if !ok {
		if c.spaces == nil {
			c.spaces = make(map[cacheSpace]int)
		}
		n = len(c.spaces)
		c.spaces[s] = n
	}
	return n
}

// hit is the index of the nearest live entry from block at backwards, or -1.
func (c *promptCache) hit(now time.Time, base cacheKey, blocks []Block, at int) int {
	for i := at; i >= 0 && i > at-lookback; i-- {
		if e, ok := c.entries[base.at(blocks[i])]; ok && now.Before(e.expires) {
			return i
		}
	}
	return -1
}

// renew starts the life of every entry read by an admitted request anew.
func (c *promptCache) renew(now time.Time, reads []cacheKey) {
	for _, k := range reads {
		e := c.entries[k]
		c.put(now, k, cacheEntry{ttl: e.ttl, expires: now.Add(e.ttl)})
	}
}

// store makes the entries of a request that started at start exist from now on.
func (c *promptCache) store(now, start time.Time, write map[cacheKey]time.Duration) {
	for k, ttl := range write {
		c.put(now, k, cacheEntry{ttl: ttl, expires: start.Add(ttl)})
	}
}

// put keeps whichever of the old and the new entry lives longer.
func (c *promptCache) put(now time.Time, k cacheKey, e cacheEntry) {
	if c.entries == nil {
		c.entries = make(map[cacheKey]cacheEntry)
	}
	if e.expires.After(c.entries[k].expires) {
		c.entries[k] = e
	}
	c.sweep(now)
}

// sweep drops dead entries when the table has doubled, so that it stays within
// twice what is alive.
func (c *promptCache) sweep(now time.Time) {
	if len(c.entries) < max(c.sweepAt, 1024) {
		return
	}
	for k, e := range c.entries {
		if !now.Before(e.expires) {
			delete(c.entries, k)
		}
	}
	c.sweepAt = 2 * len(c.entries)
}

func (k cacheKey) at(b Block) cacheKey {
	k.hash = b.Hash
	return k
}
