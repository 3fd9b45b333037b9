package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// Both SDKs run the same tests.
var sdks = map[string]sdk{"v1": sdkV1, "v2": sdkV2}

// sdk is one version of the official Go SDK.
type sdk struct {
	version    string // of the API, which it asks for
	credential string // header that it puts an API key into
	// connect begins a conversation, with retries off.
	connect func(baseURL string, c credential) conversation
}

// credential is a relay token and how it is handed to an SDK.
type credential struct {
	token string
	way   string
}

// Ways of handing over a token.
const (
	asAPIKey    = "as the API key"       // the SDK chooses the header
	asAuthToken = "as an auth token"     // Authorization: Bearer
	asHeader    = "in x-api-key by hand" // for SDKs that would not send it
)

// conversation is a client in use. An answer of the API that is an error comes as
// *refusal, made from the SDK's typed error; any other error as it is.
type conversation interface {
	Ask(ctx context.Context, q question) (reply, error)
	Count(ctx context.Context, text string) (int64, error)
	Models(ctx context.Context) ([]string, error)
	Model(ctx context.Context, id string) (string, error)
}

// question is the next user turn: text, or the result of the tool last called.
type question struct {
	text       string
	toolResult string
	stream     bool
	leaveAfter int // events of a stream; 0: none, the stream is read to its end
}

// reply is an answer as the SDK understood it.
type reply struct {
	id, model, text, stopReason string
	toolName, toolInput         string
	input, output               int64 // tokens
	events                      int   // of a stream
}

// refusal is an error of the API.
type refusal struct {
	status int
	kind   string
	body   string
	header http.Header
}

func (r *refusal) Error() string { return fmt.Sprintf("%d %s: %s", r.status, r.kind, r.body) }

// What all conversations are held with.
const (
	modelAsked = "claude-sonnet-5-5"
	maxTokens  = 1000
	toolGiven  = "get_weather"
)

// bench is a client before a relay before one provider or more.
type bench struct {
	provider *provider // the first
	relay    *relay
	wire     *wiretap
}

func setUp(t *testing.T, change func(*simulator.Config)) *bench {
	t.Helper()
	return before(t, startProvider(t, change))
}

// before puts a relay and a wiretap before the providers.
func before(t *testing.T, providers ...*provider) *bench {
	t.Helper()
	r := startRelay(t, providers...)
	return &bench{provider: providers[0], relay: r, wire: tap(t, r.addr)}
}

func forEachSDK(t *testing.T, test func(t *testing.T, s sdk)) {
	for name, s := range sdks {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
}

func (b *bench) connect(s sdk) conversation {
	return s.connect(b.wire.url(), credential{relayToken, asAPIKey})
}

// said makes every answer of the provider this text.
func said(text string) func(*simulator.Config) {
	return func(cfg *simulator.Config) {
		cfg.Reply = func(simulator.Request) simulator.Reply {
			return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: text}}}
		}
	}
}

const verse = "One relay, many keys — “ünïcode” and\nlines, each in its place.\tThat is all of it."

func TestSDKAnswerIsTheSameWholeAndStreamed(t *testing.T) {
	forEachSDK(t, func(t *testing.T, s sdk) {
		b := setUp(t, said(verse))
		whole, err := b.connect(s).Ask(t.Context(), question{text: "Say it."})
		require.NoError(t, err)
		streamed, err := b.connect(s).Ask(t.Context(), question{text: "Say it.", stream: true})
		require.NoError(t, err)

		assert.Greater(t, streamed.events, 6, "events of the stream")
		assert.NotEqual(t, whole.id, streamed.id)
		assert.Equal(t, verse, whole.text)
		assert.Equal(t, modelAsked, whole.model)
		assert.Equal(t, "end_turn", whole.stopReason)
		assert.EqualValues(t, simulator.CountTokens(len(verse)), whole.output)
		assert.Positive(t, whole.input)
		streamed.id, streamed.events = whole.id, whole.events
		assert.Equal(t, whole, streamed)

		sent, got := b.wire.exchanges(t), b.provider.Seen()
		require.Len(t, sent, 2)
		require.Len(t, got, 2)
		for i := range sent {
			assertCarried(t, sent[i], got[i])
			assert.Equal(t, got[i].RequestID, sent[i].Response.Header.Get("Request-Id"))
			assert.Equal(t, s.version, got[i].Header.Get("Anthropic-Version"))
			assert.Contains(t, sent[i].Request.Header.Get(s.credential), relayToken, "the SDK's own header")
		}
	})
}

