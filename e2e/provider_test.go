package e2e_test

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// Keys of the simulated providers, each of an organization of its own.
const (
	keyA = "sk-simulated-aaaaaaaa"
	keyB = "sk-simulated-bbbbbbbb"
	keyC = "sk-simulated-cccccccc"
	keyD = "sk-simulated-dddddddd"
)

// provider is the simulator on a loopback port.
type provider struct {
	*simulator.Simulator
	name, origin string // as the relay has it; no origin: its default
	url          string
	keys         []string

	server *httptest.Server
	away   bool // its port is shut
}

// startProvider serves keys A to C without limits; change may set the rest.
func startProvider(t *testing.T, change func(*simulator.Config)) *provider {
	t.Helper()
	cfg := simulator.Config{KeepBodies: true, Organizations: organizations(keyA, keyB, keyC)}
	if change != nil {
		change(&cfg)
	}
	for i := range cfg.Faults {
		if cfg.Faults[i].Path == "" { // the relay's own requests shall not use them up
			cfg.Faults[i].Path = modelCall
		}
	}
	p := &provider{name: "simulated"}
	for _, o := range cfg.Organizations {
		p.keys = append(p.keys, o.Keys[0].Key)
	}
	var err error
	p.Simulator, err = simulator.New(cfg)
	require.NoError(t, err)
	p.server = httptest.NewServer(p.Simulator)
	t.Cleanup(p.server.Close)
	p.url = p.server.URL
	return p
}

func organizations(keys ...string) (list []simulator.Organization) {
	for _, k := range keys {
		list = append(list, simulator.Organization{ID: "org-of-" + k, Keys: []simulator.Key{{Key: k, Name: k}}})
	}
	return list
}

// shut makes the port refuse connections. An answer under way is still given.
func (p *provider) shut(t *testing.T) {
	p.away = true
	p.server.Config.SetKeepAlivesEnabled(false) // also ends idle connections
	assert.NoError(t, p.server.Listener.Close())
}

// open serves the same port again; one that is open stays so.
func (p *provider) open(t *testing.T) {
	if !p.away {
		return
	}
	l, err := net.Listen("tcp", p.server.Listener.Addr().String())
	if !assert.NoError(t, err) {
		return
	}
	p.away, p.server.Listener = false, l
	p.server.Config.SetKeepAlivesEnabled(true)
	go func() { _ = p.server.Config.Serve(l) }() // until l is closed
}

// What providers are asked for: model calls by clients, the list by the relay itself.
const (
	modelCall = "/v1/messages"
	ownList   = "/v1/models?limit=1000"
)

// Seen is what clients wanted of the provider: all but the relay's own requests.
func (p *provider) Seen() []simulator.Record {
	return slices.DeleteFunc(p.Simulator.Seen(), func(r simulator.Record) bool { return r.Target == ownList })
}

// awaitOwnList waits until the relay has asked for the list. A client gets what is
// there of it within the relay's patience, which a busy machine may outlast.
func (p *provider) awaitOwnList(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(p.Simulator.Seen(), func(r simulator.Record) bool { return r.Target == ownList && r.Done })
	}, 10*time.Second, time.Millisecond, "the relay does not ask %s for its models", p.name)
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
	assertHead(t, sent, got)
	assert.True(t, bytes.Equal(sent.Body, got.Body), "body: sent\n%s\ngot\n%s", sent.Body, got.Body)
}

// assertHead is assertCarried without the body.
func assertHead(t *testing.T, sent exchange, got simulator.Record) {
	t.Helper()
	assert.Equal(t, sent.Request.Method, got.Method)
	assert.Equal(t, sent.Request.RequestURI, got.Target, "path and query")
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
