package simulator

import (
	"regexp"
	"strings"
)

// ClassCountTokens is the class of token counting, which has a limit of requests
// of its own: https://platform.claude.com/docs/en/build-with-claude/token-counting.
const ClassCountTokens = "count_tokens"

// FastClass is the class of requests in fast mode, which have limits of their own:
// https://platform.claude.com/docs/en/build-with-claude/fast-mode.
func FastClass(class string) string { return class + "+fast" }

var dateSuffix = regexp.MustCompile(`-20\d{6}$`)

// canonical is a model id without its date or "-latest".
func canonical(model string) string {
	return dateSuffix.ReplaceAllString(strings.TrimSuffix(model, "-latest"), "")
}

// ClassOf names the group of models that share one set of buckets: Opus 4.5 to
// 4.8, Sonnet 4.5 and 4.6, Fable 5.x; any other model is a class of its own,
// named by its id without "claude-" and date.
// Source: https://platform.claude.com/docs/en/api/rate-limits.
func ClassOf(model string) string {
	id := strings.TrimPrefix(canonical(model), "claude-")
	switch id {
	case "opus-4-5", "opus-4-6", "opus-4-7", "opus-4-8":
		return "opus-4"
	case "sonnet-4-5", "sonnet-4-6":
		return "sonnet-4"
	}
	if id == "fable-5" || strings.HasPrefix(id, "fable-5-") {
		return "fable-5"
	}
	return id
}

// CacheMinimum is the length in tokens below which a prompt of the model is not
// cached, 1,024 for an unknown model.
// Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
func CacheMinimum(model string) int {
	switch canonical(model) {
	case "claude-fable-5", "claude-fable-5-1", "claude-fable-5-2",
		"claude-mythos-5", "claude-mythos-5-1", "claude-mythos-5-2",
		"claude-opus-5", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5":
		return 512
	case "claude-opus-4-7", "claude-mythos-preview", "claude-3-5-haiku":
		return 2048
	case "claude-opus-4-5", "claude-opus-4-6", "claude-haiku-4-5":
		return 4096
	}
	return 1024
}

// knownModels is what GET /v1/models lists when no list is configured, newest first.
// Source: https://platform.claude.com/docs/en/about-claude/models/overview.
func knownModels() []string {
	return []string{
		"claude-fable-5-2", "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5",
		"claude-fable-5-1", "claude-fable-5", "claude-opus-5", "claude-sonnet-5",
		"claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6", "claude-sonnet-4-6",
		"claude-opus-4-5-20251101", "claude-haiku-4-5-20251001", "claude-sonnet-4-5-20250929",
	}
}
