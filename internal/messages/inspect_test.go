package messages_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

func TestInspectReads(t *testing.T) {
	const m = `"model":"m"`
	tests := []struct {
		name, body string
		model      string
		stream     bool
		maxTokens  int
		userID     []byte
	}{
		{"model alone", `{` + m + `}`, "m", false, 0, nil},
		{"all of it", `{` + m + `,"stream":true,"max_tokens":1024,"metadata":{"user_id":"u1"}}`, "m", true, 1024, []byte("u1")},
		{"stream comes last", `{"messages":[{"role":"user","content":"\"stream\":false}"}],` + m + `,"stream":true}`, "m", true, 0, nil},
		{"white space", "\r\n\t { " + `"model" : "m" , "stream" : true , "max_tokens" : 7 , "metadata" : { "user_id" : "u" } ` + "}\n\n", "m", true, 7, []byte("u")},
		{"name with escapes", `{"model":"a\u002fb\"\\\n\ud83d\ude42é"}`, "a/b\"\\\n🙂é", false, 0, nil},
		{"key with escapes", `{"mod\u0065l":"m","stre\u0061m":true}`, "m", true, 0, nil},
		{"longest name", `{"model":"` + strings.Repeat("x", 512) + `"}`, strings.Repeat("x", 512), false, 0, nil},
		{"prewarm", `{` + m + `,"max_tokens":0}`, "m", false, 0, nil},
		{"most tokens", `{` + m + `,"max_tokens":2147483647}`, "m", false, 2147483647, nil},
		{"metadata null", `{` + m + `,"metadata":null}`, "m", false, 0, nil},
		{"metadata empty", `{` + m + `,"metadata":{}}`, "m", false, 0, nil},
		{"user null", `{` + m + `,"metadata":{"user_id":null,"x":[1]}}`, "m", false, 0, nil},
		{"user empty", `{` + m + `,"metadata":{"user_id":""}}`, "m", false, 0, []byte{}},
		{"user in JSON", `{` + m + `,"metadata":{"a":{"user_id":"no"},"user_id":"{\"session_id\":\"s\"}"}}`, "m", false, 0, []byte(`{\"session_id\":\"s\"}`)},
		{"unknown metadata twice", `{` + m + `,"metadata":{"a":1,"a":2}}`, "m", false, 0, nil},
		{"same names deeper down", `{` + m + `,"a":{"model":"x","model":"y","Model":1,"stream":[]}}`, "m", false, 0, nil},
		{"strings of others are not judged", "{" + m + ",\"a\":\"\\ud800 \\x \xff \n\"}", "m", false, 0, nil},
		{"backslashes before quotes", `{"a":"\\","b":"\\\"","c":"\\\\",` + m + `,"d":"\""}`, "m", false, 0, nil},
		{"numbers", `{"a":[0,-0,1,-1.5,1e9,2E+08,3.25e-7,123456789012345678901234567890],` + m + `}`, "m", false, 0, nil},
		{"nothing inside", `{"a":{},"b":[],"c":[[],{}],"d":"","":0,` + m + `}`, "m", false, 0, nil},
		{"deepest", `{` + m + `,"a":` + strings.Repeat("[", 9999) + strings.Repeat("]", 9999) + `}`, "m", false, 0, nil},
		{"deepest mixed", `{` + m + `,"a":` + strings.Repeat(`[{"":`, 4999) + "[]" + strings.Repeat("}]", 4999) + `}`, "m", false, 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := []byte(tt.body)
			req, err := messages.Inspect(body, 0)
			require.NoError(t, err)
			assert.Equal(t, tt.model, string(req.Model))
			assert.Equal(t, tt.stream, req.Stream)
			assert.Equal(t, tt.maxTokens, req.MaxTokens)
			assert.Equal(t, tt.userID, req.UserID)
			assert.Equal(t, tt.body, string(body), "the body was changed")
		})
	}
}

