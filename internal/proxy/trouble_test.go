package proxy_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
	"cc-relay/internal/simulator"
)

// status is a fault that answers so.
func status(code int) simulator.Fault {
	return simulator.Fault{Kind: simulator.FaultStatus, Status: code}
}

func faults(f ...simulator.Fault) []simulator.Fault { return f }

// key narrows a fault to the nth key of its provider.
func key(n int, f simulator.Fault) simulator.Fault {
	f.Key = itoa(n)
	return f
}

// trouble is one way in which a provider fails a request, and what must follow.
type trouble struct {
	fault simulator.Fault

	// What the client gets when there is nowhere else to go. kind is empty where
	// the provider's own body passes unchanged.
	status int
	kind   string
	wait   string // retry-after
	stop   bool   // x-should-retry: false

	next next
	slow bool // the provider's time is up
	head bool // but the head of its answer has come: a stream is shown then, where nobody else is left
}

// next is where a request may be served instead.
type next int

// limit429 is a 429 with this retry-after.
func limit429(retryAfter string) simulator.Fault {
	f := status(429)
	f.Headers = map[string]string{"Retry-After": retryAfter}
	return f
}

func coded(status int, code string) simulator.Fault {
	return simulator.Fault{Kind: simulator.FaultStatus, Status: status, ErrorCode: code}
}

func worded(status int, message string) simulator.Fault {
	return simulator.Fault{Kind: simulator.FaultStatus, Status: status, Message: message}
}

func bodied(status int, body string) simulator.Fault {
	return simulator.Fault{Kind: simulator.FaultStatus, Status: status, Body: body}
}

