package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/admin"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

// stream is a client of the events. While it is stuck, it reads nothing.
type stream struct {
	cancel context.CancelFunc
	ended  chan struct{}
	header http.Header

	mu      sync.Mutex
	status  int
	got     strings.Builder
	flushed int
	stuck   chan struct{}
}

func (s *stream) Header() http.Header { return s.header }

func (s *stream) WriteHeader(status int) { s.mu.Lock(); defer s.mu.Unlock(); s.status = status }

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	stuck := s.stuck
	s.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

func (s *stream) Flush() { s.mu.Lock(); defer s.mu.Unlock(); s.flushed = s.got.Len() }

// text is what has been flushed.
func (s *stream) text() string { s.mu.Lock(); defer s.mu.Unlock(); return s.got.String()[:s.flushed] }

// hold sticks the client, until the function is called that it returns.
func (s *stream) hold() (free func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stuck := make(chan struct{})
	s.stuck = stuck
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stuck = nil
		close(stuck)
	}
}

type event struct{ kind, data string }

// events takes what has come since.
func (s *stream) events() []event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []event
	for block := range strings.SplitSeq(s.got.String(), "\n\n") {
		if rest, ok := strings.CutPrefix(block, "event: "); ok {
			kind, data, _ := strings.Cut(rest, "\ndata: ")
			all = append(all, event{kind, data})
		} else if block == ": heartbeat" {
			all = append(all, event{kind: "heartbeat"})
		}
	}
	s.got.Reset()
	s.flushed = 0
	return all
}

func kinds(events []event) []string {
	all := []string{}
	for _, e := range events {
		all = append(all, e.kind)
	}
	return all
}

func decoded[T any](t *testing.T, e event) T {
	t.Helper()
	var v T
	require.NoError(t, json.Unmarshal([]byte(e.data), &v), e.data)
	return v
}

func listen(t *testing.T, w *world, query string) *stream {
	ctx, cancel := context.WithCancel(context.Background())
	s := &stream{cancel: cancel, ended: make(chan struct{}), header: http.Header{}}
	t.Cleanup(cancel)
	r := request("GET", "/api/v1/events"+query, w.viewer, "").WithContext(ctx)
	go func() {
		defer close(s.ended)
		w.ServeHTTP(s, r)
	}()
	return s
}

func TestEventsTellWhatIsAndWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		assert.False(t, w.Listening())
		w.Publish(admin.EventAlert, "nobody hears it")
		s, quiet := listen(t, w, ""), listen(t, w, "?stats=off")
		synctest.Wait()
		assert.True(t, w.Listening())
		assert.Equal(t, "text/event-stream", s.header.Get("Content-Type"))
		time.Sleep(3*time.Second + time.Millisecond)
		assert.Equal(t, "retry: 2000\n\n", quiet.text())
		events := s.events()
		assert.Equal(t, []string{"stats", "stats", "stats", "stats"}, kinds(events))
		assert.Equal(t, "one", decoded[admin.Stats](t, events[0]).Providers[0].Name)

		w.one.Pool.MarkKeyDead(idOf(keyA), keypool.ReasonSpent)
		w.mu.Lock()
		w.draining[w.two] = true
		w.mu.Unlock()
		w.two.Lane("new")
		fail(w.two, "x")
		time.Sleep(time.Second)
		events = s.events()
		require.Equal(t, []string{"key", "provider", "breaker", "stats"}, kinds(events))
		at := decoded[admin.Stats](t, events[3]).At
		key := decoded[admin.KeyChange](t, events[0])
		assert.Equal(t, admin.KeyChange{At: at, Provider: "one", Key: idOf(keyA), From: "available", To: "dead", Until: key.Until, Reason: "spent"}, key)
		assert.Equal(t, admin.ProviderChange{At: at, Provider: "two", From: "on", To: "draining"}, decoded[admin.ProviderChange](t, events[1]))
		breaker := decoded[admin.BreakerChange](t, events[2])
		assert.Equal(t, admin.BreakerChange{At: at, Provider: "two", Class: "x", From: "closed", To: "open", Until: breaker.Until}, breaker)
		synctest.Wait()
		assert.Equal(t, []string{"key", "provider", "breaker"}, kinds(quiet.events()))

		w.two.Lane("x").Hold(health.Open, time.Minute) // as before, and now an operator's word
		require.NoError(t, w.one.Pool.Release(idOf(keyA)))
		time.Sleep(time.Second)
		events = s.events()
		require.Equal(t, []string{"key", "breaker", "stats"}, kinds(events))
		assert.Equal(t, "available", decoded[admin.KeyChange](t, events[0]).To)
		assert.True(t, decoded[admin.BreakerChange](t, events[1]).Forced)

		w.Publish(admin.EventRequest, map[string]int{"n": 1})
		w.Publish("two\nlines", 1)
		w.Publish(admin.EventAlert, make(chan int)) // no JSON
		synctest.Wait()
		assert.Equal(t, []event{{"request", `{"n":1}`}}, s.events())
		w.Close()
		w.Close()
		<-s.ended
		<-quiet.ended
		assert.False(t, w.Listening())
		refused(t, w.do("GET", "/api/v1/events", w.viewer, ""), http.StatusServiceUnavailable, "unavailable")
	})
}