func TestSDKToolRoundTrip(t *testing.T) {
	for _, stream := range []bool{false, true} {
		t.Run(fmt.Sprintf("stream %t", stream), func(t *testing.T) {
			forEachSDK(t, func(t *testing.T, s sdk) {
				b := setUp(t, nil)
				talk := b.connect(s)
				const input = `{"city":"Reykjavík","days":12345678901234567}`
				asked, err := talk.Ask(t.Context(), question{text: "[use-tool:" + toolGiven + " " + input + "]", stream: stream})
				require.NoError(t, err)
				assert.Equal(t, "tool_use", asked.stopReason)
				assert.Equal(t, toolGiven, asked.toolName)
				assert.Equal(t, input, asked.toolInput)

				done, err := talk.Ask(t.Context(), question{toolResult: "21 degrees", stream: stream})
				require.NoError(t, err)
				assert.Equal(t, "end_turn", done.stopReason)
				assert.Equal(t, "The tool answered: 21 degrees", done.text)
				sent, got := b.wire.exchanges(t), b.provider.Seen()
				require.Len(t, sent, 2)
				require.Len(t, got, 2)
				assertCarried(t, sent[1], got[1])
			})
		})
	}
}

func TestSDKCountsTokens(t *testing.T) {
	forEachSDK(t, func(t *testing.T, s sdk) {
		b := setUp(t, nil)
		short, err := b.connect(s).Count(t.Context(), "short")
		require.NoError(t, err)
		long, err := b.connect(s).Count(t.Context(), strings.Repeat("long ", 4000))
		require.NoError(t, err)
		assert.Greater(t, long, short+4000)
		assert.Equal(t, "/v1/messages/count_tokens", b.provider.Seen()[0].Target)
	})
}

func TestSDKListsModels(t *testing.T) {
	forEachSDK(t, func(t *testing.T, s sdk) {
		served := []string{"claude-opus-5-5", modelAsked, "claude-haiku-4-5-20251001"}
		b := setUp(t, func(cfg *simulator.Config) { cfg.Models = served })
		b.provider.awaitOwnList(t)
		talk := b.connect(s)
		listed, err := talk.Models(t.Context())
		require.NoError(t, err)
		assert.Equal(t, served, listed)

		one, err := talk.Model(t.Context(), "claude-haiku-4-5")
		require.NoError(t, err)
		assert.Equal(t, "claude-haiku-4-5-20251001", one)
		_, err = talk.Model(t.Context(), "claude-none")
		refused := requireRefusal(t, err)
		assert.Equal(t, http.StatusNotFound, refused.status)
		assert.Equal(t, "not_found_error", refused.kind)
	})
}

// The relay's own list is of all its providers, and pages of it ask none of them.
func TestSDKListsModelsOfTwoProviders(t *testing.T) {
	forEachSDK(t, func(t *testing.T, s sdk) {
		served := [2][]string{
			{"claude-opus-5-5", modelAsked},
			{modelAsked, "claude-haiku-5-5", "claude-fable-5-2", "claude-haiku-4-5-20251001"},
		}
		var p [2]*provider
		for i, name := range []string{"a", "b"} {
			p[i] = startProvider(t, func(cfg *simulator.Config) {
				cfg.Models, cfg.Organizations = served[i], organizations([]string{keyA, keyB}[i])
			})
			p[i].name = name
		}
		b := before(t, p[:]...)
		p[0].awaitOwnList(t)
		p[1].awaitOwnList(t)
		talk := b.connect(s)
		listed, err := talk.Models(t.Context())
		require.NoError(t, err)
		assert.Equal(t, append(served[0], served[1][1:]...), listed)
		one, err := talk.Model(t.Context(), "claude-fable-5-2")
		require.NoError(t, err)
		assert.Equal(t, "claude-fable-5-2", one)

		assert.Equal(t, []string{
			"GET /v1/models?limit=2 200",
			"GET /v1/models?after_id=claude-sonnet-5-5&limit=2 200",
			"GET /v1/models?after_id=claude-fable-5-2&limit=2 200",
			"GET /v1/models/claude-fable-5-2 200",
		}, targets(b.wire.exchanges(t)))
		for i := range p {
			assert.Empty(t, p[i].Seen(), "requests for clients at provider %s", p[i].name)
			assert.Len(t, p[i].Simulator.Seen(), 1, "requests at provider %s", p[i].name)
		}
	})
}

