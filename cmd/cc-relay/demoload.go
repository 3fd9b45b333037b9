package main

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"cc-relay/internal/simulator"
)

// demoShare is the offered load as a share of what the pool can give.
const demoShare = 0.5

// Sessions begin when a request is due and none is idle. A prompt that the relay
// has not seen yet is held against a bucket in full until its answer has come, so
// only a few begin at a time, as in real life.
const (
	demoSessions = 40 // at a time, each with one request
	demoFirst    = 6  // of them with their first request under way
	demoThink    = 40 // a session is busy with a tool between turns for this part of the load's length
)

// demand is an amount of each limit. What a request needs of the input limit is
// reckoned with the best use of the prompt cache: a prefix is written once in
// each organization, a turn of a conversation once.
type demand struct{ requests, input, output float64 }

func (d demand) plus(e demand) demand {
	return demand{d.requests + e.requests, d.input + e.input, d.output + e.output}
}

func (d demand) times(f float64) demand { return demand{f * d.requests, f * d.input, f * d.output} }

// share is the part of whole that d takes, of the limit where it is largest.
func (d demand) share(whole demand) float64 {
	return max(d.requests/whole.requests, d.input/whole.input, d.output/whole.output)
}

// demoCapacity is what the whole pool can give within elapsed: what its buckets
// hold at the start, and the refill.
func demoCapacity(elapsed time.Duration) demand {
	var minute demand
	for _, o := range demoOrganizations() {
		l := o.Limits
		minute = minute.plus(demand{float64(l.RPM), float64(l.ITPM), float64(l.OTPM)})
	}
	return minute.times(demoStartLevel + elapsed.Minutes())
}

// pace spreads a budget evenly over the length of the load: a request may go
// when the ones before it are covered, in the limit they take the most of.
type pace struct {
	start  time.Time
	length time.Duration
	budget demand // of the whole length

	mu      sync.Mutex
	offered demand // guarded by mu
}

func newPace(length time.Duration) *pace {
	return &pace{start: time.Now(), length: length, budget: demoCapacity(length).times(demoShare)}
}

// wait returns when the next request may go, or false when all of the budget has
// gone and the length is over, or ctx. A machine too busy to keep up gets a
// quarter of the length more.
func (p *pace) wait(ctx context.Context) bool {
	due := min(p.due(), p.length)
	return sleepUntil(ctx, p.start.Add(due)) && due < p.length && time.Since(p.start) < p.length+p.length/4
}

func (p *pace) due() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(p.offered.share(p.budget) * float64(p.length))
}

// add counts d, or corrects what was counted of a request by the difference.
func (p *pace) add(d demand) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offered = p.offered.plus(d)
}

// demoLoad drives sessions through the relay and counts what their clients see.
type demoLoad struct {
	url    string
	client *http.Client
	prefix string // what every request begins with
	pace   *pace

	idle        []*demoSession // longest first; these belong to the goroutine of run
	open, first int            // sessions, and those with their first request under way
	sessions    int            // begun

	back chan *demoSession // after each turn

	mu       sync.Mutex
	requests int    // guarded by mu, as all that follows
	more     int    // attempts of the relay beyond the first of each request
	served   demand // of the requests that were answered
	usage    usage
	errors   []string
	failed   int // requests whose client saw an error
}

func newDemoLoad(url string, length time.Duration) *demoLoad {
	return &demoLoad{
		url: url,
		client: &http.Client{
			Transport: &http.Transport{MaxIdleConnsPerHost: demoSessions},
			Timeout:   2 * time.Minute,
		},
		prefix: demoPrefix(),
		pace:   newPace(length),
		back:   make(chan *demoSession, demoSessions),
	}
}

// run gives sessions their turns until the load's length is over or ctx ends, and
// returns when the last answer has come.
func (l *demoLoad) run(ctx context.Context) {
	defer l.client.CloseIdleConnections()
	think, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for l.pace.wait(ctx) {
		s := l.take()
		l.pace.add(s.need())
		wg.Go(func() {
			s.turn()
			if s.done > 1 { // a first turn keeps other sessions from beginning: no longer than needed
				sleepUntil(think, time.Now().Add(l.pace.length/demoThink))
			}
			l.back <- s
		})
	}
	stop()
	wg.Wait()
}

