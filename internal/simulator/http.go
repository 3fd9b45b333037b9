package simulator

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"cc-relay/internal/messages"
)

// maxBody is the largest request body: https://platform.claude.com/docs/en/api/overview.
const maxBody = 32 << 20

// exchange is one request on its way; one goroutine owns it.
type exchange struct {
	sim   *Simulator
	w     http.ResponseWriter
	r     *http.Request
	start time.Time
	id    string // request-id
	key   *credential
	body  []byte
	fault *Fault // nil: none acts
	rec   *Record
}

// ServeHTTP answers POST /v1/messages and /v1/messages/count_tokens, GET
// /v1/models and /v1/models/{id}, HEAD /api/hello; anything else is 404. A fault
// that breaks the connection panics with http.ErrAbortHandler, as net/http wants.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{sim: s, w: w, r: r, start: time.Now(), id: newID("req_")}
	x.rec = &Record{Time: x.start, Method: r.Method, Target: r.URL.RequestURI(), Header: r.Header.Clone(), RequestID: x.id}
	s.remember(x.rec)
	defer func() {
		s.note(func() { x.rec.Duration, x.rec.Done = time.Since(x.start), true })
	}()
	w.Header().Set("Request-Id", x.id)
	path, model := r.URL.Path, ""
	if id, ok := strings.CutPrefix(path, "/v1/models/"); ok && id != "" {
		path, model = "/v1/models/{id}", id
	}
	switch r.Method + " " + path {
	case "HEAD /api/hello":
		x.send(http.StatusOK, nil)
	case "POST /v1/messages":
		x.withKey(x.messages)
	case "POST /v1/messages/count_tokens":
		x.withKey(x.countTokens)
	case "GET /v1/models":
		x.withKey(x.listModels)
	case "GET /v1/models/{id}":
		x.withKey(func() { x.getModel(model) })
	default:
		x.fail(http.StatusNotFound, "there is no such path, or not for this method")
	}
}

// withKey does what every path with a key has in common, in the API's order:
// credential, script, version, body. The script comes early: a provider in trouble
// does not look at the body first.
func (x *exchange) withKey(serve func()) {
	x.key = x.authenticate()
	if x.key == nil || x.sim.isDead(x.key, x.start) {
		x.fail(http.StatusUnauthorized, "invalid API key")
		return
	}
	x.sim.note(func() { x.rec.Key, x.rec.Org, x.rec.Workspace = x.key.name, x.key.org, x.key.workspace })
	if err := x.readBody(); err != nil {
		x.unreadable(err)
		return
	}
	x.fault = x.sim.faultFor(x.key, x.r.URL.Path, x.start)
	if x.fault != nil && x.fault.Kind.answers() {
		x.playFault()
		return
	}
	x.identify()
	if x.r.Header.Get("Anthropic-Version") == "" {
		x.fail(http.StatusBadRequest, "anthropic-version: header is required")
		return
	}
	serve()
}

// authenticate finds the key in x-api-key or, without that header, as Bearer.
func (x *exchange) authenticate() *credential {
	if key := x.r.Header.Get("X-Api-Key"); key != "" {
		return x.sim.keys[key]
	}
	scheme, key, _ := strings.Cut(x.r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		return nil
	}
	return x.sim.keys[key]
}

// identify names organization and workspace, as every answer to a known key does.
func (x *exchange) identify() {
	x.w.Header().Set("Anthropic-Organization-Id", x.key.org)
	x.w.Header().Set("Anthropic-Workspace-Id", x.key.workspace)
}