func TestSDKTokenIsAcceptedInEitherHeader(t *testing.T) {
	for _, way := range []string{asAPIKey, asAuthToken, asHeader} {
		t.Run(way, func(t *testing.T) {
			forEachSDK(t, func(t *testing.T, s sdk) {
				b := setUp(t, said(verse))
				got, err := s.connect(b.wire.url(), credential{relayToken, way}).Ask(t.Context(), question{text: "Say it."})
				require.NoError(t, err)
				assert.Equal(t, verse, got.text)
				sent := b.wire.exchanges(t)
				require.Len(t, sent, 1)
				want := map[string]string{asAPIKey: s.credential, asAuthToken: "Authorization", asHeader: "X-Api-Key"}[way]
				for _, name := range []string{"Authorization", "X-Api-Key"} {
					assert.Equal(t, name == want, sent[0].Request.Header.Get(name) != "", "the SDK sends %s", name)
				}
				assertCarried(t, sent[0], b.provider.Seen()[0])
			})
		})
	}
}

func TestSDKDoesNotNoticeALimitedKey(t *testing.T) {
	for _, stream := range []bool{false, true} {
		t.Run(fmt.Sprintf("stream %t", stream), func(t *testing.T) {
			forEachSDK(t, func(t *testing.T, s sdk) {
				b := setUp(t, func(cfg *simulator.Config) {
					said(verse)(cfg)
					cfg.Faults = []simulator.Fault{{Nth: 1, Kind: simulator.FaultStatus, Status: 429, Headers: map[string]string{"Retry-After": "30"}}}
				})
				for range 4 {
					got, err := b.connect(s).Ask(t.Context(), question{text: "Say it.", stream: stream})
					require.NoError(t, err)
					assert.Equal(t, verse, got.text)
				}
				seen := b.provider.keysSeen()
				require.NotEmpty(t, seen)
				assert.Len(t, seen, 5, "requests of four answers and a refusal: %s", seen)
				assert.NotContains(t, seen[1:], seen[0], "a cooling key is not asked again")
				sent := b.wire.exchanges(t)
				require.Len(t, sent, 4)
				assert.Equal(t, "2", sent[0].Response.Header.Get("X-Cc-Relay-Attempts"))
				assert.Equal(t, "1", sent[1].Response.Header.Get("X-Cc-Relay-Attempts"))
			})
		})
	}
}

func TestSDKIsToldWhenADryPoolRecovers(t *testing.T) {
	for name, tc := range map[string]struct {
		first, others string // retry-after of the provider, seconds, for key A and for the rest
		want          string
	}{
		"soon":                                  {"5", "9", "5"},
		"within the patience of Claude Code":    {"100", "150", "60"},
		"at its end":                            {"180", "200", "60"},
		"too late to wait for":                  {"200", "300", "200"},
		"the first key to recover is not key A": {"300", "7", "7"},
	} {
		t.Run(name, func(t *testing.T) {
			forEachSDK(t, func(t *testing.T, s sdk) {
				b := setUp(t, func(cfg *simulator.Config) {
					cfg.Faults = []simulator.Fault{
						{Key: keyA, Kind: simulator.FaultStatus, Status: 429, Headers: map[string]string{"Retry-After": tc.first}},
						{Kind: simulator.FaultStatus, Status: 429, Headers: map[string]string{"Retry-After": tc.others}},
					}
				})
				_, err := b.connect(s).Ask(t.Context(), question{text: "Say it.", stream: true})
				refused := requireRefusal(t, err)
				assert.Equal(t, http.StatusTooManyRequests, refused.status)
				assert.Equal(t, "rate_limit_error", refused.kind)
				assert.Equal(t, tc.want, refused.header.Get("Retry-After"))
				assert.Len(t, b.wire.exchanges(t), 1, "requests of the client")
				assert.ElementsMatch(t, b.provider.keys, b.provider.keysSeen(), "every key was asked once")

				_, err = b.connect(s).Ask(t.Context(), question{text: "Again."})
				assert.Equal(t, "rate_limit_error", requireRefusal(t, err).kind)
				assert.Len(t, b.provider.Seen(), 3, "a dry pool asks nobody")
			})
		})
	}
}

