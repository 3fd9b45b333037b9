package config

import (
	"errors"
	"iter"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// errPlainOnly keeps a value where it is used: a key that is merged in from
// elsewhere is easily pasted into a bug report unseen.
var errPlainOnly = errors.New("anchors, aliases, merge keys and tags are not supported; write the value itself")

// decoder fills Go values from a parsed document by their yaml tags. It goes on
// after a mistake, where the library's own decoder stops at the first and quotes
// the source, secrets included.
type decoder struct {
	*report
	env      func(string) (string, bool)
	literals []string // paths of secrets that the file itself holds
}

// value decodes node into dst. A null leaves dst as it is.
func (d *decoder) value(path string, node ast.Node, dst reflect.Value) {
	switch node.(type) {
	case *ast.NullNode:
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		d.add(path, errPlainOnly)
		return
	}
	switch {
	case dst.Type() == secretType:
		d.scalar(path, node, dst)
	case dst.Kind() == reflect.Pointer:
		dst.Set(reflect.New(dst.Type().Elem()))
		d.value(path, node, dst.Elem())
	case dst.Kind() == reflect.Struct:
		d.structure(path, node, dst)
	case dst.Kind() == reflect.Map:
		d.table(path, node, dst)
	case dst.Kind() == reflect.Slice:
		d.list(path, node, dst)
	default:
		d.scalar(path, node, dst)
	}
}

func (d *decoder) structure(path string, node ast.Node, dst reflect.Value) {
	fields, names := fieldsOf(dst.Type())
	for name, pair := range d.pairs(path, node) {
		field, ok := fields[name]
		if !ok {
			d.unknown(path, name, pair.Key, names)
			continue
		}
		child := join(path, name)
		d.places[child] = d.at(pair)
		d.value(child, pair.Value, dst.FieldByIndex(field))
	}
}

// table decodes a mapping with free names: the headers of a provider.
func (d *decoder) table(path string, node ast.Node, dst reflect.Value) {
	elems := reflect.MakeMap(dst.Type())
	for name, pair := range d.pairs(path, node) {
		child := join(path, name)
		d.places[child] = d.at(pair)
		elem := reflect.New(dst.Type().Elem()).Elem()
		d.value(child, pair.Value, elem)
		elems.SetMapIndex(reflect.ValueOf(name), elem)
	}
	if elems.Len() > 0 {
		dst.Set(elems)
	}
}

func (d *decoder) list(path string, node ast.Node, dst reflect.Value) {
	seq, ok := node.(*ast.SequenceNode)
	if !ok {
		d.addf(path, `must be a list; start each entry with "- "`)
		return
	}
	if len(seq.Values) == 0 {
		return
	}
	dst.Set(reflect.MakeSlice(dst.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		child := path + "[" + strconv.Itoa(i) + "]"
		d.places[child] = placeOf(first(item))
		elem := dst.Index(i)
		if with, ok := elem.Addr().Interface().(interface{ setDefaults() }); ok {
			with.setDefaults()
		}
		d.value(child, item, elem)
	}
}

// pairs yields the entries of a mapping by name and reports names written twice.
func (d *decoder) pairs(path string, node ast.Node) iter.Seq2[string, *ast.MappingValueNode] {
	return func(yield func(string, *ast.MappingValueNode) bool) {
		m, ok := node.(ast.MapNode)
		if !ok {
			d.addf(path, `must be a mapping; write "name: value" lines`)
			return
		}
		seen := map[string]place{}
		for it := m.MapRange(); it.Next(); {
			pair := it.KeyValue()
			at := placeOf(pair.Key.GetToken())
			if !plainKey(pair.Key) {
				d.addAt(at, path, errPlainOnly)
				continue
			}
			name := pair.Key.GetToken().Value
			if before, twice := seen[name]; twice {
				d.addAt(at, shownPath(path, name), errors.New("written twice, first on line "+strconv.Itoa(before.line)+"; remove one"))
				continue
			}
			seen[name] = at
			if !yield(name, pair) {
				return
			}
		}
	}
}

// plainKey reports whether key is a name and nothing else.
func plainKey(key ast.MapKeyNode) bool {
	switch key.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return true
	}
	return false
}

func (d *decoder) unknown(path, name string, key ast.MapKeyNode, known []string) {
	hint := "known here: " + strings.Join(known, ", ")
	if near := nearest(name, known); near != "" {
		hint = "did you mean " + near + "?"
	}
	d.addAt(placeOf(key.GetToken()), shownPath(path, name), errors.New("unknown field; "+hint))
}

// at returns the place of a pair's value if it is a scalar, else that of its name.
func (d *decoder) at(pair *ast.MappingValueNode) place {
	switch pair.Value.(type) {
	case *ast.NullNode, *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		return placeOf(pair.Key.GetToken())
	}
	return placeOf(pair.Value.GetToken())
}

// fieldsOf maps the yaml names of a struct, those of inlined structs included, to
// field indexes, and returns the names in order.
func fieldsOf(t reflect.Type) (fields map[string][]int, names []string) {
	fields = map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			continue
		}
		fields[name] = f.Index
		names = append(names, name)
	}
	return fields, names
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

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// shownPath is join for a name that the file chose.
func shownPath(path, name string) string {
	if !harmless(name) {
		return path
	}
	return join(path, name)
}
