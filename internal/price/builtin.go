package price

import (
	_ "embed"

	"github.com/goccy/go-yaml"
)

// File is a price list as it is written.
type File struct {
	// AsOf is the day on which the prices were right: YYYY-MM-DD, or empty.
	AsOf   string  `yaml:"as_of,omitempty"`
	Prices []Price `yaml:"prices"`
}

//go:embed prices.yaml
var builtInFile []byte

// BuiltIn returns the price list of this release. The caller owns it.
func BuiltIn() File {
	var f File
	if err := yaml.UnmarshalWithOptions(builtInFile, &f, yaml.Strict()); err != nil {
		panic(err) // a test reads the same bytes
	}
	return f
}
