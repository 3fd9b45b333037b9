package messages

import (
	"bytes"
	"net/http"
)

// maxSessionBytes is far above the 36 bytes of a UUID.
const maxSessionBytes = 256

// SessionID names the conversation a request belongs to, "" when nothing does:
// the header x-claude-code-session-id, else the session in metadata.user_id
// (userID as in Request.UserID; nil is fine), else x-session-affinity, else
// x-session-id. Empty values and those over 256 bytes are passed over.
//
// The value is the client's word: combine it with who the client is, and do not
// log it in clear.
func SessionID(h http.Header, userID []byte) string {
	if id := first(h, "X-Claude-Code-Session-Id"); usableSession(id) {
		return id
	}
	text, _ := decoded(userID)
	if id := userSession(text); usableSession(id) {
		return id
	}
	if id := first(h, "X-Session-Affinity"); usableSession(id) {
		return id
	}
	if id := first(h, "X-Session-Id"); usableSession(id) {
		return id
	}
	return ""
}

// first is the first value of a header whose name is written in canonical form.
func first(h http.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func usableSession(id string) bool { return id != "" && len(id) <= maxSessionBytes }

// userSession finds the session in a user_id as Claude Code writes it: a JSON
// object with session_id, in older versions user_…_account_…_session_….
func userSession(userID []byte) string {
	if bytes.HasPrefix(userID, []byte("user_")) {
		_, session, _ := bytes.Cut(userID, []byte("_session_"))
		return string(session)
	}
	s := scanner{buf: userID}
	for ok := s.firstField(); ok; ok = s.nextField() {
		if string(s.key) == "session_id" && s.peek() == '"' {
			session, _ := decoded(s.str())
			return string(session)
		}
		s.value()
	}
	return ""
}
