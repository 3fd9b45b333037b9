package messages

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
)

const (
	maxModelBytes = 512 // a cloud resource name used as a model stays under 300
	maxTopFields  = 256 // the API has about 30; bounds the search for duplicates
)

// Inspect reads a request body in one pass. It checks the structure of the JSON
// outside strings (one object, at most 10,000 levels deep, nothing after it) and
// the fields it reads; everything else, known or not, is left to the provider.
//
// Two top-level fields of one name are refused, also where they differ only in
// case or in escapes, and so is a lone case variant of a field read here: the
// relay and a provider must never read different values out of one body.
//
// seed makes the hashes of Prefix, and nothing else: one seed gives the same hash
// to the same prompt, and no other seed does. Any value will do, 0 included.
//
// The error is always an *InvalidError. Safe for concurrent use.
func Inspect(body []byte, seed uint64) (Request, error) {
	s := scanner{buf: body}
	s.start()
	req := Request{Body: body}
	var names nameSet
	var p prompt
	p.begin(seed)
	for ok := s.firstField(); ok; ok = s.nextField() {
		switch s.requestField(&names) {
		case "model":
			s.model(&req)
		case "stream":
			req.Stream = s.boolean()
		case "max_tokens":
			req.MaxTokens = s.maxTokens()
		case "metadata":
			s.metadata(&req)
		default:
			s.promptField(&p)
		}
	}
	if req.Model == nil {
		s.fail(max(s.pos-1, 0), `model is missing, add "model": "name of a model"`)
	}
	s.end()
	if err := s.invalid(); err != nil {
		return Request{}, err
	}
	p.prefix(&req.Prefix, req.Model)
	req.OpenTools, req.Tools, req.Fast, req.Container = p.messages.open, p.tools.n > 0, p.fast, p.container
	return req, nil
}

// start says what is wrong with a body that does not begin as an object: the
// cases a client's author meets first deserve more than "expected an object".
func (s *scanner) start() {
	switch c, nul := s.peek(), bytes.IndexByte(s.buf, 0); {
	case nul >= 0: // no JSON text has one, and a reader in C would stop at it
		s.fail(nul, "the body holds a NUL byte, write \\u0000 inside strings")
	case c == '{':
	case s.pos == len(s.buf):
		s.fail(0, "the body is empty, send one JSON object")
	case bytes.HasPrefix(s.buf, []byte("\xef\xbb\xbf")):
		s.fail(0, "the body begins with a byte order mark, send UTF-8 without one")
	default:
		s.fail(s.pos, "the body is not a JSON object, send one object in braces")
	}
}

// readFields are the top-level fields the relay acts on.
var readFields = [...]string{"model", "stream", "max_tokens", "metadata"}

// requestField checks the name of the top-level field just entered and returns
// it if it is one of readFields, else "".
func (s *scanner) requestField(names *nameSet) string {
	name, ok := decoded(s.key)
	if !ok {
		s.fail(s.keyAt, "the name of this top-level field is not a valid JSON string in UTF-8, correct or remove it")
		return ""
	}
	known := knownField(name)
	if known != "" && string(name) != known {
		s.fail(s.keyAt, fmt.Sprintf("a variant spelling of %s, write it in lower case", known))
		return ""
	}
	if names.n == len(names.hashes) {
		s.fail(s.keyAt, fmt.Sprintf("more than %d top-level fields, send fewer", maxTopFields))
		return ""
	}
	if !names.add(name) {
		s.fail(s.keyAt, cmp.Or(known, "this top-level field")+" is given twice (case does not count), send it once")
	}
	return known
}

func knownField(name []byte) string {
	for _, field := range readFields {
		if bytes.EqualFold(name, []byte(field)) {
			return field
		}
	}
	return ""
}

// nameSet remembers names by hash. Two names of one hash count as one: that can
// only refuse a body made for it, never let a duplicate through.
type nameSet struct {
	hashes [maxTopFields]uint64
	n      int
}

// add returns false where name is in the set already, case aside. There must be room.
func (set *nameSet) add(name []byte) bool {
	h := foldedHash(name)
	if slices.Contains(set.hashes[:set.n], h) {
		return false
	}
	set.hashes[set.n] = h
	set.n++
	return true
}

// foldedHash is FNV-1a over name with case folded as the laxest JSON readers do:
// ASCII letters, and the two others that Unicode folds to ASCII.
func foldedHash(name []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, r := range string(name) {
		switch {
		case r >= 'A' && r <= 'Z':
			r += 'a' - 'A'
		case r == '\u017f': // long s
			r = 's'
		case r == '\u212a': // kelvin sign
			r = 'k'
		}
		h = (h ^ uint64(r)) * 1099511628211
	}
	return h
}

func (s *scanner) model(req *Request) {
	const want = "model must be a non-empty string of at most 512 bytes"
	at := s.valueAt()
	text := s.text(want)
	if len(text) == 0 || len(text) > maxModelBytes {
		s.fail(at, want)
		return
	}
	req.Model, req.modelAt = text, [2]int{at, s.pos}
}

// valueAt is the offset of the value that comes next.
func (s *scanner) valueAt() int {
	s.peek()
	return s.pos
}

// text reads a string value and decodes it; want is the complaint if it is none.
func (s *scanner) text(want string) []byte {
	if s.peek() != '"' {
		s.wrong(want)
		return nil
	}
	at := s.pos
	text, ok := decoded(s.str())
	if !ok {
		s.fail(at, want+", in UTF-8 and without half surrogates")
	}
	return text
}

// wrong complains about the value that comes next, or about a text that ends here.
func (s *scanner) wrong(want string) {
	if s.pos >= len(s.buf) {
		s.unexpected("a value")
		return
	}
	s.fail(s.pos, want)
}

func (s *scanner) boolean() bool {
	s.peek()
	if s.literal("true") {
		return true
	}
	if !s.literal("false") {
		s.wrong("stream must be true or false")
	}
	return false
}

func (s *scanner) maxTokens() int {
	const want = "max_tokens must be a whole number from 0 to 2147483647, without fraction or exponent"
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		s.wrong(want)
		return 0
	}
	at := s.pos
	digits := s.number()
	n, err := strconv.ParseUint(string(digits), 10, 31) // refuses signs, fractions, exponents
	if err != nil {
		s.fail(at, want)
	}
	return int(n)
}

func (s *scanner) metadata(req *Request) {
	switch s.peek() {
	case '{':
	case 'n':
		s.scalar()
		return
	default:
		s.wrong("metadata must be an object or null")
		return
	}
	seen := false
	for ok := s.firstField(); ok; ok = s.nextField() {
		name, valid := decoded(s.key)
		switch {
		case !valid:
			s.fail(s.keyAt, "the name of this field of metadata is not a valid JSON string in UTF-8, correct or remove it")
		case !bytes.EqualFold(name, []byte("user_id")):
			s.value()
		case seen || string(name) != "user_id":
			s.fail(s.keyAt, "metadata.user_id is given twice or in a variant spelling, send it once, in lower case")
		default:
			seen = true
			req.UserID = s.userID()
		}
	}
}

func (s *scanner) userID() []byte {
	if s.peek() == 'n' {
		s.scalar()
		return nil
	}
	// Claude Code's is JSON in JSON, full of escapes: it is decoded where a session
	// is looked for in it, not for every request.
	const want = "metadata.user_id must be a string or null"
	if s.peek() != '"' {
		s.wrong(want)
		return nil
	}
	at := s.pos
	raw := s.str()
	if !decodes(raw) {
		s.fail(at, want+", in UTF-8 and without half surrogates")
	}
	return raw
}
