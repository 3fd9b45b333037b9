package config

import (
	"os"
	"slices"
	"strings"
	"sync"

	"cc-relay/internal/secret"
)

// Sources are where a configuration takes its secrets from: variables, files and
// descriptors. A descriptor can be read only once, so what it held is remembered here,
// and a configuration that is loaded again with the same Sources finds it. The zero
// Sources are ready. Safe for concurrent use.
type Sources struct {
	// Take takes variables that held a secret out of the environment, where other code
	// and child processes would find them, and remembers them too.
	Take bool

	mu          sync.Mutex
	variables   map[string]secret.Value // guarded by mu; no longer in the environment
	descriptors map[int]secret.Value    // guarded by mu; read to their end
}

// Load is the function Load with these sources.
func (s *Sources) Load(path string) (*Config, error) {
	cfg, d, err := load(path, s.variable, s.descriptor)
	if err != nil {
		return nil, err
	}
	s.take(d.names)
	if err := d.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// FromEnv is the function FromEnv with these sources.
func (s *Sources) FromEnv() (cfg *Config, ok bool, err error) {
	cfg, ok, err = FromEnv(s.variable)
	s.take([]string{manyKeys, oneKey})
	return cfg, ok, err
}

// variable looks a variable up.
func (s *Sources) variable(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.variables[name]; ok {
		return v.Reveal(), true
	}
	return os.LookupEnv(name)
}

// take moves variables out of the environment.
func (s *Sources) take(names []string) {
	if !s.Take {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		value, ok := os.LookupEnv(name)
		if !ok || isSettings(name) {
			continue
		}
		if s.variables == nil {
			s.variables = map[string]secret.Value{}
		}
		s.variables[name] = secret.New(value)
		_ = os.Unsetenv(name) // it has been set, so its name is one
		blank(name, value)
	}
}

// settings are variables that the relay or Go's libraries read later: they stay, even
// where somebody sends one in a header.
var settings = []string{"HOME", "PATH", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "TERM", "NO_COLOR"}

func isSettings(name string) bool {
	return slices.Contains(settings, name) || strings.HasPrefix(name, "XDG_")
}

// descriptor is what an inherited descriptor holds.
func (s *Sources) descriptor(n int) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.descriptors[n]; ok {
		return v.Reveal(), nil
	}
	text, err := readDescriptor(n)
	if err != nil {
		return "", err
	}
	if s.descriptors == nil {
		s.descriptors = map[int]secret.Value{}
	}
	s.descriptors[n] = secret.New(text)
	return text, nil
}
