package messages

import "bytes"

// Thinking is one thinking block of a request and where it stands: of use with the
// body that it comes from, and with no other.
type Thinking struct {
	// Signature is the hash of the decoded signature of a block of type thinking, or
	// of the data of one of type redacted_thinking. [Signature] and [ReplySignatures]
	// give the same for the answer that the block came with, if the seed is the same.
	Signature uint64

	block   element // of the content of its message
	message element // of messages
}

// element is the place of one element of an array.
type element struct {
	from, to int // in the body
	n, of    int // its number, from 0, and the length of the array
}

// Thinking lists the thinking blocks of the messages, in the order of the body: of
// type thinking with a signature, or of type redacted_thinking with data. A block
// without, with an empty or with an invalid one is not listed: nobody can know who
// made it. Names and types may be written with escapes, and of two members of one
// name in a message or a block the last counts, as in most readers.
//
// seed makes the hashes; any value will do, 0 included. It is a pass over Body of
// its own, to be made where the answer is needed. nil where there is none. It
// changes nothing: any number of goroutines may call it.
func (r *Request) Thinking(seed uint64) (list []Thinking) {
	s := scanner{buf: r.Body}
	for ok := s.firstField(); ok; ok = s.nextField() {
		if name, _ := decoded(s.key); string(name) == "messages" {
			list = s.messagesThinking(seed)
		} else {
			s.value()
		}
	}
	if s.failed || len(list) == 0 { // failed: not a body that Inspect took
		return nil
	}
	return list
}

func (s *scanner) messagesThinking(seed uint64) (list []Thinking) {
	if s.peek() != '[' {
		s.value()
		return nil
	}
	var message element
	for ok := s.firstElement(); ok; ok = s.nextElement() {
		first := len(list)
		message.from = s.valueAt()
		list = s.messageThinking(list, seed)
		message.to = s.pos
		for i := range list[first:] {
			list[first+i].message = message
		}
		message.n++
	}
	for i := range list {
		list[i].message.of = message.n
	}
	return list
}

// messageThinking adds the blocks of one message to list.
func (s *scanner) messageThinking(list []Thinking, seed uint64) []Thinking {
	if s.peek() != '{' {
		s.value()
		return list
	}
	first := len(list)
	for ok := s.firstField(); ok; ok = s.nextField() {
		if name, _ := decoded(s.key); string(name) == "content" {
			list = s.contentThinking(list[:first], seed)
		} else {
			s.value()
		}
	}
	return list
}

// contentThinking adds the blocks of one content to list.
func (s *scanner) contentThinking(list []Thinking, seed uint64) []Thinking {
	if s.peek() != '[' {
		s.value()
		return list
	}
	first := len(list)
	var block element
	for ok := s.firstElement(); ok; ok = s.nextElement() {
		block.from = s.valueAt()
		proof := s.proof()
		block.to = s.pos
		if hash, ok := proof.hash("thinking", seed); ok {
			list = append(list, Thinking{Signature: hash, block: block})
		}
		block.n++
	}
	for i := range list[first:] {
		list[first+i].block.of = block.n
	}
	return list
}

// Strip leaves out of the body to send those blocks of list whose signature drop
// returns true for; it is called once for each, in order. list is what
// [Request.Thinking] gave for this body. The JSON stays valid and every byte outside
// of what is left out is as the client sent it. It returns how many blocks those are.
//
// A message that would keep no block is left out as a whole: the API refuses an
// empty content, and merges messages of one role that follow each other. Where that
// would leave no message at all, the last one stays as the client sent it, and its
// blocks are not counted.
//
// Each call decides anew: what an earlier one left out is back. With nothing to
// drop, an empty list or a nil drop, the client's bytes are back. What SetModel did
// stays. Prefix and OpenTools remain those of the body as the client sent it.
// Readers given out before are not affected.
func (r *Request) Strip(list []Thinking, drop func(signature uint64) bool) (n int) {
	var cuts []edit
	gone := 0 // messages
	for drop != nil && len(list) > 0 {
		message, of, dropped, first := list[0].message, list[0].block.of, 0, len(cuts)
		for ; len(list) > 0 && list[0].message == message; list = list[1:] {
			if drop(list[0].Signature) {
				cuts = append(cuts, r.without(list[0].block, dropped))
				dropped++
			}
		}
		if dropped == of { // nothing of the message would be left
			cuts = cuts[:first]
			if gone+1 == message.of { // and no message
				break
			}
			cuts = append(cuts, r.without(message, gone))
			gone++
		}
		n += dropped
	}
	r.edit(false, cuts...)
	return n
}

// without cuts an element out of its array, together with the comma before it, or,
// where the elements before it are gone, all of them, with the comma after it.
func (r *Request) without(e element, gone int) edit {
	if e.n > gone {
		return edit{from: bytes.LastIndexByte(r.Body[:e.from], ','), to: e.to}
	}
	comma := bytes.IndexByte(r.Body[e.to:], ',') // -1 where e is the last: then the array goes
	return edit{from: e.from, to: e.to + comma + 1}
}
