package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"cc-relay/internal/simulator"
)

// play is what a scenario does; its error is why the relay fails it.
type play func(*lab) error

type fault = simulator.Fault

// once acts on the first request only.
func once(f fault) fault {
	f.Nth = 1
	return f
}

func status(code int) fault { return fault{Kind: simulator.FaultStatus, Status: code} }

// with scripts the primary before the play.
func with(f fault, then play) play {
	return func(l *lab) error {
		if err := l.primary.script(f); err != nil {
			return err
		}
		return then(l)
	}
}

// moved: the client gets a whole answer of the fallback after one attempt at each,
// and the next request goes to the primary again.
func moved(l *lab) error { return movesIn(0, 5*time.Second)(l) }

// movesIn is moved, and says how long the answer may take at the least and at most.
func movesIn(least, most time.Duration) play {
	return func(l *lab) error {
		r := l.ask()
		if err := l.movedOn(r); err != nil {
			return err
		}
		if took := r.took(); took < least || took > most {
			return fmt.Errorf("the answer took %.1f s, want %v to %v", took.Seconds(), least, most)
		}
		return l.back()
	}
}

func (l *lab) movedOn(r *reply) error {
	return errors.Join(l.attempts(r, 1, 1), clean(r, l.fallback))
}

// back: a request is the primary's again, at the first attempt.
func (l *lab) back() error {
	l.over()
	r := l.ask()
	if err := errors.Join(l.attempts(r, 1, 0), clean(r, l.primary)); err != nil {
		return fmt.Errorf("the next request: %w", err)
	}
	return nil
}

// waits: the slow answer is the primary's own.
func waits(least time.Duration) play {
	return func(l *lab) error {
		r := l.ask()
		if err := errors.Join(l.attempts(r, 1, 0), clean(r, l.primary)); err != nil {
			return err
		}
		if r.took() < least {
			return fmt.Errorf("the answer took %.1f s, and the primary %v: the fault did not act", r.took().Seconds(), least)
		}
		return l.back()
	}
}

// breaks: what was shown cannot be taken back, so the stream ends in an honest
// error, and the fallback is not asked.
func breaks(within time.Duration) play {
	return func(l *lab) error {
		r := l.ask()
		if err := errors.Join(l.attempts(r, 1, 0), honest(r, l.primary, within)); err != nil {
			return err
		}
		return l.back()
	}
}

// untouched: the stream is the primary's, byte for byte, whatever is in it.
func untouched(l *lab) error {
	r := l.ask()
	if r.err != nil {
		return r.err
	}
	if err := errors.Join(l.attempts(r, 1, 0), sameBytes(r, l.primary)); err != nil {
		return err
	}
	return l.back()
}

// passes plays an error of the request itself: passed on as it is, asked once.
func passes(code int, body string) play {
	return with(once(fault{Kind: simulator.FaultStatus, Status: code, Body: body}), func(l *lab) error {
		r := l.ask()
		if err := errors.Join(l.attempts(r, 1, 0), passedOn(r, code, body)); err != nil {
			return err
		}
		return l.back()
	})
}

// refusal: the model's refusal is an answer like any other.
func refusal(l *lab) error {
	r := l.say(refuseWord)
	if err := errors.Join(l.attempts(r, 1, 0), clean(r, l.primary)); err != nil {
		return err
	}
	if m, err := r.message(); err != nil || m.Stop != "refusal" {
		return errors.Join(fmt.Errorf("stop_reason %q, want refusal", m.Stop), err)
	}
	return l.back()
}

// limitedOnce: the fallback serves at once, and the primary is left alone until its
// retry-after is over; then it serves again.
func limitedOnce(l *lab) error {
	const after = 2 * time.Second
	f := once(status(http.StatusTooManyRequests))
	f.Headers = map[string]string{"Retry-After": strconv.Itoa(int(after / time.Second))}
	if err := l.primary.script(f); err != nil {
		return err
	}
	if err := l.movedOn(l.ask()); err != nil {
		return err
	}
	if err := l.until(l.primary, 10*time.Second, 200*time.Millisecond); err != nil {
		return err
	}
	return spaced(l.primary.log()[:2], after)
}

