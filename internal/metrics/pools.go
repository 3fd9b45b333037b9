package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Pool is the state of one provider's pool at one moment.
type Pool struct {
	Provider string
	Draining bool // it gets no new requests
	Classes  []Class
}

// Class is one model class in a pool. Classes of the same label are shown as one:
// numbers are added up, of states the worst is shown.
type Class struct {
	Class string // the label, as in Request; "": left out
	// Breaker is closed, ramping, half-open or open; "" where there is none.
	Breaker string
	Keys    []Key
}

// Key is one key for one class.
type Key struct {
	ID     string // its public name, never the key
	State  string // available, exhausted, cooling, dead or off
	Reason string // why it is dead, a word such as spent; "" otherwise

	Requests, Input, Output       Level // of requests, uncached input tokens and output tokens
	InFlight                      int
	ReservedInput, ReservedOutput int           // tokens held for requests in flight
	CoolDown                      time.Duration // what is left of it; 0 where there is none
}

// Level is what is left of a limit a minute. A Limit of 0 is not known: then
// neither is shown. Remaining is negative while the key is in debt.
type Level struct{ Limit, Remaining int }

// The states, from good to bad.
var (
	keyStates     = []string{"available", "exhausted", "cooling", "dead", "off"}
	breakerStates = []string{"closed", "ramping", "half-open", "open"}
)

// poolCollector reads the state of pools at each scrape.
type poolCollector func() []Pool

var (
	keyLabels = []string{"provider", "key", "class"}

	limitDesc     = desc("cc_relay_key_limit", "Limit of a key a minute, where it is known.", append(keyLabels[:3:3], "kind")...)
	remainingDesc = desc("cc_relay_key_remaining", "What is left of a key's limit; negative while it is in debt.", append(keyLabels[:3:3], "kind")...)
	inFlightDesc  = desc("cc_relay_key_requests_in_flight", "Requests that a key serves now.", keyLabels...)
	reservedDesc  = desc("cc_relay_key_reserved_tokens", "Tokens held for the requests that a key serves now.", append(keyLabels[:3:3], "kind")...)
	stateDesc     = desc("cc_relay_key_state", "State of a key: 1 for the one that it is in, 0 for the others.", append(keyLabels[:3:3], "state")...)
	deadDesc      = desc("cc_relay_key_dead", "Keys that a provider refuses, by reason; always 1.", append(keyLabels[:3:3], "reason")...)
	coolDownDesc  = desc("cc_relay_key_cooldown_seconds", "How long a key is still told to wait.", keyLabels...)
	breakerDesc   = desc("cc_relay_breaker_state", "State of a breaker: 1 for the one that it is in, 0 for the others.", "provider", "class", "state")
	drainingDesc  = desc("cc_relay_provider_draining", "Whether a provider gets no new requests: 1, or 0.", "provider")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (poolCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{limitDesc, remainingDesc, inFlightDesc, reservedDesc, stateDesc, deadDesc, coolDownDesc, breakerDesc, drainingDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (read poolCollector) Collect(ch chan<- prometheus.Metric) {
	v := view{draining: map[string]bool{}, breakers: map[lane]string{}, keys: map[keyLane]Key{}}
	for _, p := range read() {
		v.add(p)
	}
	v.send(ch)
}

type lane struct{ provider, class string }

type keyLane struct{ provider, key, class string }

// view is the pools with one entry for each combination of labels: a registry
// refuses a whole scrape in which one comes twice.
type view struct {
	draining map[string]bool
	breakers map[lane]string
	keys     map[keyLane]Key
}

func (v *view) add(p Pool) {
	provider := name(p.Provider)
	v.draining[provider] = v.draining[provider] || p.Draining
	for _, c := range p.Classes {
		if c.Class == "" {
			continue
		}
		l := lane{provider, name(c.Class)}
		if _, known := v.breakers[l]; !known && len(v.breakers) >= MaxSeries {
			l = lane{other, other}
		}
		v.breakers[l] = worst(breakerStates, v.breakers[l], c.Breaker)
		for _, k := range c.Keys {
			v.addKey(keyLane{provider, name(k.ID), l.class}, k)
		}
	}
}

func (v *view) addKey(l keyLane, k Key) {
	sum, known := v.keys[l]
	if !known && len(v.keys) >= MaxSeries {
		l = keyLane{other, other, other}
		sum = v.keys[l]
	}
	if worst(keyStates, sum.State, k.State) != sum.State {
		sum.State, sum.Reason = k.State, k.Reason
	}
	sum.Requests.add(k.Requests)
	sum.Input.add(k.Input)
	sum.Output.add(k.Output)
	sum.InFlight += k.InFlight
	sum.ReservedInput += k.ReservedInput
	sum.ReservedOutput += k.ReservedOutput
	sum.CoolDown = max(sum.CoolDown, k.CoolDown)
	v.keys[l] = sum
}

func (l *Level) add(more Level) {
	if more.Limit > 0 {
		l.Limit += more.Limit
		l.Remaining += more.Remaining
	}
}

// worst is the state that comes later; one that is not of states comes before all
// but none.
func worst(states []string, a, b string) string {
	if a == "" || slices.Index(states, b) > slices.Index(states, a) {
		return b
	}
	return a
}

func (v *view) send(ch chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for provider, draining := range v.draining {
		put(drainingDesc, truth(draining), provider)
	}
	for l, state := range v.breakers {
		if state == "" {
			continue
		}
		for _, s := range set(breakerStates, state) {
			put(breakerDesc, truth(s == known(breakerStates, state)), l.provider, l.class, s)
		}
	}
	for l, k := range v.keys {
		sendKey(put, l, k)
	}
}

func sendKey(put func(*prometheus.Desc, float64, ...string), l keyLane, k Key) {
	for _, level := range []struct {
		kind string
		Level
	}{{"requests", k.Requests}, {"input_tokens", k.Input}, {"output_tokens", k.Output}} {
		if level.Limit > 0 {
			put(limitDesc, float64(level.Limit), l.provider, l.key, l.class, level.kind)
			put(remainingDesc, float64(level.Remaining), l.provider, l.key, l.class, level.kind)
		}
	}
	put(inFlightDesc, float64(k.InFlight), l.provider, l.key, l.class)
	put(reservedDesc, float64(k.ReservedInput), l.provider, l.key, l.class, "input_tokens")
	put(reservedDesc, float64(k.ReservedOutput), l.provider, l.key, l.class, "output_tokens")
	put(coolDownDesc, max(0, k.CoolDown).Seconds(), l.provider, l.key, l.class)
	for _, s := range set(keyStates, k.State) {
		put(stateDesc, truth(s == known(keyStates, k.State)), l.provider, l.key, l.class, s)
	}
	if k.State == "dead" {
		put(deadDesc, 1, l.provider, l.key, l.class, word(k.Reason))
	}
}

// known is the state, or "other" where it is none of states.
func known(states []string, state string) string {
	if slices.Contains(states, state) {
		return state
	}
	return other
}

// set is states, with "other" where state is none of them.
func set(states []string, state string) []string {
	if known(states, state) == other {
		return append(slices.Clip(states), other)
	}
	return states
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
