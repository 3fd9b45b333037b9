package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
)

// schema is a JSON Schema, as far as editors need it.
type schema struct {
	Schema      string             `json:"$schema,omitempty"`
	Title       string             `json:"title,omitempty"`
	Ref         string             `json:"$ref,omitempty"`
	Description string             `json:"description,omitempty"`
	Type        []string           `json:"type,omitempty"`
	Default     any                `json:"default,omitempty"`
	Enum        []any              `json:"enum,omitempty"`
	Minimum     *float64           `json:"minimum,omitempty"`
	Maximum     *float64           `json:"maximum,omitempty"`
	Pattern     string             `json:"pattern,omitempty"`
	AnyOf       []*schema          `json:"anyOf,omitempty"`
	Properties  map[string]*schema `json:"properties,omitempty"`
	Additional  any                `json:"additionalProperties,omitempty"` // a schema, or false
	Required    []string           `json:"required,omitempty"`
	Items       *schema            `json:"items,omitempty"`
	MinItems    int                `json:"minItems,omitempty"`
	Defs        map[string]*schema `json:"$defs,omitempty"`
}

// limit narrows what a setting may be, as its check in Parse does.
type limit struct {
	min, max float64 // a number; both 0: any
	words    []string
	required bool // it must be written
}

// limits are by the path of a setting, without the numbers of list entries.
func limits() map[string]limit {
	strategies := router.Strategies()
	perMinute := limit{max: maxLimit}
	all := map[string]limit{
		"server.state":                  {words: []string{StateOn, StateOff}},
		"clients[].name":                {required: true},
		"logging.level":                 {words: logLevels},
		"logging.format":                {words: logFormats},
		"metrics":                       {words: []string{MetricsOn, MetricsOff}},
		"tracing.sample":                {max: 1},
		"routing.strategy":              {words: strategies},
		"routing.weights[]":             {min: 1, max: router.MaxWeight},
		"models[].targets":              {required: true},
		"models[].weights[]":            {min: 1, max: router.MaxWeight},
		"models[].strategy":             {words: append([]string{""}, strategies...)},
		"classes[].models":              {required: true},
		"classes[].class":               {required: true},
		"providers":                     {required: true},
		"providers[].kind":              {words: provider.Kinds()},
		"providers[].auth":              {words: []string{provider.AuthAPIKey, provider.AuthBearer}},
		"providers[].pool.strategy":     {words: keypool.Strategies()},
		"providers[].pool.affinity":     {words: []string{keypool.AffinityOn, keypool.AffinityOff}},
		"providers[].keys[].key":        {required: true},
		"providers[].keys[].rpm_limit":  perMinute,
		"providers[].keys[].itpm_limit": perMinute,
		"providers[].keys[].otpm_limit": perMinute,
		"providers[].keys[].priority":   {min: keypool.PriorityLow, max: keypool.PriorityHigh},
		"providers[].keys[].weight":     {min: 1, max: maxWeight},
	}
	for _, b := range bounds {
		if b.Unit != "" { // else the schema says no more than that it is a duration
			all[b.Setting] = limit{min: float64(b.Least), max: float64(b.Most)}
		}
	}
	return all
}

const (
	durationPattern = `^(0|([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+)$`
	variablePattern = `\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}`
)

// Schema returns a JSON Schema (draft 2020-12) of the configuration, for editors. It
// takes variables wherever Parse does, and refuses unknown settings. What depends on
// more than one setting only Parse checks. The caller owns the bytes.
func Schema() []byte {
	cfg := Default()
	w := schemaWriter{limits: limits(), notes: notes(string(example))}
	root := w.of("", reflect.ValueOf(cfg))
	root.Schema = "https://json-schema.org/draft/2020-12/schema"
	root.Title = "cc-relay configuration"
	root.Defs = map[string]*schema{"variable": {Type: []string{"string"}, Pattern: variablePattern}}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		panic(err) // a schema holds nothing that JSON has no form for
	}
	return out.Bytes()
}

type schemaWriter struct {
	limits map[string]limit
	notes  map[string]string
}