func TestInspectRefuses(t *testing.T) {
	const m = `"model":"m"`
	tests := []struct {
		name, body string
		offset     int
		reason     string
	}{
		{"empty", "", 0, "empty"},
		{"blank", " \n", 0, "empty"},
		{"array", `[{"model":"m"}]`, 0, "not a JSON object"},
		{"string", ` "model"`, 1, "not a JSON object"},
		{"byte order mark", "\xef\xbb\xbf{" + m + "}", 0, "byte order mark"},
		{"UTF-16", "\xff\xfe{\x01", 0, "not a JSON object"},
		{"NUL outside strings", "{" + m + "\x00}", 12, "NUL"},
		{"NUL inside a string", "{" + m + ",\"a\":\"\x00\"}", 18, "NUL"},

		{"cut in the object", `{` + m, 12, "ends too early, expected a comma or a closing brace"},
		{"cut in a string", `{"model":"m","a":"x\"}`, 17, "not closed"},
		{"cut in a name", `{"mod`, 1, "not closed"},
		{"cut after a name", `{"model"`, 8, "expected a colon"},
		{"cut after a colon", `{"model":`, 9, "expected a value"},
		{"cut in an array", `{` + m + `,"a":[1,`, 20, "expected a value"},
		{"cut in a literal", `{` + m + `,"a":tru`, 17, "expected a value"},
		{"cut in a number", `{` + m + `,"a":-`, 18, "expected a digit"},
		{"trailing bytes", `{` + m + `} x`, 14, "follows"},
		{"two objects", `{` + m + `}{}`, 13, "follows"},
		{"wrong bracket", `{` + m + `,"a":[}}`, 18, "expected a value"},
		{"crossed brackets", `{` + m + `,"a":[{]}}`, 19, "expected a field name"},
		{"brace closes array", `{` + m + `,"a":[1}}`, 19, "closing bracket"},
		{"bracket closes object", `{` + m + `,"a":{"b":1]}`, 23, "closing bracket"},
		{"one bracket too many", `{` + m + `,"a":[]]}`, 19, "closing brace"},
		{"trailing comma", `{` + m + `,}`, 13, "expected a field name"},
		{"trailing comma in array", `{` + m + `,"a":[1,]}`, 20, "expected a value"},
		{"leading comma", `{,` + m + `}`, 1, "expected a field name"},
		{"leading comma in array", `{` + m + `,"a":[,1]}`, 18, "expected a value"},
		{"comma in empty object", `{` + m + `,"a":{,}}`, 18, "expected a field name"},
		{"missing comma", `{` + m + ` "a":1}`, 13, "expected a comma"},
		{"missing comma in array", `{` + m + `,"a":[1 2]}`, 20, "expected a comma"},
		{"missing colon", `{` + m + `,"a" 1}`, 17, "expected a colon"},
		{"colon in array", `{` + m + `,"a":["b":1]}`, 21, "expected a comma"},
		{"name without quotes", `{model:"m"}`, 1, "expected a field name"},
		{"single quotes", `{'model':'m'}`, 1, "expected a field name"},
		{"comment", `{` + m + `/**/}`, 12, "expected a comma"},
		{"literal in upper case", `{` + m + `,"a":True}`, 17, "expected a value"},
		{"literal too long", `{` + m + `,"a":nullx}`, 21, "expected a comma"},
		{"leading zero", `{` + m + `,"a":01}`, 18, "expected a comma"},
		{"leading plus", `{` + m + `,"a":+1}`, 17, "expected a value"},
		{"bare fraction", `{` + m + `,"a":.5}`, 17, "expected a value"},
		{"empty fraction", `{` + m + `,"a":1.}`, 19, "expected a digit"},
		{"empty exponent", `{` + m + `,"a":1e+}`, 20, "expected a digit"},
		{"NaN", `{` + m + `,"a":NaN}`, 17, "expected a value"},
		{"vertical tab", `{` + m + ",\v\"a\":1}", 13, "expected a field name"},
		{"too deep", `{` + m + `,"a":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`, 17 + 9999, "nest deeper"},
		{"too deep in objects", `{` + m + `,"a":` + strings.Repeat(`{"":`, 100_000), 17 + 4*9999, "nest deeper"},

		{"no model", `{"max_tokens":1}`, 15, "model is missing"},
		{"empty object", `{}`, 1, "model is missing"},
		{"model empty", `{"model":""}`, 9, "model must be"},
		{"model null", `{"model":null}`, 9, "model must be"},
		{"model number", `{"model": 5}`, 10, "model must be"},
		{"model array", `{"model":["m"]}`, 9, "model must be"},
		{"model too long", `{"model":"` + strings.Repeat("x", 513) + `"}`, 9, "model must be"},
		{"model not UTF-8", "{\"model\":\"a\xff\"}", 9, "model must be"},
		{"model cut UTF-8", "{\"model\":\"a\xe2\x82\"}", 9, "model must be"},
		{"model half a pair", `{"model":"\ud83d"}`, 9, "half surrogates"},
		{"model second half only", `{"model":"\ude42"}`, 9, "half surrogates"},
		{"model half a pair and more", `{"model":"\ud83d\n"}`, 9, "half surrogates"},
		{"model bad escape", `{"model":"\x41"}`, 9, "model must be"},
		{"model bad hex", `{"model":"\u00g1"}`, 9, "model must be"},
		{"model short hex", `{"model":"\u00"}`, 9, "model must be"},
		{"model bare newline", "{\"model\":\"a\nb\"}", 9, "model must be"},
		{"stream null", `{` + m + `,"stream":null}`, 22, "stream must be"},
		{"stream string", `{` + m + `,"stream":"true"}`, 22, "stream must be"},
		{"stream number", `{` + m + `,"stream":1}`, 22, "stream must be"},
		{"stream cut", `{` + m + `,"stream":`, 22, "expected a value"},
		{"tokens negative", `{` + m + `,"max_tokens":-1}`, 26, "max_tokens must be"},
		{"tokens minus zero", `{` + m + `,"max_tokens":-0}`, 26, "max_tokens must be"},
		{"tokens with fraction", `{` + m + `,"max_tokens":1.0}`, 26, "max_tokens must be"},
		{"tokens with exponent", `{` + m + `,"max_tokens":1e3}`, 26, "max_tokens must be"},
		{"tokens huge", `{` + m + `,"max_tokens":2147483648}`, 26, "max_tokens must be"},
		{"tokens beyond 64 bits", `{` + m + `,"max_tokens":18446744073709551617}`, 26, "max_tokens must be"},
		{"tokens string", `{` + m + `,"max_tokens":"1"}`, 26, "max_tokens must be"},
		{"tokens null", `{` + m + `,"max_tokens":null}`, 26, "max_tokens must be"},
		{"metadata string", `{` + m + `,"metadata":"u"}`, 24, "metadata must be"},
		{"metadata array", `{` + m + `,"metadata":[]}`, 24, "metadata must be"},
		{"metadata almost null", `{` + m + `,"metadata":nil}`, 24, "expected a value"},
		{"user number", `{` + m + `,"metadata":{"user_id":7}}`, 35, "user_id must be"},
		{"user object", `{` + m + `,"metadata":{"user_id":{}}}`, 35, "user_id must be"},
		{"user bad escape", `{` + m + `,"metadata":{"user_id":"\'"}}`, 35, "user_id must be"},

		{"model twice", `{` + m + `,"a":1,` + m + `}`, 19, "model is given twice"},
		{"model twice, equal by escape", `{` + m + `,"mod\u0065l":"n"}`, 13, "model is given twice"},
		{"model and Model", `{` + m + `,"Model":"n"}`, 13, "variant spelling of model"},
		{"MODEL alone", `{"MODEL":"m"}`, 1, "variant spelling of model"},
		{"variant by escape", `{` + m + `,"\u004dodel":"n"}`, 13, "variant spelling of model"},
		{"variant by long s", `{` + m + `,"ſtream":true}`, 13, "variant spelling of stream"},
		{"variant by kelvin sign", `{` + m + `,"max_to` + "\u212a" + `ens":1}`, 13, "variant spelling of max_tokens"},
		{"Metadata alone", `{` + m + `,"Metadata":{}}`, 13, "variant spelling of metadata"},
		{"stream twice", `{"stream":true,` + m + `,"stream":true}`, 27, "stream is given twice"},
		{"max_tokens twice", `{"max_tokens":1,"max_tokens":1}`, 16, "max_tokens is given twice"},
		{"metadata twice", `{"metadata":null,"metadata":{}}`, 17, "metadata is given twice"},
		{"system twice", `{` + m + `,"system":"a","system":"b"}`, 26, "given twice"},
		{"tools and Tools", `{` + m + `,"tools":[],"Tools":[]}`, 24, "given twice"},
		{"unknown twice by long s", `{"messages":[],"meſſages":[]}`, 15, "given twice"},
		{"unknown twice by kelvin sign", `{"thinking":{},"thin` + "\u212a" + `ing":{}}`, 15, "given twice"},
		{"empty names twice", `{"":1,"":2}`, 6, "given twice"},
		{"name bad escape", `{"mode\l":"m"}`, 1, "name of this top-level field"},
		{"name half a pair", `{"\ud800":"m"}`, 1, "name of this top-level field"},
		{"name not UTF-8", "{\"\xc0\xaf\":1}", 1, "name of this top-level field"},
		{"name with control character", "{\"a\tb\":1}", 1, "name of this top-level field"},
		{"too many fields", manyFields(257), len(manyFields(256)) + len(`,"a":0`) - 6, "more than 256"},
		{"user_id twice", `{` + m + `,"metadata":{"user_id":"a","user_id":"a"}}`, 39, "user_id is given twice"},
		{"user_id twice, once null", `{` + m + `,"metadata":{"user_id":null,"user_id":"a"}}`, 40, "user_id is given twice"},
		{"User_ID", `{` + m + `,"metadata":{"User_ID":"a"}}`, 25, "variant spelling"},
		{"metadata name bad escape", `{` + m + `,"metadata":{"\q":"a"}}`, 25, "name of this field of metadata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := messages.Inspect([]byte(tt.body), 0)
			var invalid *messages.InvalidError
			require.ErrorAs(t, err, &invalid)
			assert.Equal(t, tt.offset, invalid.Offset, "offset of: %v", err)
			assert.Contains(t, invalid.Reason, tt.reason)
			assert.Contains(t, err.Error(), fmt.Sprintf("at byte %d: ", tt.offset))
			assert.Empty(t, req)
		})
	}
}

