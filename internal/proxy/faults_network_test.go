package proxy_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/http1"
	"cc-relay/internal/metrics"
	"cc-relay/internal/provider"
	"cc-relay/internal/router"
)

// link is a part of the way between two ends. While it is down nothing passes, not even
// an end of a connection, and neither end can tell.
type link struct {
	idle time.Duration // a connection without bytes for longer is forgotten; 0: never

	mu sync.Mutex
	up chan struct{} // closed while it is up
}

func newLink() *link {
	l := &link{up: make(chan struct{})}
	close(l.up)
	return l
}

func (l *link) fall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = make(chan struct{})
}

func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.up)
}

func (l *link) passes() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// over dials by another dialer across the link.
func (l *link) over(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		select {
		case <-l.passes():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		far, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		near, here := net.Pipe()
		last := &atomic.Int64{}
		last.Store(time.Now().UnixNano())
		go l.carry(far, here, last)
		go l.carry(here, far, last)
		return near, nil
	}
}

// carry takes bytes to one end from the other.
func (l *link) carry(to, from net.Conn, last *atomic.Int64) {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		now := time.Now().UnixNano()
		if before := last.Swap(now); l.idle > 0 && now-before > int64(l.idle) {
			return // nobody is told
		}
		<-l.passes()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// behind puts a provider of the stage behind a link. Its dials time out as in earnest.
func (a *actor) behind(t *testing.T, p *pipes, l *link) {
	dial := l.over(p.dial)
	transport := http1.NewTransport(http1.Config{
		Fallback: a.transport,
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, provider.DefaultDialTimeout)
			defer cancel()
			c, err := dial(ctx, "tcp", addr)
			if err != nil {
				return nil, &provider.ConnectError{}
			}
			return c, nil
		},
	})
	t.Cleanup(transport.CloseIdleConnections)
	a.transport = transport
}

// A provider is out of reach for a minute. Others serve; what was under way on its
// connections comes to its end when they work again, a probe finds it back within its
// interval, and it gets its share step by step.
func testAProviderOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			rate  = 10
			falls = 10 * time.Second
			heals = falls + time.Minute
			ramp  = 10 * time.Second
		)
		net, way := newPipes(), newLink()
		a, b := net.actor(t, "a", after(think, well)), net.actor(t, "b", after(think, well))
		a.behind(t, net, way)
		r := net.cast(t, router.Config{}, a, b)
		start := time.Now()
		time.AfterFunc(falls, way.fall)
		time.AfterFunc(heals, way.heal)
		got := load(r, rate, heals+time.Minute+2*ramp)
		assert.Empty(t, got.others, "what clients got instead of an answer")

		assert.Greater(t, b.between(start.Add(falls), start.Add(heals)), int(50*rate), "requests that the other has served meanwhile")
		back := a.after(t, start.Add(heals+time.Second)) // before that comes what was on its way
		assert.Less(t, back.Sub(start), heals+time.Minute+provider.DefaultDialTimeout, "when it was found back")
		soon, later := a.between(back, back.Add(ramp/10)), a.between(back.Add(ramp), back.Add(ramp+time.Second))
		assert.LessOrEqual(t, soon, rate/2, "requests in the first moment")
		assert.InDelta(t, rate, later, 1, "requests after the ramp")
	})
}

// A client out of reach is noticed by a write that takes too long, and its provider is
// told at once.
func testAClientOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, way := newPipes(), newLink()
		left := make(chan time.Time, 1)
		a := net.actor(t, "a", sends(func(w http.ResponseWriter, r *http.Request, q asked) {
			pings(time.Second, 1000, silent)(w, r, q)
			left <- time.Now()
		}, startFrame))
		r := net.cast(t, router.Config{}, a)
		r.client.DialContext = way.over(net.dial)
		resp := r.open(t.Context(), call{body: ask(opus, true)})
		read(t, resp, startFrame)
		fell := time.Now()
		way.fall()
		rec := <-r.log.records
		assert.Equal(t, "client_gone", rec["outcome"])
		assert.Equal(t, true, rec["partial"])
		took := time.Since(fell)
		assert.True(t, took >= 22*time.Second && took <= 33*time.Second, "noticed after %v", took)
		assert.Less(t, (<-left).Sub(fell)-took, time.Second, "until the provider was told")
		assert.Empty(t, r.inFlight())
		way.heal()
	})
}

