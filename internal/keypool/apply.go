package keypool

import (
	"fmt"
	"slices"
	"time"

	"cc-relay/internal/ratelimit"
)

// settings are a configuration that has been found valid.
type settings struct {
	keys     []*key
	selector KeySelector
	maxWait  time.Duration
	waiting  int // at most
	affine   bool
}

func newSettings(provider string, cfg PoolConfig) (settings, error) {
	selector, err := NewSelector(cfg.Strategy)
	if err != nil {
		return settings{}, err
	}
	keys, err := newKeys(cfg.Keys)
	if err != nil {
		return settings{}, fmt.Errorf("keypool: provider %s: %w", provider, err)
	}
	maxWait, err := cfg.wait()
	if err != nil {
		return settings{}, fmt.Errorf("keypool: provider %s: %w", provider, err)
	}
	waiting, err := cfg.waiting()
	if err != nil {
		return settings{}, fmt.Errorf("keypool: provider %s: %w", provider, err)
	}
	affine, err := cfg.affine()
	if err != nil {
		return settings{}, fmt.Errorf("keypool: provider %s: %w", provider, err)
	}
	return settings{keys, selector, maxWait, waiting, affine}, nil
}

// Apply puts another configuration in force, all of it or, where NewKeyPool would
// refuse it, nothing. Keys are known by their IDs. One that stays keeps what was
// learned of it and what the operator did to it (Disable); what the configuration
// says of it counts at once, except that limits which headers have told go before
// configured ones, and a provider's word on whose key it is before an organization's
// name. One that is removed serves nothing new; its leases stay valid, and if it
// comes back later it is a new key, but off if it was. Requests that wait look again. The Logger
// stays the first one.
func (p *KeyPool) Apply(cfg PoolConfig) error {
	next, err := newSettings(p.provider, cfg)
	if err != nil {
		return err
	}
	p.mu.Lock()
	retired := p.applyLocked(time.Now(), next)
	p.mu.Unlock()
	if retired != nil {
		p.forget(retired)
	}
	return nil
}

// applyLocked returns the scopes that no key has any more, nil where no key has
// gone. They are to be forgotten, see forget.
func (p *KeyPool) applyLocked(now time.Time, next settings) (retired []int) {
	p.applied++
	before := p.keys
	regroup := p.takeOverLocked(next.keys)
	retired = p.retireLocked(before)
	for _, c := range p.classes {
		c.rearrange(now, p.keys)
	}
	p.regroupLocked(now, regroup)
	p.limitLocked(now)
	for _, k := range p.keys {
		p.rescopeLocked(k)
	}
	p.selectLocked(before, next.selector)
	p.maxWait, p.maxWaiting, p.affinityOff = next.maxWait, next.waiting, !next.affine
	p.measureLocked()
	p.wakeAllLocked()
	return retired
}

// takeOverLocked makes next the pool's keys, with those that stay in place of their
// likes. It returns the keys that may now belong to another organization than
// they did: new ones, and those of which the operator says so.
func (p *KeyPool) takeOverLocked(next []*key) (regroup []*key) {
	byID := make(map[string]*key, len(next))
	for i, k := range next {
		old, stays := p.byID[k.id]
		switch {
		case !stays:
			k.scope, k.since, k.off = -1, p.applied, p.off[k.id]
			regroup = append(regroup, k)
		case old.organization != k.organization && !old.told:
			regroup = append(regroup, old)
		}
		if stays {
			old.priority, old.weight, old.limits, old.organization = k.priority, k.weight, k.limits, k.organization
			next[i], k = old, old
		}
		k.index = i
		byID[k.id] = k
	}
	for id, k := range p.byID {
		k.gone = byID[id] != k
	}
	p.keys, p.byID = next, byID
	return regroup
}

