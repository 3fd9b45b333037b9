package config

import (
	"path/filepath"
	"strings"
)

// node is a value of a document, whichever format that is written in.
type node struct {
	kind  nodeKind
	at    place   // where it begins
	text  string  // of a scalar: as written, without its quotes
	pairs []pair  // of a mapping: in the order of the file; a name may come twice
	items []*node // of a list
}

// pair is an entry of a mapping. Its value is nil if its name is more than a name.
type pair struct {
	name  string
	at    place
	value *node
}

type nodeKind int

const (
	nodeNull   nodeKind = iota
	nodeScalar          // one value; how to read it is for the field to say, so that "50", 50 and "${FIFTY}" are one
	nodeMapping
	nodeList
	nodeFancy // what of YAML is not supported
)

// isTOML reports whether the file of this name is TOML; all others are YAML.
func isTOML(name string) bool { return strings.EqualFold(filepath.Ext(name), ".toml") }

// byFormat is what a message advises to write, in both formats.
type byFormat struct{ yaml, toml string }

var (
	minimal = byFormat{
		`write at least: providers: [{ keys: [{ key: "${ANTHROPIC_API_KEY}" }] }]`,
		`write at least: providers = [{ keys = [{ key = "${ANTHROPIC_API_KEY}" }] }]`,
	}
	minimalPrices = byFormat{
		"write at least: prices: [{ model: NAME, input: 3, output: 15 }]",
		`write at least: prices = [{ model = "NAME", input = 3, output = 15 }]`,
	}
	howMapping = byFormat{`must be a mapping; write "name: value" lines`, `must be a table; write "name = value" lines`}
	howList    = byFormat{`must be a list; start each entry with "- "`, "must be an array; write [ ] around its entries"}
)

// in returns what to write in the file of this name.
func (b byFormat) in(file string) string {
	if isTOML(file) {
		return b.toml
	}
	return b.yaml
}
