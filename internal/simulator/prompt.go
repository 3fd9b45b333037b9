package simulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"strings"
	"time"
)

// Request is what a body asks for, as a [Config.Reply] hook sees it.
type Request struct {
	Key, Org, Workspace string // name of the key, and where it belongs

	Model     string
	Stream    bool
	MaxTokens int
	Fast      bool     // in fast mode
	Tools     []string // names, in order
	// UserText is the text of the last user message, its text blocks joined by a
	// newline.
	UserText string
	// ToolResult is the text of the last tool_result of the last user message;
	// HasToolResult tells an empty one from none.
	ToolResult    string
	HasToolResult bool
	// Header and Body are as sent, credentials included; not to be changed.
	Header http.Header
	Body   []byte

	blocks []Block
}

// promptTokens is the whole prompt, as token counting reports it.
func (r *Request) promptTokens() int {
	n := 0
	for _, b := range r.blocks {
		n += b.Tokens
	}
	return n
}

// parser collects blocks, breakpoints included, while it walks a body.
type parser struct {
	chain  *chain
	req    *Request
	points int
	short  bool // a breakpoint of 5 minutes has been seen
}

// parseRequest reads a body of POST /v1/messages. Its errors are meant for the
// client and name the field.
func parseRequest(body []byte, seed maphash.Seed) (*Request, error) {
	root := bytes.TrimSpace(body)
	if !json.Valid(root) {
		return nil, errors.New("the request body is not valid JSON")
	}
	if !isObject(root) {
		return nil, errors.New("the request body must be a JSON object")
	}
	f := make(map[string][]byte)
	for name, v := range members(root) {
		f[name] = v
	}
	req := &Request{Body: body}
	if err := req.scalars(f); err != nil {
		return nil, err
	}
	p := &parser{chain: newChain(seed), req: req}
	if err := p.prompt(f); err != nil {
		return nil, err
	}
	return req, p.automatic(f["cache_control"])
}

func (r *Request) scalars(f map[string][]byte) error {
	if !isString(f["model"]) || text(f["model"]) == "" {
		return errors.New("model: a model id is required")
	}
	r.Model = text(f["model"])
	if v := f["stream"]; v != nil {
		if err := json.Unmarshal(v, &r.Stream); err != nil {
			return errors.New("stream: must be true or false")
		}
	}
	r.Fast = text(f["speed"]) == "fast"
	r.MaxTokens = -1
	if v := f["max_tokens"]; v != nil {
		if err := json.Unmarshal(v, &r.MaxTokens); err != nil || r.MaxTokens < 0 {
			return errors.New("max_tokens: must be a whole number, not below 0")
		}
	}
	if r.MaxTokens == 0 && r.Stream {
		return errors.New("max_tokens: 0 (prewarming the cache) is not possible with stream")
	}
	return nil
}

// prompt walks tools, system and messages. What changes the rendering of a later
// part is mixed in before that part: the speed after the tools; tool choice,
// thinking, effort and whether there are images before the messages.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
func (p *parser) prompt(f map[string][]byte) error {
	for tool := range elements(f["tools"]) {
		p.req.Tools = append(p.req.Tools, text(member(tool, "name")))
		if err := p.block("tools", tool); err != nil {
			return err
		}
	}
	p.chain.mix([]byte("speed"), f["speed"])
	if !isNull(f["system"]) {
		if err := p.content("system", f["system"]); err != nil {
			return err
		}
	}
	images := "none"
	if bytes.Contains(f["messages"], []byte(`"image"`)) {
		images = "some"
	}
	effort := member(f["output_config"], "effort")
	p.chain.mix([]byte("settings"), f["tool_choice"], f["thinking"], effort, []byte(images))
	return p.messages(f["messages"])
}

func (p *parser) messages(list []byte) error {
	if !isArray(list) {
		return errors.New("messages: a list of messages is required")
	}
	n := 0
	var lastUser []byte
	for m := range elements(list) {
		role, content := text(member(m, "role")), member(m, "content")
		if role != "user" && role != "assistant" && role != "system" {
			return fmt.Errorf("messages.%d.role: must be user, assistant or system", n)
		}
		if err := p.content(role, content); err != nil {
			return fmt.Errorf("messages.%d: %w", n, err)
		}
		if role == "user" {
			lastUser = content
		}
		n++
	}
	p.req.lastUser(lastUser)
	if n == 0 {
		return errors.New("messages: at least one message is required")
	}
	return nil
}

