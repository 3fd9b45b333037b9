package keypool

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Classes that are no model's.
const (
	// ClassAny is the class of the class-less methods. The relay itself does not use it.
	ClassAny = ""
	// ClassCountTokens has a request limit of its own at the provider and counts
	// no tokens (https://platform.claude.com/docs/en/build-with-claude/token-counting).
	ClassCountTokens = "count_tokens"
	// ClassModels is for listing models: no limit, and its answers teach nothing.
	ClassModels = "models"
)

// fastMark ends the class of requests in fast mode.
const fastMark = "+fast"

// FastClass is the class of a model's requests in fast mode, which have limits of their
// own at the provider (https://platform.claude.com/docs/en/build-with-claude/fast-mode).
func FastClass(class string) string { return class + fastMark }

func isFast(class string) bool { return strings.HasSuffix(class, fastMark) }

// reserved are the names that no model's class may have, or a client could name
// its model "models" and be bound by no limit.
var reserved = []string{ClassAny, ClassCountTokens, ClassModels}

// free reports whether requests of the class cost no money.
func (c *class) free() bool { return c.name == ClassCountTokens || c.name == ClassModels }

// maxClassName bounds the model names that become classes of their own; longer
// ones, and those of a reserved name, share classOther.
const (
	maxClassName = 128
	classOther   = "other"
)

// families maps the beginnings of model names to the class whose buckets they
// share; the first match counts. Source, read 2026-10-17:
// https://platform.claude.com/docs/en/api/rate-limits and the table of shared
// buckets there. A model that matches nothing is a class of its own.
var families = []struct{ prefix, class string }{
	{"claude-fable-5", "fable-5"},
	{"claude-opus-5-5", "opus-5-5"},
	{"claude-opus-5", "opus-5"},
	{"claude-opus-4", "opus-4"},
	{"claude-sonnet-5-5", "sonnet-5-5"},
	{"claude-sonnet-5", "sonnet-5"},
	{"claude-sonnet-4", "sonnet-4"},
	{"claude-haiku-5-5", "haiku-5-5"},
	{"claude-haiku-4-5", "haiku-4-5"},
	{"claude-3-5-haiku", "haiku-3-5"},
}

// ClassOf is the model class of a model: the group of models that share one set
// of rate-limit buckets at the provider. A family's name is followed by nothing,
// or by a version, a date or a variant in brackets.
func ClassOf(model string) string {
	for _, f := range families {
		if rest, ok := strings.CutPrefix(model, f.prefix); ok && (rest == "" || strings.IndexByte("-@[", rest[0]) >= 0) {
			return f.class
		}
	}
	if len(model) > maxClassName || slices.Contains(reserved, model) || isFast(model) {
		return classOther
	}
	return model
}

// ClassRule puts models in a class of the operator's choice, before the table of
// ClassOf: for models that the table does not know, or an account whose limits
// are cut otherwise.
type ClassRule struct {
	// Models are the names it is for, as clients send them. * stands for any
	// characters, also none and also a slash; every other one stands for itself.
	Models []string `yaml:"models"`
	// Class is the name of the class: one of ClassOf's, or a new one.
	Class string `yaml:"class"`
}

// CheckClassName returns an error for what cannot be the class of a model: more
// than 128 bytes, not visible ASCII, or a name that has another meaning.
func CheckClassName(name string) error {
	switch {
	case name == "":
		return errors.New("empty; write a name, such as opus-5")
	case slices.Contains(reserved, name):
		return errors.New("the relay uses this name itself; choose another")
	case isFast(name):
		return errors.New("the relay adds " + fastMark + " itself, to the class of requests in fast mode; leave it out")
	case len(name) > maxClassName || !isVisible(name):
		return fmt.Errorf("not a name; write up to %d visible ASCII characters", maxClassName)
	}
	return nil
}

// CheckModelPattern returns an error for what is no pattern of ClassRule.Models.
func CheckModelPattern(pattern string) error {
	switch {
	case pattern == "":
		return errors.New("empty; write a model's name, or a part of it with *")
	case strings.Contains(pattern, "?"): // no name has one, and another kind of pattern means something by it
		return errors.New("only * stands for other characters; write it for ?")
	case len(pattern) > maxModelPattern || !isVisible(pattern):
		return fmt.Errorf("not a model's name; write up to %d visible ASCII characters", maxModelPattern)
	}
	return nil
}

// maxModelPattern is longer than any model's name.
const maxModelPattern = 512

func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

// Classes says which class a model is of: the operator's rules first, then the
// table. nil is the table alone. It never changes: safe for concurrent use.
type Classes struct {
	rules []classRule
}

type classRule struct {
	pattern Pattern
	class   string
}

// NewClasses returns the classes under these rules, of which the first that
// matches counts. Errors: a class or a pattern that CheckClassName or
// CheckModelPattern refuses, a rule without models.
func NewClasses(rules []ClassRule) (*Classes, error) {
	c := &Classes{}
	for i, r := range rules {
		if err := CheckClassName(r.Class); err != nil {
			return nil, fmt.Errorf("keypool: classes[%d]: class: %w", i, err)
		}
		if len(r.Models) == 0 {
			return nil, fmt.Errorf("keypool: classes[%d]: no models", i)
		}
		for j, m := range r.Models {
			if err := CheckModelPattern(m); err != nil {
				return nil, fmt.Errorf("keypool: classes[%d]: models[%d]: %w", i, j, err)
			}
			c.rules = append(c.rules, classRule{NewPattern(m), r.Class})
		}
	}
	return c, nil
}

// Of is the class of a model.
func (c *Classes) Of(model string) string {
	if c != nil {
		for _, r := range c.rules {
			if r.pattern.Matches(model) {
				return r.class
			}
		}
	}
	return ClassOf(model)
}

// Label is a class as the label of a metric: itself if it is of the table, of a rule or
// no model's, and "other" where its name comes from a client: those have no end.
func (c *Classes) Label(class string) string {
	if base, fast := strings.CutSuffix(class, fastMark); fast {
		return FastClass(c.label(base))
	}
	return c.label(class)
}

func (c *Classes) label(class string) string {
	if slices.Contains(reserved, class) {
		return class
	}
	for _, f := range families {
		if f.class == class {
			return class
		}
	}
	if c != nil {
		for _, r := range c.rules {
			if r.class == class {
				return class
			}
		}
	}
	return classOther
}

// Pattern is a model's name in which * stands for any characters: the texts
// between them, in order.
type Pattern []string

// NewPattern reads a pattern; see CheckModelPattern for what is none.
func NewPattern(text string) Pattern { return strings.Split(text, "*") }

// Matches reports whether model fits the pattern. Taking each part where it comes
// first leaves the most for those that follow.
func (p Pattern) Matches(model string) bool {
	rest, ok := strings.CutPrefix(model, p[0])
	if !ok || len(p) == 1 {
		return ok && rest == ""
	}
	last := len(p) - 1
	for _, part := range p[1:last] {
		if _, rest, ok = strings.Cut(rest, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(rest, p[last])
}
