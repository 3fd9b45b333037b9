package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// models are of several classes.
var models = []string{"claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-4-1", "claude-sonnet-4-5"}

// ownMark begins a client's own credential, which passes to a provider.
const ownMark = "sk-ant-oat01-" + secretMark

// client sends fuzzed requests to one relay.
type client struct {
	got   *findings
	out   *output
	addr  string
	http  *http.Transport
	limit time.Duration
}

// attempt is one request and what of it may come back to its client.
type attempt struct {
	prompt string
	own    string // the client's own credential, if it sent one
}

func pick(rng *rand.Rand, list []string) string { return list[rng.IntN(len(list))] }

// wild is text that is at a wrong place: a known secret, or one that the relay has never
// heard of, with or without what breaks parsers.
func wild(rng *rand.Rand, unknown bool) string {
	s := pick(rng, known())
	if unknown && rng.IntN(2) == 0 {
		s = "sk-ant-api03-" + secretMark + fmt.Sprint(rng.Uint64())
	}
	return s
}

// send makes the request of a number, sends it, and looks at what comes back.
func (c *client) send(ctx context.Context, seed uint64, number int64) {
	rng := rand.New(rand.NewPCG(seed, uint64(number)))
	a := attempt{prompt: promptOf(number)}
	c.got.count("requests sent", 1)
	if rng.IntN(50) == 0 {
		c.raw(rng, a)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method(rng), "http://"+c.addr+path(rng), strings.NewReader(body(rng, a.prompt)))
	if err != nil {
		c.got.count("requests that could not be made", 1)
		return
	}
	c.headers(req.Header, rng, &a)
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		c.got.count("answers that did not come", 1)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	c.got.count(fmt.Sprintf("answers with status %dxx", resp.StatusCode/100), 1)
	if rng.IntN(40) == 0 { // it has seen enough
		_, _ = io.CopyN(io.Discard, resp.Body, 100)
		cancel()
		return
	}
	var all bytes.Buffer
	_ = resp.Header.Write(&all)
	_, _ = io.Copy(&all, resp.Body)
	_ = resp.Trailer.Write(&all)
	c.look(all.Bytes(), a)
}

func (c *client) look(text []byte, a attempt) {
	if a.own != "" {
		text = bytes.ReplaceAll(text, []byte(a.own), nil)
	}
	for line := range bytes.Lines(text) {
		c.got.look(c.out, "answers to clients", line, a.prompt)
	}
}

