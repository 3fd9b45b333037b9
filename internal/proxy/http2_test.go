package proxy_test

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"io"
	stdlog "log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
)

// Types, flags and codes of frames. Source: https://www.rfc-editor.org/rfc/rfc9113#section-6.
const (
	frameData, frameHeaders, frameReset, frameSettings, framePing, frameGoAway = 0, 1, 3, 4, 6, 7

	endStream, endHeaders, ack = 1, 4, 1

	codeNone, codeInternal, codeRefused, codeCancel, codeCalm = 0, 2, 7, 8, 11
)

// framed is a provider that speaks nothing but HTTP/2, in exact frames.
type framed struct {
	upstream
	asked atomic.Int32 // requests that came whole
}

// frames is a connection of it.
type frames struct{ io.ReadWriter }

func (f frames) send(kind, flags byte, stream uint32, payload string) {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	_, _ = f.Write(append(binary.BigEndian.AppendUint32(head, stream), payload...))
}

func (f frames) next() (kind, flags byte, stream uint32, err error) {
	var head [9]byte
	if _, err = io.ReadFull(f, head[:]); err != nil {
		return 0, 0, 0, err
	}
	size := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
	_, err = io.CopyN(io.Discard, f, size)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]), err
}

func number(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }

// goAway says that streams above last are not processed.
func (f frames) goAway(last, code uint32) { f.send(frameGoAway, 0, 0, number(last)+number(code)) }

func (f frames) reset(stream, code uint32) { f.send(frameReset, 0, stream, number(code)) }

// answer sends a head of status 200 and a body. Source of the coding:
// https://www.rfc-editor.org/rfc/rfc7541#appendix-C.
func (f frames) answer(stream uint32, kind, body string, flags byte) {
	f.send(frameHeaders, endHeaders, stream, "\x88\x00\x0ccontent-type"+string(rune(len(kind)))+kind)
	f.send(frameData, flags, stream, body)
}

// serves answers well.
func (f frames) serves(stream uint32) { f.answer(stream, "application/json", message, endStream) }

// newFramed starts a provider that calls play for each whole request, n from 1, until
// it returns false: then the connection is closed.
func newFramed(t *testing.T, name, settings string, play func(f frames, stream uint32, n int) (keep bool)) *framed {
	t.Helper()
	u := &framed{}
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	srv.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
		"h2": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
			defer func() { _ = c.Close() }()
			f := frames{c}
			if _, err := io.CopyN(io.Discard, c, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
				return
			}
			f.send(frameSettings, 0, 0, settings)
			for {
				kind, flags, stream, err := f.next()
				switch {
				case err != nil:
					return
				case kind == frameSettings && flags&ack == 0:
					f.send(frameSettings, ack, 0, "")
				case kind == framePing && flags&ack == 0:
					f.send(framePing, ack, 0, strings.Repeat("\x00", 8))
				case (kind == frameData || kind == frameHeaders) && flags&endStream != 0:
					if !play(f, stream, int(u.asked.Add(1))) {
						return
					}
				}
			}
		},
	}
	srv.TLS = &tls.Config{NextProtos: []string{"h2"}, GetConfigForClient: refuseHTTP1}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	u.upstream = upstream{Config: provider.Config{Name: name, BaseURL: srv.URL, CAFile: filepath.Join(t.TempDir(), "ca.pem")}, keys: []string{keyOf(name, 1)}}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	require.NoError(t, os.WriteFile(u.CAFile, cert, 0o600))
	return u
}

