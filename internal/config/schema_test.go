package config_test

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/secret"
)

type object = map[string]any

func schema(t *testing.T) object {
	t.Helper()
	var s object
	require.NoError(t, json.Unmarshal(config.Schema(), &s))
	return s
}

// refused checks value against a schema, as far as ours go, and returns why it is not
// of it, or "".
func refused(root, s object, path string, value any) string {
	if ref, ok := s["$ref"].(string); ok {
		s = root["$defs"].(object)[strings.TrimPrefix(ref, "#/$defs/")].(object)
	}
	if any, ok := s["anyOf"].([]any); ok {
		var all []string
		for _, one := range any {
			why := refused(root, one.(object), path, value)
			if why == "" {
				return ""
			}
			all = append(all, why)
		}
		return strings.Join(all, "; ")
	}
	if types, ok := s["type"].([]any); ok && !slices.ContainsFunc(types, func(typ any) bool { return isOf(typ.(string), value) }) {
		return fmt.Sprintf("%s: %v is not %v", path, value, types)
	}
	if enum, ok := s["enum"].([]any); ok && !slices.Contains(enum, value) {
		return fmt.Sprintf("%s: %v is none of %v", path, value, enum)
	}
	switch v := value.(type) {
	case string:
		if pattern, ok := s["pattern"].(string); ok && !regexp.MustCompile(pattern).MatchString(v) {
			return fmt.Sprintf("%s: %q is not as %s", path, v, pattern)
		}
	case float64:
		if least, ok := s["minimum"].(float64); ok && v < least {
			return path + ": too small"
		}
		if most, ok := s["maximum"].(float64); ok && v > most {
			return path + ": too large"
		}
	case []any:
		if least, ok := s["minItems"].(float64); ok && len(v) < int(least) {
			return path + ": too few"
		}
		for i, item := range v {
			if why := refused(root, s["items"].(object), fmt.Sprintf("%s[%d]", path, i), item); why != "" {
				return why
			}
		}
	case object:
		if required, ok := s["required"].([]any); ok {
			for _, name := range required {
				if _, ok := v[name.(string)]; !ok {
					return fmt.Sprintf("%s: no %s", path, name)
				}
			}
		}
		properties, _ := s["properties"].(object)
		for name, item := range v {
			of, ok := properties[name].(object)
			if !ok {
				if of, ok = s["additionalProperties"].(object); !ok {
					return path + "." + name + ": unknown"
				}
			}
			if why := refused(root, of, path+"."+name, item); why != "" {
				return why
			}
		}
	}
	return ""
}

func isOf(typ string, value any) bool {
	switch v := value.(type) {
	case nil:
		return typ == "null"
	case string:
		return typ == "string"
	case bool:
		return typ == "boolean"
	case float64:
		return typ == "number" || typ == "integer" && v == float64(int64(v))
	case []any:
		return typ == "array"
	case object:
		return typ == "object"
	}
	return false
}

// valueOf reads YAML as JSON has it.
func valueOf(t *testing.T, text string) (v any) {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &v))
	return v
}

func TestTheExampleIsOfTheSchema(t *testing.T) {
	s := schema(t)
	assert.Empty(t, refused(s, s, "", valueOf(t, string(config.Example()))))
	commented := regexp.MustCompile(`(?m)^  # ( ?[ -] ?[a-z_0-9]+:)`).ReplaceAllString(string(config.Example()), "    $1")
	require.Contains(t, commented, "\n    - name: laptop")
	assert.Empty(t, refused(s, s, "", valueOf(t, commented)))
}

func TestSchemaInTheTree(t *testing.T) {
	got, err := os.ReadFile("../../config/config.schema.json")
	require.NoError(t, err)
	assert.Equal(t, string(config.Schema()), string(got), "run: cc-relay config schema > config/config.schema.json")
}

