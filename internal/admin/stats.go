package admin

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
	"cc-relay/internal/router"
)

// look is the relay as it is now.
func (h *Handler) look() Stats {
	now := time.Now().UTC()
	stats := Stats{
		At: now, UptimeSeconds: int64(now.Sub(h.relay.StartedAt) / time.Second),
		Providers: h.lookAtProviders(),
	}
	if h.relay.Totals != nil {
		stats.Totals = h.relay.Totals()
	}
	for i := range stats.Providers {
		stats.InFlight += stats.Providers[i].InFlight
	}
	stats.Status = h.judge(stats.Providers)
	return stats
}

func (h *Handler) lookAtProviders() []Provider {
	ups := h.relay.Upstreams()
	all := make([]Provider, len(ups))
	for i, up := range ups {
		all[i] = h.lookAt(up)
	}
	return all
}

func (h *Handler) lookAt(up *router.Upstream) Provider {
	pool := up.Pool.GetStats()
	p := Provider{
		Name: up.Provider.Name(), InFlight: up.InFlight(), Strategy: pool.Strategy,
		Draining: h.relay.Draining != nil && h.relay.Draining(up),
		Breakers: breakers(up), Classes: make([]Class, len(pool.Classes)),
	}
	for i := range pool.Classes {
		p.Classes[i] = h.class(&pool.Classes[i])
	}
	for _, k := range p.Classes[0].Keys { // of no class: pools have it always
		p.Keys.count(k.State)
	}
	return p
}

func (n *KeyCounts) count(state string) {
	n.Total++
	switch keypool.State(state) {
	case keypool.StateAvailable:
		n.Available++
	case keypool.StateExhausted:
		n.Exhausted++
	case keypool.StateCooling:
		n.Cooling++
	case keypool.StateDead:
		n.Dead++
	case stateOff:
		n.Off++
	}
}

func breakers(up *router.Upstream) []Breaker {
	lanes := up.Lanes()
	all := make([]Breaker, len(lanes))
	for i, lane := range lanes {
		s := lane.Status()
		all[i] = Breaker{
			Class: lane.Class, State: breakerState(s.State), Until: s.Until.UTC(),
			Forced: s.Forced, Failures: s.Failures, Samples: s.Samples,
		}
	}
	known := func(b Breaker) bool { return b.Class == "" }
	if s, ok := up.Forced(); ok && !slices.ContainsFunc(all, known) {
		all = append(all, Breaker{State: breakerState(s.State), Until: s.Until.UTC(), Forced: true})
	}
	slices.SortFunc(all, func(a, b Breaker) int { return cmp.Compare(a.Class, b.Class) })
	return all
}

// breakerState is a state in the API's spelling.
func breakerState(s health.State) string { return strings.ReplaceAll(s.String(), "-", "_") }

func (h *Handler) class(cs *keypool.ClassStats) Class {
	c := Class{
		Class: cs.Class, Limits: amounts(cs.Limits), Remaining: amounts(cs.Remaining),
		InFlight: cs.InFlight, Keys: make([]KeyClass, len(cs.Keys)),
	}
	for i := range cs.Keys {
		c.Keys[i] = h.keyClass(&cs.Keys[i])
		c.Reserved.Input += c.Keys[i].Reserved.Input
		c.Reserved.Output += c.Keys[i].Reserved.Output
	}
	return c
}

func (h *Handler) keyClass(m *keypool.KeyMetadata) KeyClass {
	k := KeyClass{
		ID: m.ID, State: string(m.State), Until: m.Until.UTC(), Reason: string(m.Reason),
		Limits: amounts(m.Limits), Remaining: amounts(m.Remaining), InFlight: m.InFlight, Headroom: m.Headroom,
	}
	if h.relay.Reserved != nil {
		k.Reserved = h.relay.Reserved(m)
	}
	return k
}

func amounts(l ratelimit.Limits) Amounts { return Amounts{RPM: l.RPM, ITPM: l.ITPM, OTPM: l.OTPM} }

// lookAtKeys lists the keys of all providers.
func (h *Handler) lookAtKeys() []Key {
	all := []Key{}
	for _, up := range h.relay.Upstreams() {
		pool := up.Pool.GetStats()
		for i := range pool.Classes[0].Keys {
			m := &pool.Classes[0].Keys[i]
			k := Key{
				Provider: pool.Provider, ID: m.ID, Priority: m.Priority, Weight: m.Weight,
				State: string(m.State), Until: m.Until.UTC(), Reason: string(m.Reason), Classes: []KeyOfClass{},
			}
			for _, cs := range pool.Classes {
				k.InFlight += cs.Keys[i].InFlight
				if cs.Class != "" {
					k.Classes = append(k.Classes, KeyOfClass{Class: cs.Class, KeyClass: h.keyClass(&cs.Keys[i])})
				}
			}
			all = append(all, k)
		}
	}
	return all
}

