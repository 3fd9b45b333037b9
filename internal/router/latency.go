package router

import (
	"math"
	"sync"
	"time"
)

// How fast the estimate of a latency follows what is observed, and how fast it is
// forgotten while nothing is. A target three times as slow is tried again after
// 11 s, by one request, and what that one finds after so long is believed.
const (
	latencyLearn  = 2 * time.Second
	latencyForget = 10 * time.Second
)

// latency is the decaying mean of the times to the first content.
type latency struct {
	mu      sync.Mutex
	mean    float64 // seconds; 0 = never observed
	at      time.Time
	touched time.Time // observed or chosen last
}

func (l *latency) observe(took time.Duration, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	part := 1.0
	if l.mean > 0 {
		part = 1 - math.Exp(-max(now.Sub(l.at), time.Millisecond).Seconds()/latencyLearn.Seconds())
	}
	l.mean += part * (max(took.Seconds(), 1e-6) - l.mean)
	l.at, l.touched = now, now
}

// expected falls while nobody looks, so that a slow target is looked at again. One that
// was never observed comes first, but for one request at a time: it may hang.
func (l *latency) expected(now time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mean == 0 && now.Sub(l.touched) < latencyForget {
		return math.Inf(1)
	}
	return l.mean * math.Exp(-max(now.Sub(l.touched), 0).Seconds()/latencyForget.Seconds())
}

// learned is the mean of what was observed; 0 where nothing was.
func (l *latency) learned() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.mean * float64(time.Second))
}

// chosen makes the others wait for what the one that looks finds out.
func (l *latency) chosen(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.touched = now
}
