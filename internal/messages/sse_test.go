package messages_test

import (
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/messages"
)

// framesOf returns the frames of a stream that comes in one piece.
func framesOf(tb testing.TB, stream string) []event {
	tb.Helper()
	got, out := run(tb, strings.NewReader(stream), never, always)
	require.Equal(tb, stream, out)
	return got
}

func TestFrameFields(t *testing.T) {
	const typed = `{"type":"ping"}`
	tests := []struct {
		name, frame string
		event, data string
	}{
		{"usual", "event: ping\ndata: {}\n\n", "ping", "{}"},
		{"no space", "event:ping\ndata:{}\n\n", "ping", "{}"},
		{"two spaces", "event:  ping\ndata:  {}\n\n", " ping", " {}"},
		{"data first", "data: {}\nevent: ping\n\n", "ping", "{}"},
		{"last event counts", "event: a\nevent: b\ndata: {}\n\n", "b", "{}"},
		{"no colon", "event\ndata\n\n", "", ""},
		{"other fields", "id: 1\nretry: 5\nevents: x\ndatas: y\neven: z\n dat: q\nevent: ping\n\n", "ping", ""},
		{"comment", ": keep-alive\n\n", "", ""},
		{"lines of data", "data: a\ndata\ndata:\ndata: b\n\n", "", "a\n\n\nb"},
		{"lines of data, CRLF", "data: a\r\ndata: b\r\n\r\n", "", "a\nb"},
		{"lines of data, CR", "data: a\rdata: b\r\r", "", "a\nb"},
		{"named by its data", "data: " + typed + "\n\n", "ping", typed},
		{"event line beats data", "event: other\ndata: " + typed + "\n\n", "other", typed},
		{"empty event line", "event:\ndata: " + typed + "\n\n", "ping", typed},
		{"type second, spaced", "data: { \"index\" : 0 , \"type\" : \"x_y\" }\n\n", "x_y", `{ "index" : 0 , "type" : "x_y" }`},
		{"type only deeper", `data: {"delta":{"type":"text_delta"}}` + "\n\n", "", `{"delta":{"type":"text_delta"}}`},
		{"type out of reach", `data: {"text":"` + strings.Repeat("x", 60) + `","type":"ping"}` + "\n\n", "", `{"text":"` + strings.Repeat("x", 60) + `","type":"ping"}`},
		{"type no string", "data: {\"type\":7}\n\n", "", `{"type":7}`},
		{"not JSON", "data: [DONE]\n\n", "", "[DONE]"},
		{"byte order mark", "\xef\xbb\xbfevent: ping\ndata: " + typed + "\n\n", "ping", typed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := framesOf(t, tt.frame)
			require.Len(t, got, 1)
			assert.Equal(t, tt.event, got[0].Event)
			assert.Equal(t, tt.data, got[0].Data)
		})
	}
}

func TestBlankLinesAreFrames(t *testing.T) {
	got := framesOf(t, "\n\r\r\nevent: ping\n\n")
	assert.Equal(t, []event{{}, {}, {}, {Event: "ping"}}, got)
}

// Data of one line is located, not copied; that of several is joined in a buffer
// which earlier frames of the same read do not share.
func TestFrameDataAliasesRaw(t *testing.T) {
	var f messages.Frames
	_, err := f.Fill(strings.NewReader("data: one\n\ndata: a\ndata: b\n\ndata: c\ndata: d\n\n"))
	require.NoError(t, err)
	one, _ := f.Next()
	two, _ := f.Next()
	three, ok := f.Next()
	require.True(t, ok)
	one.Raw[6] = 'O'
	assert.Equal(t, "One", string(one.Data))
	assert.Equal(t, "a\nb", string(two.Data))
	assert.Equal(t, "c\nd", string(three.Data))
}

func TestFillReadsOnce(t *testing.T) {
	var f messages.Frames
	reads := 0
	r := readerFunc(func(p []byte) (int, error) {
		reads++
		assert.LessOrEqual(t, len(p), 4096, "room offered")
		assert.GreaterOrEqual(t, len(p), 2048, "room offered")
		return copy(p, "event: ping\ndata: {}\n"), io.ErrUnexpectedEOF
	})
	for i := range 1000 {
		n, err := f.Fill(r)
		require.Equal(t, 21, n)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.Equal(t, i+1, reads)
		_, ok := f.Next()
		require.False(t, ok)
		require.Equal(t, 21*(i+1), f.Tail())
	}
}

type readerFunc func([]byte) (int, error)

func (r readerFunc) Read(p []byte) (int, error) { return r(p) }

// An LF that comes after the frame its CR closed is no part of the next frame and
// no tail: a stream that ends there ends between frames.
func TestLateLF(t *testing.T) {
	var f messages.Frames
	fill := func(s string) (frames int) {
		_, err := f.Fill(strings.NewReader(s))
		require.NoError(t, err)
		for _, ok := f.Next(); ok; _, ok = f.Next() {
			frames++
		}
		return frames
	}
	assert.Equal(t, 1, fill("data: a\r\n\r"), "a CR ends the frame at once")
	assert.Zero(t, f.Tail())
	assert.Equal(t, "data: a\r\n\r", string(f.Whole()))
	f.Discard()
	assert.Zero(t, fill("\n"))
	assert.Zero(t, f.Tail())
	assert.Equal(t, "\n", string(f.Whole()))
	f.Discard()
	assert.False(t, f.MidFrame())
	assert.Equal(t, 1, fill("\n"), "but one more is a blank line")
}

