package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// load is the traffic and what came of it.
type load struct {
	options
	client *client
	ledger *ledger
	stop   <-chan struct{} // closed when nothing new is to begin

	requests, streams atomic.Int64 // sent; streams are the long ones
	open              atomic.Int64 // long streams now
	busiest           atomic.Int64 // most of them

	mu         sync.Mutex // guards what follows
	ends       map[end]int
	bad        problems // requests that were not complete, though they should have been
	cutStreams problems // of the long ones
}

// ask sends a question and enters what came of it.
func (l *load) ask(ctx context.Context, q question) answer {
	a := l.client.ask(ctx, q)
	l.ledger.addAnswer(a)
	return a
}

// took counts an answer of the load.
func (l *load) took(a answer, long bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends[a.end]++
	switch {
	case a.end == complete, l.mixed && a.end != failed:
	case long:
		l.cutStreams.add(string(a.end) + ": " + a.why)
	default:
		l.bad.add(string(a.end) + ": " + a.why)
	}
}

// mostOpen bounds the short requests under way: a machine that does not keep up sends fewer.
const mostOpen = 1000

// short sends rps requests a second, each of its own.
func (l *load) short(ctx context.Context, next func(*rand.Rand) question) {
	if l.rps == 0 {
		return
	}
	var all sync.WaitGroup
	defer all.Wait()
	slots := make(chan struct{}, mostOpen)
	tick := time.NewTicker(time.Second / time.Duration(l.rps))
	defer tick.Stop()
	rng := rand.New(rand.NewPCG(1, 1))
	for {
		select {
		case <-tick.C:
		case <-l.stop:
			return
		}
		q := next(rng)
		slots <- struct{}{}
		l.requests.Add(1)
		all.Go(func() {
			l.took(l.ask(ctx, q), false)
			<-slots
		})
	}
}

// long keeps as many long streams open as asked for.
func (l *load) long(ctx context.Context) {
	var all sync.WaitGroup
	for i := range l.options.streams {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(2, uint64(i)))
			// Not all in one moment; and with ends apart from the first on.
			wait := time.After(time.Duration(rng.Int64N(int64(l.ramp()))))
			for {
				select {
				case <-wait:
				case <-l.stop:
				}
				if l.stopped() {
					return
				}
				l.stream(ctx, l.shortest+time.Duration(rng.Int64N(int64(l.longest-l.shortest)+1)))
				wait = time.After(0)
				if l.mixed { // one that was refused does not come again at once
					wait = time.After(time.Duration(rng.Int64N(int64(time.Second))))
				}
			}
		})
	}
	all.Wait()
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *load) stream(ctx context.Context, d time.Duration) {
	l.streams.Add(1)
	now := l.open.Add(1)
	for most := l.busiest.Load(); now > most && !l.busiest.CompareAndSwap(most, now); most = l.busiest.Load() {
	}
	l.took(l.ask(ctx, question{model: slowModel, stream: true, deltas: max(1, int(d.Seconds()*pace))}), true)
	l.open.Add(-1)
}

// plain is the short request of the reload run: every other one streamed.
func plain(rng *rand.Rand) question {
	return question{model: quickModel, stream: rng.IntN(2) == 0, deltas: 1 + rng.IntN(20)}
}

// mixture is the short request of the mixed run.
func (l *load) mixture(rng *rand.Rand) question {
	q := plain(rng)
	switch n := rng.IntN(100); {
	case n < 15:
		q.model, q.cached = cachedModel, 1+rng.IntN(8)
	case n < 25: // leaves while it streams, or before
		q.model, q.stream, q.deltas = slowModel, true, 20
		q.stay = time.Duration(1 + rng.Int64N(int64(l.shortest)))
	case n < 30: // leaves early
		q.stay = time.Duration(1 + rng.Int64N(int64(40*time.Millisecond)))
	case n < 31: // more than the buffers between provider and client hold
		q.stream, q.slow, q.deltas = true, true, 6000
	}
	return q
}
