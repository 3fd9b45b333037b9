package proxy

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"cc-relay/internal/messages"
)

// maxHeld is how much of a stream is held back before it is shown, whatever it says.
const maxHeld = 64 << 10

// hold reads a stream up to the first frame that belongs to the answer itself: what
// comes before can still be taken back. An error there is as if it had come as a
// status, and the client has seen nothing. All frames read are ready to be passed on.
func (a *answer) hold(x *exchange) verdict {
	a.gate.Lock()
	defer a.gate.leave()
	a.frames = newFrames()
	a.frames.Limit(int(x.live.Config.FrameBytes))
	v := a.holdLocked(x)
	if v == served { // before the timer can look at it again
		a.watch.extend(time.Now(), a.up.IdleTimeout)
	}
	return v
}

func (a *answer) holdLocked(x *exchange) verdict {
	for {
		for !a.ended {
			frame, ok := a.frames.Next()
			if !ok {
				break
			}
			if !x.own && !a.gate.shown {
				if v := a.judgeFrame(frame); v != served {
					return v
				}
			}
			a.take(x, frame)
			if x.own || isContent(frame) {
				a.spoke = true
				return served
			}
		}
		if a.ended || len(a.frames.Whole())+a.frames.Tail() > maxHeld {
			return served
		}
		if a.readErr != nil {
			if a.gate.shown { // stream tells the client
				return served
			}
			return a.broken()
		}
		if a.gate.shown {
			a.watch.pause()
			a.gate.pass()
			a.watch.extend(time.Now(), a.up.IdleTimeout)
		}
		a.fill()
	}
}

// fill reads once. Meanwhile the gate may let the client see what is held.
func (a *answer) fill() {
	space, err := a.frames.Space()
	if a.readErr = err; err != nil {
		return
	}
	var n int
	n, a.readErr = a.readUnlocked(space)
	a.frames.Add(n)
}

func (a *answer) readUnlocked(p []byte) (int, error) {
	a.gate.Unlock()
	defer a.gate.Lock() // also in a panic
	return a.resp.Body.Read(p)
}

// judgeFrame judges a frame that the client has not seen.
func (a *answer) judgeFrame(frame messages.Frame) verdict {
	switch {
	case string(frame.Event) == messages.EventError:
		return a.judgeError(frame.Data)
	case len(frame.Data) > 0 && !json.Valid(frame.Data):
		return failed
	}
	return served
}

// isContent reports whether a frame is a part of the answer. One without content
// has a message_delta or message_stop.
func isContent(frame messages.Frame) bool {
	switch string(frame.Event) {
	case messages.EventContentBlockStart, messages.EventContentBlockDelta, messages.EventContentBlockStop,
		messages.EventMessageDelta, messages.EventMessageStop:
		return true
	}
	return false
}

// take notes a frame that will be passed on.
func (a *answer) take(x *exchange, frame messages.Frame) {
	a.meter.Frame(frame)
	if a.makers != nil {
		if s, ok := messages.Signature(frame, x.live.Seed); ok {
			a.signed(s)
		}
	}
	switch string(frame.Event) {
	case messages.EventContentBlockDelta:
		a.produced += outputOf(frame.Data)
	case messages.EventMessageStop:
		a.ended = true
	case messages.EventError:
		a.ended, a.said = true, len(frame.Raw)
		a.fault = append([]byte(nil), frame.Data...)
	}
}

// gate shows a client what is held of a stream where no content has come in time
// and there is nobody else to ask: it opens from the timer, while the request's own
// goroutine waits in a read. So do the pings, see ping. Whoever has its lock has the
// answer's frames and the client's writer.
type gate struct {
	sync.Mutex
	x       *exchange
	a       *answer
	at      *walk
	w       http.ResponseWriter
	holding bool // frames are held, and may be shown
	shown   bool // the client has the status and what was held

	wrote  time.Time   // when the client was last sent something of the stream
	pinger *time.Timer // sends pings; nil: none are due
}

// opens lets the gate open for this answer.
func (g *gate) opens(w http.ResponseWriter, x *exchange, a *answer, at *walk) {
	g.w, g.x, g.a, g.at, g.holding = w, x, a, at, true
}

// leave ends holding, with the lock held; the frames are the caller's alone again.
func (g *gate) leave() {
	g.holding = false
	g.Unlock()
}

// shut is leave for an attempt that may not have held anything.
func (g *gate) shut() {
	g.Lock()
	g.noPings()
	g.leave()
}

// open shows what is held. It reports false where there is nothing to show, or somebody
// else to ask, and the attempt's time is up.
func (g *gate) open() bool {
	g.Lock()
	defer g.Unlock()
	if g.shown {
		return false // now it is the silence that has been too long
	}
	if !g.holding || g.a.frames == nil || g.at.others(g.x) {
		return false
	}
	g.shown = true
	g.a.startStream(g.w, g.x)
	g.a.watch.set(g.a.up.IdleTimeout)
	g.pass()
	return true
}

// pass sends the client what is held, with the lock held.
func (g *gate) pass() {
	run := g.a.frames.Whole()
	if err := g.x.tryWrite(g.w, run, time.Now()); err != nil {
		g.a.cancel(errClientGone)
		return
	}
	if len(run) > 0 {
		g.a.halfEnd = run[len(run)-1] == '\r'
		g.wrote = time.Now()
	}
	g.a.frames.Discard()
}