func TestSpill(t *testing.T) {
	var f messages.Frames
	fill := func(s string) {
		_, err := f.Fill(strings.NewReader(s))
		require.NoError(t, err)
	}
	fill("event: ping\ndata: {}\n\nevent: content_block_delta\ndata: {\"type\"")
	_, ok := f.Next()
	require.True(t, ok)
	_, ok = f.Next()
	require.False(t, ok)
	assert.Equal(t, 40, f.Tail())
	assert.False(t, f.MidFrame())

	f.Spill()
	assert.Zero(t, f.Tail())
	assert.Equal(t, "event: ping\ndata: {}\n\nevent: content_block_delta\ndata: {\"type\"", string(f.Whole()))
	assert.False(t, f.MidFrame(), "nothing was discarded yet")
	f.Discard()
	assert.True(t, f.MidFrame())
	f.Discard()
	assert.True(t, f.MidFrame(), "nothing new was discarded")

	fill(":1}")
	_, ok = f.Next()
	require.False(t, ok)
	f.Spill()
	f.Discard()
	assert.True(t, f.MidFrame())

	fill("\n\nevent: message_stop\n\n")
	frame, ok := f.Next()
	require.True(t, ok)
	assert.True(t, frame.Partial)
	assert.Equal(t, "content_block_delta", string(frame.Event), "the head told the name")
	assert.Nil(t, frame.Data)
	assert.Equal(t, "\n\n", string(frame.Raw))
	frame, ok = f.Next()
	require.True(t, ok)
	assert.False(t, frame.Partial)
	assert.Equal(t, "message_stop", string(frame.Event))
	assert.True(t, f.MidFrame(), "the end was not discarded yet")
	f.Discard()
	assert.False(t, f.MidFrame())
}

// Spill leaves alone what Next has not seen: there may be whole frames in it.
func TestSpillBeforeNext(t *testing.T) {
	var f messages.Frames
	_, err := f.Fill(strings.NewReader("event: message_stop\n\n"))
	require.NoError(t, err)
	f.Spill()
	assert.Empty(t, f.Whole())
	frame, ok := f.Next()
	require.True(t, ok)
	assert.Equal(t, "message_stop", string(frame.Event))
	assert.False(t, frame.Partial)
}

func TestSpilledName(t *testing.T) {
	for _, tt := range []struct{ name, head, rest, want string }{
		{"line complete", "event: ping\nda", "ta: {}\n\n", "ping"},
		{"line cut", "event: pi", "ng\n\n", ""},
		{"from the data", `data: {"type":"ping","x":"`, "\"}\n\n", "ping"},
		{"data cut too early", `data: {"type":"pi`, "ng\"}\n\n", ""},
		{"rest looks like a name", "data: {\"a\":\"", "\nevent: ping\n\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f messages.Frames
			_, err := f.Fill(strings.NewReader(tt.head))
			require.NoError(t, err)
			_, ok := f.Next()
			require.False(t, ok)
			f.Spill()
			_, err = f.Fill(strings.NewReader(tt.rest))
			require.NoError(t, err)
			frame, ok := f.Next()
			require.True(t, ok)
			assert.Equal(t, tt.want, string(frame.Event))
		})
	}
}

func TestLargeFrame(t *testing.T) {
	data := `{"type":"content_block_delta","delta":{"type":"text_delta","text":"` + strings.Repeat("Ünd so weiter. ", 20_000) + `"}}`
	stream := "event: ping\n\nevent: content_block_delta\ndata: " + data + "\n\nevent: message_stop\n\n"
	for _, stream := range []string{stream, strings.ReplaceAll(stream, "\n", "\r\n")} {
		for _, size := range []int{1, 1000, 1 << 20} {
			got, out := run(t, &chunks{stream, func() int { return size }}, never, always)
			check(t, stream, got, out)
			require.Len(t, got[1].Data, len(data))
		}
	}
}

// The most tedious frames cost work in proportion to their bytes.
func TestFramesAreLinear(t *testing.T) {
	for _, tt := range []struct {
		name, unit, end string
		chunk           int
	}{
		{"one line byte by byte", "x", "\n\n", 1},
		{"one line", "x", "\n\n", 4096},
		{"lines of data", "data:\n", "\n", 4096},
		{"lines in CR", "a\r", "\r", 4096},
		{"lines of data in CR", "data\r", "\r", 4096},
		{"blank lines", "\n", "", 4096},
		{"blank CRs", "\r", "", 4096},
	} {
		t.Run(tt.name, func(t *testing.T) {
			linear(t, func(size int) func() {
				stream := strings.Repeat(tt.unit, size/len(tt.unit)) + tt.end
				return func() {
					var f messages.Frames
					m := meter(&f, &chunks{stream, func() int { return tt.chunk }})
					require.Zero(t, f.Tail())
					require.Zero(t, m.Deltas())
				}
			})
		})
	}
}

