// Package config reads the relay's configuration: one YAML or TOML file, or a key in
// the environment. It composes the Config types of the packages that use them, and
// reports every mistake at once with its place, without ever showing a secret.
// It starts nothing, watches nothing and is imported by no part it configures.
package config

import (
	_ "embed"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
)

// Config is the whole configuration. Only Providers is required. A Config that
// Load, Parse or FromEnv returned is complete and valid.
type Config struct {
	Server Server `yaml:"server"`
	Admin  Admin  `yaml:"admin"`
	// Clients may use the relay. None: no token is asked, and Server.Listen must
	// be a loopback address.
	Clients []auth.ClientConfig `yaml:"clients,omitempty"`
	Logging Logging             `yaml:"logging"`
	// Metrics is on or off: whether requests, keys and providers are counted for
	// Prometheus. Default on.
	Metrics string        `yaml:"metrics"`
	Tracing Tracing       `yaml:"tracing"`
	Routing router.Config `yaml:"routing"`
	// Models are the rules that lead requests to providers; the first that matches
	// counts. None: all requests go to all providers.
	Models []router.Rule `yaml:"models,omitempty"`
	// Aliases are other names of models, for clients to use; an alias may name another.
	Aliases map[string]string `yaml:"aliases,omitempty"`
	// Prices is a file of prices that go before the built-in ones, see LoadPrices.
	// Empty: none do. A relative path counts from the directory that the relay was
	// started in, as that of a provider's ca_file does.
	Prices string `yaml:"prices,omitempty"`
	// Passthrough sends a client's own Anthropic credential, where it sends one instead
	// of a token of the relay, to the first provider of Anthropic's, outside the pool.
	Passthrough bool `yaml:"passthrough,omitempty"`
	// Classes put models in other classes than the relay's own table does. The
	// first rule that matches counts.
	Classes []keypool.ClassRule `yaml:"classes,omitempty"`
	// Providers are the upstreams, in the order that Routing tries them; at least one.
	Providers []Provider `yaml:"providers"`

	secretFiles []string // that secrets were read from
}

// Server is the relay's own listener.
type Server struct {
	// Listen is HOST:PORT; port 0 picks a free one. Default 127.0.0.1:8787.
	Listen string `yaml:"listen"`
	// DrainTimeout is how long running streams may go on after a signal to stop.
	// Above 0; default 10 minutes.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// Expose adds the x-cc-relay-* headers to answers. Default true.
	Expose bool `yaml:"expose"`
	// MaxBodyBytes is the largest request body, in bytes, 1 to 1 GiB. Default
	// 32 MiB, which is what the Messages API accepts:
	// https://platform.claude.com/docs/en/api/overview
	MaxBodyBytes int64 `yaml:"max_body_bytes"`
	// State is on or off: whether what the relay learns is kept for its next start.
	// Default on.
	State string `yaml:"state"`
	// Limits bound what clients can take of the relay.
	Limits Limits `yaml:"limits"`
	// StateDir is the directory that keeps it, an absolute path. Empty, the
	// default: see StatePath.
	StateDir string `yaml:"state_dir"`
	// TLS is what the listener proves itself with. Unset: it speaks plain HTTP.
	TLS TLS `yaml:"tls,omitempty"`
	// InsecureCleartext allows plain HTTP on a Listen that other machines reach, for
	// where something before the relay encrypts. Default false.
	InsecureCleartext bool `yaml:"insecure_cleartext,omitempty"`
	// AllowedHosts are host names, without a port, that requests may be addressed to
	// besides those of this machine. A name of an attacker's that resolves to this
	// machine is none of them.
	AllowedHosts []string `yaml:"allowed_hosts,omitempty"`
	// AllowedOrigins are SCHEME://HOST[:PORT] of pages that may send requests.
	// None: no page of another origin may.
	AllowedOrigins []string `yaml:"allowed_origins,omitempty"`
}

// Values of Server.State.
const (
	StateOn  = "on"
	StateOff = "off"
)

// TLS is a certificate and its key, both or neither, as PEM files. A relative path
// counts from the directory that the relay was started in.
type TLS struct {
	// CertFile has the certificate, then those that lead to its root.
	CertFile string `yaml:"cert_file,omitempty"`
	// KeyFile has the private key, unencrypted; its owner alone may read it.
	KeyFile string `yaml:"key_file,omitempty"`
}

