package messages_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

// emptied returns text with nothing left between its quotes, so that
// encoding/json judges only what is outside of strings. It goes byte by byte
// and shares nothing with the scanner it checks.
func emptied(text []byte) (out []byte, closed bool) {
	inString, escaped := false, false
	for _, c := range text {
		switch {
		case !inString:
			out = append(out, c)
			inString = c == '"'
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			out = append(out, c)
			inString = false
		}
	}
	return out, !inString
}

// isObject tells whether text is one JSON object, strings aside.
func isObject(text []byte) bool {
	bare, closed := emptied(text)
	return closed && json.Valid(bare) && bytes.TrimLeft(bare, " \t\r\n")[0] == '{'
}

// lax is what a reader that ignores case and takes the last of two makes of a body.
type lax struct {
	Model     string `json:"model"`
	Stream    bool   `json:"stream"`
	MaxTokens int    `json:"max_tokens"`
	Metadata  struct {
		UserID *string `json:"user_id"`
	} `json:"metadata"`
}

func FuzzInspect(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","max_tokens":12,"stream":true,"metadata":{"user_id":"{\"session_id\":\"s\"}"}}`,
		"\n{ \"mod\\u0065l\" : \"a\\ud83d\\ude42\" , \"a\" : [ 1.5e-3 , { \"b\" : [ true , null , \"\\\\\\\"\" ] } ] }\r\n",
		`{"model":"m","Model":"n"}`, `{"model":"m","ſtream":true}`, `{"a":[}]}`, `{"a":"\"}`, `[]`, "\xef\xbb\xbf{}", `{"model":"m","max_tokens":-0}`,
		`{"model":"m","metadata":{"user_id":null,"User_Id":"x"}}`, `{"model":"\ud800"}`, "{\"model\":\"m\",\"a\":\"\x00\"}",
	} {
		f.Add([]byte(seed), "other/\"model\"")
	}
	f.Fuzz(func(t *testing.T, body []byte, model string) {
		asSent := bytes.Clone(body)
		object := isObject(body)
		_, replyErr := messages.InspectReply(body)
		require.Equal(t, object, replyErr == nil, "encoding/json and InspectReply differ: %v", replyErr)
		req, err := messages.Inspect(body, 0)
		require.Equal(t, asSent, body, "the body was changed")
		if err != nil {
			var invalid *messages.InvalidError
			require.True(t, errors.As(err, &invalid), "got %T", err)
			require.True(t, invalid.Offset >= 0 && invalid.Offset <= len(body), "offset %d of %d", invalid.Offset, len(body))
			return
		}
		require.True(t, object, "accepted what encoding/json refuses")
		if json.Valid(body) {
			agreesWithLaxReader(t, req, body)
			changesOnlyModel(t, req, model)
		}
	})
}

func agreesWithLaxReader(t *testing.T, req messages.Request, body []byte) {
	t.Helper()
	var want lax
	require.NoError(t, json.Unmarshal(body, &want), "accepted, but a lax reader cannot read it")
	got := lax{Model: string(req.Model), Stream: req.Stream, MaxTokens: req.MaxTokens}
	if req.UserID != nil {
		require.NoError(t, json.Unmarshal([]byte(`"`+string(req.UserID)+`"`), &got.Metadata.UserID))
	}
	require.Equal(t, want, got)
}

func changesOnlyModel(t *testing.T, req messages.Request, model string) {
	t.Helper()
	require.Equal(t, string(req.Body), sent(t, &req), "body before SetModel")
	req.SetModel(model)
	var before, after map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(req.Body, &before))
	require.NoError(t, json.Unmarshal([]byte(sent(t, &req)), &after))
	if model != "" {
		want, err := json.Marshal(model)
		require.NoError(t, err)
		require.JSONEq(t, string(want), string(after["model"]))
	}
	after["model"] = before["model"]
	require.Equal(t, before, after)
	req.SetModel("")
	require.Equal(t, string(req.Body), sent(t, &req), "body after SetModel was taken back")
}

