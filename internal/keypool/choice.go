package keypool

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"cc-relay/internal/ratelimit"
)

// never is longer than any wait.
const never = time.Duration(math.MaxInt64)

// Rules of the choice. The margins cover the rounding of remaining to the nearest
// thousand and of times to the second.
const (
	marginInput  = 600 // tokens, but never more than marginShare of a bucket
	marginOutput = 500
	marginShare  = 0.02

	patience      = 2 * time.Second        // worth waiting for a home
	savedPerWait  = 100 * time.Microsecond // and for each token that is not read again: 1 s for 10,000
	maxUnacked    = 2                      // requests that try out limits nobody knows yet
	refusalTime   = 500 * time.Millisecond // until a request that is refused has its answer
	probeInterval = 100 * time.Millisecond // how often those look that wait for the outcome

	sampleFrom  = 16 // with more keys than this some are drawn instead of all looked at
	sampleSize  = 4
	middlingTPM = 450_000 // weight of a key without a known limit among those drawn
)

// view is one key as one request sees it.
type view struct {
	index     int
	cached    float64       // tokens of the prompt that its cache holds
	uncached  float64       // the others: what the request takes of its input bucket
	wait      time.Duration // until it can serve the request
	headroom  float64
	capacity  float64 // of the input bucket
	oversized bool    // no wait makes its bucket large enough; the wait is until it is full
	dead      bool    // and due for a probe at best
}

// warm reports whether at least half of the prompt is cached there.
func (v *view) warm() bool { return v.cached > 0 && v.cached >= v.uncached }

// decision is the outcome of one choice: a key to serve now, a key to wait for,
// or a refusal.
type decision struct {
	view view
	wait time.Duration // > 0: until view's key can serve
	err  error
}

// decide is the whole choice and changes nothing but the turn of the selector and
// what is noted of crowds: the conversation's home while the wait for it costs
// less than its cache saves, or what it has left there is worth, else the selector's
// pick among the keys that can serve now, else the key that can serve first. The
// caller holds mu for writing.
func (p *KeyPool) decide(now time.Time, c *class, d *Demand, own *waiter) decision {
	p.views, p.drawn = p.views[:0], p.drawn[:0]
	home, stays := p.homeOf(now, c, d), false
	var at view
	if home >= 0 {
		bytes := p.prefixes.longest(d.Prefix, c.slots[home].key.scope, d.least, now)
		p.view(&at, now, c, home, bytes, d, own)
		usable, warm := !at.oversized && !at.dead, at.cached >= homeTokens
		if usable && (warm || d.Stays) && at.wait == 0 {
			return decision{view: at}
		}
		stays = usable && (warm || d.Stays && d.OpenTools)
	}
	p.look(now, c, d, own, home)
	free, soonest := best(p.views)
	if free == nil || !free.warm() {
		c.found(now, free != nil)
	}
	budget := p.budget(now, c, d)
	if stays && at.wait <= min(budget, p.worth(now, d, &at, free, soonest)) {
		return decision{view: at, wait: at.wait}
	}
	if free != nil && free.oversized {
		return decision{view: *free}
	}
	if free != nil {
		return p.selected(c)
	}
	if soonest != nil && !soonest.dead && soonest.wait <= budget && !d.OnlyHome {
		return decision{view: *soonest, wait: soonest.wait}
	}
	return decision{err: p.refusal(c, d, soonest)}
}

// worth is how long waiting for the conversation's home is worth it: a moment,
// and more the more of the prompt another key would have to read again.
func (p *KeyPool) worth(now time.Time, d *Demand, home, free, soonest *view) time.Duration {
	if free != nil {
		return patience + time.Duration(home.cached-free.cached)*savedPerWait - now.Sub(d.Arrived)
	}
	return soonest.wait + patience + time.Duration(home.cached-soonest.cached)*savedPerWait // home itself is seen, so there is one
}

// homeOf is the slot where the conversation's prompt is cached, or what it has left
// behind: that of its last key, or of another key of the same cache where that one
// cannot serve; -1 if there is none.
func (p *KeyPool) homeOf(now time.Time, c *class, d *Demand) int {
	if p.affinityOff || len(d.Prefix) == 0 && !d.Stays {
		return -1
	}
	at := p.homes.get(d.Conversation, now)
	if at == nil {
		return -1
	}
	if s := c.slots[at.index]; s.usable() && s.key.cool.wait(now) == 0 && !slices.Contains(d.Exclude, s.meta.ID) {
		return at.index
	}
	for i, s := range c.slots {
		if s.key.scope == at.scope && s.usable() && !slices.Contains(d.Exclude, s.meta.ID) {
			return i
		}
	}
	return -1
}

