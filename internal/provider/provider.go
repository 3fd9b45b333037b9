// Package provider turns a request into one for a particular upstream: its URL,
// its credential, its headers. It sends nothing and judges no answer.
package provider

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// Provider is one configured upstream. Implementations are safe for concurrent use.
type Provider interface {
	// Name is the configured name.
	Name() string
	// NewRequest builds the request that puts call to this upstream with the
	// given key; an empty key sets no credential. No header of the client but
	// those of [ForwardHeaders] goes along.
	NewRequest(ctx context.Context, call *Call, apiKey string) (*http.Request, error)
}

// Call is a client's request as far as it concerns an upstream.
type Call struct {
	Method   string
	Path     string               // of the Messages API, from /v1/ on
	RawQuery string               // forwarded as it came
	Header   http.Header          // the client's, unfiltered; not modified
	Body     func() io.ReadCloser // a fresh reader for each attempt; nil without a body
	Length   int64                // bytes in Body
	// Own: the client's own credential goes along, and no key.
	Own bool
}

// kinds is the table of upstreams: a new one is a file and a line here.
var kinds = map[string]func(Config) (Provider, error){
	KindAnthropic: newAnthropic,
}

// Kinds returns the names of all kinds, sorted.
func Kinds() []string {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// New returns the provider that cfg describes. Errors: an unknown kind or
// auth, a base URL that cannot be used.
func New(cfg Config) (Provider, error) {
	if cfg.Kind == "" {
		cfg.Kind = KindAnthropic
	}
	build, ok := kinds[cfg.Kind]
	if !ok {
		return nil, fmt.Errorf("provider %s: kind %q is unknown; write one of %s", cfg.Name, cfg.Kind, strings.Join(Kinds(), ", "))
	}
	return build(cfg)
}
