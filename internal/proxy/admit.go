package proxy

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"cc-relay/internal/messages"
)

// Why requests are shed, in the metrics.
const (
	shedRequests    = "requests"
	shedBodies      = "bodies"
	shedConnections = "connections"
)

// room counts something that there is only so much of. It is safe for concurrent use.
type room struct{ taken atomic.Int64 }

// take takes n of most, or nothing, for who has taken own already. What is larger than
// most alone is let in where it is alone: else it would be told for ever to come again.
func (r *room) take(n, own, most int64) bool {
	if now := r.taken.Add(n); now > most && now != n+own {
		r.taken.Add(-n)
		return false
	}
	return true
}

func (r *room) give(n int64) { r.taken.Add(-n) }

// crowdedKey marks the context of connections beyond the bound.
type crowdedKey struct{}

// Crowded returns the context of a connection beyond the bound of connections, whose
// client is told so: its work is refused, a probe gets its answer, and after one
// request it is closed.
func Crowded(ctx context.Context) context.Context {
	return context.WithValue(ctx, crowdedKey{}, true)
}

// admit takes a place among the requests at work, which leave gives back.
func (h *Handler) admit(w http.ResponseWriter, x *exchange) bool {
	if !h.work.take(1, 0, x.live.Config.Requests) {
		x.shed(w, shedRequests, "the relay has as many requests at work as it is allowed")
		return false
	}
	x.admitted = true
	return true
}

func (h *Handler) leave(x *exchange) {
	if x.admitted {
		h.work.give(1)
	}
}

// Retry-after of what is shed, in seconds: soon, for places become free all the time,
// and not for all at once.
const (
	soonest = 1
	latest  = 3
)

// keepBelow is up to where the body of a request that is shed is read, which costs
// less than another connection.
const keepBelow = 64 << 10

// shed refuses a request to protect those that run: before its body is read, and with
// a word on when to come again.
func (x *exchange) shed(w http.ResponseWriter, reason, message string) {
	x.live.Metrics.Shed(reason)
	w.Header().Set("Retry-After", strconv.Itoa(soonest+rand.IntN(latest-soonest+1)))
	if reason == shedRequests && 0 <= x.r.ContentLength && x.r.ContentLength <= keepBelow {
		x.status, x.outcome = messages.StatusOverloaded, outcomeRefused
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(linger)) // the server reads the body
		x.answerError(w, messages.StatusOverloaded, messages.Overloaded, message+"; send the request again")
		return
	}
	x.refuse(w, messages.StatusOverloaded, messages.Overloaded, message+"; send the request again")
}
