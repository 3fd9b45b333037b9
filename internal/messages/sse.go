package messages

import (
	"bytes"
	"cmp"
	"errors"
	"io"
)

// Names of the events of a stream. Others may come at any time: forward them.
// Source: https://platform.claude.com/docs/en/build-with-claude/streaming.
const (
	EventMessageStart      = "message_start"
	EventMessageDelta      = "message_delta"
	EventMessageStop       = "message_stop" // the only proof that a stream is complete
	EventContentBlockStart = "content_block_start"
	EventContentBlockDelta = "content_block_delta"
	EventContentBlockStop  = "content_block_stop"
	EventPing              = "ping"
	EventError             = "error" // ends the stream; data is an error body, see ParseError
)

const (
	// MaxFrame is the largest frame in bytes that Frames accepts, spilled or not, if it
	// is told no other limit.
	MaxFrame = 8 << 20
	// readSize is the most one Fill reads: as fast as larger reads and a fraction
	// of the memory of a stream.
	readSize = 4 << 10
	// keepSize is the largest buffer kept once what made it grow is gone.
	keepSize = 64 << 10
	// typeReach is how far into the data an event name is looked for.
	typeReach = 64
)

// ErrFrameTooLarge is returned by Fill when a frame has passed the limit.
var ErrFrameTooLarge = errors.New("messages: frame too large")

// Frame is one frame of an event stream: its lines and the blank line after
// them. A blank line or a comment alone is a frame without Event and Data. The
// slices are valid until the next Fill or Discard.
type Frame struct {
	// Raw is all bytes of the frame through its blank line; of a partial frame
	// only those that were not spilled.
	Raw []byte
	// Event is the value of event:, or, without one, the "type" in the first 64
	// bytes of the data; may be empty.
	Event []byte
	// Data is the value of data:, several lines joined by \n. It aliases Raw
	// where there is one line, and is nil where there is none.
	Data []byte
	// Partial tells that the head of the frame was spilled. Data is nil then and
	// Event is what the head said, if it had come that far.
	Partial bool
}

// Frames cuts a stream of server-sent events into frames, however its bytes are
// chunked, and keeps every byte as received. The caller repeats Fill, Next until
// it returns false, then Whole and Discard; frames may be held over many Fills.
//
// Lines end in LF, CR or CRLF, mixed at will. A CR ends its line at once, also
// as the last byte read; an LF that turns out to follow it is added to the same
// line, or to Whole if the line closed a frame.
//
// The zero value is ready. Not safe for concurrent use.
// Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
type Frames struct {
	buf   []byte
	start int // buf[start:whole] is what Whole returns
	whole int // buf[whole:] is the tail
	scan  int // buf[whole:scan] was searched and holds no end of a frame

	hasCR   bool // the stream has a CR somewhere; most have none
	inLine  bool // the line at scan has bytes already
	afterCR bool // the byte before scan is a CR that ended a line

	spilled  int    // bytes of the unfinished frame that were moved into Whole
	midFrame bool   // what was discarded last ended inside a frame
	limit    int    // of a frame; 0: MaxFrame
	tooLarge bool   // a frame passed the limit
	event    []byte // name of the spilled frame
	joined   []byte // data of frames with several data lines
}

// Reset forgets everything, so that f can serve another stream. A buffer of more
// than 64 KiB is let go.
func (f *Frames) Reset() {
	buf := f.buf[:0]
	if cap(buf) > keepSize {
		buf = nil
	}
	*f = Frames{buf: buf}
}

// Limit bounds frames to n bytes instead of MaxFrame, until Reset.
func (f *Frames) Limit(n int) { f.limit = n }

func (f *Frames) most() int { return cmp.Or(f.limit, MaxFrame) }

// Fill reads from r once, at most 4 KiB, and returns what Read returned. It
// invalidates the frames returned before. With ErrFrameTooLarge nothing was read
// and the stream cannot be continued.
func (f *Frames) Fill(r io.Reader) (int, error) {
	space, err := f.Space()
	if err != nil {
		return 0, err
	}
	n, err := r.Read(space)
	f.Add(n)
	return n, err
}

// Space is where the next bytes of the stream are to be read to, at most 4 KiB: the
// first half of Fill, for who must let others look at Whole during the read. It
// invalidates the frames returned before. Error: ErrFrameTooLarge.
func (f *Frames) Space() ([]byte, error) {
	if f.tooLarge {
		return nil, ErrFrameTooLarge
	}
	f.joined = f.joined[:0]
	f.makeRoom()
	end := len(f.buf)
	return f.buf[end:min(cap(f.buf), end+readSize)], nil
}

// Add takes the first n bytes of what Space returned: the second half of Fill.
func (f *Frames) Add(n int) {
	end := len(f.buf)
	f.buf = f.buf[:end+n]
	f.hasCR = f.hasCR || bytes.IndexByte(f.buf[end:], '\r') >= 0
}

// makeRoom leaves at least half of readSize free. What is still needed is moved
// only when it fills no more than half of the buffer or the buffer grows, so that
// moving it costs less than reading it did.
func (f *Frames) makeRoom() {
	live, size := f.buf[f.start:], cap(f.buf)
	to := f.buf[:0]
	switch {
	case len(live) > 0 && size-len(f.buf) >= readSize/2:
		return
	case len(live) == 0 && (size == 0 || size > keepSize):
		to = make([]byte, 0, readSize)
	case len(live) > size/2:
		to = make([]byte, 0, 2*size)
	}
	f.buf = append(to, live...)
	f.whole -= f.start
	f.scan -= f.start
	f.start = 0
}

