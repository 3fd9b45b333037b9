package messages

import (
	"math"
	"strconv"
)

// maxCount is the most tokens a count is taken for: beyond it a JSON reader in
// another language loses digits, and a few of them still add up in an int.
const maxCount = min(1<<53, math.MaxInt>>2)

// Usage is what an answer says it cost, in tokens. Never negative.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
type Usage struct {
	Input      int // input_tokens: the prompt after the last cache breakpoint
	CacheWrite int // cache_creation_input_tokens
	CacheRead  int // cache_read_input_tokens: cheap, and free of the input limit
	Output     int // output_tokens
}

// Prompt is the size of the whole prompt: Input alone leaves out cached tokens.
func (u Usage) Prompt() int { return u.Input + u.CacheWrite + u.CacheRead }

// counts is a Usage on its way out of JSON.
type counts struct {
	Usage
	seen    bool // at least one field of Usage was there
	suspect bool // a field was odd, see Meter.Suspect
}

// usage reads a usage object into c. A field that is missing or null keeps its
// value there; so a later event overwrites an earlier one field by field.
func (s *scanner) usage(c *counts) {
	if s.peek() != '{' {
		c.suspect = c.suspect || s.peek() != 'n'
		s.value()
		return
	}
	for ok := s.firstField(); ok; ok = s.nextField() {
		switch string(s.key) {
		case "input_tokens":
			s.count(c, &c.Input)
		case "cache_creation_input_tokens":
			s.count(c, &c.CacheWrite)
		case "cache_read_input_tokens":
			s.count(c, &c.CacheRead)
		case "output_tokens":
			s.count(c, &c.Output)
		default:
			s.value()
		}
	}
}

func (s *scanner) count(c *counts, field *int) {
	first := s.peek()
	if first != '-' && (first < '0' || first > '9') {
		c.suspect = c.suspect || first != 'n'
		s.value()
		return
	}
	n, odd := clampCount(s.number())
	c.seen = true
	c.suspect = c.suspect || odd || n < *field
	*field = n
}

// clampCount turns a JSON number into a count from 0 to maxCount; odd where that
// was not what it said.
func clampCount(number []byte) (n int, odd bool) {
	if v, err := strconv.ParseInt(string(number), 10, 64); err == nil {
		n = int(min(max(v, 0), maxCount))
		return n, v != int64(n)
	}
	v, _ := strconv.ParseFloat(string(number), 64) // infinite when out of range
	return int(min(max(v, 0), maxCount)), true
}

// stopReasons are the known ones. Source:
// https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons.
var stopReasons = [...]string{
	"end_turn", "tool_use", "max_tokens", "stop_sequence", "pause_turn", "refusal", "model_context_window_exceeded",
}

// stopReason reads a stop_reason; null or something that is no short string
// keeps the one before.
func (s *scanner) stopReason(before string) string {
	if s.peek() != '"' {
		s.value()
		return before
	}
	reason := s.str()
	for _, known := range stopReasons {
		if string(reason) == known {
			return known // no copy for what every stream ends with
		}
	}
	if len(reason) > 64 {
		return before
	}
	return string(reason)
}

// Meter reads usage and progress from the frames of one stream. It looks into
// message_start and message_delta only; the rest costs a comparison of names.
//
// Counts of a stream are cumulative: a later one replaces an earlier one field by
// field and nothing is added up. The zero value is ready. Not safe for concurrent
// use. Source: https://platform.claude.com/docs/en/build-with-claude/streaming.
type Meter struct {
	usage      Usage
	stopReason string
	deltas     int
	skipped    int
	started    bool
	final      bool
	complete   bool
	suspect    bool
}

// Frame takes the next frame of the stream, in order.
func (m *Meter) Frame(f Frame) {
	switch string(f.Event) {
	case EventContentBlockDelta:
		m.deltas++
	case EventMessageStart:
		m.messageStart(f.Data)
	case EventMessageDelta:
		m.messageDelta(f.Data)
	case EventMessageStop:
		m.complete = true
	}
}

func (m *Meter) messageStart(data []byte) {
	s, c := scanner{buf: data}, counts{Usage: m.usage}
	for ok := s.firstField(); ok; ok = s.nextField() {
		if string(s.key) != "message" || s.peek() != '{' {
			s.value()
			continue
		}
		for ok := s.firstField(); ok; ok = s.nextField() {
			if string(s.key) == "usage" {
				s.usage(&c)
			} else {
				s.value()
			}
		}
	}
	if m.take(&s, c) {
		m.started = m.started || c.seen
	}
}

func (m *Meter) messageDelta(data []byte) {
	s, c, reason := scanner{buf: data}, counts{Usage: m.usage}, m.stopReason
	for ok := s.firstField(); ok; ok = s.nextField() {
		switch key := string(s.key); {
		case key == "usage":
			s.usage(&c)
		case key == "delta" && s.peek() == '{':
			for ok := s.firstField(); ok; ok = s.nextField() {
				if string(s.key) == "stop_reason" {
					reason = s.stopReason(reason)
				} else {
					s.value()
				}
			}
		default:
			s.value()
		}
	}
	if m.take(&s, c) {
		m.stopReason = reason
		m.final = m.final || c.seen
	}
}

// take keeps what was read, unless the data turned out to be no JSON object.
func (m *Meter) take(s *scanner, c counts) bool {
	if s.end(); s.failed {
		m.skipped++
		return false
	}
	m.usage = c.Usage
	m.suspect = m.suspect || c.suspect
	return true
}

// Usage is the usage as the stream told it so far. Before Final its Output is
// only the small number a stream starts with; Deltas then helps to estimate it.
func (m *Meter) Usage() Usage { return m.usage }

// Started tells whether a message_start with usage was seen.
func (m *Meter) Started() bool { return m.started }

// Final tells whether a message_delta with usage was seen.
func (m *Meter) Final() bool { return m.final }

// Complete tells whether message_stop was seen. Without it a stream was cut.
func (m *Meter) Complete() bool { return m.complete }

// Suspect tells whether some count was negative, above 2^53, not a whole number,
// no number at all, or lower than before. Such a count is clamped to what a count
// can be, one that is no number leaves the one before.
func (m *Meter) Suspect() bool { return m.suspect }

// Deltas is the number of content_block_delta frames.
func (m *Meter) Deltas() int { return m.deltas }

// Skipped is the number of message_start and message_delta frames that could not
// be read: data that is no JSON object, or a head that was spilled.
func (m *Meter) Skipped() int { return m.skipped }

// StopReason is the last one given, as sent, "" when none was.
func (m *Meter) StopReason() string { return m.stopReason }
