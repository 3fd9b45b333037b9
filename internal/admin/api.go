// Package admin is the HTTP handler of the admin listener: look at a relay, and tell
// it what to do. It chooses no keys and reads no configuration; what it acts on comes
// in as values and functions.
//
// Times are RFC 3339, durations Go's ("10m"), an absent time is none.
package admin

import (
	"time"

	"cc-relay/internal/keypool"
)

// access says which token a route asks for.
type access int

// Each route names its access. A route that names none is open to nobody.
const (
	denied access = iota
	open          // no token
	reader        // the viewer's token, or the admin's
	actor         // the admin's token
)

// route is one method of one path. A path's part in braces stands for one segment.
type route struct {
	method, path string
	access       access
	scrape       bool   // takes the token as password of Basic, too
	action       string // what the audit calls it; "" changes nothing
	serve        func(*Handler, *call)
}

// routes is the whole table: what is not here is 404 with a token, 401 without.
// The OpenAPI document describes the same ones, and a test compares the two.
var routes = []route{
	{method: "GET", path: "/livez", access: open, serve: (*Handler).live},

	{method: "GET", path: "/api/v1/stats", access: reader, serve: (*Handler).stats},
	{method: "GET", path: "/api/v1/status", access: reader, serve: (*Handler).status},
	{method: "GET", path: "/api/v1/keys", access: reader, serve: (*Handler).keys},
	{method: "GET", path: "/api/v1/providers", access: reader, serve: (*Handler).providers},
	{method: "GET", path: "/api/v1/requests", access: reader, serve: (*Handler).requests},
	{method: "GET", path: "/api/v1/requests/{id}", access: reader, serve: (*Handler).request},
	{method: "POST", path: "/api/v1/explain", access: reader, serve: (*Handler).explain},
	{method: "GET", path: "/api/v1/config", access: reader, serve: (*Handler).config},
	{method: "POST", path: "/api/v1/config/diff", access: reader, serve: (*Handler).configDiff},
	{method: "GET", path: "/api/v1/events", access: reader, serve: (*Handler).events},
	{method: "GET", path: "/api/v1/openapi.json", access: reader, serve: (*Handler).document},

	{method: "POST", path: "/api/v1/keys/{id}/off", access: actor, action: "key.off", serve: (*Handler).keyOff},
	{method: "POST", path: "/api/v1/keys/{id}/on", access: actor, action: "key.on", serve: (*Handler).keyOn},
	{method: "POST", path: "/api/v1/keys/{id}/release", access: actor, action: "key.release", serve: (*Handler).keyRelease},
	{method: "POST", path: "/api/v1/providers/{name}/drain", access: actor, action: "provider.drain", serve: (*Handler).providerDrain},
	{method: "POST", path: "/api/v1/providers/{name}/on", access: actor, action: "provider.on", serve: (*Handler).providerOn},
	{method: "POST", path: "/api/v1/breakers/force", access: actor, action: "breaker.force", serve: (*Handler).breakerForce},
	{method: "POST", path: "/api/v1/reload", access: actor, action: "reload", serve: (*Handler).reload},

	{method: "GET", path: "/metrics", access: reader, scrape: true, serve: (*Handler).metrics},

	{method: "GET", path: "/debug/pprof/{profile}", access: actor, serve: (*Handler).pprof},
}

// Overall states of a relay.
const (
	Healthy  = "healthy"
	Degraded = "degraded" // it serves, and something is out or was refused
	Down     = "down"     // no provider can serve a request now
)

// Status is whether the relay is well, and what is not. Answer of GET /api/v1/status.
type Status struct {
	Status    string    `json:"status"`  // healthy, degraded or down
	Reasons   []Reason  `json:"reasons"` // [] where healthy
	Version   string    `json:"version"`
	StartedAt time.Time `json:"started_at"`
	// LastReload is the last attempt to reload; absent where there was none.
	LastReload *LastReload `json:"last_reload,omitempty"`
}

// Reason is one thing that keeps the relay from being healthy.
type Reason struct {
	// Code is keys_dead, keys_cooling, keys_off, breaker_open, breaker_forced, draining, reload_failed,
	// or where the relay is down stopping or no_provider.
	Code     string `json:"code"`
	Provider string `json:"provider,omitempty"`
	Message  string `json:"message"` // what it is, and what to do
}

// LastReload is how the last reload of the configuration went.
type LastReload struct {
	At    time.Time `json:"at"`
	Error string    `json:"error,omitempty"` // "": it is in force
}

// Stats is the relay at one moment. Answer of GET /api/v1/stats, and each second's
// stats event.
type Stats struct {
	At time.Time `json:"at"`
	Status
	UptimeSeconds int64      `json:"uptime_seconds"`
	InFlight      int64      `json:"in_flight"` // at all providers
	Totals        Totals     `json:"totals"`
	Providers     []Provider `json:"providers"` // configured order
}

