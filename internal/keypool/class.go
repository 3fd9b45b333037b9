package keypool

import (
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

// reserved are the names that no model's class may have, or a client could name
// its model "models" and be bound by no limit.
var reserved = []string{ClassAny, ClassCountTokens, ClassModels}

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
	if len(model) > maxClassName || slices.Contains(reserved, model) {
		return classOther
	}
	return model
}
