package proxy

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/router"
	"cc-relay/internal/trace"
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
	lease   lease
	after   func(health.Outcome) // told of what becomes of a stream that is shown; nil: nobody is
	lane    *router.Lane         // nil for a client's own credential, which blames nobody
	model   string               // asked for
	began   time.Time
	span    trace.Attempt
	sent    *http.Request
	ctx     context.Context
	cancel  context.CancelCauseFunc
	watch   watch // ends the attempt: response or first token, then silence
	verdict verdict
	large   bool // the prompt is larger than any key's limit

	resp    *http.Response // nil where none came
	cooling time.Duration  // of the key, after a 429
	status  int            // the answer's, or that of the error its body carries
	body    []byte         // of an error or a JSON answer; of a stream only an error event's data

	frames  *messages.Frames // of a stream
	readErr error            // what ended reading, with frames still to be passed on
	noConn  error            // why no connection came about
	spoke   bool             // a frame of the answer itself has come
	ended   bool             // the frame that ends the stream has come
	halfEnd bool             // a CR was passed on whose LF may still come
	said    int              // length of the error event at the end of what was read
	fault   []byte           // its data
	gate    gate
	makers  *makers // told of signatures; nil where all upstreams are of one origin
	meter   messages.Meter
	usage   messages.Usage

	produced int // output tokens passed on that the pool has not been told of
}

// answer walks the plan: keys of an upstream, then the next upstream, until one
// answer is worth showing or nothing is left. It returns one of both, or nil and
// what failed when the client has left.
func (h *Handler) answer(w http.ResponseWriter, x *exchange) (*answer, *failure) {
	failed := &failure{}
	plan, err := x.live.Router.Plan(x.query())
	if err != nil {
		failed.unreachable = err
		return nil, failed
	}
	x.routed, x.rule, x.strategy, x.home, x.skipped = true, plan.Rule, plan.Strategy, plan.Home, plan.Skipped
	x.live.Router.Budget.Request()
	at := walk{plan: plan.Candidates, resort: plan.Resort}
	failed.draining = len(at.plan) == 0 && at.resort == nil
	if len(at.plan) == 0 && !at.next(x) {
		return nil, failed
	}
	for {
		key, ok, err := at.enter(x)
		if err != nil && !at.waited { // else it has been noted, and with the provider's own time
			failed.refused(placeOf(at.here()), err)
			at.ran(err)
		}
		if err != nil || !ok {
			if x.clientGone() || !at.next(x) {
				return nil, failed
			}
			continue
		}
		if at.waited { // there was room after all
			delete(failed.dry, placeOf(at.here()))
		}
		a := h.attempt(w, x, &at, key)
		switch a.verdict {
		case served, clientError:
			return a, nil
		case clientGone:
			a.settleLeft(x)
			return nil, failed
		}
		failed.note(placeOf(at.here()), x, a)
		a.large = a.oversized()
		a.abandon(x) // before any pause: what it holds is somebody else's
		if x.timeLeft() <= 0 {
			return nil, failed
		}
		if !at.move(x, a) && (x.clientGone() || !at.next(x)) {
			return nil, failed
		}
	}
}

// attempt sends the request to where the walk stands, with the leased key, reads
// until the answer can be judged, and tells pool and breaker what it means.
func (h *Handler) attempt(w http.ResponseWriter, x *exchange, at *walk, key lease) *answer {
	c := at.here()
	a := &answer{up: c.Upstream, lane: c.Lane, model: c.Asks(x.model), lease: key, began: time.Now()}
	a.span = x.span.Attempt(a.began)
	a.ctx, a.cancel = context.WithCancelCause(x.r.Context())
	a.up.Begin()
	whole := false
	defer func() {
		if !whole { // a panic passes through, and must not keep the key
			a.abandon(x)
		}
	}()
	x.dress(h, a)
	x.attempts++
	paid := at.paid
	at.paid, at.promised = false, false
	x.provider, x.keyID = a.up.Provider.Name(), key.KeyID()
	if x.stream {
		a.gate.opens(w, x, a, at)
	}
	a.verdict = a.try(x)
	x.verdict = a.verdict
	if a.verdict == unreachable { // nothing was sent
		at.paid = at.paid || paid
	}
	judged := time.Now()
	x.upstream += judged.Sub(a.began)
	a.mark(x, judged)
	if a.verdict != served && a.verdict != clientError && a.verdict != clientGone && !x.own {
		e := h.log.Warn().Str("request_id", x.id).Str("upstream", x.provider).Str("key_id", x.keyID).
			Str("verdict", a.verdict.String()).Int("status", a.status).Int("attempt", x.attempts)
		if a.noConn != nil { // nothing else tells a name that does not resolve from a certificate that is not valid now
			e = e.Str("error", h.Scrub(a.noConn.Error()))
		}
		e.Msg("attempt failed")
	}
	whole = true
	return a
}

