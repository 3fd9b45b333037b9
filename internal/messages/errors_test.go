package messages_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

func TestErrorTypeAndStatus(t *testing.T) {
	for kind, status := range map[messages.ErrorType]int{
		messages.InvalidRequest: 400, messages.Authentication: 401, messages.Billing: 402, messages.Permission: 403,
		messages.NotFound: 404, messages.Conflict: 409, messages.RequestTooLarge: 413, messages.RateLimit: 429,
		messages.APIError: 500, messages.Timeout: 504, messages.Overloaded: 529,
	} {
		assert.Equal(t, status, kind.Status(), "status of %s", kind)
		assert.Equal(t, kind, messages.TypeOfStatus(status), "type of %d", status)
	}
	assert.Equal(t, 500, messages.ErrorType("new_error").Status())
	for status, kind := range map[int]messages.ErrorType{
		405: messages.InvalidRequest, 422: messages.InvalidRequest, 431: messages.InvalidRequest,
		502: messages.APIError, 503: messages.Overloaded, 301: messages.APIError,
	} {
		assert.Equal(t, kind, messages.TypeOfStatus(status), "type of %d", status)
	}
}

func TestWriteError(t *testing.T) {
	w := httptest.NewRecorder()
	messages.WriteError(w, http.StatusTooManyRequests, messages.RateLimit, `no key is free for "x"`, "req_1")
	assert.Equal(t, http.StatusTooManyRequests, w.Code)
	assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
	assert.Equal(t, "req_1", w.Header().Get("Request-Id"))
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	assert.Equal(t, strconv.Itoa(w.Body.Len()), w.Header().Get("Content-Length"))
	assert.JSONEq(t, `{"type":"error","error":{"type":"rate_limit_error","message":"no key is free for \"x\""},"request_id":"req_1"}`, w.Body.String())
}

// What is written as an error is read back as one, as a body and as an event.
func TestErrorRoundTrip(t *testing.T) {
	stream := messages.AppendErrorEvent([]byte("event: ping\n\n"), messages.Overloaded, "line one\nline two\r\n\n", "req_2")
	got := framesOf(t, string(stream))
	require.Len(t, got, 2, "the error is one frame")
	assert.Equal(t, messages.EventError, got[1].Event)

	e, ok := messages.ParseError([]byte(got[1].Data))
	require.True(t, ok)
	assert.Equal(t, messages.Overloaded, e.Error.Type)
	assert.Equal(t, "line one\nline two\r\n\n", e.Error.Message)
	assert.Equal(t, "req_2", e.RequestID)
	reply, err := messages.InspectReply([]byte(got[1].Data))
	require.NoError(t, err)
	assert.True(t, reply.Error)
}

func TestParseError(t *testing.T) {
	e, ok := messages.ParseError([]byte(`{"type":"error","error":{"type":"rate_limit_error","message":"m","details":{"error_code":"enforced_spend_limit_reached","x":1}},"request_id":null}`))
	require.True(t, ok)
	require.NotNil(t, e.Error.Details)
	assert.Equal(t, "enforced_spend_limit_reached", e.Error.Details.ErrorCode)
	for _, body := range []string{
		"", "<html>", "[]", "null", `{"type":"message"}`, `{"type":"error"}`, `{"type":"error","error":"busy"}`,
		`{"error":{"code":429,"message":"vendor's own"}}`, `{"type":"error","error":{"type":"api_error"}`,
	} {
		e, ok := messages.ParseError([]byte(body))
		assert.False(t, ok, "body %s", body)
		assert.Empty(t, e, "body %s", body)
	}
}

func TestParseVendorError(t *testing.T) {
	for body, want := range map[string]messages.VendorError{
		`{"error":{"code":"1113","message":"Insufficient balance"}}`:                                                   {Code: "1113", Message: "Insufficient balance"},
		`{"error":{"code":1113,"message":"m"},"request_id":"1"}`:                                                       {Code: "1113", Message: "m"},
		`{"error":{"message":"m","type":"insufficient_quota","param":null,"code":null}}`:                               {Type: "insufficient_quota", Message: "m"},
		`{"type":"error","error":{"type":"1113","message":"m"},"request_id":"1"}`:                                      {Type: "1113", Message: "m"},
		`{"type":"error","error":{"type":"invalid_request_error","code":"1211","message":"\u00e4"}}`:                   {Code: "1211", Type: "invalid_request_error", Message: "ä"},
		"\n\n{\"error\":{\"code\":-1e3}}\n":                                                                            {Code: "-1e3"},
		`{"error":{"code":["1113"],"type":true,"message":{"en":"m"},"status":"X"},"error_code":"1113","x":{"code":1}}`: {},
		`{"error":{"code":{"code":"1113"},"message":"m"}}`:                                                             {Message: "m"},
		`{"error":"busy"}`: {}, `{"error":["busy"]}`: {}, `{"error":null}`: {}, `{"error":{}}`: {}, `[{"error":{"code":429}}]`: {},
		`{"code":"1113","message":"m"}`: {}, `{"error":{"code":"1113"}`: {}, "<html>": {}, "": {}, "null": {}, `"1113"`: {},
	} {
		got, ok := messages.ParseVendorError([]byte(body))
		assert.Equal(t, want, got, "body %s", body)
		assert.Equal(t, want != messages.VendorError{}, ok, "body %s", body)
	}
}

func TestErrorWithoutRequestID(t *testing.T) {
	w := httptest.NewRecorder()
	messages.WriteError(w, 400, messages.InvalidRequest, "m", "")
	assert.NotContains(t, w.Header(), "Request-Id")
	assert.False(t, strings.Contains(w.Body.String(), "request_id"), "got %s", w.Body)
	assert.True(t, json.Valid(w.Body.Bytes()))
}
