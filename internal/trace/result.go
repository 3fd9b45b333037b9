package trace

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/slim/otlp/trace/v1"
)

// Names of the GenAI conventions, which have left the semconv package.
// Source: https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-spans.md.
const (
	genOperation     = "gen_ai.operation.name"
	genProvider      = "gen_ai.provider.name"
	genRequestModel  = "gen_ai.request.model"
	genResponseModel = "gen_ai.response.model"
	genInput         = "gen_ai.usage.input_tokens"
	genCacheRead     = "gen_ai.usage.cache_read.input_tokens"
	genCacheWrite    = "gen_ai.usage.cache_creation.input_tokens"
	genOutput        = "gen_ai.usage.output_tokens"
)

// Names of our own. A request says its own part, an attempt its own.
const (
	relayRequestID = "cc_relay.request_id"
	relayClient    = "cc_relay.client"
	relayUpstream  = "cc_relay.upstream"
	relayKeyID     = "cc_relay.key_id"
	relayClass     = "cc_relay.class"
	relayVerdict   = "cc_relay.verdict"
	relayOutcome   = "cc_relay.outcome"
	relayAttempts  = "cc_relay.attempts"
	relayWait      = "cc_relay.wait_ms"
)

// Result is what a request came to. Zero fields are left out of the span, but for
// Attempts and Wait. Strings are cut at 128 bytes.
type Result struct {
	End       time.Time // zero: now
	RequestID string    // the relay's own
	Client    string    // its configured name
	Model     string    // as the client asked
	Class     string
	KeyID     string // of the attempt that was shown
	Upstream  string // its provider's configured name
	Verdict   string
	Outcome   string
	Attempts  int
	Wait      time.Duration // for a key
	Status    int           // sent to the client
	// Error is the kind of the failure, of a small set; it makes the span an error.
	// Empty with a Status of 500 or more: the status.
	Error string
}

// AttemptResult is what one attempt came to. Zero fields are left out of the
// span. Strings are cut at 128 bytes.
type AttemptResult struct {
	End           time.Time // zero: now
	Operation     string    // "chat", which is the default, or "count_tokens"
	Kind          string    // the provider's kind in the configuration, such as anthropic
	Upstream      string    // its configured name
	Host          string    // where it is, without user and path
	Port          int
	KeyID         string
	Class         string
	Model         string // as asked of the provider
	ResponseModel string // as the answer names it
	Verdict       string
	Status        int // of the provider; 0 where none came
	Tokens        Tokens
	// Error is the kind of the failure, of a small set; it makes the span an error.
	// Empty with a Status of 400 or more: the status.
	Error string
}

// Tokens are what an attempt used. Only attempts tell them: on the span of the
// request as well, whoever sums over spans would count them twice.
type Tokens struct {
	Input      int // the whole prompt, cached tokens included
	CacheRead  int // of Input: read from the cache
	CacheWrite int // of Input: written to it
	Output     int
}

// kept is a copy for later: what a client wrote is cut and let go of first, so
// that a span that waits does not keep a request's body.
func (r *Result) kept() *Result {
	k := *r
	k.Model = strings.Clone(cut(k.Model))
	return &k
}

func (r *AttemptResult) kept() *AttemptResult {
	k := *r
	k.Model, k.ResponseModel = strings.Clone(cut(k.Model)), strings.Clone(cut(k.ResponseModel))
	return &k
}

// cut keeps a value short, and valid UTF-8 as the encoding demands.
func cut(s string) string {
	const most = 128
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// methods that are told; others would make names of the client's choosing.
// Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/#name.
func knownMethod(m string) (name, value string) {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace, http.MethodPatch:
		return m, m
	}
	return "HTTP", "_OTHER"
}

