package keypool

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"

	"cc-relay/internal/ratelimit"
)

// owner is whom the provider counts limits for: an organization. Keys that are
// not known to share one have an owner each.
type owner struct {
	id     string           // the provider's name for it; "" until an answer has told. Guarded by KeyPool.mu
	limits ratelimit.Limits // configured, where each class starts
}

// maxOrganizationID bounds what is taken for an organization's id; they are UUIDs.
const maxOrganizationID = 128

// organizationOf is the organization that an answer names, "" where it names none.
func organizationOf(h http.Header) string {
	id := headerValue(h, "Anthropic-Organization-Id")
	if len(id) > maxOrganizationID {
		return ""
	}
	return id
}

// joinLocked learns to which organization and workspace a key belongs; "" is not
// known. Keys of one organization have one set of buckets: their limits are
// counted once, whatever the number of keys. It returns the key that k now shares
// its owner with, if that is news. The caller holds mu for writing.
// Source: https://platform.claude.com/docs/en/api/rate-limits (limits are set per
// organization).
func (p *KeyPool) joinLocked(now time.Time, k *key, id, workspace string) *key {
	if k.gone {
		return nil
	}
	k.told = k.told || id != ""
	if (id == "" || id == k.owner.id) && (workspace == "" || workspace == k.workspace) {
		return nil
	}
	if workspace != "" {
		k.workspace = workspace
	}
	other := p.enterLocked(now, k, id)
	p.rescopeLocked(k)
	return other
}

func (p *KeyPool) enterLocked(now time.Time, k *key, id string) *key {
	if id == "" || id == k.owner.id {
		return nil
	}
	other := p.keyOf(id)
	switch {
	case k.owner.id == "" && other == nil:
		k.owner.id = id
		return nil
	case k.owner.id == "":
		p.mergeLocked(now, k.owner, other)
	case other == nil: // the key has moved to an organization of its own
		p.moveLocked(now, k, &owner{id: id, limits: k.limits}, nil)
	default:
		p.moveLocked(now, k, other.owner, other)
	}
	return other
}

// keyOf returns a key of the organization, or nil.
func (p *KeyPool) keyOf(id string) *key {
	for _, k := range p.keys {
		if k.owner.id == id {
			return k
		}
	}
	return nil
}

// mergeLocked gives all keys of one owner the buckets of another: they were the
// same buckets all along, counted twice.
func (p *KeyPool) mergeLocked(now time.Time, from *owner, into *key) {
	for _, c := range p.classes {
		a, b := c.slots[into.index].buckets, c.bucketsOf(from)
		if b.learned() && !a.learned() { // what headers said goes before what was configured
			a, b = b, a
		}
		a.absorb(now, b)
		for s := range c.all() {
			if s.buckets == b {
				s.buckets = a
			}
			if s.key.gone && s.key.owner == from {
				s.key.owner = into.owner
			}
		}
		c.weights = nil
	}
	for _, k := range p.keys {
		if k.owner == from {
			k.owner = into.owner
			p.rescopeLocked(k)
		}
	}
	into.owner.limits = p.configured(into.owner)
}

// absorb makes b's requests and levels a's own: what was there less what either
// side took. The next headers say it exactly, whichever request they answer.
func (b *buckets) absorb(now time.Time, other *buckets) {
	b.limiter.AbsorbAt(now, other.limiter)
	b.cool.join(other.cool)
	for i := range b.know {
		b.told[i] = b.told[i] || b.know[i] != known && other.told[i]
		b.know[i] = max(b.know[i], other.know[i])
		b.newest[i] = min(b.newest[i], other.newest[i])
	}
	for _, h := range b.unacked {
		h.producedAt += other.produced
		h.promisedAt += other.promised
	}
	for _, h := range other.unacked {
		h.producedAt += b.produced
		h.promisedAt += b.promised
	}
	b.unacked = append(b.unacked, other.unacked...)
	b.lost = append(b.lost, other.lost...)
	slices.SortFunc(b.unacked, func(x, y *hold) int { return cmp.Compare(x.seq, y.seq) })
	b.reserved += other.reserved
	b.produced += other.produced
	b.promised += other.promised
	b.guesses = [2]guess{}
	for _, w := range other.waiters {
		b.enqueue(w)
	}
	b.wakeNext()
}

// bucketsOf returns the owner's buckets, nil where no key of it has any yet.
func (c *class) bucketsOf(o *owner) *buckets {
	for _, s := range c.slots {
		if s != nil && s.buckets != nil && s.key.owner == o {
			return s.buckets
		}
	}
	return nil
}

// moveLocked gives one key another owner, with what it has in flight. sibling is
// a key of that owner, nil for a new one.
func (p *KeyPool) moveLocked(now time.Time, k *key, to *owner, sibling *key) {
	k.owner = to
	for _, c := range p.classes {
		s := c.slots[k.index]
		target := newBuckets(now, to.limitsFor(c.name), c.name)
		if sibling != nil {
			target = c.slots[sibling.index].buckets
		}
		s.hand(now, target)
		c.weights = nil
	}
}

// hand gives the slot other buckets, with all that its key has under way.
func (s *slot) hand(now time.Time, to *buckets) {
	from := s.buckets
	from.limiter.MoveAt(now, to.limiter, s.inFlight, s.held)
	if from.reserved -= s.outstanding; from.reserved < 1e-6 { // rounding must not add up
		from.reserved = 0
	}
	to.reserved += s.outstanding
	kept := from.unacked[:0]
	for _, h := range from.unacked {
		if h.slot != s {
			kept = append(kept, h)
			continue
		}
		h.producedAt, h.promisedAt, h.guessed = to.produced, to.promised, false
		to.unacked = append(to.unacked, h)
	}
	clear(from.unacked[len(kept):])
	from.unacked = kept
	slices.SortFunc(to.unacked, func(x, y *hold) int { return cmp.Compare(x.seq, y.seq) })
	for _, w := range slices.Clone(from.waiters) {
		if w.slot == s {
			from.dequeue(w, false)
			to.enqueue(w)
		}
	}
	s.buckets = to
	to.wakeNext()
	from.wakeNext()
}

// share adds what another key of the organization says of its limits.
func (o *owner) share(limits ratelimit.Limits) error {
	for _, l := range []struct {
		name string
		have *int
		said int
	}{
		{"rpm_limit", &o.limits.RPM, limits.RPM},
		{"itpm_limit", &o.limits.ITPM, limits.ITPM},
		{"otpm_limit", &o.limits.OTPM, limits.OTPM},
	} {
		switch {
		case *l.have == 0:
			*l.have = l.said
		case l.said != 0 && l.said != *l.have:
			return fmt.Errorf("%s is %d here and %d before; an organization has one limit", l.name, l.said, *l.have)
		}
	}
	return nil
}

// limitsFor is where a class starts. Counting tokens and listing models use no
// tokens, and listing counts towards no limit at all.
func (o *owner) limitsFor(class string) ratelimit.Limits {
	switch class {
	case ClassModels:
		return ratelimit.Limits{}
	case ClassCountTokens:
		return ratelimit.Limits{RPM: o.limits.RPM}
	}
	return o.limits
}
