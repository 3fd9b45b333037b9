package messages_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

// The model decodes a body with encoding/json, takes blocks away from what comes
// out, and knows nothing of bytes. What it says of them is said by two laws: a body
// stripped is the body with some bytes missing, and what stays has all of its own.

// decode reads a JSON object; numbers stay as written.
func decode(t tester, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var doc map[string]any
	require.NoError(t, d.Decode(&doc), "text %s", text)
	return doc
}

// signatureOf is the signature of a thinking block, "" where nobody can know it.
func signatureOf(block any) (text string) {
	b, _ := block.(map[string]any)
	switch b["type"] {
	case "thinking":
		text, _ = b["signature"].(string)
	case "redacted_thinking":
		text, _ = b["data"].(string)
	}
	return text
}

func contentOf(message any) []any {
	m, _ := message.(map[string]any)
	content, _ := m["content"].([]any)
	return content
}

// signatures are those of all blocks of a document, in order.
func signatures(doc map[string]any) (all []string) {
	list, _ := doc["messages"].([]any)
	for _, m := range list {
		for _, b := range contentOf(m) {
			if s := signatureOf(b); s != "" {
				all = append(all, s)
			}
		}
	}
	return all
}

// modelStrip takes the blocks with these signatures out of doc and tells how many,
// and what is left of each message: nil where it is gone.
func modelStrip(doc map[string]any, drop map[string]bool) (n int, left [][]any) {
	all, ok := doc["messages"].([]any)
	if !ok {
		return 0, nil
	}
	kept := []any{}
	for i, m := range all {
		content := contentOf(m)
		stays := slices.DeleteFunc(append([]any{}, content...), func(b any) bool { return drop[signatureOf(b)] })
		gone := len(content) - len(stays)
		if gone > 0 && len(stays) == 0 && (len(kept) > 0 || i < len(all)-1) {
			n += gone
			left = append(left, nil)
			continue
		}
		if gone > 0 && len(stays) > 0 {
			n += gone
			m.(map[string]any)["content"] = stays
		}
		kept = append(kept, m)
		left = append(left, append([]any{}, contentOf(m)...))
	}
	doc["messages"] = kept
	return n, left
}

// missesOnly tells whether after is before with some of its bytes missing.
func missesOnly(before, after string) bool {
	for i := range len(before) {
		if after != "" && before[i] == after[0] {
			after = after[1:]
		}
	}
	return after == ""
}

// member finds the last member of this name, as encoding/json reads names.
func member(t tester, object modelMember, name string) int {
	t.Helper()
	at := -1
	for i, m := range object.elements(t) {
		var key string
		require.NoError(t, json.Unmarshal([]byte(`"`+m.key+`"`), &key))
		if key == name {
			at = i
		}
	}
	return at
}

// keepsBytes holds that in after, which is before without some blocks, all that is
// left is written as before: around messages, and in them each block, each other
// member, and each message that lost nothing.
func keepsBytes(t tester, before, after string, drop map[string]bool) {
	t.Helper()
	require.True(t, missesOnly(before, after), "more than left out: %s became %s", before, after)
	whole := func(text string) modelMember { return modelMember{value: text, end: len(text)} }
	old, now := whole(before), whole(after)
	at := member(t, old, "messages")
	if at < 0 {
		require.Equal(t, before, after)
		return
	}
	was, is := old.elements(t)[at], now.elements(t)[at]
	require.Equal(t, before[:was.end-len(was.value)], after[:is.end-len(is.value)], "before messages")
	require.Equal(t, before[was.end:], after[is.end:], "after messages")
	if !was.is('[') {
		require.Equal(t, before, after)
		return
	}
	_, left := modelStrip(decode(t, before), drop)
	stays := is.elements(t)
	for i, m := range was.elements(t) {
		if left[i] == nil {
			continue
		}
		require.NotEmpty(t, stays, "messages left")
		keepsMessage(t, m, stays[0], len(left[i]), drop)
		stays = stays[1:]
	}
	require.Empty(t, stays, "messages left")
}

