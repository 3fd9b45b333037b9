package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const pace = 10 * time.Millisecond

// serveUpstream is a provider that costs next to nothing. Each event of a stream
// carries the time it was written.
func serveUpstream() error {
	const reply = `{"id":"msg_1","type":"message","role":"assistant","model":"claude-opus-5-5","content":[{"type":"text","text":"ok"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":10,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":2}}`
	return serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		if !bytes.HasSuffix(raw, []byte(`"stream":true}`)) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, reply)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		_, _ = io.WriteString(w, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\"output_tokens\":1}}}\n\n")
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for range 18 {
			<-tick.C
			_, _ = fmt.Fprintf(w, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"%d\"}}\n\n", time.Now().UnixNano())
			_ = rc.Flush()
		}
		<-tick.C
		_, _ = io.WriteString(w, "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":20}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
	}))
}

// servePlain is the baseline that anyone can rerun.
func servePlain(to string) error {
	u, err := url.Parse(to)
	if err != nil {
		return err
	}
	return serve(&httputil.ReverseProxy{
		Rewrite:       func(pr *httputil.ProxyRequest) { pr.SetURL(u) },
		FlushInterval: -1,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true},
	})
}

func newClient(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections, DisableCompression: true}}
}

// send makes one request and reads its answer to the end. lags, where not nil,
// collects how old each event was when it came, in ms.
func send(client *http.Client, t target, s scenario, lags *[]float64) error {
	req, err := http.NewRequest(http.MethodPost, t.url+"/v1/messages?beta=true", bytes.NewReader(s.body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	if lags == nil {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	return readLags(resp.Body, lags)
}

func readLags(r io.Reader, lags *[]float64) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		_, stamp, ok := strings.Cut(lines.Text(), `"text":"`)
		if !ok {
			continue
		}
		stamp, _, _ = strings.Cut(stamp, `"`)
		written, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			return err
		}
		*lags = append(*lags, float64(time.Now().UnixNano()-written)/1e6)
	}
	return lines.Err()
}