// judge says whether a relay of these providers is well.
func (h *Handler) judge(providers []Provider) Status {
	s := Status{Status: Healthy, Reasons: []Reason{}, Version: h.relay.Version, StartedAt: h.relay.StartedAt.UTC()}
	serves := false
	for i := range providers {
		s.Reasons = append(s.Reasons, providers[i].troubles()...)
		serves = serves || providers[i].serves()
	}
	if h.relay.LastReload != nil {
		s.LastReload = h.relay.LastReload()
	}
	if s.LastReload != nil && s.LastReload.Error != "" {
		s.Reasons = append(s.Reasons, Reason{Code: "reload_failed", Message: "the last reload was refused and the configuration before it is in force: " + strings.ReplaceAll(s.LastReload.Error, "\n", "; ")})
	}
	switch {
	case h.relay.Stopping != nil && h.relay.Stopping():
		s.Status = Down
		s.Reasons = slices.Insert(s.Reasons, 0, Reason{Code: "stopping", Message: "the relay shuts down: it ends what is under way and refuses new requests"})
	case !serves:
		s.Status = Down
		s.Reasons = slices.Insert(s.Reasons, 0, Reason{Code: "no_provider", Message: "no provider can serve a request now: each drains, has no usable key, or all its breakers are open"})
	case len(s.Reasons) > 0:
		s.Status = Degraded
	}
	return s
}

// serves reports whether a request could be served: of some class, at least. A key
// that refills counts as usable, one that was told to wait does not.
func (p *Provider) serves() bool {
	if p.Draining || p.Keys.Available+p.Keys.Exhausted == 0 {
		return false
	}
	// What an operator holds open says nothing of the provider, which is asked all the
	// same where nothing else serves.
	own := slices.DeleteFunc(slices.Clone(p.Breakers), func(b Breaker) bool { return b.Forced && b.State == breakerState(health.Open) })
	return len(own) == 0 || !allOf(own, func(b Breaker) bool { return b.State == breakerState(health.Open) })
}

func allOf[T any](list []T, is func(T) bool) bool {
	return !slices.ContainsFunc(list, func(v T) bool { return !is(v) })
}

// troubles are the reasons why the provider is not entirely well, one of a kind.
func (p *Provider) troubles() []Reason {
	var all []Reason
	add := func(code, message string) {
		all = append(all, Reason{Code: code, Provider: p.Name, Message: message})
	}
	if p.Draining {
		add("draining", fmt.Sprintf("%s drains, by an operator; end it with POST /api/v1/providers/%s/on", p.Name, p.Name))
	}
	for _, t := range []struct {
		state      keypool.State
		code, what string
	}{
		{keypool.StateDead, "keys_dead", "refused by the provider" + p.whyDead() + "; when that is mended use POST /api/v1/keys/ID/release"},
		{keypool.StateCooling, "keys_cooling", "told to wait by the provider; they come back by themselves"},
		{stateOff, "keys_off", "off, by an operator; put them on with POST /api/v1/keys/ID/on"},
	} {
		if n := p.keysInState(string(t.state)); n > 0 {
			add(t.code, fmt.Sprintf("%s: %d of %d keys %s", p.Name, n, p.Keys.Total, t.what))
		}
	}
	var shut, held []string
	for _, b := range p.Breakers {
		switch {
		case b.State != breakerState(health.Open) && b.State != breakerState(health.HalfOpen):
		case b.Forced:
			held = append(held, cmp.Or(b.Class, "all classes"))
		default:
			shut = append(shut, cmp.Or(b.Class, "no class"))
		}
	}
	if len(held) > 0 {
		add("breaker_forced", fmt.Sprintf("%s gets no requests for %s that others can serve, by an operator, for a time; end it with POST /api/v1/breakers/force and the state auto", p.Name, list(held)))
	}
	if len(shut) > 0 {
		add("breaker_open", fmt.Sprintf("%s fails for %s; it is tried again by itself", p.Name, list(shut)))
	}
	return all
}

// whyDead are the reasons why keys of the provider are dead, in brackets.
func (p *Provider) whyDead() string {
	var why []string
	for i := range p.Classes {
		for _, k := range p.Classes[i].Keys {
			if k.State == string(keypool.StateDead) && k.Reason != "" {
				why = append(why, k.Reason)
			}
		}
	}
	if len(why) == 0 {
		return ""
	}
	slices.Sort(why)
	return " (" + list(slices.Compact(why)) + ")"
}

// keysInState counts the keys that are in a state for at least one class.
func (p *Provider) keysInState(state string) int {
	n := 0
	for i := range p.Keys.Total {
		if slices.ContainsFunc(p.Classes, func(c Class) bool { return c.Keys[i].State == state }) {
			n++
		}
	}
	return n
}

const mostListed = 5

// list names the first few: classes may be as many as clients think up models.
func list(names []string) string {
	if more := len(names) - mostListed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:mostListed], ", "), more)
	}
	return strings.Join(names, ", ")
}
