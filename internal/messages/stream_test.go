package messages_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

const streams = "../../testdata/streams/"

// golden returns the recorded streams by name.
func golden(tb testing.TB) map[string]string {
	tb.Helper()
	files, err := filepath.Glob(streams + "*.sse")
	require.NoError(tb, err)
	require.NotEmpty(tb, files, "no streams in %s", streams)
	found := map[string]string{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(tb, err)
		found[strings.TrimSuffix(filepath.Base(file), ".sse")] = string(b)
	}
	return found
}

// event is what a frame means, apart from its bytes.
type event struct {
	Event, Data string
	HasData     bool
	Partial     bool
}

// reference reads the whole frames of a stream as slowly and plainly as the
// standard describes it. An event without a name has the name "?" here; what
// Frames makes of those has a test of its own. names are all that a frame gave.
func reference(stream string) (events []event, names [][]string) {
	lines := strings.Split(strings.ReplaceAll(strings.ReplaceAll(stream, "\r\n", "\n"), "\r", "\n"), "\n")
	var data, given []string
	name := ""
	for _, line := range lines[:len(lines)-1] { // what follows the last line end is no line yet
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if name == "" {
				name = "?"
			}
			events = append(events, event{Event: name, Data: strings.Join(data, "\n"), HasData: data != nil})
			names = append(names, given)
			name, data, given = "", nil, nil
		case field == "event":
			name = value
			given = append(given, value)
		case field == "data":
			data = append(data, value)
		}
	}
	return events, names
}

// chunks is a reader that gives out data in pieces of the sizes next returns.
type chunks struct {
	data string
	next func() int
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.data == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.next())], c.data)
	c.data = c.data[n:]
	return n, nil
}

// run is what a relay does with a stream: it reads, takes frames, passes on what
// is whole and now and then discards it or spills.
func run(tb testing.TB, r io.Reader, spill, discard func() bool) (events []event, out string) {
	tb.Helper()
	var (
		f    messages.Frames
		sent strings.Builder
		mid  bool // the bytes in Whole end inside a frame
		err  error
	)
	for err == nil {
		_, err = f.Fill(r)
		for frame, ok := f.Next(); ok; frame, ok = f.Next() {
			mid = false
			events = append(events, event{string(frame.Event), string(frame.Data), frame.Data != nil, frame.Partial})
			if !bytes.HasSuffix(f.Whole(), frame.Raw) {
				tb.Fatalf("frame %q is not the end of Whole %q", frame.Raw, f.Whole())
			}
		}
		if f.Tail() > 0 && spill() {
			f.Spill()
			mid = true
			require.Zero(tb, f.Tail(), "tail after Spill")
		}
		if discard() {
			sent.Write(f.Whole())
			f.Discard()
			require.Empty(tb, f.Whole(), "Whole after Discard")
			require.Equal(tb, mid, f.MidFrame(), "MidFrame after %q", sent.String())
		}
	}
	require.ErrorIs(tb, err, io.EOF)
	sent.Write(f.Whole())
	f.Discard()
	tail := f.Tail()
	f.Spill() // the tail is the rest: what was read comes out
	sent.Write(f.Whole())
	require.Len(tb, f.Whole(), tail)
	return events, sent.String()
}

// check compares a run of Frames with the reference. The name of a spilled frame
// is what its head said, which may be nothing, or not the last word.
func check(tb testing.TB, stream string, got []event, out string) {
	tb.Helper()
	if out != stream {
		tb.Fatalf("bytes out differ\n got %q\nwant %q", out, stream)
	}
	want, names := reference(stream)
	require.Len(tb, got, len(want), "number of frames")
	for i, g := range got {
		w := want[i]
		switch {
		case g.Partial:
			if g.Event == "" || slices.Contains(names[i], g.Event) || strings.Contains(w.Data, g.Event) {
				w.Event = g.Event
			}
			w.Data, w.HasData, w.Partial = "", false, true
		case w.Event == "?":
			w.Event = g.Event
		}
		if g != w {
			tb.Fatalf("frame %d\n got %+v\nwant %+v", i, g, w)
		}
	}
}

func never() bool  { return false }
func always() bool { return true }

func TestFramesAtEveryBoundary(t *testing.T) {
	for name, stream := range golden(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := range len(stream) + 1 {
				for _, spill := range []func() bool{never, always} {
					halves := []int{max(at, 1), len(stream)}
					r := &chunks{stream, func() int { n := halves[0]; halves = halves[1:]; halves = append(halves, n); return n }}
					got, out := run(t, r, spill, always)
					check(t, stream, got, out)
				}
			}
		})
	}
}

