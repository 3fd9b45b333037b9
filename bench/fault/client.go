package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"cc-relay/bench/rig"
)

// patience is how long a client waits for the end of an answer; longer than any
// scenario takes.
const patience = time.Minute

// model is what clients ask for.
const model = "claude-sonnet-5-5"

// reply is one request of a client and what came of it.
type reply struct {
	text     string // of the user's message
	sent     []byte
	streamed bool

	began, ended time.Time
	status       int // 0: no answer
	header       http.Header
	body         []byte
	err          error // why the answer broke off, or never came
}

// newClient retries nothing: a connection is used once, so not even the transport
// has a reason to.
func newClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// post sends one request with text and reads the answer to its end.
func post(ctx context.Context, client *http.Client, url, text string, streamed bool) *reply {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := &reply{text: text, sent: requestBody(text, streamed), streamed: streamed, began: time.Now()}
	r.err = r.exchange(ctx, client, url)
	r.ended = time.Now()
	if errors.Is(r.err, context.DeadlineExceeded) {
		r.err = fmt.Errorf("no end within %v", patience)
	}
	return r
}

func (r *reply) exchange(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/messages?beta=true", bytes.NewReader(r.sent))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Anthropic-Version", "2023-06-01")
	req.Header.Set("X-Api-Key", "fault-bench")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	r.status, r.header = resp.StatusCode, resp.Header
	r.body, err = io.ReadAll(resp.Body)
	return err
}

// requestBody has odd spaces, an unknown field and a model name inside the prompt,
// so that a relay which writes it anew gives itself away.
func requestBody(text string, streamed bool) []byte {
	return fmt.Appendf(nil, `{ "model" :"%s","max_tokens": 4096,"some_later_field":{"b":1.0, "a":[ ]},`+
		`"system":"You are %s.", "messages":[{"role":"user", "content":"%s"}],"stream":%v}`, model, model, text, streamed)
}

func (r *reply) message() (rig.Message, error) {
	if r.streamed {
		return rig.ReadStream(r.body)
	}
	return rig.ReadJSON(r.body)
}

func (r *reply) took() time.Duration { return r.ended.Sub(r.began) }
