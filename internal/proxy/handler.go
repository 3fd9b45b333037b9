// Package proxy is the way of a request: who asks, which key and upstream serve,
// what the client gets to see, what it cost. It is the only package that talks
// to clients of the Messages API; how keys are chosen and where upstreams are
// belongs to keypool and router.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/metrics"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
	"cc-relay/internal/trace"
)

// Config is what the handler itself can be told.
type Config struct {
	// MaxBodyBytes bounds a request body; 0 means 32 MiB, the API's own limit.
	MaxBodyBytes int64
	// WriteTimeout bounds one write to a client; 0 means 30 s.
	WriteTimeout time.Duration
	// BodyTimeout is the longest silence of a client in the middle of its body; 0
	// means 30 s.
	BodyTimeout time.Duration
	// BodyRate is how many bytes a second a body must bring, on average, once
	// BodyTimeout has passed; 0 means 1 KiB.
	BodyRate int64
	// BodyTime is how long a body may take in all; 0 means 10 minutes.
	BodyTime time.Duration
	// BodiesBytes bounds the bodies in memory, of all requests whose answers have not
	// begun; 0 means 512 MiB.
	BodiesBytes int64
	// Requests bounds the requests at work, running streams included; 0 means 10,000.
	Requests int64
	// TotalTime is how long a request may take in all; 0 means 2 hours.
	TotalTime time.Duration
	// FrameBytes bounds one event of a stream; 0 means 8 MiB.
	FrameBytes int64
	// HideRelay leaves out the x-cc-relay-* response headers.
	HideRelay bool
}

// Defaults of Config.
const (
	DefaultMaxBodyBytes = 32 << 20
	DefaultWriteTimeout = 30 * time.Second
	DefaultBodyTimeout  = 30 * time.Second
	DefaultBodyRate     = 1 << 10
	DefaultBodyTime     = 10 * time.Minute
	DefaultBodiesBytes  = 512 << 20
	DefaultRequests     = 10_000
	DefaultTotalTime    = 2 * time.Hour
	DefaultFrameBytes   = messages.MaxFrame
)

// withDefaults fills in what is not set.
func (c Config) withDefaults() Config {
	for _, b := range []struct {
		value *int64
		def   int64
	}{
		{&c.MaxBodyBytes, DefaultMaxBodyBytes},
		{&c.BodyRate, DefaultBodyRate},
		{&c.BodiesBytes, DefaultBodiesBytes},
		{&c.Requests, DefaultRequests},
		{&c.FrameBytes, DefaultFrameBytes},
		{(*int64)(&c.WriteTimeout), int64(DefaultWriteTimeout)},
		{(*int64)(&c.BodyTimeout), int64(DefaultBodyTimeout)},
		{(*int64)(&c.BodyTime), int64(DefaultBodyTime)},
		{(*int64)(&c.TotalTime), int64(DefaultTotalTime)},
	} {
		if *b.value <= 0 {
			*b.value = b.def
		}
	}
	return c
}

// Live is the configuration in force, whole and immutable. A request that began
// under one keeps it to its end.
type Live struct {
	Config  Config
	Clients *auth.Clients
	Router  *router.Router
	Classes *keypool.Classes // nil: the table of keypool alone
	// Secrets are taken out of error bodies that upstreams send: provider keys
	// and client tokens.
	Secrets []secret.Value
	// Seed is that of the hashes of prompts and conversations. One that is kept over
	// restarts lets the pools' memory of both be kept, too. 0: a random one.
	Seed uint64
	// Passthrough sends requests with a client's own credential at Anthropic to the
	// first upstream of that origin: as they are, outside the pool, without failover.
	Passthrough bool
	// Hosts are the names, besides localhost and IP addresses, that clients may call
	// the relay by.
	Hosts auth.Hosts
	// Origins are web pages, as scheme://host[:port], whose scripts may use the relay:
	// those of clients that run in a web view. Others are refused.
	Origins []string
	// Metrics and Trace are told of requests and attempts; nil: nobody is.
	Metrics *metrics.Metrics
	Trace   *trace.Tracer
	// Told is told the id of each request that Explain knows, when it has ended; nil:
	// nobody is. It must not wait.
	Told func(id string)

	cross *http.CrossOriginProtection
	scrub *atomic.Pointer[scrubber] // the handler's: a request may be given keys that came after it began
	mixed bool                      // models of more than one maker are to be had
}

// Handler serves the data listener. Create it with [NewHandler].
type Handler struct {
	log      zerolog.Logger
	live     atomic.Pointer[Live]
	draining atomic.Bool
	active   atomic.Int64
	work     room   // requests that are not only probes
	held     room   // bytes of bodies
	seed     uint64 // of hashes, where the configuration has none
	makers   *makers
	models   *catalog
	accounts accounts
	totals   totals
	scrub    atomic.Pointer[scrubber]
	secrets  []secret.Value  // that scrub knows; of Swap alone
	base     context.Context // of all requests
	stop     context.CancelCauseFunc
}