// Totals are sums since the start.
type Totals struct {
	Requests         int64 `json:"requests"`
	Succeeded        int64 `json:"succeeded"`
	Failed           int64 `json:"failed"`
	Refused          int64 `json:"refused"`   // by the relay, before a provider was asked
	Failovers        int64 `json:"failovers"` // requests that a second key or provider served
	InputTokens      int64 `json:"input_tokens"`
	OutputTokens     int64 `json:"output_tokens"`
	CacheReadTokens  int64 `json:"cache_read_tokens"`
	CacheWriteTokens int64 `json:"cache_write_tokens"`
}

// Provider is one configured provider.
type Provider struct {
	Name     string    `json:"name"`
	Draining bool      `json:"draining"` // it gets no new requests
	InFlight int64     `json:"in_flight"`
	Strategy string    `json:"strategy"` // how its keys are chosen
	Keys     KeyCounts `json:"keys"`
	Breakers []Breaker `json:"breakers"` // by class; those of classes seen lately
	Classes  []Class   `json:"classes"`  // by class, "" (no class) first
}

// KeyCounts are a provider's keys by state, whatever the class; they add up to Total.
type KeyCounts struct {
	Total     int `json:"total"`
	Available int `json:"available"`
	Exhausted int `json:"exhausted"` // refilling
	Cooling   int `json:"cooling"`   // told to wait by the provider
	Dead      int `json:"dead"`      // refused by the provider
	Off       int `json:"off"`       // taken out by an operator
}

// Breaker is what keeps requests of one class from a provider that fails.
type Breaker struct {
	Class    string    `json:"class"`
	State    string    `json:"state"`          // closed, open, half_open or ramping
	Until    time.Time `json:"until,omitzero"` // when State ends by itself
	Forced   bool      `json:"forced"`         // State is an operator's
	Failures float64   `json:"failures"`       // share of the samples, 0 to 1
	Samples  int       `json:"samples"`        // of the last 10 s
}

// Amounts are requests, uncached input tokens and output tokens a minute; as a limit,
// 0 is unknown. Remaining ones may be negative.
type Amounts struct {
	RPM  int `json:"rpm"`
	ITPM int `json:"itpm"`
	OTPM int `json:"otpm"`
}

// Tokens are held for requests in flight.
type Tokens struct {
	Input  int `json:"input"`
	Output int `json:"output"`
}

// Class is one model class at a provider: sums over its keys, each organization once.
type Class struct {
	Class     string     `json:"class"`
	Limits    Amounts    `json:"limits"`
	Remaining Amounts    `json:"remaining"`
	Reserved  Tokens     `json:"reserved"`
	InFlight  int        `json:"in_flight"`
	Keys      []KeyClass `json:"keys"` // configured order
}

// KeyClass is one key for one model class.
type KeyClass struct {
	ID        string    `json:"id"`
	State     string    `json:"state"`            // available, exhausted, cooling, dead or off
	Until     time.Time `json:"until,omitzero"`   // when State is expected to end
	Reason    string    `json:"reason,omitempty"` // why it is dead: unauthorized, spent or forbidden
	Limits    Amounts   `json:"limits"`
	Remaining Amounts   `json:"remaining"`
	Reserved  Tokens    `json:"reserved"`
	InFlight  int       `json:"in_flight"`
	Headroom  float64   `json:"headroom"` // share of the scarcest limit that is left
}

// Key is one provider key, which is never shown: ID comes from its hash.
type Key struct {
	Provider string       `json:"provider"`
	ID       string       `json:"id"`
	Priority int          `json:"priority"` // 0 low, 1 normal, 2 high
	Weight   int          `json:"weight"`
	State    string       `json:"state"` // whatever the class
	Until    time.Time    `json:"until,omitzero"`
	Reason   string       `json:"reason,omitempty"`
	InFlight int          `json:"in_flight"` // of all classes
	Classes  []KeyOfClass `json:"classes"`   // [] for a key that nothing was asked of
}

// KeyOfClass is a KeyClass that says its class.
type KeyOfClass struct {
	Class string `json:"class"`
	KeyClass
}

// Keys is the answer of GET /api/v1/keys.
type Keys struct {
	Keys []Key `json:"keys"`
}

// Providers is the answer of GET /api/v1/providers.
type Providers struct {
	Providers []Provider `json:"providers"`
}

// Requests is the answer of GET /api/v1/requests?limit=N, the latest first. limit is
// 1 to 1000; 50 where it is not given. Each element is what GET /api/v1/requests/{id}
// answers, or a shorter form of it.
type Requests struct {
	Requests any `json:"requests"`
}

