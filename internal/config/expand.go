package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

var (
	errMalformedVariable = errors.New(`malformed variable; write "${NAME}", "${NAME:-default}", or $$ for a dollar sign`)
	errSecretsOnly       = errors.New(`"${file:...}" and "${fd:...}" are for keys, tokens and headers; write the value itself, or "${NAME}"`)
)

// expanded is what became of a text with variables in it.
type expanded struct {
	value string
	// literal reports that the text itself holds a part of the value, other than the
	// name of an authorization scheme before a variable.
	literal bool
	names   []string // of the variables that were set
	files   []string // that were to be read
}

// expand replaces ${NAME} and ${NAME:-default} in text with the environment's
// values, and $$ with one dollar sign. The default also stands in for an empty
// variable and is taken as it is, up to the first }. In a secret, ${file:PATH} and
// ${fd:N} are what a file or a descriptor holds. Values are not expanded again.
func (d *decoder) expand(text string, secret bool) (got expanded, err error) {
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
		text = rest
		variables++
		if source, place, ok := strings.Cut(body, ":"); closed && ok && (source == "file" || source == "fd") && !strings.HasPrefix(place, "-") {
			if !secret {
				return got, errSecretsOnly
			}
			value, err := d.held(source, place)
			if source == "file" {
				got.files = append(got.files, place)
			}
			if err != nil {
				return got, fmt.Errorf("the %s of the secret %w", sourceNames[source], err)
			}
			out.WriteString(value)
			continue
		}
		name, fallback, hasFallback := strings.Cut(body, ":-")
		if !closed || !variableName.MatchString(name) {
			got.literal = true
			return got, errMalformedVariable
		}
		value, ok := d.env(name)
		if ok {
			got.names = append(got.names, name)
		}
		if hasFallback && value == "" {
			value, ok = fallback, true
		}
		if !ok {
			unset = append(unset, name)
		}
		out.WriteString(value)
		written.WriteString(fallback)
	}
	if unset != nil {
		err = fmt.Errorf(`not set in the environment: %s; set it, or write a default: "${%s:-default}"`, strings.Join(unset, ", "), unset[0])
	}
	got.value, got.literal = out.String(), isLiteral(written.String(), variables)
	return got, err
}

var sourceNames = map[string]string{"file": "file", "fd": "descriptor"}

// held is the secret in a file or a descriptor.
func (d *decoder) held(source, place string) (string, error) {
	if source == "file" {
		return readSecret(place)
	}
	n, err := strconv.Atoi(place)
	if err != nil || n < leastDescriptor || n > mostDescriptor {
		return "", fmt.Errorf(`has no such number; write "${fd:%d}" to "${fd:%d}"`, leastDescriptor, mostDescriptor)
	}
	return d.descriptor(n)
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
