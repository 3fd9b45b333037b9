package keypool_test

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// provider is an organization's limits for one model class at a provider, written to
// be obviously right: three buckets that refill, and headers that say what is there.
type provider struct {
	organization                 string
	rpm, itpm, otpm              float64 // a minute
	requests, input, output      float64 // levels
	at                           time.Time
	reserves                     bool // takes max_tokens of output when it admits
	admitted, refused, overshoot int  // overshoot: tokens of input, in the worst refusal
}

func newProvider(organization string, rpm, itpm, otpm int, now time.Time) *provider {
	p := &provider{organization: organization, rpm: float64(rpm), itpm: float64(itpm), otpm: float64(otpm), at: now}
	p.requests, p.input, p.output = p.rpm, p.itpm, p.otpm
	return p
}

// refill brings the levels to now. A clock that was set back refills nothing.
func (p *provider) refill(now time.Time) {
	minutes := max(0, now.Sub(p.at).Minutes())
	p.requests = min(p.rpm, p.requests+p.rpm*minutes)
	p.input = min(p.itpm, p.input+p.itpm*minutes)
	p.output = min(p.otpm, p.output+p.otpm*minutes)
	if now.After(p.at) {
		p.at = now
	}
}

// admit takes a request of these uncached input tokens, or refuses it, and returns
// the status, the headers and, for a refusal, the wait.
func (p *provider) admit(now time.Time, input, maxTokens int) (status int, h http.Header, retryAfter time.Duration) {
	p.refill(now)
	need := 1.0
	if p.reserves {
		need = min(float64(maxTokens), p.otpm)
	}
	const rounding = 1e-3
	wait := max((1-p.requests)/p.rpm, (float64(input)-p.input)/p.itpm, (need-p.output)/p.otpm)
	if p.requests < 1-rounding || p.input < float64(input)-rounding || p.output < need-rounding {
		p.refused++
		p.overshoot = max(p.overshoot, int(math.Ceil(float64(input)-p.input)))
		return http.StatusTooManyRequests, p.header(now), time.Duration(math.Ceil(wait*60)) * time.Second
	}
	p.admitted++
	p.requests--
	p.input -= float64(input)
	if p.reserves {
		p.output -= float64(maxTokens)
	}
	return http.StatusOK, p.header(now), 0
}

// produce counts output as it is made, and end what a request did not make of what
// was taken in advance.
func (p *provider) produce(now time.Time, n int) {
	p.refill(now)
	if !p.reserves {
		p.output -= float64(n)
	}
}

func (p *provider) end(now time.Time, maxTokens, produced int) {
	p.refill(now)
	if p.reserves {
		p.output = min(p.otpm, p.output+float64(maxTokens-produced))
	}
}

func (p *provider) header(now time.Time) http.Header {
	h := http.Header{"Date": {now.UTC().Format(http.TimeFormat)}}
	if p.organization != "" {
		h.Set("Anthropic-Organization-Id", p.organization)
	}
	for _, b := range []struct {
		kind         string
		limit, level float64
	}{{"Requests", p.rpm, p.requests}, {"Input-Tokens", p.itpm, p.input}, {"Output-Tokens", p.otpm, p.output}} {
		name := "Anthropic-Ratelimit-" + b.kind
		h.Set(name+"-Limit", strconv.Itoa(int(b.limit)))
		h.Set(name+"-Remaining", strconv.Itoa(int(max(0, b.level))))
		full := time.Duration((b.limit - b.level) / b.limit * float64(time.Minute))
		h.Set(name+"-Reset", now.Add(full).UTC().Format(time.RFC3339Nano))
	}
	return h
}
