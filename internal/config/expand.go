package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

var errMalformedVariable = errors.New(`malformed variable; write "${NAME}", "${NAME:-default}", or $$ for a dollar sign`)

// expand replaces ${NAME} and ${NAME:-default} in text with the environment's
// values, and $$ with one dollar sign. The default also stands in for an empty
// variable and is taken as it is, up to the first }. Values are not expanded
// again. literal reports that text itself holds a part of the value, other than
// the name of an authorization scheme before a variable.
func expand(text string, env func(string) (string, bool)) (value string, literal bool, err error) {
	var out, written strings.Builder
	var unset []string
	variables := 0
	for {
		before, after, found := strings.Cut(text, "$")
		out.WriteString(before)
		written.WriteString(before)
		if !found {
			break
		}
		if !strings.HasPrefix(after, "{") {
			out.WriteByte('$')
			written.WriteByte('$')
			text = strings.TrimPrefix(after, "$")
			continue
		}
		body, rest, closed := strings.Cut(after[1:], "}")
		name, fallback, hasFallback := strings.Cut(body, ":-")
		if !closed || !variableName.MatchString(name) {
			return "", true, errMalformedVariable
		}
		variables++
		got, ok := env(name)
		if hasFallback && got == "" {
			got, ok = fallback, true
		}
		if !ok {
			unset = append(unset, name)
		}
		out.WriteString(got)
		written.WriteString(fallback)
		text = rest
	}
	if unset != nil {
		err = fmt.Errorf(`not set in the environment: %s; set it, or write a default: "${%s:-default}"`, strings.Join(unset, ", "), unset[0])
	}
	return out.String(), isLiteral(written.String(), variables), err
}

func isLiteral(written string, variables int) bool {
	switch strings.ToLower(written) {
	case "":
		return false
	case "bearer ", "basic ":
		return variables == 0
	}
	return true
}