// troubles is the table of what an answer means, row by row and more.
var troubles = map[string]trouble{
	"429, retry-after 5":       {fault: limit429("5"), status: 429, kind: "rate_limit_error", wait: "5", next: otherKey},
	"429, retry-after 2.5":     {fault: limit429("2.5"), status: 429, kind: "rate_limit_error", wait: "3", next: otherKey},
	"429, retry-after 100":     {fault: limit429("100"), status: 429, kind: "rate_limit_error", wait: "60", next: otherKey},
	"429, retry-after 180":     {fault: limit429("180"), status: 429, kind: "rate_limit_error", wait: "60", next: otherKey},
	"429, retry-after 200":     {fault: limit429("200"), status: 429, kind: "rate_limit_error", wait: "200", next: otherKey},
	"429, retry-after 1000000": {fault: limit429("1000000"), status: 429, kind: "rate_limit_error", wait: "1000000", next: otherKey},
	"429, retry-after 0":       {fault: limit429("0"), status: 429, kind: "rate_limit_error", wait: "1", next: otherKey},
	"429, retry-after garbage": {fault: limit429("soon"), status: 429, kind: "rate_limit_error", wait: "1", next: otherKey},
	"429, nothing else":        {fault: status(429), status: 429, kind: "rate_limit_error", wait: "1", next: otherKey},
	"429, ramp limit":          {fault: coded(429, "ramp_limit_exceeded"), status: 429, kind: "rate_limit_error", wait: "1", next: otherKey},
	"429, a page":              {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 429}, status: 429, kind: "rate_limit_error", wait: "1", next: otherKey},

	"429, monthly cap":   {fault: coded(429, "enforced_spend_limit_reached"), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"429, contract cap":  {fault: coded(429, "contract_spend_limit_reached"), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"402":                {fault: status(402), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"402, a page":        {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 402}, status: 429, kind: "billing_error", stop: true, next: otherKey},
	"400, own limit":     {fault: worded(400, "You have reached your specified API usage limits. You will regain access on 2026-12-01."), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"400, workspace":     {fault: worded(400, "You have reached your specified workspace API usage limits."), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"400, no credit":     {fault: worded(400, "Your credit balance is too low to access the API."), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"400, credit echoed": {fault: worded(400, "messages.0: cannot parse: Your credit balance is too low"), status: 400},
	"400, credit, but of another type": {
		fault:  bodied(400, `{"type":"error","error":{"type":"api_error","message":"Your credit balance is too low"}}`),
		status: 400,
	},

	"429, vendor's balance": {fault: bodied(429, `{"error":{"code":"1113","message":"m"}}`), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"429, spent budget":     {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 429, ErrorType: "billing_error"}, status: 429, kind: "billing_error", stop: true, next: otherKey},
	"429, vendor's load":    {fault: bodied(429, `{"error":{"type":"engine_overloaded_error"}}`), status: 529, kind: "overloaded_error", next: otherNext},
	"400, vendor's model":   {fault: bodied(400, `{"error":{"code":"1211","message":"m"}}`), status: 404, kind: "not_found_error", next: elsewhere},
	"404, vendor's model":   {fault: bodied(404, `{"error":{"message":"The model x does not exist"}}`), status: 404, kind: "not_found_error", next: elsewhere},

	"401": {fault: status(401), status: 502, kind: "api_error", stop: true, next: otherKey},
	"403": {fault: status(403), status: 403, next: otherKey},
	"403, a page": {
		fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 403}, status: 403, kind: "permission_error", next: otherKey,
	},

	"404, model":          {fault: worded(404, "model: claude-opus-5-5"), status: 404, next: elsewhere},
	"404, something else": {fault: worded(404, "file_011 was not found"), status: 404},
	"404, a page":         {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 404}, status: 404, kind: "not_found_error"},

	"529":           {fault: status(529), status: 529, next: otherNext},
	"503":           {fault: status(503), status: 529, kind: "overloaded_error", next: otherNext},
	"503, its type": {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 503, ErrorType: "api_error"}, status: 529, kind: "overloaded_error", next: otherNext},
	"503, a page":   {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 503}, status: 529, kind: "overloaded_error", next: otherNext},
	"529, retry-after": {
		fault:  simulator.Fault{Kind: simulator.FaultStatus, Status: 529, Headers: map[string]string{"Retry-After": "9"}},
		status: 529, wait: "9", next: otherNext,
	},

	"500":                {fault: status(500), status: 500, next: otherNext},
	"500, another shape": {fault: bodied(500, `{"detail":"boom"}`), status: 500, kind: "api_error", next: otherNext},
	"502":                {fault: status(502), status: 502, next: otherNext},
	"502, a page":        {fault: simulator.Fault{Kind: simulator.FaultHTML}, status: 502, kind: "api_error", next: otherNext},
	"504":                {fault: status(504), status: 504, next: otherNext},
	"504, a page":        {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 504}, status: 504, kind: "timeout_error", next: otherNext},
	"520, a page":        {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 520}, status: 520, kind: "api_error", next: otherNext},
	"201":                {fault: bodied(201, `{"type":"message"}`), status: 502, kind: "api_error", next: otherNext},
	"204":                {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 204}, status: 502, kind: "api_error", next: otherNext},
	"200, a page":        {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 200}, status: 502, kind: "api_error", next: otherNext},
	"200, nothing":       {fault: simulator.Fault{Kind: simulator.FaultEmpty}, status: 502, kind: "api_error", next: otherNext},
	"200, empty JSON":    {fault: bodied(200, " "), status: 502, kind: "api_error", next: otherNext},
	"200, cut JSON":      {fault: bodied(200, `{"type":"message",`), status: 502, kind: "api_error", next: otherNext},
	"reset":              {fault: simulator.Fault{Kind: simulator.FaultReset, RST: true}, status: 502, kind: "api_error", next: otherNext},
	"hang-up":            {fault: simulator.Fault{Kind: simulator.FaultReset}, status: 502, kind: "api_error", next: otherNext},
	"silence":            {fault: simulator.Fault{Kind: simulator.FaultDelay, Delay: time.Minute}, status: 504, kind: "timeout_error", next: otherNext, slow: true},
	"silence after the headers": {
		fault: simulator.Fault{Kind: simulator.FaultStall}, status: 504, kind: "timeout_error", next: otherNext, slow: true, head: true,
	},
	"silence in the first bytes": {
		fault: simulator.Fault{Kind: simulator.FaultStall, AfterBytes: 9}, status: 504, kind: "timeout_error", next: otherNext, slow: true, head: true,
	},

	// What a stream begins with, and JSON answers of the like.
	"first: overloaded":     {fault: errorFirst("overloaded_error", ""), status: 529, next: otherNext},
	"first: rate limit":     {fault: errorFirst("rate_limit_error", ""), status: 429, kind: "rate_limit_error", wait: "1", next: otherKey},
	"first: api_error":      {fault: errorFirst("api_error", ""), status: 500, next: otherNext},
	"first: unknown type":   {fault: errorFirst("cosmic_ray_error", ""), status: 500, next: otherNext},
	"first: timeout":        {fault: errorFirst("timeout_error", ""), status: 504, next: otherNext},
	"first: authentication": {fault: errorFirst("authentication_error", ""), status: 502, kind: "api_error", stop: true, next: otherKey},
	"first: permission":     {fault: errorFirst("permission_error", ""), status: 403, next: otherKey},
	"first: billing":        {fault: errorFirst("billing_error", ""), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"first: model":          {fault: errorFirst("not_found_error", "model: claude-opus-5-5"), status: 404, next: elsewhere},
	"first: not found":      {fault: errorFirst("not_found_error", "file_011 was not found"), status: 404},
	"first: no credit":      {fault: errorFirst("invalid_request_error", "Your credit balance is too low to go on"), status: 429, kind: "billing_error", stop: true, next: otherKey},
	"first: own mistake":    {fault: errorFirst("invalid_request_error", "messages: too few"), status: 400},
	"first: too large":      {fault: errorFirst("request_too_large", "too large"), status: 413},
	"first: cut":            {fault: simulator.Fault{Kind: simulator.FaultCut}, status: 502, kind: "api_error", next: otherNext},
	"first: reset":          {fault: simulator.Fault{Kind: simulator.FaultCut, RST: true}, status: 502, kind: "api_error", next: otherNext},
	"first: cut inside":     {fault: simulator.Fault{Kind: simulator.FaultCut, MidFrame: true, AfterBytes: 20}, status: 502, kind: "api_error", next: otherNext},
	"first: malformed":      {fault: simulator.Fault{Kind: simulator.FaultMalformed}, status: 502, kind: "api_error", next: otherNext},

	// What only the request itself is to blame for.
	"400":               {fault: worded(400, "max_tokens: 9 > 8"), status: 400},
	"400, odd JSON":     {fault: bodied(400, "{ \"type\" :\"error\",\n\"error\":{\"type\":\"invalid_request_error\",\"message\":\"\\u00e4 / \\/\"},\"new\":[1e400]}\n\n"), status: 400},
	"400, vendor JSON":  {fault: bodied(400, `{"detail":"no"}`), status: 400},
	"400, a page":       {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 400}, status: 400, kind: "invalid_request_error"},
	"405":               {fault: status(405), status: 405},
	"408":               {fault: status(408), status: 408},
	"409":               {fault: status(409), status: 409},
	"413":               {fault: status(413), status: 413},
	"413, a page":       {fault: simulator.Fault{Kind: simulator.FaultHTML, Status: 413}, status: 413, kind: "request_too_large"},
	"422":               {fault: status(422), status: 422},
	"400, retry it":     {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 400, Headers: map[string]string{"X-Should-Retry": "true"}}, status: 400},
	"400, do not retry": {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 400, Headers: map[string]string{"X-Should-Retry": "false"}}, status: 400, stop: true},
	"409, wait":         {fault: simulator.Fault{Kind: simulator.FaultStatus, Status: 409, Headers: map[string]string{"Retry-After": "4"}}, status: 409, wait: "4"},
}

