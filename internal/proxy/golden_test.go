package proxy_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/proxy"
)

const goldenDir = "../../testdata/streams"

// golden are the recorded answers, by name.
func golden(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(goldenDir, "*.sse"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "no golden streams in %s", goldenDir)
	all := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		all[strings.TrimSuffix(filepath.Base(f), ".sse")] = string(b)
	}
	return all
}

// pieces is a body that comes in exactly these reads.
type pieces struct {
	left [][]byte
	end  error // nil: io.EOF
}

func inPieces(b []byte, cuts ...int) *pieces {
	p := &pieces{}
	from := 0
	for _, at := range append(cuts, len(b)) {
		if at > from {
			p.left = append(p.left, b[from:at])
			from = at
		}
	}
	return p
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		if p.end != nil {
			return 0, p.end
		}
		return 0, io.EOF
	}
	n := copy(b, p.left[0])
	if p.left[0] = p.left[0][n:]; len(p.left[0]) == 0 {
		p.left = p.left[1:]
	}
	return n, nil
}

// sink is a client without a network: it keeps what it gets.
type sink struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { return s.body.Write(p) }
func (s *sink) Flush()                      {}

// streamer relays streams without a network.
type streamer struct {
	handler *proxy.Handler
	next    io.Reader
}

func newStreamer(t testing.TB) *streamer {
	s := &streamer{}
	live := newLive(t, setup{upstreams: []upstream{memory(answering("text/event-stream", func() io.Reader { return s.next }))}}, zerolog.Nop())
	s.handler = proxy.NewHandler(live, zerolog.Nop())
	return s
}

// relay returns what a client gets of a stream, and whether its connection was broken.
func (s *streamer) relay(body io.Reader) (out string, aborted bool) {
	s.next = body
	w := &sink{header: http.Header{}}
	defer func() {
		out = w.body.String()
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { //nolint:errorlint // a panic value
				panic(p)
			}
			aborted = true
		}
	}()
	s.handler.ServeHTTP(w, aliceRequest(ask(opus, true)))
	return "", false
}

func testStreamsPassByteForByte(t *testing.T) {
	leakFree(t)
	s := newStreamer(t)
	for name, stream := range golden(t) {
		t.Run(name, func(t *testing.T) {
			for at := range len(stream) + 1 {
				got, aborted := s.relay(inPieces([]byte(stream), at))
				require.False(t, aborted, "cut in two at %d", at)
				require.Equal(t, stream, got, "cut in two at %d", at)
			}
			var every []int
			for at := range len(stream) {
				every = append(every, at)
			}
			got, _ := s.relay(inPieces([]byte(stream), every...))
			require.Equal(t, stream, got, "byte by byte")
			for range 200 {
				var cuts []int
				for at := range len(stream) {
					if rand.IntN(40) == 0 {
						cuts = append(cuts, at)
					}
				}
				got, _ := s.relay(inPieces([]byte(stream), cuts...))
				require.Equal(t, stream, got, "cut at %v", cuts)
			}
		})
	}
}

// What follows the end is dropped, wherever it is cut in two: an LF in it is not the
// second half of the last line's end.
func TestWhatFollowsTheEndIsDropped(t *testing.T) {
	leakFree(t)
	s := newStreamer(t)
	for end, rest := range map[string]string{"\r\r": ":\n\ndata: after\n\n", "\r\n\r\n": "\n:\n\n", "\n\n": "\n\n\n"} {
		whole := startFrame + "event: message_stop" + end[:len(end)/2] + "data: {}" + end
		stream := whole + rest
		for at := range len(stream) + 1 {
			got, aborted := s.relay(inPieces([]byte(stream), at))
			require.False(t, aborted)
			require.Equal(t, whole, got, "cut in two at %d", at)
		}
	}
}

// The same over sockets, where each byte is a chunk of its own.
func testStreamsPassByteForByteOverTheWire(t *testing.T) {
	leakFree(t)
	for name, stream := range golden(t) {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", func(c net.Conn, _ int) bool {
				_, _ = io.WriteString(c, strings.Replace(sseHead, "\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", 1))
				for i := range len(stream) {
					_, _ = io.WriteString(c, "1\r\n"+stream[i:i+1]+"\r\n")
				}
				_, _ = io.WriteString(c, "0\r\n\r\n")
				return true
			})
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			request, err := os.ReadFile(filepath.Join(goldenDir, name+".request.json"))
			require.NoError(t, err)
			got := r.do(call{body: string(request)})
			require.NoError(t, got.err)
			assert.Equal(t, stream, got.body)
			assert.Equal(t, string(request), (<-up.requests).body)
		})
	}
}

