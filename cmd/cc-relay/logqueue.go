package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Bounds of a logQueue: how many bytes may wait for a slow log, how long records
// are gathered for one write, and how often it writes while they keep coming. Each
// write takes a timer and wakes a thread or two, which under steady load costs as
// much as an event of a stream. In the end it waits for a stuck log, but not long.
const (
	logBytes  = 4 << 20
	logGather = 10 * time.Millisecond
	logPace   = 250 * time.Millisecond
	logLast   = 3 * time.Second // for the last write
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
	dropped uint64 // since the queue began
	told    uint64 // of dropped, those that the log has a record of
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

// Dropped is how many records were lost since the queue began, because the log was
// too slow or the queue closed.
func (q *logQueue) Dropped() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
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
	full, lost := q.waiting, q.dropped-q.told
	q.waiting, q.told = spare[:0], q.dropped
	q.mu.Unlock()
	if lost > 0 {
		full = fmt.Appendf(full, `{"level":"warn","dropped":%d,"time":"%s","message":"the log is too slow; records were dropped"}`+"\n",
			lost, time.Now().Format(zerolog.TimeFieldFormat))
	}
	if len(full) > 0 {
		_, _ = q.out.Write(full) // there is nowhere to report it
	}
	return full
}

// close writes what waits and ends the queue; later records are dropped. A log that
// takes nothing does not keep the relay from ending.
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
	select {
	case <-q.done:
	case <-time.After(logLast):
	}
}