// NewHandler returns a handler that serves live and logs one record a request.
func NewHandler(live *Live, log zerolog.Logger) *Handler {
	h := &Handler{log: log, seed: rand.Uint64(), makers: newMakers(), models: &catalog{}}
	h.base, h.stop = context.WithCancelCause(context.Background())
	h.Swap(live)
	return h
}

// Swap puts another configuration in force for the requests that begin from now on. It
// is called once at a time.
func (h *Handler) Swap(live *Live) {
	next := *live
	next.Config = next.Config.withDefaults()
	if next.Seed == 0 {
		next.Seed = h.seed
	}
	h.secrets = known(next.Secrets, h.secrets)
	h.scrub.Store(newScrubber(h.secrets))
	next.scrub = &h.scrub
	next.cross = http.NewCrossOriginProtection()
	for _, origin := range next.Origins {
		_ = next.cross.AddTrustedOrigin(origin) // one that is no origin is never sent, and so refused
	}
	next.mixed = next.Router.Origins()
	h.live.Store(&next)
}

// Drain makes the relay not ready and refuses new work; requests under way go on.
func (h *Handler) Drain() { h.draining.Store(true) }

// Draining reports whether Drain was called.
func (h *Handler) Draining() bool { return h.draining.Load() }

// Active is the number of requests under way, probes included.
func (h *Handler) Active() int64 { return h.active.Load() }

// Context is what the contexts of all requests must derive from, the
// BaseContext of the http.Server: Stop reaches them through it.
func (h *Handler) Context() context.Context { return h.base }

// Stop ends the requests under way: streams with an error event each.
func (h *Handler) Stop() { h.stop(errStopped) }

// errStopped is why requests end when the drain time is over.
var errStopped = errors.New("proxy: relay stopped")

// route is one path of the data listener.
type route struct {
	methods []string
	open    bool // answered without a token
	work    bool // refused while draining
	serve   func(*Handler, http.ResponseWriter, *exchange)
}

// routes is the table of paths. What is not here is 404: batches, files and
// other resources live in one organization and cannot be spread over a pool.
var routes = map[string]route{
	"/v1/messages":              {methods: []string{"POST"}, work: true, serve: (*Handler).serveMessages},
	"/v1/messages/count_tokens": {methods: []string{"POST"}, work: true, serve: (*Handler).serveMessages},
	"/v1/models":                {methods: []string{"GET"}, work: true, serve: (*Handler).serveModels},
	"/api/hello":                {methods: []string{"HEAD", "GET"}, open: true, serve: (*Handler).serveHello},
	"/":                         {methods: []string{"HEAD", "GET"}, open: true, serve: (*Handler).serveHello},
	"/livez":                    {methods: []string{"GET", "HEAD"}, open: true, serve: (*Handler).serveHello},
	"/readyz":                   {methods: []string{"GET", "HEAD"}, open: true, serve: (*Handler).serveReady},
}

const modelPath = "/v1/models/" // followed by one id

// findRoute also returns the route's name, which holds nothing of the client's.
func findRoute(r *http.Request) (rt route, name string, ok bool) {
	if id, ok := strings.CutPrefix(r.URL.Path, modelPath); ok && id != "" && id != "." && id != ".." && !strings.Contains(id, "/") {
		return routes["/v1/models"], modelPath + "{id}", true
	}
	if r.URL.RawPath != "" { // written with escapes that mean another path
		return route{}, "", false
	}
	rt, ok = routes[r.URL.Path]
	return rt, r.URL.Path, ok
}

