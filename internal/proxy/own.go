package proxy

import (
	"encoding/json"
	"net/http"

	"cc-relay/internal/messages"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
)

// answerOwn sends a request with the client's own credential to the first upstream of
// Anthropic's, once. What comes back is the client's, good or bad, and teaches the
// pool nothing.
func (h *Handler) answerOwn(w http.ResponseWriter, x *exchange) (*answer, *failure) {
	failed := &failure{}
	for _, up := range x.live.Router.Upstreams() {
		if up.Origin != provider.OriginAnthropic || up.Draining() {
			continue
		}
		at := walk{plan: []router.Candidate{{Target: router.Target{Upstream: up}}}, over: true}
		a := h.attempt(w, x, &at, lease{})
		switch {
		case a.verdict == clientGone:
			a.settleLeft(x)
			return nil, failed
		case a.verdict == served:
			return a, nil
		case a.passes():
			a.body = []byte(x.live.scrub.Load().clean(string(a.body)))
			a.status, a.verdict = a.resp.StatusCode, served // for the client; the record keeps what it was
			return a, nil
		case a.resp != nil && a.resp.StatusCode >= 400:
			a.verdict = clientError // in words of the relay, but with its status and headers
			return a, nil
		}
		failed.note(place{x.provider, x.demand.Class}, x, a)
		a.abandon(x)
		return nil, failed
	}
	return nil, failed
}

// passes reports whether a bad answer can be shown as it came, of whatever kind it is:
// an error, also one with status 200, that has been read whole.
func (a *answer) passes() bool {
	if a.resp == nil || a.readErr != nil || len(a.body) == 0 || len(a.body) == maxErrorBody {
		return false
	}
	if n := a.resp.ContentLength; n >= 0 && n != int64(len(a.body)) {
		return false
	}
	if a.resp.StatusCode == http.StatusOK {
		_, said := messages.ParseError(a.body)
		return said
	}
	return a.resp.StatusCode >= 400 && (mediaType(a.resp.Header) != "application/json" || json.Valid(a.body))
}