func TestSchemaNamesEverySetting(t *testing.T) {
	var walk func(path string, typ reflect.Type, s object)
	walk = func(path string, typ reflect.Type, s object) {
		require.NotNil(t, s, path)
		if path != "" && !strings.HasSuffix(path, "[]") {
			assert.NotEmpty(t, s["description"], path)
		}
		switch {
		case typ == reflect.TypeFor[secret.Value]():
		case typ.Kind() == reflect.Pointer:
			walk(path, typ.Elem(), s)
		case typ.Kind() == reflect.Slice:
			walk(path+"[]", typ.Elem(), s["items"].(object))
		case typ.Kind() == reflect.Struct:
			assert.Equal(t, false, s["additionalProperties"], path)
			for _, f := range reflect.VisibleFields(typ) {
				name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
				if name == "" || name == "-" {
					continue
				}
				of, _ := s["properties"].(object)[name].(object)
				walk(path+"."+name, f.Type, of)
			}
		}
	}
	walk("", reflect.TypeFor[config.Config](), schema(t))
}

// TestSchemaAndParseAgree holds texts against both.
func TestSchemaAndParseAgree(t *testing.T) {
	s := schema(t)
	const keys = "providers: [{ keys: [{ key: k, "
	for text, want := range map[string]bool{
		ok: true, "{}": false, "providers: []": false, "providers: ~": false, "sevrer: {}\n" + ok: false, "server: ~\nclients: ~\n" + ok: true, "providers: [{ keys: [{ weight: 1 }] }]": false,
		keys + "weight: 1 }] }]": true, keys + "weight: 1000 }] }]": true, keys + "weight: 0 }] }]": false, keys + "weight: 1001 }] }]": false, keys + "weight: 1.5 }] }]": false, keys + "weight: '${W}' }] }]": true, keys + "weight: ~ }] }]": true,
		keys + "priority: 0 }] }]": true, keys + "priority: 2 }] }]": true, keys + "priority: -1 }] }]": false, keys + "priority: 3 }] }]": false, keys + "rpm_limit: 0 }] }]": true, keys + "otpm_limit: 1000000001 }] }]": false,
		"server: { max_body_bytes: 0 }\n" + ok: false, "server: { max_body_bytes: 1073741824 }\n" + ok: true, "server: { max_body_bytes: 1073741825 }\n" + ok: false, "server: { expose: '${YES}', state: 'off' }\n" + ok: true, "server: { expose: 1 }\n" + ok: false,
		"server: { state: of }\n" + ok: false, "server: { drain_timeout: 1h30m0.5s }\n" + ok: true, "server: { drain_timeout: 10 }\n" + ok: false, "server: { drain_timeout: 1 h }\n" + ok: false, "server: { drain_timeout: '${W}s' }\n" + ok: true,
		"logging: { level: loud }\n" + ok: false, "logging: { level: trace, format: console }\n" + ok: true, "metrics: 'off'\n" + ok: true, "tracing: { sample: 1.01 }\n" + ok: false, "tracing: { sample: 0, headers: { a: 1, b: ~ } }\n" + ok: true,
		"routing: { strategy: cost, weights: [1] }\n" + ok: true, "routing: { strategy: best }\n" + ok: false, "routing: { weights: [0] }\n" + ok: false, "aliases: { a: b }\n" + ok: true, "aliases: [a]\n" + ok: false,
		"models: [{ match: [a], targets: [anthropic], strategy: '' }]\n" + ok: true, "models: [{ match: [a], targets: [] }]\n" + ok: false, "models: [{ match: [a], targets: [anthropic], strategy: x }]\n" + ok: false, "classes: [{ class: a }]\n" + ok: false,
		"clients: [{ name: a, token: '12345678' }]\n" + ok: true, "clients: [{ token: '12345678' }]\n" + ok: false, "clients: x\n" + ok: false, "passthrough: no\n" + ok: false,
		"providers: [{ auth: basic, keys: [{ key: k }] }]": false, "providers: [{ kind: x, base_url: 'https://a', keys: [{ key: k }] }]": false, "providers: [{ pool: { strategy: random, max_wait: 0s, affinity: 'off' }, keys: [{ key: k }] }]": true, "providers: [{ pool: { affinity: x }, keys: [{ key: k }] }]": false,
	} {
		_, err := config.Parse("c.yaml", []byte(text), environ("W", "5", "YES", "true"))
		why := refused(s, s, "", valueOf(t, text))
		assert.Equal(t, want, err == nil, "Parse of %s: %v", text, err)
		assert.Equal(t, want, why == "", "schema of %s: %s", text, why)
	}
}