// look views the keys that the request may use. Of very many, all alike in
// priority, it views the home and a few that are drawn in proportion to their
// limits, unless none of those is free.
func (p *KeyPool) look(now time.Time, c *class, d *Demand, own *waiter, home int) {
	hits := !p.affinityOff && len(d.Prefix) > 0
	if hits {
		p.prefixes.fill(p.hits, d.Prefix, d.least, now)
	}
	if p.sampled {
		p.sample(now, c, home)
		free := false
		for _, i := range p.drawn {
			free = p.see(now, c, i, d, own, hits) || free
		}
		if free {
			return
		}
		p.views = p.views[:0]
	}
	for i := range c.slots {
		p.see(now, c, i, d, own, hits)
	}
}

// see views one key and reports whether it is free.
func (p *KeyPool) see(now time.Time, c *class, i int, d *Demand, own *waiter, hits bool) bool {
	s := c.slots[i]
	if s.key.off || len(d.Exclude) > 0 && slices.Contains(d.Exclude, s.meta.ID) {
		return false
	}
	bytes := 0
	if hits {
		bytes = p.hits[s.key.scope]
	}
	p.views = p.views[:len(p.views)+1] // there is room for every key
	v := &p.views[len(p.views)-1]
	p.view(v, now, c, i, bytes, d, own)
	return v.wait == 0
}

// sample draws the keys to look at: the home, and a few others.
func (p *KeyPool) sample(now time.Time, c *class, home int) {
	if home >= 0 {
		p.drawn = append(p.drawn, home)
	}
	total := c.weigh(now)
	for range sampleSize {
		x := rand.Float64() * total
		i := 0
		for ; i < len(c.weights)-1 && x >= c.weights[i]; i++ {
			x -= c.weights[i]
		}
		if !slices.Contains(p.drawn, i) {
			p.drawn = append(p.drawn, i)
		}
	}
}

// weigh returns the sum of the class's weights: input limits, a minute.
func (c *class) weigh(now time.Time) float64 {
	if c.weights == nil {
		c.weights = make([]float64, len(c.slots))
		c.weight = 0
		for i := range c.slots {
			w := float64(c.slots[i].buckets.limiter.UsageAt(now).Limits.ITPM)
			if w == 0 {
				w = middlingTPM
			}
			if c.slots[i].key.off {
				w = 0
			}
			c.weights[i] = w
			c.weight += w
		}
	}
	return c.weight
}

// view is how long the key must wait before it can serve the request, and its
// headroom then.
func (p *KeyPool) view(v *view, now time.Time, c *class, i, cachedBytes int, d *Demand, own *waiter) {
	s := c.slots[i]
	b := s.buckets
	*v = view{index: i, wait: s.barred(now), dead: s.dead() != ""}
	if v.dead && s.key.dead.reason == ReasonSpent && c.free() {
		v.wait = max(v.wait, longPause) // it would be served and show nothing, and use up the probe
	}
	levels := &p.levels
	b.limiter.ReadBuckets(now, levels)
	requests, input, output := &levels.Requests, &levels.Input, &levels.Output
	if d.bare {
		v.wait = max(v.wait, lack(requests, 1), lack(input, 1), lack(output, 1))
		v.headroom = headroom(levels, 1, 0, 0)
		return
	}
	v.cached = float64(cachedBytes) * c.ratio
	v.uncached = max(float64(d.Bytes)*c.ratio-v.cached, 0)
	ahead := 0.0
	if !v.warm() {
		r, t := b.ahead(d.Client, own)
		requests.Level -= r
		input.Level -= t
		ahead = r
	}
	want := wantInput(input, v.uncached)
	if input.Limit > 0 && want > input.Capacity {
		want, v.capacity, v.oversized = input.Capacity, input.Capacity, true
	}
	v.wait = max(v.wait, b.trial(now, int(ahead)), lack(requests, 1), lack(input, want), lack(output, c.wantOutput(output, d)))
	v.headroom = headroom(levels, 1, v.uncached, c.predicted(d)+b.reserved)
}

