package router

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxHomes is how many conversations are remembered, as in the pools.
const maxHomes = 100_000

// homes remembers who served a conversation last. Routers that follow each other
// share it.
type homes struct {
	mu  sync.Mutex
	lru *simplelru.LRU[uint64, home]
}

type home struct {
	at    *memory // of the provider; nil: no home
	model string  // that served; a rule may lead to two of one provider
	until time.Time
}

func newHomes() *homes {
	// The only error is a size that is not positive.
	lru, _ := simplelru.NewLRU[uint64, home](maxHomes, nil)
	return &homes{lru: lru}
}

// get finds a home; looking, where it is no more than that, keeps none alive.
func (h *homes) get(conversation uint64, now time.Time, looking bool) home {
	if conversation == 0 {
		return home{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	get := h.lru.Get
	if looking {
		get = h.lru.Peek
	}
	at, ok := get(conversation)
	if !ok || !now.Before(at.until) {
		return home{}
	}
	return at
}

func (h *homes) put(conversation uint64, at home) {
	if conversation == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lru.Add(conversation, at)
}
