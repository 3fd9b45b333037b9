package config

import (
	"errors"
	"iter"
	"reflect"
	"strconv"
	"strings"
)

// errPlainOnly keeps a value where it is used: a key that is merged in from
// elsewhere is easily pasted into a bug report unseen.
var errPlainOnly = errors.New("anchors, aliases, merge keys and tags are not supported; write the value itself")

// decoder fills Go values from a parsed document by their yaml tags. It goes on
// after a mistake, where the library's own decoder stops at the first and quotes
// the source, secrets included.
type decoder struct {
	*report
	env        func(string) (string, bool)
	descriptor func(int) (string, error) // what one holds
	literals   []string                  // paths of secrets that the file itself holds
	names      []string                  // of variables that secrets are made of
	files      []string                  // that secrets are in
}

// value decodes n into dst. A null leaves dst as it is.
func (d *decoder) value(path string, n *node, dst reflect.Value) {
	switch n.kind {
	case nodeNull:
		return
	case nodeFancy:
		d.add(path, errPlainOnly)
		return
	}
	switch {
	case dst.Type() == secretType:
		d.scalar(path, n, dst)
	case dst.Kind() == reflect.Pointer:
		dst.Set(reflect.New(dst.Type().Elem()))
		d.value(path, n, dst.Elem())
	case dst.Kind() == reflect.Struct:
		d.structure(path, n, dst)
	case dst.Kind() == reflect.Map:
		d.table(path, n, dst)
	case dst.Kind() == reflect.Slice:
		d.list(path, n, dst)
	default:
		d.scalar(path, n, dst)
	}
}

func (d *decoder) structure(path string, n *node, dst reflect.Value) {
	fields, names := fieldsOf(dst.Type())
	for name, pair := range d.pairs(path, n) {
		field, ok := fields[name]
		if !ok {
			d.unknown(path, name, pair.at, names)
			continue
		}
		child := join(path, name)
		d.places[child] = pair.place()
		d.value(child, pair.value, dst.FieldByIndex(field))
	}
}

// table decodes a mapping with free names: the headers of a provider.
func (d *decoder) table(path string, n *node, dst reflect.Value) {
	elems := reflect.MakeMap(dst.Type())
	for name, pair := range d.pairs(path, n) {
		child := join(path, name)
		d.places[child] = pair.place()
		elem := reflect.New(dst.Type().Elem()).Elem()
		d.value(child, pair.value, elem)
		elems.SetMapIndex(reflect.ValueOf(name), elem)
	}
	if elems.Len() > 0 {
		dst.Set(elems)
	}
}

func (d *decoder) list(path string, n *node, dst reflect.Value) {
	if n.kind != nodeList {
		d.addf(path, "%s", howList.in(d.file))
		return
	}
	if len(n.items) == 0 {
		return
	}
	dst.Set(reflect.MakeSlice(dst.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		child := path + "[" + strconv.Itoa(i) + "]"
		d.places[child] = item.at
		elem := dst.Index(i)
		if with, ok := elem.Addr().Interface().(interface{ setDefaults() }); ok {
			with.setDefaults()
		}
		d.value(child, item, elem)
	}
}

// pairs yields the entries of a mapping by name and reports names written twice.
func (d *decoder) pairs(path string, n *node) iter.Seq2[string, pair] {
	return func(yield func(string, pair) bool) {
		if n.kind != nodeMapping {
			d.addf(path, "%s", howMapping.in(d.file))
			return
		}
		seen := map[string]place{}
		for _, p := range n.pairs {
			if p.value == nil {
				d.addAt(p.at, path, errPlainOnly)
				continue
			}
			if before, twice := seen[p.name]; twice {
				d.addAt(p.at, shownPath(path, p.name), errors.New("written twice, first on line "+strconv.Itoa(before.line)+"; remove one"))
				continue
			}
			seen[p.name] = p.at
			if !yield(p.name, p) {
				return
			}
		}
	}
}

func (d *decoder) unknown(path, name string, at place, known []string) {
	hint := "known here: " + strings.Join(known, ", ")
	if near := nearest(name, known); near != "" {
		hint = "did you mean " + near + "?"
	}
	d.addAt(at, shownPath(path, name), errors.New("unknown field; "+hint))
}

// place is where the value stands if it is one value, else where its name does.
func (p pair) place() place {
	if p.value.kind == nodeScalar || p.value.kind == nodeFancy {
		return p.value.at
	}
	return p.at
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