// The usage of a stream is what its last message_delta says, whatever the number
// of deltas before.
func TestUsageOfGoldenStreams(t *testing.T) {
	leakFree(t)
	for name, stream := range golden(t) {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", say(sseHead+stream))
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			rec := r.do(call{body: ask(opus, true)}).record
			want, complete := lastUsage(t, stream)
			for field, in := range map[string]string{
				"input_tokens": "input_tokens", "cache_write_tokens": "cache_creation_input_tokens", "cache_read_tokens": "cache_read_input_tokens",
			} {
				assert.InDelta(t, want[in], rec[field], 0, field)
			}
			assert.Equal(t, !complete, rec["partial"])
			if complete {
				assert.InDelta(t, want["output_tokens"], rec["output_tokens"], 0, "output_tokens")
			}
		})
	}
}

// lastUsage adds up nothing: a later number replaces an earlier one. It reads the
// stream in the simplest way there is.
func lastUsage(t *testing.T, stream string) (usage map[string]float64, complete bool) {
	t.Helper()
	usage = map[string]float64{}
	lines := strings.FieldsFunc(stream, func(r rune) bool { return r == '\n' || r == '\r' })
	for _, line := range lines {
		var e struct {
			Type    string
			Usage   map[string]any
			Message struct{ Usage map[string]any }
		}
		data, ok := strings.CutPrefix(line, "data:")
		if !ok || json.Unmarshal([]byte(data), &e) != nil {
			continue
		}
		complete = complete || e.Type == "message_stop"
		if e.Type != "message_start" && e.Type != "message_delta" {
			continue
		}
		for _, u := range []map[string]any{e.Message.Usage, e.Usage} {
			for k, v := range u {
				if n, ok := v.(float64); ok {
					usage[k] = n
				}
			}
		}
	}
	return usage, complete
}

// FuzzStream checks the laws of a relayed stream, however it is cut into reads:
// the client gets the same bytes; they are the provider's from the beginning,
// with at most one error event of the relay behind; and a complete stream passes
// whole.
func FuzzStream(f *testing.F) {
	for _, stream := range golden(f) {
		f.Add([]byte(stream), uint64(1))
		f.Add([]byte(stream[:len(stream)*2/3]), uint64(2))
		f.Add([]byte(stream+"data: after\n\n"), uint64(3))
	}
	f.Add([]byte(startFrame+"data: \xff\xfe\n\n"+stopFrame), uint64(4))
	f.Add([]byte("event:message_start\rdata:{}\r\revent:message_stop\rdata:{}\r\r\n\n"), uint64(5))
	f.Add([]byte(startFrame+"data: "+strings.Repeat("x", 70<<10)), uint64(6))
	s := newStreamer(f)
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		// Without a first frame there is nothing to relay, and the walk takes time.
		stream = append([]byte(startFrame), stream...)
		whole, wholeAborted := s.relay(inPieces(stream))
		rng := rand.New(rand.NewPCG(seed, 0))
		var cuts []int
		for at := range len(stream) {
			if rng.IntN(1+int(seed%50)) == 0 {
				cuts = append(cuts, at)
			}
		}
		got, aborted := s.relay(inPieces(stream, cuts...))
		require.Equal(t, wholeAborted, aborted, "cut at %v", cuts)
		theirs := ownWords.ReplaceAllString(got, "$1")
		require.True(t, bytes.HasPrefix(stream, []byte(theirs)), "got %q of %q", theirs, stream)
		if aborted {
			return
		}
		require.Equal(t, ownWords.ReplaceAllString(whole, "$1"), theirs, "cut at %v", cuts)
		if theirs == got {
			require.Regexp(t, "message_stop|error", theirs[len(startFrame):], "a stream without an end looks complete")
		}
	})
}

// ownWords is the error event that the relay ends a broken stream with, and the LF
// that it puts before it where the stream's last byte is a CR.
var ownWords = regexp.MustCompile(`(?:(\r)\n)?event: error\ndata: {"type":"error","error":{"type":"api_error","message":"provider a ended the stream early"},"request_id":"req_relay_[0-9a-f]{24}"}\n\n$`)