// until asks, with a pause between, until up serves, which must be within limit. All
// others must have been served, too.
func (l *lab) until(up *upstream, limit, pause time.Duration) error {
	for began := time.Now(); ; l.pause(pause) {
		r := l.ask()
		if err := l.served(r); err != nil {
			return err
		}
		after, serves := r.began.Sub(began), clean(r, up) == nil
		switch {
		case serves && after <= limit:
			return nil
		case serves:
			return fmt.Errorf("the %s serves again after %.0f s, want at most %v", up.name, after.Seconds(), limit)
		case after > limit+time.Minute: // long enough to tell how late it is
			return fmt.Errorf("the %s does not serve again within %.0f s", up.name, after.Seconds())
		}
	}
}

// limitedAlways: ten requests are the fallback's, and the primary is asked after
// its cool-down only, which is 1 s and doubles.
func limitedAlways(l *lab) error {
	if err := l.primary.script(status(http.StatusTooManyRequests)); err != nil {
		return err
	}
	for range 10 {
		if err := clean(l.ask(), l.fallback); err != nil {
			return err
		}
		l.pause(200 * time.Millisecond)
	}
	return spaced(l.primary.log(), time.Second)
}

// mostAsked is 5 failures in a row, which open the breaker, and one probe after
// each of its first times, 5 s, 10 s and 20 s.
const mostAsked = 8

// spared: twenty requests are the fallback's, and the primary is soon left alone.
func spared(l *lab) error {
	for range 20 {
		if err := clean(l.ask(), l.fallback); err != nil {
			return err
		}
	}
	if n := len(l.primary.log()); n > mostAsked {
		return fmt.Errorf("the primary was asked %d times over 20 requests, want at most %d", n, mostAsked)
	}
	return nil
}

