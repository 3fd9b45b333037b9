package admin

import (
	"time"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
)

// change is an event that follows from two looks at the relay.
type change struct {
	kind string
	data any
}

// changes are what is different now: providers, keys, breakers, in configured order,
// what is gone last. What changed and changed back between the two goes unseen.
func changes(last, now *Stats) []change {
	var all []change
	before := make(map[string]*Provider, len(last.Providers))
	for i := range last.Providers {
		before[last.Providers[i].Name] = &last.Providers[i]
	}
	for i := range now.Providers {
		p := &now.Providers[i]
		was := before[p.Name]
		delete(before, p.Name)
		if from, to := was.onOff(), p.onOff(); from != to {
			all = append(all, change{EventProvider, ProviderChange{At: now.At, Provider: p.Name, From: from, To: to}})
		}
		if was != nil {
			all = append(all, keyChanges(was, p, now.At)...)
			all = append(all, breakerChanges(was, p, now.At)...)
		}
	}
	for i := range last.Providers {
		if p := &last.Providers[i]; before[p.Name] != nil {
			all = append(all, change{EventProvider, ProviderChange{At: now.At, Provider: p.Name, From: p.onOff()}})
		}
	}
	return all
}

func (p *Provider) onOff() string {
	switch {
	case p == nil:
		return ""
	case p.Draining:
		return "draining"
	}
	return "on"
}

type keyAt struct{ class, id string }

func keyStates(p *Provider) map[keyAt]string {
	states := make(map[keyAt]string)
	for _, c := range p.Classes {
		for _, k := range c.Keys {
			states[keyAt{c.Class, k.ID}] = k.State
		}
	}
	return states
}

// keyChanges leaves out that a class is new, or was forgotten: only of class "" are
// keys told that came and went.
func keyChanges(was, is *Provider, at time.Time) []change {
	var all []change
	before := keyStates(was)
	for _, c := range is.Classes {
		for _, k := range c.Keys {
			from, known := before[keyAt{c.Class, k.ID}]
			delete(before, keyAt{c.Class, k.ID})
			if !known && c.Class != "" {
				from = string(keypool.StateAvailable)
			}
			if from != k.State {
				all = append(all, change{EventKey, KeyChange{
					At: at, Provider: is.Name, Key: k.ID, Class: c.Class, From: from, To: k.State, Until: k.Until, Reason: k.Reason,
				}})
			}
		}
	}
	for _, k := range was.Classes[0].Keys {
		if from, gone := before[keyAt{"", k.ID}]; gone {
			all = append(all, change{EventKey, KeyChange{At: at, Provider: is.Name, Key: k.ID, From: from}})
		}
	}
	return all
}

func breakerChanges(was, is *Provider, at time.Time) []change {
	var all []change
	before := make(map[string]Breaker, len(was.Breakers))
	for _, b := range was.Breakers {
		before[b.Class] = b
	}
	for _, b := range is.Breakers {
		old, known := before[b.Class]
		if !known {
			old.State = breakerState(health.Closed)
		}
		if old.State != b.State || old.Forced != b.Forced {
			all = append(all, change{EventBreaker, BreakerChange{
				At: at, Provider: is.Name, Class: b.Class, From: old.State, To: b.State, Until: b.Until, Forced: b.Forced,
			}})
		}
	}
	return all
}
