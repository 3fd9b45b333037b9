package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"cc-relay/bench/rig"
)

// question is one request of a client.
type question struct {
	model  string
	token  string // empty: that of the load
	stream bool
	deltas int           // of the answer
	cached int           // which of some long system prompts that are cached; 0: none
	stay   time.Duration // after which the client leaves; 0: it stays
	slow   bool          // the client reads slowly
}

// end is how an answer ended for its client.
type end string

const (
	complete end = "complete" // message_stop, or one JSON message
	cut      end = "cut"      // an error event or a broken connection after 200
	left     end = "left"     // the client went away
	refused  end = "refused"  // an error in the API's shape
	failed   end = "failed"   // anything else
)

// answer is what a client got.
type answer struct {
	end    end
	why    string // for each end but complete
	status int
	header http.Header
	// id is the relay's, upstream that of the provider; empty where no header came.
	id, upstream string

	streamed bool
	usage    rig.Usage // the last reported
	started  bool      // usage came at all
	final    bool      // usage of the whole came
	told     bool      // an error event ended it
	deltas   int
}

// client retries nothing.
type client struct {
	url        string
	usual, lag *http.Client
	asked      atomic.Int64
	system     []string
}

func newClient(url string) *client {
	c := &client{url: url, usual: &http.Client{Transport: transport(0)}, lag: &http.Client{Transport: transport(64 << 10)}}
	for n := range 9 {
		c.system = append(c.system, fmt.Sprintf("You are number %d. ", n)+strings.Repeat("You know a lot about very little. ", 600))
	}
	return c
}

// transport keeps connections for less time than anybody closes idle ones, so that no
// request meets a connection's end. window bounds the receive buffer, and what one read
// takes of it, in bytes; 0: the defaults.
func transport(window int) *http.Transport {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if tcp, ok := conn.(*net.TCPConn); ok && window > 0 {
			_ = tcp.SetReadBuffer(window)
		}
		return conn, err
	}
	return &http.Transport{DialContext: dial, DisableCompression: true, ReadBufferSize: window, MaxIdleConnsPerHost: 1000, IdleConnTimeout: 5 * time.Second}
}

func (c *client) closeIdle() {
	c.usual.CloseIdleConnections()
	c.lag.CloseIdleConnections()
}

// ask sends one request and reads its answer to the end.
func (c *client) ask(ctx context.Context, q question) answer {
	stays := ctx
	if q.stay > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.stay)
		defer cancel()
	}
	a := answer{streamed: q.stream}
	err := c.exchange(ctx, q, &a)
	switch {
	case err == nil || a.end == failed:
	case stays.Err() != nil:
		a.end, a.why = failed, "the answer did not end"
	case ctx.Err() != nil:
		a.end, a.why = left, "the client left"
	case a.end == "" && a.status == http.StatusOK:
		a.end, a.why = cut, err.Error()
	case a.end == "":
		a.end, a.why = failed, err.Error()
	}
	return a
}

func (c *client) exchange(ctx context.Context, q question, a *answer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/v1/messages", bytes.NewReader(c.body(q)))
	if err != nil {
		return err
	}
	req.GetBody = nil // or the transport might send it again
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	token := q.token
	if token == "" {
		token = loadToken
	}
	req.Header.Set("X-Api-Key", token)
	by := c.usual
	if q.slow {
		by = c.lag
	}
	resp, err := by.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	a.status, a.header = resp.StatusCode, resp.Header
	a.id, a.upstream = resp.Header.Get("X-Cc-Relay-Request-Id"), resp.Header.Get("Request-Id")
	body := io.Reader(resp.Body)
	if q.slow {
		body = &slowReader{body}
	}
	if q.stream && a.status == http.StatusOK {
		return a.readStream(body)
	}
	return a.readWhole(body)
}

func (c *client) body(q question) []byte {
	system := ""
	if q.cached > 0 {
		system = fmt.Sprintf(`"system":[{"type":"text","text":%q,"cache_control":{"type":"ephemeral"}}],`, c.system[q.cached%len(c.system)])
	}
	return fmt.Appendf(nil, `{"model":%q,"max_tokens":4096,%s"messages":[{"role":"user","content":"request %d: %s%d"}],"stream":%v}`,
		q.model, system, c.asked.Add(1), deltasWord, q.deltas, q.stream)
}

// readStream reads events while they come. Its error is why the stream is not whole.
func (a *answer) readStream(body io.Reader) error {
	var s rig.Stream
	defer func() {
		a.usage, a.started, a.final, a.deltas = s.Message().Usage, s.Started(), s.Final(), s.Deltas()
	}()
	events := bufio.NewScanner(body)
	events.Split(splitEvents)
	for events.Scan() {
		if err := s.Event(events.Bytes()); err != nil {
			a.end, a.why = failed, err.Error() // no single answer contains it
			return err
		}
		if s.Message().Failed {
			a.told = true
			a.why = strings.TrimSpace(events.Text())
		}
	}
	switch err := events.Err(); {
	case a.told:
		return errors.New(a.why)
	case err != nil:
		return err
	case !s.Message().Complete:
		return errors.New("the stream ended without message_stop")
	}
	a.end = complete
	return nil
}

// splitEvents is a bufio.SplitFunc for events with the blank line that ends each.
func splitEvents(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.Index(data, []byte("\n\n")); i >= 0 {
		return i + 2, data[:i+2], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, fmt.Errorf("the stream ends inside a frame: %.60q", data)
	}
	return 0, nil, nil
}

func (a *answer) readWhole(body io.Reader) error {
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		a.end, a.why = refused, fmt.Sprintf("status %d: %.300s", a.status, b)
		var e struct {
			Type  string
			Error struct{ Type, Message string }
		}
		if err := json.Unmarshal(b, &e); err != nil || e.Type != "error" || e.Error.Type == "" || e.Error.Message == "" {
			a.end = failed
		}
		return nil
	}
	m, err := rig.ReadJSON(b)
	if err != nil {
		return err
	}
	a.end, a.usage, a.started, a.final = complete, m.Usage, true, true
	return nil
}

// slowReader reads a window each 10 ms at most.
type slowReader struct{ io.Reader }

func (s *slowReader) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return s.Reader.Read(p)
}