// nameServer answers all questions with these addresses.
type nameServer struct {
	mu        sync.Mutex
	addresses []netip.Addr // none: there is no such name
	silent    bool
	asking    []net.Conn
	closed    bool
}

// ask is a connection to it. A question that nobody waits for any more ends with close.
func (s *nameServer) ask(addr string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	c, err := net.Dial("udp", addr)
	if err == nil {
		s.asking = append(s.asking, c)
	}
	return c, err
}

func (s *nameServer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.asking {
		_ = c.Close()
	}
}

func (s *nameServer) says(addresses ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent, s.addresses = false, nil
	for _, a := range addresses {
		s.addresses = append(s.addresses, netip.MustParseAddr(a))
	}
}

func (s *nameServer) saysNothing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

// answer makes a message of a question. Source: https://www.rfc-editor.org/rfc/rfc1035#section-4.
func (s *nameServer) answer(question []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent {
		return nil
	}
	end := 12
	for question[end] != 0 {
		end += int(question[end]) + 1
	}
	end += 5
	const host4, host6 = 1, 28
	kind := binary.BigEndian.Uint16(question[end-4:])
	out := append([]byte(nil), question[:end]...)
	out[2], out[3] = 0x81, 0x80
	if len(s.addresses) == 0 {
		out[3] |= 3
	}
	clear(out[6:12])
	for _, a := range s.addresses {
		if (kind == host4 && a.Is4()) || (kind == host6 && a.Is6()) {
			out[7]++
			out = append(out, 0xc0, 12, 0, byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(len(a.AsSlice())))
			out = append(out, a.AsSlice()...)
		}
	}
	return out
}

// newNameServer starts one that this process asks until the test ends.
func newNameServer(t *testing.T) *nameServer {
	s := &nameServer{}
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := socket.ReadFrom(buf)
			if err != nil {
				return
			}
			if out := s.answer(buf[:n]); out != nil {
				_, _ = socket.WriteTo(out, from)
			}
		}
	}()
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return s.ask(socket.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		s.close()
		_ = socket.Close()
		<-done
	})
	return s
}

// at is a provider behind this name, at the port of the one at url.
func at(name, url string) upstream {
	up := upstream{keys: []string{keyOf("a", 1)}}
	up.Name, up.BaseURL, up.DialTimeout = "a", "http://"+name+url[strings.LastIndex(url, ":"):], 300*time.Millisecond
	return up
}

