package proxy_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"

	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"

	"github.com/rs/zerolog"
)

func itoa(n int) string { return strconv.Itoa(n) }

// memory is a provider behind a transport that needs no network.
func memory(rt http.RoundTripper) upstream {
	return upstream{Config: provider.Config{Name: "a", BaseURL: "http://127.0.0.1:1"}, keys: []string{keyOf("a", 1)}, transport: rt}
}

// roundTrip is a transport made of a function, which must close the request's body.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answering is a transport that reads requests and answers each with a body of
// this media type.
func answering(kind string, body func() io.Reader) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
		}
		return &http.Response{
			StatusCode: 200, Header: http.Header{"Content-Type": {kind}, "Request-Id": {"req_memory"}},
			ContentLength: -1, Request: r, Body: io.NopCloser(body()),
		}, nil
	}
}

// handlerFunc serves bodies of alice's without a network.
func handlerFunc(live *proxy.Live, log zerolog.Logger) func(body string) *httptest.ResponseRecorder {
	h := proxy.NewHandler(live, log)
	return func(body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, aliceRequest(body))
		return w
	}
}

func aliceRequest(body string) *http.Request {
	r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(body))
	r.Host = "relay"
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Api-Key", aliceToken)
	r.Header.Set("Anthropic-Version", "2023-06-01")
	return r
}
