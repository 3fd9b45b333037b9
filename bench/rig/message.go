package rig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Usage is what an answer says it cost, in tokens.
type Usage struct{ Input, CacheWrite, CacheRead, Output int }

// Message is what a client makes of an answer.
type Message struct {
	Model, Text, Stop string // Stop is its stop_reason
	Usage             Usage  // the last reported, field by field
	Complete          bool   // it is whole: message_stop has come, or it is one JSON object
	Failed            bool   // an error event ended it
}

type usage struct {
	Input      *int `json:"input_tokens"`
	CacheWrite *int `json:"cache_creation_input_tokens"`
	CacheRead  *int `json:"cache_read_input_tokens"`
	Output     *int `json:"output_tokens"`
}

// take keeps what a usage reports; later reports replace earlier ones.
func (m *Message) take(u usage) {
	set := func(field *int, v *int) {
		if v != nil {
			*field = *v
		}
	}
	set(&m.Usage.Input, u.Input)
	set(&m.Usage.CacheWrite, u.CacheWrite)
	set(&m.Usage.CacheRead, u.CacheRead)
	set(&m.Usage.Output, u.Output)
}

// ReadJSON reads an answer that is no stream.
func ReadJSON(body []byte) (Message, error) {
	var v struct {
		Type, Role, Model string
		Content           []struct{ Type, Text string }
		StopReason        string `json:"stop_reason"`
		Usage             usage
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return Message{}, fmt.Errorf("the answer is not one JSON object: %w", err)
	}
	if v.Type != "message" || v.Role != "assistant" || v.StopReason == "" {
		return Message{}, fmt.Errorf("the answer is no message: %.100q", body)
	}
	m := Message{Model: v.Model, Stop: v.StopReason, Complete: true}
	m.take(v.Usage)
	for _, b := range v.Content {
		m.Text += b.Text
	}
	return m, nil
}

// ReadStream reads the events of one answer as a strict client does. Its error is
// the first thing that no single answer contains: a second message_start, a block
// that begins twice, something after the end. An answer that merely stops is no
// error here: it is neither complete nor failed.
func ReadStream(body []byte) (Message, error) {
	whole, tail := Frames(body)
	var s Stream
	for i, f := range whole {
		if err := s.Event(f); err != nil {
			return s.Message(), fmt.Errorf("event %d: %w", i+1, err)
		}
	}
	if len(tail) > 0 {
		return s.Message(), fmt.Errorf("the stream ends inside a frame: %.60q", tail)
	}
	return s.Message(), nil
}

// Frames splits a stream after its blank lines. tail is a frame without its end.
// Lines end in LF: neither simulator nor relay write anything else here.
func Frames(body []byte) (whole [][]byte, tail []byte) {
	for {
		end := bytes.Index(body, []byte("\n\n"))
		if end < 0 {
			return whole, body
		}
		whole, body = append(whole, body[:end+2]), body[end+2:]
	}
}

// Stream is where a client stands in an answer. The zero Stream is at its beginning.
// It is for one goroutine.
type Stream struct {
	message         Message
	text            strings.Builder
	started, closed bool // message_start, message_delta have come
	blocks          int  // begun so far
	open            bool // the last of them has not ended
	deltas          int
}

// Message is what the answer is so far.
func (s *Stream) Message() Message {
	m := s.message
	m.Text = s.text.String()
	return m
}

// Started tells whether message_start has come.
func (s *Stream) Started() bool { return s.started }

// Final tells whether message_delta, with the usage of the whole, has come.
func (s *Stream) Final() bool { return s.closed }

// Deltas is how many parts of content have come.
func (s *Stream) Deltas() int { return s.deltas }

type event struct {
	Type    string
	Index   int
	Message struct {
		Model string
		Usage usage
	}
	Delta struct {
		Text       string
		StopReason string `json:"stop_reason"`
	}
	Usage usage
}

// Event takes the next frame. Its error is why no single answer contains it here.
func (s *Stream) Event(frame []byte) error {
	name, data := fields(frame)
	if name == "" && data == "" { // a comment
		return nil
	}
	var e event
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return fmt.Errorf("%s is not JSON: %w", name, err)
	}
	switch {
	case e.Type != name:
		return fmt.Errorf("%s says that it is %q", name, e.Type)
	case s.message.Complete || s.message.Failed:
		return fmt.Errorf("%s after the end", name)
	case name == "error":
		s.message.Failed = true
		return nil
	case name == "message_start" && s.started:
		return errors.New("a second message_start: two answers in one")
	case name != "message_start" && name != "ping" && !s.started:
		return fmt.Errorf("%s before message_start", name)
	case s.closed && name != "message_stop" && name != "message_delta" && name != "ping":
		return fmt.Errorf("%s after message_delta", name)
	}
	return s.content(name, e)
}

func (s *Stream) content(name string, e event) error {
	switch name {
	case "message_start":
		s.started, s.message.Model = true, e.Message.Model
		s.message.take(e.Message.Usage)
	case "content_block_start":
		if s.open || e.Index != s.blocks {
			return fmt.Errorf("block %d begins, %d have begun: two answers in one", e.Index, s.blocks)
		}
		s.open, s.blocks = true, s.blocks+1
	case "content_block_delta", "content_block_stop":
		if !s.open || e.Index != s.blocks-1 {
			return fmt.Errorf("%s of block %d, which is not open", name, e.Index)
		}
		if s.open = name == "content_block_delta"; s.open {
			s.deltas++
			s.text.WriteString(e.Delta.Text)
		}
	case "message_delta":
		if s.open {
			return fmt.Errorf("message_delta inside block %d", s.blocks-1)
		}
		s.closed, s.message.Stop = true, e.Delta.StopReason
		s.message.take(e.Usage)
	case "message_stop":
		if !s.closed {
			return errors.New("message_stop without message_delta")
		}
		s.message.Complete = true
	}
	return nil
}

// fields are the event and the data of a frame.
func fields(frame []byte) (name, data string) {
	for line := range strings.SplitSeq(string(frame), "\n") {
		if v, ok := strings.CutPrefix(line, "event: "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(line, "data: "); ok {
			data += v
		}
	}
	return name, data
}
