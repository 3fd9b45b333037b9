package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
)

// maxTail is how much of an unfinished frame is held back.
const maxTail = 64 << 10

// afterEnd is how long an upstream may keep its connection open after the last
// frame of a stream; longer, and it is closed and not used again. A timer that is
// nearer than a second wakes the network poller, see tick in cmd/cc-relay.
const afterEnd = time.Second

var framePool = sync.Pool{New: func() any { return new(messages.Frames) }}

func newFrames() *messages.Frames { return framePool.Get().(*messages.Frames) }

func keepFrames(f *messages.Frames) {
	f.Reset()
	framePool.Put(f)
}

// forward gives the client an answer and settles what it used.
func (h *Handler) forward(w http.ResponseWriter, x *exchange, a *answer) {
	defer a.end(x)
	x.outcome = outcomeServed
	switch {
	case a.verdict == clientError:
		x.writeReply(w, &reply{status: a.status, header: a.resp.Header, body: a.body})
	case a.frames != nil:
		a.stream(w, x)
	default:
		x.showHeaders(w.Header(), a.resp.Header)
		x.showLimits(w.Header(), a.up.Pool)
		a.json(w, x)
	}
}

// end settles the lease, once, with what was used as far as it is known.
func (a *answer) end(x *exchange) {
	if a.frames != nil {
		a.usage = a.meter.Usage()
		if !a.meter.Final() { // what was produced of it is known only roughly
			a.usage.Output = max(a.usage.Output, a.meter.Deltas())
		}
		x.partial = !a.meter.Complete()
	}
	x.usage = a.usage
	used := usedOf(a.usage, x.partial)
	if a.verdict == served && a.usage.Prompt() == 0 { // no prompt is empty
		used.Unreported = true
	}
	a.lease.Settle(used)
	a.close(x)
}

// usedOf is what a provider reported, for the pool; partial: of an answer that did not end.
// Of such a one some vendors say at first that the prompt was nothing.
func usedOf(u messages.Usage, partial bool) keypool.Usage {
	if max(u.Prompt(), u.Output) > mostTokens { // a debt of hours for a mistake in a report
		return keypool.Usage{Unreported: true}
	}
	return keypool.Usage{Input: u.Input, CacheWrite: u.CacheWrite, CacheRead: u.CacheRead, Output: u.Output, Partial: partial, Unreported: partial && u.Prompt() == 0}
}

// mostTokens is more than any answer can cost: the largest context is 1,000,000
// tokens, and server tools may read it more than once. Source:
// https://platform.claude.com/docs/en/about-claude/models/overview.
const mostTokens = 10_000_000

// json writes a JSON answer, whole or, where it is very long, as it comes: then it is
// broken off where the provider ends it before its JSON ends.
func (a *answer) json(w http.ResponseWriter, x *exchange) {
	if len(a.body) < maxJSONBody && a.body != nil {
		x.writeBody(w, a.status, a.body)
		return
	}
	x.commit(w, a.status)
	a.watch.pause()
	var seen messages.Nesting
	seen.Add(a.body)
	x.writeParts(w, a.body)
	a.watch.set(a.up.IdleTimeout)
	buf := make([]byte, 32<<10)
	for {
		n, err := a.resp.Body.Read(buf)
		a.watch.pause()
		seen.Add(buf[:n])
		x.write(w, buf[:n])
		a.watch.extend(time.Now(), a.up.IdleTimeout)
		if errors.Is(err, io.EOF) && seen.Closed() {
			return
		}
		if err != nil {
			x.brokeOff()
		}
	}
}

// startStream sends the head of a stream.
func (a *answer) startStream(w http.ResponseWriter, x *exchange) {
	x.showHeaders(w.Header(), a.resp.Header)
	x.showLimits(w.Header(), a.up.Pool)
	x.commit(w, a.status)
	if a.pings() {
		a.startPings(w, x)
	}
}

// stream forwards whole frames as they come: one read, one write, one flush. The
// bytes out are the bytes in, up to message_stop, and pings between them, see pings.
func (a *answer) stream(w http.ResponseWriter, x *exchange) {
	a.passOn(w, x)
	if a.ended {
		a.failed(x)
		a.finishReading(w, x)
		return
	}
	a.cut(w, x)
}

