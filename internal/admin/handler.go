package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
	"cc-relay/internal/state"
)

// Config is what a handler is made of.
type Config struct {
	// Dir holds the tokens, admin.token and viewer.token, and audit.log. Required.
	Dir *state.Dir
	// AllowedHosts are the names, without a port, that a request may be addressed to
	// besides IP addresses and localhost. On a unix socket every name may. See also
	// SetAllowedHosts.
	AllowedHosts []string
	// Pprof serves /debug/pprof/ to the admin's token.
	Pprof bool
	// Log is told of actions and of refused credentials. The zero Logger is silent.
	Log zerolog.Logger
	// Relay is what is looked at and acted on.
	Relay Relay
}

// Relay is the relay as the admin sees it. The functions may be called concurrently;
// what is nil is not offered: its paths are 404, and its numbers 0.
type Relay struct {
	Version   string
	StartedAt time.Time

	// Upstreams are those in force, in configured order. Required.
	Upstreams func() []*router.Upstream

	// DisableKey takes a key out, EnableKey takes that back.
	DisableKey, EnableKey func(up *router.Upstream, keyID string) error
	Draining              func(up *router.Upstream) bool
	SetDraining           func(up *router.Upstream, draining bool)
	// ForceBreaker holds the breaker of a class, "" = of every class, for d. d = 0 takes
	// an earlier word back, whatever the state.
	ForceBreaker func(up *router.Upstream, class string, state health.State, d time.Duration)
	// Reserved is what requests in flight hold of a key for a class.
	Reserved func(key *keypool.KeyMetadata) Tokens

	Stopping   func() bool // the relay shuts down and takes no new work
	Totals     func() Totals
	LastReload func() *LastReload // nil: there was none
	// Reload reads the configuration again. An error means that nothing changed.
	Reload func(context.Context) (Reload, error)

	// Requests are the latest, at most limit. Explain is what is known of one.
	Requests func(limit int) any
	Explain  func(id string) (any, bool)
	// DryRun says where a request would go. An error is the caller's fault.
	DryRun func(context.Context, DryRunRequest) (any, error)

	// Config is the configuration in force as YAML, without secrets.
	Config     func() ([]byte, error)
	ConfigDiff func(context.Context) (ConfigDiff, error)
	Metrics    http.Handler

	// Scrub takes known secrets out of text: out of every answer, event and record of
	// the audit, after everything else that keeps them away.
	Scrub func(string) string
}

// Bounds of requests and of the time they take.
const (
	maxBody      = 64 << 10
	maxPath      = 2 << 10
	readTimeout  = 10 * time.Second
	writeTimeout = 10 * time.Second
	actTimeout   = 30 * time.Second
)

// Handler serves the admin listener. Create it with [New], and end it with Close.
type Handler struct {
	cfg      Config
	relay    Relay
	tokens   atomic.Pointer[tokens]
	tokenKey [sha256.Size]byte // random; the same for all tokens, so that a reload sees whether they changed
	hosts    atomic.Pointer[[]string]
	throttle *throttle
	cross    *http.CrossOriginProtection
	hub      *hub
}

// New returns a handler. It makes the tokens at first use. An error means that there
// must be no admin listener: without a token that can be trusted it is never open.
func New(cfg Config) (*Handler, error) {
	if cfg.Dir == nil || cfg.Relay.Upstreams == nil {
		return nil, errors.New("admin: no state directory, or no relay")
	}
	if cfg.Relay.Scrub == nil {
		cfg.Relay.Scrub = func(text string) string { return text }
	}
	h := &Handler{
		cfg: cfg, relay: cfg.Relay, throttle: newThrottle(), cross: http.NewCrossOriginProtection(),
	}
	_, _ = rand.Read(h.tokenKey[:]) // never fails
	h.hub = newHub(h.look, h.encode)
	h.SetAllowedHosts(cfg.AllowedHosts)
	if err := h.ReadTokens(); err != nil {
		return nil, err
	}
	return h, nil
}

// SetAllowedHosts replaces Config.AllowedHosts, for a reload.
func (h *Handler) SetAllowedHosts(hosts []string) {
	hosts = slices.Clone(hosts)
	h.hosts.Store(&hosts)
}

// ReadTokens reads the tokens' files again, for a reload: one that was deleted is made
// anew. Where the tokens are others than before, event streams end. After an error
// nobody is let in until it succeeds.
func (h *Handler) ReadTokens() error {
	next, err := loadTokens(h.cfg.Dir, h.tokenKey)
	if old := h.tokens.Swap(next); old != nil && (next == nil || *old != *next) {
		h.hub.drop()
	}
	if err != nil {
		return fmt.Errorf("admin: nobody is let in: %w", err)
	}
	return nil
}

// Publish tells an event to those who listen: EventReload, EventRequest or EventAlert.
// It never waits, and without a listener it costs next to nothing.
func (h *Handler) Publish(kind string, data any) { h.hub.publish(kind, data) }

// Listening reports whether anybody listens to events.
func (h *Handler) Listening() bool { return h.hub.listening() }

// Close ends all event streams and refuses new ones. Other requests are served on.
func (h *Handler) Close() { h.hub.close() }

// call is one request.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	rc     *http.ResponseController
	id     string // of the request, in the audit and the answer
	source string // address it came from
	token  string // whose it is: tokenAdmin or tokenViewer
	route  *route
	vars   map[string]string // what stands for the parts in braces
}

