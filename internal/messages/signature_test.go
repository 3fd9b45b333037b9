package messages_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/messages"
)

// Ways to write a string in JSON.
const (
	plain   = iota // what must be escaped is
	slashes        // and slashes too, as PHP does
	hex            // everything, as four hex digits
	mixed          // every second character
	ways
)

func jsonText(text string, way int) string {
	if way == plain || way == slashes {
		b, err := json.Marshal(text)
		if err != nil {
			panic(err)
		}
		if way == slashes {
			return strings.ReplaceAll(string(b), "/", `\/`)
		}
		return string(b)
	}
	var out strings.Builder
	for i, r := range []rune(text) {
		if way == mixed && i%2 == 0 && r >= ' ' && r != '"' && r != '\\' {
			out.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	return `"` + out.String() + `"`
}

func frameOf(event, data string) messages.Frame {
	return messages.Frame{Event: []byte(event), Data: []byte(data)}
}

func TestSignature(t *testing.T) {
	const delta, start = messages.EventContentBlockDelta, messages.EventContentBlockStart
	tests := []struct {
		name, event, data string
		want              string // "" is none
	}{
		{"signature", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}`, "c2ln"},
		{"index of two digits", delta, `{"type":"content_block_delta","index":12,"delta":{"type":"signature_delta","signature":"c2ln"}}`, "c2ln"},
		{"spaced", delta, `{"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}}`, "c2ln"},
		{"other order", delta, `{"delta":{"signature":"c2ln","type":"signature_delta"},"index":0,"type":"content_block_delta"}`, "c2ln"},
		{"escapes", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"\u0073ignature_delta","signature":"a\/b"}}`, "a/b"},
		{"names with escapes", delta, `{"d\u0065lta":{"typ\u0065":"signature_delta","signatur\u0065":"c2ln"}}`, "c2ln"},
		{"redacted", start, `{"type":"content_block_start","index":0,"content_block":{"type":"redacted_thinking","data":"c2ln"}}`, "c2ln"},
		{"whole block", start, `{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"a","signature":"c2ln"}}`, "c2ln"},

		{"start of a block", start, `{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}`, ""},
		{"start of a text", start, `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"","signature":"a"}}`, ""},
		{"empty", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":""}}`, ""},
		{"no string", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":null}}`, ""},
		{"invalid", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"\ud800"}}`, ""},
		{"text", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\"signature\":\"a\"","signature":"a"}}`, ""},
		{"text, spaced", delta, `{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "signature": "a"}}`, ""},
		{"text, other order", delta, `{"delta":{"signature":"a","type":"text_delta"},"type":"content_block_delta"}`, ""},
		{"thought", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"a","signature":"a"}}`, ""},
		{"some other s", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"summary_delta","signature":"a"}}`, ""},
		{"block in a delta", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"thinking","signature":"a"}}`, ""},
		{"delta in a start", start, `{"type":"content_block_start","index":0,"content_block":{"type":"signature_delta","signature":"a"}}`, ""},
		{"field of the other event", delta, `{"content_block":{"type":"redacted_thinking","data":"a"}}`, ""},
		{"one level down", delta, `{"x":{"delta":{"type":"signature_delta","signature":"a"}}}`, ""},
		{"other event", "message_start", `{"delta":{"type":"signature_delta","signature":"a"}}`, ""},
		{"no event", "", `{"delta":{"type":"signature_delta","signature":"a"}}`, ""},
		{"no data", delta, ``, ""},
		{"cut", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"a"}`, ""},
		{"cut before the type", delta, `{"type":"content_block_delta","index":0,"delta":{"type":"`, ""},
		{"cut in the index", delta, `{"type":"content_block_delta","index":0`, ""},
		{"no object", delta, `[{"type":"signature_delta","signature":"a"}]`, ""},
		{"no object in it", delta, `{"delta":"signature_delta"}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := messages.Signature(frameOf(tt.event, tt.data), hashSeed)
			if tt.want == "" {
				assert.False(t, ok, "found a signature")
				assert.Zero(t, got)
				return
			}
			assert.True(t, ok, "found no signature")
			assert.Equal(t, hashOf(t, tt.want), got)
		})
	}
}

func TestSignatureOfPartialFrame(t *testing.T) {
	f := messages.Frame{Event: []byte(messages.EventContentBlockDelta), Raw: []byte(`"signature":"a"}}` + "\n\n"), Partial: true}
	_, ok := messages.Signature(f, hashSeed)
	assert.False(t, ok)
}

func TestReplySignaturesRefuses(t *testing.T) {
	const blocks = `"content":[{"type":"thinking","signature":"a"}]`
	require.Len(t, messages.ReplySignatures([]byte("\n{"+blocks+"}\n"), hashSeed), 1)
	for _, body := range []string{"", "null", `[{` + blocks + `}]`, `{` + blocks, `{` + blocks + `}}`, `{"message":{` + blocks + `}}`, "<html>", "event: ping\ndata: {}\n\n"} {
		assert.Nil(t, messages.ReplySignatures([]byte(body), hashSeed), "signatures of %q", body)
	}
}

// signaturesOf runs a stream to its end and gathers its signatures.
func signaturesOf(stream string) (all []uint64) {
	var f messages.Frames
	for r := strings.NewReader(stream); ; {
		_, err := f.Fill(r)
		for frame, ok := f.Next(); ok; frame, ok = f.Next() {
			if hash, ok := messages.Signature(frame, hashSeed); ok {
				all = append(all, hash)
			}
		}
		f.Discard()
		if err != nil {
			return all
		}
	}
}

func TestSignaturesOfGoldenStreams(t *testing.T) {
	want := map[string]string{
		"thinking":          "c2lnbmF0dXJlIG9mIGEgZ29sZGVuIHN0cmVhbSwgbm90IGEgcmVhbCBvbmU=",
		"redacted_thinking": "cmVkYWN0ZWQgdGhpbmtpbmcgb2YgYSBnb2xkZW4gc3RyZWFtLCBvcGFxdWUgdG8gZXZlcnlib2R5",
	}
	for name, stream := range golden(t) {
		t.Run(name, func(t *testing.T) {
			got := signaturesOf(stream)
			if want[name] == "" {
				assert.Empty(t, got)
				return
			}
			assert.Equal(t, []uint64{hashOf(t, want[name])}, got)
		})
	}
}

// A signature is the same in a stream, in an answer and in the next request, however
// each of them writes it, and no other is.
func TestSignatureIsTheSameEverywhere(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		l := newLedger(seed)
		texts := rapid.SliceOfNDistinct(rapid.OneOf(rapid.StringMatching(`[A-Za-z0-9+/]{1,300}={0,2}`), rapid.StringN(1, 20, -1)), 1, 4, rapid.ID).Draw(rt, "texts")
		for _, text := range texts {
			write := func() string { return jsonText(text, rapid.IntRange(0, ways-1).Draw(rt, "way")) }
			same := func(what string, hashes ...uint64) {
				require.Len(rt, hashes, 1, "signatures of the %s", what)
				l.same(rt, text, hashes[0], what)
			}
			member, kind, delta := "signature", "thinking", "signature_delta"
			if rapid.Bool().Draw(rt, "redacted") {
				member, kind, delta = "data", "redacted_thinking", ""
			}
			space := rapid.SampledFrom([]string{"", " ", "\t"}).Draw(rt, "space")
			object := func(kind string) string {
				members := rapid.Permutation([]string{`"type":` + space + jsonText(kind, plain), `"` + member + `"` + space + `:` + write(), `"thinking":"\"signature\":\"no\""`}).Draw(rt, "members")
				return "{" + strings.Join(members, ","+space) + "}"
			}
			event := func(name, field, object string) messages.Frame {
				members := rapid.Permutation([]string{`"type":` + space + jsonText(name, plain), `"index":` + space + `1`, jsonText(field, plain) + `:` + space + object}).Draw(rt, "event")
				return frameOf(name, "{"+strings.Join(members, ","+space)+"}")
			}
			hash, ok := messages.Signature(event(messages.EventContentBlockStart, "content_block", object(kind)), seed)
			require.True(rt, ok, "no signature in a start")
			same("start of a block", hash)
			if delta != "" {
				hash, ok = messages.Signature(event(messages.EventContentBlockDelta, "delta", object(delta)), seed)
				require.True(rt, ok, "no signature in a delta")
				same("delta", hash)
			}
			same("answer", messages.ReplySignatures([]byte(`{"content":[{"type":"text"},`+object(kind)+`]}`), seed)...)
			req, err := messages.Inspect([]byte(`{"messages":[{"content":[`+object(kind)+`]}],"model":"m"}`), seed+1)
			require.NoError(rt, err)
			blocks := req.Thinking(seed)
			require.Len(rt, blocks, 1)
			same("request", blocks[0].Signature)
		}
	})
}
