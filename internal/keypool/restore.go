package keypool

import (
	"time"

	"cc-relay/internal/ratelimit"
)

// Restore begins with what an earlier pool of the same provider had learned. Call
// it before the pool serves. Limits hold until the first answer names others. What
// does not fit is left out or bounded: keys that are not configured any more,
// times further ahead than the pool itself would set (1 h), levels above what a
// bucket holds, debts of more than an hour. The time that has passed counts; if
// the clock was set back meanwhile, none has.
func (p *KeyPool) Restore(s Snapshot) { p.RestoreAt(time.Now(), s) }

// RestoreAt is Restore at a given time.
func (p *KeyPool) RestoreAt(now time.Time, s Snapshot) {
	if s.At <= 0 || s.At > noClock { // an empty one, or no time
		return
	}
	age := min(max(0, now.UnixMilli()-s.At), longAgo.Milliseconds())
	r := &restoring{pool: p, now: now, at: s.At, age: time.Duration(age) * time.Millisecond, siblings: make(map[string]*key)}
	p.mu.Lock()
	for i := range s.Keys {
		r.key(&s.Keys[i])
	}
	for i := range s.Classes {
		r.class(&s.Classes[i])
	}
	r.homes(s)
	r.prefixes(s)
	p.mu.Unlock()
	for id, sibling := range r.siblings {
		p.logSibling(id, sibling)
	}
	for _, k := range p.Keys() {
		if k.State == StateDead {
			p.log.Warn().Str("key_id", k.ID).Str("reason", string(k.Reason)).Time("probe", k.Until).Msg("key is out since before the restart; check it at the provider, or remove it from the configuration")
		}
	}
}

// noClock is a time that no clock tells, in milliseconds.
const noClock = 1 << 52

// longAgo is longer than anything restored lives.
const longAgo = 24 * time.Hour

// restoring is one Restore under way.
type restoring struct {
	pool *KeyPool
	now  time.Time
	at   int64         // when the snapshot was taken
	age  time.Duration // how long ago that is

	siblings map[string]*key // by key ID: keys that turn out to share an organization
}

// time is a saved time on the clock of this process, at most ahead from now.
func (r *restoring) time(saved int64, ahead time.Duration) time.Time {
	from := min(max(saved, r.at-longAgo.Milliseconds()), r.at+longAgo.Milliseconds()) - r.at
	t := r.now.Add(time.Duration(from)*time.Millisecond - r.age)
	if latest := r.now.Add(ahead); t.After(latest) {
		return latest
	}
	return t
}

func lifeOf(ms int64) time.Duration {
	return time.Duration(min(max(ms, cacheLife.Milliseconds()), longestLife.Milliseconds())) * time.Millisecond
}

func (r *restoring) key(s *KeySnapshot) {
	k, ok := r.pool.byID[s.ID]
	if !ok {
		return
	}
	if len(s.Organization) <= maxOrganizationID && len(s.Workspace) <= maxOrganizationID {
		if sibling := r.pool.joinLocked(r.now, k, s.Organization, s.Workspace); sibling != nil {
			r.siblings[k.id] = sibling
		}
	}
	r.cool(&k.cool, s.Cool)
	r.outage(&k.dead, s.Dead)
}

func (r *restoring) cool(c *coolDown, s *CoolSnapshot) {
	if s == nil {
		return
	}
	until := r.time(s.Until, longestCool)
	if until.After(r.now) {
		*c = coolDown{until: until, strikes: min(max(s.Strikes, 0), 6), guarded: s.Guarded}
	}
}

func (r *restoring) outage(o *outage, s *OutageSnapshot) {
	if s == nil {
		return
	}
	switch s.Reason {
	case ReasonUnauthorized, ReasonSpent, ReasonForbidden:
		pause := time.Duration(min(max(s.Pause, firstPause.Milliseconds()), longPause.Milliseconds())) * time.Millisecond
		*o = outage{reason: s.Reason, since: r.now.Add(-1), next: r.time(s.Next, longPause), pause: pause}
	}
}