// retireLocked keeps the scopes that only keys had which are gone now from being
// given to others.
func (p *KeyPool) retireLocked(before []*key) (retired []int) {
	for _, k := range before {
		if !k.gone {
			continue
		}
		if retired == nil {
			retired = []int{}
		}
		if !p.hasScope(k.scope) {
			retired = append(retired, k.scope)
		}
	}
	p.retired = append(p.retired, retired...) // some may share one
	return retired
}

// forget drops the homes at keys that are gone, which have their secrets, and what
// is known of retired scopes, which are free then. There may be many: requests are
// held up for moments only.
func (p *KeyPool) forget(retired []int) {
	p.mu.RLock()
	conversations, prompts := p.homes.lru.Keys(), p.prefixes.lru.Keys()
	p.mu.RUnlock()
	for chunk := range slices.Chunk(conversations, atOnce) {
		p.mu.Lock()
		p.homes.forgetGone(chunk)
		p.mu.Unlock()
	}
	for chunk := range slices.Chunk(prompts, atOnce) {
		p.mu.Lock()
		p.prefixes.forget(chunk, retired)
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, scope := range retired {
		i := slices.Index(p.retired, scope)
		p.retired = slices.Delete(p.retired, i, i+1)
	}
}

// rearrange is arrange for a class in use.
func (c *class) rearrange(now time.Time, keys []*key) {
	before := c.slots
	c.arrange(now, keys)
	for _, s := range before {
		if !s.key.gone {
			continue
		}
		if s.inFlight > 0 {
			c.gone = append(c.gone, s)
		}
		heir := slices.IndexFunc(c.slots, func(o *slot) bool { return o.buckets == s.buckets })
		for _, w := range s.buckets.waiters {
			if w.slot == s && heir >= 0 {
				w.slot = c.slots[heir]
			}
			w.rouse()
		}
	}
}

// regroupLocked puts keys together that the operator says are of one organization,
// and others apart.
func (p *KeyPool) regroupLocked(now time.Time, regroup []*key) {
	named := make(map[string]*key)
	for _, k := range p.keys {
		if _, ok := named[k.organization]; !ok && !slices.Contains(regroup, k) {
			named[k.organization] = k
		}
	}
	for _, k := range regroup {
		shared := slices.ContainsFunc(p.keys, func(o *key) bool { return o != k && o.owner == k.owner })
		sibling, ok := named[k.organization]
		switch {
		case k.organization == "" || !ok:
			named[k.organization] = k
			if shared {
				p.splitLocked(now, k)
			}
		case sibling.owner == k.owner:
		case shared || k.since == p.applied: // nothing is known of a new one
			p.moveLocked(now, k, sibling.owner, sibling)
		default:
			p.mergeLocked(now, k.owner, sibling)
		}
	}
}

// splitLocked gives a key an owner of its own that starts with what is known of the
// one it shared: the next headers tell which part of that was its own.
func (p *KeyPool) splitLocked(now time.Time, k *key) {
	k.owner = &owner{limits: k.owner.limits}
	for _, c := range p.classes {
		s := c.slots[k.index]
		s.hand(now, s.buckets.copied(now, s.held))
	}
}

// copied are buckets of another owner at the same levels, of which held is still to
// be taken.
func (b *buckets) copied(now time.Time, held ratelimit.Tokens) *buckets {
	u, at := b.limiter.UsageAt(now), b.limiter.BucketsAt(now)
	to := &buckets{limiter: ratelimit.NewTokenBucketLimiterAt(now, u.Limits), know: b.know, told: b.told, newest: b.newest, cool: b.cool}
	to.limiter.ObserveAt(now,
		ratelimit.Observation{Seen: true, Level: at.Requests.Level, Capacity: at.Requests.Capacity},
		ratelimit.Observation{Seen: true, Level: at.Input.Level + float64(held.Input), Capacity: at.Input.Capacity},
		ratelimit.Observation{Seen: true, Level: at.Output.Level + float64(held.Output), Capacity: at.Output.Capacity})
	return to
}

// limitLocked puts configured limits in force.
func (p *KeyPool) limitLocked(now time.Time) {
	done := make(map[*owner]bool)
	for _, k := range p.keys {
		if done[k.owner] {
			continue
		}
		done[k.owner] = true
		k.owner.limits = p.configured(k.owner)
		for _, c := range p.classes {
			c.bucketsOf(k.owner).configure(now, k.owner.limitsFor(c.name))
		}
	}
}

// configured are the limits that are configured for an owner: of each kind what the
// first of its keys that says any says.
func (p *KeyPool) configured(o *owner) ratelimit.Limits {
	var l ratelimit.Limits
	for _, k := range p.keys {
		if k.owner != o {
			continue
		}
		if l.RPM == 0 {
			l.RPM = k.limits.RPM
		}
		if l.ITPM == 0 {
			l.ITPM = k.limits.ITPM
		}
		if l.OTPM == 0 {
			l.OTPM = k.limits.OTPM
		}
	}
	return l
}

// configure replaces limits, except those that headers have told.
func (b *buckets) configure(now time.Time, configured ratelimit.Limits) {
	limits := b.limiter.UsageAt(now).Limits
	for i, limit := range []struct {
		configured int
		inForce    *int
	}{{configured.RPM, &limits.RPM}, {configured.ITPM, &limits.ITPM}, {configured.OTPM, &limits.OTPM}} {
		if limit.configured == *limit.inForce || b.told[i] {
			continue
		}
		*limit.inForce, b.know[i] = limit.configured, known
		if limit.configured == 0 {
			b.know[i] = unknown
		}
	}
	b.limiter.SetLimitAt(now, limits)
}

// selectLocked puts a selector in force. One of the same strategy would only forget
// whose turn it is, so the old one stays and goes on after the same key, or after
// the one before that where it is gone.
func (p *KeyPool) selectLocked(before []*key, next KeySelector) {
	if p.selector == nil || p.selector.Name() != next.Name() {
		p.selector = next
		return
	}
	t, ok := p.selector.(turning)
	if !ok {
		return
	}
	at := t.cursor()
	for *at >= 0 && before[*at].gone {
		*at--
	}
	if *at >= 0 {
		*at = before[*at].index
	}
}

// measureLocked makes what a choice needs fit the pool's keys.
func (p *KeyPool) measureLocked() {
	n, scopes := len(p.keys), 0
	p.sampled = n > sampleFrom && p.selector.Name() == StrategyLeastLoaded
	for _, k := range p.keys {
		p.sampled = p.sampled && k.priority == p.keys[0].priority
		scopes = max(scopes, k.scope+1)
	}
	p.candidates, p.views, p.hits = make([]*KeyMetadata, 0, n), make([]view, 0, n), make([]int, scopes)
}

// wakeAllLocked has every request that waits look again.
func (p *KeyPool) wakeAllLocked() {
	for _, c := range p.classes {
		for _, s := range c.slots {
			for _, w := range s.buckets.waiters {
				w.rouse()
			}
		}
	}
}

// Disable takes a key out until Enable: it serves nothing new, for no class, and is
// not probed. What is in flight goes on, and requests that wait for it look
// elsewhere. Apply keeps it off; a new pool of the same keys does not. Off already
// is no error. Error: ErrKeyNotFound.
func (p *KeyPool) Disable(keyID string) error { return p.toggle(keyID, true) }

// Enable ends Disable. It ends no outage and no cool-down: Release does. On already
// is no error. Error: ErrKeyNotFound.
func (p *KeyPool) Enable(keyID string) error { return p.toggle(keyID, false) }

func (p *KeyPool) toggle(keyID string, off bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, ok := p.byID[keyID]
	if !ok {
		return fmt.Errorf("%w: %s", ErrKeyNotFound, keyID)
	}
	k.off = off
	if off {
		p.off[keyID] = true
	} else {
		delete(p.off, keyID)
	}
	for _, c := range p.classes {
		c.weights = nil
	}
	p.wakeAllLocked()
	return nil
}