// ServeHTTP is the whole path of a request, top to bottom.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.active.Add(1)
	defer h.active.Add(-1)
	x := newExchange(h.live.Load(), r)
	defer x.release()
	defer h.leave(x)
	defer h.finish(w, x)
	if r.ProtoMajor != 2 {
		x.extend(w, x.start)
	}

	if r.ProtoMajor == 1 && (len(r.TransferEncoding) > 0 || r.ProtoMinor == 0) {
		// The server may have been told a second length, and takes chunks of an
		// HTTP/1.0 request for what comes after it; nothing after this body is
		// read as a request.
		w.Header().Set("Connection", "close")
	}
	rt, name, ok := findRoute(r)
	x.route = name
	if r.Context().Value(crowdedKey{}) != nil {
		w.Header().Set("Connection", "close")
		if !ok || !rt.open {
			x.shed(w, shedConnections, "the relay has as many connections as it is allowed")
			return
		}
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace || r.URL.Host != "" || r.RequestURI == "*" {
		w.Header().Set("Connection", "close")
		x.refuse(w, http.StatusMethodNotAllowed, messages.InvalidRequest, "the relay is no proxy: set the client's base URL to its address")
		return
	}
	if strings.ContainsFunc(r.URL.RawQuery, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		// HTTP/2 lets it through, and no request line could hold it: no provider must be blamed for that.
		x.refuse(w, http.StatusBadRequest, messages.InvalidRequest, "the query has a space or a control character: percent-encode it")
		return
	}
	if first(r.Header["Upgrade"]) != "" {
		w.Header().Set("Connection", "close")
		x.refuse(w, http.StatusBadRequest, messages.InvalidRequest, "protocol upgrades are not supported")
		return
	}
	if !ok {
		x.refuse(w, http.StatusNotFound, messages.NotFound, "cc-relay serves POST /v1/messages, POST /v1/messages/count_tokens and GET /v1/models; set the client's base URL to the relay's address without a path")
		return
	}
	if !slices.Contains(rt.methods, r.Method) {
		w.Header().Set("Allow", strings.Join(rt.methods, ", "))
		x.refuse(w, http.StatusMethodNotAllowed, messages.InvalidRequest, "use "+strings.Join(rt.methods, " or ")+" for this path")
		return
	}
	if !x.live.Hosts.Allow(r.Host) {
		x.refuse(w, http.StatusForbidden, messages.Permission, "the relay is not called by this name: use its IP address or localhost, or add the name to server.allowed_hosts")
		return
	}
	if err := x.live.cross.Check(r); err != nil {
		x.refuse(w, http.StatusForbidden, messages.Permission, "requests from other web pages are refused; a client that runs in a web view needs its origin in server.allowed_origins")
		return
	}
	if !rt.open && !x.identify(w) {
		return
	}
	if r.Method == http.MethodPost && mediaType(r.Header) != "application/json" {
		// What a page of another site can send without being asked for leave is never JSON.
		x.refuse(w, http.StatusUnsupportedMediaType, messages.InvalidRequest, "send JSON with the header content-type: application/json")
		return
	}
	if rt.work && h.draining.Load() {
		x.refuse(w, messages.StatusOverloaded, messages.Overloaded, "the relay is shutting down; send the request again")
		return
	}
	if rt.work && !h.admit(w, x) {
		return
	}
	rt.serve(h, w, x)
}

// serveMessages relays one call of the Messages API.
func (h *Handler) serveMessages(w http.ResponseWriter, x *exchange) {
	if !x.read(w, &h.held) || !x.inspect(w) {
		return
	}
	h.relay(w, x)
}

func (h *Handler) relay(w http.ResponseWriter, x *exchange) {
	x.span = x.live.Trace.Start(x.r.Header, x.start, x.r.Method, x.route)
	ask := h.answer
	if x.own {
		ask = h.answerOwn
	}
	a, failed := ask(w, x)
	switch {
	case a != nil:
		h.forward(w, x, a)
	case x.stopped():
		x.refuse(w, messages.StatusOverloaded, messages.Overloaded, "the relay is shutting down; send the request again")
	case x.clientGone():
		x.left()
	default:
		failed.write(w, x)
	}
}

// serveHello answers probes, with or without credentials.
func (h *Handler) serveHello(w http.ResponseWriter, x *exchange) {
	x.quiet = true
	x.writeText(w, http.StatusOK, "ok\n")
}

// serveReady says whether the relay takes work and has a key to do it with.
func (h *Handler) serveReady(w http.ResponseWriter, x *exchange) {
	x.quiet = true
	if h.draining.Load() {
		x.writeText(w, http.StatusServiceUnavailable, "draining\n")
		return
	}
	for _, up := range x.live.Router.Upstreams() {
		for _, k := range up.Pool.Keys() {
			if k.State != keypool.StateDead && k.State != keypool.StateOff {
				x.writeText(w, http.StatusOK, "ok\n")
				return
			}
		}
	}
	x.writeText(w, http.StatusServiceUnavailable, "no usable key\n")
}

func (x *exchange) writeText(w http.ResponseWriter, status int, text string) {
	x.status, x.outcome, x.committed = status, outcomeServed, true
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text))
}

// finish writes the record of the request. A panic ends this request alone.
func (h *Handler) finish(w http.ResponseWriter, x *exchange) {
	p := recover()
	if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // a panic value, compared as net/http does
		x.outcome = outcomePanic
		// The value may quote what was being handled; its type and the place are enough to find it.
		h.log.Error().Str("request_id", x.id).Str("panic", fmt.Sprintf("%T", p)).Bytes("stack", debug.Stack()).Msg("request failed inside the relay")
		if !x.committed {
			x.refuse(w, http.StatusInternalServerError, messages.APIError, "the relay failed on this request; see its log")
			x.outcome = outcomePanic
			p = nil
		}
	}
	x.took = time.Since(x.start)
	h.observe(x) // first: who has seen the record may ask for what is behind it
	x.record(h.log)
	if p != nil {
		panic(http.ErrAbortHandler)
	}
}