// IsZero reports whether no certificate is configured.
func (t TLS) IsZero() bool { return t == TLS{} }

// Admin is the listener for operators. Its tokens are kept with the state, so it is
// off where Server.State is.
type Admin struct {
	// Listen is HOST:PORT, unix:/PATH or off; port 0 picks a free one. Default
	// 127.0.0.1:8788, and off if Server.State is off. See Address.
	Listen string `yaml:"listen"`
	// PProf serves the profiles of the running process. Default false.
	PProf bool `yaml:"pprof,omitempty"`
	// TLS, InsecureCleartext and AllowedHosts are as in Server.
	TLS               TLS      `yaml:"tls,omitempty"`
	InsecureCleartext bool     `yaml:"insecure_cleartext,omitempty"`
	AllowedHosts      []string `yaml:"allowed_hosts,omitempty"`
}

// AdminOff is the value of Admin.Listen for no listener.
const AdminOff = "off"

const adminListen = "127.0.0.1:8788"

// Address returns what net.Listen takes, tcp or unix and the address. Both are "" if
// there is no admin listener.
func (a Admin) Address() (network, address string) {
	if a.Listen == AdminOff || a.Listen == "" {
		return "", ""
	}
	if path, ok := strings.CutPrefix(a.Listen, unixPrefix); ok {
		return "unix", path
	}
	return "tcp", a.Listen
}

const unixPrefix = "unix:"

// Values of Config.Metrics.
const (
	MetricsOn  = "on"
	MetricsOff = "off"
)

// Tracing says where spans of requests are sent.
type Tracing struct {
	// Endpoint is the http or https URL of an OTLP receiver. Empty, the default:
	// nothing is traced.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Headers are set on what is sent there.
	Headers map[string]secret.Value `yaml:"headers,omitempty"`
	// Sample is the share of requests that are traced, 0 to 1. Default 1.
	Sample float64 `yaml:"sample"`
	// Propagate sends the trace's id on to providers. Default false.
	Propagate bool `yaml:"propagate,omitempty"`
}

// StatePath is the directory that keeps the relay's state: StateDir, or else
// cc-relay under XDG_STATE_HOME or ~/.local/state. It is "" if State is off.
// Error: no directory is set and the user has no home.
// https://specifications.freedesktop.org/basedir-spec/latest/
func (s Server) StatePath() (string, error) {
	if s.State == StateOff {
		return "", nil
	}
	if s.StateDir != "" {
		return s.StateDir, nil
	}
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil || !filepath.IsAbs(home) {
			return "", errors.New("no directory for the relay's state: set server.state_dir, or server.state: off")
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "cc-relay"), nil
}

// Logging says what is logged and how.
type Logging struct {
	// Level is trace, debug, info, warn or error. Default info.
	Level string `yaml:"level"`
	// Format is json (a line of JSON each) or console (for reading). Default json.
	Format string `yaml:"format"`
}

// Provider is one upstream with its keys.
type Provider struct {
	provider.Config `yaml:",inline"`
	Pool            keypool.PoolConfig `yaml:"pool"`
	// Keys are the provider's credentials, in the order that ties are broken. None:
	// requests carry no key, for servers of one's own.
	Keys []keypool.KeyConfig `yaml:"keys,omitempty"`
}

// PoolConfig returns the configuration of the provider's pool, its keys filled in.
// The keys are shared with p, not copied.
func (p Provider) PoolConfig() keypool.PoolConfig {
	pool := p.Pool
	pool.Keys = p.Keys
	return pool
}

// Routes returns the configuration of the router, rules and aliases filled in. They
// are shared with c, not copied.
func (c *Config) Routes() router.Config {
	routes := c.Routing
	routes.Rules, routes.Aliases = c.Models, c.Aliases
	return routes
}

const anthropicURL = "https://api.anthropic.com"

// Default returns the configuration of an empty file: every default filled in, no
// clients and no providers. It is not valid before a provider is added.
func Default() Config {
	retry := true
	cfg := Config{
		Server:  Server{Listen: "127.0.0.1:8787", Expose: true, State: StateOn},
		Admin:   Admin{Listen: adminListen},
		Logging: Logging{Level: "info", Format: "json"},
		Metrics: MetricsOn,
		Tracing: Tracing{Sample: 1},
		Routing: router.Config{Strategy: router.StrategyFailover, RetryUnknown: &retry},
	}
	cfg.setBounds()
	return cfg
}

