package admin_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/admin"
)

type schema struct {
	Ref        string `json:"$ref"`
	Type       string
	Format     string
	Items      *schema
	Properties map[string]schema
	Required   []string
}

type content map[string]struct {
	Schema  schema
	Example json.RawMessage
}

type response struct {
	Ref     string `json:"$ref"`
	Content content
}

type operation struct {
	OperationID string
	Access      string `json:"x-access"`
	Security    []map[string]any
	Parameters  []struct{ Name, In string }
	RequestBody struct{ Content content }
	Responses   map[string]response
}

type openAPI struct {
	OpenAPI    string
	Paths      map[string]map[string]operation
	Components struct {
		Schemas   map[string]schema
		Responses map[string]response
	}
}

func document(t *testing.T) openAPI {
	w := newWorld(t)
	rec := w.do("GET", "/api/v1/openapi.json", w.viewer, "")
	require.Equal(t, http.StatusOK, rec.Code)
	assert.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	var doc openAPI
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &doc))
	assert.True(t, strings.HasPrefix(doc.OpenAPI, "3.1."))
	return doc
}

func TestTheDocumentHasTheRoutes(t *testing.T) {
	doc := document(t)
	got := map[string]string{}
	ids := map[string]bool{}
	for path, operations := range doc.Paths {
		for method, op := range operations {
			name := strings.ToUpper(method) + " " + path
			got[name] = op.Access
			assert.False(t, ids[op.OperationID], "%s: operationId %s is there twice", name, op.OperationID)
			ids[op.OperationID] = true
			assert.Equal(t, op.Access == "open", len(op.Security) == 0, name)
			for _, p := range op.Parameters {
				assert.Equal(t, p.In == "path", strings.Contains(path, "{"+p.Name+"}"), "%s: %s", name, p.Name)
			}
			assert.Equal(t, strings.Count(path, "{"), len(slices.DeleteFunc(slices.Clone(op.Parameters), func(p struct{ Name, In string }) bool { return p.In != "path" })), name)
			for status, r := range op.Responses {
				if status != "200" {
					assert.Contains(t, doc.Components.Responses, strings.TrimPrefix(r.Ref, "#/components/responses/"), "%s %s", name, status)
				}
			}
		}
	}
	want := map[string]string{}
	for _, r := range admin.Routes() {
		want[r.Method+" "+r.Path] = r.Access
	}
	assert.Equal(t, want, got)
}

// types are the API's, by the names of their schemas.
var types = func() map[string]reflect.Type {
	all := map[string]reflect.Type{}
	for _, v := range []any{
		admin.Status{}, admin.Reason{}, admin.LastReload{}, admin.Stats{}, admin.Totals{}, admin.Provider{}, admin.Providers{}, admin.KeyCounts{},
		admin.Breaker{}, admin.Amounts{}, admin.Tokens{}, admin.Class{}, admin.KeyClass{}, admin.KeyOfClass{}, admin.Key{}, admin.Keys{},
		admin.Requests{}, admin.DryRunRequest{}, admin.ConfigText{}, admin.ConfigDiff{}, admin.KeyAction{}, admin.BreakerForce{}, admin.Reload{},
		admin.ActionResult{}, admin.ErrorBody{}, admin.ErrorDetail{}, admin.KeyChange{}, admin.ProviderChange{}, admin.BreakerChange{}, admin.Lost{},
	} {
		all[reflect.TypeOf(v).Name()] = reflect.TypeOf(v)
	}
	return all
}()

// schemaOf is a Go type's schema, as far as a document must agree with it.
func schemaOf(t reflect.Type, top bool) schema {
	switch {
	case t.Kind() == reflect.Pointer:
		return schemaOf(t.Elem(), top)
	case t == reflect.TypeFor[time.Time]():
		return schema{Type: "string", Format: "date-time"}
	case t.Kind() == reflect.Interface:
		return schema{}
	case t.Kind() == reflect.Struct && !top:
		return schema{Ref: "#/components/schemas/" + t.Name()}
	case t.Kind() == reflect.Slice:
		items := schemaOf(t.Elem(), false)
		return schema{Type: "array", Items: &items}
	case t.Kind() == reflect.Struct:
		s := schema{Type: "object", Properties: map[string]schema{}}
		fields(t, &s)
		return s
	}
	names := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer", reflect.Float64: "number"}
	return schema{Type: names[t.Kind()]}
}

func fields(t reflect.Type, s *schema) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			fields(f.Type, s)
			continue
		}
		s.Properties[name] = schemaOf(f.Type, false)
		if options == "" {
			s.Required = append(s.Required, name)
		}
	}
}

func TestTheDocumentHasTheTypes(t *testing.T) {
	doc := document(t)
	for name := range doc.Components.Schemas {
		assert.Contains(t, types, name, "the document has a type that Go does not")
	}
	for name, typ := range types {
		got, want := doc.Components.Schemas[name], schemaOf(typ, true)
		got.Required = append([]string(nil), got.Required...) // nil for none
		slices.Sort(got.Required)
		slices.Sort(want.Required)
		assert.Equal(t, want, got, name)
	}
}

// checkExamples decodes each example into its type strictly, and back: then it has all
// of the type's fields.
func checkExamples(t *testing.T, where string, c content) {
	body, ok := c["application/json"]
	if !ok || body.Schema.Ref == "" {
		return
	}
	typ, ok := types[strings.TrimPrefix(body.Schema.Ref, "#/components/schemas/")]
	require.True(t, ok, where)
	v := reflect.New(typ)
	dec := json.NewDecoder(bytes.NewReader(body.Example))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(v.Interface()), where)
	again, err := json.Marshal(v.Interface())
	require.NoError(t, err)
	assert.JSONEq(t, string(body.Example), string(again), where)
}

func TestTheDocumentsExamplesAreOfTheTypes(t *testing.T) {
	doc := document(t)
	for path, operations := range doc.Paths {
		for method, op := range operations {
			checkExamples(t, method+" "+path, op.Responses["200"].Content)
			checkExamples(t, method+" "+path, op.RequestBody.Content)
		}
	}
	for name, r := range doc.Components.Responses {
		checkExamples(t, name, r.Content)
	}
}

// What is really answered is of the types that the document names.
func TestAnswersAreOfTheDocumentsTypes(t *testing.T) {
	doc, w := document(t), newWorld(t)
	for _, r := range admin.Routes() {
		ref := doc.Paths[r.Path][strings.ToLower(r.Method)].Responses["200"].Content["application/json"].Schema.Ref
		if ref == "" {
			continue
		}
		body := ""
		if r.Path == "/api/v1/breakers/force" {
			body = `{"provider":"one","state":"open"}`
		}
		rec := w.do(r.Method, filledPath(r.Path), w.admin, body)
		require.Equal(t, http.StatusOK, rec.Code, r.Path)
		v := reflect.New(types[strings.TrimPrefix(ref, "#/components/schemas/")])
		dec := json.NewDecoder(rec.Body)
		dec.DisallowUnknownFields()
		assert.NoError(t, dec.Decode(v.Interface()), r.Path)
	}
}