// FuzzVendorError: whatever a provider sends is read without a panic and left as it is;
// an error of the Messages API says the same to both readers.
func FuzzVendorError(f *testing.F) {
	for _, seed := range []string{
		`{"error":{"code":"1113","message":"m"}}`, `{"error":{"code":1113,"type":"t"}}`, `{"type":"error","error":{"type":"1113","message":"m"}}`,
		`{"type":"error","error":{"type":"a","type":null,"message":"\ud800"},"ERROR":{"message":"n"},"error":null}`,
		`{"error":{"code":[1],"type":{},"message":true}}`, `{"error":"busy"}`, "\n[{\"error\":{}}]", `{"error":{"code":-0.1e+99}}`, "<html>",
		`{"type":"error","error":{"type":"api_error","message":"m","details":{"error_code":"c"}},"request_id":"r"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		asSent := bytes.Clone(body)
		got, ok := messages.ParseVendorError(body)
		require.Equal(t, asSent, body, "the body was changed")
		require.Equal(t, got != messages.VendorError{}, ok)
		if e, shaped := messages.ParseError(body); shaped {
			require.True(t, ok, "not read: %q", body)
			require.Equal(t, string(e.Error.Type), got.Type)
			require.Equal(t, e.Error.Message, got.Message)
		}
		if ok {
			require.True(t, isObject(body) && json.Valid(body), "read from what is no object: %q", body)
			require.LessOrEqual(t, len(got.Code)+len(got.Type)+len(got.Message), 3*len(body))
		}
	})
}

// FuzzSetModel: with another model to ask for, the body is the one that the client
// sent, byte for byte, but for the value of model, which encoding/json finds; and that
// is the name. Inspect reads it back, and nothing else of what it says has changed.
func FuzzSetModel(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","max_tokens":12,"stream":true}`, "\n{ \"mod\\u0065l\" : \"a\\ud83d\\ude42\" , \"a\" : 1e2 }\r\n",
		`{"messages":[{"model":"m","content":"\"model\":\"m\""}],"model"` + "\t:\r\n" + `"m" ,"metadata":{"user_id":"m"}}`, claude{"aad", "low", true, 2}.body(),
	} {
		f.Add([]byte(seed), "claude-haiku-5-5")
		f.Add([]byte(seed), "\"\\\x00\xff\u2028<&>")
	}
	f.Fuzz(func(t *testing.T, body []byte, name string) {
		req, err := messages.Inspect(body, 0)
		if err != nil || !json.Valid(body) {
			return
		}
		from, to := valueOf(t, body, "model")
		req.SetModel(name)
		got := sent(t, &req)
		if name == "" || name == string(req.Model) {
			require.Equal(t, string(body), got)
			return
		}
		head, tail := string(body[:from]), string(body[to:])
		require.True(t, strings.HasPrefix(got, head) && strings.HasSuffix(got, tail) && len(got) >= len(head)+len(tail), "%q became %q", body, got)
		var written string
		require.NoError(t, json.Unmarshal([]byte(got[len(head):len(got)-len(tail)]), &written))
		require.Equal(t, string([]rune(name)), written, "each byte that is not UTF-8 becomes U+FFFD")
		again, err := messages.Inspect([]byte(got), 0)
		if len(written) > 512 { // longer than a body of a client may ask for
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		require.Equal(t, written, string(again.Model))
		require.Equal(t, []any{req.Stream, req.MaxTokens, string(req.UserID), req.OpenTools, req.Container}, []any{again.Stream, again.MaxTokens, string(again.UserID), again.OpenTools, again.Container})
	})
}

// valueOf finds the value of a field of a JSON object.
func valueOf(t *testing.T, object []byte, name string) (from, to int) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	_, err := d.Token()
	require.NoError(t, err)
	for d.More() {
		key, err := d.Token()
		require.NoError(t, err)
		var value json.RawMessage
		require.NoError(t, d.Decode(&value))
		if key == name {
			to = int(d.InputOffset())
			return to - len(value), to
		}
	}
	require.FailNow(t, "no such field", name)
	return 0, 0
}