// content takes a string as the one text block it stands for.
func (p *parser) content(part string, content []byte) error {
	if isString(content) {
		p.add(part, []byte("type"), []byte(`"text"`), []byte("text"), content)
		return nil
	}
	if !isArray(content) {
		return fmt.Errorf("%s: content must be a string or a list of blocks", part)
	}
	for b := range elements(content) {
		if err := p.block(part, b); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) block(part string, block []byte) error {
	if !isObject(block) {
		return fmt.Errorf("%s: every block must be an object", part)
	}
	var pieces [][]byte
	var control []byte
	for name, value := range members(block) {
		if name == "cache_control" {
			control = value
			continue
		}
		pieces = append(pieces, []byte(name), value)
	}
	b := p.add(part, pieces...)
	if text(member(block, "type")) == "image" {
		b.Tokens = min(b.Tokens, maxImageTokens)
	}
	ttl, err := cacheTTL(control)
	if err != nil || ttl == 0 {
		return err
	}
	return p.breakpoint(b, ttl)
}

// add appends a block of names and values in turn.
func (p *parser) add(part string, pieces ...[]byte) *Block {
	size := 0
	for i := 1; i < len(pieces); i += 2 {
		size += len(pieces[i])
	}
	p.chain.mix(append([][]byte{[]byte(part)}, pieces...)...)
	p.req.blocks = append(p.req.blocks, Block{Hash: p.chain.sum, Tokens: CountTokens(size)})
	return &p.req.blocks[len(p.req.blocks)-1]
}

func (p *parser) breakpoint(b *Block, ttl time.Duration) error {
	if ttl == ttlLong && p.short {
		return errors.New("cache_control.ttl: a block of 1h must not come after one of 5m")
	}
	p.short = p.short || ttl == ttlShort
	p.points++
	if p.points > maxBreakpoints {
		return fmt.Errorf("cache_control: at most %d blocks may carry it", maxBreakpoints)
	}
	b.TTL = ttl
	return nil
}

// automatic places the breakpoint of a top-level cache_control on the last block,
// where it takes one of the four places unless the block has one already.
func (p *parser) automatic(control []byte) error {
	ttl, err := cacheTTL(control)
	if err != nil || ttl == 0 || len(p.req.blocks) == 0 {
		return err
	}
	last := &p.req.blocks[len(p.req.blocks)-1]
	if last.TTL == ttl {
		return nil
	}
	if last.TTL != 0 {
		return errors.New("cache_control.ttl: the request and its last block ask for different lives")
	}
	return p.breakpoint(last, ttl)
}

// cacheTTL reads a cache_control; 0 when there is none.
func cacheTTL(control []byte) (time.Duration, error) {
	if isNull(control) {
		return 0, nil
	}
	if text(member(control, "type")) != "ephemeral" {
		return 0, errors.New("cache_control.type: must be ephemeral")
	}
	ttl := member(control, "ttl")
	switch {
	case isNull(ttl) || text(ttl) == "5m":
		return ttlShort, nil
	case text(ttl) == "1h":
		return ttlLong, nil
	}
	return 0, errors.New("cache_control.ttl: must be 5m or 1h")
}

// lastUser notes what the default answer reacts to.
func (r *Request) lastUser(content []byte) {
	r.UserText = joinText(content)
	for b := range elements(content) {
		if text(member(b, "type")) == "tool_result" {
			r.ToolResult, r.HasToolResult = joinText(member(b, "content")), true
		}
	}
}

// joinText is a string, or the text blocks of a list joined by newlines.
func joinText(content []byte) string {
	if isString(content) {
		return text(content)
	}
	var lines []string
	for b := range elements(content) {
		if text(member(b, "type")) == "text" {
			lines = append(lines, text(member(b, "text")))
		}
	}
	return strings.Join(lines, "\n")
}
