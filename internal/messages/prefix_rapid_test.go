package messages_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/messages"
)

// piece is a block or a tool to be written: members as JSON, and where among them
// its cache_control stands.
type piece struct {
	members   []string
	control   string // "" is none
	controlAt int
}

type turn struct {
	role   string
	blocks []piece
	plain  bool // a single text without cache_control goes as a string
	extra  string
}

type conversation struct {
	model, settings string // settings with a leading comma
	tools, system   []piece
	turns           []turn
	auto            string
}

func (p piece) write(space string) string {
	members := slices.Clone(p.members)
	if p.control != "" {
		at := min(p.controlAt, len(members))
		members = slices.Insert(members, at, `"cache_control":`+space+p.control)
	}
	return "{" + space + strings.Join(members, space+","+space) + space + "}"
}

func list(pieces []piece, space string) string {
	all := make([]string, len(pieces))
	for i, p := range pieces {
		all[i] = p.write(space)
	}
	return "[" + space + strings.Join(all, ","+space) + "]"
}

func (m turn) write(space string) string {
	content := list(m.blocks, space)
	if len(m.blocks) == 1 && m.plain && m.blocks[0].control == "" && len(m.blocks[0].members) == 2 {
		if text, ok := strings.CutPrefix(m.blocks[0].members[1], `"text":`); ok {
			content = text
		}
	}
	return fmt.Sprintf(`{"role":%q,"content":%s%s}`, m.role, content, m.extra)
}

// body writes the fields in the given order; spaces go between the members.
func (c conversation) body(order []int, space string) []byte {
	turns := make([]string, len(c.turns))
	for i, m := range c.turns {
		turns[i] = m.write(space)
	}
	fields := []string{
		fmt.Sprintf(`"model":%q`, c.model), `"tools":` + list(c.tools, space), `"system":` + list(c.system, space),
		`"messages":[` + strings.Join(turns, ",") + "]", `"stream":true` + c.settings,
	}
	if c.auto != "" {
		fields[4] += `,"cache_control":` + c.auto
	}
	all := make([]string, len(fields))
	for i, at := range order {
		all[i] = fields[at]
	}
	return []byte("{" + strings.Join(all, ","+space) + "}")
}

// controls are values of cache_control, half of them none that a provider takes.
var controls = []string{
	"", `{"type":"ephemeral"}`, `{"ttl":"1h","type":"ephemeral"}`, `{ "type" : "ephemeral", "ttl":"5m" }`, `{"type":"ephemeral","ttl":null,"scope":"global"}`,
	`null`, `{}`, `[{"type":"ephemeral"}]`, `{"type":"ephemeral","ttl":3600}`, `{"type":"persistent"}`, `"ephemeral"`,
}

func drawControl(t *rapid.T) string {
	if rapid.IntRange(0, 9).Draw(t, "controlled") > 1 {
		return ""
	}
	return rapid.SampledFrom(controls).Draw(t, "control")
}

// picture weighs less than it has bytes.
var picture = `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + strings.Repeat("A", 7000) + `"}}`

func drawPiece(t *rapid.T) piece {
	text := rapid.SampledFrom([]string{`"a"`, `"b"`, `""`, `"x-anthropic-billing-header: cch=1;"`, `"\"cache_control\":{\"type\":\"ephemeral\"}"`}).Draw(t, "text")
	members := rapid.SampledFrom([][]string{
		{`"type":"text"`, `"text":` + text},
		{`"type":"text"`, `"text":` + text},
		{`"type":"thinking"`, `"thinking":` + text, `"signature":"s"`},
		{`"type":"tool_use"`, `"id":"t1"`, `"name":"Bash"`, `"input":{"cache_control":{"type":"ephemeral"},"command":` + text + `}`},
		{`"tool_use_id":"t1"`, `"type":"tool_result"`, `"content":` + text, `"is_error":false`},
		{`"type":"tool_result"`, `"content":[{"type":"text","text":` + text + `,"cache_control":{"type":"ephemeral"}}]`},
		{`"type":"tool_result"`, `"content":[{"type":"image","source":{}}]`},
		{`"type":"image"`, `"source":{"data":` + text + `}`},
		{`"type":"document"`, `"source":{"type":"content","content":[` + picture + `,{"type":"text","text":` + text + `}]}`},
		{`"type":"web_fetch_tool_result"`, `"content":{"type":"web_fetch_result","content":{"type":"document","source":{"content":[` + picture + `]}}}`},
		{`"type":"tool_result"`, `"content":` + strings.Repeat(`[`, 4) + picture + strings.Repeat(`]`, 4)},
		{`"type":"tool_result"`, `"content":` + strings.Repeat(`{"content":`, 7) + picture + strings.Repeat(`}`, 7)},
		{},
	}).Draw(t, "members")
	return piece{members, drawControl(t), rapid.IntRange(0, 4).Draw(t, "at")}
}

func drawPieces(t *rapid.T, most int, label string) []piece {
	return rapid.SliceOfN(rapid.Custom(drawPiece), 0, most).Draw(t, label)
}

