package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
)

// provider answers as a provider would that knows all secrets and means harm.
type provider struct {
	got    *findings
	seen   *output // headers that came, less those that belong there
	seed   uint64
	number atomic.Uint64
}

// said are all secrets that could be known to somebody, and what is to be known of one
// request.
func said(prompt string) string {
	return "you sent " + strings.Join(known(), " and ") + " with " + prompt
}

// promptIn finds the canary of a prompt.
func promptIn(body []byte) string {
	i := bytes.Index(body, []byte(promptMark))
	if i < 0 {
		return ""
	}
	return string(body[i:min(len(body), i+len(promptOf(0)))])
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	p.got.count("requests at providers", 1)
	p.lookAtHeaders(r)
	rng := rand.New(rand.NewPCG(p.seed, p.number.Add(1)))
	if r.Method == http.MethodGet {
		p.models(w, rng)
		return
	}
	prompt, stream := promptIn(body)+" and "+r.Header.Get("X-Api-Key")+r.Header.Get("Authorization"), bytes.Contains(body, []byte(`"stream":true`))
	loud := rng.IntN(4) == 0
	if loud {
		shout(w.Header(), prompt)
	}
	switch kind := rng.IntN(10_000); {
	case kind < 8000:
		p.answer(w, r, prompt, stream, rng)
	case kind < 8003: // each takes a key out for good
		fail(w, 401, "authentication_error", prompt)
	case kind < 8006:
		fail(w, 402, "billing_error", prompt)
	case kind < 8050:
		w.Header().Set("Retry-After", "1")
		fail(w, 429, "rate_limit_error", prompt)
	case kind < 8300:
		fail(w, []int{500, 502, 503, 529}[rng.IntN(4)], "overloaded_error", prompt)
	case kind < 9200:
		fail(w, []int{400, 403, 404, 409, 413, 422}[rng.IntN(6)], "invalid_request_error", prompt)
	case kind < 9300:
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader([]int{400, 500, 503}[rng.IntN(3)])
		_, _ = io.WriteString(w, "<html>"+said(prompt)+"</html>")
	case kind < 9400:
		w.Header().Set("Location", "http://127.0.0.1:1/?key="+known()[0])
		w.WriteHeader(307)
	case kind < 9500:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"not a message":"`+said(prompt)+`"`)
	case kind < 9700:
		p.raw(w, "HTTP/1.1 200 OK\r\nX-Echo: "+said(prompt)+"\r\nContent-Length: 1"+known()[0]+"\r\n\r\nx")
	case kind < 9800:
		p.raw(w, said(prompt)+"\r\n\r\n")
	case kind < 9900:
		p.raw(w, "")
	default:
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: error\ndata: "+errorJSON("overloaded_error", prompt)+"\n\n")
	}
}

// shout sets headers, of those that clients may see and those that they may not.
func shout(h http.Header, prompt string) {
	for _, name := range []string{"Anthropic-Debug", "Anthropic-Ratelimit-Requests-Reset", "X-Should-Retry", "Request-Id", "Set-Cookie", "Www-Authenticate", "X-Api-Key", "Server", "Anthropic-Organization-Id", "Trailer"} {
		h.Set(name, said(prompt))
	}
	h["Anthropic-Organization-Id"] = nil // else all keys would be one organization's
}

func errorJSON(kind, prompt string) string {
	return fmt.Sprintf(`{"type":"error","error":{"type":%q,"message":%q},"request_id":%q}`, kind, said(prompt), "req_"+known()[1])
}

func fail(w http.ResponseWriter, status int, kind, prompt string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, errorJSON(kind, prompt))
}

// raw answers with bytes that are no HTTP.
func (p *provider) raw(w http.ResponseWriter, text string) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	_, _ = io.WriteString(c, text)
	if tcp, ok := c.(*net.TCPConn); ok && text == "" {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// answer is a good one, which says the prompt as models do; streamed ones may break.
func (p *provider) answer(w http.ResponseWriter, r *http.Request, prompt string, stream bool, rng *rand.Rand) {
	if strings.HasSuffix(r.URL.Path, "count_tokens") {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"input_tokens":7}`)
		return
	}
	text := "about " + promptIn([]byte(prompt)) // never a secret: what a model says passes as it is
	if !stream {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":%q}],"stop_reason":"end_turn","usage":{"input_tokens":7,"output_tokens":3}}`, text)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	frames := []string{
		`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"usage":{"input_tokens":7,"output_tokens":1}}}`,
		`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
		fmt.Sprintf(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%q}}`, text),
		`{"type":"content_block_stop","index":0}`,
		`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}`,
		`{"type":"message_stop"}`,
	}
	end, bad := len(frames), ""
	switch rng.IntN(20) {
	case 0: // cut
		end = 1 + rng.IntN(len(frames)-1)
	case 1: // an error on the way, or behind the end
		end = 1 + rng.IntN(len(frames))
		bad = errorJSON("api_error", prompt)
	}
	for _, data := range frames[:end] {
		kind, _, _ := strings.Cut(data[len(`{"type":"`):], `"`)
		_, _ = io.WriteString(w, "event: "+kind+"\ndata: "+data+"\n\n")
	}
	if bad != "" {
		_, _ = io.WriteString(w, "event: error\ndata: "+bad+"\n\n")
	}
}

func (p *provider) models(w http.ResponseWriter, rng *rand.Rand) {
	if rng.IntN(3) == 0 {
		fail(w, 500, "api_error", "")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"data":[{"type":"model","id":"claude-opus-5-5","display_name":"`+models[0]+`","created_at":"2026-01-01T00:00:00Z"}],"has_more":false}`)
}

// lookAtHeaders searches what a provider was sent for what is not for it: tokens of the
// relay's clients, and what is for another provider.
func (p *provider) lookAtHeaders(r *http.Request) {
	name := "a"
	if strings.HasPrefix(r.URL.Path, "/b") {
		name = "b"
	}
	for _, credential := range []string{"X-Api-Key", "Authorization"} {
		if strings.HasPrefix(strings.TrimPrefix(r.Header.Get(credential), "Bearer "), "sk-ant-") {
			r.Header.Del(credential) // a client may send its own past the pool, even if it is one of the pool's
		}
	}
	var all bytes.Buffer
	_, _ = fmt.Fprintf(&all, "%s %s ", r.Method, r.URL.Path) // a query is the client's, and passes
	_ = r.Header.Write(&all)
	text := strings.ReplaceAll(all.String(), headerSecret[name], "")
	p.got.look(p.seen, "headers at providers", []byte(text), "")
}
