package proxy

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"cc-relay/internal/messages"
)

// maxMakers is how many signatures of thinking blocks are remembered.
const maxMakers = 100_000

// makers remembers who made a thinking block, by the hash of its signature: another
// vendor's models cannot read it, and some refuse it.
type makers struct {
	mu  sync.Mutex
	lru *simplelru.LRU[uint64, string] // signature → origin
}

func newMakers() *makers {
	// The only error is a size that is not positive.
	lru, _ := simplelru.NewLRU[uint64, string](maxMakers, nil)
	return &makers{lru: lru}
}

func (m *makers) made(signature uint64, origin string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lru.Add(signature, origin)
}

// foreign reports whether the block is known to be of another origin.
func (m *makers) foreign(signature uint64, origin string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	maker, ok := m.lru.Get(signature)
	return ok && maker != origin
}

// dress makes the body that of this attempt: its model, and without the thinking
// that its upstream cannot read. Everything else is as the client sent it.
func (x *exchange) dress(h *Handler, a *answer) {
	if x.body == nil || x.own {
		return
	}
	x.msg.SetModel(a.model)
	if !x.live.mixed {
		return
	}
	a.makers = h.makers
	if x.thinking == nil {
		x.thinking = append([]messages.Thinking{}, x.msg.Thinking(x.live.Seed)...)
	}
	if len(x.thinking) > 0 {
		x.stripped = x.msg.Strip(x.thinking, func(signature uint64) bool { return h.makers.foreign(signature, a.up.Origin) })
	}
}

// signed remembers who made what an answer shows of its thinking.
func (a *answer) signed(signatures ...uint64) {
	for _, s := range signatures {
		a.makers.made(s, a.up.Origin)
	}
}
