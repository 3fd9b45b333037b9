package config

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// maxTables bounds how deep tables nest, as maxFlowDepth does.
const maxTables = 16

// readTOML returns the root of text, or nil if it is empty or reported. Names that come
// twice are left in, for the decoder to report.
func (d *decoder) readTOML(text string) *node {
	t := &tomlReader{text: text, root: newTable(place{}, madeByHeader)}
	t.current = t.root
	if err := t.read(); err != nil {
		d.syntaxTOML(t, err)
		return nil
	}
	if len(t.root.node.pairs) == 0 {
		return nil
	}
	return t.root.node
}

// tomlReader builds a tree of nodes from the lines of a document.
type tomlReader struct {
	text   string
	data   []byte // text, for the parser
	parser unstable.Parser
	lines  []int // where each line starts, in bytes
	before struct {
		offset int
		place
	} // the place that was asked for last
	root, current *tomlTable
}

// tomlTable is a table, or the tables of a [[NAME]], that later lines may add to.
type tomlTable struct {
	node *node
	made tomlMaker
	// names has all that the table holds: nil is a value, which nothing adds to.
	names map[string]*tomlTable
	last  *tomlTable // the table that lines under [[NAME]] add to
}

// tomlMaker says how a table came to be, and with it who may add to it:
// https://toml.io/en/v1.1.0#table
type tomlMaker int

const (
	madeByHeader tomlMaker = iota // [a]
	madeOnTheWay                  // a, by [a.b]: may still have its own header
	madeByDots                    // a, by a.b = 1
	madeAsList                    // [[a]]
)

func newTable(at place, made tomlMaker) *tomlTable {
	kind := nodeMapping
	if made == madeAsList {
		kind = nodeList
	}
	return &tomlTable{node: &node{kind: kind, at: at}, made: made, names: map[string]*tomlTable{}}
}

// read also turns a panic of the parser into an error, as parseYAML does.
func (t *tomlReader) read() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("toml parser: %v", p)
		}
	}()
	for i := range len(t.text) {
		if i == 0 || t.text[i-1] == '\n' {
			t.lines = append(t.lines, i)
		}
	}
	t.data = []byte(t.text)
	t.parser.Reset(t.data)
	for t.parser.NextExpression() {
		if err := t.expression(t.parser.Expression()); err != nil {
			return err
		}
	}
	return t.parser.Error()
}

func (t *tomlReader) expression(n *unstable.Node) error {
	keys := t.keys(n.Key())
	if len(keys) > maxTables {
		return t.tooDeep(keys[maxTables].at)
	}
	way, key := keys[:len(keys)-1], keys[len(keys)-1]
	switch n.Kind {
	case unstable.KeyValue:
		return t.assign(t.current, keys, n.Value(), 0)
	case unstable.Table:
		t.current = t.root.walk(way, madeOnTheWay).header(key)
	case unstable.ArrayTable:
		t.current = t.root.walk(way, madeOnTheWay).entry(key)
	}
	return nil
}

// assign adds a key and its value to table; depth counts the brackets around it.
func (t *tomlReader) assign(table *tomlTable, keys []pair, value *unstable.Node, depth int) error {
	if len(keys) > maxTables {
		return t.tooDeep(keys[maxTables].at)
	}
	key := keys[len(keys)-1]
	n, err := t.value(value, key.at, depth)
	if err != nil {
		return err
	}
	table.walk(keys[:len(keys)-1], madeByDots).add(key, n, nil)
	return nil
}

// value turns n into a node; at stands for the place of a list, which has none.
func (t *tomlReader) value(n *unstable.Node, at place, depth int) (*node, error) {
	if n.Raw.Length > 0 {
		at = t.place(int(n.Raw.Offset))
	}
	if depth > maxTables {
		return nil, t.tooDeep(at)
	}
	switch n.Kind {
	case unstable.Array:
		list := &node{kind: nodeList, at: at}
		for it := n.Children(); it.Next(); {
			item, err := t.value(it.Node(), at, depth+1)
			if err != nil {
				return nil, err
			}
			list.items = append(list.items, item)
		}
		return list, nil
	case unstable.InlineTable:
		table := newTable(at, madeByHeader)
		for it := n.Children(); it.Next(); {
			if err := t.assign(table, t.keys(it.Node().Key()), it.Node().Value(), depth+1); err != nil {
				return nil, err
			}
		}
		return table.node, nil
	case unstable.Integer:
		return &node{kind: nodeScalar, at: at, text: decimal(string(n.Data))}, nil
	case unstable.Float:
		return &node{kind: nodeScalar, at: at, text: strings.ReplaceAll(string(n.Data), "_", "")}, nil
	}
	return &node{kind: nodeScalar, at: at, text: string(n.Data)}, nil
}

