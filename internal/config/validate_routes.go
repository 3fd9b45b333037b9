package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

// aliasName leaves out what YAML has another meaning for, such as <<.
var aliasName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$`)

// checkRoutes checks where the rules lead.
func (c *Config) checkRoutes(r *report) {
	checkOneOf(r, "routing.strategy", c.Routing.Strategy, router.Strategies()...)
	c.checkTargets(r, "routing", "default", c.Routing.Default)
	shares := len(c.Routing.Default)
	if shares == 0 && len(c.Models) == 0 {
		shares = len(c.Providers)
	}
	if !r.failed["routing.default"] && !r.failed["models"] && !r.failed["providers"] {
		checkWeights(r, "routing.weights", c.Routing.Weights, shares)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Aliases)) {
		c.checkAlias(r, name)
	}
	first := map[string]int{}
	for i, rule := range c.Models {
		path := fmt.Sprintf("models[%d]", i)
		if r.failed[path] {
			continue
		}
		c.checkRule(r, path, rule)
		if r.wrong(path+".match") || r.wrong(path+".class") || r.wrong(path+".clients") {
			continue
		}
		// A rule for the same requests as one before it would never match.
		same := fmt.Sprintf("%q %q %q", slices.Sorted(slices.Values(rule.Match)), rule.Class, slices.Sorted(slices.Values(rule.Clients)))
		if before, dup := first[same]; dup {
			r.addf(path, "for the same requests as models[%d], which comes first; remove one", before)
		} else {
			first[same] = i
		}
	}
}

func (c *Config) checkRule(r *report, path string, rule router.Rule) {
	if len(rule.Match) == 0 && rule.Class == "" && !r.failed[path+".match"] && !r.failed[path+".class"] {
		r.addf(path, `for no model; write match: ["NAME"], with * for any characters, or a class`)
	}
	for j, pattern := range rule.Match {
		if err := keypool.CheckModelPattern(pattern); err != nil {
			r.add(fmt.Sprintf("%s.match[%d]", path, j), err)
		}
	}
	if rule.Class != "" {
		if err := keypool.CheckClassName(rule.Class); err != nil {
			r.add(path+".class", err)
		}
	}
	for j, client := range rule.Clients {
		if !slices.ContainsFunc(c.Clients, func(one auth.ClientConfig) bool { return one.Name == client }) && !r.unnamed("clients", len(c.Clients)) {
			r.addf(fmt.Sprintf("%s.clients[%d]", path, j), "there is no client of this name; add it to clients, or correct the name")
		}
	}
	if len(rule.Targets) == 0 {
		r.addf(path+".targets", `none; write targets: ["PROVIDER"] or ["PROVIDER/MODEL"]`)
	}
	c.checkTargets(r, path, "targets", rule.Targets)
	if !r.failed[path+".targets"] {
		checkWeights(r, path+".weights", rule.Weights, len(rule.Targets))
	}
	if rule.Strategy != "" {
		checkOneOf(r, path+".strategy", rule.Strategy, router.Strategies()...)
	}
}

// checkTargets does not repeat a name that it does not know: it may be a secret in the
// wrong place.
func (c *Config) checkTargets(r *report, path, field string, targets []string) {
	var names []string
	for _, p := range c.Providers {
		if providerName.MatchString(p.Name) {
			names = append(names, p.Name)
		}
	}
	seen := map[string]int{}
	for i, target := range targets {
		at := fmt.Sprintf("%s.%s[%d]", path, field, i)
		name, _, err := router.SplitTarget(target)
		before, dup := seen[target]
		seen[target] = i
		switch {
		case err != nil:
			r.add(at, err)
		case dup:
			r.addf(at, "same as %s[%d]; remove one", field, before)
		case !slices.Contains(names, name) && !r.unnamed("providers", len(c.Providers)):
			hint := "the providers are " + strings.Join(names, ", ")
			if near := nearest(name, names); near != "" {
				hint = "did you mean " + near + "?"
			}
			r.addf(at, "there is no provider of this name; %s", hint)
		}
	}
}

func checkWeights(r *report, path string, weights []int, targets int) {
	if len(weights) > 0 && len(weights) != targets {
		r.addf(path, "%d for %d targets; write one for each, in their order", len(weights), targets)
	}
	for i, w := range weights {
		if w < 1 || w > router.MaxWeight {
			r.addf(fmt.Sprintf("%s[%d]", path, i), "%d is not a weight; write 1 to %d", w, router.MaxWeight)
		}
	}
}

func (c *Config) checkAlias(r *report, name string) {
	at, model := "aliases."+name, c.Aliases[name]
	if !aliasName.MatchString(name) {
		r.addf(at, "not a name for a model; write letters, digits and . _ - : / @ [ ], a letter or digit first")
		return
	}
	if err := keypool.CheckModelPattern(model); err != nil || strings.Contains(model, "*") {
		r.addf(at, "stands for no model; write its name or another alias, without *")
		return
	}
	if _, cycle := router.ResolveAlias(c.Aliases, name); cycle != nil {
		for i, one := range cycle {
			if !harmless(one) {
				cycle[i] = "…"
			}
		}
		r.addf(at, "a cycle, %s; let one of them name a model", strings.Join(cycle, " → "))
	}
}
