package messages

import (
	"bytes"
	"time"

	"github.com/zeebo/xxh3"
)

// Each kind of value begins its hash with a number of its own, so that a value of
// one kind is never taken for another.
const (
	blockKind = iota + 1
	otherKind
	messageKind
)

// attribution begins the text of the block by which Claude Code tells its version
// and who is to be billed. It ends in a checksum: in 2.1.177 one that is new with
// every request (https://github.com/anthropics/claude-code/issues/68900), in
// 2.1.330, as recorded, one that is new with every session and in subagents. It
// is documented to matter to the caches of other upstreams only:
// https://code.claude.com/docs/en/llm-gateway-protocol.
var attribution = []byte(`"x-anthropic-billing-header:`)

// promptField reads the top-level field just entered if it decides what is cached,
// else steps over it. A name written with escapes is stepped over.
func (s *scanner) promptField(p *prompt) {
	switch string(s.key) {
	case "tools":
		s.section(p, &p.tools)
	case "system":
		s.section(p, &p.system)
	case "messages":
		s.messages(p)
	case "cache_control":
		p.caching = s.cacheControl()
	case "speed":
		value := s.raw()
		p.settings.speed, p.fast = xxh3.Hash(value), string(value) == `"fast"`
	case "output_config":
		p.settings.output = xxh3.Hash(s.raw())
	case "tool_choice":
		p.settings.choice = xxh3.Hash(s.raw())
	case "thinking":
		p.settings.thinking = xxh3.Hash(s.raw())
	case "container":
		p.container = string(s.raw()) != "null"
	default:
		s.value()
	}
}

// raw steps over one value of any kind and returns it as written.
func (s *scanner) raw() []byte {
	at := s.valueAt()
	s.value()
	return s.buf[at:s.pos]
}

func (s *scanner) section(p *prompt, c *section) {
	c.at[0] = s.valueAt() - p.light
	s.content(p, c)
	c.at[1] = s.pos - p.light
}

// content reads blocks: tools, the system prompt, or what a message says.
func (s *scanner) content(p *prompt, c *section) {
	switch s.peek() {
	case '[':
		for ok := s.firstElement(); ok; ok = s.nextElement() {
			if b := s.block(p); !b.label || c != &p.system || c.n > 0 {
				c.add(b, s.pos-p.light)
			}
		}
	case '"':
		b := block{hash: blockKind}
		b.member([]byte("type"), []byte(`"text"`))
		b.member([]byte("text"), s.raw())
		c.add(b, s.pos-p.light)
	default:
		c.other(s.raw())
	}
}

func (s *scanner) messages(p *prompt) {
	c := &p.messages
	c.at[0] = s.valueAt() - p.light
	if s.peek() == '[' {
		for ok := s.firstElement(); ok; ok = s.nextElement() {
			s.message(p, c)
		}
	} else {
		c.other(s.raw())
	}
	c.at[1] = s.pos - p.light
}

// message takes the members in the order they stand in: the role of a message
// given after its content counts for what follows.
func (s *scanner) message(p *prompt, c *section) {
	c.chain = mix(c.chain, messageKind)
	open := c.open
	c.open = false
	if s.peek() != '{' {
		c.other(s.raw())
		return
	}
	user := false
	for ok := s.firstField(); ok; ok = s.nextField() {
		key := s.key
		if string(key) == "content" {
			s.content(p, c)
			continue
		}
		value := s.raw()
		c.member(key, value)
		if string(key) == "role" {
			user = user || string(value) == `"user"`
			c.open = c.open || open && string(value) == `"system"`
		}
	}
	if user && !p.started {
		p.start, p.started = c.chain, true
	}
}

// block reads one block. Members are hashed one by one, so that the hash is the
// same with and without a cache_control, wherever it stands; white space between
// members does not count.
func (s *scanner) block(p *prompt) block {
	if s.peek() != '{' {
		return block{hash: mix(otherKind, xxh3.Hash(s.raw()))}
	}
	b := block{hash: blockKind}
	for ok := s.firstField(); ok; ok = s.nextField() {
		switch key := s.key; string(key) {
		case "cache_control":
			b.life = s.cacheControl()
		case "content":
			at := s.valueAt()
			s.inner(p, 0)
			b.member(key, s.buf[at:s.pos])
		case "source":
			at := s.valueAt()
			s.source(p, 0)
			b.member(key, s.buf[at:s.pos])
		default:
			value := s.raw()
			b.member(key, value)
			p.image(key, value)
		}
	}
	return b
}