// After a reload keys and providers may have come and gone.
func TestEventsOfAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := listen(t, w, "?stats=off")
		synctest.Wait()
		w.mu.Lock()
		two := w.two
		w.one, w.two = two, &router.Upstream{Provider: w.one.Provider, Pool: pool(t, "one", keyA, keyB)}
		w.mu.Unlock()
		time.Sleep(1500 * time.Millisecond)
		events := s.events()
		require.Equal(t, []string{"key", "key"}, kinds(events), "another order is no change")
		come, gone := decoded[admin.KeyChange](t, events[0]), decoded[admin.KeyChange](t, events[1])
		assert.Equal(t, []string{idOf(keyB), "", "available"}, []string{come.Key, come.From, come.To})
		assert.Equal(t, []string{idOf(keyBoth), "available", ""}, []string{gone.Key, gone.From, gone.To})

		w.mu.Lock()
		w.one = &router.Upstream{Provider: named{name: "three"}, Pool: two.Pool}
		w.mu.Unlock()
		time.Sleep(time.Second)
		events = s.events()
		require.Equal(t, []string{"provider", "provider"}, kinds(events))
		assert.Equal(t, "three  on", fmt.Sprintf("%[2]s %[3]s %[4]s", values(decoded[admin.ProviderChange](t, events[0]))...))
		assert.Equal(t, "two on ", fmt.Sprintf("%[2]s %[3]s %[4]s", values(decoded[admin.ProviderChange](t, events[1]))...))
		s.cancel()
		<-s.ended
	})
}

func values(c admin.ProviderChange) []any { return []any{c.At, c.Provider, c.From, c.To} }

func TestASlowListenerIsToldWhatItLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		slow, quick := listen(t, w, "?stats=off"), listen(t, w, "?stats=off")
		synctest.Wait()
		free := slow.hold()
		for n := range 100 {
			w.Publish(admin.EventRequest, n)
			synctest.Wait()
		}
		assert.Len(t, quick.events(), 100)
		free()
		synctest.Wait()
		events := slow.events()
		require.Len(t, events, 65, "one that was being written, and a full queue")
		assert.Equal(t, event{"request", "64"}, events[64])

		w.Publish(admin.EventRequest, 100)
		synctest.Wait()
		assert.Equal(t, []event{{"lost", `{"count":35}`}, {"request", "100"}}, slow.events())

		free = slow.hold()
		for n := range 70 {
			w.Publish(admin.EventRequest, n)
			synctest.Wait()
		}
		free()
		time.Sleep(16 * time.Second) // nothing else comes
		events = slow.events()
		assert.Equal(t, []event{{"heartbeat", ""}, {"lost", `{"count":5}`}}, events[65:])
		assert.Equal(t, []string{"heartbeat"}, kinds(quick.events()[71:]))
		w.Close()
	})
}

func TestListenersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var all []*stream
		for range admin.MaxListeners {
			all = append(all, listen(t, w, ""))
		}
		synctest.Wait()
		refused(t, w.do("GET", "/api/v1/events", w.viewer, ""), http.StatusServiceUnavailable, "too_many_streams")
		all[0].cancel()
		<-all[0].ended
		again := listen(t, w, "")
		synctest.Wait()
		assert.NotEmpty(t, again.text())
		for _, s := range append(all[1:], again) {
			s.cancel()
			<-s.ended
		}
		assert.False(t, w.Listening())
		time.Sleep(time.Minute) // no watch is left; the bubble would not end
		one := listen(t, w, "")
		time.Sleep(1500 * time.Millisecond)
		assert.Equal(t, []string{"stats", "stats"}, kinds(one.events()), "one watch, not two")
		w.Close()
	})
}

// pipes is a listener whose connections are pipes in memory.
type pipes struct{ conns chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// A client that reads nothing is let go after 10 s, whatever the server's own limits.
func TestAStuckListenerIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		srv := &http.Server{Handler: w, WriteTimeout: 3 * time.Second}
		l := pipes{make(chan net.Conn)}
		var served sync.WaitGroup
		served.Go(func() { _ = srv.Serve(l) })
		client, server := net.Pipe()
		defer func() {
			w.Close()
			_ = client.Close()
			close(l.conns)
			served.Wait()
			_ = srv.Close()
			time.Sleep(time.Second) // the server takes leave of a connection
		}()
		l.conns <- server
		_, err := fmt.Fprintf(client, "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", w.viewer)
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReaderSize(client, 16), nil)
		require.NoError(t, err)
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		read := make([]byte, 4)
		for range 2000 { // for longer than the server's own limit
			_, err := resp.Body.Read(read)
			require.NoError(t, err)
			time.Sleep(5 * time.Millisecond)
		}
		assert.True(t, w.Listening())
		time.Sleep(11 * time.Second)
		synctest.Wait()
		assert.False(t, w.Listening())
	})
}

// A body that trickles in is cut after 10 s.
func TestASlowBodyIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		srv := &http.Server{Handler: w}
		l := pipes{make(chan net.Conn)}
		var served sync.WaitGroup
		served.Go(func() { _ = srv.Serve(l) })
		client, server := net.Pipe()
		defer func() {
			w.Close()
			_ = client.Close()
			close(l.conns)
			served.Wait()
			_ = srv.Close()
			time.Sleep(time.Second) // the server takes leave of a connection
		}()
		l.conns <- server
		start := time.Now()
		_, err := fmt.Fprintf(client, "POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\nAuthorization: Bearer %s\r\n\r\n{", w.admin)
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(client), nil)
		require.NoError(t, err)
		_ = resp.Body.Close()
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
		assert.Equal(t, 10*time.Second, time.Since(start))
		assert.Empty(t, w.done())
	})
}
