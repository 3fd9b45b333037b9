package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/router"
)

// failure gathers why a request got no answer worth showing. Attempts may fail
// in different ways; write picks the one that tells the client most.
type failure struct {
	dry        map[place]time.Time // when the first key there has room again, where one is merely out of room
	overloaded *reply
	broken     *reply // the last 5xx, timeout or connection failure
	forbidden  *reply
	noModel    *reply
	mapped     bool // a model that no provider knows is not the one that the client asked for
	spent      bool
	off        string         // provider whose keys an operator has switched off, all that it does not refuse
	oversized  map[place]bool // where no key can ever hold the prompt
	largest    int            // of their limits, input tokens a minute
	tooLong    string         // says so to the client

	unreachable error // no rule leads the model anywhere
	draining    bool  // an operator keeps requests from all providers of the model
}

// reply is an error for the client: an upstream's own, or one of ours where body is nil.
type reply struct {
	status  int
	header  http.Header
	body    []byte
	message string
}

// dryWithin is how soon a dry pool must recover to be told rather than what else
// went wrong.
const dryWithin = time.Hour

// refused notes that the pool at a place had no key to offer.
func (f *failure) refused(at place, err error) {
	var exhausted *keypool.ExhaustedError
	if !errors.As(err, &exhausted) {
		return
	}
	f.off = ""
	if exhausted.Left > 0 {
		f.dryFor(at, exhausted.RetryAfter)
	} else if exhausted.Reason == keypool.ReasonSpent {
		f.spent = true
	} else if exhausted.Off > 0 {
		f.off = exhausted.Provider
	}
}

// place is a provider and one of its classes, each with limits of its own.
type place struct{ provider, class string }

func placeOf(c *router.Candidate) place { return place{c.Upstream.Provider.Name(), c.Class} }

// dryFor notes how long there is no room, the true time.
func (f *failure) dryFor(at place, d time.Duration) {
	until := time.Now().Add(max(d, time.Second))
	if was, ok := f.dry[at]; ok && was.Before(until) {
		return
	}
	if f.dry == nil {
		f.dry = map[place]time.Time{}
	}
	f.dry[at] = until
}

// recovers is how long until there is room again where the prompt can be held;
// 0: none is merely out of room.
func (f *failure) recovers(now time.Time) (soonest time.Duration) {
	for at, until := range f.dry {
		if f.oversized[at] {
			continue
		}
		if d := max(until.Sub(now), time.Second); soonest == 0 || d < soonest {
			soonest = d
		}
	}
	return soonest
}

// note gathers a failed attempt at a place.
func (f *failure) note(at place, x *exchange, a *answer) {
	r := &reply{status: a.status, body: a.body}
	if a.resp != nil {
		r.header = a.resp.Header
	}
	said, shaped := messages.ParseError(a.body)
	switch a.verdict {
	case limited:
		if tokens, limit, oversized := a.lease.Oversized(); oversized {
			if f.oversized == nil {
				f.oversized = map[place]bool{}
			}
			f.oversized[at] = true
			if limit >= f.largest {
				f.largest = limit
				f.tooLong = fmt.Sprintf("the prompt is about %d tokens, and the largest limit of a key is %d input tokens a minute: no wait helps; shorten the prompt (compact the conversation) or add a key with a larger limit", tokens, limit)
			}
			return
		}
		f.dryFor(at, a.dryFor())
	case spent:
		f.spent = true
	case overloaded:
		r.status, r.message = messages.StatusOverloaded, "provider "+x.provider+" is overloaded"
		shaped = said.Error.Type == messages.Overloaded // a 503 may say something else
		f.overloaded = r
	case failed:
		if r.status < 500 {
			r.status, shaped = http.StatusBadGateway, false
		}
		r.message = "provider " + x.provider + " sent an answer that cannot be used"
		f.broken = r
	case timedOut:
		r.status, r.message = http.StatusGatewayTimeout, "provider "+x.provider+" did not answer in time"
		f.broken = r
	case lost:
		r.status, r.message = http.StatusBadGateway, "provider "+x.provider+" closed the connection before it answered"
		f.broken = r
	case unreachable:
		r.status, r.message = http.StatusBadGateway, "provider "+x.provider+" cannot be reached"
		f.broken = r
	case forbidden:
		r.message = "provider " + x.provider + " refuses this request"
		f.forbidden = r
	case noModel:
		if !shaped { // a vendor's 400, which clients would take for a mistake that they can mend
			r.status = http.StatusNotFound
		}
		r.message = "provider " + x.provider + " does not know this model"
		f.noModel = r
		f.mapped = f.mapped || a.model != x.model
	}
	if !shaped { // a page, another vendor's error, a part of an answer
		r.message += x.saidIn(a.body)
		r.body = nil
	}
}

