package proxy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/simulator"
)

// vendors is a row for each code of a vendor, in the shapes that it is sent in, and for
// what must not be taken for one.
var vendors = []struct {
	name    string
	status  int
	body    string
	verdict string
	shown   int
	kind    string // empty: the body passes byte for byte
}{
	{"Z.AI, no balance", 429, `{"error":{"code":"1113","message":"Insufficient balance or no resource package. Please recharge."}}`, "spent", 429, "billing_error"},
	{"Z.AI, as a number", 429, `{"error":{"code":1113,"message":"m"}}`, "spent", 429, "billing_error"},
	{"Z.AI, as a type", 429, `{"type":"error","error":{"type":"1113","message":"m"},"request_id":"20251009"}`, "spent", 429, "billing_error"},
	{"Z.AI, beside a type", 429, `{"type":"error","error":{"type":"rate_limit_error","code":"1113","message":"m"}}`, "spent", 429, "billing_error"},
	{"Z.AI, 1308", 429, `{"error":{"code":"1308","message":"m"}}`, "spent", 429, "billing_error"},
	{"Z.AI, 1309", 429, `{"error":{"code":"1309","message":"m"}}`, "spent", 429, "billing_error"},
	{"Z.AI, 1310", 429, `{"error":{"code":"1310","message":"m"}}`, "spent", 429, "billing_error"},
	{"Z.AI, fair use", 429, `{"error":{"code":"1313","message":"m"}}`, "spent", 429, "billing_error"},
	{"Z.AI, concurrency", 429, `{"error":{"code":"1302","message":"m"}}`, "limited", 429, "rate_limit_error"},
	{"Z.AI, frequency", 429, `{"error":{"code":"1303","message":"m"}}`, "limited", 429, "rate_limit_error"},
	{"Z.AI, overload", 429, `{"error":{"code":"1305","message":"m"}}`, "limited", 429, "rate_limit_error"},
	{"Z.AI, a code in the message", 429, `{"error":{"code":"1302","message":"1113 insufficient_quota"}}`, "limited", 429, "rate_limit_error"},
	{"Kimi, no balance", 429, `{"error":{"type":"exceeded_current_quota_error","message":"m"}}`, "spent", 429, "billing_error"},
	{"Kimi, rate", 429, `{"error":{"type":"rate_limit_reached_error","message":"m"}}`, "limited", 429, "rate_limit_error"},
	{"Kimi, overload", 429, `{"error":{"type":"engine_overloaded_error","message":"m"}}`, "overloaded", 529, "overloaded_error"},
	{"OpenAI, no balance", 429, `{"error":{"message":"m","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}`, "spent", 429, "billing_error"},
	{"OpenAI, as a code alone", 429, `{"error":{"message":"m","type":"requests","code":"insufficient_quota"}}`, "spent", 429, "billing_error"},
	{"OpenAI, rate", 429, `{"error":{"message":"m","type":"requests","code":"rate_limit_exceeded"}}`, "limited", 429, "rate_limit_error"},
	{"a spent budget", 429, `{"type":"error","error":{"type":"billing_error","message":"spend limit reached"}}`, "spent", 429, "billing_error"},
	{"a vendor's billing_error", 429, `{"error":{"type":"billing_error","message":"m"}}`, "limited", 429, "rate_limit_error"},
	{"balance, but not as 429", 400, `{"error":{"code":"1113","message":"m"}}`, "client_error", 400, ""},
	{"balance, but as 503", 503, `{"error":{"code":"1113","message":"m"}}`, "overloaded", 529, "overloaded_error"},

	{"Z.AI, model", 400, `{"error":{"code":"1211","message":"Unknown Model, please check the model code."}}`, "no_model", 404, "not_found_error"},
	{"Z.AI, model, in the API's shape", 400, `{"type":"error","error":{"type":"invalid_request_error","code":"1211","message":"[1211][m]"},"request_id":"1"}`, "no_model", 400, ""},
	{"Z.AI, model, 404", 404, `{"error":{"code":1211,"message":"m"}}`, "no_model", 404, "not_found_error"},
	{"OpenAI, model", 404, `{"error":{"message":"m","type":"invalid_request_error","param":null,"code":"model_not_found"}}`, "no_model", 404, "not_found_error"},
	{"a model as a type, 400", 400, `{"error":{"message":"m","type":"model_not_found"}}`, "no_model", 404, "not_found_error"},
	{"DeepSeek, model", 400, `{"error":{"message":"Model Not Exist","type":"invalid_request_error","param":null,"code":"invalid_request_error"}}`, "no_model", 404, "not_found_error"},
	{"vLLM, model", 404, "{\"error\":{\"message\":\"The model `foo` does not exist.\",\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}", "no_model", 404, "not_found_error"},
	{"Ollama, model", 404, `{"type":"error","error":{"type":"not_found_error","message":"model \"foo\" not found, try pulling it first"}}`, "no_model", 404, ""},
	{"The model", 404, `{"type":"error","error":{"type":"not_found_error","message":"The model foo does not exist"}}`, "no_model", 404, ""},
	{"The model, and more", 404, `{"error":{"message":"The model foo does not exist or you do not have access to it."}}`, "no_model", 404, "not_found_error"},
	{"The model, 400", 400, `{"error":{"message":"The model foo does not exist."}}`, "no_model", 404, "not_found_error"},
	{"model:", 400, `{"error":{"message":"model: foo was not found"}}`, "no_model", 404, "not_found_error"},

	{"something else of the model", 400, `{"error":{"code":"1210","message":"The model foo does not support images"}}`, "client_error", 400, ""},
	{"something else of the model, 404", 404, `{"error":{"message":"model foo has no vision"}}`, "client_error", 404, ""},
	{"model, but of another status", 422, `{"error":{"code":"1211","message":"Model Not Exist"}}`, "client_error", 422, ""},
	{"echoed later", 404, `{"error":{"message":"no file \"The model foo does not exist\""}}`, "client_error", 404, ""},
	{"echoed within", 400, `{"error":{"message":"The model foo cannot read: The model foo does not exist"}}`, "client_error", 400, ""},
	{"echoed as the code's text", 400, `{"error":{"code":"400","message":"model_not_found 1211"}}`, "client_error", 400, ""},
	{"a client's field", 400, `{"type":"error","error":{"type":"invalid_request_error","message":"model does not exist: Extra inputs are not permitted"}}`, "client_error", 400, ""},
	{"a client's field with a stop", 400, `{"error":{"message":"The model foo does not exist.: Extra inputs are not permitted"}}`, "client_error", 400, ""},
	{"a client's field, several lines", 400, `{"error":{"message":"Model Not Exist\n: Extra inputs are not permitted"}}`, "client_error", 400, ""},
	{"a client's error as text", 400, `{"error":{"message":"cannot read {\"error\":{\"code\":\"1211\"}}"},"body":{"error":{"code":"1211"}}}`, "client_error", 400, ""},

	{"a plan without the model", 403, `{"error":{"code":"1311","message":"This model needs the Pro plan"}}`, "forbidden", 403, "permission_error"},
	{"any other mistake", 400, "{ \"error\":{\"code\":\"1210\",\"message\":\"API parameter error: \\u00e4 \\/\"} }\n", "client_error", 400, ""},
}