// DryRunRequest is the body of POST /api/v1/explain: where would such a request go
// now? Nothing is sent and nothing changes.
type DryRunRequest struct {
	Model     string `json:"model"`
	Tokens    int    `json:"tokens,omitempty"`     // of the prompt; 0 = a short one
	MaxTokens int    `json:"max_tokens,omitempty"` // 0 = unknown
	Client    string `json:"client,omitempty"`     // name of a configured client; "" = none
}

// ConfigText is the answer of GET /api/v1/config: the configuration in force, secrets
// left out.
type ConfigText struct {
	Format string `json:"format"` // yaml
	Text   string `json:"text"`
}

// ConfigDiff is the answer of POST /api/v1/config/diff, which has no body: what a
// reload would change now.
type ConfigDiff struct {
	Changed      []string `json:"changed"`         // settings, by path; [] = nothing
	NeedsRestart []string `json:"needs_restart"`   // those of them that a reload leaves as they are
	Error        string   `json:"error,omitempty"` // why the file would be refused
}

// KeyAction is the body of POST /api/v1/keys/{id}/…, and may be left out.
type KeyAction struct {
	// Provider is needed only where two providers have the same key.
	Provider string `json:"provider,omitempty"`
}

// BreakerForce is the body of POST /api/v1/breakers/force.
type BreakerForce struct {
	Provider string `json:"provider"`
	Class    string `json:"class,omitempty"` // "" = every class
	State    string `json:"state"`           // open, closed or auto (takes an earlier word back)
	// For is how long, such as 30s, 10m or 2h: at most 24h, 10m where it is left out.
	For string `json:"for,omitempty"`
}

// Reload is what a reload did.
type Reload struct {
	Changed      []string `json:"changed"`       // settings, by path; [] = nothing
	NeedsRestart []string `json:"needs_restart"` // changed in the file and not in force
}

// ActionResult is the answer of each action that was done.
type ActionResult struct {
	Action          string    `json:"action"`           // key.off, key.on, key.release, provider.drain, provider.on, breaker.force or reload
	Target          string    `json:"target,omitempty"` // PROVIDER, PROVIDER/KEY or PROVIDER/CLASS
	Message         string    `json:"message"`          // what was done
	SurvivesRestart bool      `json:"survives_restart"`
	Expires         time.Time `json:"expires,omitzero"`  // when it ends by itself
	Reload          *Reload   `json:"reload,omitempty"`  // of action reload
	Warning         string    `json:"warning,omitempty"` // done, but the outcome is not in the audit
	RequestID       string    `json:"request_id"`        // as in the audit
}

// ErrorBody is the body of every refusal.
type ErrorBody struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail says what went wrong and what to do.
type ErrorDetail struct {
	// Code is one of unauthorized, throttled, forbidden, host_refused, cross_site,
	// not_found, method_not_allowed, unsupported_media_type, too_large, invalid_request,
	// ambiguous, audit_unwritable, too_many_streams, unavailable, failed.
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Events of GET /api/v1/events, a stream of server-sent events whose data is JSON.
// ?stats=off leaves the stats events out.
const (
	EventStats    = "stats"    // Stats, every second
	EventKey      = "key"      // KeyChange
	EventProvider = "provider" // ProviderChange
	EventBreaker  = "breaker"  // BreakerChange
	EventReload   = "reload"   // published by the relay
	EventRequest  = "request"  // published by the relay
	EventAlert    = "alert"    // published by the relay
	EventLost     = "lost"     // Lost
)

// KeyChange says that a key changed its state for one class; Class "" is whatever
// the class.
type KeyChange struct {
	At       time.Time `json:"at"`
	Provider string    `json:"provider"`
	Key      string    `json:"key"`
	Class    string    `json:"class"`
	From     string    `json:"from"` // "" for a key that is new
	To       string    `json:"to"`   // "" for a key that is gone
	Until    time.Time `json:"until,omitzero"`
	Reason   string    `json:"reason,omitempty"`
}

// ProviderChange says that a provider came, went, or changed whether it drains.
type ProviderChange struct {
	At       time.Time `json:"at"`
	Provider string    `json:"provider"`
	From     string    `json:"from"` // on, draining or "" for one that is new
	To       string    `json:"to"`   // on, draining or "" for one that is gone
}

// BreakerChange says that a breaker changed its state.
type BreakerChange struct {
	At       time.Time `json:"at"`
	Provider string    `json:"provider"`
	Class    string    `json:"class"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Until    time.Time `json:"until,omitzero"`
	Forced   bool      `json:"forced"`
}

// Lost says that a listener was too slow, and how many events it has missed here.
type Lost struct {
	Count int `json:"count"`
}

// stateOff is keypool's state of a key that an operator has taken out.
const stateOff = keypool.State("off")
