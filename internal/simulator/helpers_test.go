package simulator_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// oneOrg is a provider of a single organization with the key "k1".
func oneOrg(l simulator.Limits) simulator.Config {
	return simulator.Config{Organizations: []simulator.Organization{
		{ID: "org-a", Limits: l, Keys: []simulator.Key{{Key: "k1"}}},
	}}
}

func newSim(t testing.TB, cfg simulator.Config) *simulator.Simulator {
	t.Helper()
	sim, err := simulator.New(cfg)
	require.NoError(t, err)
	return sim
}

// say is a body with one user message.
func say(text string, stream bool, maxTokens int) string {
	b, err := json.Marshal(map[string]any{
		"model": "claude-opus-5-5", "max_tokens": maxTokens, "stream": stream,
		"messages": []any{map[string]any{"role": "user", "content": text}},
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

func request(method, target, key, body string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("X-Api-Key", key)
	r.Header.Set("Anthropic-Version", "2023-06-01")
	return r
}

// post serves one message without a network.
func post(sim http.Handler, key, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	sim.ServeHTTP(w, request(http.MethodPost, "/v1/messages", key, body))
	return w
}

// postOver serves one message over a real connection; err is that of the round
// trip or of reading the body.
func postOver(t *testing.T, url, key, body string) (*http.Response, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/messages", strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("X-Api-Key", key)
	r.Header.Set("Anthropic-Version", "2023-06-01")
	r.Close = true
	resp, err := new(http.Transport).RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			if err.Error() == "EOF" {
				err = nil
			}
			return resp, b.String(), err
		}
	}
}

// usage is what an answer reports.
type usage struct {
	Input    int `json:"input_tokens"`
	Written  int `json:"cache_creation_input_tokens"`
	Read     int `json:"cache_read_input_tokens"`
	Output   int `json:"output_tokens"`
	Creation struct {
		Short int `json:"ephemeral_5m_input_tokens"`
		Long  int `json:"ephemeral_1h_input_tokens"`
	} `json:"cache_creation"`
}

// message is an answer that is not a stream.
type message struct {
	ID, Type, Role, Model string
	Content               []struct {
		Type, Text, Name, Thinking, Signature, ID string
		Input                                     json.RawMessage
	}
	StopReason string `json:"stop_reason"`
	Usage      usage
}

func decode(t testing.TB, body string) message {
	t.Helper()
	var m message
	require.NoError(t, json.Unmarshal([]byte(body), &m), "body: %s", body)
	return m
}

// event is one SSE event.
type event struct {
	name string
	data map[string]any
}

// events checks the framing of a stream and splits it.
func events(t *testing.T, stream string) []event {
	t.Helper()
	require.True(t, strings.HasSuffix(stream, "\n\n"), "stream does not end with a whole frame: %q", stream)
	var list []event
	for f := range strings.SplitSeq(strings.TrimSuffix(stream, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(f, "\n")
		require.True(t, ok, "frame: %q", f)
		e := event{name: strings.TrimPrefix(name, "event: ")}
		require.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(data, "data: ")), &e.data), "frame: %q", f)
		require.Equal(t, e.name, e.data["type"])
		list = append(list, e)
	}
	return list
}

func names(list []event) []string {
	var n []string
	for _, e := range list {
		n = append(n, e.name)
	}
	return n
}

func errorType(t testing.TB, body string) string {
	t.Helper()
	var e struct {
		Type      string
		Error     struct{ Type, Message string }
		RequestID string `json:"request_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(body), &e), "body: %s", body)
	require.Equal(t, "error", e.Type)
	require.NotEmpty(t, e.Error.Message)
	return e.Error.Type
}
