package keypool

// Inner is what a pool keeps of requests under way. It is not public because only
// sums of it are of use, but all of it must return to zero, or a pool slowly fills
// up with ghosts.
type Inner struct {
	Waiting, WaitingBytes, Queued, Unacked, InFlight int
	Reserved                                         float64
	Held                                             int // tokens
}

// InnerOf adds up what the pool keeps for all classes.
func InnerOf(p *KeyPool) Inner {
	p.mu.RLock()
	defer p.mu.RUnlock()
	in := Inner{Waiting: p.waiting, WaitingBytes: p.waitingBytes}
	for _, c := range p.classes {
		seen := map[*buckets]bool{}
		for s := range c.all() {
			in.InFlight += s.inFlight
			in.Held += s.held.Input + s.held.Output
			if b := s.buckets; !seen[b] {
				seen[b] = true
				in.Queued += len(b.waiters)
				in.Unacked += len(b.unacked)
				in.Reserved += b.reserved
			}
		}
	}
	return in
}
