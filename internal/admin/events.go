package admin

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Bounds of event streams.
const (
	maxListeners   = 32
	queuedEvents   = 64 // for one listener
	statsEvery     = time.Second
	heartbeatEvery = 15 * time.Second
)

// hub tells events to those who listen. While nobody does it does nothing.
type hub struct {
	look   func() Stats
	encode func(any) ([]byte, error)

	mu        sync.Mutex
	listeners map[*listener]struct{}
	closed    bool
	stop      chan struct{} // ends the watch under way; nil while there is none
	watches   sync.WaitGroup
}

// listener is one event stream. Its queue is closed when the hub is.
type listener struct {
	queue   chan []byte // whole events, as they are sent
	noStats bool
	lost    int // events since the queue was full; guarded by hub.mu
}

var (
	errClosed  = errors.New("the relay stops")
	errCrowded = errors.New("too many event streams are open; close one")
)

func newHub(look func() Stats, encode func(any) ([]byte, error)) *hub {
	return &hub{look: look, encode: encode, listeners: make(map[*listener]struct{})}
}

// join adds a listener, which is told at once what is; the first one starts the watch.
func (b *hub) join(noStats bool) (*listener, error) {
	l := &listener{queue: make(chan []byte, queuedEvents), noStats: noStats}
	if !noStats {
		now := b.look()
		l.queue <- b.event(EventStats, &now)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosed
	}
	if len(b.listeners) >= maxListeners {
		return nil, errCrowded
	}
	b.listeners[l] = struct{}{}
	if b.stop == nil {
		stop := make(chan struct{})
		b.stop = stop
		b.watches.Go(func() { b.watch(stop) })
	}
	return l, nil
}

// leave takes a listener out; the last one ends the watch.
func (b *hub) leave(l *listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.listeners, l)
	if len(b.listeners) == 0 && b.stop != nil {
		close(b.stop)
		b.stop = nil
	}
}

// close ends all streams and the watch, waits for the watch, and refuses new ones.
func (b *hub) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.drop()
	b.watches.Wait()
}

// drop ends all streams.
func (b *hub) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		close(l.queue)
		delete(b.listeners, l)
	}
	if b.stop != nil {
		close(b.stop)
		b.stop = nil
	}
}

func (b *hub) listening() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.listeners) > 0
}

// watch looks at the relay each second, and tells what it sees and what has changed
// since the look before.
func (b *hub) watch(stop chan struct{}) {
	ticks := time.NewTicker(statsEvery)
	defer ticks.Stop()
	last := b.look()
	for {
		select {
		case <-stop:
			return
		case <-ticks.C:
		}
		now := b.look()
		var events [][]byte
		for _, ch := range changes(&last, &now) {
			events = append(events, b.event(ch.kind, ch.data))
		}
		b.tell(stop, events, b.event(EventStats, &now))
		last = now
	}
}

// tell queues what a watch saw, unless the watch was told to stop meanwhile.
func (b *hub) tell(stop chan struct{}, events [][]byte, stats []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != stop {
		return
	}
	for l := range b.listeners {
		for _, e := range events {
			b.offer(l, e)
		}
		if !l.noStats {
			b.offer(l, stats)
		}
	}
}

// publish queues an event of the relay's.
func (b *hub) publish(kind string, data any) {
	if !b.listening() {
		return
	}
	e := b.event(kind, data)
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		b.offer(l, e)
	}
}

// offer queues an event, or counts it as lost. mu is held. An event that cannot be
// written as JSON is nil, and counts as nothing.
func (b *hub) offer(l *listener, e []byte) {
	if e == nil {
		return
	}
	if !b.confess(l) {
		l.lost++
		return
	}
	select {
	case l.queue <- e:
	default:
		l.lost++
	}
}

// confess queues how many events were lost; false: there is no room even for that.
// mu is held.
func (b *hub) confess(l *listener) bool {
	if l.lost == 0 {
		return true
	}
	select {
	case l.queue <- b.event(EventLost, Lost{Count: l.lost}):
		l.lost = 0
		return true
	default:
		return false
	}
}

// catchUp tells a listener what it has lost when no other event comes to tell it.
func (b *hub) catchUp(l *listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, here := b.listeners[l]; here {
		b.confess(l)
	}
}

// event is an event as it is sent: its JSON is one line.
func (b *hub) event(kind string, data any) []byte {
	text, err := b.encode(data)
	if err != nil || strings.ContainsAny(kind, "\r\n") || bytes.ContainsAny(text, "\r\n") {
		return nil
	}
	return []byte("event: " + kind + "\ndata: " + string(text) + "\n\n")
}

// events streams until the client goes, is too slow for one write, or the relay stops.
func (h *Handler) events(c *call) {
	l, err := h.hub.join(c.r.URL.Query().Get("stats") == "off")
	switch {
	case errors.Is(err, errCrowded):
		h.refuse(c, http.StatusServiceUnavailable, "too_many_streams", err.Error())
		return
	case err != nil:
		h.refuse(c, http.StatusServiceUnavailable, "unavailable", err.Error())
		return
	}
	defer h.hub.leave(l)
	if !h.identify(c) { // the tokens were changed just now, before drop could see this stream
		return
	}
	c.w.Header().Set("Content-Type", "text/event-stream")
	if c.send([]byte("retry: 2000\n\n")) != nil {
		return
	}
	quiet := time.NewTicker(heartbeatEvery)
	defer quiet.Stop()
	for {
		select {
		case <-c.r.Context().Done():
			return
		case e, open := <-l.queue:
			if !open || c.send(e) != nil {
				return
			}
			quiet.Reset(heartbeatEvery)
		case <-quiet.C:
			h.hub.catchUp(l)
			if c.send([]byte(": heartbeat\n\n")) != nil {
				return
			}
		}
	}
}

// send writes a part of a stream at once, within its own time.
func (c *call) send(data []byte) error {
	_ = c.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := c.w.Write(data); err != nil {
		return err
	}
	return c.rc.Flush()
}
