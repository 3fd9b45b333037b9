package keypool

import "strings"

// unknownMinimum is the commonest one, for models that are not in the table.
const unknownMinimum = 1024

// cacheMinimums maps the beginnings of names to the length in tokens below which
// a prompt is silently not cached; the first match counts. The models of one
// class can differ: its own line, the last of them, is then the smallest. Source,
// read 2026-08-22, for the 5.5 models 2026-11-23:
// https://platform.claude.com/docs/en/build-with-claude/prompt-caching
var cacheMinimums = []struct {
	prefix string
	tokens int
}{
	{"fable-5", 512},
	{"mythos-5", 512},
	{"mythos-preview", 2048},
	{"opus-5", 512}, // 5.5 too
	{"opus-4-8", 1024},
	{"opus-4-7", 2048},
	{"opus-4-6", 4096},
	{"opus-4-5", 4096},
	{"opus-4", 1024},
	{"sonnet-5-5", 512},
	{"sonnet-5", 1024},
	{"sonnet-4", 1024},
	{"haiku-5-5", 512},
	{"haiku-4-5", 4096},
	{"haiku-3-5", 2048},
	{"3-5-haiku", 2048},
}

// minCacheable is how many tokens a prompt must have for the provider to cache any
// of it, by the name of a model or of its class; the model is the surer one.
func minCacheable(name string) int {
	name = strings.TrimPrefix(name, "claude-")
	for _, m := range cacheMinimums {
		if rest, ok := strings.CutPrefix(name, m.prefix); ok && (rest == "" || strings.IndexByte("-@[", rest[0]) >= 0) {
			return m.tokens
		}
	}
	return unknownMinimum
}
