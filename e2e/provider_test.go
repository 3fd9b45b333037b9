package e2e_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// Keys of the simulated provider, each of an organization of its own.
const (
	keyA = "sk-simulated-aaaaaaaa"
	keyB = "sk-simulated-bbbbbbbb"
	keyC = "sk-simulated-cccccccc"
)

// provider is the simulator on a loopback port.
type provider struct {
	*simulator.Simulator
	url  string
	keys []string
}

// startProvider serves keys A to C without limits; change may set the rest.
func startProvider(t *testing.T, change func(*simulator.Config)) *provider {
	t.Helper()
	p := &provider{keys: []string{keyA, keyB, keyC}}
	cfg := simulator.Config{KeepBodies: true}
	for _, k := range p.keys {
		cfg.Organizations = append(cfg.Organizations, simulator.Organization{
			ID: "org-of-" + k, Keys: []simulator.Key{{Key: k, Name: k}},
		})
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	p.Simulator, err = simulator.New(cfg)
	require.NoError(t, err)
	server := httptest.NewServer(p.Simulator)
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// keysSeen names the keys the provider was asked with, in order.
func (p *provider) keysSeen() []string {
	var keys []string
	for _, r := range p.Seen() {
		keys = append(keys, r.Key)
	}
	return keys
}

// passed are the families of request headers that reach the provider as the
// client sent them.
var passed = []string{"Anthropic-", "X-Stainless-", "X-Claude-Code-", "X-App", "User-Agent", "Content-Type", "Accept"}

func mustPass(name string) bool {
	for _, family := range passed {
		if name == family || strings.HasSuffix(family, "-") && strings.HasPrefix(name, family) {
			return true
		}
	}
	return false
}

// assertCarried checks that the provider saw the request as the client sent it, but
// with a pool key in the place of the relay's token.
func assertCarried(t *testing.T, sent exchange, got simulator.Record) {
	t.Helper()
	assert.Equal(t, sent.Request.Method, got.Method)
	assert.Equal(t, sent.Request.RequestURI, got.Target, "path and query")
	assert.True(t, bytes.Equal(sent.Body, got.Body), "body: sent\n%s\ngot\n%s", sent.Body, got.Body)
	for name, values := range sent.Request.Header {
		if mustPass(name) {
			assert.Equal(t, values, got.Header[name], "header %s", name)
		}
	}
	assertCredential(t, got.Header, got.Key)
}

// assertCredential checks that key is the only credential among the headers.
func assertCredential(t *testing.T, h http.Header, key string) {
	t.Helper()
	assert.Equal(t, []string{key}, h["X-Api-Key"])
	assert.NotContains(t, h, "Authorization")
	for name, values := range h {
		assert.NotContains(t, strings.Join(values, " "), relayToken, "header %s", name)
	}
}
