package messages

import (
	"bytes"
	"fmt"
)

// maxDepth is how deep arrays and objects may nest, the top-level object
// included. It is the limit of Go's encoding/json; real bodies stay under 30.
const maxDepth = 10_000

// InvalidError says why a body was refused. Its text is safe to send to the
// client: it names fields of the API and never repeats what the body holds.
type InvalidError struct {
	Offset int    // of the byte the complaint is about, counted from 0
	Reason string // what is wrong and what to send instead
}

// Error gives the reason with its place.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid body at byte %d: %s", e.Offset, e.Reason)
}

// scanner walks one JSON text and checks its structure. It goes from quote to
// quote: the inside of a string is looked at only by those who read it. After
// the first fault it stands at the end of the text, so that every further step
// fails too and callers need to ask only once. It does not allocate.
type scanner struct {
	buf   []byte
	pos   int
	key   []byte // name of the field just entered, between its quotes, not decoded
	keyAt int    // offset of its opening quote
	depth int
	// objects has one bit a level, set where the level is an object: nesting
	// costs no recursion, so a hostile body cannot grow the stack.
	objects [maxDepth/64 + 1]uint64

	failed   bool
	failedAt int
	reason   string
	expected string // completes reason
}

func (s *scanner) fail(at int, reason string) {
	if !s.failed {
		s.failed, s.failedAt, s.reason = true, at, reason
	}
	s.pos = len(s.buf)
}

func (s *scanner) unexpected(expected string) {
	if s.failed {
		return
	}
	s.expected = expected
	if s.pos >= len(s.buf) {
		s.fail(len(s.buf), "the JSON ends too early, expected ")
		return
	}
	s.fail(s.pos, "malformed JSON, expected ")
}

// invalid returns the fault that was found as an *InvalidError, or nil.
func (s *scanner) invalid() error {
	if !s.failed {
		return nil
	}
	return &InvalidError{Offset: s.failedAt, Reason: s.reason + s.expected}
}

// peek skips white space and returns the byte that follows, 0 at the end.
func (s *scanner) peek() byte {
	for ; s.pos < len(s.buf); s.pos++ {
		c := s.buf[s.pos]
		if c > ' ' || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c
		}
	}
	return 0
}

// firstField enters an object. While it, and then nextField, return true the
// scanner stands before the value of field key, which the caller must read.
func (s *scanner) firstField() bool {
	if s.peek() != '{' {
		s.unexpected("an object")
		return false
	}
	s.open(1)
	if s.peek() == '}' {
		s.close()
		return false
	}
	return s.fieldName()
}

func (s *scanner) nextField() bool {
	switch s.peek() {
	case ',':
		s.pos++
		return s.fieldName()
	case '}':
		s.close()
	default:
		s.unexpected("a comma or a closing brace")
	}
	return false
}

// firstElement enters an array. While it, and then nextElement, return true the
// scanner stands before an element, which the caller must read.
func (s *scanner) firstElement() bool {
	if s.peek() != '[' {
		s.unexpected("an array")
		return false
	}
	s.open(0)
	if s.peek() == ']' {
		s.close()
		return false
	}
	return !s.failed
}

func (s *scanner) nextElement() bool {
	switch s.peek() {
	case ',':
		s.pos++
		return true
	case ']':
		s.close()
	default:
		s.unexpected("a comma or a closing bracket")
	}
	return false
}

func (s *scanner) fieldName() bool {
	if s.peek() != '"' {
		s.unexpected("a field name in double quotes")
		return false
	}
	s.keyAt = s.pos
	s.key = s.str()
	if s.peek() != ':' {
		s.unexpected("a colon after the field name")
		return false
	}
	s.pos++
	return true
}

// open steps over an opening bracket; object is 1 for a brace, else 0.
func (s *scanner) open(object uint64) {
	if s.depth == maxDepth {
		s.fail(s.pos, "arrays and objects nest deeper than 10000 levels, send a flatter body")
		return
	}
	s.pos++
	word, bit := s.depth/64, s.depth%64
	s.objects[word] = s.objects[word]&^(1<<bit) | object<<bit
	s.depth++
}