func drawTurn(t *rapid.T) turn {
	return turn{
		role:   rapid.SampledFrom([]string{"user", "assistant", "system"}).Draw(t, "role"),
		blocks: drawPieces(t, 6, "blocks"),
		plain:  rapid.Bool().Draw(t, "plain"),
		extra:  rapid.SampledFrom([]string{"", "", `,"output_config":{"effort":"high"}`}).Draw(t, "extra"),
	}
}

func drawConversation(t *rapid.T) conversation {
	return conversation{
		model:    rapid.SampledFrom([]string{"m", "n"}).Draw(t, "model"),
		settings: rapid.SampledFrom([]string{"", `,"thinking":{"type":"adaptive"}`, `,"output_config":{"effort":"low"},"speed":"fast"`, `,"tool_choice":{"type":"any"}`}).Draw(t, "settings"),
		tools:    drawPieces(t, 30, "tools"),
		system:   drawPieces(t, 8, "system"),
		turns:    rapid.SliceOfN(rapid.Custom(drawTurn), 0, 30).Draw(t, "turns"),
		auto:     drawControl(t),
	}
}

var inOrder = []int{0, 1, 2, 3, 4}

// recontrolled is c with every cache_control drawn anew.
func recontrolled(t *rapid.T, c conversation) conversation {
	again := func(pieces []piece) []piece {
		pieces = slices.Clone(pieces)
		for i := range pieces {
			pieces[i].control, pieces[i].controlAt = drawControl(t), rapid.IntRange(0, 4).Draw(t, "at")
		}
		return pieces
	}
	c.tools, c.system, c.turns, c.auto = again(c.tools), again(c.system), slices.Clone(c.turns), drawControl(t)
	for i := range c.turns {
		c.turns[i].blocks = again(c.turns[i].blocks)
		c.turns[i].plain = rapid.Bool().Draw(t, "plain")
	}
	return c
}

func TestPrefixFollowsTheModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLedger(rapid.Uint64().Draw(rt, "seed"))
		c := drawConversation(rt)
		space := rapid.SampledFrom([]string{"", " ", "\n\t"}).Draw(rt, "space")
		was := l.check(rt, c.body(inOrder, space))

		order := rapid.Permutation(inOrder).Draw(rt, "order")
		require.Equal(rt, was, l.check(rt, c.body(order, space)), "the order of the fields changed the prefix")

		now := l.check(rt, recontrolled(rt, c).body(inOrder, space))
		require.Equal(rt, []uint64{was.Root, was.Start}, []uint64{now.Root, now.Start}, "cache_control changed who asks")

		longer := c
		longer.turns = append(slices.Clone(c.turns), rapid.SliceOfN(rapid.Custom(drawTurn), 0, 8).Draw(rt, "more")...)
		l.check(rt, longer.body(inOrder, space))
		l.check(rt, recontrolled(rt, longer).body(inOrder, space))

		l.check(rt, drawConversation(rt).body(inOrder, space)) // another one, often with the same beginning
	})
}

// What stands before a mark decides its hash, byte by byte; what comes after does not.
func TestPrefixHashCoversEveryByte(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := conversation{model: "m", auto: `{"type":"ephemeral"}`}
		text := rapid.StringMatching(`[a-z]{1,40}`)
		for i := range rapid.IntRange(1, 19).Draw(rt, "turns") {
			c.turns = append(c.turns, turn{role: "user", blocks: []piece{{members: []string{`"type":"text"`, `"text":"` + text.Draw(rt, "text") + `"`}}}, plain: i%2 == 0})
		}
		was, err := messages.Inspect(c.body(inOrder, ""), 1)
		require.NoError(rt, err)
		at := rapid.IntRange(0, len(c.turns)-1).Draw(rt, "changed")
		members := c.turns[at].blocks[0].members
		i := rapid.IntRange(len(`"text":"`), len(members[1])-2).Draw(rt, "byte")
		members[1] = members[1][:i] + "#" + members[1][i+1:]
		now, err := messages.Inspect(c.body(inOrder, ""), 1)
		require.NoError(rt, err)
		for k, m := range now.Prefix.Marks() { // the last block is first
			old := was.Prefix.Marks()[k].Hash
			if len(c.turns)-1-k >= at {
				require.NotEqual(rt, old, m.Hash, "block %d after a change of block %d", len(c.turns)-1-k, at)
			} else {
				require.Equal(rt, old, m.Hash, "block %d before a change of block %d", len(c.turns)-1-k, at)
			}
		}
	})
}

func TestPrefixDependsOnTheSeed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		body := drawConversation(rt).body(inOrder, "")
		one, two := rapid.Uint64().Draw(rt, "one"), rapid.Uint64().Draw(rt, "two")
		if one == two {
			two++
		}
		a, b := newLedger(one).check(rt, body), newLedger(two).check(rt, body)
		require.NotEqual(rt, a.Root, b.Root)
		require.NotEqual(rt, a.Start, b.Start)
		for i := range a.Marks() {
			require.NotEqual(rt, a.Marks()[i].Hash, b.Marks()[i].Hash)
		}
	})
}
