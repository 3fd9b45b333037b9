package messages_test

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

// code is what fills the prompts of a coding agent. Encoded it has a quote every
// 45 bytes or so, as dense as the standard library's densest packages.
const code = `// handle answers one request for a named thing; a thing without a name is the
// caller's mistake and is told so, C:\temp paths and größere Namen included.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if len(name) == 0 || len(name) > maxName {
		http.Error(w, "missing \"name\", see /help", http.StatusBadRequest)
		return
	}
	thing, err := s.store.Find(r.Context(), name)
	if err != nil {
		s.log.Warn().Err(err).Str("name", name).Msg("not found")
		return
	}
	fmt.Fprintf(w, "%s\n", thing.Describe(r.URL.Query()["lang"]))
}

`

// agentBody makes a body as a coding agent sends it, of about size bytes:
// three system blocks, twelve tools with schemas, then a tool loop.
func agentBody(tb testing.TB, size int) []byte {
	tb.Helper()
	type m = map[string]any
	system := []m{
		{"type": "text", "text": "x-anthropic-billing-header: version=1"},
		{"type": "text", "text": "You are a coding agent.", "cache_control": m{"type": "ephemeral"}},
		{"type": "text", "text": strings.Repeat("Answer in plain words. Do not \"guess\".\n", 180), "cache_control": m{"type": "ephemeral"}},
	}
	tools := make([]m, 12)
	for i := range tools {
		tools[i] = m{"name": fmt.Sprintf("Tool%d", i), "description": strings.Repeat("Runs a step and returns what it printed.\n", 30), "input_schema": m{
			"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false,
			"required": []string{"command"}, "properties": m{
				"command": m{"type": "string", "description": "The command to run"},
				"timeout": m{"type": "number", "minimum": 0, "maximum": 600000, "description": "Milliseconds"},
				"flags":   m{"type": "array", "items": m{"type": "string", "enum": []string{"a", "b", "c"}}},
			},
		}}
	}
	turns := []m{{"role": "user", "content": "Make the handler \"robust\"."}}
	encode := func() []byte {
		fields := []struct {
			name  string
			value any
		}{
			{"model", "claude-opus-5-5"}, {"messages", turns}, {"system", system}, {"tools", tools},
			{"metadata", m{"user_id": `{"device_id":"` + strings.Repeat("5e", 32) + `","account_uuid":"","session_id":"2f1d6a3c-0b5e-4a3f-9d52-7c1a90e4b111"}`}},
			{"max_tokens", 128000}, {"thinking", m{"type": "adaptive", "display": "omitted"}}, {"stream", true},
		}
		parts := make([]string, len(fields))
		for i, f := range fields {
			value, err := json.Marshal(f.value)
			require.NoError(tb, err)
			parts[i] = fmt.Sprintf("%q:%s", f.name, value)
		}
		return []byte("{" + strings.Join(parts, ",") + "}")
	}
	if size < 40_000 { // a small client: no tools
		system, tools = nil, nil
	}
	for n := 0; len(encode()) < size; n++ {
		id := fmt.Sprintf("toolu_%024d", n)
		lines := max(1, min(8, (size-len(encode()))/700))
		turns = append(turns,
			m{"role": "assistant", "content": []m{
				{"type": "thinking", "thinking": "", "signature": strings.Repeat("c2lnbmF0dXJl", 40)},
				{"type": "tool_use", "id": id, "name": "Tool1", "input": m{"command": "sed -n 1,80p \"server.go\""}},
			}},
			m{"role": "user", "content": []m{{"type": "tool_result", "tool_use_id": id, "content": strings.Repeat(code, lines)}}})
	}
	return encode()
}

func BenchmarkInspect(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"1KB", 1_000}, {"50KB", 50_000}, {"200KB", 200_000}, {"1MB", 1_000_000}} {
		b.Run(size.name, func(b *testing.B) {
			body := agentBody(b, size.bytes)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := messages.Inspect(body, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkThinking(b *testing.B) {
	req, err := messages.Inspect(agentBody(b, 200_000), 0)
	require.NoError(b, err)
	b.SetBytes(int64(len(req.Body)))
	b.ReportAllocs()
	for b.Loop() {
		if len(req.Thinking(0)) == 0 {
			b.Fatal("no block was found")
		}
	}
}

// BenchmarkStrip is what one attempt pays for a list that was made before: a body
// that stays as it is, and one of which every block goes.
func BenchmarkStrip(b *testing.B) {
	for _, all := range []bool{false, true} {
		b.Run(fmt.Sprintf("all=%t", all), func(b *testing.B) {
			req, err := messages.Inspect(agentBody(b, 200_000), 0)
			require.NoError(b, err)
			list := req.Thinking(0)
			b.ReportAllocs()
			for b.Loop() {
				if n := req.Strip(list, func(uint64) bool { return all }); all && n != len(list) {
					b.Fatalf("%d of %d blocks were left out", n, len(list))
				}
			}
		})
	}
}

func BenchmarkSignature(b *testing.B) {
	for _, delta := range []struct{ name, data string }{
		{"text", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" and so \"on\""}}`},
		{"text spaced", `{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " and so \"on\""}}`},
		{"signature", `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"` + strings.Repeat("c2lnbmF0dXJl", 40) + `"}}`},
	} {
		b.Run(delta.name, func(b *testing.B) {
			frame := messages.Frame{Event: []byte(messages.EventContentBlockDelta), Data: []byte(delta.data)}
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := messages.Signature(frame, 1); ok != (delta.name == "signature") {
					b.Fatalf("got %t", ok)
				}
			}
		})
	}
}

// longStream has n events, most of them small pieces of text.
func longStream(n int) string {
	var b strings.Builder
	add := func(name, data string) { fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", name, data) }
	add("message_start", `{"type":"message_start","message":{"id":"msg_01","type":"message","role":"assistant","model":"claude-opus-5-5","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":12,"cache_creation_input_tokens":340,"cache_read_input_tokens":45678,"cache_creation":{"ephemeral_5m_input_tokens":340,"ephemeral_1h_input_tokens":0},"output_tokens":1,"service_tier":"standard"}}}`)
	add("content_block_start", `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
	for range n - 5 {
		add("content_block_delta", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" and so \"on\""}}`)
	}
	add("content_block_stop", `{"type":"content_block_stop","index":0}`)
	add("message_delta", `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":812}}`)
	add("message_stop", `{"type":"message_stop"}`)
	return b.String()
}

// meter runs a stream to its end as the relay does.
func meter(f *messages.Frames, r io.Reader) messages.Meter {
	var m messages.Meter
	for {
		_, err := f.Fill(r)
		for frame, ok := f.Next(); ok; frame, ok = f.Next() {
			m.Frame(frame)
		}
		f.Discard()
		if err != nil {
			return m
		}
	}
}

// BenchmarkMeter is the cost of one stream of 200 events, in reads of 4 KiB and
// in reads of one event each.
func BenchmarkMeter(b *testing.B) {
	const events = 200
	stream := longStream(events)
	b.Run("4KB", func(b *testing.B) { benchmarkMeter(b, stream, events, 4096) })
	b.Run("event", func(b *testing.B) { benchmarkMeter(b, stream, events, len(stream)/events) })
}

func benchmarkMeter(b *testing.B, stream string, events, size int) {
	r := &chunks{next: func() int { return size }}
	var f messages.Frames
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		r.data = stream
		f.Reset()
		if m := meter(&f, r); !m.Complete() {
			b.Fatal("the stream was not metered")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*events), "ns/event")
}