// FuzzPrefix holds what Inspect says of a prompt against the model, as sent, with
// its fields the other way round, and with one message more.
func FuzzPrefix(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","tools":[{"name":"T","cache_control":{"type":"ephemeral","ttl":"1h"}}],"system":"s","messages":[{"role":"user","content":"a"}],"cache_control":{"type":"ephemeral"}}`,
		`{"messages":[{"content":[{"cache_control":{"type":"ephemeral"},"cache_control":null},{"type":"thinking"},7,"x",[{}]],"role":"user","content":{}},null,[]],"model":"m","thinking":1}`,
		`{"model":"m","system":[{"type":"text","text":"x-anthropic-billing-header: a"},{"type":"text","text":""}],"messages":[{"role":"assistant","content":[{"content":[{"type":"image"}]}]}]}`,
		claude{"aad", "low", true, 2}.body(),
		pictures(40_000),
	} {
		f.Add([]byte(seed), uint64(1))
	}
	f.Fuzz(func(t *testing.T, body []byte, seed uint64) {
		if _, err := messages.Inspect(body, seed); err != nil || !json.Valid(body) {
			return
		}
		l := newLedger(seed)
		was := l.check(t, body)
		fields := elements(t, string(bytes.TrimSpace(body)), 0)
		slices.Reverse(fields)
		require.Equal(t, was, l.check(t, join(fields)), "the order of the fields changed the prefix")
		for i, m := range fields {
			if list, ok := strings.CutSuffix(m.value, "]"); ok && m.key == "messages" && m.value != "[]" {
				fields[i].value = list + `,{"role":"user","content":[{"type":"text","text":"next","cache_control":{"type":"ephemeral"}}]}]`
			}
		}
		if longer := join(fields); json.Valid(longer) { // not where the list was blank
			l.check(t, longer)
		}
		other, err := messages.Inspect(body, seed+1)
		require.NoError(t, err)
		require.NotEqual(t, was.Root, other.Prefix.Root, "the seed does not count")
	})
}

// FuzzStrip leaves blocks out of whatever Inspect takes and holds the laws of Strip
// against it, and the model, where encoding/json takes the body too.
func FuzzStrip(f *testing.F) {
	files, err := filepath.Glob(streams + "*.request.json")
	require.NoError(f, err)
	require.NotEmpty(f, files)
	for _, file := range files {
		body, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(body, uint64(1), "other")
	}
	for _, seed := range []string{
		claude{"aad", "low", true, 3}.body(),
		`{"messages":[{"content":[{"type":"thinking","signature":"a"}]},{"content":[{"signature":"b","type":"thinking"},{"type":"redacted_thinking","data":"a\/b"}]}],"model":"m"}`,
		"{ \"model\" : \"m\" , \"messages\" : [ { \"content\" : [ 7 , {\"type\":\"thinking\",\"signature\":\"a\"} , null ,\n{\"type\":\"thinking\",\"signature\":\"\\u0061\"} ] } , {} , \"x\" ] }",
		`{"model":"m","mess\u0061ges":[{"content":[{"type":"thinking","signature":"a"}],"content":[{"type":"thinking","type":"text","signature":"a"},{"type":"thinking","signature":"a","signature":"b"}]},[]]}`,
	} {
		f.Add([]byte(seed), uint64(1), "m")
		f.Add([]byte(seed), ^uint64(0), "\"\xff")
	}
	f.Fuzz(func(t *testing.T, body []byte, picks uint64, model string) {
		if _, err := messages.Inspect(body, 0); err == nil {
			checkStrip(t, body, picks, model)
		}
	})
}

func join(fields []modelMember) []byte {
	all := make([]string, len(fields))
	for i, m := range fields {
		all[i] = `"` + m.key + `":` + m.value
	}
	return []byte("{" + strings.Join(all, ",") + "}")
}

