package keypool

import (
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Mark is one point of a prompt up to which the provider may have it in its cache.
type Mark struct {
	Hash  uint64        // of everything the provider caches up to here
	Bytes int           // of the prompt up to here
	Life  time.Duration // how long the provider keeps what it writes here: 5 min or 1 h; 0: it writes nothing here
}

// maxBreakpoints is how many points of one request a provider writes its cache
// at. Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
const maxBreakpoints = 4

// Bounds of what is remembered of caches, and for how long at most. A conversation
// with a cached prompt has a prefix of its own: fewer homes would lose some that
// are warm (a busy pool of 64 keys has more than 10,000), and more serve nobody.
const (
	maxPrefixes = 100_000
	maxHomes    = maxPrefixes
	cacheLife   = 5 * time.Minute // where a request does not say
	longestLife = time.Hour
)

// entrySlack is how much longer a cache entry must live to be counted on: the
// request still has to get there.
const entrySlack = 2 * time.Second

// homeTokens is from how many cached tokens on a conversation has a home that is
// worth waiting for.
const homeTokens = 1024

// homes remembers which key a conversation used last.
type homes struct {
	lru *simplelru.LRU[uint64, home]
}

type home struct {
	key  *key
	used time.Time
	life time.Duration
}

func newHomes() *homes { return &homes{lru: newLRU[home](maxHomes)} }

func newLRU[V any](size int) *simplelru.LRU[uint64, V] {
	lru, err := simplelru.NewLRU[uint64, V](size, nil)
	if err != nil { // only for a size that is not positive
		panic(err)
	}
	return lru
}

// get returns the conversation's key, or nil. To look is not to use: only set
// makes a home last longer.
func (h *homes) get(conversation uint64, now time.Time) *key {
	if conversation == 0 {
		return nil
	}
	at, ok := h.lru.Peek(conversation)
	if !ok || at.key.gone || now.Sub(at.used) > at.life {
		return nil
	}
	return at.key
}

func (h *homes) set(conversation uint64, at home) {
	if conversation != 0 {
		h.lru.Add(conversation, at)
	}
}

// forgetGone drops those of these homes that are at keys which are gone.
func (h *homes) forgetGone(conversations []uint64) {
	for _, conversation := range conversations {
		if at, ok := h.lru.Peek(conversation); ok && at.key.gone {
			h.lru.Remove(conversation)
		}
	}
}

// prefixes knows which prompts the caches hold, as far as this relay filled them.
// The provider keeps one cache for each organization and workspace: a scope.
type prefixes struct {
	lru *simplelru.LRU[uint64, *prefix]
}

// prefix is where one prompt is cached.
type prefix struct{ places []place }

type place struct {
	scope   int
	expires time.Time
	life    time.Duration
}

func newPrefixes() *prefixes { return &prefixes{lru: newLRU[*prefix](maxPrefixes)} }

// longest returns how many bytes of a prompt the cache of scope holds: those up
// to the first of marks, longest first, that it has. Marks of fewer than least
// bytes are never cached.
func (x *prefixes) longest(marks []Mark, scope, least int, now time.Time) int {
	for i := range marks {
		if marks[i].Bytes < least {
			return 0
		}
		if p, ok := x.lru.Peek(marks[i].Hash); ok && p.has(scope, now) {
			return marks[i].Bytes
		}
	}
	return 0
}

// fill is longest for all scopes at once: hits[scope] is set for those that have
// anything.
func (x *prefixes) fill(hits []int, marks []Mark, least int, now time.Time) {
	clear(hits)
	left := len(hits)
	for i := range marks {
		if marks[i].Bytes < least || left == 0 {
			return
		}
		p, ok := x.lru.Peek(marks[i].Hash)
		if !ok {
			continue
		}
		for _, at := range p.places {
			if at.scope < len(hits) && hits[at.scope] == 0 && at.lives(now) {
				hits[at.scope] = marks[i].Bytes
				left--
			}
		}
	}
}

func (p *prefix) has(scope int, now time.Time) bool {
	for i := range p.places {
		if p.places[i].scope == scope {
			return p.places[i].lives(now)
		}
	}
	return false
}

func (at *place) lives(now time.Time) bool { return now.Add(entrySlack).Before(at.expires) }

// wrote notes that a request sent at a time has the provider keep its prompt up
// to a mark.
func (x *prefixes) wrote(hash uint64, life time.Duration, scope int, sent time.Time) {
	life = min(max(life, cacheLife), longestLife)
	p, ok := x.lru.Get(hash)
	if !ok {
		p = &prefix{places: make([]place, 0, 1)}
		x.lru.Add(hash, p)
	}
	p.note(scope, sent.Add(life), life)
}

func (p *prefix) note(scope int, expires time.Time, life time.Duration) {
	for i := range p.places {
		if at := &p.places[i]; at.scope == scope {
			if expires.After(at.expires) {
				at.expires, at.life = expires, life
			}
			return
		}
	}
	p.places = append(p.places, place{scope: scope, expires: expires, life: life})
}

// read notes that a request sent at a time was served from an entry, which
// renews the entry's life.
func (x *prefixes) read(hash uint64, scope int, sent time.Time) {
	p, ok := x.lru.Get(hash)
	if !ok {
		return
	}
	for i := range p.places {
		if at := &p.places[i]; at.scope == scope && sent.Add(at.life).After(at.expires) {
			at.expires = sent.Add(at.life)
		}
	}
}

// join makes the entries of one scope those of another.
func (x *prefixes) join(from, into int) {
	for _, p := range x.lru.Values() {
		at := slices.IndexFunc(p.places, func(at place) bool { return at.scope == from })
		if at < 0 {
			continue
		}
		was := p.places[at]
		p.places = slices.Delete(p.places, at, at+1)
		p.note(into, was.expires, was.life)
	}
}

// forget drops what is known of these prompts in these scopes.
func (x *prefixes) forget(prompts []uint64, scopes []int) {
	for _, hash := range prompts {
		p, ok := x.lru.Peek(hash)
		if !ok {
			continue
		}
		p.places = slices.DeleteFunc(p.places, func(at place) bool { return slices.Contains(scopes, at.scope) })
		if len(p.places) == 0 {
			x.lru.Remove(hash)
		}
	}
}

// workspaceOf is the workspace that an answer names, "" where it names none.
func workspaceOf(h http.Header) string {
	id := headerValue(h, "Anthropic-Workspace-Id")
	if len(id) > maxOrganizationID {
		return ""
	}
	return id
}

// rescopeLocked gives a key the scope of its organization and workspace: that of
// another key of both, or else one of its own. What its old scope alone is known
// to hold goes with it. A new key has the scope -1. The caller holds mu for writing.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
// (caches are isolated between organizations and between workspaces).
func (p *KeyPool) rescopeLocked(k *key) {
	to, alone := -1, true
	for _, o := range p.keys {
		if o == k {
			continue
		}
		if o.owner == k.owner && o.workspace == k.workspace {
			to = o.scope
		}
		alone = alone && o.scope != k.scope
	}
	switch {
	case k.scope >= 0 && (to == k.scope || to < 0 && alone):
	case to < 0:
		k.scope = p.freeScopeLocked()
	default:
		if alone && k.scope >= 0 {
			p.prefixes.join(k.scope, to)
		}
		k.scope = to
	}
}

// freeScopeLocked is a scope that no key has; nothing is known to be cached there.
func (p *KeyPool) freeScopeLocked() int {
	scope := 0
	for p.hasScope(scope) || slices.Contains(p.retired, scope) {
		scope++
	}
	if scope >= len(p.hits) {
		p.hits = make([]int, scope+1)
	}
	return scope
}

func (p *KeyPool) hasScope(scope int) bool {
	return slices.ContainsFunc(p.keys, func(k *key) bool { return k.scope == scope })
}
