package messages

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// ErrorType is the type of an error object of the Messages API.
// Source: https://platform.claude.com/docs/en/api/errors.
type ErrorType string

// Error types of the API and the status each is sent with.
const (
	InvalidRequest  ErrorType = "invalid_request_error" // 400, also 405, 408, 415, 431
	Authentication  ErrorType = "authentication_error"  // 401
	Billing         ErrorType = "billing_error"         // 402; 429 for a spent budget
	Permission      ErrorType = "permission_error"      // 403
	NotFound        ErrorType = "not_found_error"       // 404
	Conflict        ErrorType = "conflict_error"        // 409
	RequestTooLarge ErrorType = "request_too_large"     // 413
	RateLimit       ErrorType = "rate_limit_error"      // 429
	APIError        ErrorType = "api_error"             // 500, 502
	Timeout         ErrorType = "timeout_error"         // 504
	Overloaded      ErrorType = "overloaded_error"      // 529
)

// StatusOverloaded is Anthropic's own status for an overloaded provider.
const StatusOverloaded = 529

// Status returns the HTTP status an error of this type is sent with; 500 for an
// unknown type, so that an error event can be judged as the status of its type.
func (t ErrorType) Status() int {
	switch t {
	case InvalidRequest:
		return http.StatusBadRequest
	case Authentication:
		return http.StatusUnauthorized
	case Billing:
		return http.StatusPaymentRequired
	case Permission:
		return http.StatusForbidden
	case NotFound:
		return http.StatusNotFound
	case Conflict:
		return http.StatusConflict
	case RequestTooLarge:
		return http.StatusRequestEntityTooLarge
	case RateLimit:
		return http.StatusTooManyRequests
	case Timeout:
		return http.StatusGatewayTimeout
	case Overloaded:
		return StatusOverloaded
	}
	return http.StatusInternalServerError
}

// TypeOfStatus is the error type that belongs to an HTTP status: api_error for a
// 5xx without a type of its own, invalid_request_error for any other 4xx.
func TypeOfStatus(status int) ErrorType {
	switch status {
	case http.StatusUnauthorized:
		return Authentication
	case http.StatusPaymentRequired:
		return Billing
	case http.StatusForbidden:
		return Permission
	case http.StatusNotFound:
		return NotFound
	case http.StatusConflict:
		return Conflict
	case http.StatusRequestEntityTooLarge:
		return RequestTooLarge
	case http.StatusTooManyRequests:
		return RateLimit
	case http.StatusGatewayTimeout:
		return Timeout
	case StatusOverloaded, http.StatusServiceUnavailable:
		return Overloaded
	}
	if status >= 400 && status < 500 {
		return InvalidRequest
	}
	return APIError
}

// Error is the body of a failed request and of an SSE error event.
type Error struct {
	Type      string      `json:"type"` // always "error"
	Error     ErrorDetail `json:"error"`
	RequestID string      `json:"request_id,omitempty"`
}

// ErrorDetail is the error object inside an Error. Decide on Type and on
// Details.ErrorCode; the wording of Message is not stable.
type ErrorDetail struct {
	Type    ErrorType     `json:"type"`
	Message string        `json:"message"`
	Details *ErrorDetails `json:"details,omitempty"`
}

// ErrorDetails carries the machine-readable reason, where the provider gives one.
type ErrorDetails struct {
	ErrorCode string `json:"error_code,omitempty"`
}

// ParseError reads an error body. ok is false where body is not an error object
// of the Messages API (HTML from an edge, a vendor's own shape, see ParseVendorError).
func ParseError(body []byte) (e Error, ok bool) {
	if err := json.Unmarshal(body, &e); err != nil || e.Type != "error" || e.Error.Type == "" {
		return Error{}, false
	}
	return e, true
}

// VendorError is what an error of a compatible vendor says. Some write
// {"error":{"code","type","message"}}, some the shape of the Messages API with a code
// of theirs in it, or as its type. What is absent is empty.
type VendorError struct {
	Code    string // a number as it is written
	Type    string
	Message string
}

// ParseVendorError reads an error body in the shape of any vendor, also in that of the
// Messages API: where ParseError reads one, type and message are the same. ok is false
// where body is not JSON with an error object that says something. It takes no more
// memory than a few times body, which is the caller's to bound.
func ParseVendorError(body []byte) (e VendorError, ok bool) {
	var v struct {
		Error struct {
			Code    lenient `json:"code"`
			Type    lenient `json:"type"`
			Message lenient `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return VendorError{}, false
	}
	e = VendorError{Code: string(v.Error.Code), Type: string(v.Error.Type), Message: string(v.Error.Message)}
	return e, e != VendorError{}
}

// lenient is a JSON string or number as text. Anything else leaves it as it is.
type lenient string

func (l *lenient) UnmarshalJSON(value []byte) error {
	switch c := value[0]; {
	case c == '"':
		return json.Unmarshal(value, (*string)(l))
	case c == '-' || c >= '0' && c <= '9':
		*l = lenient(value)
	}
	return nil
}

// WriteError is the only place that writes an error of the relay: status and
// JSON body in the API's shape, with requestID in the body and as request-id.
// Set further headers (retry-after, x-should-retry) on w before the call. The
// message reaches the client: no key, token, header value or internal address.
func WriteError(w http.ResponseWriter, status int, kind ErrorType, message, requestID string) {
	body := errorBody(kind, message, requestID)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	if requestID != "" {
		h.Set("Request-Id", requestID)
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// AppendErrorEvent appends one whole SSE error frame to dst: what ends a stream
// that broke after the status was sent. It is never followed by message_stop.
func AppendErrorEvent(dst []byte, kind ErrorType, message, requestID string) []byte {
	dst = append(dst, "event: error\ndata: "...)
	dst = append(dst, errorBody(kind, message, requestID)...)
	return append(dst, "\n\n"...)
}

func errorBody(kind ErrorType, message, requestID string) []byte {
	body, err := json.Marshal(Error{Type: "error", Error: ErrorDetail{Type: kind, Message: message}, RequestID: requestID})
	if err != nil { // strings cannot fail to encode
		panic(err)
	}
	return body
}