func errorFirst(kind, message string) simulator.Fault {
	return simulator.Fault{Kind: simulator.FaultErrorEvent, ErrorType: messages.ErrorType(kind), Message: message}
}

// start makes the provider of a row; the fault meets these keys, or all.
func (tr trouble) start(t *testing.T, keys int, only string) *sim {
	f := tr.fault
	f.Key = only
	a := newSim(t, "a", keys, f)
	tr.hurry(a)
	return a
}

// hurry lets the time of a provider that is slow be up soon.
func (tr trouble) hurry(a *sim) {
	if tr.slow {
		a.FirstTokenTimeout, a.ResponseTimeout, a.IdleTimeout = time.Second, time.Second, time.Second
	}
}

// requireShown checks the error that the client is left with.
func (tr trouble) requireShown(t *testing.T, got reply, requestID string) {
	t.Helper()
	stop := ""
	if tr.stop {
		stop = "false"
	} else if v := tr.fault.Headers["X-Should-Retry"]; v != "" {
		stop = v
	}
	assert.Equal(t, stop, got.header.Get("X-Should-Retry"), "x-should-retry")
	assert.Equal(t, tr.wait, got.header.Get("Retry-After"), "retry-after")
	if tr.kind != "" {
		requireError(t, got, tr.status, tr.kind)
		return
	}
	require.NoError(t, got.err)
	require.Equal(t, tr.status, got.status, "status; body: %s", got.body)
	assert.Equal(t, "application/json", got.header.Get("Content-Type"))
	assert.Equal(t, requestID, got.header.Get("Request-Id"), "the provider's request-id")
	if tr.fault.Body != "" {
		assert.Equal(t, tr.fault.Body, got.body, "the body passes byte for byte")
		return
	}
	var e errorBody
	require.NoError(t, json.Unmarshal([]byte(got.body), &e), "body: %s", got.body)
	assert.Equal(t, requestID, e.RequestID, "the provider's own body passes")
}
