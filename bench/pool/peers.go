package main

import (
	"math"
	"math/rand/v2"
	"time"

	"cc-relay/internal/simulator"
)

// cooling is what most gateways do with a 429, and the base of the strategies here:
// the key is out for everybody for retry-after, and another key is tried.
type cooling struct {
	rng   *rand.Rand
	until []time.Time
	free  []int
}

func newCooling(pool Pool, seed uint64) cooling {
	return cooling{rng: rand.New(rand.NewPCG(seed, 0x70656572)), until: make([]time.Time, len(pool.Keys))}
}

// open are the keys that are not cooling and have not refused r; the slice is valid
// until the next call.
func (c *cooling) open(now time.Time, r *Request) []int {
	c.free = c.free[:0]
	for k, t := range c.until {
		if !now.Before(t) && !r.tried(k) {
			c.free = append(c.free, k)
		}
	}
	return c.free
}

// refusal tells when the first key is back.
func (c *cooling) refusal(now time.Time) Decision {
	first := c.until[0]
	for _, t := range c.until {
		if t.Before(first) {
			first = t
		}
	}
	return refuse(first.Sub(now))
}

func (c *cooling) Answered(now time.Time, r *Request, h *Head) {
	if h.Status == 429 {
		c.until[r.Key] = now.Add(h.RetryAfter)
	}
}

func (c *cooling) Produced(time.Time, *Request, int) {}

func (c *cooling) Ended(time.Time, *Request, simulator.Usage, bool) {}

// random draws an open key.
type random struct{ cooling }

func (p *random) Pick(now time.Time, r *Request) Decision {
	open := p.open(now, r)
	if len(open) == 0 {
		return p.refusal(now)
	}
	return serve(open[p.rng.IntN(len(open))])
}

// roundRobin takes open keys in turn.
type roundRobin struct {
	cooling
	next int
}

func (p *roundRobin) Pick(now time.Time, r *Request) Decision {
	open := p.open(now, r)
	if len(open) == 0 {
		return p.refusal(now)
	}
	key := open[0]
	for _, k := range open {
		if k >= p.next {
			key = k
			break
		}
	}
	p.next = (key + 1) % len(p.until)
	return serve(key)
}

// weightedShuffle draws an open key in proportion to its configured input limit.
type weightedShuffle struct {
	cooling
	pool Pool
}

func (p *weightedShuffle) Pick(now time.Time, r *Request) Decision {
	open := p.open(now, r)
	if len(open) == 0 {
		return p.refusal(now)
	}
	return serve(draw(p.rng, open, func(k int) float64 { return float64(p.pool.Keys[k].ITPM) }))
}

// draw takes one of keys in proportion to its weight.
func draw(rng *rand.Rand, keys []int, weight func(int) float64) int {
	sum := 0.0
	for _, k := range keys {
		sum += weight(k)
	}
	at := rng.Float64() * sum
	for _, k := range keys {
		if at -= weight(k); at < 0 {
			return k
		}
	}
	return keys[len(keys)-1]
}

// lastHeaders takes the open key of which the newest headers showed the largest
// share left, all tokens in one; what is under way is not counted.
type lastHeaders struct {
	cooling
	share []float64
}

func newLastHeaders(pool Pool, seed uint64) Policy {
	p := &lastHeaders{cooling: newCooling(pool, seed)}
	for range pool.Keys {
		p.share = append(p.share, 1)
	}
	return p
}

func (p *lastHeaders) Pick(now time.Time, r *Request) Decision {
	open := p.open(now, r)
	if len(open) == 0 {
		return p.refusal(now)
	}
	return serve(best(p.rng, open, func(k int) float64 { return p.share[k] }))
}

// best takes the key of the largest value, ties at random.
func best(rng *rand.Rand, keys []int, value func(int) float64) int {
	winner, most, ties := -1, math.Inf(-1), 0
	for _, k := range keys {
		v := value(k)
		if v > most {
			winner, most, ties = k, v, 1
			continue
		}
		if v == most {
			if ties++; rng.IntN(ties) == 0 {
				winner = k
			}
		}
	}
	return winner
}

func (p *lastHeaders) Answered(now time.Time, r *Request, h *Head) {
	p.cooling.Answered(now, r, h)
	if h.Requests.Limit == 0 { // what was known stays
		return
	}
	tokens := ratio(float64(h.Input.Remaining+h.Output.Remaining), float64(h.Input.Limit+h.Output.Limit))
	p.share[r.Key] = min(tokens, ratio(float64(h.Requests.Remaining), float64(h.Requests.Limit)))
}

// minuteCount counts requests and tokens, cached ones too, per minute of the clock
// against configured limits, and takes the open key with the smallest share used.
type minuteCount struct {
	cooling
	pool             Pool
	minute           time.Time
	tokens, requests []float64
}

func newMinuteCount(pool Pool, seed uint64) Policy {
	n := len(pool.Keys)
	return &minuteCount{cooling: newCooling(pool, seed), pool: pool, tokens: make([]float64, n), requests: make([]float64, n)}
}

func (p *minuteCount) Pick(now time.Time, r *Request) Decision {
	if m := now.Truncate(time.Minute); m.After(p.minute) {
		p.minute = m
		clear(p.tokens)
		clear(p.requests)
	}
	prompt := float64(r.Bytes) / 4
	left := func(k int) float64 {
		l := p.pool.Keys[k]
		return min(1-(p.tokens[k]+prompt)/float64(l.ITPM), 1-(p.requests[k]+1)/float64(l.RPM))
	}
	open := p.open(now, r)
	key := best(p.rng, open, left)
	if key < 0 || left(key) < 0 {
		return refuse(p.minute.Add(time.Minute).Sub(now))
	}
	p.tokens[key] += prompt
	p.requests[key]++
	return serve(key)
}

func (p *minuteCount) Ended(_ time.Time, r *Request, u simulator.Usage, _ bool) {
	p.tokens[r.Key] += float64(u.Output)
}

// errorWeights draws keys by weights that fall with each 429 and heal with each
// success; it has no cool-down.
type errorWeights struct {
	cooling
	weight []float64
}

func newErrorWeights(pool Pool, seed uint64) Policy {
	p := &errorWeights{cooling: newCooling(pool, seed)}
	for range pool.Keys {
		p.weight = append(p.weight, 1)
	}
	return p
}

func (p *errorWeights) Pick(now time.Time, r *Request) Decision {
	open := p.open(now, r)
	if len(open) == 0 {
		return refuse(time.Second)
	}
	return serve(draw(p.rng, open, func(k int) float64 { return p.weight[k] }))
}

func (p *errorWeights) Answered(_ time.Time, r *Request, h *Head) {
	if h.Status != 200 {
		p.weight[r.Key] = max(p.weight[r.Key]/2, 0.01)
		return
	}
	p.weight[r.Key] = min(p.weight[r.Key]+0.05, 1)
}

// hashSticky keeps a conversation on the key that its hash names, or on the next by
// hash while that one cools; keys weigh the same.
type hashSticky struct{ cooling }

func (p *hashSticky) Pick(now time.Time, r *Request) Decision {
	open := p.open(now, r)
	if len(open) == 0 {
		return p.refusal(now)
	}
	return serve(best(p.rng, open, func(k int) float64 { return float64(mix(r.Conversation, uint64(k)) >> 11) }))
}
