package messages

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// decoded returns the text of a string given as between its quotes: raw itself
// where it holds no escape, else a copy. ok is false where readers could differ:
// bad escapes, bare control characters, half surrogates, bytes not UTF-8.
func decoded(raw []byte) (text []byte, ok bool) {
	for _, c := range raw {
		if c < ' ' {
			return nil, false
		}
	}
	text, ok = raw, true
	if bytes.IndexByte(raw, '\\') >= 0 {
		text, ok = unescape(raw)
	}
	return text, ok && utf8.Valid(text)
}

// decodes reports what decoded reports as ok, without making the text.
func decodes(raw []byte) bool {
	for i := 0; i < len(raw); {
		if raw[i] < ' ' {
			return false
		}
		if raw[i] != '\\' {
			i++
			continue
		}
		_, size := escape(raw[i:])
		if size == 0 {
			return false
		}
		i += size
	}
	return utf8.Valid(raw)
}

func unescape(raw []byte) ([]byte, bool) {
	out := make([]byte, 0, len(raw))
	for {
		n := bytes.IndexByte(raw, '\\')
		if n < 0 {
			return append(out, raw...), true
		}
		out = append(out, raw[:n]...)
		r, size := escape(raw[n:])
		if size == 0 {
			return nil, false
		}
		out = utf8.AppendRune(out, r)
		raw = raw[n+size:]
	}
}

// escape reads the escape at the start of b, a surrogate pair as one; size is 0
// where it is none.
func escape(b []byte) (r rune, size int) {
	if len(b) < 2 {
		return 0, 0
	}
	if i := strings.IndexByte(`"\/bfnrt`, b[1]); i >= 0 {
		return rune("\"\\/\b\f\n\r\t"[i]), 2
	}
	r, ok := hexEscape(b)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	low, _ := hexEscape(b[6:])
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return 0, 0
	}
	return r, 12
}

// hexEscape reads a backslash, u and four hex digits.
func hexEscape(b []byte) (r rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	v, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(v), err == nil
}
