package simulator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"unicode/utf8"
)

// answer is one reply ready to be sent, as a stream or as one object.
type answer struct {
	id, model string
	blocks    []ReplyBlock
	toolIDs   []string // by block
	stop      string
	spoken    int   // tokens of output
	usage     Usage // as reported; Output is known from the start here
	perEvent  int   // tokens of a delta
}

func (s *Simulator) compose(req *Request, usage Usage) *answer {
	r := s.reply(req)
	a := &answer{id: newID("msg_"), model: req.Model, blocks: slices.Clone(r.Blocks), stop: "end_turn", usage: usage, perEvent: s.cfg.Speed.TokensPerEvent}
	for i := range a.blocks {
		b := &a.blocks[i]
		b.Type = cmp.Or(b.Type, TextBlock)
		if b.Type == ToolUseBlock {
			a.stop = "tool_use"
			if b.Input == nil {
				b.Input = json.RawMessage("{}")
			}
		}
		a.toolIDs = append(a.toolIDs, newID("toolu_"))
		a.spoken += CountTokens(len(b.spoken()))
	}
	a.usage.Output = a.spoken
	a.stop = cmp.Or(r.StopReason, a.stop)
	if r.Usage != nil {
		a.usage = *r.Usage
	}
	return a
}

// frame is one SSE event. data is good until the next frame is asked for.
type frame struct {
	data   []byte
	tokens int  // of output that it carries
	stop   bool // message_stop
}

// frames yields the whole stream in the API's order.
// Source: https://platform.claude.com/docs/en/build-with-claude/streaming.
func (a *answer) frames() iter.Seq[frame] {
	return func(yield func(frame) bool) {
		var buf []byte
		send := func(tokens int, name, format string, args ...any) bool {
			buf = fmt.Appendf(buf[:0], "event: %s\ndata: {\"type\":%q", name, name)
			buf = fmt.Appendf(buf, format, args...)
			buf = append(buf, "}\n\n"...)
			return yield(frame{data: buf, tokens: tokens, stop: name == "message_stop"})
		}
		start := `,"message":{"id":%q,"type":"message","role":"assistant","model":%s,"content":[],"stop_reason":null,"stop_sequence":null,"usage":%s}`
		first := a.usage
		first.Output = min(first.Output, 1)
		if !send(0, "message_start", start, a.id, quote(a.model), usageJSON(first)) || !send(0, "ping", "") {
			return
		}
		for i := range a.blocks {
			if !a.block(i, send) {
				return
			}
		}
		end := `,"delta":{"stop_reason":%s,"stop_sequence":null},"usage":{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":%d}`
		_ = send(0, "message_delta", end, quote(a.stop), a.usage.Input, a.usage.Written(), a.usage.CacheRead, a.usage.Output) &&
			send(0, "message_stop", "")
	}
}

// block sends one content block: start, deltas, stop.
func (a *answer) block(i int, send func(tokens int, name, format string, args ...any) bool) bool {
	b := a.blocks[i]
	var start, delta string
	switch b.Type {
	case ToolUseBlock:
		start = fmt.Sprintf(`{"type":"tool_use","id":%q,"name":%s,"input":{}}`, a.toolIDs[i], quote(b.Name))
		delta = `{"type":"input_json_delta","partial_json":%s}`
	case ThinkingBlock:
		start = `{"type":"thinking","thinking":"","signature":""}`
		delta = `{"type":"thinking_delta","thinking":%s}`
	default:
		start = `{"type":"text","text":""}`
		delta = `{"type":"text_delta","text":%s}`
	}
	if !send(0, "content_block_start", `,"index":%d,"content_block":%s`, i, start) {
		return false
	}
	said := 0
	for piece := range pieces(b.spoken(), a.perEvent*bytesPerToken) {
		tokens := CountTokens(said+len(piece)) - CountTokens(said)
		said += len(piece)
		if !send(tokens, "content_block_delta", `,"index":%d,"delta":`+delta, i, quote(piece)) {
			return false
		}
	}
	if b.Signature != "" && !send(0, "content_block_delta", `,"index":%d,"delta":{"type":"signature_delta","signature":%s}`, i, quote(b.Signature)) {
		return false
	}
	return send(0, "content_block_stop", `,"index":%d`, i)
}

// json is the answer as one object.
func (a *answer) json() []byte {
	out := fmt.Appendf(nil, `{"id":%q,"type":"message","role":"assistant","model":%s,"content":[`, a.id, quote(a.model))
	for i, b := range a.blocks {
		if i > 0 {
			out = append(out, ',')
		}
		switch b.Type {
		case ToolUseBlock:
			out = fmt.Appendf(out, `{"type":"tool_use","id":%q,"name":%s,"input":%s}`, a.toolIDs[i], quote(b.Name), b.Input)
		case ThinkingBlock:
			out = fmt.Appendf(out, `{"type":"thinking","thinking":%s,"signature":%s}`, quote(b.Text), quote(b.Signature))
		default:
			out = fmt.Appendf(out, `{"type":"text","text":%s}`, quote(b.Text))
		}
	}
	return fmt.Appendf(out, `],"stop_reason":%s,"stop_sequence":null,"usage":%s}`, quote(a.stop), usageJSON(a.usage))
}

func usageJSON(u Usage) string {
	return `{"input_tokens":` + strconv.Itoa(u.Input) +
		`,"cache_creation_input_tokens":` + strconv.Itoa(u.Written()) +
		`,"cache_read_input_tokens":` + strconv.Itoa(u.CacheRead) +
		`,"cache_creation":{"ephemeral_5m_input_tokens":` + strconv.Itoa(u.Write5m) +
		`,"ephemeral_1h_input_tokens":` + strconv.Itoa(u.Write1h) +
		`},"output_tokens":` + strconv.Itoa(u.Output) + `,"service_tier":"standard"}`
}

// pieces cuts text after every size bytes, but never inside a character.
func pieces(text string, size int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for text != "" {
			cut := min(size, len(text))
			for cut < len(text) && !utf8.RuneStart(text[cut]) {
				cut++
			}
			if !yield(text[:cut]) {
				return
			}
			text = text[cut:]
		}
	}
}

// quote is a JSON string.
func quote(s string) string {
	q, err := json.Marshal(s)
	if err != nil { // strings cannot fail to encode
		panic(err)
	}
	return string(q)
}