func (a *answer) try(x *exchange) verdict {
	limit := a.up.ResponseTimeout
	if x.stream {
		limit = a.up.FirstTokenTimeout
	}
	a.watch.start(a.began, limit, x.timeLeftAt(a.began), a.cancel, a.gate.open)
	req, err := a.up.Provider.NewRequest(a.ctx, x.call(), a.lease.APIKey())
	if err != nil {
		return failed
	}
	if parent := a.span.Traceparent(); parent != "" {
		req.Header["Traceparent"] = []string{parent}
	}
	a.sent = req
	a.resp, err = a.up.Transport.RoundTrip(req) //nolint:bodyclose // closed by answer.close, whatever ends the attempt
	if err != nil {
		v := judgeError(err, context.Cause(a.ctx))
		if v == unreachable {
			a.noConn = err
		}
		return v
	}
	a.lease.Answered(a.resp.StatusCode, a.resp.Header)
	a.status = a.resp.StatusCode
	coding := first(a.resp.Header["Content-Encoding"])
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
		return a.hold(x)
	case "application/json":
		return a.readJSON(x)
	}
	return failed
}

func mediaType(h http.Header) string {
	kind, _, _ := strings.Cut(first(h["Content-Type"]), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

// first is the first value of a header, "" where there is none.
func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
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
func (a *answer) readJSON(x *exchange) verdict {
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
	a.usage = reply.Usage
	if a.makers != nil {
		a.signed(messages.ReplySignatures(a.body, x.live.Seed)...)
	}
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

// mark tells pool, router and breaker what the verdict says of the key and the
// upstream. A client's mistake and a key's condition are not the provider's.
func (a *answer) mark(x *exchange, now time.Time) {
	if x.own {
		return
	}
	pool, id, class := a.up.Pool, a.lease.KeyID(), x.demand.Class
	outcome := health.Neither
	if a.credentialRead() {
		a.lease.Accepted()
	}
	switch a.verdict {
	case served:
		a.lease.SucceededAt(now)
		if a.gate.shown && !a.spoke { // it has broken off, see broke, or ended in an error, see failed
			break
		}
		outcome = health.Success
		a.settleIn(x, now)
	case limited:
		a.cooling = a.lease.Limited(a.named())
	case spent:
		pool.MarkKeyDead(id, keypool.ReasonSpent)
	case unauthorized:
		pool.MarkKeyDead(id, keypool.ReasonUnauthorized)
	case forbidden:
		pool.MarkKeyForbidden(id, class, x.client, blamesAccount(a.body))
	case noModel:
		a.up.Miss(a.model, now)
	case overloaded, failed, timedOut, lost, unreachable:
		if !errors.Is(context.Cause(a.ctx), errTotal) { // that is the relay's own time
			outcome = health.Failure
		}
	}
	a.lease.done(outcome)
	if a.verdict == served && a.frames != nil {
		a.after = a.lane.Try()
	}
}

// credentialRead reports whether an error is one that the API itself makes once it knows
// whose request it is. Pages of what stands before it are none, and a request that is too
// large may not have got so far.
func (a *answer) credentialRead() bool {
	switch a.status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests:
		e, ok := messages.ParseError(a.body)
		return ok && e.Error.Type == messages.TypeOfStatus(a.status)
	}
	return false
}

// named is the wait that the answer names; 0: none.
func (a *answer) named() time.Duration { return keypool.ParseRetryAfter(a.resp.Header) }

// dryFor is how long the key has no room after a 429: what the answer names, else what
// the pool makes of it.
func (a *answer) dryFor() time.Duration { return cmp.Or(a.named(), a.cooling) }

// settleIn makes the upstream the conversation's home, also of one that may go on
// anywhere: its next turn may answer a tool call.
func (a *answer) settleIn(x *exchange, now time.Time) {
	if x.stream {
		a.lane.Observe(now.Sub(a.began), now)
	}
	life := homeLife
	for i := range x.demand.Prefix {
		life = max(life, x.demand.Prefix[i].Life)
	}
	x.live.Router.Settle(x.demand.Conversation, a.up, a.model, life, now)
}

// homeLife is how long a conversation has a home that says nothing of its cache, as
// long as a cache lasts.
const homeLife = 5 * time.Minute

// abandon ends an answer that the client does not get. A good answer that is
// given up is closed at once: draining it would go on paying for it.
func (a *answer) abandon(x *exchange) {
	used := keypool.Usage{}
	switch {
	case a.meter.Started(): // the provider has counted it, and said so
		a.usage = a.meter.Usage()
		used = usedOf(a.usage, true)
	case a.verdict == lost || a.verdict == timedOut:
		used.Unreported = true // it may have
	}
	a.lease.Settle(used)
	a.close(x)
}

// settleLeft ends an answer whose client has left before it was judged: the
// provider may have counted the prompt, so what was held for it stays taken.
func (a *answer) settleLeft(x *exchange) {
	used := keypool.Usage{Unreported: true}
	if a.meter.Started() {
		a.usage = a.meter.Usage()
		x.usage = a.usage
		used = usedOf(a.usage, true)
	}
	a.lease.Settle(used)
	x.partial = true
	a.close(x)
}

// close ends the attempt and writes it down.
func (a *answer) close(x *exchange) {
	a.gate.shut()
	a.watch.stop()
	a.cancel(context.Canceled)
	if a.lease.done != nil {
		a.lease.done(health.Neither) // where a panic came before the verdict
	}
	x.wrote(step{
		upstream: a.up.Provider.Name(), key: a.lease.KeyID(), model: a.model, class: x.demand.Class, sent: true, verdict: a.verdict,
		status: a.status, took: time.Since(a.began), usage: a.usage, choice: a.lease.choice,
	})
	a.observe(x)
	if a.resp != nil {
		_ = a.resp.Body.Close()
	}
	a.up.End() // the last one may close the connections
	if a.frames != nil {
		keepFrames(a.frames)
		a.frames = nil
	}
}
