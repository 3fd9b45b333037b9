package messages

import (
	"github.com/zeebo/xxh3"
)

// Signature returns the hash of the signature that a frame of a stream carries: of
// a signature_delta, or of a content_block_start with a block of type thinking that
// has a signature already, or of type redacted_thinking with data. ok is false for
// all other frames, for an empty or invalid signature, and for a partial frame.
//
// The hash is that of [Request.Thinking] and of [ReplySignatures], with the same
// seed, however the JSON is written. The signature of a block is expected in one
// delta, as documented; of several, each has a hash of its own and none is that of
// the whole. Cheap for the deltas that make up a stream. Safe for concurrent use.
// Source: https://platform.claude.com/docs/en/build-with-claude/extended-thinking.
func Signature(f Frame, seed uint64) (hash uint64, ok bool) {
	switch string(f.Event) {
	case EventContentBlockDelta:
		if isOtherDelta(f.Data) {
			return 0, false
		}
		return signatureIn("delta", "signature_delta", f.Data, seed)
	case EventContentBlockStart:
		return signatureIn("content_block", "thinking", f.Data, seed)
	}
	return 0, false
}

// isOtherDelta tells from its first bytes, as they are nearly always written, that
// a delta has no signature. Where it returns false the whole has to be read.
func isOtherDelta(data []byte) bool {
	return beginsOther(data, `{"type":"content_block_delta","index":`, `,"delta":{"type":"`) ||
		beginsOther(data, `{"type": "content_block_delta", "index": `, `, "delta": {"type": "`) // as Python does
}

func beginsOther(data []byte, head, delta string) bool {
	if len(data) < len(head) || string(data[:len(head)]) != head {
		return false
	}
	at := len(head)
	for at < len(data) && data[at] >= '0' && data[at] <= '9' {
		at++
	}
	if data = data[at:]; len(data) <= len(delta) || string(data[:len(delta)]) != delta {
		return false
	}
	c := data[len(delta)]
	return c != 's' && c != '\\' // an s may be written as an escape
}

// signatureIn looks for a signature in the object that is the value of field; signed
// is the type that has one.
func signatureIn(field, signed string, data []byte, seed uint64) (hash uint64, found bool) {
	s := scanner{buf: data}
	for ok := s.firstField(); ok; ok = s.nextField() {
		if name, _ := decoded(s.key); string(name) == field {
			p := s.proof()
			hash, found = p.hash(signed, seed)
		} else {
			s.value()
		}
	}
	if s.failed {
		return 0, false
	}
	return hash, found
}

// ReplySignatures returns the hashes of the signatures in the content of a JSON
// answer, in its order, by the rules of [Request.Thinking]; nil where there is none
// and where body is no JSON object. Safe for concurrent use.
func ReplySignatures(body []byte, seed uint64) []uint64 {
	s := scanner{buf: body}
	blocks := s.messageThinking(nil, seed) // an answer is a message
	if s.end(); s.failed || len(blocks) == 0 {
		return nil
	}
	hashes := make([]uint64, len(blocks))
	for i, b := range blocks {
		hashes[i] = b.Signature
	}
	return hashes
}

// proof is what is read of a block or a delta to know it again: strings as between
// their quotes, nil for what is absent or no string.
type proof struct{ kind, signature, data []byte }

// proof reads one value of any kind.
func (s *scanner) proof() (p proof) {
	if s.peek() != '{' {
		s.value()
		return p
	}
	for ok := s.firstField(); ok; ok = s.nextField() {
		name, _ := decoded(s.key)
		switch string(name) {
		case "type":
			p.kind = s.optional()
		case "signature":
			p.signature = s.optional()
		case "data":
			p.data = s.optional()
		default:
			s.value()
		}
	}
	return p
}

// optional reads a value and returns it if it is a string.
func (s *scanner) optional() []byte {
	if s.peek() != '"' {
		s.value()
		return nil
	}
	return s.str()
}

// hash is that of the signature, if the type is signed, or of the data, if it is
// redacted_thinking. It is made of the decoded text: base64 has a slash, which some
// write as \/.
func (p *proof) hash(signed string, seed uint64) (uint64, bool) {
	raw := p.signature
	if kind, _ := decoded(p.kind); string(kind) != signed {
		if string(kind) != "redacted_thinking" {
			return 0, false
		}
		raw = p.data
	}
	text, ok := decoded(raw)
	if !ok || len(text) == 0 {
		return 0, false
	}
	return xxh3.HashSeed(text, seed), true
}
