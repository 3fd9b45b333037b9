package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/simulator"
)

// A provider that accepts and never answers is given up after its time, asked once
// more where it is alone, and that is all. A stream is over before the 300 s at which
// clients give up.
func testProvidersThatNeverAnswer(t *testing.T) {
	for name, tt := range map[string]struct {
		stream bool
		each   time.Duration
	}{"stream": {true, 120 * time.Second}, "JSON": {false, 600 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.actor(t, "a", silent)
				r := net.cast(t, router.Config{}, a)
				start := time.Now()
				got := r.do(call{body: ask(opus, tt.stream)})
				requireError(t, got, 504, "timeout_error")
				assert.Equal(t, "timed_out", got.record["verdict"])
				assert.Len(t, a.got(), 2)
				took := time.Since(start) - 2*tt.each
				assert.True(t, took >= 250*time.Millisecond && took <= 500*time.Millisecond, "two waits and %v", took)
			})
		})
		t.Run(name+", and another provider", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", silent), net.actor(t, "b", servesSecond)
				r := net.cast(t, router.Config{}, a, b)
				start := time.Now()
				assert.Equal(t, 200, r.do(call{body: ask(opus, tt.stream)}).status)
				assert.Equal(t, tt.each, time.Since(start))
				assert.Len(t, a.got(), 1)
			})
		})
	}
}

// keysOut asks every minute for so many hours and checks that the client is told the
// same each time, and when the provider was asked.
func keysOut(t *testing.T, f simulator.Fault, status int, kind string, hours int, gaps ...time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, unlimited, f)
		for range hours * 60 {
			w := b.ask(ask(opus, true))
			require.Equal(t, status, w.Code)
			require.Contains(t, w.Body.String(), `"type":"`+kind+`"`)
			require.Empty(t, w.Header().Get("Retry-After"))
			require.Equal(t, "false", w.Header().Get("X-Should-Retry"))
			time.Sleep(time.Minute)
		}
		seen := b.Seen()
		require.Len(t, seen, 1+len(gaps), "requests at the provider")
		for i, want := range gaps {
			assert.Equal(t, want, seen[i+1].Time.Sub(seen[i].Time), "wait before probe %d", i+1)
		}
		assert.Equal(t, 1, strings.Count(b.log.String(), "key is out"), "alerts")

		require.NoError(t, b.SetFaults(nil))
		time.Sleep(time.Hour)
		require.Equal(t, 200, b.ask(ask(opus, true)).Code)
		require.Equal(t, 200, b.ask(ask(opus, true)).Code, "it is forgiven at once")
	})
}

// A key that its provider refuses is tried again by one live request, after five
// minutes, then after twice as long each time.
func testRefusedKeys(t *testing.T) {
	const m = time.Minute
	keysOut(t, status(401), 502, "api_error", 4, 5*m, 10*m, 20*m, 40*m, 60*m, 60*m)
}

// An account with nothing left to spend is looked at once an hour.
func testSpentKeys(t *testing.T) {
	for name, f := range map[string]simulator.Fault{
		"402":              status(402),
		"429, monthly cap": coded(429, "enforced_spend_limit_reached"),
		"400, no credit":   worded(400, "Your credit balance is too low to access the API."),
	} {
		t.Run(name, func(t *testing.T) {
			keysOut(t, f, 429, "billing_error", 4, time.Hour, time.Hour, time.Hour)
		})
	}
}

// While one key rests, another one serves, and nobody waits.
func testLimitedKeysAreLeftAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 2, unlimited, key(1, limit429("30")))
		start := time.Now()
		for range 3 {
			require.Equal(t, 200, b.ask(ask(opus, true)).Code)
		}
		assert.Zero(t, time.Since(start))
		var keys []string
		for _, rec := range b.Seen() {
			keys = append(keys, rec.Key)
		}
		assert.Equal(t, []string{"key-1", "key-2", "key-2", "key-2"}, keys)
	})
}

