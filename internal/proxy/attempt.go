package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/router"
)

// Bounds of what is held of one answer.
const (
	maxErrorBody  = 64 << 10
	errorBodyTime = 2 * time.Second
	maxJSONBody   = 16 << 20 // a longer JSON answer is passed on while it comes
)

// answer is what one attempt brought. Exactly one of forward and abandon ends it.
type answer struct {
	up      *router.Upstream
	lease   keypool.Lease
	ctx     context.Context
	cancel  context.CancelCauseFunc
	watch   watch // ends the attempt: response or first token, then silence
	verdict verdict

	resp   *http.Response // nil where none came
	status int            // the answer's, or that of the error its body carries
	body   []byte         // of an error or a JSON answer; of a stream only an error event's data

	frames  *messages.Frames // of a stream
	readErr error            // what ended reading, with frames still to be passed on
	meter   messages.Meter
	usage   messages.Usage
	metered bool // usage was reported

	produced int // output tokens passed on that the pool has not been told of
}

// answer walks the plan: keys of an upstream, then the next upstream, until one
// answer is worth showing or nothing is left. It returns one of both, or nil and
// what failed when the client has left.
func (h *Handler) answer(x *exchange) (*answer, *failure) {
	failed := &failure{}
	w := walk{plan: x.live.Router.Plan(x.model, x.start)}
	if len(w.plan) == 0 {
		return nil, failed
	}
	for {
		up := w.plan[w.at]
		lease, err := w.acquire(x, up)
		if err != nil {
			if !w.waited { // then it has been noted, and with the provider's own time
				failed.refused(err)
				w.ran(err)
			}
			if x.clientGone() || !w.next(x) {
				return nil, failed
			}
			continue
		}
		a := h.attempt(x, up, lease)
		switch a.verdict {
		case served, clientError:
			return a, nil
		case clientGone:
			a.settleLeft(x)
			return nil, failed
		}
		failed.note(x, a)
		moved := w.move(x, a)
		a.abandon()
		if !moved && (x.clientGone() || !w.next(x)) {
			return nil, failed
		}
	}
}

// walk is where a request stands in its plan.
type walk struct {
	plan    []*router.Upstream
	at      int
	over    bool             // no more attempts
	again   bool             // an upstream is being asked once more
	left    *walk            // where it was when it moved on from an upstream that may be asked again
	counted int              // attempts that may have cost an upstream work
	moved   bool             // the one move for broken answers is spent
	tried   []string         // keys of this upstream that the request must not use again
	avoid   []string         // keys of the organization that has just failed, used only if no others are left
	failed  map[int][]string // keys by upstream that failed otherwise than for want of room

	dry    time.Duration // how soon an upstream that is merely out of room may serve; 0 = none is
	dryAt  int           // which
	waited bool          // the request has waited for that one
}

// acquire takes a key of up. While another upstream may still serve, it waits for
// none but the conversation's home.
func (w *walk) acquire(x *exchange, up *router.Upstream) (keypool.Lease, error) {
	demand, began := x.demand, time.Now()
	defer func() { x.waited += time.Since(began).Truncate(time.Millisecond) }()
	demand.OnlyHome = len(w.plan) > 1 && !w.waited
	if len(w.avoid) > 0 {
		demand.Exclude = append(w.tried[:len(w.tried):len(w.tried)], w.avoid...)
		if lease, err := up.Pool.Acquire(x.r.Context(), demand); err == nil {
			return lease, nil
		}
	}
	demand.Exclude = w.tried
	return up.Pool.Acquire(x.r.Context(), demand)
}

// ran notes an upstream that has keys, but none with room.
func (w *walk) ran(err error) {
	var exhausted *keypool.ExhaustedError
	if errors.As(err, &exhausted) && exhausted.Left > 0 {
		w.dried(exhausted.RetryAfter)
	}
}

func (w *walk) dried(after time.Duration) {
	after = max(after, time.Millisecond)
	if w.dry == 0 || after < w.dry {
		w.dry, w.dryAt = after, w.at
	}
}

// next goes on where a key could not be had, or where nothing is left to move to:
// to the next upstream, back to one that failed, and last, once, to the one that
// has room soonest, in order to wait there.
func (w *walk) next(x *exchange) bool {
	if !w.over && (w.nextUpstream() || w.back(x)) {
		return true
	}
	if w.dry == 0 || w.waited || w.counted >= maxCounted {
		return false
	}
	w.waited, w.over, w.at = true, true, w.dryAt
	w.tried, w.avoid = w.failed[w.at], nil // what was merely full may be asked once more
	return true
}

