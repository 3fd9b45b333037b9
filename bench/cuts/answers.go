package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// readGolden returns the recorded answers in a directory, in the order of their names.
func readGolden(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.sse"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("no recorded streams in " + dir)
	}
	var all []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		all = append(all, string(text))
	}
	return all, nil
}

// newStream is a whole streamed answer that is like no other: id stands in its
// message_start and in its texts.
func newStream(rng *rand.Rand, golden []string, id string) string {
	if rng.IntN(3) == 0 {
		return strings.ReplaceAll(golden[rng.IntN(len(golden))], "msg_", "msg_"+id+"_")
	}
	s := &speaker{rng: rng, id: id, ends: []string{"\n", "\r\n", "\r"}}
	if n := rng.IntN(5); n < 4 { // else mixed
		s.ends = []string{[]string{"\n", "\n", "\r\n", "\r"}[n]}
	}
	s.plain = rng.IntN(2) == 0
	return s.answer()
}

// speaker writes one answer, in one of the many ways there are.
type speaker struct {
	rng   *rand.Rand
	id    string
	ends  []string // of lines
	plain bool     // nothing but the fields event and data
	out   strings.Builder
}

func (s *speaker) answer() string {
	s.aside()
	s.event("message_start", fmt.Sprintf(`{"type":"message_start","message":{"id":"msg_%s","type":"message","role":"assistant","model":"claude-opus-5-5","content":[],`+
		`"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":%d}}}`,
		s.id, s.rng.IntN(10_000), s.rng.IntN(5_000), s.rng.IntN(90_000), s.rng.IntN(9)))
	stop := "end_turn"
	for i := range s.rng.IntN(4) {
		s.aside()
		stop = s.block(i)
	}
	output := 1 + s.rng.IntN(500)
	if s.rng.IntN(5) == 0 { // some say in between what it has cost so far
		s.event("message_delta", fmt.Sprintf(`{"type":"message_delta","delta":{"stop_reason":null},"usage":{"output_tokens":%d}}`, output))
		output += s.rng.IntN(100)
	}
	more := ""
	if s.rng.IntN(3) == 0 {
		more = fmt.Sprintf(`"input_tokens":%d,"cache_read_input_tokens":%d,`, s.rng.IntN(10_000), s.rng.IntN(90_000))
	}
	s.event("message_delta", fmt.Sprintf(`{"type":"message_delta","delta":{"stop_reason":%q,"stop_sequence":null},"usage":{%s"output_tokens":%d}}`, stop, more, output))
	s.aside()
	s.event("message_stop", `{"type":"message_stop"}`)
	return s.out.String()
}

// block writes one block of content and returns what stops an answer that ends with it.
func (s *speaker) block(i int) (stop string) {
	start, deltas, stop := `{"type":"text","text":""}`, s.deltas("text_delta", "text"), "end_turn"
	switch s.rng.IntN(4) {
	case 0:
		start = `{"type":"thinking","thinking":"","signature":""}`
		deltas = append(s.deltas("thinking_delta", "thinking"), `{"type":"signature_delta","signature":"c2ln`+s.id+`="}`)
	case 1:
		start, stop = fmt.Sprintf(`{"type":"tool_use","id":"toolu_%s_%d","name":"Bash","input":{}}`, s.id, i), "tool_use"
		deltas = []string{`{"type":"input_json_delta","partial_json":""}`}
		for _, part := range []string{`{"command":`, ` "echo ` + s.id, `"}`} {
			deltas = append(deltas, fmt.Sprintf(`{"type":"input_json_delta","partial_json":%s}`, quoted(part)))
		}
	case 2:
		if s.rng.IntN(3) == 0 {
			start, deltas = `{"type":"redacted_thinking","data":"ZGF0YQ`+s.id+`=="}`, nil
		}
	}
	s.event("content_block_start", fmt.Sprintf(`{"type":"content_block_start","index":%d,"content_block":%s}`, i, start))
	for _, d := range deltas {
		s.aside()
		s.event("content_block_delta", fmt.Sprintf(`{"type":"content_block_delta","index":%d,"delta":%s}`, i, d))
	}
	s.event("content_block_stop", fmt.Sprintf(`{"type":"content_block_stop","index":%d}`, i))
	return stop
}

// words may look like the end of something.
var words = []string{"so far ", "\n\n", "data: ", "event: message_stop", `{"type":"message_stop"}`, "Grüße 🙂", "\r", "\u2028", `\"`, "[DONE]", " "}

func (s *speaker) deltas(kind, field string) []string {
	var all []string
	for range s.rng.IntN(6) {
		text := s.id + " "
		for range 1 + s.rng.IntN(4) {
			text += words[s.rng.IntN(len(words))]
		}
		if s.rng.IntN(200) == 0 { // more than is held back of one frame
			text += strings.Repeat("and so on, ", 6_000+s.rng.IntN(6_000))
		}
		all = append(all, fmt.Sprintf(`{"type":%q,%q:%s}`, kind, field, quoted(text)))
	}
	return all
}

func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil { // strings cannot fail to encode
		panic(err)
	}
	return string(b)
}

// aside writes what means nothing, now and then.
func (s *speaker) aside() {
	switch s.rng.IntN(8) {
	case 0:
		s.event("ping", `{"type":"ping"}`)
	case 1:
		s.line(": keep-alive")
		s.line("")
	case 2:
		if !s.plain {
			s.line("")
		}
	case 3:
		if !s.plain {
			s.event("later_kind", `{"type":"later_kind","usage":{"output_tokens":999}}`)
		}
	}
}

func (s *speaker) line(text string) {
	s.out.WriteString(text)
	end := s.ends[s.rng.IntN(len(s.ends))]
	if text == "" && end == "\n" && strings.HasSuffix(s.out.String(), "\r") {
		end = "\r" // the LF would end the line before
	}
	s.out.WriteString(end)
}

// event writes one event. Its data has no space between tokens, so the first comma
// after "type" ends a token.
func (s *speaker) event(name, data string) {
	lines := []string{"event: " + name, "data: " + data}
	if !s.plain {
		switch s.rng.IntN(8) {
		case 0:
			lines = []string{"event:" + name, "data:" + data}
		case 1:
			if head, rest, ok := strings.Cut(data, ","); ok {
				lines = []string{"event: " + name, "data: " + head + ",", "data: " + rest}
			}
		case 2:
			lines = []string{"id: 7", "retry: 3000", ": a comment", "event: " + name, ": another", "data: " + data}
		case 3:
			slices.Reverse(lines)
		case 4:
			lines = lines[1:] // its data says its name
		}
	}
	for _, l := range append(lines, "") {
		s.line(l)
	}
}

// newJSON is a whole answer that is no stream.
func newJSON(rng *rand.Rand, id string) string {
	text := id
	for range rng.IntN(30) {
		text += words[rng.IntN(len(words))]
	}
	space := ""
	if rng.IntN(4) == 0 { // some send it to keep the connection alive
		space = strings.Repeat(" \n", 1+rng.IntN(3))
	}
	return space + fmt.Sprintf(`{"id":"msg_%s","type":"message","role":"assistant","model":"claude-opus-5-5","content":[{"type":"text","text":%s},{"type":"tool_use","id":"toolu_1","name":"T","input":{"a":[1,{"b":"}"}]}}],`+
		`"stop_reason":"end_turn","usage":{"input_tokens":%d,"cache_read_input_tokens":%d,"output_tokens":%d}}`, id, quoted(text), rng.IntN(10_000), rng.IntN(90_000), 1+rng.IntN(500))
}
