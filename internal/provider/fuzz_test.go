package provider_test

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
)

// FuzzNewRequest: whatever base URL, path, query and header come together, the request
// goes to the host that is configured, below the path that is, with the query as it
// came; the one credential is the key; and no header passes but those of the families
// and the four that are named, unchanged.
func FuzzNewRequest(f *testing.F) {
	f.Add("https://api.anthropic.com", "/v1/messages", "beta=true", "Anthropic-Beta", "a,b", false)
	f.Add("http://[::1]:8080/a/v1/", "/v1/models/../..//evil?c#d", "a=%20+x;y", "x-api-key", "mine", true)
	f.Add("https://gw.example.com/%2e%2e/x", "/v1/models/http:@evil", "?#", "connection", "Authorization", false)
	f.Add("https://a@b", "/v2", "", "Proxy-Authorization", "\r\nX: y", true)
	f.Add("https://a//b/v1", "/v1//", "", "ANTHROPIC-VERSION", "2023-06-01", false)
	f.Fuzz(func(t *testing.T, base, path, query, name, value string, bearer bool) {
		cfg := provider.Config{Name: "main", BaseURL: base}
		if bearer {
			cfg.Auth = provider.AuthBearer
		}
		p, err := provider.New(cfg)
		where, parseErr := url.Parse(base)
		if err != nil {
			assert.Contains(t, err.Error(), "provider main: base_url ")
			return
		}
		require.NoError(t, parseErr)
		header := http.Header{"Authorization": {"Bearer client"}, "X-Api-Key": {"client"}, "Cookie": {"client"}}
		header.Add(name, value)
		sent := header.Clone()
		call := &provider.Call{Method: "POST", Path: path, RawQuery: query, Header: header, Length: 2, Body: func() io.ReadCloser { return io.NopCloser(strings.NewReader("{}")) }}
		req, err := p.NewRequest(t.Context(), call, "key")
		require.Equal(t, sent, header, "the client's headers were changed")
		require.Equal(t, !strings.HasPrefix(path, "/v1/"), err != nil)
		if err != nil {
			return
		}
		assert.Equal(t, [2]string{where.Scheme, where.Host}, [2]string{req.URL.Scheme, req.URL.Host})
		assert.Equal(t, req.URL.Host, req.Host)
		assert.True(t, strings.HasSuffix(req.URL.Path, path) && strings.HasPrefix(where.Path+"/v1/", strings.TrimSuffix(req.URL.Path, path)), "%q and %q became %q", base, path, req.URL.Path)
		assert.Equal(t, query, req.URL.RawQuery)
		assert.Nil(t, req.URL.User)
		assert.Empty(t, req.URL.Fragment)

		key := map[bool]http.Header{true: {"Authorization": {"Bearer key"}}, false: {"X-Api-Key": {"key"}}}[bearer]
		for got, values := range req.Header {
			switch {
			case key[got] != nil:
				assert.Equal(t, key[got], values, got)
			case got == "Accept-Encoding":
				assert.Equal(t, []string{"identity"}, values)
			case got == "User-Agent" && values == nil:
			default:
				assert.Equal(t, sent[got], values, got)
				open := strings.HasPrefix(got, "Anthropic-") || strings.HasPrefix(got, "X-Claude-Code-") || strings.HasPrefix(got, "X-Stainless-")
				assert.True(t, open || got == "Accept" || got == "Content-Type" || got == "User-Agent" || got == "X-App", "header %q passed", got)
			}
		}
		for own, values := range key {
			assert.Equal(t, values, req.Header[own])
		}
		body, err := io.ReadAll(req.Body)
		require.NoError(t, err)
		assert.Equal(t, "{}", string(body))
		assert.Equal(t, int64(2), req.ContentLength)
	})
}
