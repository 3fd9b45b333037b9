package main

import (
	"errors"
	"strconv"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
	"cc-relay/internal/simulator"
)

// ours is the relay's own pool, asked and told as the proxy does it.
type ours struct {
	cfg   keypool.PoolConfig
	pool  *keypool.KeyPool
	index map[string]int // of keys by ID
	marks []keypool.Mark // of the request that is being asked about
}

// stay is one request in the pool.
type stay struct {
	turn    keypool.Turn
	lease   keypool.Lease
	dry     time.Duration // what the last 429 told; 0: there was none
	exclude []string
}

// lookback is how many blocks before a breakpoint a provider looks for a prefix.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
const lookback = 20

// newOurs makes the pool with a strategy, and with affinity on or off. It knows no
// limits, but the weighted strategy has weights that follow them.
func newOurs(strategy, affinity string) func(Pool, uint64) Policy {
	return func(pool Pool, _ uint64) Policy {
		cfg := keypool.PoolConfig{Strategy: strategy, Affinity: affinity}
		for i, l := range pool.Keys {
			weight := max(l.ITPM/10_000, 1)
			cfg.Keys = append(cfg.Keys, keypool.KeyConfig{Key: secret.New("key-" + strconv.Itoa(i)), Weight: &weight})
		}
		return openOurs(cfg)
	}
}

func openOurs(cfg keypool.PoolConfig) *ours {
	pool, err := keypool.NewKeyPool("bench", cfg)
	if err != nil {
		panic(err) // the configuration is newOurs' own
	}
	p := &ours{cfg: cfg, pool: pool, index: make(map[string]int)}
	for i, key := range cfg.Keys {
		p.index[key.ID()] = i
	}
	return p
}

// Restart begins with what the state file would hold.
func (p *ours) Restart(now time.Time) Policy {
	fresh := openOurs(p.cfg)
	fresh.pool.RestoreAt(now, p.pool.SnapshotAt(now))
	return fresh
}

func (p *ours) Pick(now time.Time, r *Request) Decision {
	s, ok := r.Lease.(*stay)
	if !ok {
		s = &stay{}
		r.Lease = s
	}
	lease, wait, err := p.pool.AcquireAt(now, p.demand(r, s), &s.turn)
	var dry *keypool.ExhaustedError
	switch {
	case errors.As(err, &dry):
		return refuse(s.told(dry))
	case err != nil:
		panic(err) // it has no other
	case wait > 0:
		return waitUntil(now.Add(wait))
	}
	s.lease = lease
	return serve(p.index[lease.KeyID()])
}

// told is when the first key has room, of those that may still be asked and of the
// one that has just refused.
func (s *stay) told(dry *keypool.ExhaustedError) time.Duration {
	if s.dry > 0 && (dry.Left == 0 || s.dry < dry.RetryAfter) {
		return s.dry
	}
	return dry.RetryAfter
}

func (p *ours) demand(r *Request, s *stay) keypool.Demand {
	exclude := s.exclude
	if len(r.Tried) == 0 { // the bench forgets them, to have one asked once more
		exclude = nil
	}
	return keypool.Demand{
		Class: r.Class, Model: model, Client: "client", Bytes: r.Bytes, MaxTokens: r.MaxTokens,
		Conversation: r.Conversation, Prefix: p.prefix(r), Arrived: r.Since, Exclude: exclude,
	}
}

// prefix are the places where the provider may find the prompt or keep it: from
// each breakpoint so far back as it looks, the longest first.
func (p *ours) prefix(r *Request) []keypool.Mark {
	p.marks = p.marks[:0]
	next := len(r.Breakpoints) - 1
	from := -1 // the breakpoint that is looked back from
	for i := len(r.Chain) - 1; i >= 0; i-- {
		m := keypool.Mark{Hash: r.Chain[i], Bytes: r.BytesThrough(i)}
		if next >= 0 && r.Breakpoints[next] == i {
			m.Life = 5 * time.Minute
			from = i
			next--
		}
		if from >= 0 && i > from-lookback {
			p.marks = append(p.marks, m)
		}
	}
	return p.marks
}

func (p *ours) Answered(now time.Time, r *Request, h *Head) {
	s := r.Lease.(*stay)
	s.lease.AnsweredAt(now, h.Status, h.Header())
	switch h.Status {
	case 200:
		s.lease.SucceededAt(now)
		return
	case 429:
		s.dry = h.RetryAfter
		s.lease.LimitedAt(now, h.RetryAfter)
	case 401:
		p.pool.MarkKeyDeadAt(now, s.lease.KeyID(), keypool.ReasonUnauthorized)
	}
	s.exclude = append(s.exclude, s.lease.OwnerKeys()...)
	s.lease.SettleAt(now, keypool.Usage{})
}

func (p *ours) Produced(now time.Time, r *Request, n int) { r.Lease.(*stay).lease.ProducedAt(now, n) }

func (p *ours) Ended(now time.Time, r *Request, u simulator.Usage, gone bool) {
	r.Lease.(*stay).lease.SettleAt(now, keypool.Usage{
		Input: u.Input, CacheWrite: u.Written(), CacheRead: u.CacheRead, Output: u.Output,
		Partial: gone, Unreported: gone,
	})
}
