package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// request is one of a coding agent, of about size bytes, as it goes over the wire.
func request(model string, size int, stream bool) []byte {
	body := fmt.Sprintf(`{"model":%q,"max_tokens":1000,"stream":%v,"messages":[{"role":"user","content":"`, model, stream)
	const line = `\tif err != nil {\n\t\treturn fmt.Errorf(\"read %s: %w\", path, err)\n\t}\n`
	body += strings.Repeat(line, max(1, (size-len(body))/len(line))) + `"}]}`
	return fmt.Appendf(nil, "POST /v1/messages?beta=true HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAnthropic-Version: 2023-06-01\r\n"+
		"Anthropic-Beta: claude-code-20250219,fine-grained-tool-streaming-2025-05-14\r\nUser-Agent: claude-cli/2.0.0 (external, cli)\r\nX-App: cli\r\nX-Stainless-Lang: js\r\nX-Stainless-Os: Linux\r\n"+
		"X-Api-Key: sk-none\r\nAccept: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// stream is one answer as it comes.
type stream struct {
	conn net.Conn
	in   *bufio.Reader
	body *bufio.Scanner
}

// open sends a request for a stream and reads the head of its answer.
func open(addr string, wire []byte) (*stream, error) {
	conn, err := net.DialTimeout("tcp", addr, 30*time.Second)
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, in: bufio.NewReaderSize(conn, 1<<10)}
	if err := s.send(wire); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *stream) send(wire []byte) error {
	_ = s.conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := s.conn.Write(wire); err != nil {
		return err
	}
	resp, err := http.ReadResponse(s.in, nil) //nolint:bodyclose // it ends with the connection, or is read to its end
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	_ = s.conn.SetDeadline(time.Time{})
	s.body = bufio.NewScanner(resp.Body)
	s.body.Buffer(make([]byte, 0, 512), 1<<20)
	return nil
}

var errEnded = errors.New("the stream ended")

// next returns the text of the next delta, or "" where the stream is complete.
func (s *stream) next() (string, error) {
	for s.body.Scan() {
		line := s.body.Bytes()
		switch {
		case bytes.HasPrefix(line, []byte("event: error")):
			return "", errors.New("an error event")
		case bytes.Contains(line, []byte(`"message_stop"`)):
			for s.body.Scan() { // to the end, so that the connection serves again
			}
			return "", s.body.Err()
		}
		if _, rest, ok := bytes.Cut(line, []byte(`"text_delta","text":"`)); ok {
			text, _, _ := bytes.Cut(rest, []byte(`"`))
			return string(text), nil
		}
	}
	return "", errors.Join(errEnded, s.body.Err())
}

// lag is how old an event is that says when it was written.
func lag(text string) (time.Duration, error) {
	ns, err := strconv.ParseInt(text, 10, 64)
	return time.Duration(time.Now().UnixNano() - ns), err
}
