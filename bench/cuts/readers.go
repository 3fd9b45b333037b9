package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"strings"
)

// An answer is read here as its clients read it. The rules are those of their
// sources: what a client takes for the end of a message is a matter of its code.

// event is one event of a stream.
type event struct {
	name, data string
	end        int // where its frame ends, in the stream
}

// specEvents reads a stream as the standard says, as the TypeScript SDK does: lines
// end in CR, LF or CRLF, and a blank line dispatches. It also returns the ends of all
// frames, comments and blank lines among them, and what of the stream is behind the last.
// Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
func specEvents(stream string) (events []event, ends []int, tail string) {
	var e event
	var data []string
	from := 0
	for pos := 0; ; {
		n := strings.IndexAny(stream[pos:], "\r\n")
		if n < 0 {
			return events, ends, stream[from:]
		}
		line := stream[pos : pos+n]
		pos += n + 1
		if stream[pos-1] == '\r' && strings.HasPrefix(stream[pos:], "\n") {
			pos++
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if data != nil || e.name != "" {
				e.data, e.end = strings.Join(data, "\n"), pos
				events = append(events, e)
			}
			e, data, from = event{}, nil, pos
			ends = append(ends, pos)
		case name == "event":
			e.name = value
		case name == "data":
			data = append(data, value)
		}
	}
}

// boundaries are the places between the frames of a stream, its beginning among them.
func boundaries(stream string) []int {
	_, ends, _ := specEvents(stream)
	return append([]int{0}, ends...)
}

// goEvents reads a stream as the Go SDKs do, v1 1.84.0 and v2 2.13.0: packages/ssestream
// of both splits it with a bufio.Scanner, so a CR alone ends no line. With eager, what
// the end of the stream leaves unfinished is an event, too: some clients do that.
func goEvents(stream string, eager bool) []event {
	lines := bufio.NewScanner(strings.NewReader(stream))
	lines.Buffer(nil, bufio.MaxScanTokenSize<<9)
	var all []event
	var e event
	flush := func() {
		if e.name != "" || e.data != "" {
			all = append(all, e)
		}
		e = event{}
	}
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			flush()
			continue
		}
		name, value, _ := bytes.Cut(lines.Bytes(), []byte(":"))
		text := strings.TrimPrefix(string(value), " ")
		switch string(name) {
		case "event":
			e.name = text
		case "data":
			e.data += text + "\n"
		}
	}
	if eager {
		flush()
	}
	return all
}

// told is what a client makes of a stream.
type told struct {
	complete bool // a message_stop has come
	failed   bool // an error has
	stopped  bool // a stop_reason has: for some clients the end
	deltas   int
	content  string // of all blocks, put together
	usage    map[string]int
	final    bool // usage is that of a message_delta
}

// wireEvent is what clients read of the data of an event.
type wireEvent struct {
	Type    string
	Message struct{ Usage map[string]any }
	Usage   map[string]any
	Delta   struct {
		Text, Thinking, Signature string
		PartialJSON               string `json:"partial_json"`
		StopReason                string `json:"stop_reason"`
	}
	ContentBlock json.RawMessage `json:"content_block"`
}

// accumulate goes by the rules of the Go SDKs' Message.Accumulate: the data's own type
// says what an event is, and one that is not JSON is an error. strictly reads them as
// the SDKs' streams do: pings and events without a name are passed over, and an event
// of the name error is one whatever it says.
func accumulate(events []event, strictly bool) told {
	t := told{usage: map[string]int{}}
	for _, e := range events {
		if strictly && (e.name == "ping" || e.name == "") {
			continue
		}
		if e.name == "error" {
			t.failed = true
			return t
		}
		if strings.TrimSpace(e.data) == "" {
			continue
		}
		var w wireEvent
		if json.Unmarshal([]byte(e.data), &w) != nil {
			t.failed = true
			return t
		}
		t.take(w)
	}
	return t
}

func (t *told) take(w wireEvent) {
	switch w.Type {
	case "message_start":
		t.count(w.Message.Usage)
	case "content_block_start":
		t.content += string(w.ContentBlock)
	case "content_block_delta":
		t.deltas++
		t.content += w.Delta.Text + w.Delta.Thinking + w.Delta.Signature + w.Delta.PartialJSON
	case "message_delta":
		t.stopped = t.stopped || w.Delta.StopReason != ""
		t.final = t.final || len(w.Usage) > 0
		t.count(w.Usage)
	case "message_stop":
		t.complete = true
	case "error":
		t.failed = true
	}
}

// count takes cumulative counts: a later one replaces an earlier one.
func (t *told) count(usage map[string]any) {
	for name, v := range usage {
		if n, ok := v.(float64); ok {
			t.usage[name] = int(n)
		}
	}
}
