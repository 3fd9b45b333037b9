package keypool

import (
	"maps"
	"slices"
	"time"

	"cc-relay/internal/ratelimit"
)

// Snapshot is what a pool has learned, for a pool of the same provider to begin
// with after a restart: plain data without a secret, a prompt or a name of a user.
// All times are Unix milliseconds. Everything in it is a hint, and Restore believes
// nothing of it that the rules of the pool do not allow.
type Snapshot struct {
	At      int64           `json:"at"` // when it was taken, and as of when levels are told
	Keys    []KeySnapshot   `json:"keys,omitempty"`
	Classes []ClassSnapshot `json:"classes,omitempty"`
	// Homes and Prefixes are in the order of their last use, the oldest first.
	Homes    []HomeSnapshot   `json:"homes,omitempty"`
	Prefixes []PrefixSnapshot `json:"prefixes,omitempty"`
}

// KeySnapshot is one key.
type KeySnapshot struct {
	ID           string          `json:"id"`                     // see KeyConfig.ID
	Organization string          `json:"organization,omitempty"` // the provider's id of it; "" = not told
	Workspace    string          `json:"workspace,omitempty"`    // the provider's id of it; "" = not told
	Scope        int             `json:"scope"`                  // the same for keys that share a prompt cache
	Cool         *CoolSnapshot   `json:"cool,omitempty"`         // for all classes; nil = it does not cool
	Dead         *OutageSnapshot `json:"dead,omitempty"`         // for all classes; nil = it is not out
}

// CoolSnapshot is a cool-down under way.
type CoolSnapshot struct {
	Until   int64 `json:"until"`
	Strikes int   `json:"strikes,omitempty"` // cool-downs since the last success for which no time was named
	Guarded bool  `json:"guarded,omitempty"` // one request at a time tries when it ends
}

// OutageSnapshot is why a key is out, and when a request tries it again.
type OutageSnapshot struct {
	Reason Reason `json:"reason"`
	Next   int64  `json:"next"`
	Pause  int64  `json:"pause"` // between tries, in milliseconds
}

// ClassSnapshot is one model class.
type ClassSnapshot struct {
	Name    string                    `json:"name"`
	Ratio   float64                   `json:"ratio"`             // tokens a byte of prompt
	Output  float64                   `json:"output"`            // tokens that an answer is expected to have
	Reserve bool                      `json:"reserve,omitempty"` // the provider takes max_tokens in advance
	Owners  []OwnerSnapshot           `json:"owners,omitempty"`
	Blocked map[string]OutageSnapshot `json:"blocked,omitempty"` // by key ID: keys that are out for this class alone
}

// OwnerSnapshot is one organization's limits for one class.
type OwnerSnapshot struct {
	Keys     []string       `json:"keys"` // IDs of its keys
	Requests BucketSnapshot `json:"requests"`
	Input    BucketSnapshot `json:"input"`
	Output   BucketSnapshot `json:"output"`
	Cool     *CoolSnapshot  `json:"cool,omitempty"`
}

// BucketSnapshot is one limit. The zero value knows nothing of it.
type BucketSnapshot struct {
	// Limit is a minute's; 0 = none known.
	Limit int `json:"limit,omitempty"`
	// Configured: Limit is what the operator wrote; what is written next time goes before it.
	Configured bool `json:"configured,omitempty"`
	// Capacity is the most the bucket holds, and Level what it held, less than 0 in debt.
	Capacity float64 `json:"capacity,omitempty"`
	Level    float64 `json:"level,omitempty"`
	// Absent: answers have come and named no limit.
	Absent bool `json:"absent,omitempty"`
}

// HomeSnapshot is the key that a conversation used last.
type HomeSnapshot struct {
	Conversation uint64 `json:"c"`
	Key          int    `json:"k"` // position in Snapshot.Keys
	Used         int64  `json:"u"`
	Life         int64  `json:"l"` // in milliseconds
}

// PrefixSnapshot is one place where the beginning of a prompt is cached.
type PrefixSnapshot struct {
	Hash    uint64 `json:"h"`
	Scope   int    `json:"s"` // see KeySnapshot.Scope
	Expires int64  `json:"e"`
	Life    int64  `json:"l"` // from each use, in milliseconds
}

// Snapshot returns what the pool has learned and what of it is still worth
// keeping. It holds requests up for moments only.
func (p *KeyPool) Snapshot() Snapshot { return p.SnapshotAt(time.Now()) }