// finish fills what depends on other values.
func (c *Config) finish() {
	if c.Admin.Listen == "" {
		c.Admin.Listen = adminListen
		if c.Server.State == StateOff {
			c.Admin.Listen = AdminOff
		}
	}
	for i := range c.Providers {
		c.Providers[i].finish()
	}
}

// setDefaults fills p before the file is read over it, so that a written zero is
// seen as such and refused where it makes no sense.
func (p *Provider) setDefaults() {
	p.Config = p.WithDefaults()
	p.IdleTimeout = notGiven
	p.Pool.Strategy = keypool.StrategyLeastLoaded
	wait := keypool.DefaultMaxWait
	p.Pool.MaxWait = &wait
	p.Pool.Affinity = keypool.AffinityOn
	waiting := keypool.DefaultMaxWaiting
	p.Pool.MaxWaiting = &waiting
}

// notGiven stands for a time whose default depends on other values, until finish.
const notGiven = time.Duration(math.MinInt64)

// finish fills what depends on other values. Keys of another vendor must never go
// to Anthropic because a base URL was forgotten, so only one kind has a default.
func (p *Provider) finish() {
	if p.Name == "" {
		p.Name = p.Kind
	}
	if p.BaseURL == "" && p.Kind == provider.KindAnthropic {
		p.BaseURL = anthropicURL
	}
	if p.IdleTimeout == notGiven {
		p.IdleTimeout = 0
		p.IdleTimeout = p.WithDefaults().IdleTimeout
	}
}

// Redacted returns cfg as YAML with every key, token and header value replaced by
// a placeholder. Hashes of tokens are shown. With the placeholders filled in, the
// text is a configuration that parses to cfg again.
func Redacted(cfg *Config) ([]byte, error) {
	shown := *cfg
	shown.Server.StateDir = escape(cfg.Server.StateDir)
	shown.Server.TLS = escapeTLS(cfg.Server.TLS)
	shown.Admin.TLS = escapeTLS(cfg.Admin.TLS)
	shown.Admin.Listen = escape(cfg.Admin.Listen)
	shown.Tracing.Endpoint = escape(cfg.Tracing.Endpoint)
	shown.Classes = make([]keypool.ClassRule, len(cfg.Classes))
	for i, rule := range cfg.Classes {
		shown.Classes[i].Class = escape(rule.Class)
		shown.Classes[i].Models = escapeAll(rule.Models)
	}
	shown.Prices = escape(cfg.Prices)
	shown.Routing.Default = escapeAll(cfg.Routing.Default)
	shown.Models = make([]router.Rule, len(cfg.Models))
	for i, rule := range cfg.Models {
		rule.Match, rule.Clients, rule.Targets = escapeAll(rule.Match), escapeAll(rule.Clients), escapeAll(rule.Targets)
		rule.Class = escape(rule.Class)
		shown.Models[i] = rule
	}
	shown.Aliases = make(map[string]string, len(cfg.Aliases))
	for name, model := range cfg.Aliases {
		shown.Aliases[name] = escape(model)
	}
	shown.Providers = make([]Provider, len(cfg.Providers))
	for i, p := range cfg.Providers {
		p.BaseURL = escape(p.BaseURL)
		p.Origin = escape(p.Origin)
		p.CAFile = escape(p.CAFile)
		shown.Providers[i] = p
	}
	out, err := yaml.Marshal(shown)
	if err != nil {
		return nil, fmt.Errorf("show configuration: %w", err)
	}
	return out, nil
}

// escape undoes the expansion of variables: a dollar sign is written as two.
func escape(s string) string { return strings.ReplaceAll(s, "$", "$$") }

func escapeTLS(t TLS) TLS { return TLS{CertFile: escape(t.CertFile), KeyFile: escape(t.KeyFile)} }

func escapeAll(list []string) []string {
	var all []string
	for _, s := range list {
		all = append(all, escape(s))
	}
	return all
}

//go:embed example.yaml
var example []byte

// Example returns a commented configuration file that names every setting with
// its default. It loads when ANTHROPIC_API_KEY is set. The caller owns the bytes.
func Example() []byte { return append([]byte(nil), example...) }