func (w *walk) nextUpstream() bool {
	if w.again || w.at+1 >= len(w.plan) { // again: who comes later has had its turn
		return false
	}
	w.at++
	w.avoid, w.tried = nil, nil
	return true
}

// move goes to where the request may be tried next: another key, the next
// upstream, or the same one once more after a moment. It returns false where
// that is nowhere.
func (w *walk) move(x *exchange, a *answer) bool {
	c := conducts[a.verdict]
	switch {
	case a.oversized():
		for _, k := range a.up.Pool.Keys() { // the others are smaller
			w.tried = append(w.tried, k.ID)
		}
		return true
	case a.verdict == limited:
		w.dried(max(keypool.ParseRetryAfter(a.resp.Header), time.Second))
	default:
		w.fail(a, c)
	}
	switch {
	case w.over && c.counted:
		return false
	case c.nextOwner:
		w.tried = append(w.tried, a.lease.OwnerKeys()...)
		return true
	case c.nextKey:
		w.tried = append(w.tried, a.lease.KeyID())
		return true
	}
	if c.counted {
		w.counted++
	}
	if w.counted >= maxCounted || (c.oneMove && w.moved) {
		w.over = true
		return false
	}
	w.moved = w.moved || c.oneMove
	if c.again {
		w.left = &walk{at: w.at, tried: w.tried, avoid: a.lease.OwnerKeys()}
	}
	return w.nextUpstream() || w.back(x)
}

// fail notes the keys that are not to be asked again when the wait is over.
func (w *walk) fail(a *answer, c conduct) {
	keys := a.lease.OwnerKeys()
	if c.nextKey {
		keys = []string{a.lease.KeyID()}
	}
	if w.failed == nil {
		w.failed = map[int][]string{}
	}
	w.failed[w.at] = append(w.failed[w.at], keys...)
}

// oversized reports whether a prompt was refused that is larger than any limit:
// no wait and no other key will do.
func (a *answer) oversized() bool {
	_, _, oversized := a.lease.Oversized()
	return oversized && a.verdict == limited
}

// back returns, once and after a moment, to the upstream that failed last, where
// no later one can serve. It avoids the organization that failed.
func (w *walk) back(x *exchange) bool {
	if w.left == nil || w.again {
		return false
	}
	w.again, w.at, w.tried, w.avoid = true, w.left.at, w.left.tried, w.left.avoid
	x.pause(250*time.Millisecond + rand.N(250*time.Millisecond))
	return !x.clientGone()
}

// attempt sends the request to up with the leased key, reads until the answer
// can be judged, and tells the pool what it means.
func (h *Handler) attempt(x *exchange, up *router.Upstream, lease keypool.Lease) *answer {
	a := &answer{up: up, lease: lease}
	a.ctx, a.cancel = context.WithCancelCause(x.r.Context())
	defer func() {
		if a.verdict == notTried { // a panic passes through, and must not keep the key
			a.abandon()
		}
	}()
	x.attempts++
	x.provider, x.keyID = up.Provider.Name(), lease.KeyID()
	a.verdict = a.try(x)
	x.verdict = a.verdict
	a.mark(x)
	if a.verdict != served && a.verdict != clientError && a.verdict != clientGone {
		h.log.Warn().Str("request_id", x.id).Str("upstream", x.provider).Str("key_id", x.keyID).
			Str("verdict", a.verdict.String()).Int("status", a.status).Int("attempt", x.attempts).Msg("attempt failed")
	}
	return a
}

func (a *answer) try(x *exchange) verdict {
	limit := a.up.ResponseTimeout
	if x.msg.Stream {
		limit = a.up.FirstTokenTimeout
	}
	a.watch.start(limit, a.cancel)
	req, err := a.up.Provider.NewRequest(a.ctx, x.call(), a.lease.APIKey())
	if err != nil {
		return failed
	}
	a.resp, err = a.up.Transport.RoundTrip(req) //nolint:bodyclose // closed by answer.close, whatever ends the attempt
	if err != nil {
		return judgeError(err, context.Cause(a.ctx))
	}
	a.lease.Answered(a.resp.StatusCode, a.resp.Header)
	a.status = a.resp.StatusCode
	coding := a.resp.Header.Get("Content-Encoding")
	plain := coding == "" || coding == "identity" // nothing else was asked for, and the client may not understand it
	switch {
	case a.status == http.StatusSwitchingProtocols:
		return failed // a read from such a connection is ended by no timeout
	case a.status != http.StatusOK:
		if plain {
			// What cannot be read of an error is not needed to judge it, and is not
			// worth a wait.
			a.watch.set(errorBodyTime)
			a.body, _ = io.ReadAll(io.LimitReader(a.resp.Body, maxErrorBody))
		}
		return judge(a.status, a.body)
	case !plain:
		return failed
	}
	switch mediaType(a.resp.Header) {
	case "text/event-stream":
		return a.readFirstFrame()
	case "application/json":
		return a.readJSON()
	}
	return failed
}