func method(rng *rand.Rand) string {
	if rng.IntN(30) == 0 {
		return pick(rng, []string{"GET", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", pick(rng, known())})
	}
	return "POST"
}

func path(rng *rand.Rand) string {
	if rng.IntN(12) > 0 {
		return "/v1/messages"
	}
	s := wild(rng, false)
	return pick(rng, []string{
		"/v1/messages/count_tokens", "/v1/messages?beta=true", "/v1/messages?key=" + s, "/v1/models/" + s, "/v1/models?after_id=" + s,
		"/" + s, "/" + s + "/v1/messages", "/v1/messages/" + s + "?" + s + "=" + s, "/v1/%2e%2e/" + s, "/v1/" + encoded(s), "/readyz?" + s, "/livez", "/v1/models",
		"/%0a" + s, "/api/v1/stats?token=" + s, "//" + s + "/v1/messages",
	})
}

func encoded(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "-", "%2d")
}

func body(rng *rand.Rand, prompt string) string {
	model, more := pick(rng, models), ""
	switch rng.IntN(40) {
	case 0:
		model = wild(rng, false)
	case 1:
		model = "claude-" + wild(rng, false) + "\\n\\u001b[31m"
	case 2:
		more = `,"metadata":{"user_id":"` + wild(rng, true) + " " + prompt + `"}`
	case 3:
		more = `,"tools":[{"name":"` + prompt + `","input_schema":{"type":"object"}}]`
	case 4:
		more = `,"model":"twice ` + prompt + `"`
	case 5:
		more = `,"` + prompt + `":"` + wild(rng, true) + `"`
	case 6:
		more = `,"max_tokens":"` + prompt + `"`
	case 7:
		return `{"model":"` + model + `","messages":[{"role":"user","content":"` + prompt // ends early
	case 8:
		return prompt
	case 9:
		return `{"model":["` + prompt + `"],"messages":"` + prompt + `"}`
	case 10:
		return "\xff\x00" + prompt + wild(rng, true)
	}
	stream := rng.IntN(3) > 0
	return fmt.Sprintf(`{"model":"%s","max_tokens":16,"stream":%t,"system":"be like %s","messages":[{"role":"user","content":[{"type":"text","text":"say %s","cache_control":{"type":"ephemeral"}}]}]%s}`, model, stream, prompt, prompt, more)
}

func (c *client) headers(h http.Header, rng *rand.Rand, a *attempt) {
	h.Set("Anthropic-Version", "2023-06-01")
	h.Set("Content-Type", "application/json")
	h.Set("User-Agent", "claude-cli/2.1")
	token := pick(rng, clientTokens)
	switch rng.IntN(40) {
	default:
		h.Set([]string{"X-Api-Key", "Authorization"}[rng.IntN(2)], token)
		if v := h.Get("Authorization"); v != "" {
			h.Set("Authorization", "Bearer "+v)
		}
	case 0, 1:
		a.own = ownMark + fmt.Sprintf("-%d", rng.Uint64())
		h.Set("Authorization", "Bearer "+a.own)
	case 2: // one that is none, or a key of the pool
		a.own = wild(rng, true)
		h.Set("X-Api-Key", a.own)
	case 3:
		a.own = wild(rng, true)
		h.Set("Authorization", "Bearer "+a.own)
	case 4:
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("alice:"+token)))
	case 5:
		h["X-Api-Key"] = []string{token, pick(rng, clientTokens)}
	case 6:
		h.Set("X-Api-Key", token)
		h.Set("Authorization", "Bearer "+wild(rng, true))
	case 7:
		h.Set("X-Api-Key", token+" "+wild(rng, true))
	}
	if rng.IntN(6) > 0 {
		return
	}
	s := wild(rng, false)
	name := pick(rng, []string{
		"Cookie", "Proxy-Authorization", "X-Goog-Api-Key", "X-Forwarded-For", "Forwarded", "Referer", "Origin", "X-Real-Ip", "Idempotency-Key", "X-Cc-Relay-Key", "X-Request-Id",
		"X-Http-Method-Override", "Content-Encoding", "Accept-Encoding", "Te", "Expect", "Traceparent", "Tracestate", "Baggage", "Connection", "Range",
	})
	h.Set(name, s)
	switch rng.IntN(8) {
	case 0:
		h.Set("Content-Type", s)
	case 1:
		h.Set("X-Claude-Code-Session-Id", "session-"+fmt.Sprint(rng.IntN(50)))
	case 2:
		h.Set("X-Cc-Relay-Request-Id", a.prompt)
	case 3:
		h.Set("Cookie", a.prompt)
	}
}

// raw sends bytes that are not quite a request, and reads what comes for a moment.
func (c *client) raw(rng *rand.Rand, a attempt) {
	conn, err := net.DialTimeout("tcp", c.addr, c.limit)
	if err != nil {
		c.got.count("answers that did not come", 1)
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	s, token := wild(rng, true), pick(rng, clientTokens)
	content := body(rng, a.prompt)
	_, _ = io.WriteString(conn, pick(rng, []string{
		"GET /\x00" + s + " HTTP/1.1\r\nHost: relay\r\n\r\n",
		s + " / HTTP/1.1\r\n\r\n",
		"POST /v1/messages HTTP/" + s + "\r\n\r\n",
		"POST /v1/messages HTTP/1.1\r\nHost: " + s + "\r\n\r\n",
		"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: " + token + "\r\nContent-Length: " + s + "\r\n\r\n" + content,
		"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key : " + token + "\r\n\r\n" + content,
		"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: " + token + "\r\nTransfer-Encoding: " + s + "\r\n\r\n" + content,
		"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX-Api-Key: " + token + "\r\nTransfer-Encoding: chunked\r\n\r\n" + s + "\r\n" + content,
		"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX-Api-Key: " + token + "\r\nContent-Length: 99999\r\n\r\n" + content,
		"CONNECT " + s + ":443 HTTP/1.1\r\nHost: " + s + "\r\n\r\n",
		"POST http://" + s + "/v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + s,
		"\x16\x03\x01\x02\x00\x01" + s,
		content,
	}))
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	text, _ := io.ReadAll(bufio.NewReader(conn))
	c.look(text, a)
}
