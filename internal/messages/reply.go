package messages

// Reply is what the relay reads of an answer that is not streamed.
type Reply struct {
	Error      bool // "type" is "error": an error body, whatever its status; see ParseError
	Usage      Usage
	Suspect    bool   // a count in it was odd and was clamped, as in Meter.Suspect
	StopReason string // "" when absent or null
}

// InspectReply reads the JSON answer to a request that did not ask for a stream.
// It checks the structure as Inspect does, so that an answer cut short is an
// error; white space around the object, which some providers send to keep the
// connection alive, is not. The error is always an *InvalidError. Safe for
// concurrent use.
func InspectReply(body []byte) (Reply, error) {
	var (
		s     = scanner{buf: body}
		reply Reply
		c     counts
	)
	for ok := s.firstField(); ok; ok = s.nextField() {
		switch key := string(s.key); {
		case key == "type" && s.peek() == '"':
			reply.Error = string(s.str()) == "error"
		case key == "stop_reason":
			reply.StopReason = s.stopReason(reply.StopReason)
		case key == "usage":
			s.usage(&c)
		default:
			s.value()
		}
	}
	s.end()
	if err := s.invalid(); err != nil {
		return Reply{}, err
	}
	reply.Usage, reply.Suspect = c.Usage, c.suspect
	return reply, nil
}

// Nesting follows a JSON text that comes in parts and is too long to be held, far
// enough to tell whether it has been cut short. It does not check what it reads. The
// zero value is ready. Not safe for concurrent use.
type Nesting struct {
	open     int // brackets and braces that are not closed yet
	begun    bool
	inString bool
	escaped  bool
}

// Add takes the next part.
func (n *Nesting) Add(part []byte) {
	for _, c := range part {
		switch {
		case n.escaped:
			n.escaped = false
		case n.inString && c == '\\':
			n.escaped = true
		case c == '"':
			n.inString = !n.inString
		case n.inString:
		case c == '{' || c == '[':
			n.open++
			n.begun = true
		case c == '}' || c == ']':
			n.open--
		}
	}
}

// Closed reports whether an object or array has come with all that is in it.
func (n *Nesting) Closed() bool { return n.begun && n.open == 0 && !n.inString }
