package proxy

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"cc-relay/internal/secret"
)

// shortestSecret is the least that is replaced: a shorter value would be found
// in text that has nothing to do with it.
const shortestSecret = 8

// scrubber takes known secrets out of text. Most text holds none, and finding
// that out costs a look at each byte and no allocation.
type scrubber struct {
	begins  [256]bool           // by first byte
	heads   map[string]struct{} // by the first shortestSecret bytes
	replace *strings.Replacer
}

// newScrubber replaces secrets, as they are and as JSON writes them. The longest
// come first: one may be the beginning of another.
func newScrubber(secrets []secret.Value) *scrubber {
	var found []string
	for _, s := range secrets {
		value := s.Reveal()
		if len(value) < shortestSecret {
			continue
		}
		found = append(found, value)
		if quoted, err := json.Marshal(value); err == nil && string(quoted[1:len(quoted)-1]) != value {
			found = append(found, string(quoted[1:len(quoted)-1]))
		}
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	s := &scrubber{heads: make(map[string]struct{}, len(found))}
	pairs := make([]string, 0, 2*len(found))
	for _, value := range found {
		s.begins[value[0]] = true
		s.heads[value[:shortestSecret]] = struct{}{}
		pairs = append(pairs, value, secret.Redacted)
	}
	s.replace = strings.NewReplacer(pairs...)
	return s
}

// mostKnown bounds the secrets that are looked for.
const mostKnown = 4096

// known are the secrets in force and those of before: requests go on with keys that are
// not configured any more. The oldest are forgotten.
func known(now, before []secret.Value) []secret.Value {
	all := slices.Clone(now)
	seen := make(map[string]bool, len(now))
	for _, s := range now {
		seen[s.Reveal()] = true
	}
	for _, s := range before {
		if !seen[s.Reveal()] && len(all) < mostKnown {
			all = append(all, s)
		}
	}
	return all
}

// clean returns text without known secrets: text itself where it holds none.
func (s *scrubber) clean(text string) string {
	for i := 0; i+shortestSecret <= len(text); i++ {
		if !s.begins[text[i]] {
			continue
		}
		if _, ok := s.heads[text[i:i+shortestSecret]]; ok {
			return s.replace.Replace(text)
		}
	}
	return text
}