// headroom is the smallest part of a limit that is left after what is needed. Of
// a key that nobody knows it is worth a try before one that is more than half spent.
func headroom(b *ratelimit.Buckets, requests, input, output float64) float64 {
	if b.Requests.Limit == 0 && b.Input.Limit == 0 && b.Output.Limit == 0 {
		return 0.5 - 0.2*float64(b.InFlight)
	}
	least := share(&b.Requests, requests)
	if s := share(&b.Input, input); s < least {
		least = s
	}
	if s := share(&b.Output, output); s < least {
		least = s
	}
	return least
}

// wantInput is the level of the input bucket from which a prompt is admitted.
func wantInput(input *ratelimit.Bucket, uncached float64) float64 {
	if want := uncached + min(marginInput, marginShare*input.Capacity); want <= input.Capacity {
		return want
	}
	return uncached
}

// wantOutput is the level of the output bucket from which a request is admitted.
// Anthropic counts output as it is produced; a provider that reserves max_tokens
// up front refuses what does not fit.
func (c *class) wantOutput(output *ratelimit.Bucket, d *Demand) float64 {
	if c.reserving() {
		return min(float64(d.MaxTokens), output.Capacity)
	}
	return min(marginOutput, marginShare*output.Limit, output.Capacity)
}

// lack is how long until the bucket's level reaches want.
func lack(b *ratelimit.Bucket, want float64) time.Duration {
	if b.Limit == 0 || b.Level >= want-1e-6 {
		return 0
	}
	return time.Duration(min(float64(never)/2, math.Ceil((want-b.Level)/b.Limit*float64(time.Minute))))
}

// share is the part of the limit that is left after need.
func share(b *ratelimit.Bucket, need float64) float64 {
	if b.Limit == 0 {
		return math.Inf(1)
	}
	return (b.Level - need) / b.Limit
}

// best finds the free key with the most headroom and the one that is free
// soonest: a live one before one that is dead, one that can hold the prompt
// before one that cannot, the larger of two that cannot.
func best(views []view) (free, soonest *view) {
	for i := range views {
		v := &views[i]
		if soonest == nil || sooner(v, soonest) {
			soonest = v
		}
		if v.wait == 0 && !v.oversized && (free == nil || v.headroom > free.headroom) {
			free = v
		}
	}
	if free == nil && soonest != nil && soonest.wait == 0 {
		free = soonest // too small for the prompt, but nothing is larger
	}
	return free, soonest
}

func sooner(v, than *view) bool {
	if v.dead != than.dead {
		return than.dead
	}
	if v.oversized != than.oversized {
		return than.oversized
	}
	if v.capacity != than.capacity { // both are too small
		return v.capacity > than.capacity
	}
	return v.wait < than.wait
}

// selected is the selector's pick among the free keys of the highest priority.
func (p *KeyPool) selected(c *class) decision {
	offered := p.candidates[:0]
	for i := range p.views {
		v := &p.views[i]
		if v.wait > 0 || v.oversized {
			continue
		}
		s := c.slots[v.index]
		s.meta.InFlight = s.inFlight
		s.meta.Headroom = v.headroom
		if len(offered) > 0 && s.meta.Priority > offered[0].Priority {
			offered = offered[:0]
		}
		if len(offered) == 0 || s.meta.Priority == offered[0].Priority {
			offered = append(offered, &s.meta)
		}
	}
	chosen, err := p.selector.Select(offered)
	if err != nil {
		return decision{err: fmt.Errorf("selector %s: %w", p.selector.Name(), err)}
	}
	for i := range p.views {
		if v := &p.views[i]; &c.slots[v.index].meta == chosen && slices.Contains(offered, chosen) {
			return decision{view: *v}
		}
	}
	return decision{err: fmt.Errorf("keypool: selector %s chose a key that was not offered", p.selector.Name())}
}

// refusal says how long this demand has to wait, and what is left to wait for.
func (p *KeyPool) refusal(c *class, d *Demand, soonest *view) error {
	e := &ExhaustedError{Provider: p.provider}
	for _, s := range c.slots {
		if s.key.off {
			e.Off++
			continue
		}
		if slices.Contains(d.Exclude, s.meta.ID) {
			continue
		}
		if why := s.dead(); why == "" {
			e.Left++
		} else if e.Reason != ReasonSpent {
			e.Reason = why
		}
	}
	if e.Left > 0 {
		e.Reason = ""
	}
	if soonest != nil { // nil: every key is excluded or off
		e.RetryAfter = soonest.wait
	}
	return e
}
