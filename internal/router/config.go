package router

import (
	"errors"
	"slices"
	"strings"

	"cc-relay/internal/keypool"
)

// Config says how a request chooses among the providers.
type Config struct {
	// Strategy orders the providers of requests that no rule is for, and of rules
	// without a strategy of their own. Empty means failover.
	Strategy string `yaml:"strategy,omitempty"`
	// RetryUnknown allows one move where a connection was lost after the request
	// was sent: it may have been paid for. nil means true.
	RetryUnknown *bool `yaml:"retry_unknown,omitempty"`
	// Default are the targets of models that no rule is for. Empty: all providers
	// in configured order where there are no rules, and where there are, none.
	Default []string `yaml:"default,omitempty"`
	// Weights are the shares of Default under weighted strategies, in its order; 1
	// each where it is empty.
	Weights []int `yaml:"weights,omitempty"`
	// Rules come before Default; the first that matches counts.
	Rules []Rule `yaml:"-"`
	// Aliases are other names of models, for clients to use.
	Aliases map[string]string `yaml:"-"`
}

// Rule says where requests for some models go.
type Rule struct {
	// Match are the models it is for, as clients name them, with * for any
	// characters. Match, Class or both must fit; a rule has at least one of them.
	Match []string `yaml:"match,omitempty"`
	// Class is the model class it is for, such as opus-5.
	Class string `yaml:"class,omitempty"`
	// Clients are the names of the clients it is for; empty: all.
	Clients []string `yaml:"clients,omitempty"`
	// Targets are where the requests go, in order of preference: PROVIDER, or
	// PROVIDER/MODEL to ask for another model there. At least one.
	Targets []string `yaml:"targets"`
	// Weights are the targets' shares under weighted strategies; 1 each where it
	// is empty, 1 to 1000.
	Weights []int `yaml:"weights,omitempty"`
	// Strategy orders the targets; empty: that of Config.
	Strategy string `yaml:"strategy,omitempty"`
}

// MaxWeight bounds the weight of a target.
const MaxWeight = 1000

// SplitTarget reads PROVIDER or PROVIDER/MODEL; a model may hold slashes itself.
// Error: one of both is empty, or the model is no model's name.
func SplitTarget(target string) (provider, model string, err error) {
	provider, model, split := strings.Cut(target, "/")
	switch {
	case provider == "":
		return "", "", errors.New("names no provider; write PROVIDER or PROVIDER/MODEL")
	case split && model == "":
		return "", "", errors.New("ends in a slash; write PROVIDER or PROVIDER/MODEL")
	case strings.Contains(model, "*"):
		return "", "", errors.New("a target's model is one name; * is for match")
	case split:
		return provider, model, keypool.CheckModelPattern(model)
	}
	return provider, "", nil
}

// ResolveAlias follows name through the aliases to a model. Where it comes back to a
// name instead, way is the names that it came through, that one first and last.
func ResolveAlias(aliases map[string]string, name string) (model string, way []string) {
	for {
		next, ok := aliases[name]
		if !ok {
			return name, nil
		}
		way = append(way, name)
		if i := slices.Index(way, next); i >= 0 {
			return "", append(way[i:], next)
		}
		name = next
	}
}
