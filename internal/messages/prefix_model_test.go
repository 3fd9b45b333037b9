package messages_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

// The model reads a body with encoding/json, keeps every block, and names each
// prefix by what it is made of. Names stand for hashes: equal names must have
// equal hashes and different names different ones, which a ledger checks.

// tester is a *testing.T or a *rapid.T.
type tester interface {
	require.TestingT
	Helper()
}

type modelMember struct {
	key   string // as between its quotes
	value string
	end   int // offset in the body
}

type modelBlock struct {
	name  string // of the prefix within its section
	end   int
	life  time.Duration
	bare  bool
	label bool
}

type modelSection struct {
	from, to int
	name     string
	blocks   []modelBlock
}

type modelMark struct {
	name  string
	bytes int
	life  time.Duration
}

type modelPrefix struct {
	bytes       int
	root, start string
	marks       []modelMark
}

func name(parts ...string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(parts, "\x00"))))
}

// elements and members read a text that json.Valid has passed; at is its offset.
func elements(t tester, text string, at int) (all []modelMember) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	_, err := d.Token()
	require.NoError(t, err)
	object := text[0] == '{'
	for d.More() {
		key := ""
		if object {
			before := d.InputOffset()
			_, err := d.Token()
			require.NoError(t, err)
			key = strings.Trim(text[before:d.InputOffset()], " \t\r\n,")
			key = key[1 : len(key)-1]
		}
		var raw json.RawMessage
		require.NoError(t, d.Decode(&raw))
		all = append(all, modelMember{key, string(raw), at + int(d.InputOffset())})
	}
	return all
}

func (m modelMember) is(kind byte) bool { return m.value[0] == kind }

func (m modelMember) elements(t tester) []modelMember {
	t.Helper()
	return elements(t, m.value, m.end-len(m.value))
}

func (s *modelSection) add(b modelBlock, content string) {
	s.name = name(s.name, "block", content)
	b.name = s.name
	s.blocks = append(s.blocks, b)
}

func (s *modelSection) content(t tester, m modelMember, system bool, images *bool, light *int) {
	t.Helper()
	switch {
	case m.is('"'):
		s.add(modelBlock{end: m.end - *light, bare: m.value == `""`}, name("{", "type", `"text"`, "text", m.value))
	case m.is('['):
		for _, e := range m.elements(t) {
			b, content := blockOf(t, e, images, light)
			if !b.label || !system || len(s.blocks) > 0 {
				s.add(b, content)
			}
		}
	default:
		s.name = name(s.name, "other", m.value)
	}
}

func blockOf(t tester, e modelMember, images *bool, light *int) (modelBlock, string) {
	t.Helper()
	b := modelBlock{end: e.end - *light}
	if !e.is('{') {
		return b, name("other", e.value)
	}
	parts := []string{"{"}
	for _, m := range e.elements(t) {
		if m.key == "cache_control" {
			b.life = modelLife(t, m)
			continue
		}
		parts = append(parts, m.key, m.value)
		switch m.key {
		case "type":
			b.bare = b.bare || m.value == `"thinking"` || m.value == `"redacted_thinking"`
			*images = *images || m.value == `"image"`
		case "text":
			b.bare = b.bare || m.value == `""`
			b.label = strings.HasPrefix(m.value, `"x-anthropic-billing-header:`)
		case "content":
			modelInner(t, m, 0, images, light)
		case "source":
			modelSource(t, m, 0, images, light)
		}
	}
	b.end = e.end - *light
	if b.bare {
		b.life = 0
	}
	return b, name(parts...)
}

// modelInner looks for pictures and documents in the content of a block: for the bytes of
// theirs that do not count, and whether there is an image.
func modelInner(t tester, m modelMember, depth int, images *bool, light *int) {
	t.Helper()
	if depth == 6 || !m.is('[') && !m.is('{') {
		return
	}
	for _, e := range m.elements(t) {
		switch {
		case m.is('['), e.key == "content":
			modelInner(t, e, depth+1, images, light)
		case e.key == "source":
			modelSource(t, e, depth+1, images, light)
		case e.key == "type":
			*images = *images || e.value == `"image"`
		}
	}
}

func modelSource(t tester, m modelMember, depth int, images *bool, light *int) {
	t.Helper()
	if !m.is('{') {
		return
	}
	of := map[string]string{}
	for _, f := range m.elements(t) {
		of[f.key] = f.value
		if f.key == "content" {
			modelInner(t, f, depth+1, images, light)
		}
	}
	most := 6400
	if of["media_type"] == `"application/pdf"` {
		most = max(most, len(of["data"])/16)
	}
	if of["type"] == `"base64"` {
		*light += max(0, len(of["data"])-most)
	}
}

func modelLife(t tester, m modelMember) time.Duration {
	t.Helper()
	if !m.is('{') {
		return 0
	}
	kind, ttl := "", "null"
	for _, f := range m.elements(t) {
		switch f.key {
		case "type":
			kind = f.value
		case "ttl":
			ttl = f.value
		}
	}
	lives := map[string]time.Duration{"null": 5 * time.Minute, `"5m"`: 5 * time.Minute, `"1h"`: time.Hour}
	if kind != `"ephemeral"` {
		return 0
	}
	return lives[ttl]
}

