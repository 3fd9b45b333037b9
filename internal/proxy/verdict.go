package proxy

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"regexp"
	"strings"

	"cc-relay/internal/messages"
	"cc-relay/internal/provider"
)

// verdict is what one attempt came to.
type verdict int

const (
	notTried     verdict = iota
	served               // a good answer
	clientError          // the request's own fault: shown as it came, once
	limited              // 429: the key's owner has no room for this class
	spent                // the key's account has nothing left to spend
	unauthorized         // the provider does not accept the key
	forbidden            // the key may not do this
	noModel              // the provider does not know the model
	overloaded           // the provider has no capacity
	failed               // the provider broke, or what it sent cannot be read
	timedOut             // no answer in time
	lost                 // the connection broke after the request was sent: may have been paid for
	unreachable          // no connection came about: nothing was sent
	clientGone           // the client left
)

var verdictNames = [...]string{"", "served", "client_error", "limited", "spent", "unauthorized", "forbidden", "no_model",
	"overloaded", "failed", "timed_out", "lost", "unreachable", "client_gone"}

func (v verdict) String() string { return verdictNames[v] }

// conduct is what follows from a verdict.
type conduct struct {
	nextKey   bool // another key of the same provider may do better
	nextOwner bool // a key of another organization of the same provider may do better
	again     bool // where no provider is left, the same one may be asked once more
	counted   bool // the provider may have worked on it: at most maxCounted such attempts
	oneMove   bool // only one move for this reason
}

// conducts is the table of what an upstream's answer means for the request.
// served, clientError and clientGone end it.
var conducts = [...]conduct{
	limited:      {nextOwner: true},
	spent:        {nextOwner: true},
	unauthorized: {nextKey: true},
	forbidden:    {nextOwner: true},
	noModel:      {},
	overloaded:   {again: true, counted: true},
	failed:       {again: true, counted: true, oneMove: true},
	timedOut:     {again: true, counted: true, oneMove: true},
	lost:         {again: true, counted: true, oneMove: true},
	unreachable:  {again: true},
	clientGone:   {},
}

// maxCounted bounds the attempts of one request that may cost an upstream work.
const maxCounted = 4

// judge says what an upstream's status and error body mean. body is only read
// for statuses that are errors. What a vendor says by a code of its own comes before
// the table of statuses.
func judge(status int, body []byte) verdict {
	if v := judgeVendor(status, body); v != notTried {
		return v
	}
	switch {
	case status == http.StatusOK:
		return served
	case status == http.StatusTooManyRequests:
		if e, ok := messages.ParseError(body); ok && spendCode(e) {
			return spent
		}
		return limited
	case status == http.StatusBadRequest:
		if e, ok := messages.ParseError(body); ok && spendWording(e) {
			return spent
		}
		return clientError
	case status == http.StatusUnauthorized:
		return unauthorized
	case status == http.StatusPaymentRequired:
		return spent
	case status == http.StatusForbidden:
		return forbidden
	case status == http.StatusNotFound:
		if e, ok := messages.ParseError(body); ok && unknownModel(e) {
			return noModel
		}
		return clientError
	case status == http.StatusServiceUnavailable || status == messages.StatusOverloaded:
		return overloaded
	case status == http.StatusGatewayTimeout:
		return timedOut
	case status > 400 && status < 500:
		return clientError
	}
	return failed // 1xx, other 2xx, 3xx, 5xx: none is an answer to a call of this API
}

// vendorCodes is the error map of the compatible vendors: what a code or a type of
// theirs means, by the status it comes with. The rest, such as Z.AI's 1302 and 1303 and
// Kimi's rate_limit_reached_error, mean what their status says.
var vendorCodes = map[int]map[string]verdict{
	http.StatusTooManyRequests: {
		// Z.AI sends 429 for trouble with an account, too. Source:
		// https://docs.z.ai/api-reference/api-code.
		"1113": spent, // no balance, or the key of another plan or region
		"1308": spent, // a plan's window is used up
		"1309": spent,
		"1310": spent,
		"1313": spent, // against its rules of fair use
		// Kimi. Source: https://platform.moonshot.ai/docs.
		"exceeded_current_quota_error": spent,
		"engine_overloaded_error":      overloaded,
		// OpenAI's, and of those who write errors as it does. Source:
		// https://platform.openai.com/docs/guides/error-codes.
		"insufficient_quota": spent,
	},
	http.StatusBadRequest: unknownModelCodes,
	http.StatusNotFound:   unknownModelCodes,
}

