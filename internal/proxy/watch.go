package proxy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// errTimeout is why an attempt ends whose upstream is silent for too long.
var errTimeout = errors.New("proxy: no answer in time")

// errTotal is why an attempt ends whose request has taken all the time it may.
var errTotal = fmt.Errorf("proxy: the request took too long: %w", errTimeout)

// errClientGone is why an attempt ends whose client does not take what it is sent.
var errClientGone = fmt.Errorf("proxy: client gone: %w", context.Canceled)

// watch ends an attempt when its time is up. A stream moves the time on with
// each event, and moving a runtime timer that often costs more than the event;
// so extend only notes the new time, and the timer looks at it when it fires.
type watch struct {
	began  time.Time
	ends   atomic.Int64 // nanoseconds after began
	last   int64        // as ends: that of the whole request
	timer  *time.Timer
	cancel context.CancelCauseFunc
	spare  func() bool // asked first: it may know better than to end the attempt
}

func (w *watch) start(now time.Time, limit, total time.Duration, cancel context.CancelCauseFunc, spare func() bool) {
	w.began, w.cancel, w.spare, w.last = now, cancel, spare, int64(total)
	limit = min(limit, total)
	w.ends.Store(int64(limit))
	w.timer = time.AfterFunc(time.Hour, w.fire) // set below, when fire can see it
	w.timer.Reset(limit)
}

// extend moves the end to limit from now. It must not come before the end in force.
func (w *watch) extend(now time.Time, limit time.Duration) {
	w.ends.Store(min(int64(now.Sub(w.began)+limit), w.last))
}

// set moves the end to limit from now, also to an earlier one.
func (w *watch) set(limit time.Duration) {
	now := time.Now()
	w.extend(now, limit)
	w.timer.Reset(time.Duration(w.ends.Load()) - now.Sub(w.began))
}

// pause lets no time count until the next extend or set: what a client takes to
// read is not the upstream's silence.
func (w *watch) pause() { w.ends.Store(paused) }

const (
	paused  = math.MaxInt64
	recheck = 100 * time.Millisecond // while paused
)

func (w *watch) fire() {
	// What spare waits for may move the end.
	if w.early() || w.spare() || w.early() {
		return
	}
	if int64(time.Since(w.began)) >= w.last {
		w.cancel(errTotal)
		return
	}
	w.cancel(errTimeout)
}

// early reports whether the end has not come yet, and then has the timer fire again.
func (w *watch) early() bool {
	ends := w.ends.Load()
	left := time.Duration(ends) - time.Since(w.began)
	if ends == paused {
		left = min(recheck, time.Duration(w.last)-time.Since(w.began))
	}
	if left <= 0 {
		return false
	}
	w.timer.Reset(left)
	return true
}

func (w *watch) stop() {
	w.ends.Store(0) // a fire under way must not start the timer for good
	if w.timer != nil {
		w.timer.Stop()
	}
}
