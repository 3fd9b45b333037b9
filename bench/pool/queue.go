package main

import "time"

// event is something that happens to a task at a moment of virtual time.
type event struct {
	at   time.Duration // since the start of the run
	seq  int           // events of one moment happen in the order they were made
	what func(*replay, *task)
	task *task
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}

// queue is a heap of events, the earliest first. container/heap would box each of
// the millions of events of a run.
type queue struct {
	events []event
	made   int
}

func (q *queue) push(at time.Duration, what func(*replay, *task), t *task) {
	q.made++
	q.events = append(q.events, event{at: at, seq: q.made, what: what, task: t})
	i := len(q.events) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !q.events[i].before(&q.events[up]) {
			break
		}
		q.events[i], q.events[up] = q.events[up], q.events[i]
		i = up
	}
}

// pop removes the earliest event; false: there is none.
func (q *queue) pop() (event, bool) {
	if len(q.events) == 0 {
		return event{}, false
	}
	first := q.events[0]
	last := len(q.events) - 1
	q.events[0] = q.events[last]
	q.events[last] = event{}
	q.events = q.events[:last]
	q.sink()
	return first, true
}

func (q *queue) sink() {
	i, n := 0, len(q.events)
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < n; c++ {
			if q.events[c].before(&q.events[least]) {
				least = c
			}
		}
		if least == i {
			return
		}
		q.events[i], q.events[least] = q.events[least], q.events[i]
		i = least
	}
}
