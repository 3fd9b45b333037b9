package messages

import (
	"math"
	"time"

	"github.com/zeebo/xxh3"
)

// Rules of prompt caching.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
const (
	maxBreakpoints = 4
	lookback       = 20 // blocks tried from a breakpoint, itself the first
	maxMarks       = maxBreakpoints * lookback
	lifeShort      = 5 * time.Minute
	lifeLong       = time.Hour
)

// Prefix tells what a provider may find of a prompt in its cache, and what it
// will keep there. Its hashes depend on the seed given to [Inspect]; they follow
// the provider's order (tools, system, messages) whatever the order in the body.
//
// What a cache does not see is left out of them: cache_control, and the block by
// which Claude Code tells who is to be billed. A text given as a plain string and
// as an array of one text block hash the same, because Claude Code sends a
// message first in one form, with its breakpoint, then in the other.
//
// A hash is good for a forecast and for nothing that must be secure: values can be
// made to have the same one. It is not scoped to a client.
type Prefix struct {
	// Bytes of tools, system and messages as sent, with all that hashes leave out. Of
	// pictures and documents in base64 only as many count as text of the same price has.
	Bytes int
	// Root stands for model, tools and system: for who is asking. Subagents share
	// the session of their parent and differ in it. Settings are not in it: who
	// changes the effort in mid-conversation is still the same.
	Root uint64
	// Start is Root and the messages through the first of a user: it names a
	// conversation where the client does not. Without such a message, Root alone
	// decides it.
	Start uint64

	marks [maxMarks]Mark
	n     int
}

// Mark is the end of a content block, of a tool or of a block of the system
// prompt, at which the provider may find a prefix.
type Mark struct {
	// Hash stands for everything up to and including the block, and for the
	// settings that invalidate what is cached of it.
	Hash uint64
	// Bytes of the prompt up to and including the block; compare [Prefix.Bytes].
	Bytes int
	// Life is how long the provider keeps the prefix from the start of a request
	// or a later read: 5 minutes or 1 hour at a breakpoint. 0 means that the
	// provider looks here but writes nothing.
	Life time.Duration
}

// Marks returns the breakpoints of the prompt, at most the last 4, and with each
// the blocks before it that the provider tries too, 20 in all; the longest prefix
// first. It is empty where the request asks for no caching. The slice is a part
// of p: to be read only, and by any number of goroutines.
func (p *Prefix) Marks() []Mark { return p.marks[:p.n] }

// block is one element of tools, of system, or of the content of a message.
type block struct {
	hash  uint64
	life  time.Duration // as in Mark
	bare  bool          // cannot carry a breakpoint
	label bool          // the attribution of Claude Code
	tool  bool          // what a tool call gave
}

// spot is the end of one block of a section, packed: there are many on the stack.
type spot struct {
	hash uint64
	end  int    // offset in the body, less what is light
	seq  uint32 // number of the block, from 0; a body of 8 GiB has no more
	life uint16 // seconds
	bare bool
}

// section is one of the three parts of a prompt. It keeps only the blocks that a
// mark can come from, so that its size does not grow with the prompt.
type section struct {
	at    [2]int // the value in the body, less what is light
	chain uint64 // hash of all so far
	n     int    // blocks so far
	// recent has the last blocks: lookback, and some that are taken back.
	recent [32]spot
	// kept has what breakpoints reach, as a ring: when more than maxBreakpoints
	// have passed, the first are overwritten.
	kept        [maxMarks]spot
	keptN, seen int // spots ever put into kept; blocks that kept is done with
	// open is set by a block that is what a tool call gave; each message begins
	// without, but for those of the role system.
	open bool
}

func (c *section) add(b block, end int) {
	c.chain = mix(c.chain, b.hash)
	if b.bare {
		b.life = 0
	}
	c.recent[c.n%len(c.recent)] = spot{c.chain, end, uint32(c.n), uint16(b.life / time.Second), b.bare}
	c.n++
	c.open = c.open || b.tool
	if b.life > 0 {
		c.keep(lookback)
	}
}

// member takes a name and a value that are part of the prompt, but no block.
func (c *section) member(name, value []byte) {
	c.chain = mix(mix(c.chain, xxh3.Hash(name)), xxh3.Hash(value))
}

