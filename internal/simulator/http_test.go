package simulator_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

func TestCredentials(t *testing.T) {
	tests := map[string]struct {
		headers map[string]string
		want    int
	}{
		"x-api-key":                   {map[string]string{"X-Api-Key": "k1"}, 200},
		"bearer":                      {map[string]string{"Authorization": "Bearer k1"}, 200},
		"bearer in lower case":        {map[string]string{"Authorization": "bearer k1"}, 200},
		"both, x-api-key counts":      {map[string]string{"X-Api-Key": "k1", "Authorization": "Bearer other"}, 200},
		"both, x-api-key wrong":       {map[string]string{"X-Api-Key": "other", "Authorization": "Bearer k1"}, 401},
		"none":                        {nil, 401},
		"unknown":                     {map[string]string{"X-Api-Key": "unheard-of"}, 401},
		"another scheme":              {map[string]string{"Authorization": "Basic k1"}, 401},
		"the name of a key is no key": {map[string]string{"X-Api-Key": "key-1"}, 401},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := request(http.MethodPost, "/v1/messages?beta=true", "", say("hi", false, 5))
			r.Header.Del("X-Api-Key")
			for k, v := range tt.headers {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			newSim(t, oneOrg(simulator.Limits{})).ServeHTTP(w, r)
			require.Equal(t, tt.want, w.Code, w.Body.String())
			if tt.want == 401 {
				assert.Equal(t, "authentication_error", errorType(t, w.Body.String()))
				assert.NotContains(t, w.Body.String(), "unheard-of")
			}
		})
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	ok := say("hi", false, 5)
	tests := map[string]struct {
		body      string
		noVersion bool
		status    int
		want      string
	}{
		"no version":          {body: ok, noVersion: true, status: 400, want: "anthropic-version"},
		"not JSON":            {body: `{"model":`, status: 400, want: "not valid JSON"},
		"empty":               {body: ``, status: 400, want: "not valid JSON"},
		"not an object":       {body: `[]`, status: 400, want: "JSON object"},
		"no model":            {body: `{"max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, status: 400, want: "model"},
		"no max_tokens":       {body: `{"model":"claude-x","messages":[{"role":"user","content":"x"}]}`, status: 400, want: "max_tokens"},
		"null max_tokens":     {body: `{"model":"claude-x","max_tokens":null,"messages":[{"role":"user","content":"x"}]}`, status: 400, want: "max_tokens"},
		"negative max_tokens": {body: say("x", false, -1), status: 400, want: "max_tokens"},
		"fraction max_tokens": {body: strings.Replace(ok, ":5", ":5.5", 1), status: 400, want: "max_tokens"},
		"prewarm in a stream": {body: say("x", true, 0), status: 400, want: "max_tokens"},
		"stream is a string":  {body: strings.Replace(ok, "false", `"no"`, 1), status: 400, want: "stream"},
		"no messages":         {body: `{"model":"claude-x","max_tokens":1}`, status: 400, want: "messages"},
		"empty messages":      {body: `{"model":"claude-x","max_tokens":1,"messages":[]}`, status: 400, want: "messages"},
		"unknown role":        {body: strings.Replace(ok, `"user"`, `"robot"`, 1), status: 400, want: "messages.0.role"},
		"no content":          {body: `{"model":"claude-x","max_tokens":1,"messages":[{"role":"user"}]}`, status: 400, want: "messages.0"},
		"block is a string":   {body: `{"model":"claude-x","max_tokens":1,"messages":[{"role":"user","content":["x"]}]}`, status: 400, want: "messages.0"},
		"system is a number":  {body: `{"model":"claude-x","max_tokens":1,"system":5,"messages":[{"role":"user","content":"x"}]}`, status: 400, want: "system"},
		"unknown model":       {body: strings.Replace(ok, "claude-opus-5-5", "gpt-9", 1), status: 404, want: "model: gpt-9"},
		"larger than 32 MB":   {body: strings.Repeat(" ", 32<<20) + ok, status: 413, want: "32 MB"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sim := newSim(t, oneOrg(simulator.Limits{RPM: 10}))
			r := request(http.MethodPost, "/v1/messages", "k1", tt.body)
			if tt.noVersion {
				r.Header.Del("Anthropic-Version")
			}
			w := httptest.NewRecorder()
			sim.ServeHTTP(w, r)
			require.Equal(t, tt.status, w.Code, w.Body.String())
			assert.Contains(t, w.Body.String(), tt.want)
			want := map[int]string{400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large"}
			assert.Equal(t, want[tt.status], errorType(t, w.Body.String()))
			for _, a := range sim.Snapshot(epoch).Accounts {
				assert.Zero(t, a.Offered, "a bad request costs nothing: %+v", a)
			}
		})
	}
}

func TestConfiguredModels(t *testing.T) {
	cfg := oneOrg(simulator.Limits{})
	cfg.Models = []string{"claude-opus-4-5-20251101", "other-model"}
	sim := newSim(t, cfg)
	for model, want := range map[string]int{
		"claude-opus-4-5-20251101": 200, "claude-opus-4-5": 200, "claude-opus-4-5-latest": 200, "other-model": 200,
		"claude-opus-4-5-20990101": 404, "claude-opus-5": 404,
	} {
		w := post(sim, "k1", strings.Replace(say("hi", false, 5), "claude-opus-5-5", model, 1))
		assert.Equal(t, want, w.Code, model)
	}
}

func TestOtherPaths(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	tests := map[string]struct {
		method, target string
		want           int
	}{
		"hello":              {http.MethodHead, "/api/hello", 200},
		"hello by GET":       {http.MethodGet, "/api/hello", 404},
		"messages by GET":    {http.MethodGet, "/v1/messages", 404},
		"a double slash":     {http.MethodPost, "//v1/messages", 404},
		"a slash at the end": {http.MethodPost, "/v1/messages/", 404},
		"batches":            {http.MethodPost, "/v1/messages/batches", 404},
		"telemetry":          {http.MethodPost, "/api/event_logging/batch", 404},
		"root":               {http.MethodGet, "/", 404},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			sim.ServeHTTP(w, httptest.NewRequest(tt.method, tt.target, nil))
			require.Equal(t, tt.want, w.Code)
			assert.NotEmpty(t, w.Header().Get("Request-Id"))
			if tt.want == 404 {
				assert.Equal(t, "not_found_error", errorType(t, w.Body.String()))
			}
		})
	}
}

func TestCountTokens(t *testing.T) {
	cfg := oneOrg(simulator.Limits{RPM: 10, ITPM: 1000})
	cfg.Organizations[0].CountTokensRPM = 2
	sim := newSim(t, cfg)
	count := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		body := `{"model":"claude-opus-5-5","system":"12345678","messages":[{"role":"user","content":"` + bigText + `"}]}`
		sim.ServeHTTP(w, request(http.MethodPost, "/v1/messages/count_tokens?beta=true", "k1", body))
		return w
	}
	w := count()
	require.Equal(t, http.StatusOK, w.Code, w.Body.String())
	assert.JSONEq(t, `{"input_tokens":1006}`, w.Body.String())
	assert.Equal(t, "2", w.Header().Get(rate+"requests-limit"))
	assert.Empty(t, w.Header().Get(rate+"input-tokens-limit"))
	count()
	w = count()
	assert.Equal(t, http.StatusTooManyRequests, w.Code)
	assert.Equal(t, "30", w.Header().Get("Retry-After"))
	w = post(sim, "k1", say("hi", false, 5))
	assert.Equal(t, "1000", w.Header().Get(rate+"input-tokens-limit"))
	assert.Equal(t, "9", w.Header().Get(rate+"requests-remaining"), "counting used none of the message limits")
}

func TestModelList(t *testing.T) {
	cfg := oneOrg(simulator.Limits{})
	cfg.Models = []string{"claude-a", "claude-b", "claude-opus-4-5-20251101", "claude-d", "claude-e"}
	sim := newSim(t, cfg)
	tests := map[string]struct {
		query string
		want  []string
		more  bool
	}{
		"all":               {"", cfg.Models, false},
		"claude code":       {"?limit=1000", cfg.Models, false},
		"first page":        {"?limit=2", cfg.Models[:2], true},
		"second page":       {"?limit=2&after_id=claude-b", cfg.Models[2:4], true},
		"last page":         {"?limit=2&after_id=claude-d", cfg.Models[4:], false},
		"after the last":    {"?after_id=claude-e", []string{}, false},
		"page before":       {"?limit=2&before_id=claude-e", cfg.Models[2:4], true},
		"first page before": {"?limit=2&before_id=claude-b", cfg.Models[:1], false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			sim.ServeHTTP(w, request(http.MethodGet, "/v1/models"+tt.query, "k1", ""))
			require.Equal(t, http.StatusOK, w.Code, w.Body.String())
			var page struct {
				Data []struct {
					ID, Type    string
					DisplayName string `json:"display_name"`
					CreatedAt   string `json:"created_at"`
				}
				HasMore bool    `json:"has_more"`
				FirstID *string `json:"first_id"`
				LastID  *string `json:"last_id"`
			}
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &page))
			ids := []string{}
			for _, m := range page.Data {
				ids = append(ids, m.ID)
				assert.Equal(t, "model", m.Type)
				if m.ID == "claude-opus-4-5-20251101" {
					assert.Equal(t, "Claude Opus 4 5", m.DisplayName)
					assert.Equal(t, "2025-11-01T00:00:00Z", m.CreatedAt)
				}
			}
			assert.Equal(t, tt.want, ids)
			assert.Equal(t, tt.more, page.HasMore)
			if len(ids) == 0 {
				assert.Nil(t, page.FirstID)
				return
			}
			assert.Equal(t, []string{ids[0], ids[len(ids)-1]}, []string{*page.FirstID, *page.LastID})
		})
	}
}

func TestModelListMistakes(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "after_id=nope", "before_id=nope", "after_id=a&before_id=b"} {
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, request(http.MethodGet, "/v1/models?"+query, "k1", ""))
		assert.Equal(t, http.StatusBadRequest, w.Code, query)
		assert.Equal(t, "invalid_request_error", errorType(t, w.Body.String()))
	}
}

func TestOneModel(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	for id, want := range map[string]string{"claude-opus-5-5": "claude-opus-5-5", "claude-opus-4-5": "claude-opus-4-5-20251101", "claude-none": ""} {
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, request(http.MethodGet, "/v1/models/"+id, "k1", ""))
		if want == "" {
			assert.Equal(t, http.StatusNotFound, w.Code)
			continue
		}
		var m struct{ ID, Line string }
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &m))
		assert.Equal(t, want, m.ID)
		assert.Equal(t, "opus", m.Line)
	}
}

func TestCountTokensRefusesWhatMessagesRefuses(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	for sent, want := range map[string]int{"{": 400, strings.Replace(say("hi", false, 5), "claude", "gpt", 1): 404} {
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, request(http.MethodPost, "/v1/messages/count_tokens", "k1", sent))
		assert.Equal(t, want, w.Code, w.Body.String())
	}
}

func TestABodyThatEndsEarly(t *testing.T) {
	sim := newSim(t, oneOrg(simulator.Limits{}))
	r := request(http.MethodPost, "/v1/messages", "k1", "")
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"model":`), iotest.ErrReader(io.ErrUnexpectedEOF)))
	w := httptest.NewRecorder()
	sim.ServeHTTP(w, r)
	assert.Equal(t, 400, w.Code)
	assert.True(t, sim.Seen()[0].ClientLeft)
}