// member adds a member to the hash of a block and notes what it says of its kind.
// Source of what cannot be cached:
// https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
func (b *block) member(key, value []byte) {
	b.hash = mix(mix(b.hash, xxh3.Hash(key)), xxh3.Hash(value))
	switch string(key) {
	case "type":
		b.bare = b.bare || string(value) == `"thinking"` || string(value) == `"redacted_thinking"`
		b.tool = string(value) == `"tool_result"`
	case "text":
		b.bare = b.bare || string(value) == `""`
		b.label = bytes.HasPrefix(value, attribution)
	}
}

func (p *prompt) image(key, value []byte) {
	if string(key) == "type" && string(value) == `"image"` {
		p.images = 1
	}
}

// maxInner is how deep the contents of blocks are looked into: a document that a tool has
// fetched lies three deep, and may be made of blocks of its own.
const maxInner = 6

// inner steps over the content of a block, or of what lies in it: tools answer with
// pictures and documents there.
func (s *scanner) inner(p *prompt, depth int) {
	switch {
	case depth == maxInner:
		s.value()
	case s.peek() == '[':
		for ok := s.firstElement(); ok; ok = s.nextElement() {
			s.inner(p, depth+1)
		}
	case s.peek() == '{':
		for ok := s.firstField(); ok; ok = s.nextField() {
			switch key := s.key; string(key) {
			case "content":
				s.inner(p, depth+1)
			case "source":
				s.source(p, depth+1)
			default:
				p.image(key, s.raw())
			}
		}
	default:
		s.value()
	}
}

// What a picture or a document weighs has little to do with its bytes in base64. A
// picture costs up to about 1,600 tokens, which are 6,400 bytes of text; of a PDF each
// page costs about 1,500 to 3,000 for its text and as much as a picture, and has 100 to
// 200 KB where it is scanned, fewer where it is text.
// Source: https://platform.claude.com/docs/en/build-with-claude/vision and /pdf-support.
const (
	pictureBytes = 6400
	documentPart = 16 // of its bytes
)

// source steps over what a picture or a document is given by, and takes from the
// prompt's weight what it has in base64 above what it costs.
func (s *scanner) source(p *prompt, depth int) {
	if s.peek() != '{' {
		s.value()
		return
	}
	data, encoded, pdf := 0, false, false
	for ok := s.firstField(); ok; ok = s.nextField() {
		key := s.key
		if string(key) == "content" { // of a document that is made of blocks
			s.inner(p, depth+1)
			continue
		}
		switch value := s.raw(); string(key) {
		case "type":
			encoded = string(value) == `"base64"`
		case "media_type":
			pdf = string(value) == `"application/pdf"`
		case "data":
			data = len(value)
		}
	}
	weight := pictureBytes
	if pdf {
		weight = max(weight, data/documentPart)
	}
	if encoded && data > weight {
		p.light += data - weight
	}
}

// cacheControl returns for how long a cache_control asks to keep what ends there,
// 0 where it is none that the provider would take.
func (s *scanner) cacheControl() time.Duration {
	if s.peek() != '{' {
		s.value()
		return 0
	}
	ephemeral, life := false, lifeShort
	for ok := s.firstField(); ok; ok = s.nextField() {
		key := s.key
		switch value := s.raw(); string(key) {
		case "type":
			ephemeral = string(value) == `"ephemeral"`
		case "ttl":
			life = lifeOf(value)
		}
	}
	if !ephemeral {
		return 0
	}
	return life
}

func lifeOf(ttl []byte) time.Duration {
	switch string(ttl) {
	case `"5m"`, "null":
		return lifeShort
	case `"1h"`:
		return lifeLong
	}
	return 0
}