// SnapshotAt is Snapshot at a given time.
func (p *KeyPool) SnapshotAt(now time.Time) Snapshot {
	p.mu.RLock()
	s := Snapshot{At: now.UnixMilli()}
	applied := p.applied
	places := make(map[*key]int, len(p.keys))
	scopes := make(map[int]int) // as in the snapshot: the first key's index
	for i, k := range p.keys {
		places[k] = i
		if _, ok := scopes[k.scope]; !ok {
			scopes[k.scope] = i
		}
		organization := ""
		if k.told { // else it is only what the operator says of it, who may say otherwise next time
			organization = k.owner.id
		}
		s.Keys = append(s.Keys, KeySnapshot{ID: k.id, Organization: organization, Workspace: k.workspace, Scope: scopes[k.scope],
			Cool: k.cool.snapshot(now), Dead: k.dead.snapshot()})
	}
	for _, name := range slices.Sorted(maps.Keys(p.classes)) {
		if c := p.classes[name].snapshot(now); len(c.Owners) > 0 || len(c.Blocked) > 0 {
			s.Classes = append(s.Classes, c)
		}
	}
	conversations, prompts := p.homes.lru.Keys(), p.prefixes.lru.Keys()
	p.mu.RUnlock()
	s.Homes = chunked(p, conversations, func(into []HomeSnapshot, id uint64) []HomeSnapshot {
		at, ok := p.homes.lru.Peek(id)
		if place, here := places[at.key]; ok && here && now.Sub(at.used) <= at.life {
			into = append(into, HomeSnapshot{id, place, at.used.UnixMilli(), at.life.Milliseconds()})
		}
		return into
	})
	s.Prefixes = chunked(p, prompts, func(into []PrefixSnapshot, hash uint64) []PrefixSnapshot {
		at, ok := p.prefixes.lru.Peek(hash)
		for i := 0; ok && p.applied == applied && i < len(at.places); i++ { // a reload may give a scope to another key
			place := &at.places[i]
			if scope, ok := scopes[place.scope]; ok && place.lives(now) {
				into = addPlace(into, PrefixSnapshot{hash, scope, place.expires.UnixMilli(), place.life.Milliseconds()})
			}
		}
		return into
	})
	return s
}

// atOnce is how many entries of a large table are copied before those who wait
// for the pool's lock get it.
const atOnce = 500

// chunked copies the entries of ids that are still there.
func chunked[T any](p *KeyPool, ids []uint64, copied func([]T, uint64) []T) []T {
	var all []T
	for chunk := range slices.Chunk(ids, atOnce) {
		p.mu.RLock()
		for _, id := range chunk {
			all = copied(all, id)
		}
		p.mu.RUnlock()
	}
	return all
}

// addPlace adds a place of a prompt, or makes it last longer where it was added before:
// two scopes may have become one.
func addPlace(all []PrefixSnapshot, one PrefixSnapshot) []PrefixSnapshot {
	for i := len(all) - 1; i >= 0 && all[i].Hash == one.Hash; i-- {
		if all[i].Scope == one.Scope {
			if one.Expires > all[i].Expires {
				all[i] = one
			}
			return all
		}
	}
	return append(all, one)
}

// snapshot leaves out owners of whom nothing was learned: names of models come
// from clients, and those that the provider does not know are not worth keeping.
func (c *class) snapshot(now time.Time) ClassSnapshot {
	s := ClassSnapshot{Name: c.name, Ratio: c.ratio, Output: c.output, Reserve: c.reserve}
	seen := make(map[*buckets]int)
	for _, slot := range c.slots {
		if slot.blocked.active() {
			if s.Blocked == nil {
				s.Blocked = make(map[string]OutageSnapshot)
			}
			s.Blocked[slot.key.id] = *slot.blocked.snapshot()
		}
		at, known := seen[slot.buckets]
		if !known {
			at = len(s.Owners)
			seen[slot.buckets] = at
			s.Owners = append(s.Owners, slot.buckets.snapshot(now, slot.key.owner.limitsFor(c.name)).of(c.name))
		}
		s.Owners[at].Keys = append(s.Owners[at].Keys, slot.key.id)
	}
	s.Owners = slices.DeleteFunc(s.Owners, func(o OwnerSnapshot) bool {
		none := BucketSnapshot{}
		return o.Requests == none && o.Input == none && o.Output == none && o.Cool == nil
	})
	return s
}

func (b *buckets) snapshot(now time.Time, configured ratelimit.Limits) OwnerSnapshot {
	s := OwnerSnapshot{Cool: b.cool.snapshot(now)}
	levels := b.limiter.BucketsAt(now)
	for i, kind := range []struct {
		to         *BucketSnapshot
		bucket     ratelimit.Bucket
		configured int
	}{
		{&s.Requests, levels.Requests, configured.RPM},
		{&s.Input, levels.Input, configured.ITPM},
		{&s.Output, levels.Output, configured.OTPM},
	} {
		switch limit := int(kind.bucket.Limit); {
		case b.know[i] == absent:
			kind.to.Absent = true
		case limit != kind.configured || kind.bucket.Level < kind.bucket.Capacity || kind.bucket.Capacity < kind.bucket.Limit:
			*kind.to = BucketSnapshot{Limit: limit, Configured: limit == kind.configured, Capacity: kind.bucket.Capacity, Level: kind.bucket.Level}
		}
	}
	return s
}

func (c *coolDown) snapshot(now time.Time) *CoolSnapshot {
	if c.wait(now) == 0 {
		return nil
	}
	return &CoolSnapshot{Until: c.until.UnixMilli(), Strikes: c.strikes, Guarded: c.guarded}
}

func (o *outage) snapshot() *OutageSnapshot {
	if !o.active() {
		return nil
	}
	return &OutageSnapshot{Reason: o.reason, Next: o.next.UnixMilli(), Pause: o.pause.Milliseconds()}
}

// of is what is worth knowing of a class, see rateHeaders.of.
func (s OwnerSnapshot) of(class string) OwnerSnapshot {
	switch class {
	case ClassModels:
		s.Requests, s.Input, s.Output = BucketSnapshot{}, BucketSnapshot{}, BucketSnapshot{}
	case ClassCountTokens:
		s.Input, s.Output = BucketSnapshot{}, BucketSnapshot{}
	}
	return s
}
