package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// Ends of a request as its client sees them.
const (
	endWhole  = "whole"        // one provider's whole answer
	endMoved  = "whole, moved" // the same, after another attempt had failed
	endError  = "error event"  // a part, then an error event
	endBroken = "broken"       // a part, then the connection broke
	endStatus = "status"       // an error status
	endSlow   = "too slow"     // the machine: the relay's time was over before the provider was asked
)

// ends are all of them, in the order of the summary.
var ends = []string{endWhole, endMoved, endError, endBroken, endStatus, endSlow}

// result is how a request ended.
type result struct {
	end     string
	stopped bool // a stop_reason had come before the error
}

// ownEvent is the relay's error event.
var ownEvent = regexp.MustCompile(`event: error\ndata: \{.*\}\n\n$`)

// judge says how the request ended, or why that is not an honest end. The rules: the
// client has the whole answer of the provider that was asked last and nothing else, or
// it sees that something went wrong; what it sees of the answer is its beginning.
func judge(t *turn, plays []*play, got *reply) (result, error) {
	if len(plays) != got.attempts || got.record.Attempts != got.attempts {
		return result{}, fmt.Errorf("the providers were asked %d times, the client is told %d, the record says %d", len(plays), got.attempts, got.record.Attempts)
	}
	if got.status != http.StatusOK {
		return result{end: endStatus}, judgeStatus(t, plays, got)
	}
	if len(plays) == 0 {
		return result{}, errors.New("status 200 although no provider was asked")
	}
	// Who is shown is asked last. Where the relay's time is short, a provider may read a
	// request only after the one that was asked next: then one answer must explain it all.
	n := len(plays)
	res, err := t.judgeShown(plays[n-1], n, got)
	for i := n - 2; i >= 0 && err != nil && t.how == stall; i-- {
		if other, no := t.judgeShown(plays[i], n, got); no == nil {
			return other, nil
		}
	}
	return res, err
}

// judgeShown judges what was shown of the answer p.
func (t *turn) judgeShown(p *play, plays int, got *reply) (result, error) {
	if t.stream {
		return t.judgeStream(p, plays, got)
	}
	res := result{end: endWhole}
	if plays > 1 {
		res.end = endMoved
	}
	switch {
	case got.err != nil:
		return res, fmt.Errorf("a JSON answer broke off: %w", got.err)
	case got.body != p.full:
		return res, fmt.Errorf("status 200 with a part of a JSON answer: %d of %d bytes", len(got.body), len(p.full))
	}
	w := wireEvent{}
	if err := json.Unmarshal([]byte(got.body), &w); err != nil {
		return res, err
	}
	m := told{complete: true, final: true, usage: map[string]int{}}
	m.count(w.Usage)
	return res, judgeRecord(got.record, "served", m)
}

func judgeStatus(t *turn, plays []*play, got *reply) error {
	var e struct {
		Type  string
		Error struct{ Type, Message string }
	}
	if err := json.Unmarshal([]byte(got.body), &e); got.err != nil || err != nil || e.Type != "error" || e.Error.Message == "" {
		return fmt.Errorf("status %d without an error of the API: %q, %w", got.status, got.body, errors.Join(got.err, err))
	}
	switch n := len(plays); {
	case t.how == stall: // its time may have been too short for others
	case n > 0 && plays[n-1].how == whole:
		return fmt.Errorf("status %d after an answer that was not cut: %s", got.status, got.body)
	case n == 1 && t.fresh && plays[0].how != errorFrame:
		return fmt.Errorf("status %d after one attempt, which another could have made good", got.status)
	}
	return nil
}

func (t *turn) judgeStream(p *play, plays int, got *reply) (result, error) {
	res := result{end: endWhole}
	if plays > 1 {
		res.end = endMoved
	}
	if !strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream") {
		return res, errors.New("a stream that is none: " + got.header.Get("Content-Type"))
	}
	body := got.body
	if strings.HasSuffix(p.full, "\r\n") && body == p.full[:len(p.full)-1] {
		body = p.full // its CR has ended the last frame; the LF came too late, or never
	}
	if got.err == nil && body == p.full {
		events, _, _ := specEvents(got.body)
		m := accumulate(events, false)
		if !m.complete && !m.failed {
			return res, errors.New("no message_stop in an answer that is not cut")
		}
		outcome := "served"
		if !m.complete {
			outcome = "broken" // the provider's answer is a stream that ends in an error
		}
		return res, judgeRecord(got.record, outcome, m)
	}
	if p.how == whole && t.how != stall {
		return res, fmt.Errorf("a part of an answer that was not cut: %d of %d bytes, %w", len(got.body), len(p.full), errors.Join(got.err))
	}
	return judgeCut(p, got)
}

func judgeCut(p *play, got *reply) (result, error) {
	res := result{end: endError}
	shown, own := got.body, false
	if at := ownEvent.FindStringIndex(got.body); at != nil && got.body != p.sent {
		shown, own = got.body[:at[0]], true
		if before, ok := strings.CutSuffix(shown, "\r\n"); ok && !strings.HasPrefix(p.sent, shown) {
			shown = before + "\r" // the LF is the relay's: it makes one line end of both
		}
	}
	if !strings.HasPrefix(p.sent, shown) {
		return res, fmt.Errorf("the client got what the provider did not send: …%q, sent …%q", last(got.body), last(p.sent))
	}
	events, _, tail := specEvents(shown)
	m := accumulate(events, false)
	all, _, _ := specEvents(got.body)
	after := accumulate(all, false)
	switch {
	case got.err != nil && tail == "":
		return res, errors.New("the connection was broken between frames, where an error event could be told")
	case got.err != nil:
		res.end = endBroken
	case own && tail != "":
		return res, errors.New("an error event inside a frame")
	case !after.failed:
		return res, errors.New("a cut stream ends as if it were whole")
	case own && !accumulate(goEvents(got.body, false), true).failed:
		return res, errors.New("a client that reads as the Go SDK does gets no error")
	}
	for _, read := range [][]event{all, goEvents(got.body, false), goEvents(got.body, true)} {
		if accumulate(read, false).complete || accumulate(read, true).complete {
			return res, errors.New("a cut stream has a message_stop")
		}
	}
	if m.stopped { // who takes it for the end must have missed nothing
		res.stopped = true
		events, _, _ := specEvents(p.full)
		if want := accumulate(events, false); want.content != m.content {
			return res, errors.New("a stop_reason came before all content")
		}
	}
	return res, judgeRecord(got.record, "broken", m)
}

// last is the end of a text, for a message.
func last(text string) string { return text[max(0, len(text)-150):] }

// judgeRecord compares the access record with what the client was shown.
func judgeRecord(rec record, outcome string, m told) error {
	if rec.Outcome != outcome {
		return fmt.Errorf("the record says %q, want %q", rec.Outcome, outcome)
	}
	if rec.Partial == nil || *rec.Partial == m.complete {
		return fmt.Errorf("the record says partial: %v of an answer that is complete: %v", rec.Partial, m.complete)
	}
	want := record{Input: m.usage["input_tokens"], CacheWrite: m.usage["cache_creation_input_tokens"], CacheRead: m.usage["cache_read_input_tokens"], Output: m.usage["output_tokens"]}
	if !m.final { // the small number of the beginning: what came since counts
		want.Output = max(want.Output, m.deltas)
	}
	got := record{Input: rec.Input, CacheWrite: rec.CacheWrite, CacheRead: rec.CacheRead, Output: rec.Output}
	if got != want {
		return fmt.Errorf("the record's usage is %+v, the client was told %+v", got, want)
	}
	return nil
}
