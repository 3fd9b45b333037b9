package simulator

import (
	"bytes"
	"encoding/json"
	"iter"
)

// A prompt is hashed as the bytes the client sent, because the provider's cache is
// byte-exact; decoding into values would lose order and spelling. So these walk
// the bytes of JSON already known to be valid.

// members yields name and value of each member of an object, in order, duplicates
// included; nothing when data is no object.
func members(data []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		i := space(data, 0)
		if i == len(data) || data[i] != '{' {
			return
		}
		for i = space(data, i+1); data[i] != '}'; {
			end := skip(data, i)
			name := data[i:end]
			i = space(data, end) + 1 // past the colon
			i = space(data, i)
			end = skip(data, i)
			if !yield(unquote(name), data[i:end]) {
				return
			}
			i = next(data, end)
		}
	}
}

// elements yields the values of an array; nothing when data is no array.
func elements(data []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		i := space(data, 0)
		if i == len(data) || data[i] != '[' {
			return
		}
		for i = space(data, i+1); data[i] != ']'; {
			end := skip(data, i)
			if !yield(data[i:end]) {
				return
			}
			i = next(data, end)
		}
	}
}

// member is the last value of that name, nil when there is none.
func member(data []byte, name string) []byte {
	var found []byte
	for n, v := range members(data) {
		if n == name {
			found = v
		}
	}
	return found
}

// text is the value of a JSON string, "" for anything else.
func text(data []byte) string {
	if !isString(data) {
		return ""
	}
	return unquote(data)
}

func isString(data []byte) bool { return len(data) > 0 && data[0] == '"' }
func isObject(data []byte) bool { return len(data) > 0 && data[0] == '{' }
func isArray(data []byte) bool  { return len(data) > 0 && data[0] == '[' }
func isNull(data []byte) bool   { return len(data) == 0 || data[0] == 'n' }

func unquote(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var s string
	_ = json.Unmarshal(quoted, &s) // valid already
	return s
}

func space(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\n' || data[i] == '\r' || data[i] == '\t') {
		i++
	}
	return i
}

// next is the start of the value after a comma, or of the closing bracket.
func next(data []byte, i int) int {
	i = space(data, i)
	if data[i] == ',' {
		i = space(data, i+1)
	}
	return i
}

// skip is the end of the value that starts at i.
func skip(data []byte, i int) int {
	switch data[i] {
	case '"':
		return skipString(data, i)
	case '{', '[':
		return skipNested(data, i)
	}
	for i < len(data) && bytes.IndexByte([]byte(" \n\r\t,:]}"), data[i]) < 0 {
		i++
	}
	return i
}

func skipNested(data []byte, i int) int {
	depth := 0
	for {
		switch data[i] {
		case '"':
			i = skipString(data, i)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return i + 1
			}
		}
		i++
	}
}

// skipString jumps from quote to quote, and over those that a backslash escapes.
func skipString(data []byte, i int) int {
	start := i + 1
	for i = start; ; i++ {
		i += bytes.IndexByte(data[i:], '"')
		slashes := 0
		for i-slashes > start && data[i-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return i + 1
		}
	}
}
