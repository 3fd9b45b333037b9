package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

// act does what an action asks for, between two records of the audit. Without the
// first it does nothing; where the second cannot be written the answer warns.
func (h *Handler) act(c *call, target string, params any, do func() (ActionResult, error)) {
	rec := Record{
		Phase: PhaseAsked, Action: c.route.action, Target: target, Params: params,
		Token: c.token, Source: c.source, RequestID: c.id,
	}
	if err := h.record(rec); err != nil {
		h.cfg.Log.Error().Err(err).Str("request_id", c.id).Str("action", rec.Action).Msg("audit cannot be written; action refused")
		h.refuse(c, http.StatusServiceUnavailable, "audit_unwritable", "nothing was done, because it cannot be recorded: "+err.Error())
		return
	}
	result, err := h.attempt(c, do)
	result.Action, result.Target, result.RequestID = rec.Action, target, c.id
	rec.Phase = PhaseDone
	if err != nil {
		rec.Phase, rec.Error = PhaseFailed, err.Error()
	}
	if unwritten := h.record(rec); unwritten != nil {
		result.Warning = "this is not recorded in the audit as " + rec.Phase + ": " + unwritten.Error()
		h.cfg.Log.Error().Err(unwritten).Str("request_id", c.id).Str("action", rec.Action).Str("phase", rec.Phase).Msg("audit cannot be written")
	}
	h.cfg.Log.Info().Str("request_id", c.id).Str("action", rec.Action).Str("target", h.relay.Scrub(target)).Str("phase", rec.Phase).Str("source", c.source).Msg("admin action")
	switch {
	case err == nil:
		h.answer(c, http.StatusOK, result)
	case errors.Is(err, keypool.ErrKeyNotFound):
		h.refuse(c, http.StatusNotFound, "not_found", noKey)
	default:
		h.refuse(c, http.StatusUnprocessableEntity, "failed", err.Error())
	}
}

// attempt makes an error of a panic, so that the audit gets its second record.
func (h *Handler) attempt(c *call, do func() (ActionResult, error)) (result ActionResult, err error) {
	defer func() {
		if v := recover(); v != nil {
			h.cfg.Log.Error().Str("request_id", c.id).Str("path", c.pattern()).Str("kind", fmt.Sprintf("%T", v)).Bytes("stack", debug.Stack()).Msg("admin action panicked")
			err = errors.New("something went wrong in the relay, which may have done a part of it; its log says where")
		}
	}()
	return do()
}

const (
	noKey      = "no provider has a key of this ID; GET /api/v1/keys lists them"
	noProvider = "there is no such provider; GET /api/v1/providers lists them"
)

func (h *Handler) keyOff(c *call) {
	h.key(c, h.relay.DisableKey, func(id, provider string) ActionResult {
		return ActionResult{Message: fmt.Sprintf("key %s of %s is off: it gets no new requests, those under way go on; a restart puts it on again", id, provider)}
	})
}

func (h *Handler) keyOn(c *call) {
	h.key(c, h.relay.EnableKey, func(id, provider string) ActionResult {
		return ActionResult{Message: fmt.Sprintf("key %s of %s is on; where the provider has refused it, release ends that", id, provider), SurvivesRestart: true}
	})
}

func (h *Handler) keyRelease(c *call) {
	release := func(up *router.Upstream, id string) error { return up.Pool.Release(id) }
	h.key(c, release, func(id, provider string) ActionResult {
		return ActionResult{Message: fmt.Sprintf("what kept key %s of %s out is forgotten, cool-downs of its organization too; what the provider says next counts as ever", id, provider), SurvivesRestart: true}
	})
}

// key does something to the one key of the path's ID.
func (h *Handler) key(c *call, do func(*router.Upstream, string) error, told func(id, provider string) ActionResult) {
	var body KeyAction
	if !h.offered(c, do != nil) || !h.body(c, &body) {
		return
	}
	id := c.vars["id"]
	var having []*router.Upstream
	for _, up := range h.relay.Upstreams() {
		named := body.Provider == "" || body.Provider == up.Provider.Name()
		if named && slices.ContainsFunc(up.Pool.Keys(), func(k keypool.KeyMetadata) bool { return k.ID == id }) {
			having = append(having, up)
		}
	}
	switch len(having) {
	case 0:
		h.refuse(c, http.StatusNotFound, "not_found", noKey)
	case 1:
		name := having[0].Provider.Name()
		h.act(c, name+"/"+id, body, func() (ActionResult, error) {
			if err := do(having[0], id); err != nil {
				return ActionResult{}, err
			}
			return told(id, name), nil
		})
	default:
		h.refuse(c, http.StatusConflict, "ambiguous", "more than one provider has this key: say which as {\"provider\": NAME}")
	}
}

