package simulator

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// Reply is what a [Config.Reply] hook wants said. The zero Reply is an answer
// without content.
type Reply struct {
	Blocks []ReplyBlock
	// StopReason; empty means tool_use when a block is one, else end_turn.
	StopReason string
	// Usage, when set, is what the answer reports; buckets and records go on
	// counting what was really read and said.
	Usage *Usage
}

// Types of a ReplyBlock.
const (
	TextBlock     = "text"
	ToolUseBlock  = "tool_use"
	ThinkingBlock = "thinking"
)

// ReplyBlock is one content block of an answer.
type ReplyBlock struct {
	Type      string          // text, also when empty; tool_use; thinking
	Text      string          // of text and thinking
	Signature string          // of thinking
	Name      string          // of tool_use
	Input     json.RawMessage // of tool_use; sent as it is, be it JSON or not; nil: {}
}

// spoken is what counts as output.
func (b *ReplyBlock) spoken() string {
	if b.Type == ToolUseBlock {
		return string(b.Input)
	}
	return b.Text
}

// toolTrigger opens the request for a tool call in a user message:
//
//	[use-tool:Bash {"command":"echo hi"}]
//
// The name must be that of a tool of the request, the input (none: {}) an object.
const toolTrigger = "[use-tool:"

// filler is said over and over; plain ASCII, so that any length can be cut from it.
const filler = "This is an answer of the simulator. It means nothing and is only as long as it has to be. "

const (
	toolResultIntro = "The tool answered: "
	toolResultShown = 200 // characters of the result that are repeated
)

func (s *Simulator) reply(req *Request) Reply {
	if s.cfg.Reply != nil {
		return s.cfg.Reply(*req)
	}
	if req.HasToolResult {
		return limited(toolResultIntro+firstRunes(req.ToolResult, toolResultShown), req.MaxTokens)
	}
	if b, ok := toolCall(req); ok {
		return Reply{Blocks: []ReplyBlock{b}}
	}
	n := s.answerLength() * bytesPerToken
	return limited(strings.Repeat(filler, n/len(filler)+1)[:n], req.MaxTokens)
}

// limited is a text that ends at max_tokens, at the latest.
func limited(text string, maxTokens int) Reply {
	if CountTokens(len(text)) <= maxTokens {
		return Reply{Blocks: []ReplyBlock{{Text: text}}}
	}
	cut := maxTokens * bytesPerToken
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	if cut == 0 {
		return Reply{StopReason: "max_tokens"}
	}
	return Reply{Blocks: []ReplyBlock{{Text: text[:cut]}}, StopReason: "max_tokens"}
}

// toolCall reads the first trigger of the last user message, if it is well formed.
func toolCall(req *Request) (ReplyBlock, bool) {
	_, rest, found := strings.Cut(req.UserText, toolTrigger)
	if !found {
		return ReplyBlock{}, false
	}
	for _, name := range req.Tools {
		after, ok := strings.CutPrefix(rest, name)
		if !ok || name == "" {
			continue
		}
		if input, ok := toolInput(after); ok {
			return ReplyBlock{Type: ToolUseBlock, Name: name, Input: input}, true
		}
	}
	return ReplyBlock{}, false
}

// toolInput reads what follows the name up to the closing bracket.
func toolInput(after string) (json.RawMessage, bool) {
	if strings.HasPrefix(after, "]") {
		return json.RawMessage("{}"), true
	}
	if !strings.HasPrefix(after, " ") {
		return nil, false
	}
	dec := json.NewDecoder(strings.NewReader(after))
	var input json.RawMessage
	if dec.Decode(&input) != nil || !isObject(input) {
		return nil, false
	}
	return input, strings.HasPrefix(strings.TrimSpace(after[dec.InputOffset():]), "]")
}

func firstRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}