func mediaType(h http.Header) string {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

// readFirstFrame reads a stream up to the first frame that says something: an
// error there is as if it had come as a status, and the client has seen nothing.
func (a *answer) readFirstFrame() verdict {
	a.frames = newFrames()
	for {
		for frame, ok := a.frames.Next(); ok; frame, ok = a.frames.Next() {
			switch {
			case string(frame.Event) == messages.EventPing, len(frame.Data) == 0:
				continue
			case string(frame.Event) == messages.EventError:
				return a.judgeError(frame.Data)
			case !json.Valid(frame.Data):
				return failed
			}
			a.meter.Frame(frame)
			return served
		}
		if a.readErr != nil {
			return a.broken()
		}
		_, a.readErr = a.frames.Fill(a.resp.Body)
	}
}

// judgeError judges an error object that came with status 200.
func (a *answer) judgeError(body []byte) verdict {
	a.body = append([]byte(nil), body...)
	e, ok := messages.ParseError(body)
	if !ok {
		return failed
	}
	a.status = e.Error.Type.Status()
	return judge(a.status, a.body)
}

// broken judges an answer that broke off before it could be shown.
func (a *answer) broken() verdict {
	if v := judgeError(a.readErr, context.Cause(a.ctx)); v == timedOut || v == clientGone {
		return v
	}
	return failed
}

// readJSON reads a JSON answer whole, so that a cut one is never shown.
func (a *answer) readJSON() verdict {
	size := a.resp.ContentLength
	if size > maxJSONBody {
		return served
	}
	a.body, a.readErr = readUpTo(a.resp.Body, max(size, 0), maxJSONBody)
	if a.readErr != nil {
		return a.broken()
	}
	if len(a.body) == maxJSONBody {
		return served
	}
	reply, err := messages.InspectReply(a.body)
	if err != nil {
		return failed
	}
	if reply.Error {
		return a.judgeError(a.body)
	}
	a.usage, a.metered = reply.Usage, reply.HasUsage
	return served
}

// readUpTo reads r to its end, or limit bytes of it.
func readUpTo(r io.Reader, expect int64, limit int) ([]byte, error) {
	buf := make([]byte, 0, min(max(expect+1, 512), int64(limit)))
	for len(buf) < limit {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):min(cap(buf), limit)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
	}
	return buf, nil
}

// mark tells pool and router what the verdict says of the key and the upstream.
func (a *answer) mark(x *exchange) {
	pool, id, class := a.up.Pool, a.lease.KeyID(), x.demand.Class
	switch a.verdict {
	case served:
		a.lease.Succeeded()
	case limited:
		a.lease.Limited(keypool.ParseRetryAfter(a.resp.Header))
	case spent:
		pool.MarkKeyDead(id, keypool.ReasonSpent)
	case unauthorized:
		pool.MarkKeyDead(id, keypool.ReasonUnauthorized)
	case forbidden:
		pool.MarkKeyForbidden(id, class, x.client, blamesAccount(a.body))
	case noModel:
		a.up.Miss(x.model, time.Now())
	}
}

// abandon ends an answer that the client does not get. A good answer that is
// given up is closed at once: draining it would go on paying for it.
func (a *answer) abandon() {
	a.lease.Settle(keypool.Usage{})
	a.close()
}

// settleLeft ends an answer whose client has left before it was judged: the
// provider may have counted the prompt, so what was held for it stays taken.
func (a *answer) settleLeft(x *exchange) {
	a.lease.Settle(keypool.Usage{Unreported: true})
	x.partial = true
	a.close()
}

func (a *answer) close() {
	a.watch.stop()
	a.cancel(context.Canceled)
	if a.resp != nil {
		_ = a.resp.Body.Close()
	}
	if a.frames != nil {
		keepFrames(a.frames)
		a.frames = nil
	}
}
