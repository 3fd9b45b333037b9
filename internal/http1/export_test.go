package http1

// Idle is how many connections wait for a request: a limit that no request shows.
func (t *Transport) Idle() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, h := range t.hosts {
		n += len(h.idle)
	}
	return n
}
