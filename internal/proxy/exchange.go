package proxy

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/zeebo/xxh3"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
	"cc-relay/internal/trace"
)

// Outcomes of a request in its access record.
const (
	outcomeServed     = "served"      // the client has the upstream's whole answer
	outcomeRefused    = "refused"     // by the relay: no token, bad request, draining
	outcomeFailed     = "failed"      // no upstream gave an answer worth showing
	outcomeBroken     = "broken"      // the upstream broke off after the client had seen a part
	outcomeClientGone = "client_gone" // the client left first
	outcomePanic      = "panic"
)

// exchange is everything known about one request. One goroutine owns it.
type exchange struct {
	live   *Live
	r      *http.Request
	id     string // the relay's own request id
	start  time.Time
	client string
	route  string // its path, without what the client chose of it

	body   *body
	msg    *messages.Request // what the body asks for, and gone with it: then it is an empty one
	stream bool              // it asks for a stream
	fast   bool              // and for fast mode
	model  string
	demand keypool.Demand
	named  bool // the client names the session

	own      bool   // the client's own credential goes to the provider, and nothing is judged
	steps    []step // what the request has tried
	first    [1]step
	further  int // steps beyond maxSteps
	routed   bool
	rule     string // that led to the upstreams
	strategy string
	home     bool // the conversation's home came first
	skipped  []router.Skip
	thinking []messages.Thinking // of the body; nil: not looked for yet
	stripped int                 // thinking blocks left out, because another vendor made them

	attempts  int
	waited    time.Duration
	provider  string
	keyID     string
	verdict   verdict
	outcome   string
	status    int
	committed bool      // the status has been sent
	extended  time.Time // when the write deadline was moved last
	firstByte time.Duration
	took      time.Duration // all of it; known at its end
	received  time.Duration // when the body was there, from the start
	upstream  time.Duration // spent in attempts until they could be judged
	usage     messages.Usage
	admitted  bool // it has a place among the requests at work
	partial   bool // usage of an answer that did not end
	quiet     bool // a probe: logged at debug
	span      trace.Span
}

func newExchange(live *Live, r *http.Request) *exchange {
	x := &exchange{live: live, r: r, msg: &nothing, id: newID(), start: time.Now(), outcome: outcomeRefused}
	x.steps = x.first[:0]
	return x
}

// nothing is what a request without a body asks for.
var nothing messages.Request

// newID returns a request id of the relay; the provider's begin with req_ alone. It is
// no secret: nobody may do anything for knowing it.
func newID() string {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], rand.Uint64())
	binary.LittleEndian.PutUint32(b[8:], rand.Uint32())
	return string(hex.AppendEncode([]byte("req_relay_"), b[:]))
}

// identify finds the client, or refuses.
func (x *exchange) identify(w http.ResponseWriter) bool {
	name, err := x.live.Clients.Identify(x.r.Header)
	x.client = name
	switch {
	case err == nil:
		x.own = x.client == "" && x.live.Passthrough && auth.Own(x.r.Header)
		return true
	case errors.Is(err, auth.ErrUnknownToken) && x.live.Passthrough && auth.Own(x.r.Header):
		x.own = true
		return true
	case errors.Is(err, auth.ErrAmbiguous):
		x.refuse(w, http.StatusBadRequest, messages.InvalidRequest, "more than one credential: send the relay's token once, in x-api-key or as Authorization: Bearer")
	default:
		// Clients would otherwise send a request with a wrong token ten times more.
		w.Header().Set("X-Should-Retry", "false")
		x.refuse(w, http.StatusUnauthorized, messages.Authentication, "the relay does not know this token: set ANTHROPIC_AUTH_TOKEN to a token of the relay's clients list")
	}
	return false
}

// read takes the whole body, within the cap and where there is room for it.
func (x *exchange) read(w http.ResponseWriter, held *room) bool {
	cfg := &x.live.Config
	in := newSteadyReader(x.r, x.start, http.NewResponseController(w), cfg)
	b, err := readBody(in, x.r.ContentLength, cfg.MaxBodyBytes, held, cfg.BodiesBytes)
	in.stop()
	x.body = b
	switch {
	case err == nil:
		x.received = time.Since(x.start)
		return true
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.refuse(w, http.StatusRequestTimeout, messages.InvalidRequest, "the request body did not arrive in time; send it again")
		return false
	case errors.Is(err, errNoRoom):
		x.release() // what has come of it makes room for others, and the rest is not waited for
		x.shed(w, shedBodies, "the relay holds as much of requests in memory as it is allowed")
	case errors.Is(err, errBodyTooLarge):
		x.refuse(w, http.StatusRequestEntityTooLarge, messages.RequestTooLarge, "the request body is larger than the relay accepts")
	default:
		x.refuse(w, http.StatusBadRequest, messages.InvalidRequest, "the request body ended early")
	}
	return false
}

// inspect reads what the relay must know of the body.
func (x *exchange) inspect(w http.ResponseWriter) bool {
	msg, err := messages.Inspect(x.body.bytes(), x.live.Seed)
	if err != nil {
		x.refuse(w, http.StatusBadRequest, messages.InvalidRequest, err.Error())
		return false
	}
	x.msg = &x.body.msg
	*x.msg = msg
	x.model = string(msg.Model)                                             // a copy: the body is given back before the record is written
	class := x.live.Classes.Of(legible(x.live.scrub.Load().clean(x.model))) // an unknown model's class is its name, and is logged
	x.demand = keypool.Demand{Class: class, Client: x.client, Arrived: x.start.Add(x.received)}
	if x.r.URL.Path == "/v1/messages/count_tokens" {
		x.demand.Class = keypool.ClassCountTokens
		return true
	}
	x.stream, x.fast = msg.Stream, msg.Fast
	x.demand.Model = x.model
	x.demand.Bytes = x.msg.Prefix.Bytes
	x.demand.MaxTokens = msg.MaxTokens
	x.demand.Conversation = x.conversation(class)
	x.demand.Prefix = marks(x.msg.Prefix.Marks())
	x.demand.OpenTools, x.demand.Tools = msg.OpenTools, msg.Tools
	x.demand.Stays = msg.OpenTools || msg.Container
	return true
}