func FuzzFrames(f *testing.F) {
	for _, seed := range []string{
		"event: ping\ndata: {}\n\n", "data: a\r\ndata\rdata: b\n\r\n:c\n\n", "\r\r\n\n\nevent", "id: 1\nretry: 2\ndata:{\"type\":\"ping\"}\n\n",
		"event: a\ndata: x\nevent: b\n\n", "event: message_start\r\ndata: {\"type\":\"message_start\"}\r\n\r\nevent: error\r\ndata: \xff\r\n\r",
	} {
		f.Add([]byte(seed), []byte{1, 2, 255, 3})
	}
	f.Fuzz(func(t *testing.T, data, choices []byte) {
		stream := string(data)
		i := 0
		choose := func() int { // 0 to 255, for ever, out of choices
			if len(choices) == 0 {
				return 0
			}
			i++
			return int(choices[(i-1)%len(choices)])
		}
		random := func() *chunks { return &chunks{stream, func() int { return 1 + choose()%17 }} }
		whole, out := run(t, &chunks{stream, func() int { return len(stream) }}, never, always)
		check(t, stream, whole, out)
		got, out := run(t, random(), never, func() bool { return choose()%2 == 0 })
		check(t, stream, got, out)
		require.Equal(t, whole, got, "events depend on the chunks")
		got, out = run(t, random(), func() bool { return choose()%3 == 0 }, always)
		check(t, stream, got, out)
	})
}

func FuzzMeter(f *testing.F) {
	f.Add([]byte(`{"message":{"usage":{"input_tokens":12,"output_tokens":1}}}`), []byte(`{"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":34}}`))
	f.Add([]byte(`{"message":{"usage":{"input_tokens":-1,"cache_read_input_tokens":1e99}}}`), []byte(`{"usage":{"output_tokens":9223372036854775808,"input_tokens":2.5}}`))
	f.Add([]byte(`{"message":[],"usage":null}`), []byte(`{"usage":{"output_tokens":"7"},"usage":{"output_tokens":7}}x`))
	f.Fuzz(func(t *testing.T, start, delta []byte) {
		frames := []messages.Frame{{Event: []byte("message_start"), Data: start}, {Event: []byte("message_delta"), Data: delta}}
		var m messages.Meter
		skipped := 0
		for _, frame := range frames {
			m.Frame(frame)
			if !isObject(frame.Data) {
				skipped++
			}
		}
		require.Equal(t, skipped, m.Skipped())
		inBounds(t, m.Usage())
		once := m.Usage()
		m.Frame(frames[1])
		require.Equal(t, once, m.Usage(), "the same delta again changed the usage")
		readsAsEncodingJSON(t, delta)
	})
}

// numbers are what a count may be written as. The first of them, which are whole and
// small enough, mean what they say; null leaves the count before; of the others only
// the bounds are known.
var numbers = []string{"0", "1", "7", "12", "34", "1000", "9007199254740992", "null",
	"-1", "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e3", "2.5", "1e400", "-0", `"7"`, "{}", "[]", "true"}

const (
	null = 7 // in numbers
	odd  = 8 // the first of those
)

// counts are the fields of a usage object.
var counts = []string{"input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"}

