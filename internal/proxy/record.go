package proxy

import (
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
)

// step is one place of its plan that a request has been to: where it got a key, and
// then an answer, or where it was not let in.
type step struct {
	upstream, key, model, class string

	sent    bool // an attempt was made
	closed  bool // the breaker kept the request away
	verdict verdict
	status  int
	took    time.Duration
	usage   messages.Usage
	choice  *keypool.Account // of the key; nil where the pool was not asked
}

// maxSteps bounds the steps that are written down of one request.
const maxSteps = 16

// wrote notes a step.
func (x *exchange) wrote(s step) {
	if len(x.steps) == maxSteps {
		x.further++
		giveBack(s.choice)
		return
	}
	x.steps = append(x.steps, s)
}

// MarshalZerologObject implements zerolog.LogObjectMarshaler.
func (s *step) MarshalZerologObject(e *zerolog.Event) {
	e.Str("upstream", s.upstream).Str("key_id", s.key).Str("model", s.model).Str("verdict", s.verdict.String()).Int("status", s.status).
		Dur("duration_ms", s.took).Int("input_tokens", s.usage.Input).Int("cache_write_tokens", s.usage.CacheWrite).
		Int("cache_read_tokens", s.usage.CacheRead).Int("output_tokens", s.usage.Output)
}

// record writes the one access record of the request.
func (x *exchange) record(log zerolog.Logger) {
	level := zerolog.InfoLevel
	if x.quiet {
		level = zerolog.DebugLevel
	}
	e := log.WithLevel(level)
	if log.GetLevel() > level || e == nil {
		return
	}
	e.Str("request_id", x.id).
		Str("client", x.client).
		Str("method", x.printable(x.r.Method)).
		Str("path", x.printable(x.r.URL.Path)).
		Str("model", x.printable(x.model)).
		Bool("stream", x.stream).
		Str("upstream", x.provider).
		Str("key_id", x.keyID).
		Int("attempts", x.attempts).
		Str("verdict", x.verdict.String()).
		Str("outcome", x.outcome).
		Int("status", x.status).
		Dur("ttfb_ms", x.firstByte).
		Dur("duration_ms", x.took).
		Dur("wait_ms", x.waited).
		Int("input_tokens", x.usage.Input).
		Int("cache_write_tokens", x.usage.CacheWrite).
		Int("cache_read_tokens", x.usage.CacheRead).
		Int("output_tokens", x.usage.Output).
		Bool("partial", x.partial)
	if x.attempts > 1 { // of one, all is said
		tries := zerolog.Arr()
		for i := range x.steps {
			s := &x.steps[i]
			if !s.sent {
				continue
			}
			t := *s
			t.model = x.printable(t.model)
			tries.Object(&t)
		}
		e.Array("tries", tries)
	}
	if x.stripped > 0 {
		e.Int("thinking_stripped", x.stripped)
	}
	if x.own {
		e.Bool("own_credential", true)
	}
	e.Msg("request")
}