// take returns the session that has been idle longest, or else a new one, or else
// waits for one.
func (l *demoLoad) take() *demoSession {
	for {
		select {
		case s := <-l.back:
			l.welcome(s)
			continue
		default:
		}
		if len(l.idle) > 0 {
			s := l.idle[0]
			l.idle = l.idle[1:]
			return s
		}
		if l.open < demoSessions && l.first < demoFirst {
			l.open++
			l.first++
			l.sessions++
			return l.newSession(l.sessions)
		}
		l.welcome(<-l.back)
	}
}

// welcome takes a session back after a turn.
func (l *demoLoad) welcome(s *demoSession) {
	if s.done == 1 {
		l.first--
	}
	if s.done >= s.turns {
		l.open--
		return
	}
	l.idle = append(l.idle, s)
}

// maxDemoErrors is how many different errors are kept for the summary.
const maxDemoErrors = 3

// count adds one request to the figures; used is what an answered one took.
func (l *demoLoad) count(a demoAnswer, used demand, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	l.more += max(a.attempts-1, 0)
	if err == nil {
		l.served = l.served.plus(used)
		l.usage = l.usage.plus(a.Usage)
		return
	}
	l.failed++
	if len(l.errors) < maxDemoErrors && !slices.Contains(l.errors, err.Error()) {
		l.errors = append(l.errors, err.Error())
	}
}

// demoResult is what the demo found, and its JSON.
type demoResult struct {
	Policy       string   `json:"policy,omitempty"` // of --policy
	Requests     int      `json:"requests"`         // of clients, token counting included
	Sessions     int      `json:"sessions"`
	ClientErrors int      `json:"client_errors"` // no status 200, no whole answer, or an error event
	Errors       []string `json:"errors,omitempty"`
	// Upstream429s are all that the relay met, those of the script included.
	Upstream429s     int            `json:"upstream_429s"`
	Scripted429s     int            `json:"scripted_429s"`
	UpstreamFailures map[string]int `json:"upstream_failures"` // other than 429, by status, or "cut"
	FaultsInjected   int            `json:"faults_injected"`   // answers that the script spoiled
	Failovers        int            `json:"failovers"`         // attempts beyond the first of a request
	// CapacityUsed is what the answered requests needed, with the best use of the
	// prompt cache, over what the pool could have given, of the limit used most.
	CapacityUsed float64 `json:"capacity_used"`
	// CapacityCounted is the same with what the provider has counted: prompts that
	// were written to a cache again weigh in.
	CapacityCounted float64 `json:"capacity_counted"`
	CacheHitShare   float64 `json:"cache_hit_share"` // of all prompt tokens
	Seconds         float64 `json:"duration"`        // until the last answer
}

func (l *demoLoad) result(up *demoUpstream) demoResult {
	now := time.Now()
	snapshot := up.sim.Snapshot(now)
	failures := up.failed()
	refused, all := 0, 0
	for _, a := range snapshot.Accounts {
		refused += a.Refused
	}
	for _, n := range failures {
		all += n
	}
	limited := failures["429"]
	delete(failures, "429")
	l.mu.Lock()
	defer l.mu.Unlock()
	elapsed := now.Sub(l.pace.start)
	return demoResult{
		Requests:         l.requests,
		Sessions:         l.sessions,
		ClientErrors:     l.failed,
		Errors:           l.errors,
		Upstream429s:     limited,
		Scripted429s:     limited - refused,
		UpstreamFailures: failures,
		FaultsInjected:   all - refused,
		Failovers:        l.more,
		CapacityUsed:     l.served.share(demoCapacity(elapsed)),
		CapacityCounted:  snapshot.Capacity(simulator.ClassOf(demoModel)).Used(),
		CacheHitShare:    l.usage.hitShare(),
		Seconds:          elapsed.Seconds(),
	}
}