func TestSDKWithAWrongTokenIsToldOnce(t *testing.T) {
	forEachSDK(t, func(t *testing.T, s sdk) {
		b := setUp(t, nil)
		_, err := s.connect(b.wire.url(), credential{"not-a-token-of-the-relay", asAPIKey}).Ask(t.Context(), question{text: "Let me in."})
		refused := requireRefusal(t, err)
		assert.Equal(t, http.StatusUnauthorized, refused.status)
		assert.Equal(t, "authentication_error", refused.kind)
		assert.Equal(t, "false", refused.header.Get("X-Should-Retry"))
		assert.NotContains(t, refused.body, "not-a-token-of-the-relay")
		assert.Empty(t, b.provider.Seen(), "requests at the provider")
	})
}

// Clients act on the wording of errors, so it must not change on the way.
func TestSDKGetsTheProvidersWording(t *testing.T) {
	const body = `{"type":"error", "error":{"details":null,"type":"invalid_request_error","message":"messages.1.content.0: prompt is too long: 210000 tokens > 200000 maximum <é>"},"request_id":"req_011"}`
	forEachSDK(t, func(t *testing.T, s sdk) {
		b := setUp(t, func(cfg *simulator.Config) {
			cfg.Faults = []simulator.Fault{{Kind: simulator.FaultStatus, Status: 400, Body: body}}
		})
		_, err := b.connect(s).Ask(t.Context(), question{text: "Too long.", stream: true})
		refused := requireRefusal(t, err)
		assert.Equal(t, http.StatusBadRequest, refused.status)
		assert.Equal(t, "invalid_request_error", refused.kind)
		assert.Equal(t, body, refused.body)
		assert.Len(t, b.provider.Seen(), 1, "a request's own fault is tried once")
		assert.Equal(t, b.provider.Seen()[0].RequestID, refused.header.Get("Request-Id"))
	})
}

// Events must come as they are made: a stream that is held back to its end would
// pass every other test here. A client that leaves must not be paid for.
func TestSDKSeesEventsBeforeTheStreamEnds(t *testing.T) {
	forEachSDK(t, func(t *testing.T, s sdk) {
		b := setUp(t, func(cfg *simulator.Config) {
			said(verse)(cfg)
			cfg.Faults = []simulator.Fault{{Kind: simulator.FaultStall, AfterEvents: 5}} // until the client leaves
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		// One of the five is a ping, which the SDKs keep to themselves.
		got, err := b.connect(s).Ask(ctx, question{text: "Say it.", stream: true, leaveAfter: 4})
		require.NoError(t, err)
		assert.Equal(t, 4, got.events)
		assert.Eventually(t, func() bool { return b.provider.Seen()[0].ClientLeft }, 10*time.Second, 5*time.Millisecond,
			"the provider goes on for a client that has left")
	})
}

// requireRefusal also checks that the SDK found the API's error shape.
func requireRefusal(t *testing.T, err error) *refusal {
	t.Helper()
	require.Error(t, err)
	refused, ok := err.(*refusal) //nolint:errorlint // conversations return it bare
	require.True(t, ok, "want an error of the API, got %v", err)
	require.True(t, json.Valid([]byte(refused.body)), "body of the error: %s", refused.body)
	return refused
}
