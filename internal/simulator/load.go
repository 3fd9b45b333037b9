package simulator

import (
	"errors"
	"fmt"
	"io"

	"github.com/goccy/go-yaml"
)

// LoadConfig reads one YAML document of a [Config], strictly: an unknown or
// repeated field, a wrong type or a second document is an error with its line. An
// empty file is an error; what a file leaves out takes the defaults of Config, not
// those of DefaultConfig.
func LoadConfig(r io.Reader) (Config, error) {
	dec := yaml.NewDecoder(r, yaml.Strict())
	var cfg Config
	err := dec.Decode(&cfg)
	if errors.Is(err, io.EOF) {
		return Config{}, errors.New("simulator config is empty; write at least one field, such as start_level: 1")
	}
	if err != nil {
		// Line and column, without the excerpt of the file: it may hold a key.
		return Config{}, fmt.Errorf("simulator config: %s", yaml.FormatError(err, false, false))
	}
	var more any
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("simulator config: only one YAML document is read; remove what follows ---")
	}
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return Config{}, fmt.Errorf("simulator config: %w", err)
	}
	return cfg, nil
}