// What only the request is to blame for passes byte for byte, once.
func testClientErrors(t *testing.T) {
	theirs := func(tr trouble) bool {
		return tr.next == nowhere && tr.kind == "" && (tr.status == 400 || tr.status == 404 || tr.status == 413 || tr.status == 422)
	}
	eachTrouble(t, theirs, func(t *testing.T, tr trouble, stream bool) {
		a, b := tr.start(t, 2, ""), newSim(t, "b", 1)
		r := relayOf(t, a, b)
		got := r.do(call{body: ask(opus, stream)})
		require.Len(t, a.Seen(), 1)
		assert.Empty(t, b.Seen())
		tr.requireShown(t, got, a.Seen()[0].RequestID)
	})
}

// Wherever a connection breaks, the client has whole frames and then one error event.
func testCutsAtEveryByte(t *testing.T) {
	leakFree(t)
	ends := func(upTo string) string { return upTo[:strings.LastIndex(upTo, "\n\n")+2] }
	t.Run("in memory", func(t *testing.T) {
		s := newStreamer(t)
		for at := len(startFrame); at < len(wholeStream); at++ {
			body := inPieces([]byte(wholeStream[:at]))
			body.end = errCut
			got, aborted := s.relay(body)
			require.False(t, aborted, "cut at %d", at)
			require.Regexp(t, ownWords, got)
			require.Equal(t, ends(wholeStream[:at]), ownWords.ReplaceAllString(got, ""), "cut at %d", at)
		}
	})
	for name, rst := range map[string]bool{"reset": true, "closed": false} {
		t.Run("over the wire, "+name, func(t *testing.T) {
			proceed := make(chan struct{})
			at := len(startFrame)
			up := newRaw(t, "a", func(c net.Conn, _ int) bool {
				_, _ = io.WriteString(c, sseHead+wholeStream[:at])
				<-proceed // until the client has what there is: a reset takes back what is not read
				if rst {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
				return false
			})
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			for ; at < len(wholeStream); at += 37 {
				want := ends(wholeStream[:at])
				resp := r.open(t.Context(), call{body: ask(opus, true)})
				read(t, resp, want)
				proceed <- struct{}{}
				rest := readReply(resp)
				require.NoError(t, rest.err, "cut at %d", at)
				require.Regexp(t, ownWords, rest.body)
				require.Empty(t, ownWords.ReplaceAllString(rest.body, ""), "cut at %d", at)
				require.Equal(t, "broken", r.log.next(t)["outcome"])
			}
		})
	}
}

// An answer that lacks nothing but its end has told its usage.
func testUsageOfACutEnd(t *testing.T) {
	leakFree(t)
	up := newRaw(t, "a", say(sseHead+startFrame+deltaFrame+usageFrame))
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	got := r.do(call{body: ask(opus, true)})
	requireCut(t, got, startFrame+deltaFrame+usageFrame, "api_error")
	assert.InDelta(t, 11, got.record["input_tokens"], 0)
	assert.InDelta(t, 7, got.record["output_tokens"], 0)
}

// Each byte of a provider, also a ping's or a comment's, is passed on as it comes and
// gives the stream its idle time anew. To Anthropic's the relay adds no ping of its own.
func testStreamsThatStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quiet, idle = 329 * time.Second, 330 * time.Second
		parts := []string{pingFrame, ": nothing\n\n", pingFrame, deltaFrame, pingFrame}
		play := silent
		for i := len(parts) - 1; i >= 0; i-- {
			play = after(quiet, writes(play, parts[i]))
		}
		net := newPipes()
		a, b := net.actor(t, "a", sends(play, startFrame)), net.actor(t, "b", well)
		a.Origin = provider.OriginAnthropic
		r := net.cast(t, router.Config{}, a, b)
		resp := r.open(t.Context(), call{body: ask(opus, true)})
		start := time.Now()
		read(t, resp, startFrame)
		for i, part := range parts {
			read(t, resp, part)
			assert.Equal(t, time.Duration(i+1)*quiet, time.Since(start), "part %d", i+1)
		}
		rest, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Equal(t, time.Duration(len(parts))*quiet+idle, time.Since(start), "the end")
		assert.Regexp(t, "^event: error\n.*provider a fell silent", string(rest))
		rec := r.log.next(t)
		assert.Equal(t, "timed_out", rec["verdict"])
		assert.Equal(t, "broken", rec["outcome"])
		assert.Empty(t, b.got())
	})
}

