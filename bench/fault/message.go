package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// message is what a client makes of an answer.
type message struct {
	model, text, stop string
	input, output     int
	complete          bool // it is whole: message_stop has come, or it is one JSON object
	failed            bool // an error event ended it
}

type usage struct {
	Input  *int `json:"input_tokens"`
	Output *int `json:"output_tokens"`
}

// take keeps what a usage reports; later reports replace earlier ones.
func (m *message) take(u usage) {
	if u.Input != nil {
		m.input = *u.Input
	}
	if u.Output != nil {
		m.output = *u.Output
	}
}

// readJSON reads an answer that is no stream.
func readJSON(body []byte) (message, error) {
	var v struct {
		Type, Role, Model string
		Content           []struct{ Type, Text string }
		StopReason        string `json:"stop_reason"`
		Usage             usage
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return message{}, fmt.Errorf("the answer is not one JSON object: %w", err)
	}
	if v.Type != "message" || v.Role != "assistant" || v.StopReason == "" {
		return message{}, fmt.Errorf("the answer is no message: %.100q", body)
	}
	m := message{model: v.Model, stop: v.StopReason, complete: true}
	m.take(v.Usage)
	for _, b := range v.Content {
		m.text += b.Text
	}
	return m, nil
}

// readStream reads the events of one answer as a strict client does. Its error is
// the first thing that no single answer contains: a second message_start, a block
// that begins twice, something after the end. An answer that merely stops is no
// error here: it is neither complete nor failed.
func readStream(body []byte) (message, error) {
	whole, tail := frames(body)
	s := stream{open: -1}
	for i, f := range whole {
		if err := s.event(f); err != nil {
			return s.message, fmt.Errorf("event %d: %w", i+1, err)
		}
	}
	if len(tail) > 0 {
		return s.message, fmt.Errorf("the stream ends inside a frame: %.60q", tail)
	}
	return s.message, nil
}

// frames splits a stream after its blank lines. tail is a frame without its end.
// Lines end in LF: neither simulator nor relay write anything else here.
func frames(body []byte) (whole [][]byte, tail []byte) {
	for {
		end := bytes.Index(body, []byte("\n\n"))
		if end < 0 {
			return whole, body
		}
		whole, body = append(whole, body[:end+2]), body[end+2:]
	}
}

// stream is where a client stands in an answer.
type stream struct {
	message
	started, closed bool // message_start, message_delta have come
	blocks          int  // begun so far
	open            int  // the block that has not ended, -1: none
}

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

func (s *stream) event(frame []byte) error {
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
	case s.complete || s.failed:
		return fmt.Errorf("%s after the end", name)
	case name == "error":
		s.failed = true
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

func (s *stream) content(name string, e event) error {
	switch name {
	case "message_start":
		s.started, s.model = true, e.Message.Model
		s.take(e.Message.Usage)
	case "content_block_start":
		if s.open >= 0 || e.Index != s.blocks {
			return fmt.Errorf("block %d begins, %d have begun: two answers in one", e.Index, s.blocks)
		}
		s.open, s.blocks = e.Index, s.blocks+1
	case "content_block_delta", "content_block_stop":
		if e.Index != s.open {
			return fmt.Errorf("%s of block %d, which is not open", name, e.Index)
		}
		s.text += e.Delta.Text
		if name == "content_block_stop" {
			s.open = -1
		}
	case "message_delta":
		if s.open >= 0 {
			return fmt.Errorf("message_delta inside block %d", s.open)
		}
		s.closed, s.stop = true, e.Delta.StopReason
		s.take(e.Usage)
	case "message_stop":
		if !s.closed {
			return errors.New("message_stop without message_delta")
		}
		s.complete = true
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