// ServeHTTP is the whole path of a request: where it is addressed to, which page sent
// it, whose token it has, and only then what it wants.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: w, r: r, rc: http.NewResponseController(w), id: rand.Text(), source: sourceOf(r)}
	defer h.recovered(c)
	_ = c.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // a writer without deadlines is a test's
	if r.ContentLength != 0 {                               // also where it is refused: the server reads on then
		_ = c.rc.SetReadDeadline(time.Now().Add(readTimeout))
	}
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Cc-Relay-Request-Id", c.id)

	if !h.addressed(c) || !h.sameOrigin(c) {
		return
	}
	var methods []string
	c.route, c.vars, methods = find(r.Method, r.URL)
	if (c.route == nil || c.route.access != open) && !h.identify(c) {
		return
	}
	switch {
	case len(methods) == 0:
		h.refuse(c, http.StatusNotFound, "not_found", "there is no such path; GET /api/v1/openapi.json lists those there are")
	case c.route == nil:
		header.Set("Allow", strings.Join(methods, ", "))
		h.refuse(c, http.StatusMethodNotAllowed, "method_not_allowed", "use "+strings.Join(methods, " or ")+" for this path")
	case !c.route.access.allows(c.token):
		h.refuse(c, http.StatusForbidden, "forbidden", "this token may only look; use the one in "+adminToken)
	default:
		c.route.serve(h, c)
	}
}

// allows reports whether a token of this kind may use a route of this access.
func (a access) allows(token string) bool {
	switch a {
	case open:
		return true
	case reader:
		return token == tokenViewer || token == tokenAdmin
	case actor:
		return token == tokenAdmin
	}
	return false
}

// find returns the route of a method and a path, what stands for the path's parts in
// braces, and the methods that the path has: none where there is no such path.
func find(method string, u *url.URL) (*route, map[string]string, []string) {
	var methods []string
	var found *route
	var vars map[string]string
	for i := range routes {
		v, ok := match(routes[i].path, u.EscapedPath())
		if !ok {
			continue
		}
		methods = append(methods, routes[i].method)
		if routes[i].method == method {
			found, vars = &routes[i], v
		}
	}
	return found, vars, methods
}

// match compares a path as it was sent, so that no two spellings are one path.
func match(pattern, path string) (map[string]string, bool) {
	if len(path) > maxPath {
		return nil, false
	}
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil, false
	}
	var vars map[string]string
	for i, w := range want {
		if !strings.HasPrefix(w, "{") {
			if w != got[i] {
				return nil, false
			}
			continue
		}
		value, err := url.PathUnescape(got[i])
		if err != nil || value == "" {
			return nil, false
		}
		if vars == nil {
			vars = make(map[string]string, 1)
		}
		vars[strings.Trim(w, "{}")] = value
	}
	return vars, true
}

// recovered answers for a handler that panicked. What it panicked with stays out of
// the log: nobody knows what it holds.
func (h *Handler) recovered(c *call) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	h.cfg.Log.Error().Str("request_id", c.id).Str("path", c.pattern()).Str("kind", fmt.Sprintf("%T", v)).Bytes("stack", debug.Stack()).Msg("admin request panicked")
	h.refuse(c, http.StatusInternalServerError, "failed", "something went wrong in the relay; its log says where")
}

func (c *call) pattern() string {
	if c.route == nil {
		return ""
	}
	return c.route.path
}

// body decodes the request's JSON body strictly; without a body, into stays as it is.
// It answers false after it has refused the request.
func (h *Handler) body(c *call, into any) bool {
	if c.r.ContentLength == 0 {
		return true
	}
	if kind, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		h.refuse(c, http.StatusUnsupportedMediaType, "unsupported_media_type", "send the body as Content-Type: application/json")
		return false
	}
	dec := json.NewDecoder(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			_ = c.rc.SetReadDeadline(time.Time{}) // what follows may take longer
			return true
		}
		if err == nil {
			err = errors.New("more than one JSON value")
		}
	} else if errors.Is(err, io.EOF) {
		return true // chunked, and nothing came
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		h.refuse(c, http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body is larger than %d bytes", maxBody))
		return false
	}
	h.refuse(c, http.StatusBadRequest, "invalid_request", "the body is not what this path takes: "+strings.TrimPrefix(err.Error(), "json: ")+"; see GET /api/v1/openapi.json")
	return false
}

// answer sends v as JSON.
func (h *Handler) answer(c *call, status int, v any) {
	data, err := h.encode(v)
	if err != nil {
		h.cfg.Log.Error().Err(err).Str("request_id", c.id).Str("path", c.pattern()).Msg("admin answer cannot be written as JSON")
		status, data = http.StatusInternalServerError, []byte(`{"error":{"code":"failed","message":"the answer cannot be written as JSON; this is a fault of the relay"}}`)
	}
	_ = c.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // what came before has taken its own time
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_, _ = c.w.Write(append(data, '\n')) // a client that left is not told
}

// encode is JSON without known secrets.
func (h *Handler) encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return []byte(h.relay.Scrub(string(data))), nil
}

// refuse sends an error; its message says what to do.
func (h *Handler) refuse(c *call, status int, code, message string) {
	h.answer(c, status, ErrorBody{ErrorDetail{Code: code, Message: message}})
}

// offered refuses a path whose function this relay does not have.
func (h *Handler) offered(c *call, there bool) bool {
	if !there {
		h.refuse(c, http.StatusNotFound, "not_found", "this relay does not offer it, or it is turned off in the configuration")
	}
	return there
}

// provider finds an upstream by name.
func (h *Handler) provider(name string) *router.Upstream {
	ups := h.relay.Upstreams()
	if i := slices.IndexFunc(ups, func(up *router.Upstream) bool { return up.Provider.Name() == name }); i >= 0 {
		return ups[i]
	}
	return nil
}