func (s *scanner) close() {
	s.pos++
	s.depth--
}

func (s *scanner) inObject() bool {
	level := s.depth - 1
	return s.objects[level/64]>>(level%64)&1 == 1
}

// value steps over one value of any kind.
func (s *scanner) value() {
	outer := s.depth
	for more := true; more; {
		switch s.peek() {
		case '"':
			s.str()
		case '{':
			s.open(1)
			if s.peek() != '}' {
				more = s.fieldName()
				continue
			}
		case '[':
			s.open(0)
			if s.peek() != ']' {
				more = !s.failed
				continue
			}
		default:
			s.scalar()
		}
		more = s.afterValue(outer)
	}
}

// afterValue closes the levels that end here, down to outer. It returns true
// where another value is due instead.
func (s *scanner) afterValue(outer int) bool {
	for s.depth > outer {
		c, object := s.peek(), s.inObject()
		switch {
		case c == ',' && object:
			s.pos++
			return s.fieldName()
		case c == ',':
			s.pos++
			return true
		case c == '}' && object, c == ']' && !object:
			s.close()
		default:
			s.unexpected("a comma or a closing bracket")
			return false
		}
	}
	return false
}

// str steps over a string and returns what stands between its quotes.
func (s *scanner) str() []byte {
	text := s.buf[s.pos+1:]
	n := stringEnd(text)
	if n < 0 {
		s.fail(s.pos, "the string that starts here is not closed, the body may be cut")
		return nil
	}
	s.pos += n + 2
	return text[:n]
}

// nextQuote is stringEnd for any processor.
func nextQuote(text []byte) int {
	for i := 0; ; i++ {
		n := bytes.IndexByte(text[i:], '"')
		if n < 0 {
			return -1
		}
		if i += n; i == 0 || text[i-1] != '\\' || !escaped(text[:i]) {
			return i
		}
	}
}

// escaped tells whether head ends in an odd number of backslashes, so that the
// quote after it is a part of the string. Each backslash is counted once only,
// since runs of them do not overlap.
func escaped(head []byte) bool {
	n := len(head)
	for n > 0 && head[n-1] == '\\' {
		n--
	}
	return (len(head)-n)%2 == 1
}

func (s *scanner) scalar() {
	switch c := s.peek(); {
	case c == '-' || c >= '0' && c <= '9':
		s.number()
	case s.literal("true"), s.literal("false"), s.literal("null"):
	default:
		s.unexpected("a value")
	}
}

func (s *scanner) literal(word string) bool {
	if len(s.buf)-s.pos < len(word) || string(s.buf[s.pos:s.pos+len(word)]) != word {
		return false
	}
	s.pos += len(word)
	return true
}

// number steps over a number and returns it as written.
func (s *scanner) number() []byte {
	start := s.pos
	if s.at() == '-' {
		s.pos++
	}
	if s.at() == '0' {
		s.pos++ // a leading zero stands alone
	} else {
		s.digits()
	}
	if s.at() == '.' {
		s.pos++
		s.digits()
	}
	if c := s.at(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.at(); c == '+' || c == '-' {
			s.pos++
		}
		s.digits()
	}
	return s.buf[start:s.pos]
}

func (s *scanner) digits() {
	start := s.pos
	for c := s.at(); c >= '0' && c <= '9'; c = s.at() {
		s.pos++
	}
	if s.pos == start {
		s.unexpected("a digit")
	}
}

// at is the byte the scanner stands on, 0 at the end.
func (s *scanner) at() byte {
	if s.pos >= len(s.buf) {
		return 0
	}
	return s.buf[s.pos]
}

// end checks that nothing but white space follows.
func (s *scanner) end() {
	if s.peek(); s.pos < len(s.buf) {
		s.fail(s.pos, "something follows the JSON object, send one object and nothing after it")
	}
}
