package main

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"cc-relay/internal/simulator"
)

// The three limits, as indexes.
const (
	req = iota
	in
	out
)

// reference is the pool's policy written down once more, as plainly as possible:
// one struct, full scans, no care for speed. It shares nothing with the relay's own
// pool, so that each can be checked against the other.
type reference struct {
	rng      *rand.Rand
	keys     []*refKey
	homes    map[uint64]refHome
	pred     float64   // output tokens that six of ten answers stay below
	beta     float64   // tokens of prompt per byte
	seq      int       // of dispatches
	coldFree time.Time // a cold request last found a free key
	eval     []refView // of the pick under way
}

type refKey struct {
	known        bool // headers have shown the limits
	lim, cap     [3]float64
	lvl          [3]float64 // what the provider has, by our count, as of at
	at           time.Time
	plan         [2]float64 // promised to requests that wait: requests, input
	resOut, prod float64    // output predicted and not made yet; made so far
	newest       int        // dispatch whose headers were merged last
	unacked      []*refLease
	cool         time.Time
	dead         bool // a run is too short to ask it again
	last429      time.Time
	index        map[uint64]time.Time // expiry of cached prefixes
	sweepAt      int
}

type refHome struct {
	key  int
	last time.Time
}

// refLease is one request on its way: first planned, then dispatched.
type refLease struct {
	planned     bool
	key         int // planned for, then dispatched to
	u, o        float64
	seq         int
	sent        time.Time
	prodAt      float64
	made        float64
	outstanding float64 // of o
}

// refView is one key as seen by one request.
type refView struct {
	key, hit  int // content blocks of the chain that are cached there
	u, d, h   float64
	hitTokens float64
}

// Numbers of the policy; times in seconds.
const (
	refBudget    = 3.0
	refPatience  = 2.0 // worth waiting for a home, and 1 s more per 10,000 tokens saved
	refTTL       = 5 * time.Minute
	refSafety    = 2 * time.Second // an entry must live that much longer to count
	refMinCached = 1024
	refManyKeys  = 16
)

func newReference(pool Pool, seed uint64) Policy {
	p := &reference{rng: rand.New(rand.NewPCG(seed, 0x726566)), homes: make(map[uint64]refHome), pred: 400, beta: 0.25}
	for range pool.Keys {
		p.keys = append(p.keys, &refKey{index: make(map[uint64]time.Time)})
	}
	return p
}

// Restart keeps what a state file would: limits, levels, homes and the prefix index.
func (p *reference) Restart(now time.Time) Policy {
	fresh := &reference{rng: p.rng, homes: maps.Clone(p.homes), pred: p.pred, beta: p.beta}
	for _, k := range p.keys {
		fresh.keys = append(fresh.keys, &refKey{known: k.known, dead: k.dead, lim: k.lim, cap: k.cap, lvl: k.lvl, at: k.at, index: maps.Clone(k.index)})
	}
	return fresh
}

func (p *reference) Pick(now time.Time, r *Request) Decision {
	lease, _ := r.Lease.(*refLease)
	own := -1
	if lease != nil && lease.planned {
		own = lease.key
		k := p.keys[own]
		k.plan[req]--
		k.plan[in] -= lease.u
	}
	lease = &refLease{}
	r.Lease = lease
	home := p.home(now, r, own)
	views := p.look(now, r, home, own)
	waited := now.Sub(r.Since).Seconds()
	budget := refBudget - waited
	if now.Sub(p.coldFree) > 3*time.Second {
		budget = 1 - waited
	}
	free, soonest := p.choose(views)
	if free != nil && 2*free.hitTokens < float64(r.Bytes)*p.beta {
		p.coldFree = now
	}
	if i := slices.IndexFunc(views, func(v refView) bool { return v.key == home }); i >= 0 && views[i].hitTokens >= refMinCached {
		v := &views[i]
		if v.d == 0 {
			return p.dispatch(now, r, lease, v)
		}
		if free != nil && v.d <= min(budget, refPatience+(v.hitTokens-free.hitTokens)/10_000-waited) ||
			free == nil && v.d <= min(budget, soonest.d+refPatience+(v.hitTokens-soonest.hitTokens)/10_000) {
			return p.wait(now, lease, v)
		}
	}
	switch {
	case free != nil:
		return p.dispatch(now, r, lease, free)
	case soonest != nil && soonest.d <= budget:
		return p.wait(now, lease, soonest)
	case soonest != nil && !math.IsInf(soonest.d, 1):
		return refuse(time.Duration(soonest.d * float64(time.Second)))
	}
	return refuse(time.Minute)
}