// modelOf is what Prefix must say of a body that Inspect and encoding/json accept.
func modelOf(t tester, body []byte) modelPrefix {
	t.Helper()
	var images bool
	light := 0
	var auto time.Duration
	tools, system, msgs := &modelSection{name: "tools"}, &modelSection{name: "system"}, &modelSection{name: "messages"}
	start, settings := "messages", map[string]string{}
	text := string(bytes.TrimSpace(body))
	for _, m := range elements(t, text, bytes.IndexByte(body, '{')) {
		from := m.end - len(m.value) - light
		switch m.key {
		case "tools":
			tools.content(t, m, false, &images, &light)
			tools.from, tools.to = from, m.end-light
		case "system":
			system.content(t, m, true, &images, &light)
			system.from, system.to = from, m.end-light
		case "messages":
			start = msgs.messages(t, m, &images, &light)
			msgs.from, msgs.to = from, m.end-light
		case "cache_control":
			auto = modelLife(t, m)
		default:
			settings[m.key] = m.value
		}
	}
	var model struct{ Model string }
	require.NoError(t, json.Unmarshal(body, &model))
	toolsBase := name("model", model.Model)
	root := name(toolsBase, tools.name, system.name)
	systemBase := name(toolsBase, tools.name, settings["speed"], settings["output_config"])
	messagesBase := name(systemBase, system.name, settings["tool_choice"], settings["thinking"], fmt.Sprint(images))

	before := tools.to - tools.from
	p := modelPrefix{bytes: before + system.to - system.from + msgs.to - msgs.from, root: root, start: name(root, start)}
	modelAutomatic(auto, msgs, system, tools)
	var all []modelMark
	var marks []int
	for _, s := range []struct {
		*modelSection
		base   string
		before int
	}{{tools, toolsBase, 0}, {system, systemBase, before}, {msgs, messagesBase, before + system.to - system.from}} {
		for _, b := range s.blocks {
			if b.life > 0 {
				marks = append(marks, len(all))
			}
			all = append(all, modelMark{name(s.base, b.name), s.before + b.end - s.from, b.life})
		}
	}
	p.marks = reached(all, marks[max(len(marks)-4, 0):])
	return p
}

// messages returns the name through the first message of a user.
func (s *modelSection) messages(t tester, m modelMember, images *bool, light *int) string {
	t.Helper()
	start := ""
	if !m.is('[') {
		before := s.name
		s.name = name(s.name, "other", m.value)
		return before
	}
	empty := s.name
	for _, message := range m.elements(t) {
		s.name = name(s.name, "message")
		if !message.is('{') {
			s.name = name(s.name, "other", message.value)
			continue
		}
		user := false
		for _, f := range message.elements(t) {
			if f.key == "content" {
				s.content(t, f, false, images, light)
				continue
			}
			s.name = name(s.name, f.key, f.value)
			user = user || f.key == "role" && f.value == `"user"`
		}
		if user && start == "" {
			start = s.name
		}
	}
	if start == "" {
		return empty
	}
	return start
}

// modelAutomatic marks the last block that can carry a breakpoint, of the last
// section that has blocks, unless more than 12 that cannot come after it.
func modelAutomatic(life time.Duration, sections ...*modelSection) {
	for _, s := range sections {
		if len(s.blocks) == 0 {
			continue
		}
		for i := len(s.blocks) - 1; i >= max(len(s.blocks)-13, 0); i-- {
			b := &s.blocks[i]
			if b.bare {
				continue
			}
			if b.life == 0 {
				b.life = life
			}
			return
		}
		return
	}
}

// reached are the marks of the breakpoints at points and of 19 blocks before each.
func reached(all []modelMark, points []int) (marks []modelMark) {
	for i := len(all) - 1; i >= 0; i-- {
		near, point := false, false
		for _, p := range points {
			near = near || p-20 < i && i <= p
			point = point || p == i
		}
		if !point {
			all[i].life = 0
		}
		if near {
			marks = append(marks, all[i])
		}
	}
	return marks
}

// ledger holds that one name has one hash and one hash one name.
type ledger struct {
	seed    uint64
	hashOf  map[string]uint64
	nameFor map[uint64]string
}

func newLedger(seed uint64) *ledger {
	return &ledger{seed, map[string]uint64{}, map[uint64]string{}}
}

func (l *ledger) same(t require.TestingT, name string, hash uint64, what string) {
	if old, ok := l.hashOf[name]; ok {
		require.Equal(t, old, hash, "%s: the same prefix has another hash than before", what)
	}
	if old, ok := l.nameFor[hash]; ok {
		require.Equal(t, old, name, "%s: another prefix has had the same hash", what)
	}
	l.hashOf[name], l.nameFor[hash] = hash, name
}

// check compares what Inspect makes of a body with the model and enters its hashes.
func (l *ledger) check(t tester, body []byte) messages.Prefix {
	t.Helper()
	req, err := messages.Inspect(body, l.seed)
	require.NoError(t, err, "body %s", body)
	want, got := modelOf(t, body), req.Prefix
	require.Equal(t, want.bytes, got.Bytes, "bytes of the prompt in %s", body)
	require.Len(t, got.Marks(), len(want.marks), "marks of %s", body)
	l.same(t, "root "+want.root, got.Root, "root")
	l.same(t, "start "+want.start, got.Start, "start")
	for i, m := range got.Marks() {
		what := fmt.Sprintf("mark %d of %s", i, body)
		require.Equal(t, want.marks[i].bytes, m.Bytes, "bytes of %s", what)
		require.Equal(t, want.marks[i].life, m.Life, "life of %s", what)
		l.same(t, want.marks[i].name, m.Hash, what)
	}
	return got
}
