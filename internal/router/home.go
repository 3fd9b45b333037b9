package router

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxHomes is how many conversations are remembered, as in the pools.
const maxHomes = 100_000

// homes remembers which upstream served a conversation last.
type homes struct {
	mu  sync.Mutex
	lru *simplelru.LRU[uint64, home]
}

type home struct {
	upstream *Upstream
	until    time.Time
}

func newHomes() *homes {
	// The only error is a size that is not positive.
	lru, _ := simplelru.NewLRU[uint64, home](maxHomes, nil)
	return &homes{lru: lru}
}

func (h *homes) get(conversation uint64, now time.Time) *Upstream {
	if conversation == 0 {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.lru.Get(conversation)
	if !ok || !now.Before(at.until) {
		return nil
	}
	return at.upstream
}

func (h *homes) put(conversation uint64, u *Upstream, life time.Duration, now time.Time) {
	if conversation == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lru.Add(conversation, home{u, now.Add(life)})
}
