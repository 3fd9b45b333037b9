package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// KindAnthropic is any endpoint that speaks the Anthropic Messages API.
const KindAnthropic = "anthropic"

// Headers that may carry the key.
const (
	AuthAPIKey = "x-api-key"
	AuthBearer = "bearer"
)

// anthropic sends the request as it came, but for credential and address.
type anthropic struct {
	name   string
	base   url.URL
	bearer bool
	extra  http.Header
}

func newAnthropic(cfg Config) (Provider, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		// The parser's own error quotes the URL, which may hold a password.
		return nil, fmt.Errorf("provider %s: base_url is not a URL like https://api.anthropic.com", cfg.Name)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("provider %s: base_url must have no user, query or fragment", cfg.Name)
	}
	if at, err := netip.ParseAddr(base.Hostname()); err == nil && forbidden(at) {
		return nil, fmt.Errorf("provider %s: base_url: %w", cfg.Name, errForbidden)
	}
	if cfg.Auth != "" && cfg.Auth != AuthAPIKey && cfg.Auth != AuthBearer {
		return nil, fmt.Errorf("provider %s: auth %q is unknown; write %s or %s", cfg.Name, cfg.Auth, AuthAPIKey, AuthBearer)
	}
	// Users write the base URL with and without /v1, as different clients ask for it.
	prefix := strings.TrimSuffix(strings.TrimSuffix(base.Path, "/"), "/v1")
	p := &anthropic{
		name:   cfg.Name,
		base:   url.URL{Scheme: base.Scheme, Host: base.Host, Path: prefix},
		bearer: cfg.Auth == AuthBearer,
		extra:  make(http.Header, len(cfg.Headers)),
	}
	for name, value := range cfg.Headers {
		p.extra.Set(name, value.Reveal())
	}
	return p, nil
}

func (p *anthropic) Name() string { return p.name }

func (p *anthropic) NewRequest(ctx context.Context, call *Call, apiKey string) (*http.Request, error) {
	if !strings.HasPrefix(call.Path, "/v1/") {
		return nil, errors.New("provider: path is not of the Messages API")
	}
	target := p.base
	target.Path += call.Path
	target.RawQuery = call.RawQuery

	header := make(http.Header, len(call.Header)+len(p.extra)+2)
	ForwardHeaders(header, call.Header)
	// Own answers are read on the way: ask for plain bytes.
	header["Accept-Encoding"] = identity
	if call.Own {
		forwardCredential(header, call.Header)
	} else if apiKey != "" && p.bearer {
		header["Authorization"] = []string{"Bearer " + apiKey}
	} else if apiKey != "" {
		header["X-Api-Key"] = []string{apiKey}
	}
	for name, values := range p.extra {
		// What a client sends by itself goes unchanged, and is its credential alone.
		if _, sent := header[name]; call.Own && (sent || slices.Contains(credentials, name)) {
			continue
		}
		header[name] = values
	}

	req := blank.WithContext(ctx)
	req.Method, req.URL, req.Host, req.Header = call.Method, &target, target.Host, header
	if call.Body != nil {
		req.ContentLength = call.Length
		req.Body = call.Body()
		// Lets the transport send again on a fresh connection when a kept one
		// turns out closed before a byte was written.
		req.GetBody = func() (io.ReadCloser, error) { return call.Body(), nil }
	}
	return req, nil
}

// blank is what requests are copied from: http.NewRequest would parse the URL again.
var blank = &http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}

var identity = []string{"identity"}
