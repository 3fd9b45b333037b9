package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"cc-relay/bench/rig"
)

// clean says why r is not one whole answer of up, exactly as up sent it.
func clean(r *reply, up *upstream) error {
	m, err := r.whole()
	if err != nil {
		return err
	}
	if m.Text != up.says(r.text) {
		return fmt.Errorf("the text is not what the %s said: %.80q", up.name, m.Text)
	}
	return sameBytes(r, up)
}

// whole is what r says; its error is why r is not one whole answer.
func (r *reply) whole() (rig.Message, error) {
	switch {
	case r.err != nil:
		return rig.Message{}, fmt.Errorf("no whole answer: %w", r.err)
	case r.status != http.StatusOK:
		return rig.Message{}, fmt.Errorf("status %d: %.200s", r.status, r.body)
	}
	m, err := r.message()
	if err == nil && !m.Complete {
		err = errors.New("the stream ended without message_stop")
	}
	return m, err
}

// sameBytes says why the body is not what up sent for it, byte for byte.
func sameBytes(r *reply, up *upstream) error {
	c, err := up.answerTo(r)
	if err != nil {
		return fmt.Errorf("the %s %w", up.name, err)
	}
	if !bytes.Equal(r.body, c.sent) {
		return fmt.Errorf("the client got %d bytes, the %s sent others (%d)", len(r.body), up.name, len(c.sent))
	}
	return nil
}

// served says why r is not a whole answer of either provider.
func (l *lab) served(r *reply) error {
	err := clean(r, l.primary)
	if err == nil || clean(r, l.fallback) == nil {
		return nil
	}
	return err
}

// honest says why r is not an honest end of a stream that up broke off: what it sent
// and nothing else, then an error event after all its whole frames, or a broken
// connection, which may lose some. It has to come within that time after the last
// byte.
func honest(r *reply, up *upstream, within time.Duration) error {
	if r.status != http.StatusOK {
		return fmt.Errorf("status %d: %.200s", r.status, r.body)
	}
	c, err := up.answerTo(r)
	if err != nil {
		return fmt.Errorf("the %s %w", up.name, err)
	}
	shown, tail := rig.Frames(r.body)
	m, err := rig.ReadStream(bytes.Join(shown, nil))
	switch {
	case err != nil:
		return err
	case m.Complete:
		return errors.New("it ended with message_stop, as if it were whole")
	case m.Failed:
		shown = shown[:len(shown)-1]
	case r.err == nil:
		return errors.New("it ended cleanly, without an error event")
	}
	if m.Failed && len(tail) > 0 {
		return fmt.Errorf("%.60q follows the error event", tail)
	}
	sent, _ := rig.Frames(c.sent)
	same := bytes.Equal(bytes.Join(shown, nil), bytes.Join(sent, nil))
	if !m.Failed {
		same = len(shown) > 0 && bytes.HasPrefix(c.sent, r.body)
	}
	if !same {
		return fmt.Errorf("the client got %d whole events, the %s sent others (%d)", len(shown), up.name, len(sent))
	}
	if late := r.ended.Sub(c.last); late > within {
		return fmt.Errorf("the error came %.1f s after the last byte, want at most %v", late.Seconds(), within)
	}
	return nil
}

// errorTypes of the API, by status.
// Source: https://platform.claude.com/docs/en/api/errors.
var errorTypes = map[int]string{
	http.StatusBadGateway:     "api_error",
	http.StatusGatewayTimeout: "timeout_error",
	529:                       "overloaded_error",
}

// honestError says why r is not that status with an error in the API's shape.
func honestError(r *reply, status int) error {
	if r.err != nil {
		return fmt.Errorf("no answer: %w", r.err)
	}
	if r.status != status {
		return fmt.Errorf("status %d, want %d: %.200s", r.status, status, r.body)
	}
	var e struct {
		Type  string
		Error struct{ Type, Message string }
	}
	if err := json.Unmarshal(r.body, &e); err != nil || e.Type != "error" || e.Error.Message == "" || e.Error.Type != errorTypes[status] {
		return fmt.Errorf("not an error of the API of type %s: %.200s", errorTypes[status], r.body)
	}
	return nil
}

// passedOn says why r is not exactly that error.
func passedOn(r *reply, status int, body string) error {
	switch {
	case r.err != nil:
		return fmt.Errorf("no answer: %w", r.err)
	case r.status != status:
		return fmt.Errorf("status %d, want %d: %.200s", r.status, status, r.body)
	case string(r.body) != body:
		return fmt.Errorf("the provider's error was changed: %.200q", r.body)
	}
	return nil
}

// attempts says why r did not cost that many requests.
func (l *lab) attempts(r *reply, primary, fallback int) error {
	p, f := len(l.primary.of(r)), len(l.fallback.of(r))
	if p != primary || f != fallback {
		return fmt.Errorf("attempts: primary %d, fallback %d, want %d and %d", p, f, primary, fallback)
	}
	return nil
}

// spaced says why calls did not leave at least cool between the first two, twice
// as much before the next, and so on.
func spaced(calls []call, cool time.Duration) error {
	for i := 1; i < len(calls); i++ {
		if gap := calls[i].at.Sub(calls[i-1].at); gap < cool-50*time.Millisecond {
			return fmt.Errorf("request %d came %.2f s after the one before, want at least %v", i+1, gap.Seconds(), cool)
		}
		cool *= 2
	}
	return nil
}