func TestFramesByteByByte(t *testing.T) {
	for name, stream := range golden(t) {
		for _, spill := range []func() bool{never, always} {
			for _, discard := range []func() bool{never, always} {
				t.Run(name, func(t *testing.T) {
					got, out := run(t, &chunks{stream, func() int { return 1 }}, spill, discard)
					check(t, stream, got, out)
				})
			}
		}
	}
}

func TestFramesInRandomChunks(t *testing.T) {
	for name, stream := range golden(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whole, _ := run(t, strings.NewReader(stream), never, always)
			for seed := range uint64(500) {
				rnd := rand.New(rand.NewPCG(seed, 0))
				r := &chunks{stream, func() int { return 1 + rnd.IntN(1+rnd.IntN(300)) }}
				spill := func() bool { return seed%2 == 1 && rnd.IntN(3) == 0 }
				got, out := run(t, r, spill, func() bool { return rnd.IntN(2) == 0 })
				check(t, stream, got, out)
				if seed%2 == 0 {
					require.Equal(t, whole, got, "seed %d", seed)
				}
			}
		})
	}
}

// The requests beside the streams are what the streams answer.
func TestGoldenRequests(t *testing.T) {
	for name := range golden(t) {
		t.Run(name, func(t *testing.T) {
			body, err := os.ReadFile(streams + name + ".request.json")
			require.NoError(t, err)
			req, err := messages.Inspect(body, 0)
			require.NoError(t, err)
			assert.True(t, req.Stream)
			assert.Positive(t, req.MaxTokens)
			assert.Contains(t, string(req.Model), "claude-")
			if name == "text" {
				assert.Equal(t, "0f4d2c1e-6a58-4b7f-8c3d-51e2a9b70d64", messages.SessionID(nil, req.UserID))
			}
		})
	}
}

// meterOf runs a stream through Frames and Meter in chunks of size.
func meterOf(tb testing.TB, stream string, size int) *messages.Meter {
	tb.Helper()
	var (
		f   messages.Frames
		m   messages.Meter
		err error
	)
	for r := (&chunks{stream, func() int { return size }}); err == nil; {
		_, err = f.Fill(r)
		for frame, ok := f.Next(); ok; frame, ok = f.Next() {
			m.Frame(frame)
		}
		f.Discard()
	}
	require.True(tb, errors.Is(err, io.EOF), "got %v", err)
	return &m
}

func TestGoldenUsage(t *testing.T) {
	tests := map[string]struct {
		usage    messages.Usage
		stop     string
		deltas   int
		complete bool
	}{
		"text":              {messages.Usage{Input: 412, CacheRead: 18230, Output: 27}, "end_turn", 5, true},
		"tool_use":          {messages.Usage{Input: 3, CacheWrite: 1204, CacheRead: 21377, Output: 64}, "tool_use", 6, true},
		"parallel_tools":    {messages.Usage{Input: 9, CacheWrite: 310, CacheRead: 22581, Output: 131}, "tool_use", 7, true},
		"thinking":          {messages.Usage{Input: 58, Output: 212}, "end_turn", 4, true},
		"redacted_thinking": {messages.Usage{Input: 77, Output: 49}, "stop_sequence", 2, true},
		"refusal":           {messages.Usage{Input: 140, Output: 9}, "refusal", 1, true},
		"server_tool":       {messages.Usage{Input: 9417, Output: 233}, "end_turn", 4, true},
		"error_midstream":   {messages.Usage{Input: 25, CacheRead: 19000, Output: 1}, "", 1, false},
		"pings_comments":    {messages.Usage{Input: 11, Output: 16}, "max_tokens", 2, true},
		"crlf":              {messages.Usage{Input: 19, CacheRead: 640, Output: 14}, "end_turn", 2, true},
		"mixed_line_ends":   {messages.Usage{Input: 21, CacheWrite: 5, CacheRead: 6, Output: 8}, "end_turn", 2, true},
		"future_events":     {messages.Usage{Input: 30, Output: 5}, "new_reason", 1, true},
	}
	found := golden(t)
	require.Len(t, tests, len(found), "every stream has its row")
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 7, 4096} {
				m := meterOf(t, found[name], size)
				assert.Equal(t, want.usage, m.Usage())
				assert.Equal(t, want.stop, m.StopReason())
				assert.Equal(t, want.deltas, m.Deltas())
				assert.Equal(t, want.complete, m.Complete())
				assert.Equal(t, want.complete, m.Final())
				assert.True(t, m.Started())
				assert.False(t, m.Suspect())
				assert.Zero(t, m.Skipped())
			}
		})
	}
}
