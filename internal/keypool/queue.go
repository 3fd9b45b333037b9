package keypool

import "time"

// maxWaitingBytes bounds how many bytes of prompt the requests that wait in one pool
// may hold, as the prompts are weighed (Demand.Bytes); how many requests there may be is PoolConfig.MaxWaiting.
const maxWaitingBytes = 256 << 20

// Turn is one request's place in the queues of a pool. The zero Turn has none.
// It belongs to one request, which asks AcquireAt with it until it is served or
// refused, and otherwise calls Leave. A waiting request keeps its place however
// often it asks.
type Turn struct {
	w      *waiter
	turned bool // its refusal is the first since the class served somebody
}

// waiter is a request that waits for a key. KeyPool.mu guards it.
type waiter struct {
	class  *class
	slot   *slot
	client string
	order  uint64  // of arrival
	rank   int     // the round of turns in which it is served, if it starts cold
	tokens float64 // of uncached input that it will take
	bytes  int     // of its prompt
	warm   bool    // most of its prompt is cached there: it overtakes those that start cold
	wake   chan struct{}
}

// before reports whether w's turn is before that of a cold request of this rank
// and order. Clients take turns: the first waiting request of each goes before
// the second of any, so that a flood of one delays the others by one request.
func (w *waiter) before(rank int, order uint64) bool {
	if w.warm || w.rank == rank {
		return w.order < order
	}
	return w.rank < rank
}

// ahead is what those will take whose turn is before this client's next cold
// request, or before own, where that waits here already.
func (b *buckets) ahead(client string, own *waiter) (requests, tokens float64) {
	if len(b.waiters) == 0 {
		return 0, 0
	}
	rank, order := b.nextRound(client), uint64(1<<63)
	if own != nil && own.slot.buckets == b {
		rank, order = own.rank, own.order
	}
	for _, w := range b.waiters {
		if w != own && w.before(rank, order) {
			requests++
			tokens += w.tokens
		}
	}
	return requests, tokens
}

// waitLocked puts a request in the queue of the slot it is to wait for, or keeps
// it where it is. It returns false where the queue is full.
func (p *KeyPool) waitLocked(c *class, s *slot, d *Demand, v view, turn *Turn) bool {
	if w := turn.w; w != nil && w.slot.buckets == s.buckets {
		w.slot, w.tokens = s, v.uncached
		return true
	}
	p.leaveLocked(turn, false)
	if p.fullLocked(d) {
		return false
	}
	p.order++
	w := &waiter{class: c, slot: s, client: d.Client, order: p.order, tokens: v.uncached, bytes: d.Bytes, warm: v.warm(), wake: make(chan struct{}, 1)}
	turn.w = w
	s.buckets.enqueue(w)
	p.waiting++
	p.waitingBytes += w.bytes
	c.waiting++
	return true
}

// fullLocked reports whether the queues have no room for the request.
func (p *KeyPool) fullLocked(d *Demand) bool {
	return p.waiting >= p.maxWaiting || p.waitingBytes+d.Bytes > maxWaitingBytes
}

func (b *buckets) enqueue(w *waiter) {
	if !w.warm {
		w.rank = b.nextRound(w.client)
		if b.lastRound == nil {
			b.lastRound = make(map[string]int)
		}
		b.lastRound[w.client] = w.rank
	}
	b.waiters = append(b.waiters, w)
}

// nextRound is the round in which the client's next request has its turn: not one
// that is over, and each client has one turn in a round.
func (b *buckets) nextRound(client string) int {
	if last, ok := b.lastRound[client]; ok {
		return max(b.round, last+1)
	}
	return b.round
}

// leaveLocked takes a request out of its queue, served there or not.
func (p *KeyPool) leaveLocked(turn *Turn, served bool) {
	w := turn.w
	if w == nil {
		return
	}
	turn.w = nil
	w.slot.buckets.dequeue(w, served)
	p.waiting--
	p.waitingBytes -= w.bytes
	w.class.waiting--
}

// dequeue takes w out. If it was not served, its client's others move up.
func (b *buckets) dequeue(w *waiter, served bool) {
	kept := b.waiters[:0]
	for _, o := range b.waiters {
		if o == w {
			continue
		}
		if !served && !o.warm && !w.warm && o.client == w.client && o.order > w.order {
			o.rank--
		}
		kept = append(kept, o)
	}
	clear(b.waiters[len(kept):])
	b.waiters = kept
	switch {
	case len(kept) == 0:
		b.round = 0
		clear(b.lastRound)
	case w.warm:
	case served:
		b.round = max(b.round, w.rank)
	default:
		b.lastRound[w.client]--
	}
}

// wakeNext has the request whose turn it is look again before its time: something
// came back. Once served it wakes the next one in turn.
func (b *buckets) wakeNext() {
	var next *waiter
	for _, w := range b.waiters {
		if next == nil || w.warm && !next.warm || w.warm == next.warm && w.before(next.rank, next.order) {
			next = w
		}
	}
	if next == nil {
		return
	}
	next.rouse()
}

// rouse has the request look again before its time.
func (w *waiter) rouse() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake already
	}
}

// budget is how much longer a request may wait: max_wait from its arrival, and a
// third of that while no cold request has found a free key for 3 s: then most
// waiting is in vain.
func (p *KeyPool) budget(now time.Time, c *class, d *Demand) time.Duration {
	most := p.maxWait
	if !c.coldSince.IsZero() && c.coldLast.Sub(c.coldSince) > crowdedAfter {
		most /= 3
	}
	return most - max(0, now.Sub(d.Arrived)) // clocks may be set back
}

const crowdedAfter = 3 * time.Second

// found notes whether a request that starts cold has found a free key.
func (c *class) found(now time.Time, free bool) {
	switch {
	case free:
		c.coldSince = time.Time{}
	case c.coldSince.IsZero() || now.Sub(c.coldLast) > crowdedAfter:
		c.coldSince = now
	}
	c.coldLast = now
}