// manyFields has a model and n-1 other fields.
func manyFields(n int) string {
	var b strings.Builder
	b.WriteString(`{"model":"m"`)
	for i := range n - 1 {
		fmt.Fprintf(&b, `,"f%03d":0`, i)
	}
	return b.String() + "}"
}

func TestInspectTakesTheMostFields(t *testing.T) {
	_, err := messages.Inspect([]byte(manyFields(256)), 0)
	require.NoError(t, err)
}

// What a client wrote by mistake may be a secret or a prompt: no error repeats it.
func TestInspectErrorsQuoteNothing(t *testing.T) {
	const canary = "CANARY"
	for _, body := range []string{
		`{"CANARY":1,"canary":2}`, `{"CANARY\q":1}`, `{"model":CANARY}`, `{"model":["CANARY"]}`, `CANARY`,
		`{"model":"m"} CANARY`, `{"model":"m","x":"CANARY`, `{"stream":"CANARY"}`, `{"max_tokens":"CANARY"}`,
		`{"metadata":"CANARY"}`, `{"metadata":{"user_id":["CANARY"]}}`, `{"model":"CANARY\q"}`, `{CANARY}`, `{"x":[CANARY]}`,
	} {
		_, err := messages.Inspect([]byte(body), 0)
		require.Error(t, err, "body %s", body)
		assert.NotContains(t, strings.ToUpper(err.Error()), canary, "body %s", body)
	}
}