func (h *Handler) providerDrain(c *call) {
	h.drain(c, true, "%s drains: it gets no new requests, those under way go on; a restart ends that")
}

func (h *Handler) providerOn(c *call) { h.drain(c, false, "%s gets requests") }

func (h *Handler) drain(c *call, draining bool, told string) {
	if !h.offered(c, h.relay.SetDraining != nil) || !h.body(c, &struct{}{}) {
		return
	}
	up := h.provider(c.vars["name"])
	if up == nil {
		h.refuse(c, http.StatusNotFound, "not_found", noProvider)
		return
	}
	name := up.Provider.Name()
	h.act(c, name, nil, func() (ActionResult, error) {
		h.relay.SetDraining(up, draining)
		return ActionResult{Message: fmt.Sprintf("provider "+told, name), SurvivesRestart: !draining}, nil
	})
}

// How long a breaker is held: where nothing is said, and at most.
const (
	defaultForce = 10 * time.Minute
	maxForce     = 24 * time.Hour
)

func (h *Handler) breakerForce(c *call) {
	var body BreakerForce
	if !h.offered(c, h.relay.ForceBreaker != nil) || !h.body(c, &body) {
		return
	}
	state, d, err := body.parse()
	if err != nil {
		h.refuse(c, http.StatusBadRequest, "invalid_request", err.Error())
		return
	}
	up := h.provider(body.Provider)
	if up == nil {
		h.refuse(c, http.StatusNotFound, "not_found", noProvider)
		return
	}
	name, of := up.Provider.Name(), "the breakers of every class"
	target := name
	if body.Class != "" {
		of, target = "the breaker of class "+body.Class, name+"/"+body.Class
	}
	h.act(c, target, body, func() (ActionResult, error) {
		seen := body.Class == "" || slices.ContainsFunc(up.Lanes(), func(l *router.Lane) bool { return l.Class == body.Class })
		h.relay.ForceBreaker(up, body.Class, state, d)
		if !seen { // a class may be any model's name
			of += ", of which no request has come lately,"
		}
		if d == 0 {
			return ActionResult{Message: fmt.Sprintf("%s at %s: what was said before is taken back", of, name), SurvivesRestart: true}, nil
		}
		told := fmt.Sprintf("%s at %s: held %s for %s, at most until a restart", of, name, state, d)
		if state == health.Open {
			told += "; a request that nothing else can serve may still try it once, where draining the provider would keep it away"
		}
		return ActionResult{Message: told, Expires: time.Now().Add(d).UTC()}, nil
	})
}

// parse returns what to hold, and for how long; 0: take it back.
func (b *BreakerForce) parse() (health.State, time.Duration, error) {
	if len(b.Class) > 200 || strings.ContainsFunc(b.Class, unicode.IsControl) {
		return 0, 0, errors.New("class is not a class; GET /api/v1/providers lists those seen lately")
	}
	d := defaultForce
	if b.For != "" {
		var err error
		if d, err = time.ParseDuration(b.For); err != nil || d < time.Second || d > maxForce {
			return 0, 0, errors.New("for is not a duration from 1s to 24h, such as 10m")
		}
	}
	switch b.State {
	case "open":
		return health.Open, d, nil
	case "closed":
		return health.Closed, d, nil
	case "auto":
		if b.For != "" {
			return 0, 0, errors.New("state auto takes no for: it ends what was said before")
		}
		return health.Closed, 0, nil
	}
	return 0, 0, errors.New("state is not open, closed or auto")
}

func (h *Handler) reload(c *call) {
	if !h.offered(c, h.relay.Reload != nil) || !h.body(c, &struct{}{}) {
		return
	}
	h.act(c, "", nil, func() (ActionResult, error) {
		// Whoever asked may leave: half a reload helps nobody.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.r.Context()), actTimeout)
		defer cancel()
		did, err := h.relay.Reload(ctx)
		if err != nil {
			return ActionResult{}, fmt.Errorf("the configuration in force stays as it was: %w", err)
		}
		did.Changed, did.NeedsRestart = filled(did.Changed), filled(did.NeedsRestart)
		return ActionResult{Message: reloaded(did), SurvivesRestart: true, Reload: &did}, nil
	})
}

func reloaded(did Reload) string {
	text := "the configuration is in force"
	if len(did.Changed) == 0 {
		text += "; nothing in it had changed"
	}
	if len(did.NeedsRestart) > 0 {
		text += "; restart the relay for " + strings.Join(did.NeedsRestart, ", ")
	}
	return text
}

// filled makes JSON's [] of nothing.
func filled[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
