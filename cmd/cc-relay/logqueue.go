package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Bounds of a logQueue: how many bytes may wait for a slow log, how long records
// are gathered for one write, and how often it writes while they keep coming. Each
// write takes a timer and wakes a thread or two, which under steady load costs as
// much as an event of a stream.
const (
	logBytes  = 4 << 20
	logGather = 10 * time.Millisecond
	logPace   = 250 * time.Millisecond
)

// logQueue is a writer that never blocks: records wait in memory and are written
// together. A record that finds it full is dropped and counted, because a slow
// log must not hold up requests. zerolog's own queue wakes a goroutine and makes
// a system call for each record.
type logQueue struct {
	out  io.Writer
	wake chan struct{} // holds one while something waits
	end  chan struct{} // closed: gather no longer
	done chan struct{}

	mu      sync.Mutex
	waiting []byte // guarded by mu, as what follows
	dropped int
	closed  bool
}

func newLogQueue(out io.Writer) *logQueue {
	q := &logQueue{out: out, wake: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{})}
	go q.run()
	return q
}

// Write implements io.Writer. It takes the whole record or drops it, and never fails.
func (q *logQueue) Write(record []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.waiting)+len(record) > logBytes {
		q.dropped++
		return len(record), nil
	}
	if len(q.waiting) == 0 {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	q.waiting = append(q.waiting, record...)
	return len(record), nil
}

func (q *logQueue) run() {
	defer close(q.done)
	var spare []byte
	var last time.Time
	for range q.wake {
		gather := time.NewTimer(max(logGather, logPace-time.Since(last)))
		select {
		case <-gather.C:
		case <-q.end:
			gather.Stop()
		}
		spare = q.flush(spare)
		last = time.Now()
	}
	q.flush(spare)
}

// flush writes what waits and returns its buffer for reuse.
func (q *logQueue) flush(spare []byte) []byte {
	q.mu.Lock()
	full, dropped := q.waiting, q.dropped
	q.waiting, q.dropped = spare[:0], 0
	q.mu.Unlock()
	if dropped > 0 {
		full = fmt.Appendf(full, `{"level":"warn","dropped":%d,"message":"the log is too slow; records were dropped"}`+"\n", dropped)
	}
	if len(full) > 0 {
		_, _ = q.out.Write(full) // there is nowhere to report it
	}
	return full
}

// close writes what waits and ends the queue; later records are dropped.
func (q *logQueue) close() {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	q.closed = true
	q.mu.Unlock()
	close(q.end)
	close(q.wake)
	<-q.done
}