// Every cut of a valid body is refused, and never with a panic.
func TestInspectRefusesEveryCut(t *testing.T) {
	body := []byte(`{"model":"m\"\\","a":[1.5e-3,{"b":[true,null,"\\\""]}],"metadata":{"user_id":"\u00e9"},"max_tokens":12,"stream":false}`)
	_, err := messages.Inspect(body, 0)
	require.NoError(t, err)
	for n := range body {
		_, err := messages.Inspect(bytes.Clone(body[:n]), 0)
		var invalid *messages.InvalidError
		require.True(t, errors.As(err, &invalid), "cut at %d: got %v", n, err)
		require.LessOrEqual(t, invalid.Offset, n)
	}
}

// A hostile body costs time in proportion to its size.
func TestInspectIsLinear(t *testing.T) {
	for _, tt := range []struct{ name, head, unit, end string }{
		{"backslashes", `"a":"`, `\\`, `"`},
		{"escaped quotes", `"a":"`, `\"`, `"`},
		{"backslashes before quotes", `"a":["`, `\\","`, `"]`},
		{"one long name", `"`, `a`, `":1`},
		{"metadata names", `"metadata":{"a":1`, `,"\u0061":1`, `}`},
		{"empty lists", `"a":[[]`, `,[]`, `]`},
		{"white space", `"a":[`, ` `, `]`},
		{"blocks", `"messages":[{"role":"user","content":[{"type":"text","text":"a"}`, `,{}`, `]}]`},
		{"breakpoints", `"tools":[7`, `,{"cache_control":{"type":"ephemeral"}}`, `]`},
		{"messages", `"messages":[0`, `,{"content":""}`, `]`},
		{"members", `"cache_control":{"type":"ephemeral"},"system":[{"a":0`, `,"cache_control":[]`, `}]`},
		{"deep blocks", `"messages":[{"content":[0`, `,{"content":[{"content":[{}]}]}`, `]}]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			linear(t, func(size int) func() {
				body := []byte(`{"model":"m",` + tt.head + strings.Repeat(tt.unit, size/len(tt.unit)) + tt.end + `}`)
				return func() {
					_, err := messages.Inspect(body, 0)
					require.NoError(t, err)
				}
			})
		})
	}
}

func TestInspectAllocatesNothing(t *testing.T) {
	body := agentBody(t, 200_000)
	require.Equal(t, 1, bytes.Count(body, []byte(`\"session_id\"`)), "the body should hold one user_id with escapes")
	got := testing.AllocsPerRun(20, func() {
		if _, err := messages.Inspect(body, 0); err != nil {
			t.Error(err)
		}
	})
	assert.Zero(t, got)
}
