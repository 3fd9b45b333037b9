package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Request is one request that has ended, whatever ended it.
type Request struct {
	Client   string // its configured name; "" is shown as "none"
	Class    string // a class of the table or the configuration, or "other"; "" is "none"
	Provider string // that served it, or was asked last; "" is "none"
	Outcome  string // served, refused, failed, broken, client_gone or panic
	Status   int    // sent to the client; 0 where none was sent

	Duration time.Duration // from its first byte to its end
	// FirstToken is how long a stream took to show its first content; 0 where the
	// answer was no stream or showed none: not counted.
	FirstToken time.Duration
	Overhead   time.Duration // the relay's own part of Duration; 0: not known, not counted
	Wait       time.Duration // for keys; 0: it did not wait, not counted
	// ThinkingStripped is how many thinking blocks were left out of its body.
	ThinkingStripped int
}

type requestKey struct {
	client, class, provider, outcome string
	status                           int
}

type requestSeries struct {
	total                      prometheus.Counter
	duration, firstToken, wait prometheus.Observer
}

func newRequests(r *prometheus.Registry) *series[requestKey, *requestSeries] {
	total := counterVec(r, "cc_relay_requests_total", "Requests that have ended.", "client", "class", "provider", "outcome", "status")
	duration := histogramVec(r, "cc_relay_request_duration_seconds", "Time from a request's first byte to the end of its answer.",
		durationBuckets, "provider", "class")
	firstToken := histogramVec(r, "cc_relay_time_to_first_token_seconds", "Time from a request's first byte to the first content of its stream.",
		tokenBuckets, "provider", "class")
	wait := histogramVec(r, "cc_relay_key_wait_seconds", "Time that requests waited for a key; those that did not wait are not counted.",
		waitBuckets, "provider", "class")
	return newSeries(requestKey{other, other, other, other, -1}, func(k requestKey) *requestSeries {
		class, provider := name(k.class), name(k.provider)
		return &requestSeries{
			total:      total.WithLabelValues(name(k.client), class, provider, word(k.outcome), status(k.status)),
			duration:   duration.WithLabelValues(provider, class),
			firstToken: firstToken.WithLabelValues(provider, class),
			wait:       wait.WithLabelValues(provider, class),
		}
	})
}

// Request counts a request. Call it once, at its end.
func (m *Metrics) Request(q Request) {
	if m == nil {
		return
	}
	s := m.requests.of(requestKey{q.Client, q.Class, q.Provider, q.Outcome, q.Status})
	s.total.Inc()
	s.duration.Observe(q.Duration.Seconds())
	if q.FirstToken > 0 {
		s.firstToken.Observe(q.FirstToken.Seconds())
	}
	if q.Wait > 0 {
		s.wait.Observe(q.Wait.Seconds())
	}
	if q.Overhead > 0 {
		m.overhead.Observe(q.Overhead.Seconds())
	}
	if q.ThinkingStripped > 0 {
		m.stripped.Add(float64(q.ThinkingStripped))
	}
}

// Attempt is one attempt at one provider that has ended, with what it used there.
type Attempt struct {
	Client   string // as in Request; of the tokens alone
	Provider string
	Class    string // of the model at that provider
	Verdict  string // a word of the relay's own, such as served or limited

	// Tokens, as the provider has told; 0 and less count nothing.
	InputUncached, CacheRead, CacheWrite, Output int
}

type attemptKey struct{ provider, class, verdict string }

type tokenKey struct{ client, class, provider string }

type tokenSeries struct{ input, cacheRead, cacheWrite, output prometheus.Counter }

type alertKey struct{ kind, provider string }

func newAttempts(r *prometheus.Registry) *series[attemptKey, prometheus.Counter] {
	total := counterVec(r, "cc_relay_attempts_total", "Attempts at providers that have ended.", "provider", "class", "verdict")
	return newSeries(attemptKey{other, other, other}, func(k attemptKey) prometheus.Counter {
		return total.WithLabelValues(name(k.provider), name(k.class), word(k.verdict))
	})
}

func newTokens(r *prometheus.Registry) *series[tokenKey, *tokenSeries] {
	total := counterVec(r, "cc_relay_tokens_total", "Tokens used, as providers told.", "client", "class", "provider", "kind")
	return newSeries(tokenKey{other, other, other}, func(k tokenKey) *tokenSeries {
		of := func(kind string) prometheus.Counter {
			return total.WithLabelValues(name(k.client), name(k.class), name(k.provider), kind)
		}
		return &tokenSeries{input: of("input_uncached"), cacheRead: of("cache_read"), cacheWrite: of("cache_write"), output: of("output")}
	})
}

func newAlerts(r *prometheus.Registry) *series[alertKey, prometheus.Counter] {
	total := counterVec(r, "cc_relay_alerts_total", "Changes that an operator should know of, such as a key that is spent.", "kind", "provider")
	return newSeries(alertKey{other, other}, func(k alertKey) prometheus.Counter {
		return total.WithLabelValues(word(k.kind), name(k.provider))
	})
}

func newSheds(r *prometheus.Registry) *series[string, prometheus.Counter] {
	total := counterVec(r, "cc_relay_requests_shed_total", "Requests refused to protect the relay.", "reason")
	return newSeries(other, func(reason string) prometheus.Counter { return total.WithLabelValues(word(reason)) })
}

// Attempt counts an attempt. Call it once for each, at its end.
func (m *Metrics) Attempt(a Attempt) {
	if m == nil {
		return
	}
	m.attempts.of(attemptKey{a.Provider, a.Class, a.Verdict}).Inc()
	if max(a.InputUncached, a.CacheRead, a.CacheWrite, a.Output) <= 0 {
		return
	}
	s := m.tokens.of(tokenKey{a.Client, a.Class, a.Provider})
	add(s.input, a.InputUncached)
	add(s.cacheRead, a.CacheRead)
	add(s.cacheWrite, a.CacheWrite)
	add(s.output, a.Output)
}

// add leaves out what would make a counter fall, which the client library panics at.
func add(c prometheus.Counter, n int) {
	if n > 0 {
		c.Add(float64(n))
	}
}