// Next returns the next whole frame; false: more bytes are needed. Call it until
// it returns false after each Fill.
func (f *Frames) Next() (Frame, bool) {
	f.takeLF()
	for f.scan < len(f.buf) && !f.tooLarge {
		rest := f.buf[f.scan:]
		n := f.lineEnd(rest)
		if n == len(rest) {
			f.inLine, f.scan = true, len(f.buf)
			break
		}
		blank := n == 0 && !f.inLine
		f.inLine, f.afterCR = false, rest[n] == '\r'
		f.scan += n + 1
		f.takeLF()
		if blank {
			return f.cut()
		}
	}
	f.tooLarge = f.tooLarge || f.spilled+f.scan-f.whole > f.most()
	return Frame{}, false
}

// takeLF adds an LF to the line whose CR came before it. Where all before the LF
// is in Whole already, a frame that ended in that CR above all, the LF follows it
// there and does not wait for more.
func (f *Frames) takeLF() {
	if !f.afterCR || f.scan == len(f.buf) {
		return
	}
	f.afterCR = false
	if f.buf[f.scan] != '\n' {
		return
	}
	if f.scan == f.whole {
		f.whole++
	}
	f.scan++
}

func (f *Frames) cut() (Frame, bool) {
	raw := f.buf[f.whole:f.scan]
	if f.spilled+len(raw) > f.most() {
		f.tooLarge = true
		return Frame{}, false
	}
	frame := Frame{Raw: raw, Event: f.event, Partial: true}
	if f.spilled == 0 {
		frame = f.parse(raw)
	}
	f.whole, f.spilled = f.scan, 0
	return frame, true
}

// Whole returns the bytes of all frames returned by Next, and of what was
// spilled, since the last Discard: contiguous, exactly as received.
func (f *Frames) Whole() []byte { return f.buf[f.start:f.whole] }

// Discard forgets what Whole returns.
func (f *Frames) Discard() {
	f.start = f.whole
	f.midFrame = f.spilled > 0
}

// Tail is the number of bytes after the last whole frame.
func (f *Frames) Tail() int { return len(f.buf) - f.whole }

// Spill moves the unfinished frame, as far as Next has seen it, into Whole: for
// a frame too large to wait for. Next returns the rest as a partial frame once
// its end has come.
func (f *Frames) Spill() {
	head := f.buf[f.whole:f.scan]
	if f.spilled == 0 {
		f.event = bytes.Clone(f.parse(head).Event)
	}
	f.spilled += len(head)
	f.whole = f.scan
}

// MidFrame tells whether the bytes discarded so far end inside a frame, so that
// no other frame can be put after them.
func (f *Frames) MidFrame() bool { return f.midFrame }

// parse reads the fields of raw, which may lack its end.
func (f *Frames) parse(raw []byte) Frame {
	frame, dataLines := Frame{Raw: raw}, 0
	for rest := raw; len(rest) > 0; {
		n := f.lineEnd(rest)
		line, ended := rest[:n], n < len(rest)
		rest = rest[min(n+1, len(rest)):] // the LF of a CRLF reads as an empty line
		if value, ok := dataLine(line); ok {
			frame.Data = value
			dataLines++
		} else if value, ok := eventLine(line); ok && ended {
			frame.Event = value
		}
	}
	if dataLines > 1 {
		frame.Data = f.joinData(raw)
	}
	if len(frame.Event) == 0 {
		frame.Event = eventType(frame.Data)
	}
	return frame
}

func (f *Frames) joinData(raw []byte) []byte {
	start := len(f.joined)
	for rest := raw; len(rest) > 0; {
		n := f.lineEnd(rest)
		if value, ok := dataLine(rest[:n]); ok {
			f.joined = append(append(f.joined, value...), '\n')
		}
		rest = rest[min(n+1, len(rest)):]
	}
	return f.joined[start : len(f.joined)-1]
}

// lineEnd is the index of the first CR or LF in b, len(b) if there is none. It
// looks at one stretch after the other: with lines that end in CR alone, each
// search for an LF would run to the end of b.
func (f *Frames) lineEnd(b []byte) int {
	if !f.hasCR {
		if n := bytes.IndexByte(b, '\n'); n >= 0 {
			return n
		}
		return len(b)
	}
	for from := 0; from < len(b); from += readSize {
		part := b[from:min(len(b), from+readSize)]
		end := bytes.IndexByte(part, '\n')
		if end >= 0 {
			part = part[:end]
		}
		if cr := bytes.IndexByte(part, '\r'); cr >= 0 {
			end = cr
		}
		if end >= 0 {
			return from + end
		}
	}
	return len(b)
}

func dataLine(line []byte) (value []byte, ok bool) {
	if len(line) < 4 || string(line[:4]) != "data" {
		return nil, false
	}
	return fieldValue(line[4:])
}

func eventLine(line []byte) (value []byte, ok bool) {
	if len(line) < 5 || string(line[:5]) != "event" {
		return nil, false
	}
	return fieldValue(line[5:])
}

// fieldValue is what follows the name of a field: a colon and at most one space
// before the value, or nothing. Anything else means that the name goes on.
func fieldValue(rest []byte) (value []byte, ok bool) {
	if len(rest) == 0 {
		return rest, true
	}
	if rest[0] != ':' {
		return nil, false
	}
	if len(rest) > 1 && rest[1] == ' ' {
		return rest[2:], true
	}
	return rest[1:], true
}

// eventType finds the type of an event in the head of its data.
func eventType(data []byte) []byte {
	s := scanner{buf: data[:min(len(data), typeReach)]}
	for ok := s.firstField(); ok; ok = s.nextField() {
		if string(s.key) == "type" && s.peek() == '"' {
			return s.str()
		}
		s.value()
	}
	return nil
}
