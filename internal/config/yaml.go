package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxFlowDepth and maxColumn bound how deep a document nests: the parser is
// recursive, and a stack that overflows cannot be recovered.
const (
	maxFlowDepth = 16
	maxColumn    = 400
)

// readYAML returns the root of the one document in text, or nil if it is empty or
// reported.
func (d *decoder) readYAML(text string) *node {
	file, err := parseYAML(text)
	if err != nil {
		d.syntaxYAML(err, text)
		return nil
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	if len(bodies) == 0 {
		return nil
	}
	if len(bodies) > 1 {
		d.addAt(placeOf(first(bodies[1])), "", errors.New("a second document; remove the --- line before it"))
		return nil
	}
	return nodeOf(bodies[0])
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

// syntaxYAML reports an error of the parser by its message and place only: its full
// text quotes the source. Words in quotes are dropped for the same reason.
func (d *decoder) syntaxYAML(err error, text string) {
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

// nodeOf turns a value of the library into one of ours.
func nodeOf(n ast.Node) *node {
	out := &node{at: placeOf(first(n))}
	switch n := n.(type) {
	case *ast.NullNode:
		out.kind = nodeNull
	case *ast.StringNode:
		out.kind, out.text = nodeScalar, n.Value
	case *ast.LiteralNode:
		out.kind, out.text = nodeScalar, n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		out.kind, out.text = nodeScalar, n.GetToken().Value
	case ast.MapNode:
		out.kind = nodeMapping
		for it := n.MapRange(); it.Next(); {
			out.pairs = append(out.pairs, pairOf(it.KeyValue()))
		}
	case *ast.SequenceNode:
		out.kind = nodeList
		for _, item := range n.Values {
			out.items = append(out.items, nodeOf(item))
		}
	default:
		out.kind = nodeFancy
	}
	return out
}

func pairOf(n *ast.MappingValueNode) pair {
	p := pair{at: placeOf(n.Key.GetToken())}
	switch n.Key.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		p.name, p.value = n.Key.GetToken().Value, nodeOf(n.Value)
	}
	return p
}

// first returns the token at which node begins; that of a mapping in block style
// is its first name, where the library gives the colon.
func first(node ast.Node) *token.Token {
	switch n := node.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return n.Values[0].Key.GetToken()
		}
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	}
	return node.GetToken()
}

func placeOf(t *token.Token) place {
	if t == nil || t.Position == nil {
		return place{}
	}
	return place{t.Position.Line, t.Position.Column}
}