// passOn is stream up to the end of the frames. Where pings are due it has the gate's
// lock but for the reads; without pings nobody else writes, and no lock is paid for.
func (a *answer) passOn(w http.ResponseWriter, x *exchange) {
	pings := a.pings()
	if pings {
		a.gate.Lock()
		defer a.gate.release() // also in a panic
	}
	if !x.committed {
		a.startStream(w, x)
		a.watch.set(a.up.IdleTimeout)
	}
	came := time.Now()
	for {
		for !a.ended {
			frame, ok := a.frames.Next()
			if !ok {
				break
			}
			a.take(x, frame)
		}
		if a.frames.Tail() > maxTail && !a.ended {
			a.frames.Spill()
		}
		now := came
		if run := a.frames.Whole(); len(run) > 0 {
			a.watch.pause()
			x.writeAt(w, x.scrubTail(run, a.said), came)
			a.frames.Discard()
			a.produce()
			a.halfEnd = run[len(run)-1] == '\r'
			now = time.Now()
			a.gate.wrote = now
			x.live.Metrics.EventLag(now.Sub(came))
		}
		if a.ended || a.readErr != nil {
			return
		}
		a.watch.extend(now, a.up.IdleTimeout)
		if pings {
			a.fill()
		} else {
			_, a.readErr = a.frames.Fill(a.resp.Body)
		}
		came = time.Now()
	}
}

// Output is counted while it passes, because the provider counts it so; what the
// frames hold besides text is about deltaFrame bytes, and a token of text about 4.
const (
	deltaFrame   = 96
	textPerToken = 4
	produceStep  = 16 // tokens worth telling the pool
)

// outputOf estimates the tokens of one delta.
func outputOf(data []byte) int { return 1 + max(0, len(data)-deltaFrame)/textPerToken }

func (a *answer) produce() {
	if a.produced >= produceStep {
		a.lease.Produced(a.produced)
		a.produced = 0
	}
}

// scrubTail takes known secrets out of the last n bytes of run: an error event
// is the one part of a stream that a provider words itself.
func (x *exchange) scrubTail(run []byte, n int) []byte {
	if n == 0 {
		return run
	}
	at := len(run) - n
	return append(run[:at:at], x.live.scrub.Load().clean(string(run[at:]))...)
}

// failed notes an error event that the client has been sent as it came.
func (a *answer) failed(x *exchange) {
	if a.said == 0 {
		return
	}
	x.outcome = outcomeBroken
	e, ok := messages.ParseError(a.fault)
	if !ok {
		return
	}
	// A client's own mistake is judged neither way; the rest counts for the key
	// and the provider as the status of its type would.
	if v := judge(e.Error.Type.Status(), a.fault); v != clientError {
		a.verdict, x.verdict = v, v
		a.body, a.lease.done = a.fault, a.after
		a.mark(x, time.Now())
	}
}

// finishReading waits a moment for the upstream to end the answer, so that its
// connection can be used again. What still comes is dropped, but for the second
// half of the last line's end.
func (a *answer) finishReading(w http.ResponseWriter, x *exchange) {
	if a.readErr != nil {
		return
	}
	a.watch.set(afterEnd)
	rest := io.LimitReader(a.resp.Body, maxTail)
	if lf := make([]byte, 1); a.halfEnd && a.frames.Tail() == 0 { // else what follows the CR is known
		if n, _ := rest.Read(lf); n == 1 && lf[0] == '\n' {
			x.write(w, lf)
		}
	}
	_, _ = io.Copy(io.Discard, rest)
}

