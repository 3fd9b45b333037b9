package proxy

import (
	"net/http"
	"time"

	"cc-relay/internal/provider"
)

// pingAfter is how long a client is left without a byte of a stream where the relay
// pings. Claude Code gives a stream up after 300 s of silence. Source:
// https://code.claude.com/docs/en/llm-gateway-protocol.
const pingAfter = 15 * time.Second

const pingFrame = "event: ping\ndata: {\"type\": \"ping\"}\n\n"

// pings reports whether the relay breaks the silence of this provider: Anthropic does so
// itself, and others may think for minutes without a word.
func (a *answer) pings() bool { return a.up.Origin != provider.OriginAnthropic }

// startPings begins with the commit, with the gate's lock held.
func (a *answer) startPings(w http.ResponseWriter, x *exchange) {
	var timer *time.Timer
	timer = time.AfterFunc(time.Hour, func() { // set below, when it can see timer
		if again := a.ping(w, x); again > 0 {
			timer.Reset(again)
		}
	})
	timer.Reset(pingAfter)
	a.gate.pinger, a.gate.wrote = timer, time.Now()
}

// ping sends one if it is due, which it need not be: writes do not move the timer. It
// returns when to look again, 0: never. A ping is nothing that the provider has said,
// and so leaves the watch alone.
func (a *answer) ping(w http.ResponseWriter, x *exchange) time.Duration {
	g := &a.gate
	if !g.TryLock() { // the client is being written to, and may take its time
		return time.Second
	}
	defer g.Unlock()
	now := time.Now()
	quiet := now.Sub(g.wrote)
	switch {
	case g.pinger == nil: // the stream has ended meanwhile
		return 0
	case quiet < pingAfter:
		return pingAfter - quiet
	case a.frames.MidFrame():
		return pingAfter
	case x.tryWrite(w, append(a.endLine(), pingFrame...), now) != nil:
		a.cancel(errClientGone)
		return 0
	}
	a.halfEnd, g.wrote = false, time.Now()
	return pingAfter
}

// endLine is what must go before a frame of the relay's own. To a reader that knows LF
// alone, as the Go SDK, a frame whose end is a CR has not ended yet: it would take our
// event for a part of it, and of a ping for nothing.
func (a *answer) endLine() []byte {
	if a.halfEnd {
		return []byte{'\n'}
	}
	return nil
}

// noPings ends the pings, with the lock held.
func (g *gate) noPings() {
	if g.pinger != nil {
		g.pinger.Stop()
		g.pinger = nil
	}
}

// release gives back the lock that a stream with pings was passed on under.
func (g *gate) release() {
	g.noPings()
	g.Unlock()
}
