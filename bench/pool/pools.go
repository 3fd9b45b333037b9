package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"cc-relay/internal/simulator"
)

// The three kinds of keys, each of an organization of its own.
var (
	small  = simulator.Limits{RPM: 50, ITPM: 30_000, OTPM: 8_000}
	middle = simulator.Limits{RPM: 1_000, ITPM: 450_000, OTPM: 90_000}
	large  = simulator.Limits{RPM: 4_000, ITPM: 2_000_000, OTPM: 400_000}
)

// model is what every request asks for; its prompts are cached from 1,024 tokens on.
const model = "claude-sonnet-5"

// Pool is a set of keys. A policy may know the limits only where the strategy it
// stands for has them configured.
type Pool struct {
	Name string
	Keys []simulator.Limits
}

var pools = map[string]Pool{
	"2mix":  {Name: "2mix", Keys: keysOf(1, 0, 1)},
	"8eq":   {Name: "8eq", Keys: keysOf(0, 8, 0)},
	"8mix":  {Name: "8mix", Keys: keysOf(4, 3, 1)},
	"64mix": {Name: "64mix", Keys: keysOf(32, 24, 8)},
}

// keysOf spreads the kinds evenly, so that no order of keys favours one of them.
func keysOf(smalls, middles, larges int) []simulator.Limits {
	var keys []simulator.Limits
	left := []int{smalls, middles, larges}
	for range smalls + middles + larges {
		kind := 0
		for i, n := range left {
			if n > left[kind] {
				kind = i
			}
		}
		left[kind]--
		keys = append(keys, []simulator.Limits{small, middle, large}[kind])
	}
	return keys
}

// unlimited is one key that nothing can exhaust: what a pool would be at its best.
var unlimited = Pool{Name: "unlimited", Keys: make([]simulator.Limits, 1)}

func poolNames() []string { return slices.Sorted(maps.Keys(pools)) }

// sums adds up the limits of all keys, a minute.
func (p Pool) sums() demand {
	var d demand
	for _, l := range p.Keys {
		d = d.plus(demand{float64(l.RPM), float64(l.ITPM), float64(l.OTPM)})
	}
	return d
}

// core makes the provider with one organization per key.
func (p Pool) core(start time.Time) (*simulator.Core, []string, error) {
	cfg := simulator.Config{}
	var orgs []string
	for i, l := range p.Keys {
		org := "org-" + strconv.Itoa(i)
		orgs = append(orgs, org)
		cfg.Organizations = append(cfg.Organizations, simulator.Organization{
			ID: org, Limits: l, Keys: []simulator.Key{{Key: "key-" + strconv.Itoa(i)}},
		})
	}
	core, err := simulator.NewCore(cfg, start)
	if err != nil {
		return nil, nil, fmt.Errorf("pool %s: %w", p.Name, err)
	}
	return core, orgs, nil
}

// demand is requests, uncached input and output, all a minute or all in a window.
type demand [3]float64

func (d demand) plus(e demand) demand {
	for i := range d {
		d[i] += e[i]
	}
	return d
}

// over is the tightest of demand over limits: rho.
func (d demand) over(limits demand) float64 {
	rho := 0.0
	for i := range d {
		if limits[i] > 0 {
			rho = max(rho, d[i]/limits[i])
		}
	}
	return rho
}

// seconds writes a duration as retry-after does.
func seconds(d time.Duration) string { return strconv.Itoa(int((d + time.Second - 1) / time.Second)) }