// linear fails where sixteen times the input takes far more than sixteen times
// as long; quadratic work takes 256 times. Each time is the best of several, for
// the machine may be busy.
func linear(t *testing.T, prepare func(size int) func()) {
	t.Helper()
	took := func(work func(), than time.Duration) time.Duration {
		start := time.Now()
		work()
		return min(than, time.Since(start))
	}
	small, large := prepare(64<<10), prepare(1<<20)
	one, many := time.Hour, time.Hour
	for range 5 {
		one = took(small, one)
		many = took(large, many)
		if many < 80*one {
			return
		}
	}
	t.Errorf("64 KiB took %v, 1 MiB %v: more than 80 times as long", one, many)
}

func TestFrameTooLarge(t *testing.T) {
	for _, tt := range []struct {
		name  string
		size  int
		ends  bool
		spill func() bool
		fails bool
	}{
		{"largest", messages.MaxFrame, true, never, false},
		{"largest, spilled", messages.MaxFrame, true, always, false},
		{"one more byte", messages.MaxFrame + 1, true, never, true},
		{"one more byte, spilled", messages.MaxFrame + 1, true, always, true},
		{"no end", messages.MaxFrame * 2, false, never, true},
		{"no end, spilled", messages.MaxFrame * 2, false, always, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stream := "data: " + strings.Repeat("x", tt.size-8)
			if tt.ends {
				stream += "\n\nevent: ping\n\n"
			}
			var (
				f      messages.Frames
				frames int
				err    error
			)
			for r := strings.NewReader(stream); err == nil; {
				_, err = f.Fill(r)
				for _, ok := f.Next(); ok; _, ok = f.Next() {
					frames++
				}
				if f.Tail() > 64<<10 && tt.spill() {
					f.Spill()
				}
				f.Discard()
			}
			if !tt.fails {
				require.ErrorIs(t, err, io.EOF)
				assert.Equal(t, 2, frames)
				return
			}
			require.ErrorIs(t, err, messages.ErrFrameTooLarge)
			assert.Zero(t, frames, "frames returned")
			n, err := f.Fill(strings.NewReader("x"))
			assert.Zero(t, n)
			require.ErrorIs(t, err, messages.ErrFrameTooLarge, "and it stays so")
		})
	}
}

func TestReset(t *testing.T) {
	var f messages.Frames
	_, err := f.Fill(strings.NewReader("event: ping\n\ndata: a\r"))
	require.NoError(t, err)
	_, ok := f.Next()
	require.True(t, ok)
	_, ok = f.Next()
	require.False(t, ok)
	f.Spill()
	f.Discard()
	require.True(t, f.MidFrame())
	f.Reset()
	assert.False(t, f.MidFrame())
	assert.Empty(t, f.Whole())
	assert.Zero(t, f.Tail())
	_, err = f.Fill(strings.NewReader("\nevent: ping\n\n"))
	require.NoError(t, err)
	frame, ok := f.Next()
	require.True(t, ok)
	assert.Equal(t, "\n", string(frame.Raw), "nothing of the stream before is remembered")
	assert.False(t, frame.Partial)
}

// Neither a pooled Frames nor a stream that goes on holds on to what one large
// frame needed.
func TestLargeBufferIsLetGo(t *testing.T) {
	large := strings.Repeat("x", 1<<20) + "\n\n"
	var f messages.Frames
	grow := func() {
		for r := strings.NewReader(large); r.Len() > 0; {
			_, err := f.Fill(r)
			require.NoError(t, err)
			_, _ = f.Next()
		}
	}
	grow()
	f.Discard()
	assert.GreaterOrEqual(t, bytesToFill(&f), uint64(4096), "the large buffer was kept after Discard")
	grow()
	f.Reset()
	assert.GreaterOrEqual(t, bytesToFill(&f), uint64(4096), "the large buffer was kept after Reset")
	f.Reset()
	assert.Less(t, bytesToFill(&f), uint64(1024), "the small buffer was not kept after Reset")
}

func TestJoinedDataIsReused(t *testing.T) {
	var f messages.Frames
	r := strings.NewReader("")
	stream := "data: {\"type\":\ndata: \"ping\"," + strings.Repeat(" ", 1000) + "\"x\":1}\n\n"
	got := allocated(func() {
		for range 1000 {
			r.Reset(stream)
			_, err := f.Fill(r)
			require.NoError(t, err)
			frame, ok := f.Next()
			require.True(t, ok)
			require.Equal(t, messages.EventPing, string(frame.Event))
			f.Discard()
		}
	})
	assert.Less(t, got, uint64(100*len(stream)), "bytes allocated for 1000 frames")
}

// bytesToFill is what the next Fill allocates.
func bytesToFill(f *messages.Frames) uint64 {
	r := strings.NewReader("x")
	return allocated(func() { _, _ = f.Fill(r) })
}

func allocated(work func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	work()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
