package main

import (
	"fmt"
	"sync"

	"cc-relay/bench/rig"
)

// record is what the relay's log says of a request.
type record struct {
	id      string
	status  int
	usage   rig.Usage
	partial bool
	line    string // of the log, as it stands
}

// ledger compares what client, relay and provider say of each request, as soon as all
// of them have spoken. What nobody asks for any more is forgotten.
type ledger struct {
	mu      sync.Mutex
	answers map[string]answer // by the relay's id, as records
	records map[string]record
	calls   map[string]call   // by the provider's id
	waiting map[string]string // the relay's id of an answer whose call has not ended, by the provider's
	account
}

// account is what a ledger has found.
type account struct {
	compared                map[end]int
	client, provider, relay rig.Usage // sums of complete answers
	nameless                int       // clients that left before a header came
	partial                 int       // records so marked
	problems                problems
}

func newLedger() *ledger {
	return &ledger{answers: map[string]answer{}, records: map[string]record{}, calls: map[string]call{}, waiting: map[string]string{}, account: account{compared: map[end]int{}}}
}

func (l *ledger) addAnswer(a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.id == "" {
		l.nameless++
		return
	}
	l.answers[a.id] = a
	l.settleLocked(a.id)
}

func (l *ledger) addRecord(r record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.partial {
		l.partial++
	}
	l.records[r.id] = r
	l.settleLocked(r.id)
}

func (l *ledger) addCall(c call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[c.id] = c
	if id, ok := l.waiting[c.id]; ok {
		delete(l.waiting, c.id)
		l.settleLocked(id)
	}
}

// settleLocked compares what is said of a request, if everybody has.
func (l *ledger) settleLocked(id string) {
	a, asked := l.answers[id]
	r, logged := l.records[id]
	if !asked || !logged {
		return
	}
	c, sent := l.calls[a.upstream]
	if !sent && a.end != refused { // refused: the relay's own, or of a call under way
		l.waiting[a.upstream] = id
		return
	}
	delete(l.answers, id)
	delete(l.records, id)
	delete(l.calls, a.upstream)
	l.compared[a.end]++
	if a.end == complete {
		add(&l.client, a.usage)
		add(&l.provider, c.usage)
		add(&l.relay, r.usage)
	}
	if err := compare(a, r, c); err != nil {
		l.problems.add(fmt.Sprintf("%s: %v; the record: %s", id, err, r.line))
	}
}

// close settles what is left, when everybody has ended.
func (l *ledger) close() account {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.answers {
		l.settleLocked(id)
	}
	for id, a := range l.answers {
		_, logged := l.records[id]
		l.problems.add(fmt.Sprintf("%s: the client's answer (%s) has no other side: a record: %v, the provider's: %v", id, a.end, logged, l.calls[a.upstream].id != ""))
		delete(l.records, id)
	}
	if n := len(l.records); n > l.nameless {
		l.problems.add(fmt.Sprintf("%d records of the relay are of requests that no client sent, but for %d that left early", n, l.nameless))
	}
	return l.account
}

// compare says what is wrong with a request of which the client got a, the relay wrote
// r and the provider sent c.
func compare(a answer, r record, c call) error {
	switch a.end {
	case complete:
		if r.partial {
			return fmt.Errorf("a complete answer is marked partial")
		}
		if a.usage != r.usage || a.usage != c.usage {
			return fmt.Errorf("the client got %+v, the relay wrote %+v, the provider sent %+v", a.usage, r.usage, c.usage)
		}
	case cut:
		return comparePart(a, r, c)
	case left:
		if r.partial {
			return comparePart(a, r, c)
		}
		if r.usage != c.usage { // it was complete before the relay knew that its client had left
			return fmt.Errorf("the client left; the relay wrote %+v, the provider sent %+v", r.usage, c.usage)
		}
	case refused:
		if a.status != r.status {
			return fmt.Errorf("the client got status %d, the relay wrote %d", a.status, r.status)
		}
	}
	return nil
}

// comparePart is compare for an answer without its end. Its usage is that of the last
// report that came; before the final one, output is as many tokens as there were deltas,
// for the first report speaks of one token only.
func comparePart(a answer, r record, c call) error {
	if !r.partial {
		return fmt.Errorf("an answer without its end is not marked partial: %s", a.why)
	}
	if !a.started { // the relay may have seen a beginning that the client did not
		return nil
	}
	want := a.usage
	if !a.final {
		want.Output = max(want.Output, a.deltas)
	}
	if a.told || r.usage == want {
		if r.usage != want {
			return fmt.Errorf("cut after %+v, the relay wrote %+v", want, r.usage)
		}
		return nil
	}
	// Of what the relay had read some had not reached the client, which broke off.
	most := max(c.usage.Output, c.deltas)
	wrote := r.usage
	wrote.Output = want.Output
	if wrote != want || r.usage.Output < want.Output || r.usage.Output > most {
		return fmt.Errorf("the client got %+v, the relay wrote %+v, the provider sent at most %d", want, r.usage, most)
	}
	return nil
}

func add(sum *rig.Usage, u rig.Usage) {
	sum.Input += u.Input
	sum.CacheWrite += u.CacheWrite
	sum.CacheRead += u.CacheRead
	sum.Output += u.Output
}

// problems counts what went wrong and keeps the first examples.
type problems struct {
	n     int
	first []string
}

func (p *problems) add(what string) {
	p.n++
	if len(p.first) < 5 {
		p.first = append(p.first, what)
	}
}