// A server that goes away says which requests it has not looked at. Such a request is
// sent once more, to a new connection, and nobody else is asked.
func testHTTP2ServersThatGoAway(t *testing.T) {
	leakFree(t)
	for name, leave := range map[string]func(frames, uint32) bool{
		"and close": func(f frames, stream uint32) bool {
			f.goAway(stream-1, codeNone)
			return false
		},
		"and stay for others": func(f frames, stream uint32) bool {
			f.goAway(stream-1, codeNone)
			return true
		},
		"refusing the stream": func(f frames, stream uint32) bool {
			f.reset(stream, codeRefused)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			var processed atomic.Int32
			a := newFramed(t, "a", "", func(f frames, stream uint32, n int) bool {
				if n == 1 {
					return leave(f, stream)
				}
				processed.Add(1)
				f.serves(stream)
				return true
			})
			b := newSim(t, "b", 1)
			r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}})
			got := r.do(call{body: ask(opus, false)})
			requireServed(t, got, false)
			assert.Equal(t, "1", got.header.Get("X-Cc-Relay-Attempts"))
			assert.EqualValues(t, 1, processed.Load(), "requests that the server has processed")
			assert.EqualValues(t, 2, a.asked.Load())
			assert.Empty(t, b.Seen())
		})
	}
}

// Whatever else an HTTP/2 server does to a request, another provider serves it, once
// and soon, and the server is not asked in a loop.
func testHTTP2Failures(t *testing.T) {
	leakFree(t)
	for name, tt := range map[string]struct {
		play     func(f frames, stream uint32) bool
		settings string
		verdict  string // of the attempt
		asked    int    // 0: the connection never got so far
	}{
		"every stream is refused": {play: func(f frames, stream uint32) bool { f.reset(stream, codeRefused); return true }, verdict: "unreachable", asked: 3},
		"goes away each time":     {play: func(f frames, stream uint32) bool { f.goAway(stream-1, codeNone); return false }, verdict: "unreachable", asked: 2},
		"goes away in anger":      {play: func(f frames, stream uint32) bool { f.goAway(stream, codeCalm); return false }, verdict: "lost", asked: 1},
		"RST_STREAM, internal":    {play: func(f frames, stream uint32) bool { f.reset(stream, codeInternal); return true }, verdict: "lost", asked: 1},
		"RST_STREAM, cancel":      {play: func(f frames, stream uint32) bool { f.reset(stream, codeCancel); return true }, verdict: "lost", asked: 1},
		"a window beyond 2^31":    {settings: "\x00\x04\xff\xff\xff\xff", verdict: "lost"},
		"settings of odd length":  {settings: "\x00\x04\x00", verdict: "lost"},
		"not HTTP/2":              {play: func(f frames, _ uint32) bool { _, _ = io.WriteString(f, "HTTP/1.1 200 OK\r\n\r\n"); return false }, verdict: "lost", asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			a := newFramed(t, "a", tt.settings, func(f frames, stream uint32, _ int) bool { return tt.play != nil && tt.play(f, stream) })
			b := newSim(t, "b", 1)
			r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}})
			start := time.Now()
			got := r.do(call{body: ask(opus, true)})
			requireServed(t, got, true)
			assert.Less(t, time.Since(start), 5*time.Second)
			assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
			assert.Equal(t, "2", got.header.Get("X-Cc-Relay-Attempts"))
			assert.Contains(t, r.log.String(), `"verdict":"`+tt.verdict+`"`)
			if tt.asked > 0 {
				assert.EqualValues(t, tt.asked, a.asked.Load(), "requests at the server")
			}
		})
	}
	for name, end := range map[string]func(frames, uint32){
		"RST_STREAM":  func(f frames, stream uint32) { f.reset(stream, codeInternal) },
		"goes away":   func(f frames, _ uint32) { f.goAway(0, codeInternal) },
		"just closes": func(frames, uint32) {},
	} {
		t.Run("mid-stream: "+name, func(t *testing.T) {
			a := newFramed(t, "a", "", func(f frames, stream uint32, _ int) bool {
				f.answer(stream, "text/event-stream", startFrame+deltaFrame, 0)
				end(f, stream)
				return false
			})
			b := newSim(t, "b", 1)
			r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}})
			requireCut(t, r.do(call{body: ask(opus, true)}), startFrame+deltaFrame, "api_error")
			assert.EqualValues(t, 1, a.asked.Load())
			assert.Empty(t, b.Seen(), "nothing moves once the client has seen something")
		})
	}
}