// home is the key of the conversation's last turn, -1 if there is none.
func (p *reference) home(now time.Time, r *Request, own int) int {
	if h, ok := p.homes[r.Conversation]; ok && now.Sub(h.last) < refTTL && p.candidate(now, r, h.key, own) {
		return h.key
	}
	return -1
}

// candidate: r may be sent to key, now or after a wait. A key that has refused r
// is one once more if r waits until it has cooled down.
func (p *reference) candidate(now time.Time, r *Request, key, own int) bool {
	if p.keys[key].dead || r.spent(key) {
		return false
	}
	return !r.tried(key) || key == own || p.keys[key].cool.After(now)
}

// look views all keys, or of very many keys the home and four others, unless none
// of those is free.
func (p *reference) look(now time.Time, r *Request, home, own int) []refView {
	p.eval = p.eval[:0]
	if len(p.keys) > refManyKeys {
		if home >= 0 {
			p.eval = append(p.eval, p.view(now, r, home, own))
		}
		for range 4 {
			k := draw(p.rng, p.all(), func(k int) float64 { return p.weight(k) })
			if p.candidate(now, r, k, own) && !slices.ContainsFunc(p.eval, func(v refView) bool { return v.key == k }) {
				p.eval = append(p.eval, p.view(now, r, k, own))
			}
		}
		if slices.ContainsFunc(p.eval, func(v refView) bool { return v.d == 0 }) {
			return p.eval
		}
		p.eval = p.eval[:0]
	}
	for k := range p.keys {
		if p.candidate(now, r, k, own) {
			p.eval = append(p.eval, p.view(now, r, k, own))
		}
	}
	return p.eval
}

func (p *reference) all() []int {
	keys := make([]int, len(p.keys))
	for i := range keys {
		keys[i] = i
	}
	return keys
}

// weight is the input limit; an unknown key weighs as much as a middling one.
func (p *reference) weight(k int) float64 {
	if !p.keys[k].known {
		return 450_000
	}
	return p.keys[k].lim[in]
}

// choose finds the free key of the largest headroom and the one free soonest.
func (p *reference) choose(views []refView) (free, soonest *refView) {
	ties := 1
	for i := range views {
		v := &views[i]
		if soonest == nil || v.d < soonest.d {
			soonest = v
		}
		if v.d > 0 {
			continue
		}
		if free == nil || v.h > free.h {
			free, ties = v, 1
			continue
		}
		if v.h == free.h {
			if ties++; p.rng.IntN(ties) == 0 {
				free = v
			}
		}
	}
	return free, soonest
}

// view is how long key must wait before it can serve r, and its headroom.
func (p *reference) view(now time.Time, r *Request, key, own int) refView {
	k := p.keys[key]
	k.refill(now)
	v := refView{key: key, hit: p.hit(now, r, k)}
	if v.hit > 0 {
		v.hitTokens = float64(r.BytesThrough(v.hit-1)) * p.beta
	}
	v.u = max(float64(r.Bytes)*p.beta-v.hitTokens, 1)
	cooling := max(k.cool.Sub(now).Seconds(), 0)
	if !k.known {
		v.h = 0.5 - 0.2*float64(len(k.unacked))
		if len(k.unacked) >= 2 {
			v.d = 0.1
		}
		v.d = max(v.d, cooling)
		return v
	}
	have := k.lvl
	if 2*v.hitTokens < float64(r.Bytes)*p.beta && key != own {
		have[req] -= k.plan[req]
		have[in] -= k.plan[in]
	}
	need := [3]float64{1, v.u + min(600, 0.02*k.cap[in]), min(500, 0.02*k.lim[out])}
	if need[in] > k.cap[in] {
		need[in] = v.u
	}
	v.d = cooling
	for i := range need {
		v.d = max(v.d, (need[i]-have[i])*60/k.lim[i])
	}
	if need[in] > k.cap[in] {
		v.d = math.Inf(1)
	}
	o := min(p.pred, float64(r.MaxTokens))
	v.h = min((have[req]-1)/k.lim[req], (have[in]-v.u)/k.lim[in], (have[out]-k.resOut-o)/k.lim[out])
	return v
}

// hit is how many content blocks of the prompt are cached on k, looked for as the provider does.
func (p *reference) hit(now time.Time, r *Request, k *refKey) int {
	for b := len(r.Breakpoints) - 1; b >= 0; b-- {
		at := r.Breakpoints[b]
		for i := at; i >= 0 && i > at-20; i-- {
			if e, ok := k.index[r.Chain[i]]; ok && e.After(now.Add(refSafety)) {
				return i + 1
			}
		}
	}
	return 0
}

func (k *refKey) refill(now time.Time) {
	passed := now.Sub(k.at).Minutes()
	k.at = now
	for i := range k.lvl {
		k.lvl[i] = min(k.cap[i], k.lvl[i]+passed*k.lim[i])
	}
}

