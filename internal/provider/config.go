package provider

import (
	"time"

	"cc-relay/internal/secret"
)

// Config describes one upstream. Its keys belong to the key pool, not here.
type Config struct {
	// Name identifies the provider in logs, headers and rules; required, unique.
	Name string `yaml:"name"`
	// Kind names the constructor; empty means anthropic.
	Kind string `yaml:"kind,omitempty"`
	// BaseURL is scheme, host and optional path prefix; /v1/messages is joined to
	// it without doubling /v1. Plain http is accepted for loopback hosts only,
	// unless AllowHTTP is set. Its host may have private addresses, but none that is
	// unspecified, link-local, multicast or of a cloud's metadata service.
	BaseURL string `yaml:"base_url"`
	// Auth is the header that carries the key: x-api-key (also when empty) or bearer.
	Auth string `yaml:"auth,omitempty"`
	// Headers are set on every request to this provider, over the client's. Where the
	// client's own credential goes along they only add to what it sends, and add no
	// credential.
	Headers map[string]secret.Value `yaml:"headers,omitempty"`
	// CAFile is a PEM bundle that replaces the system's roots for this provider.
	CAFile string `yaml:"ca_file,omitempty"`
	// AllowHTTP permits plain http to a host that is not loopback.
	AllowHTTP bool `yaml:"allow_http,omitempty"`

	// DialTimeout bounds one connect including DNS and TLS; 0 means 5 s.
	DialTimeout time.Duration `yaml:"dial_timeout,omitempty"`
	// FirstTokenTimeout bounds the wait for the first content of a stream; 0 means 120 s.
	FirstTokenTimeout time.Duration `yaml:"first_token_timeout,omitempty"`
	// ResponseTimeout bounds the wait for a whole answer that is not a stream; 0 means 600 s.
	ResponseTimeout time.Duration `yaml:"response_timeout,omitempty"`
	// IdleTimeout is the longest silence of an open stream; 0 means 330 s where Origin is
	// anthropic, above the 300 s at which clients give up, and else 240 s: there the relay
	// sends pings of its own, so that clients do not.
	IdleTimeout time.Duration `yaml:"idle_timeout,omitempty"`
	// HealthCheck is how often a provider that has failed, and is left alone for it, is
	// asked by a free call (its list of models) whether it is back; 0: never, the next
	// request finds out.
	HealthCheck time.Duration `yaml:"health_check,omitempty"`
	// Origin names who made the models: thinking blocks are left out of requests to
	// another origin than the one that made them. Empty means anthropic for hosts of
	// anthropic.com, and else the provider's name.
	Origin string `yaml:"origin,omitempty"`
}

// OriginAnthropic is the origin of Claude, wherever it is served.
const OriginAnthropic = "anthropic"
