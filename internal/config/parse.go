package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

const (
	maxFileBytes = 1 << 20
	// maxFlowDepth and maxColumn bound how deep a document nests: the parser is
	// recursive, and a stack that overflows cannot be recovered.
	maxFlowDepth = 16
	maxColumn    = 400
)

const minimal = `write at least: providers: [{ keys: [{ key: "${ANTHROPIC_API_KEY}" }] }]`

// Parse reads a configuration from data. name stands for the file in messages.
// env looks up variables, as os.LookupEnv does. What data leaves out has its
// default. The error joins one *Mistake for everything that is wrong, in the
// order of the file; some wrap an *InvalidPriorityError or *InvalidWeightError.
// No error holds a secret. Files named by the configuration are read to check
// them. Safe for concurrent use.
func Parse(name string, data []byte, env func(string) (string, bool)) (*Config, error) {
	cfg, d := parse(name, data, env)
	if err := d.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

func parse(name string, data []byte, env func(string) (string, bool)) (*Config, *decoder) {
	d := &decoder{report: newReport(name), env: env}
	cfg := Default()
	body := d.document(data, minimal)
	if body == nil {
		return &cfg, d
	}
	d.value("", body, reflect.ValueOf(&cfg).Elem())
	if d.failed[""] {
		return &cfg, d
	}
	for i := range cfg.Providers {
		cfg.Providers[i].finish()
	}
	cfg.validate(d.report)
	return &cfg, d
}

// document returns the root of the one document in data, or reports why there is none;
// least is the least that it must say.
func (d *decoder) document(data []byte, least string) ast.Node {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if len(data) > maxFileBytes {
		d.addf("", "larger than %d bytes; a configuration is never that large", maxFileBytes)
		return nil
	}
	if !utf8.Valid(data) {
		d.addf("", "not UTF-8 text; save the file as UTF-8")
		return nil
	}
	file, err := parseYAML(string(data))
	if err != nil {
		d.syntax(err, string(data))
		return nil
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	switch len(bodies) {
	case 0:
		d.addf("", "empty; %s", least)
		return nil
	case 1:
		return bodies[0]
	}
	d.addAt(placeOf(first(bodies[1])), "", errors.New("a second document; remove the --- line before it"))
	return nil
}

// parseYAML also turns a panic of the parser into an error: a slip in a file that
// is read while the relay serves must not end the process.
func parseYAML(text string) (file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml parser: %v", p)
		}
	}()
	tokens := lexer.Tokenize(text)
	if deep := tooDeep(tokens); deep != nil {
		return nil, &yaml.SyntaxError{Message: "nested too deep", Token: deep}
	}
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// tooDeep returns the token with which nesting exceeds all that a configuration
// needs. A level of block style takes at least one column, a level of flow style
// a bracket.
func tooDeep(tokens token.Tokens) *token.Token {
	depth := 0
	for _, t := range tokens {
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
			continue
		case token.StringType, token.SingleQuoteType, token.DoubleQuoteType, token.CommentType, token.CollectEntryType:
			continue
		}
		if depth > maxFlowDepth || (depth <= 0 && t.Position.Column > maxColumn && t.Indicator != token.NotIndicator) {
			return t
		}
	}
	return nil
}

// syntax reports an error of the parser by its message and place only: its full
// text quotes the source. Words in quotes are dropped for the same reason.
func (d *decoder) syntax(err error, text string) {
	message, at := "not valid YAML", place{}
	var se yaml.Error
	if errors.As(err, &se) {
		reason, _, _ := strings.Cut(se.GetMessage(), `"`)
		message += ": " + strings.TrimRight(reason, ": ")
		at = placeOf(se.GetToken())
	}
	if strings.Contains(line(text, at.line), "${") {
		message += `; a variable inside { } or [ ] needs quotes: "${NAME}"`
	}
	d.addAt(at, "", errors.New(message))
}

// line returns the nth line of text, from 1, or "".
func line(text string, n int) string {
	for i := 1; text != ""; i++ {
		l, rest, _ := strings.Cut(text, "\n")
		if i == n {
			return l
		}
		text = rest
	}
	return ""
}