// of returns the schema of the setting at path; v holds its default.
func (w schemaWriter) of(path string, v reflect.Value) *schema {
	for v.Kind() == reflect.Pointer {
		elem := reflect.New(v.Type().Elem()).Elem()
		if !v.IsNil() {
			elem = v.Elem()
		}
		v = elem
	}
	var s *schema
	switch {
	case v.Type() == secretType:
		s = &schema{Type: []string{"string", "number", "boolean", "null"}}
	case v.Kind() == reflect.Struct:
		s = w.object(path, v)
	case v.Kind() == reflect.Map:
		s = &schema{Type: []string{"object", "null"}, Additional: w.of(path+".*", reflect.Zero(v.Type().Elem()))}
	case v.Kind() == reflect.Slice:
		s = w.list(path, v)
	default:
		s = w.scalar(path, v)
	}
	if !strings.HasSuffix(path, "[]") {
		s.Description = w.notes[strings.ReplaceAll(path, "[]", "")]
	}
	return s
}

func (w schemaWriter) object(path string, v reflect.Value) *schema {
	s := &schema{Type: []string{"object", "null"}, Properties: map[string]*schema{}, Additional: false}
	if path == "" {
		s.Type = s.Type[:1]
	}
	fields, names := fieldsOf(v.Type())
	for _, name := range names {
		child := join(path, name)
		s.Properties[name] = w.of(child, v.FieldByIndex(fields[name]))
		if w.limits[child].required {
			s.Required = append(s.Required, name)
		}
	}
	return s
}

func (w schemaWriter) list(path string, v reflect.Value) *schema {
	entry := reflect.New(v.Type().Elem())
	if with, ok := entry.Interface().(interface{ setDefaults() }); ok {
		with.setDefaults()
	}
	if p, ok := entry.Interface().(*Provider); ok {
		p.IdleTimeout = provider.DefaultIdleTimeout // of the provider that most have
	}
	s := &schema{Type: []string{"array", "null"}, Items: w.of(path+"[]", entry.Elem())}
	if w.limits[path].required {
		s.Type, s.MinItems = s.Type[:1], 1
	}
	return s
}

// scalar is a value, a variable in its place, or nothing, which leaves the default.
func (w schemaWriter) scalar(path string, v reflect.Value) *schema {
	limit := w.limits[path]
	plain := &schema{}
	s := &schema{AnyOf: []*schema{plain, {Ref: "#/$defs/variable"}, {Type: []string{"null"}}}}
	switch {
	case v.Type() == durationType:
		plain.Type, plain.Pattern = []string{"string"}, durationPattern
		s.Default = v.Interface().(time.Duration).String()
	case v.Kind() == reflect.Bool:
		plain.Type = []string{"boolean"}
		s.Default = v.Bool()
	case v.CanInt(), v.CanFloat():
		plain.Type = []string{"number"}
		if v.CanInt() {
			plain.Type = []string{"integer"}
		}
		if limit.max > 0 {
			plain.Minimum, plain.Maximum = &limit.min, &limit.max
		}
		if !v.IsZero() {
			s.Default = v.Interface()
		}
	case limit.words != nil:
		for _, word := range limit.words {
			plain.Enum = append(plain.Enum, word)
		}
	default:
		s = &schema{Type: []string{"string", "number", "boolean", "null"}}
	}
	if v.Kind() == reflect.String && v.String() != "" {
		s.Default = v.String()
	}
	return s
}

var (
	settingLine = regexp.MustCompile(`^([ #-]*)([a-z0-9_]+):(?: .*?)??(?: +# (.*))?$`)
	commentLine = regexp.MustCompile(`^( *)# (.*)$`)
)

// notes returns what the comments of an example say, by the path of the setting
// without marks of lists. A comment is behind its setting and may go on in the lines
// below it, or it is in the lines above a setting of the top level.
func notes(example string) map[string]string {
	all := map[string]string{}
	var names [64]string // by column: the settings that the next line may belong to
	var above []string
	path, column := "", 0 // of the comment that the next line may go on with
	for _, line := range strings.Split(example, "\n") {
		m := settingLine.FindStringSubmatch(line)
		if m == nil {
			c := commentLine.FindStringSubmatch(line)
			switch {
			case c == nil:
				above, path = nil, ""
			case path != "" && len(c[1]) == column:
				all[path] += " " + c[2]
			case c[1] == "":
				above = append(above, c[2])
			}
			continue
		}
		indent := min(len(m[1]), len(names)-1)
		clear(names[indent:])
		names[indent] = m[2]
		path = strings.Join(slices.DeleteFunc(slices.Clone(names[:indent+1]), func(s string) bool { return s == "" }), ".")
		column = strings.Index(line, " # ") + 1
		if indent == 0 && m[3] == "" {
			m[3] = strings.Join(above, " ")
		}
		if all[path] == "" {
			all[path] = m[3]
		}
		above = nil
	}
	return all
}