func (r *restoring) class(s *ClassSnapshot) {
	p := r.pool
	if len(s.Name) > maxClassName || len(p.classes) >= maxClasses {
		return
	}
	c := p.classLocked(s.Name, r.now)
	c.reserve, c.weights = s.Reserve, nil
	if s.Ratio > 0 {
		c.ratio = min(max(s.Ratio, leastRatio), mostRatio)
	}
	if s.Output > 0 {
		c.output = min(s.Output, mostOutput)
	}
	restored := make(map[*buckets]bool)
	for i := range s.Owners {
		for _, id := range s.Owners[i].Keys {
			k, ok := p.byID[id]
			if !ok {
				continue
			}
			if b := c.slots[k.index].buckets; !restored[b] {
				restored[b] = true
				r.buckets(b, s.Owners[i].of(c.name), k.owner.limitsFor(c.name))
			}
			break
		}
	}
	for id, blocked := range s.Blocked {
		if k, ok := p.byID[id]; ok {
			r.outage(&c.slots[k.index].blocked, &blocked)
		}
	}
}

func (r *restoring) buckets(b *buckets, s OwnerSnapshot, limits ratelimit.Limits) {
	var seen [limitKinds]ratelimit.Observation
	for i, kind := range []struct {
		saved *BucketSnapshot
		limit *int
	}{{&s.Requests, &limits.RPM}, {&s.Input, &limits.ITPM}, {&s.Output, &limits.OTPM}} {
		capacity := kind.saved.Capacity
		switch {
		case kind.saved.Configured && kind.saved.Limit != *kind.limit:
			capacity = 0 // of another limit: it says nothing of this one's
		case kind.saved.Configured:
		case kind.saved.Limit > 0:
			*kind.limit = min(kind.saved.Limit, maxRestored)
			b.know[i], b.told[i] = known, true
		case kind.saved.Absent && *kind.limit == 0:
			b.know[i] = absent
		}
		if limit := float64(*kind.limit); kind.saved.Capacity > 0 {
			level := max(kind.saved.Level, -limit*longPause.Minutes()) + limit*r.age.Minutes()
			seen[i] = ratelimit.Observation{Seen: true, Level: level, Capacity: capacity}
		}
	}
	b.limiter.SetLimitAt(r.now, limits)
	b.limiter.ObserveAt(r.now, seen[requestLimit], seen[inputLimit], seen[outputLimit])
	r.cool(&b.cool, s.Cool)
}

// maxRestored bounds a limit: more a minute is no limit.
const maxRestored = 1_000_000_000

func (r *restoring) homes(s Snapshot) {
	for _, h := range s.Homes[max(0, len(s.Homes)-maxHomes):] {
		if h.Key < 0 || h.Key >= len(s.Keys) {
			continue
		}
		if k, ok := r.pool.byID[s.Keys[h.Key].ID]; ok {
			r.pool.homes.set(h.Conversation, home{key: k, used: r.time(h.Used, 0), life: lifeOf(h.Life)})
		}
	}
}

func (r *restoring) prefixes(s Snapshot) {
	scopes := make(map[int]int) // of this pool, by those of the snapshot
	for _, saved := range s.Keys {
		if k, ok := r.pool.byID[saved.ID]; ok {
			if _, ok := scopes[saved.Scope]; !ok {
				scopes[saved.Scope] = k.scope
			}
		}
	}
	for _, x := range s.Prefixes[max(0, len(s.Prefixes)-maxPrefixes):] {
		scope, ok := scopes[x.Scope]
		life := lifeOf(x.Life)
		expires := r.time(x.Expires, life)
		if ok && expires.After(r.now) {
			r.pool.prefixes.wrote(x.Hash, life, scope, expires.Add(-life))
		}
	}
}