// oddStream says all that the format of events allows.
var oddStream = "\ufeff" + "id: 1\rretry:5\r\nevent:message_start\ndata:{\"type\":\"message_start\",\ndata:  \"message\":{\"type\":\"message\",\r\ndata: \"usage\":{\"input_tokens\":11,\"output_tokens\":1}}}\r\n\r\n" +
	": a comment\n:\r\r" +
	"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0}\n\n" +
	"nothing known: x\ndata\nid\n\n" +
	"data: {\"type\":\"content_block_delta\",\"text\":\"\u00e9 \u6f22 \U0001f600\"}\revent: content_block_delta\r\r" +
	"event: message_delta\r\ndata: {\"type\":\"message_delta\",\r\ndata: \"usage\":{\"output_tokens\":7}}\r\n\n" +
	"event: message_stop\ndata: {}\n\n"

// However an odd stream comes, it is the same stream with the same usage.
func testOddStreamsPassByteForByte(t *testing.T) {
	leakFree(t)
	s, log := &streamer{}, newLogs()
	live := newLive(t, setup{upstreams: []upstream{memory(answering("text/event-stream", func() io.Reader { return s.next }))}}, log.logger())
	s.handler = proxy.NewHandler(live, log.logger())
	for first := range len(oddStream) {
		for _, second := range []int{first, min(first+1, len(oddStream)), (first + len(oddStream)) / 2} {
			got, aborted := s.relay(inPieces([]byte(oddStream), first, second))
			require.False(t, aborted)
			require.Equal(t, oddStream, got, "cut at %d and %d", first, second)
			rec := log.next(t)
			require.Equal(t, []any{"served", 11.0, 7.0}, []any{rec["outcome"], rec["input_tokens"], rec["output_tokens"]}, "cut at %d and %d", first, second)
		}
	}
}

// What a stream takes in memory does not grow with its frames.
func testLongFramesTakeNoMemory(t *testing.T) {
	leakFree(t)
	const mostly = 6 << 20
	long := []byte("event: content_block_delta\ndata: {\"pad\":\"" + strings.Repeat("x", 7<<20) + "\"}\n\n")
	proceed := make(chan struct{})
	up := newRaw(t, "a", func(c net.Conn, _ int) bool {
		_, _ = io.WriteString(c, sseHead+startFrame)
		for range 3 {
			_, _ = c.Write(long[:mostly])
			<-proceed
			_, _ = c.Write(long[mostly:])
		}
		_, _ = io.WriteString(c, stopFrame)
		return false
	})
	r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := live()
	resp := r.open(t.Context(), call{body: ask(opus, true)})
	read(t, resp, startFrame)
	const held = 200 << 10 // more than the relay and the sockets hold back
	for range 3 {
		_, err := io.CopyN(io.Discard, resp.Body, mostly-held)
		require.NoError(t, err)
		assert.Less(t, live(), before+1<<20, "bytes in use in the middle of a frame")
		proceed <- struct{}{}
		_, err = io.CopyN(io.Discard, resp.Body, int64(len(long)-mostly+held))
		require.NoError(t, err)
	}
	read(t, resp, stopFrame)
	assert.Equal(t, "served", r.log.next(t)["outcome"])
}