// FuzzMeterOfStreams: whatever the events of a stream say of usage, in whatever chunks
// they come, the last count of each kind is what the meter says; nothing is added up,
// nothing is negative or overflows, and other events count for nothing.
func FuzzMeterOfStreams(f *testing.F) {
	f.Add([]byte{0, 0, 3, 1, 3, 4, 2, 3, 5}, uint64(1))
	f.Add([]byte{0, 0, 9, 1, 0, 2, 1, 3, 10, 1, 3, 3, 1, 3, 7}, uint64(2))
	f.Add([]byte{1, 3, 6, 1, 2, 6, 1, 1, 6, 0, 0, 6, 3, 0, 1, 4, 1, 1}, uint64(3))
	f.Fuzz(func(t *testing.T, script []byte, seed uint64) {
		var stream strings.Builder
		want, oddly := map[string]int{}, map[string]bool{} // by field; oddly: only bounds are known
		deltas := 0
		for ; len(script) >= 3; script = script[3:] {
			field, number := counts[script[1]%4], int(script[2])%len(numbers)
			usage := `{"` + field + `":` + numbers[number] + `,"output_tokens_details":{"` + field + `":99}}`
			switch script[0] % 5 {
			case 0:
				stream.WriteString(`data: {"type":"message_start","message":{"usage":` + usage + "}}\n\n")
			case 1:
				stream.WriteString("event: message_delta\r\ndata: {\"delta\":{\"usage\":{\"" + field + "\":98}},\r\ndata: \"usage\":" + usage + "}\r\n\r\n")
			case 2:
				stream.WriteString("event: content_block_delta\rdata: {\"usage\":" + usage + "}\r\r")
				deltas++
				continue
			case 3:
				stream.WriteString("event: later_kind\ndata: {\"usage\":" + usage + "}\n\n")
				continue
			case 4:
				stream.WriteString("event: message_delta\ndata: {\"usage\":" + usage + "\n\n") // cut short: no JSON
				continue
			}
			switch {
			case number < null:
				n, err := strconv.Atoi(numbers[number])
				require.NoError(t, err)
				want[field], oddly[field] = n, false
			case number >= odd:
				oddly[field] = true
			}
		}
		text := stream.String()
		var m messages.Meter
		var frames messages.Frames
		rest := &chunks{text, func() int { seed = seed*6364136223846793005 + 1442695040888963407; return 1 + int(seed>>33)%40 }}
		for err := error(nil); err == nil; {
			_, err = frames.Fill(rest)
			for frame, ok := frames.Next(); ok; frame, ok = frames.Next() {
				m.Frame(frame)
				inBounds(t, m.Usage())
			}
			frames.Discard()
		}
		require.Equal(t, deltas, m.Deltas())
		u := m.Usage()
		for i, got := range []int{u.Input, u.CacheWrite, u.CacheRead, u.Output} {
			if !oddly[counts[i]] {
				require.Equal(t, want[counts[i]], got, "%s of %q", counts[i], text)
			}
		}
	})
}

func inBounds(t *testing.T, u messages.Usage) {
	t.Helper()
	for _, n := range []int{u.Input, u.CacheWrite, u.CacheRead, u.Output} {
		require.True(t, n >= 0 && n <= 1<<53, "count out of bounds in %+v", u)
	}
	require.True(t, u.Prompt() >= u.Input, "prompt of %+v is %d", u, u.Prompt())
}

// readsAsEncodingJSON feeds the delta, rewritten by encoding/json so that no
// field is there twice, and compares the counts.
func readsAsEncodingJSON(t *testing.T, delta []byte) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(delta))
	decoder.UseNumber()
	var doc map[string]any
	if decoder.Decode(&doc) != nil || doc == nil {
		return
	}
	plain, err := json.Marshal(doc)
	require.NoError(t, err)
	var m messages.Meter
	m.Frame(messages.Frame{Event: []byte("message_delta"), Data: plain})
	usage, _ := doc["usage"].(map[string]any)
	got := m.Usage()
	for name, n := range map[string]int{
		"input_tokens": got.Input, "cache_creation_input_tokens": got.CacheWrite, "cache_read_input_tokens": got.CacheRead, "output_tokens": got.Output,
	} {
		number, ok := usage[name].(json.Number)
		if !ok {
			require.Zero(t, n, "%s of %s", name, plain)
			continue
		}
		want, err := strconv.ParseInt(number.String(), 10, 64)
		if err != nil || want < 0 || want > 1<<53 {
			require.True(t, m.Suspect(), "%s of %s is not suspect", name, plain)
			continue
		}
		require.Equal(t, int(want), n, "%s of %s", name, plain)
	}
}