// conversation identifies a conversation within its client, so that nobody can
// reach another client's home by guessing an id; within a model class, because the
// small requests that a coding agent makes to another model have another prompt;
// and by who asks, since subagents share the session but neither tools nor system.
// Where a client names no session, the beginning of the conversation is its name.
func (x *exchange) conversation(class string) uint64 {
	prefix := &x.msg.Prefix
	session, asks := messages.SessionID(x.r.Header, x.msg.UserID), prefix.Root
	if x.named = session != ""; !x.named {
		asks = prefix.Start
	}
	var buf [256]byte
	name := buf[:0]
	for _, part := range [...]string{x.client, class, session} {
		name = append(append(name, part...), 0) // no header value and no name of ours has a NUL
	}
	name = binary.LittleEndian.AppendUint64(name, asks)
	return max(1, xxh3.HashSeed(name, x.live.Seed))
}

// settles is the conversation where the upstream that serves it becomes its home:
// where it can be told from others and there is something to come back to: a cache, a
// container, the answers to tool calls. 0: anybody may serve the next turn.
func (x *exchange) settles() uint64 {
	if x.named || x.demand.Stays || len(x.demand.Prefix) > 0 {
		return x.demand.Conversation
	}
	return 0
}

// query is the request for the router.
func (x *exchange) query() *router.Query {
	return &router.Query{Model: x.model, Class: x.demand.Class, Client: x.client, Conversation: x.settles(), Demand: x.demand, Now: x.demand.Arrived}
}

// demandAt makes the demand that of the request at a candidate.
func (x *exchange) demandAt(c *router.Candidate) {
	x.demand.Class = x.classAt(c)
	if x.demand.Model != "" { // a call that generates
		x.demand.Model = c.Asks(x.model)
	}
}

// classAt is whose limits the request counts for at a candidate.
func (x *exchange) classAt(c *router.Candidate) string {
	if x.fast {
		return keypool.FastClass(c.Class)
	}
	return c.Class
}

// marks are the points of the prompt by which the pool knows what is cached.
func marks(points []messages.Mark) []keypool.Mark {
	if len(points) == 0 {
		return nil
	}
	m := make([]keypool.Mark, len(points))
	for i := range points {
		m[i] = keypool.Mark(points[i])
	}
	return m
}

// call is the request as the upstreams shall get it.
func (x *exchange) call() *provider.Call {
	c := &provider.Call{Method: x.r.Method, Path: x.r.URL.Path, RawQuery: x.r.URL.RawQuery, Header: x.r.Header, Own: x.own}
	if x.body != nil {
		c.Length = x.msg.Len()
		c.Body = x.newBody
	}
	return c
}

// newBody is a fresh reader of the body to send.
func (x *exchange) newBody() io.ReadCloser { return x.body.lend(x.msg.NewBody()) }

// clientGone reports whether the client has left.
func (x *exchange) clientGone() bool { return x.r.Context().Err() != nil }

// stopped reports whether the relay ends the request because it shuts down.
func (x *exchange) stopped() bool { return errors.Is(context.Cause(x.r.Context()), errStopped) }

// linger is how long a body is still read that nobody wants.
const linger = time.Second

// refuse answers with an error of the relay's own making. An HTTP/1.1 connection is
// closed where a body was not read: what it holds must not become a request. Of
// HTTP/2 that would end the others' requests, and curl loses the answer over it.
func (x *exchange) refuse(w http.ResponseWriter, status int, kind messages.ErrorType, message string) {
	x.status, x.outcome = status, outcomeRefused
	unread := x.body == nil && x.r.ContentLength != 0 || status == http.StatusRequestEntityTooLarge || status == http.StatusRequestTimeout
	if unread && x.r.ProtoMajor == 1 || x.body == nil && status == messages.StatusOverloaded {
		w.Header().Set("Connection", "close")
	}
	if unread {
		// The server reads on for a while, lest a reset overtakes the answer; a
		// client that sends nothing more must not hold the connection with it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(linger))
	}
	x.answerError(w, status, kind, message)
}

func (x *exchange) answerError(w http.ResponseWriter, status int, kind messages.ErrorType, message string) {
	x.expose(w.Header())
	x.committed = true
	x.extend(w, time.Now())
	messages.WriteError(w, status, kind, message, x.id)
}

// release gives the body back, at the latest when the client is shown an answer: no
// other will be asked for then. Transports that still read it keep it until they are
// done.
func (x *exchange) release() {
	if x.body == nil {
		return
	}
	x.body.release()
	x.body, x.thinking, x.msg = nil, nil, &nothing
}

// timeLeft is how much of its time the request has left.
func (x *exchange) timeLeft() time.Duration {
	return x.timeLeftAt(time.Now())
}

func (x *exchange) timeLeftAt(now time.Time) time.Duration {
	return x.live.Config.TotalTime - now.Sub(x.start)
}

// printable is what a client wrote, for the log: bounded, legible, and without known
// secrets, since tokens get pasted in the wrong place.
func (x *exchange) printable(s string) string { return within(128, x.live.scrub.Load().clean(s)) }

// within is the beginning of s, at most so many bytes of it, made legible.
func within(most int, s string) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return legible(s)
}

// legible is s without what moves a terminal or ends a line: encoders escape only what
// JSON demands, which leaves out C1 controls, DEL and the separators of Unicode.
func legible(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