// decimal is an integer without what TOML allows in one and YAML does not. One that
// is too large is left for its field to refuse.
func decimal(text string) string {
	v, err := strconv.ParseInt(text, 0, 64)
	if err != nil {
		return strings.TrimPrefix(strings.ReplaceAll(text, "_", ""), "+")
	}
	return strconv.FormatInt(v, 10)
}

func (t *tomlReader) keys(it unstable.Iterator) (keys []pair) {
	for it.Next() && len(keys) <= maxTables {
		keys = append(keys, pair{name: string(it.Node().Data), at: t.place(int(it.Node().Raw.Offset))})
	}
	return keys
}

// walk returns the table at the end of way, and makes those that are missing. What
// may not be added to gets a second of its name, which the decoder reports.
func (t *tomlTable) walk(way []pair, made tomlMaker) *tomlTable {
	for _, key := range way {
		next, ok := t.names[key.name]
		// Dots add to tables that dots made, and headers to all but values.
		if !ok || next == nil || (made == madeByDots && next.made != madeByDots) {
			t = t.add(key, nil, newTable(key.at, made))
			continue
		}
		if next.last != nil {
			next = next.last
		}
		t = next
	}
	return t
}

// header returns the table that the lines under [key] add to.
func (t *tomlTable) header(key pair) *tomlTable {
	if next := t.names[key.name]; next != nil && next.made == madeOnTheWay {
		next.made = madeByHeader
		return next
	}
	return t.add(key, nil, newTable(key.at, madeByHeader))
}

// entry returns the table that the lines under [[key]] add to.
func (t *tomlTable) entry(key pair) *tomlTable {
	list := t.names[key.name]
	if list == nil || list.made != madeAsList {
		list = t.add(key, nil, newTable(key.at, madeAsList))
	}
	list.last = newTable(key.at, madeByHeader)
	list.node.items = append(list.node.items, list.last.node)
	return list.last
}

// add puts a value, or a table that may still grow, under key, and returns the table.
func (t *tomlTable) add(key pair, value *node, table *tomlTable) *tomlTable {
	if table != nil {
		value = table.node
	}
	if _, twice := t.names[key.name]; !twice {
		t.names[key.name] = table
	}
	t.node.pairs = append(t.node.pairs, pair{key.name, key.at, value})
	return table
}

// place turns an offset in bytes into a line and a column in characters. It counts on
// from the place before, or one long line would take time by its square.
func (t *tomlReader) place(offset int) place {
	line := sort.SearchInts(t.lines, offset+1)
	if line == 0 {
		return place{}
	}
	from, column := t.lines[line-1], 1
	if t.before.line == line && t.before.offset <= offset {
		from, column = t.before.offset, t.before.column
	}
	t.before.offset = offset
	t.before.place = place{line, column + utf8.RuneCountInString(t.text[from:offset])}
	return t.before.place
}

// tomlDepthError is where a document nests too deep.
type tomlDepthError place

func (*tomlDepthError) Error() string { return "nested too deep" }

func (t *tomlReader) tooDeep(at place) error { return (*tomlDepthError)(&at) }

// syntaxTOML reports an error of the parser. Its messages quote single characters at
// most; what a panic says may hold more and is dropped.
func (d *decoder) syntaxTOML(t *tomlReader, err error) {
	message, at := "not valid TOML", place{}
	var syntax *unstable.ParserError
	var deep *tomlDepthError
	switch {
	case errors.As(err, &syntax):
		message += ": " + syntax.Message
		at = t.place(cap(t.data) - cap(syntax.Highlight))
	case errors.As(err, &deep):
		message += ": " + deep.Error()
		at = place(*deep)
	}
	if strings.Contains(line(t.text, at.line), "${") {
		message += `; a variable needs quotes: "${NAME}"`
	}
	d.addAt(at, "", errors.New(message))
}