// message is the span as it is sent.
func (r *record) message() *otlp.Span {
	s := &otlp.Span{
		TraceId:           r.trace[:],
		SpanId:            r.id[:],
		Flags:             uint32(r.flags) | uint32(otlp.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK),
		StartTimeUnixNano: uint64(r.start.UnixNano()),
		// By the clock that is never set back.
		EndTimeUnixNano: uint64(r.start.Add(max(r.end.Sub(r.start), 0)).UnixNano()),
	}
	if r.parent.IsValid() {
		s.ParentSpanId = r.parent[:]
	}
	if r.attempt != nil {
		r.attempt.describe(s)
		return s
	}
	if r.parent.IsValid() {
		s.Flags |= uint32(otlp.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
	}
	r.request.describe(s, r.method, r.route)
	return s
}

func (r *Result) describe(s *otlp.Span, method, route string) {
	name, value := knownMethod(method)
	s.Kind = otlp.Span_SPAN_KIND_SERVER
	s.Name = strings.TrimSpace(name + " " + cut(route))
	a := attributes{s}
	a.text(string(semconv.HTTPRequestMethodKey), value)
	a.text(string(semconv.HTTPRouteKey), route)
	a.count(string(semconv.HTTPResponseStatusCodeKey), r.Status)
	a.text(relayRequestID, r.RequestID)
	a.text(relayClient, r.Client)
	a.text(genRequestModel, r.Model)
	a.text(relayClass, r.Class)
	a.text(relayKeyID, r.KeyID)
	a.text(relayUpstream, r.Upstream)
	a.text(relayVerdict, r.Verdict)
	a.text(relayOutcome, r.Outcome)
	a.number(relayAttempts, int64(r.Attempts))
	a.number(relayWait, r.Wait.Milliseconds())
	a.failed(r.Error, r.Status, http.StatusInternalServerError)
}

func (r *AttemptResult) describe(s *otlp.Span) {
	operation := cut(r.Operation)
	if operation == "" {
		operation = "chat"
	}
	s.Kind = otlp.Span_SPAN_KIND_CLIENT
	s.Name = strings.TrimSpace(operation + " " + cut(r.Model))
	a := attributes{s}
	a.text(genOperation, operation)
	a.text(genProvider, providerName(r.Kind))
	a.text(genRequestModel, r.Model)
	a.text(genResponseModel, r.ResponseModel)
	a.count(genInput, r.Tokens.Input)
	a.count(genCacheRead, r.Tokens.CacheRead)
	a.count(genCacheWrite, r.Tokens.CacheWrite)
	a.count(genOutput, r.Tokens.Output)
	a.text(string(semconv.ServerAddressKey), r.Host)
	a.count(string(semconv.ServerPortKey), r.Port)
	a.text(string(semconv.HTTPRequestMethodKey), http.MethodPost)
	a.count(string(semconv.HTTPResponseStatusCodeKey), r.Status)
	a.text(relayUpstream, r.Upstream)
	a.text(relayKeyID, r.KeyID)
	a.text(relayClass, r.Class)
	a.text(relayVerdict, r.Verdict)
	a.failed(r.Error, r.Status, http.StatusBadRequest)
}

// providerName is the conventions' name for a kind of provider.
func providerName(kind string) string {
	switch kind {
	case "bedrock":
		return "aws.bedrock"
	case "vertex":
		return "gcp.vertex_ai"
	case "azure", "foundry":
		return "azure.ai.inference"
	}
	return kind
}

// attributes adds to a span.
type attributes struct{ s *otlp.Span }

func (a attributes) text(key, value string) {
	if value = cut(value); value != "" {
		a.add(key, &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}})
	}
}

// count leaves out what is not known.
func (a attributes) count(key string, n int) {
	if n > 0 {
		a.number(key, int64(n))
	}
}

func (a attributes) number(key string, n int64) {
	a.add(key, &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: n}})
}

func (a attributes) add(key string, v *common.AnyValue) {
	a.s.Attributes = append(a.s.Attributes, &common.KeyValue{Key: key, Value: v})
}

// failed says whether the span is an error, and of which kind. Statuses below
// least are the other side's fault.
// Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/#status.
func (a attributes) failed(kind string, status, least int) {
	if kind == "" && status >= least {
		kind = strconv.Itoa(status)
	}
	if kind == "" {
		return
	}
	a.text(string(semconv.ErrorTypeKey), kind)
	a.s.Status = &otlp.Status{Code: otlp.Status_STATUS_CODE_ERROR}
}