func keepsMessage(t tester, was, is modelMember, blocks int, drop map[string]bool) {
	t.Helper()
	at := -1
	if was.is('{') {
		at = member(t, was, "content")
	}
	if at < 0 || !was.elements(t)[at].is('[') || len(was.elements(t)[at].elements(t)) == blocks {
		require.Equal(t, was.value, is.value, "a message that loses nothing")
		return
	}
	old, now := was.elements(t), is.elements(t)
	require.Len(t, now, len(old), "members of %s", is.value)
	for i := range old {
		require.Equal(t, old[i].key, now[i].key)
		if i != at {
			require.Equal(t, old[i].value, now[i].value, "member %s", old[i].key)
		}
	}
	var want, got []string
	for _, b := range old[at].elements(t) {
		var block any
		require.NoError(t, json.Unmarshal([]byte(b.value), &block))
		if !drop[signatureOf(block)] {
			want = append(want, b.value)
		}
	}
	for _, b := range now[at].elements(t) {
		got = append(got, b.value)
	}
	require.Equal(t, want, got, "blocks left")
}

// picked has, for each signature that list has, whether it is to be dropped: the
// bits of picks say so, in the order in which they come first.
func picked(list []messages.Thinking, picks uint64) map[uint64]bool {
	drop := map[uint64]bool{}
	for _, b := range list {
		if _, ok := drop[b.Signature]; !ok {
			drop[b.Signature] = picks>>(len(drop)%64)&1 == 1
		}
	}
	return drop
}

// followsModel compares what Thinking and Strip made of before with the model.
func followsModel(t tester, before, after string, list []messages.Thinking, drop map[uint64]bool, n int) {
	t.Helper()
	doc := decode(t, before)
	names := signatures(doc)
	if strings.Contains(strings.Join(names, ""), "\ufffd") {
		return // encoding/json writes it for what is invalid
	}
	require.Len(t, list, len(names), "blocks of %s", before)
	l, dropped := newLedger(hashSeed), map[string]bool{}
	for i, name := range names {
		l.same(t, name, list[i].Signature, "signature "+name)
		dropped[name] = drop[list[i].Signature]
	}
	want, _ := modelStrip(doc, dropped)
	require.Equal(t, want, n, "blocks left out of %s", before)
	require.Equal(t, doc, decode(t, after), "%s became %s", before, after)
	keepsBytes(t, before, after, dropped)
}

// checkStrip strips a body that Inspect takes and holds the laws against it. name is
// a model to ask for.
func checkStrip(t tester, body []byte, picks uint64, name string) {
	t.Helper()
	fresh := func() messages.Request {
		req, err := messages.Inspect(body, 0)
		require.NoError(t, err)
		return req
	}
	req, asSent := fresh(), bytes.Clone(body)
	first := req.NewBody()
	list := req.Thinking(hashSeed)
	drop := picked(list, picks)
	drops := func(hash uint64) bool { return drop[hash] }

	require.Zero(t, req.Strip(list, func(uint64) bool { return false }))
	require.Equal(t, string(body), sent(t, &req), "nothing was dropped")
	n := req.Strip(list, drops)
	stripped := sent(t, &req)
	require.True(t, isObject([]byte(stripped)), "no JSON any more: %s", stripped)
	again, err := messages.Inspect([]byte(stripped), 0)
	require.NoError(t, err, "body %s", stripped)
	require.Len(t, again.Thinking(hashSeed), len(list)-n, "blocks that are left in %s", stripped)
	if json.Valid(body) {
		followsModel(t, string(bytes.TrimSpace(body)), strings.TrimSpace(stripped), list, drop, n)
	}

	req.SetModel(name)
	both := sent(t, &req)
	other := fresh()
	other.SetModel(name)
	renamed := sent(t, &other)
	require.Equal(t, n, other.Strip(list, drops))
	require.Equal(t, both, sent(t, &other), "SetModel before and after Strip differ")
	if json.Valid(body) && name != "" {
		encoded, err := json.Marshal(name)
		require.NoError(t, err)
		want := decode(t, stripped)
		want["model"] = decode(t, `{"model":`+string(encoded)+`}`)["model"]
		require.Equal(t, want, decode(t, both))
	}
	other.Strip(list, nil)
	require.Equal(t, renamed, sent(t, &other), "Strip was undone, SetModel was not")
	req.SetModel("")
	require.Equal(t, stripped, sent(t, &req), "SetModel was undone, Strip was not")
	req.Strip(nil, drops)
	require.Equal(t, string(body), sent(t, &req), "all was undone")

	var old bytes.Buffer
	_, err = old.ReadFrom(first)
	require.NoError(t, err)
	require.Equal(t, string(body), old.String(), "a reader given out before")
	require.Equal(t, asSent, body, "the body was changed")
}