var unknownModelCodes = map[string]verdict{
	"1211":            noModel, // Z.AI
	"model_not_found": noModel, // OpenAI's
}

// judgeVendor is what a vendor's own error means; notTried: no more than its status.
func judgeVendor(status int, body []byte) verdict {
	codes, ok := vendorCodes[status]
	if !ok {
		return notTried
	}
	e, ok := messages.ParseVendorError(body)
	if !ok {
		return notTried
	}
	if v := cmp.Or(codes[e.Code], codes[e.Type]); v != notTried {
		return v
	}
	if deniesModel(status, e.Message) {
		return noModel
	}
	return notTried
}

// modelDenied is how vendors without a code say that they do not know a model: "Model
// Not Exist" (DeepSeek, 400), "The model `x` does not exist." (vLLM, 404), `model "x" not
// found, try pulling it first` (Ollama, 404). A name is one word.
var modelDenied = regexp.MustCompile(`^(?i:(?:the )?model:? (?:\S+ )?(?:does not exist|not exist|(?:is |was )?not found))\b`)

// deniesModel reads the beginning of a message, since the rest may echo what a client
// wrote. A 400 may even begin so: with the name of a field that the client made up, as in
// "NAME: Extra inputs are not permitted". There it must be all of the message.
func deniesModel(status int, message string) bool {
	said := modelDenied.FindString(message)
	switch status {
	case http.StatusNotFound:
		return said != ""
	case http.StatusBadRequest:
		return said != "" && (message == said || message == said+".")
	}
	return false
}

// spendCode: a monthly cap is sent as 429 and lasts until it is raised or the
// month ends; a billing_error is the stop of a budget, as a relay before this one sends
// it, see failure.write. Source: https://platform.claude.com/docs/en/api/rate-limits.
func spendCode(e messages.Error) bool {
	if e.Error.Type == messages.Billing {
		return true
	}
	if e.Error.Details == nil {
		return false
	}
	code := e.Error.Details.ErrorCode
	return code == "enforced_spend_limit_reached" || code == "contract_spend_limit_reached" || code == "linked_organization_spend_limit_reached"
}

// spendWordings begin the messages of limits that customers set themselves,
// which come as 400. Only the beginning counts: the rest of a message may echo
// what a client wrote.
var spendWordings = []string{
	"You have reached your specified API usage limits",
	"You have reached your specified workspace API usage limits",
	"Your credit balance is too low",
}

// extraField ends what the API says of a field that it does not know, after the name
// that the client gave it.
const extraField = ": Extra inputs are not permitted"

func spendWording(e messages.Error) bool {
	if e.Error.Type != messages.InvalidRequest || strings.HasSuffix(e.Error.Message, extraField) {
		return false
	}
	for _, w := range spendWordings {
		if strings.HasPrefix(e.Error.Message, w) {
			return true
		}
	}
	return false
}

// unknownModel: the API names the model it does not know; other 404s are about
// resources in the request.
func unknownModel(e messages.Error) bool {
	return e.Error.Type == messages.NotFound && strings.HasPrefix(e.Error.Message, "model")
}

// accountCodes blame a 403 on the account rather than on the request.
var accountCodes = map[string]bool{
	"organization_on_hold":                    true,
	"linked_organization_billing_unavailable": true,
	"cmek_key_unreachable":                    true,
}

func blamesAccount(body []byte) bool {
	e, ok := messages.ParseError(body)
	return ok && e.Error.Details != nil && accountCodes[e.Error.Details.ErrorCode]
}

// judgeError says what a failed round trip, or a failed read before the answer
// was worth showing, means. cause is why the attempt's context ended, if it did.
func judgeError(err, cause error) verdict {
	var connect *provider.ConnectError
	switch {
	case errors.Is(cause, errTimeout):
		return timedOut
	case errors.Is(cause, context.Canceled), errors.Is(cause, errStopped):
		return clientGone
	case errors.As(err, &connect):
		return unreachable
	}
	return lost
}