// other takes a value that is not what it should be.
func (c *section) other(value []byte) {
	c.chain = mix(mix(c.chain, otherKind), xxh3.Hash(value))
}

// keep saves the last n blocks; n is at most lookback.
func (c *section) keep(n int) {
	for seq := max(c.n-n, c.seen, 0); seq < c.n; seq++ {
		c.kept[c.keptN%maxMarks] = c.recent[seq%len(c.recent)]
		c.keptN++
	}
	c.seen = c.n
}

// automatic makes the last block that can carry it a breakpoint.
func (c *section) automatic(life time.Duration) {
	end := c.n
	for c.n > 0 && end-c.n < len(c.recent)-lookback && c.last().bare {
		c.n-- // no later breakpoint reaches it
	}
	if c.n > 0 && !c.last().bare && c.last().life == 0 {
		c.last().life = uint16(life / time.Second)
		c.keep(lookback)
	}
}

func (c *section) last() *spot { return &c.recent[(c.n-1)%len(c.recent)] }

// marker writes marks, from the last block of a prompt to its first.
type marker struct {
	prefix *Prefix
	points int // breakpoints met
	floor  int // the provider looks at blocks with a higher number than this
}

// section writes the marks of c. first and before are the blocks and the bytes of
// the sections before it, base is their hash.
func (m *marker) section(c *section, base uint64, first, before int) {
	c.keep(min(max(first+c.n-1-m.floor, 0), lookback))
	for i := c.keptN - 1; i >= max(c.keptN-maxMarks, 0); i-- {
		s := &c.kept[i%maxMarks]
		at := first + int(s.seq)
		mark := Mark{Hash: mix(base, s.hash), Bytes: before + s.end - c.at[0]}
		if s.life > 0 && m.points < maxBreakpoints {
			m.points++
			m.floor = at - lookback
			mark.Life = time.Duration(s.life) * time.Second
		}
		if at > m.floor {
			m.prefix.marks[m.prefix.n] = mark
			m.prefix.n++
		}
	}
}

// prompt is what one pass over a body gathers for its Prefix.
type prompt struct {
	tools, system, messages section

	start     uint64 // the messages through the first of a user
	started   bool
	images    uint64        // 1 where a message has an image
	light     int           // bytes so far that cost nothing, see scanner.source
	fast      bool          // by the speed of the request
	container bool          // the request names one
	caching   time.Duration // life by the cache_control of the whole request
	settings  struct{ speed, output, choice, thinking uint64 }
}

func (p *prompt) begin(seed uint64) {
	p.tools.chain, p.system.chain, p.messages.chain, p.start = seed, seed, seed, seed
}

// prefix puts the sections together. Which setting invalidates which part: see
// the source above; that the effort does so for the system prompt too is seen in
// the field only, so that is the careful reading.
func (p *prompt) prefix(to *Prefix, model []byte) {
	p.automatic()
	tools := mix(p.tools.chain, xxh3.Hash(model))
	system := mix(mix(tools, p.settings.speed), p.settings.output)
	messages := mix(mix(mix(mix(system, p.system.chain), p.settings.choice), p.settings.thinking), p.images)

	toolBytes, systemBytes := p.tools.at[1]-p.tools.at[0], p.system.at[1]-p.system.at[0]
	before := toolBytes + systemBytes
	to.Bytes = before + p.messages.at[1] - p.messages.at[0]
	to.Root = mix(tools, p.system.chain)
	to.Start = mix(to.Root, p.start)

	m := marker{prefix: to, floor: math.MaxInt}
	m.section(&p.messages, messages, p.tools.n+p.system.n, before)
	m.section(&p.system, system, p.tools.n, toolBytes)
	m.section(&p.tools, xxh3.Hash(model), 0, 0)
}

// automatic applies the cache_control of the whole request.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
func (p *prompt) automatic() {
	if p.caching == 0 {
		return
	}
	for _, c := range []*section{&p.messages, &p.system, &p.tools} {
		if c.n > 0 {
			c.automatic(p.caching)
			return
		}
	}
}

// mix adds x to the hash h. For either of them it loses nothing of the other.
// The finalizer is that of MurmurHash3, by A. Appleby, in the public domain:
// https://github.com/aappleby/smhasher.
func mix(h, x uint64) uint64 {
	h = h*0x9e3779b97f4a7c15 ^ x
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