func (x *exchange) readBody() error {
	var body bytes.Buffer
	if n := x.r.ContentLength; n > 0 && n < 1<<20 { // a larger claim has to be proven
		body.Grow(int(n) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(http.MaxBytesReader(x.w, x.r.Body, maxBody)); err != nil {
		return err
	}
	x.body = body.Bytes()
	if x.sim.cfg.KeepBodies {
		x.sim.note(func() { x.rec.Body = x.body })
	}
	return nil
}

func (x *exchange) unreadable(err error) {
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		x.fail(http.StatusRequestEntityTooLarge, "the request body is larger than 32 MB")
		return
	}
	x.sim.note(func() { x.rec.ClientLeft = true })
	x.fail(http.StatusBadRequest, "the request body ended early")
}

func (x *exchange) messages() {
	req, err := parseRequest(x.body, x.sim.seed)
	if err != nil {
		x.fail(http.StatusBadRequest, err.Error())
		return
	}
	if req.MaxTokens < 0 {
		x.fail(http.StatusBadRequest, "max_tokens: field is required")
		return
	}
	if !x.serves(req.Model) {
		return
	}
	req.Key, req.Org, req.Workspace, req.Header = x.key.name, x.key.org, x.key.workspace, x.rec.Header
	call, err := x.sim.core.Admit(time.Now(), Demand{
		Org: x.key.org, Workspace: x.key.workspace, Model: req.Model, Blocks: req.blocks, MaxTokens: req.MaxTokens, Fast: req.Fast,
	})
	if err != nil {
		x.refuse(err)
		return
	}
	call.Levels().SetHeaders(x.w.Header())
	x.answer(req, call)
}

func (x *exchange) countTokens() {
	req, err := parseRequest(x.body, x.sim.seed)
	if err != nil {
		x.fail(http.StatusBadRequest, err.Error())
		return
	}
	if !x.serves(req.Model) {
		return
	}
	levels, err := x.sim.core.Count(time.Now(), x.key.org)
	if err != nil {
		x.refuse(err)
		return
	}
	levels.SetHeaders(x.w.Header())
	x.sendJSON(fmt.Appendf(nil, `{"input_tokens":%d}`, req.promptTokens()))
}

// serves answers 404 itself when the model is none of ours.
func (x *exchange) serves(model string) bool {
	x.sim.note(func() { x.rec.Model = model })
	known := slices.ContainsFunc(x.sim.models, func(id string) bool { return answersTo(id, model) })
	if len(x.sim.cfg.Models) == 0 {
		known = strings.HasPrefix(model, "claude-")
	}
	if !known {
		x.fail(http.StatusNotFound, "model: "+model)
	}
	return known
}

// refuse answers a genuine 429, with the levels that led to it.
func (x *exchange) refuse(err error) {
	if refused := (*Refused)(nil); errors.As(err, &refused) {
		refused.Levels.SetHeaders(x.w.Header())
		x.w.Header().Set("Retry-After", strconv.Itoa(int(refused.RetryAfter/time.Second)))
		x.fail(http.StatusTooManyRequests, err.Error())
		return
	}
	x.fail(http.StatusInternalServerError, err.Error())
}

func (x *exchange) fail(status int, message string) {
	x.status(status)
	messages.WriteError(x.w, status, messages.TypeOfStatus(status), message, x.id)
}

// send writes a whole answer with its length.
func (x *exchange) send(status int, body []byte) {
	x.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	x.status(status)
	x.w.WriteHeader(status)
	if len(body) == 0 { // of a status that forbids a body, too
		return
	}
	if _, err := x.w.Write(body); err != nil {
		x.left()
	}
}

func (x *exchange) sendJSON(body []byte) {
	x.w.Header().Set("Content-Type", "application/json")
	x.send(http.StatusOK, body)
}

// status notes what is about to be sent, and dates it.
func (x *exchange) status(status int) {
	x.w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	x.sim.note(func() { x.rec.Status = status })
}

func (x *exchange) left() {
	x.sim.note(func() { x.rec.ClientLeft = true })
}

// wait pauses for d, which may be 0, or until the client leaves; it reports whether
// the client is still there.
func (x *exchange) wait(d time.Duration) bool {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-x.r.Context().Done():
		}
	}
	if x.r.Context().Err() != nil {
		x.left()
		return false
	}
	return true
}

// newID is an identifier in the API's form: a prefix and 24 letters and digits.
func newID(prefix string) string { return prefix + rand.Text()[:24] }