// Names are resolved for each connect and within its time, and lead nowhere where no
// provider can be.
func testNameServers(t *testing.T) {
	leakFree(t)
	names := newNameServer(t)
	t.Run("no such name", func(t *testing.T) {
		names.says()
		r := newRelay(t, setup{upstreams: []upstream{at("models.example", newSim(t, "a", 1).BaseURL)}})
		requireError(t, r.do(call{body: ask(opus, false)}), 502, "api_error")
	})
	t.Run("silence", func(t *testing.T) {
		names.saysNothing()
		r := newRelay(t, setup{upstreams: []upstream{at("models.example", newSim(t, "a", 1).BaseURL)}})
		start := time.Now()
		requireError(t, r.do(call{body: ask(opus, false)}), 502, "api_error")
		assert.Less(t, time.Since(start), 5*time.Second)
	})
	t.Run("another address", func(t *testing.T) {
		names.says("127.0.0.1")
		old, moved := newSim(t, "a", 1), newSim(t, "a", 1)
		port := old.BaseURL[strings.LastIndex(old.BaseURL, ":"):]
		l, err := net.Listen("tcp", "127.0.0.2"+port)
		require.NoError(t, err)
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: moved}}
		srv.Start()
		t.Cleanup(srv.Close)
		r := newRelay(t, setup{upstreams: []upstream{at("models.example", old.BaseURL)}})
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		names.says("127.0.0.2")
		for _, up := range r.live.Router.Upstreams() { // as when the old one ends them
			up.Transport.(*provider.Transport).CloseIdleConnections()
		}
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		assert.Len(t, old.Seen(), 1)
		assert.Len(t, moved.Seen(), 1)
	})
	here := newSim(t, "a", 1)
	for _, bad := range []string{
		"0.0.0.0", "::", "169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "224.0.0.1", "ff02::1", "255.255.255.255", "fd00:ec2::254", "::ffff:0.0.0.0",
	} {
		t.Run(bad, func(t *testing.T) {
			names.says(bad)
			r := newRelay(t, setup{upstreams: []upstream{at("models.example", here.BaseURL)}})
			got := r.do(call{body: ask(opus, false)})
			requireError(t, got, 502, "api_error")
			assert.Equal(t, "unreachable", got.record["verdict"])
			assert.NotContains(t, got.body, bad)
			assert.Empty(t, here.Seen(), "it leads to the machine itself")
		})
	}
	t.Run("a good one among them", func(t *testing.T) {
		names.says("169.254.169.254", "0.0.0.0", "127.0.0.1")
		r := newRelay(t, setup{upstreams: []upstream{at("models.example.", here.BaseURL)}})
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
	})
}

// A network that forgets connections without bytes for a minute does not forget a
// stream of ten minutes: a provider's pings pass it as they come. Where there are none,
// TCP's own keep the connections.
func testQuietStreams(t *testing.T) {
	t.Run("pings", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net, nat, toClients := newPipes(), newLink(), newLink()
			nat.idle, toClients.idle = time.Minute, time.Minute
			a := net.actor(t, "a", sends(pings(50*time.Second, 12, writes(nil, deltaFrame+stopFrame)), startFrame))
			a.Origin = provider.OriginAnthropic
			a.behind(t, net, nat)
			r := net.cast(t, router.Config{}, a)
			r.client.DialContext = toClients.over(net.dial)
			got := r.do(call{body: ask(opus, true)})
			require.NoError(t, got.err)
			assert.Equal(t, startFrame+strings.Repeat(pingFrame, 12)+deltaFrame+stopFrame, got.body)
		})
	})
	t.Run("TCP", func(t *testing.T) {
		leakFree(t)
		up := newStepper(t, "a")
		r := newRelay(t, setup{upstreams: []upstream{up.upstream}})
		go up.send(t, startFrame)
		resp := r.open(t.Context(), call{body: ask(opus, true)})
		read(t, resp, startFrame)
		requireKeptAlive(t, strings.TrimPrefix(up.BaseURL, "http://"), time.Minute)
		close(up.frames)
		_ = readReply(resp)
		r.log.next(t)
	})
}