// refusesPrefill: the fallback has to be asked with what the client sent, for it
// does not go on with an answer that somebody else began.
func refusesPrefill(l *lab) error {
	l.fallback.setFront(func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
		if !bytes.Contains(body, []byte(`"assistant"`)) {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"type":"error","error":{"type":"invalid_request_error","message":"This model does not support assistant message prefill."}}`)
		return true
	})
	r := l.ask()
	if err := l.movedOn(r); err != nil {
		return err
	}
	return l.fallbackSaw(r, r.sent)
}

// fallbackSaw says why the body that the fallback got is not that one.
func (l *lab) fallbackSaw(r *reply, want []byte) error {
	c, err := l.fallback.answerTo(r)
	if err != nil {
		return fmt.Errorf("the fallback %w", err)
	}
	if !bytes.Equal(c.body, want) {
		return fmt.Errorf("the fallback got another body: %.300q", c.body)
	}
	return nil
}

// names: model and usage of the answer are the fallback's, which was asked for
// asked in place of the model of the client's body.
func names(asked string) play {
	return func(l *lab) error {
		r := l.ask()
		if err := l.movedOn(r); err != nil {
			return err
		}
		m, err := r.message()
		if u := l.fallback.usage; err != nil || m.Model != asked || m.Usage.Input != u.Input || m.Usage.Output != u.Output {
			return errors.Join(fmt.Errorf("model %s, %d and %d tokens; want the fallback's %s, %d and %d", m.Model, m.Usage.Input, m.Usage.Output, asked, u.Input, u.Output), err)
		}
		return l.fallbackSaw(r, bytes.Replace(r.sent, []byte(model), []byte(asked), 1))
	}
}

// pingsOnly: pings are no content, however many come.
func pingsOnly(least, most time.Duration) play {
	return func(l *lab) error {
		var first sync.Once
		l.primary.setFront(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			acts := false
			first.Do(func() { acts = true })
			if acts {
				sendPings(w, r)
			}
			return acts
		})
		return movesIn(least, most)(l)
	}
}

func sendPings(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	frame := `event: message_start` + "\n" + `data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"` + model +
		`","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1111,"output_tokens":1}}}` + "\n\n"
	for r.Context().Err() == nil {
		_, _ = io.WriteString(w, frame)
		_ = http.NewResponseController(w).Flush()
		frame = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
		select {
		case <-tick.C:
		case <-r.Context().Done():
		}
	}
}

// deadKey: the key of the first request is refused from then on. No client notices,
// and it is not asked again.
func deadKey(l *lab) error {
	for range 10 {
		if err := clean(l.ask(), l.primary); err != nil {
			return err
		}
	}
	calls := l.primary.log()
	if calls[0].key == calls[1].key || len(calls) != 11 {
		return fmt.Errorf("%d requests were made for ten, and the second with key %s after %s; want 11, and another key", len(calls), calls[1].key, calls[0].key)
	}
	return nil
}

// stays: the request may have been served, and the relay is told not to risk a
// second time.
func stays(l *lab) error {
	r := l.ask()
	if err := errors.Join(l.attempts(r, 1, 0), honestError(r, http.StatusBadGateway)); err != nil {
		return err
	}
	return l.back()
}

// noneServes plays a hundred requests, one every 50 ms, that nobody can serve: each
// is told so, and they do not become many more.
func noneServes(code int, counted func([]*reply, *lab) (int, error)) play {
	return func(l *lab) error {
		const asked = 100
		replies := make([]*reply, asked)
		var wg sync.WaitGroup
		began := time.Now()
		for i := range asked {
			wg.Go(func() { replies[i] = l.ask() })
			l.pause(50 * time.Millisecond)
		}
		wg.Wait()
		most := int(1.1*asked + 3*time.Since(began).Seconds())
		for i, r := range replies {
			if err := honestError(r, code); err != nil {
				return fmt.Errorf("request %d: %w", i+1, err)
			}
		}
		n, err := counted(replies, l)
		if err == nil && n > most {
			err = fmt.Errorf("%d requests became %d attempts, want at most %d", asked, n, most)
		}
		return err
	}
}

// refused closes both providers. What they refuse they cannot count, so the
// relay's own word is taken.
func refused(l *lab) error {
	l.primary.close()
	l.fallback.close()
	return noneServes(http.StatusBadGateway, func(replies []*reply, _ *lab) (int, error) { return told(replies) })(l)
}

// told adds up the attempts that the relay says it made.
func told(replies []*reply) (int, error) {
	sum := 0
	for _, r := range replies {
		n, err := strconv.Atoi(r.header.Get("X-Cc-Relay-Attempts"))
		if err != nil {
			return 0, fmt.Errorf("x-cc-relay-attempts: %w", err)
		}
		sum += n
	}
	return sum, nil
}

func overloaded(l *lab) error {
	if err := errors.Join(l.primary.script(status(529)), l.fallback.script(status(529))); err != nil {
		return err
	}
	return noneServes(529, func(_ []*reply, l *lab) (int, error) {
		return len(l.primary.log()) + len(l.fallback.log()), nil
	})(l)
}

// The primary is away for downFor, in which downAsked requests come.
const (
	downFor   = time.Minute
	downAsked = 20
	// mostDials is 5 failures in a row, which open the breaker, and one probe every
	// 5 s of the 45 s that are left.
	mostDials = 14
	// How soon the primary has its next request, after it is there again: the time a
	// breaker stays open has doubled to 40 s by then; an active check knows sooner.
	backIn  = 42 * time.Second
	checked = 2*healthCheck + 2*time.Second
	fullIn  = 10 * time.Second // all requests, after that
)

const healthCheck = 2 * time.Second // of S15b

// down: the primary's address refuses connections. The fallback serves, the primary
// is not dialled all the time, and within limit after it is back it has requests, and
// 10 s later all of them.
func down(limit time.Duration) play {
	return func(l *lab) error { return l.down(limit) }
}

func (l *lab) down(limit time.Duration) error {
	l.primary.close()
	until := time.Now().Add(downFor)
	replies := make([]*reply, 0, downAsked)
	for i := range downAsked {
		r := l.ask()
		if err := clean(r, l.fallback); err != nil {
			return fmt.Errorf("request %d while it is down: %w", i+1, err)
		}
		replies = append(replies, r)
		l.pause(time.Until(until.Add(-downFor * time.Duration(downAsked-1-i) / downAsked)))
	}
	attempts, err := told(replies)
	if err != nil {
		return err
	}
	if dials := attempts - downAsked; dials > mostDials {
		err = fmt.Errorf("the primary was dialled %d times over %d requests, want at most %d", dials, downAsked, mostDials)
	}
	return errors.Join(err, l.returns(limit))
}

func (l *lab) returns(limit time.Duration) error {
	l.over()
	if err := l.primary.open(); err != nil {
		return err
	}
	if err := l.until(l.primary, limit, time.Second); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < fullIn; l.pause(time.Second) {
		if err := l.served(l.ask()); err != nil {
			return fmt.Errorf("while its share grows: %w", err)
		}
	}
	for range 10 {
		if err := clean(l.ask(), l.primary); err != nil {
			return fmt.Errorf("%v after its first answer the primary has not all requests: %w", fullIn, err)
		}
	}
	return nil
}