func (p *reference) wait(now time.Time, lease *refLease, v *refView) Decision {
	lease.planned, lease.key, lease.u = true, v.key, v.u
	k := p.keys[v.key]
	k.plan[req]++
	k.plan[in] += v.u
	return waitUntil(now.Add(time.Duration(v.d*float64(time.Second)) + time.Millisecond))
}

func (p *reference) dispatch(now time.Time, r *Request, lease *refLease, v *refView) Decision {
	k := p.keys[v.key]
	p.seq++
	*lease = refLease{key: v.key, u: v.u, o: min(p.pred, float64(r.MaxTokens)), seq: p.seq, sent: now, prodAt: k.prod}
	lease.outstanding = lease.o
	k.lvl[req]--
	k.lvl[in] -= v.u
	k.resOut += lease.o
	k.unacked = append(k.unacked, lease)
	p.homes[r.Conversation] = refHome{key: v.key, last: now}
	return serve(v.key)
}

func (p *reference) Answered(now time.Time, r *Request, h *Head) {
	lease := r.Lease.(*refLease)
	k := p.keys[lease.key]
	k.refill(now)
	k.unacked = slices.DeleteFunc(k.unacked, func(l *refLease) bool { return l == lease })
	if h.Status != 200 {
		k.lvl[req]++
		k.lvl[in] += lease.u
		k.resOut -= lease.outstanding
		lease.outstanding = 0
	}
	switch h.Status {
	case 401:
		k.dead = true
		return
	case 529:
		return
	case 429:
		k.chill(now, h.RetryAfter)
	case 200:
		p.remember(now, r, k, lease.sent.Add(refTTL))
	}
	if lease.seq >= k.newest {
		k.newest = lease.seq
		k.merge(now, lease, h)
	}
}

// chill cools a key for a moment; levels say how much longer it cannot serve whom.
func (k *refKey) chill(now time.Time, after time.Duration) {
	d := after
	if now.Sub(k.last429) > 10*time.Second {
		d = min(after, time.Second)
	}
	k.last429 = now
	k.cool = now.Add(d)
}

// merge sets the levels to what the headers said, carried on to now, less what the
// provider had not seen yet.
func (k *refKey) merge(now time.Time, lease *refLease, h *Head) {
	age := now.Sub(lease.sent).Minutes()
	for i, reading := range []Reading{h.Requests, h.Input, h.Output} {
		limit, remaining := float64(reading.Limit), float64(reading.Remaining)
		old := k.lvl[i]
		first := !k.known
		k.lim[i] = limit
		if remaining > 0 {
			k.cap[i] = min(limit, remaining+(reading.Reset.Minutes()+age)*limit)
		} else if k.cap[i] == 0 {
			k.cap[i] = limit
		}
		level := min(k.cap[i], remaining+age*limit)
		switch i {
		case out:
			level -= k.prod - lease.prodAt
		default:
			for _, l := range k.unacked {
				if l.seq > lease.seq {
					level -= []float64{1, l.u}[i]
				}
			}
		}
		if remaining == 0 && !first {
			level = min(level, old)
		}
		k.lvl[i] = level
	}
	k.known = true
	k.at = now
}

// remember notes which prefixes are cached from now on.
func (p *reference) remember(now time.Time, r *Request, k *refKey, expires time.Time) {
	for _, at := range r.Breakpoints {
		if float64(r.BytesThrough(at))*p.beta >= refMinCached && expires.After(k.index[r.Chain[at]]) {
			k.index[r.Chain[at]] = expires
		}
	}
	if len(k.index) < max(k.sweepAt, 1024) {
		return
	}
	for hash, e := range k.index {
		if e.Before(now) {
			delete(k.index, hash)
		}
	}
	k.sweepAt = 2 * len(k.index)
}

func (p *reference) Produced(now time.Time, r *Request, n int) {
	lease := r.Lease.(*refLease)
	k := p.keys[lease.key]
	k.refill(now)
	made := float64(n)
	k.lvl[out] -= made
	k.prod += made
	lease.made += made
	used := min(made, lease.outstanding)
	lease.outstanding -= used
	k.resOut -= used
}

func (p *reference) Ended(_ time.Time, r *Request, u simulator.Usage, gone bool) {
	lease := r.Lease.(*refLease)
	p.keys[lease.key].resOut -= lease.outstanding
	lease.outstanding = 0
	if gone {
		return
	}
	step := 0.02 * max(50, p.pred)
	if float64(u.Output) > p.pred {
		p.pred += step * 0.6
	} else {
		p.pred -= step * 0.4
	}
	p.beta += 0.02 * (float64(u.CacheRead+u.Uncached())/float64(r.Bytes) - p.beta)
}