// What a vendor says by a code of its own comes before what its status says.
func TestVendorsAnswers(t *testing.T) {
	leakFree(t)
	for _, tt := range vendors {
		t.Run(tt.name, func(t *testing.T) {
			r := relayOf(t, newSim(t, "a", 1, bodied(tt.status, tt.body)))
			got := r.do(call{body: ask(opus, false)})
			assert.Equal(t, tt.verdict, got.record["verdict"])
			if tt.kind == "" {
				assert.Equal(t, tt.shown, got.status)
				assert.Equal(t, tt.body, got.body, "the body passes byte for byte")
				return
			}
			requireError(t, got, tt.shown, tt.kind)
		})
	}
}

// A key without balance is asked once, and another provider serves.
func TestVendorsKeysWithoutBalance(t *testing.T) {
	leakFree(t)
	for _, body := range []string{
		`{"error":{"code":"1113","message":"m"}}`, `{"error":{"type":"exceeded_current_quota_error","message":"m"}}`,
		`{"error":{"code":"insufficient_quota","message":"m"}}`, `{"type":"error","error":{"type":"billing_error","message":"m"}}`,
	} {
		a, b := newSim(t, "a", 2, bodied(429, body)), newSim(t, "b", 1)
		r := relayOf(t, a, b)
		for range 3 {
			got := r.do(call{body: ask(opus, true)})
			requireServed(t, got, true)
			assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
		}
		assert.Equal(t, []string{"key-1", "key-2"}, a.keysSeen(), body)
		for _, k := range r.live.Router.Upstreams()[0].Pool.Keys() {
			assert.Equal(t, keypool.ReasonSpent, k.Reason, body)
		}
	}
}