// maxSaid is how much of a vendor's message is shown, in bytes.
const maxSaid = 512

// saidIn is a vendor's message, to follow the relay's own words: one line, without known
// secrets, which go before anything is cut. It is "" where body has none, or a page in its
// place.
func (x *exchange) saidIn(body []byte) string {
	e, _ := messages.ParseVendorError(body)
	said := strings.Join(strings.Fields(x.live.scrub.Load().clean(e.Message)), " ")
	if said == "" || markup.MatchString(said) {
		return ""
	}
	return ": " + within(maxSaid, said)
}

var markup = regexp.MustCompile(`(?i)^<|<!doctype|<html|<body`)

// write answers with the first of these that applies.
func (f *failure) write(w http.ResponseWriter, x *exchange) {
	x.outcome = outcomeFailed
	dry := f.recovers(time.Now())
	switch {
	case f.unreachable != nil:
		x.outcome = outcomeRefused
		x.writeError(w, http.StatusNotFound, messages.NotFound, f.unreachable.Error())
	case f.draining:
		x.writeError(w, messages.StatusOverloaded, messages.Overloaded, "all providers of this model are being drained by the relay's operator; send the request again later")
	case dry > 0 && dry <= dryWithin:
		x.writeDry(w, dry)
	case f.overloaded != nil:
		x.writeReply(w, f.overloaded)
	case f.broken != nil:
		x.writeReply(w, f.broken)
	case len(f.oversized) > 0: // nobody else failed in a way that ends
		w.Header().Set("X-Should-Retry", "false")
		x.writeError(w, http.StatusTooManyRequests, messages.RateLimit, f.tooLong)
	case f.forbidden != nil:
		x.writeReply(w, f.forbidden)
	case f.noModel != nil:
		if !f.mapped { // the client's mistake, as any other that a provider tells it
			x.outcome = outcomeServed
		}
		x.writeReply(w, f.noModel)
	case dry > 0:
		x.writeDry(w, dry)
	case f.spent:
		w.Header().Set("X-Should-Retry", "false")
		x.writeError(w, http.StatusTooManyRequests, messages.Billing, "spend limit reached: the accounts of all usable keys have nothing left to spend; add credit or raise the limit at the provider")
	case f.off != "":
		w.Header().Set("X-Should-Retry", "false")
		x.writeError(w, http.StatusBadGateway, messages.APIError, "all keys of provider "+f.off+" that could serve this are switched off; the relay's operator puts them on again with `cc-relay key on`")
	default:
		w.Header().Set("X-Should-Retry", "false")
		x.writeError(w, http.StatusBadGateway, messages.APIError, "no usable credential for "+x.asked()+": check the keys in the relay's configuration")
	}
}

// writeDry says when the pool can serve this request.
func (x *exchange) writeDry(w http.ResponseWriter, d time.Duration) {
	w.Header().Set("Retry-After", retryAfter(d))
	x.writeError(w, http.StatusTooManyRequests, messages.RateLimit, "all keys of the pool are at their limits; retry after the time in retry-after")
}

// asked names the provider a request was meant for.
func (x *exchange) asked() string {
	if ups := x.live.Router.Upstreams(); x.provider == "" && len(ups) > 0 {
		return "provider " + ups[0].Provider.Name()
	}
	return "provider " + x.provider
}

// writeError writes an error of the relay about a request that was let in.
func (x *exchange) writeError(w http.ResponseWriter, status int, kind messages.ErrorType, message string) {
	x.status, x.committed = status, true
	x.expose(w.Header())
	x.extend(w, time.Now())
	messages.WriteError(w, status, kind, message, x.id)
}

// writeReply passes an upstream's error on: its own words where they are JSON,
// since clients act on the wording, and ours where they are not.
func (x *exchange) writeReply(w http.ResponseWriter, r *reply) {
	if r.header != nil {
		x.showHeaders(w.Header(), r.header)
	}
	if r.body == nil || !json.Valid(r.body) {
		message := r.message
		if message == "" {
			message = "the provider sent an error that is not JSON"
		}
		id := w.Header().Get("Request-Id")
		if id == "" {
			id = x.id
		}
		x.status, x.committed = r.status, true
		x.expose(w.Header())
		x.extend(w, time.Now())
		messages.WriteError(w, r.status, messages.TypeOfStatus(r.status), message, id)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	x.writeBody(w, r.status, []byte(x.live.scrub.Load().clean(string(r.body))))
}
