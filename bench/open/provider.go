package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// What a request's model asks of the provider.
const (
	modelOpen  = "claude-open"  // an event a second, without end
	modelPaced = "claude-paced" // an event every pace, with the time it was written, for a while
	modelFlood = "claude-flood" // events as fast as they are taken
	modelReply = "claude-reply" // JSON, after a while
)

const (
	pace      = 20 * time.Millisecond
	paced     = 50 // events of a paced stream
	replyTime = 200 * time.Millisecond
)

// serveProvider answers on connections of its own, with as little as there can be.
func serveProvider() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "{\"listen\":%q}\n", l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go serveConn(conn)
	}
}

func serveConn(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReaderSize(conn, 1<<10)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if err := answer(conn, body); err != nil {
			return
		}
	}
}

const (
	streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\nRequest-Id: req_bench\r\n\r\n"
	begin      = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"usage\":{\"input_tokens\":10,\"output_tokens\":1}}}\n\n" +
		"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
	finish = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n" +
		"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":20}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	reply = `{"id":"msg_1","type":"message","role":"assistant","model":"claude-reply","content":[{"type":"text","text":"ok"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":10,"output_tokens":2}}`
)

func delta(text string) string {
	return "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"" + text + "\"}}\n\n"
}

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func answer(conn net.Conn, body []byte) error {
	asks := func(model string) bool { return bytes.Contains(body[:min(len(body), 64)], []byte(model)) }
	send := func(s string) error {
		_, err := io.WriteString(conn, s)
		return err
	}
	switch {
	case asks(modelReply):
		time.Sleep(replyTime)
		return send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(reply), reply))
	case asks(modelOpen):
		return every(time.Second, -1, send, func() string { return "word" })
	case asks(modelPaced):
		return every(pace, paced, send, func() string { return fmt.Sprint(time.Now().UnixNano()) })
	}
	if err := send(streamHead + chunk(begin)); err != nil {
		return err
	}
	for flood := chunk(string(bytes.Repeat([]byte(delta("many words in a row, that nobody reads")), 8))); ; {
		if err := send(flood); err != nil {
			return err
		}
	}
}

// every sends n events, or without end where n is negative.
func every(d time.Duration, n int, send func(string) error, text func() string) error {
	if err := send(streamHead + chunk(begin)); err != nil {
		return err
	}
	tick := time.NewTicker(d)
	defer tick.Stop()
	for range tick.C {
		if n == 0 {
			return send(chunk(finish) + "0\r\n\r\n")
		}
		n--
		if err := send(chunk(delta(text()))); err != nil {
			return err
		}
	}
	return nil
}