// dripping is the address of a way to another one that takes each byte by itself.
func dripping(t *testing.T, addr string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	drip := func(to, from net.Conn) {
		in := bufio.NewReader(from)
		for {
			b, err := in.ReadByte()
			if err == nil {
				_, err = to.Write([]byte{b})
			}
			if err != nil {
				_, _ = to.Close(), from.Close()
				return
			}
		}
	}
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				_ = near.Close()
				continue
			}
			wg.Go(func() { drip(far, near) })
			wg.Go(func() { drip(near, far) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// Segments of one byte, on both sides and both ways, are slow but the same.
func testTinySegments(t *testing.T) {
	leakFree(t)
	for _, stream := range []bool{true, false} {
		a := newSim(t, "a", 1)
		a.BaseURL = "http://" + dripping(t, strings.TrimPrefix(a.BaseURL, "http://"))
		r := relayOf(t, a)
		r.url = "http://" + dripping(t, strings.TrimPrefix(r.url, "http://"))
		t.Cleanup(r.client.CloseIdleConnections) // before the ways end
		for range 2 {
			requireServed(t, r.do(call{body: ask(opus, stream)}), stream)
		}
		for _, rec := range a.Seen() {
			assert.Equal(t, ask(opus, stream), string(rec.Body))
		}
		for _, up := range r.live.Router.Upstreams() {
			t.Cleanup(up.Transport.(*provider.Transport).CloseIdleConnections)
		}
	}
}

// Where no more connections come about, who needs one is told 502 and it is counted;
// when there are some again, all is well.
func testNoMoreConnections(t *testing.T) {
	leakFree(t)
	const most, many = 4, 20
	release := make(chan struct{})
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-release
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, message)
	}))
	var open atomic.Int32
	var d net.Dialer
	transport := http1.NewTransport(http1.Config{
		Fallback: roundTrip(func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }),
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if open.Add(1) > most { // as with EADDRNOTAVAIL
				return nil, &provider.ConnectError{}
			}
			return d.DialContext(ctx, "tcp", addr)
		},
	})
	t.Cleanup(transport.CloseIdleConnections)
	up := upstream{keys: []string{keyOf("a", 1)}, transport: transport, maxWait: time.Minute}
	up.Name, up.BaseURL = "a", url
	r := newRelay(t, setup{upstreams: []upstream{up}})
	r.live.Metrics = metrics.New(metrics.Options{})
	r.handler.Swap(r.live)
	r.holdClosed("a")
	go func() { release <- struct{}{} }()
	requireServed(t, r.do(call{body: ask(opus, false)}), false) // the pool knows what it admits
	statuses := make(chan int, many)
	for range many {
		go func() { statuses <- r.send(call{body: ask(opus, false)}).status }()
	}
	for range many - most {
		assert.Equal(t, 502, <-statuses)
	}
	close(release)
	for range most {
		assert.Equal(t, 200, <-statuses)
	}
	for range most {
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
	}
	w := httptest.NewRecorder()
	r.live.Metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	assert.Contains(t, w.Body.String(), "unreachable")
}

// Five thousand clients reset their connections at once, each in the middle of a
// stream. One record tells of each, and nothing of them is left.
func testManyResetsAtOnce(t *testing.T) {
	leakFree(t)
	const many = 5000
	var open atomic.Int64
	up := memory(roundTrip(func(r *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		begin := strings.NewReader(startFrame)
		return &http.Response{
			StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, ContentLength: -1, Request: r,
			Body: io.NopCloser(readFunc(func(p []byte) (int, error) {
				if n, err := begin.Read(p); err == nil {
					return n, nil
				}
				<-r.Context().Done()
				return 0, context.Cause(r.Context())
			})),
		}, nil
	}))
	up.maxWait = time.Minute
	up.transport = counted(&open, up.transport)
	r := newRelay(t, setup{upstreams: []upstream{up}})
	r.log.records = make(chan record, many+1)
	files := openFiles(t)
	body := ask(opus, true)
	wire := "POST /v1/messages HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\nX-Api-Key: " + aliceToken + "\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n" + body
	conns := make([]net.Conn, many)
	var wg sync.WaitGroup
	next := atomic.Int64{}
	for range 64 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < many; i = next.Add(1) - 1 {
				c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
				if !assert.NoError(t, err) {
					return
				}
				conns[i] = c
				_, _ = io.WriteString(c, wire)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if !assert.NoError(t, err) {
					return
				}
				assert.Equal(t, 200, resp.StatusCode)
			}
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	assert.EqualValues(t, many, open.Load(), "streams under way")
	for _, c := range conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	for range many {
		assert.Equal(t, "client_gone", r.log.next(t)["outcome"])
	}
	assert.Empty(t, r.inFlight(), "leases")
	require.Eventually(t, func() bool { return open.Load() == 0 && openFiles(t) <= files+1 }, patient, 10*time.Millisecond,
		"%d answers never closed, %d files more than before", open.Load(), openFiles(t)-files)
	assert.Empty(t, r.log.records, "more than one record for a request")
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