// The last number that a stream tells of its output counts, as far as it is one.
func testOddUsage(t *testing.T) {
	leakFree(t)
	for name, tt := range map[string]struct {
		said []string
		want float64
	}{
		"missing":       {[]string{`{}`}, 1},
		"none at all":   {nil, 1},
		"null":          {[]string{`{"output_tokens":null}`}, 1},
		"words":         {[]string{`{"output_tokens":"many"}`}, 1},
		"growing":       {[]string{`{"output_tokens":5}`, `{"output_tokens":9}`}, 9},
		"repeated":      {[]string{`{"output_tokens":9}`, `{"output_tokens":9}`}, 9},
		"decreasing":    {[]string{`{"output_tokens":9}`, `{"output_tokens":4}`}, 4},
		"negative":      {[]string{`{"output_tokens":-9}`}, 0},
		"fraction":      {[]string{`{"output_tokens":7.9}`}, 7},
		"beyond 2^63":   {[]string{`{"output_tokens":9223372036854775808}`}, 1 << 53},
		"beyond floats": {[]string{`{"output_tokens":1e999}`}, 1 << 53},
	} {
		t.Run(name, func(t *testing.T) {
			wire := sseHead + startFrame
			for _, u := range tt.said {
				wire += frameOf("message_delta", `{"type":"message_delta","delta":{},"usage":`+u+`}`)
			}
			up := newRaw(t, "a", say(wire+stopFrame))
			up.limits = keypool.KeyConfig{OTPMLimit: 1_000_000}
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			for range 2 {
				rec := r.do(call{body: ask(opus, true)}).record
				assert.Equal(t, "served", rec["outcome"])
				assert.InDelta(t, tt.want, rec["output_tokens"], 0)
				assert.InDelta(t, 11, rec["input_tokens"], 0)
			}
			for _, c := range r.live.Router.Upstreams()[0].Pool.GetStats().Classes {
				assert.LessOrEqual(t, c.Remaining.OTPM, 1_000_000, "nothing is paid back that was not taken")
			}
		})
	}
}

// What comes behind an answer belongs to nobody.
func testBytesBehindAnAnswer(t *testing.T) {
	leakFree(t)
	forged := strings.Replace(message, "3", "666", 1)
	for name, behind := range map[string]string{
		"100":            "HTTP/1.1 100 Continue\r\n\r\n",
		"103":            "HTTP/1.1 103 Early Hints\r\n\r\n",
		"another answer": lengthy("200 OK", jsonType, forged),
		"one byte":       "x",
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", sayAndKeep(lengthy("200 OK", jsonType, message)+behind))
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			for range 3 {
				got := r.do(call{body: ask(opus, false)})
				assert.Equal(t, message, got.body)
			}
			assert.Equal(t, 3, up.calls())
		})
	}
}

// Heads and error bodies that do not end are not read to their end.
func testEndlessAnswers(t *testing.T) {
	leakFree(t)
	block := strings.Repeat("x", 1<<20)
	for name, tt := range map[string]struct {
		begin, line string
		status      int
		kind        string
		asked       int
	}{
		"a header of 50 MiB":  {"HTTP/1.1 200 OK\r\nX-Pad: ", block, 502, "api_error", 2},
		"50 MiB of headers":   {"HTTP/1.1 200 OK\r\n", "X-Pad: x\r\n" + strings.Repeat("X-Pad: x\r\n", 100_000), 502, "api_error", 2},
		"a 400 of 50 MiB":     {"HTTP/1.1 400 Bad\r\n" + jsonType + "\r\n{\"x\":\"", block, 400, "invalid_request_error", 1},
		"a 500 of 50 MiB":     {"HTTP/1.1 500 Oh\r\n" + jsonType + "\r\n{\"x\":\"", block, 500, "api_error", 2},
		"a page that is long": {"HTTP/1.1 403 No\r\nContent-Type: text/html\r\n\r\n<html>", block, 403, "permission_error", 1},
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", func(c net.Conn, n int) bool {
				if n > tt.asked {
					return say(lengthy("200 OK", jsonType, message))(c, n)
				}
				_, err := io.WriteString(c, tt.begin)
				for i := 0; i < 50 && err == nil; i++ {
					_, err = io.WriteString(c, tt.line)
				}
				assert.Error(t, err, "somebody has read all of it")
				return false
			})
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			got := r.do(call{body: ask(opus, true)})
			requireError(t, got, tt.status, tt.kind)
			assert.Less(t, len(got.body), 1000)
			requireServed(t, r.do(call{body: ask(opus, false)}), false)
			assert.Equal(t, tt.asked+1, up.calls())
		})
	}
}