// cut ends a stream that broke off: with an error event at the end of a frame,
// inside one by breaking the connection. It never looks complete.
func (a *answer) cut(w http.ResponseWriter, x *exchange) {
	cause := context.Cause(a.ctx)
	if (x.clientGone() || errors.Is(cause, errClientGone)) && !x.stopped() {
		x.left()
	}
	x.outcome, x.verdict = outcomeBroken, failed
	a.broke(x)
	kind, message := messages.APIError, "provider "+x.provider+" ended the stream early"
	switch {
	case x.stopped():
		kind, message = messages.Overloaded, "the relay is shutting down; send the request again"
	case errors.Is(cause, errTotal):
		x.verdict = timedOut
		kind, message = messages.Timeout, "the request took longer than the relay allows"
	case errors.Is(cause, errTimeout):
		x.verdict = timedOut
		message = "provider " + x.provider + " fell silent"
	case errors.Is(a.readErr, messages.ErrFrameTooLarge):
		message = "provider " + x.provider + " sent an event that is too large"
	}
	if a.frames.MidFrame() {
		x.brokeOff()
	}
	x.write(w, messages.AppendErrorEvent(a.endLine(), kind, message, x.id))
}

// broke counts a stream that broke off against the provider, unless it is the relay
// that ends it.
func (a *answer) broke(x *exchange) {
	if a.after != nil && !x.stopped() && !errors.Is(context.Cause(a.ctx), errTotal) {
		a.after(health.Failure)
	}
}

// brokeOff breaks the client's connection: the one honest end of an answer that
// cannot be completed and cannot be told so.
func (x *exchange) brokeOff() {
	x.outcome = outcomeBroken
	panic(http.ErrAbortHandler)
}

// left ends a request whose client is gone: nothing is written any more.
func (x *exchange) left() {
	x.outcome, x.verdict, x.status = outcomeClientGone, clientGone, statusClientGone
	panic(http.ErrAbortHandler)
}

// statusClientGone stands in the access record where no status could be sent.
const statusClientGone = 499

// commit sends status and headers: from here on no other upstream can serve.
func (x *exchange) commit(w http.ResponseWriter, status int) {
	x.status, x.committed = status, true
	x.firstByte = time.Since(x.start)
	w.WriteHeader(status)
	x.release()
}

// writeBody writes a whole answer.
func (x *exchange) writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	x.commit(w, status)
	x.writeParts(w, body)
}

// writeParts writes what is long, with the time of a write for each part.
func (x *exchange) writeParts(w http.ResponseWriter, body []byte) {
	for len(body) > maxWrite {
		x.write(w, body[:maxWrite])
		body = body[maxWrite:]
	}
	x.write(w, body)
}

// maxWrite is what a client is given the time of one write for.
const maxWrite = 256 << 10

// write sends bytes to the client at once and within the write timeout. It does
// not return where the client is gone.
func (x *exchange) write(w http.ResponseWriter, p []byte) { x.writeAt(w, p, time.Now()) }

// writeAt is write for a caller that knows the time.
func (x *exchange) writeAt(w http.ResponseWriter, p []byte, now time.Time) {
	if x.tryWrite(w, p, now) != nil {
		x.left()
	}
}

func (x *exchange) tryWrite(w http.ResponseWriter, p []byte, now time.Time) error {
	x.extend(w, now)
	_, err := w.Write(p)
	if f, ok := w.(flusher); ok && err == nil {
		err = f.FlushError()
	} else if err == nil {
		err = http.NewResponseController(w).Flush()
	}
	if x.r.ProtoMajor == 2 {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	}
	if errors.Is(err, http.ErrNotSupported) { // a test's
		return nil
	}
	return err
}

// flusher is what a server's own writer is; asking it directly spares each event
// of a stream the controller's search.
type flusher interface{ FlushError() error }

// extend gives the next write its time, between three quarters of the timeout
// and all of it: moving the deadline for each event of a stream would cost more
// than the event. A connection keeps the deadline of its last request, so each
// request sets one before its first write. Over HTTP/2 a deadline ends the stream when
// it passes, whether anything is being written or not: there each write has its own.
func (x *exchange) extend(w http.ResponseWriter, now time.Time) {
	timeout := x.live.Config.WriteTimeout
	if now.Sub(x.extended) < timeout/4 && x.r.ProtoMajor != 2 {
		return
	}
	x.extended = now
	_ = http.NewResponseController(w).SetWriteDeadline(now.Add(timeout)) // a writer without deadlines is a test's
}