// A relay before a relay takes the stop of a budget for what it is.
func TestASpentRelayBehindARelay(t *testing.T) {
	far := newSim(t, "far", 1, status(402))
	hub := relayOf(t, far)
	near := newRelay(t, setup{upstreams: []upstream{
		{Config: provider.Config{Name: "hub", BaseURL: hub.url, Auth: "bearer"}, keys: []string{aliceToken}},
	}})
	for range 3 {
		got := near.do(call{token: bobToken, body: ask(opus, true)})
		requireError(t, got, 429, "billing_error")
		assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
		assert.Empty(t, got.header.Get("Retry-After"))
	}
	assert.Len(t, hub.log.records, 1, "requests at the relay behind")
}

// A model that a vendor does not know is asked for elsewhere, and for a while not there.
func TestVendorsUnknownModels(t *testing.T) {
	leakFree(t)
	for _, f := range []simulator.Fault{
		bodied(400, `{"error":{"code":"1211","message":"m"}}`), bodied(400, `{"error":{"message":"Model Not Exist"}}`),
		bodied(404, `{"error":{"code":"model_not_found","message":"The model x does not exist"}}`),
	} {
		f.To = 1
		requireLacksOpus(t, newSim(t, "a", 1, f), newSim(t, "b", 1))
	}
}

// Where the relay words an error itself the client is told what the vendor said, as one
// bounded line without secrets and without pages.
func TestVendorsMessagesAreShown(t *testing.T) {
	leakFree(t)
	shown := func(t *testing.T, status int, message string) string {
		text, err := json.Marshal(message)
		require.NoError(t, err)
		r := relayOf(t, newSim(t, "a", 1, bodied(status, fmt.Sprintf(`{"error":{"code":"x","message":%s}}`, text))))
		got := r.do(call{body: ask(opus, false)})
		if strings.TrimSpace(message) != "" {
			assert.NotContains(t, r.log.String(), message, "it is in the log")
		}
		var e errorBody
		require.NoError(t, json.Unmarshal([]byte(got.body), &e), "body: %s", got.body)
		require.Equal(t, "error", e.Type)
		return e.Error.Message
	}
	for status, want := range map[int]string{
		403: "provider a refuses this request", 404: "provider a does not know this model", 500: "provider a sent an answer that cannot be used",
		502: "provider a sent an answer that cannot be used", 302: "provider a sent an answer that cannot be used",
		503: "provider a is overloaded", 529: "provider a is overloaded", 504: "provider a did not answer in time",
	} {
		message := "model x not found: it needs the Pro plan"
		assert.Equal(t, want+": "+message, shown(t, status, message), status)
	}
	const begin = "provider a refuses this request"
	assert.Equal(t, begin+": bad key [redacted], bad token [redacted].", shown(t, http.StatusForbidden, "bad key "+keyOf("a", 1)+", bad token "+aliceToken+"."))
	assert.Equal(t, begin+": two lines \ufffd[31m", shown(t, http.StatusForbidden, " two\r\n\tlines \x1b[31m\n"))
	assert.Equal(t, begin+": a < b", shown(t, http.StatusForbidden, "a < b"))
	assert.Equal(t, begin+": "+strings.Repeat("é", 256)+"…", shown(t, http.StatusForbidden, strings.Repeat("é", 10_000)))
	at := strings.Repeat("x", 500) // a key across the bound
	assert.Equal(t, begin+": "+at+" [redacted] …", shown(t, http.StatusForbidden, at+" "+keyOf("a", 1)+" and more"))
	for _, nothing := range []string{
		"", " \n", "<!DOCTYPE html><html>down</html>", "upstream said: <HTML><body>down", "<h1>502</h1>", "502: <body bgcolor=white>",
	} {
		assert.Equal(t, begin, shown(t, http.StatusForbidden, nothing), nothing)
	}
	for _, body := range []string{`{"detail":"This model needs the Pro plan"}`, `{"error":"no"}`, "Pro plan", `{"error":{"message":"cut`} {
		got := relayOf(t, newSim(t, "a", 1, bodied(403, body))).do(call{body: ask(opus, false)})
		assert.Equal(t, begin, requireError(t, got, 403, "permission_error").Error.Message, body)
	}
}