// An answer that comes before the request was read counts if it arrives at all: the
// reset behind it may overtake it. Neither is taken for the next request's answer.
func testEarlyAnswersAndAReset(t *testing.T) {
	leakFree(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(c)
			req, err := http.ReadRequest(in)
			if err == nil && req.ContentLength > 1<<20 {
				_, _ = io.WriteString(c, lengthy("413 Too Large", jsonType, mistake))
				_ = c.(*net.TCPConn).SetLinger(0)
			} else if err == nil {
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(c, lengthy("200 OK", jsonType, message))
			}
			_ = c.Close()
		}
	}()
	up := upstream{keys: []string{keyOf("a", 1)}}
	up.Name, up.BaseURL = "a", "http://"+l.Addr().String()
	r := newRelay(t, setup{upstreams: []upstream{up}})
	r.holdClosed("a")
	t.Cleanup(func() {
		_ = l.Close()
		<-served
	})
	large := strings.Replace(ask(opus, false), "hello", strings.Repeat("large ", 1<<20), 1)
	statuses := map[int]int{}
	for range 10 {
		got := r.do(call{body: large})
		require.NoError(t, got.err)
		statuses[got.status]++
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
	}
	assert.Equal(t, 10, statuses[413]+statuses[502], "%v", statuses)
}

// What comes counts, not what was asked for; usage is read of both.
func testAnswersOfTheOtherKind(t *testing.T) {
	leakFree(t)
	for name, tt := range map[string]struct {
		wire   string
		stream bool
		body   string
		in     float64
		out    float64
	}{
		"JSON for a stream": {lengthy("200 OK", jsonType, message), true, message, 3, 4},
		"a stream for JSON": {sseHead + wholeStream, false, wholeStream, 11, 7},
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", say(tt.wire))
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			got := r.do(call{body: ask(opus, tt.stream)})
			require.NoError(t, got.err)
			assert.Equal(t, tt.body, got.body)
			assert.Contains(t, tt.wire, got.header.Get("Content-Type"))
			assert.Equal(t, fmt.Sprint("served ", tt.in, " ", tt.out), fmt.Sprint(got.record["outcome"], " ", got.record["input_tokens"], " ", got.record["output_tokens"]))
		})
	}
}

// Some vendors say of a prompt that it was nothing until the answer ends. Of one that
// does not end, what was held for the prompt stays taken.
func TestAPromptOfNothingIsNotReported(t *testing.T) {
	zero := strings.Replace(startFrame, `"input_tokens":11`, `"input_tokens":0`, 1)
	require.NotEqual(t, startFrame, zero)
	for name, tt := range map[string]struct {
		start string
		left  bool // something is left of the key's input tokens for a second one
	}{
		"nothing": {zero, false},
		"a few":   {startFrame, true},
	} {
		t.Run(name, func(t *testing.T) {
			up := newRaw(t, "a", say(sseHead+tt.start+deltaFrame))
			up.limits = keypool.KeyConfig{RPMLimit: 50, ITPMLimit: 10_000, OTPMLimit: 4000}
			r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
			body := strings.Replace(ask(opus, true), `"hello"`, `"`+strings.Repeat("abc ", 8000)+`"`, 1)
			require.Greater(t, len(body), 32_000)
			require.Equal(t, 200, r.do(call{body: body}).status)
			assert.Equal(t, tt.left, r.do(call{body: body}).status == 200)
		})
	}
}
