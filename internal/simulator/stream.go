package simulator

import (
	"net/http"
	"strconv"
	"time"
)

// answer speaks: it waits as long as a model would, counts what it says as it says
// it, and stops when the client leaves.
func (x *exchange) answer(req *Request, call *Call) {
	defer func() {
		call.End(time.Now())
		usage := call.Usage()
		x.sim.note(func() { x.rec.Usage = usage })
	}()
	a := x.sim.compose(req, call.Usage())
	if f := x.fault; f != nil {
		x.sim.note(func() { x.rec.Fault = f.Kind })
		x.faultHeaders()
		if !x.wait(f.Delay) {
			return
		}
	}
	if !x.wait(x.sim.cfg.Speed.FirstEvent) {
		return
	}
	call.Begin(time.Now())
	if req.Stream {
		x.stream(a, call)
		return
	}
	x.whole(a, call)
}

func (x *exchange) stream(a *answer, call *Call) {
	h := x.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	x.status(http.StatusOK)
	x.w.WriteHeader(http.StatusOK)
	p := x.sim.newPace()
	n := 0
	for f := range a.frames() {
		if !x.spoil(n, f.data) || !x.produce(call, &p, f.tokens) {
			return
		}
		if f.stop && x.fault != nil && x.fault.Kind == FaultNoStop {
			return
		}
		if !x.emit(f.data) {
			return
		}
		n++
	}
}

// whole takes the time of a stream, then sends everything as one JSON object.
func (x *exchange) whole(a *answer, call *Call) {
	p := x.sim.newPace()
	if p.interval == 0 { // no time in which a client could leave half-way
		call.Produce(time.Now(), a.spoken)
	} else {
		for f := range a.frames() {
			if !x.produce(call, &p, f.tokens) {
				return
			}
		}
	}
	body := a.json()
	if x.spoilJSON(body) {
		x.sendJSON(body)
	}
}

// produce waits for the turn of n tokens and counts them; false: the client left.
func (x *exchange) produce(call *Call, p *pace, n int) bool {
	if n == 0 {
		return true
	}
	if !x.wait(p.turn(time.Now())) {
		return false
	}
	call.Produce(time.Now(), n)
	return true
}

// emit writes and flushes, headers too when data is empty; false: the client left.
func (x *exchange) emit(data []byte) bool {
	_, err := x.w.Write(data)
	if err == nil {
		err = http.NewResponseController(x.w).Flush()
	}
	if err != nil || x.r.Context().Err() != nil {
		x.left()
		return false
	}
	return true
}

// declare sends the headers of a JSON answer of n bytes, -1 for no length.
func (x *exchange) declare(n int) {
	x.w.Header().Set("Content-Type", "application/json")
	if n >= 0 {
		x.w.Header().Set("Content-Length", strconv.Itoa(n))
	}
	x.status(http.StatusOK)
	x.w.WriteHeader(http.StatusOK)
}

// pace spreads deltas evenly; zero interval means no pause.
type pace struct {
	interval time.Duration
	due      time.Time
}

func (s *Simulator) newPace() pace {
	if s.cfg.Speed.EventsPerSecond == 0 {
		return pace{}
	}
	return pace{interval: time.Duration(float64(time.Second) / s.cfg.Speed.EventsPerSecond)}
}

// turn is how long the next delta has to wait. A small delay is made up for; a
// stall is not.
func (p *pace) turn(now time.Time) time.Duration {
	if p.interval == 0 {
		return 0
	}
	if now.Sub(p.due) > p.interval {
		p.due = now
	}
	d := p.due.Sub(now)
	p.due = p.due.Add(p.interval)
	return d
}
