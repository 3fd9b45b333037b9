package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/bench/rig"
	"cc-relay/internal/simulator"
)

// Frames of an answer.
const (
	delta     = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"one \"}}\n\n"
	blockStop = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
	closing   = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\n\n"
	stop      = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	failure   = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"broken\"}}\n\n"
)

// A bench that cannot fail shows nothing: these are relays that do one thing wrong
// each, and some that do right what little they do.

// against plays one scenario through a relay made of a handler that is given the
// two providers.
func against(t *testing.T, id string, streamed bool, relay func(*lab) http.HandlerFunc) result {
	t.Helper()
	chosen, err := pick(id)
	require.NoError(t, err)
	s := chosen[0]
	l, err := newLab(t.Context(), s, streamed, simulator.Speed{EventsPerSecond: 1000, TokensPerEvent: deltaSize / 4})
	require.NoError(t, err)
	t.Cleanup(l.close)
	srv := httptest.NewServer(relay(l))
	t.Cleanup(srv.Close)
	l.url = srv.URL
	play := s.whole
	if streamed {
		play = s.streamed
	}
	return l.play(play)
}

// sendTo makes one attempt.
func sendTo(ctx context.Context, u *upstream, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+u.addr+"/v1/messages", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Api-Key", keyOf(u.name, 0))
	req.Header.Set("Anthropic-Version", "2023-06-01")
	return newClient().Do(req)
}

// show writes what came, and ends as it ended where honest.
func show(w http.ResponseWriter, resp *http.Response, honest bool) (whole bool) {
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, err := io.Copy(flushing{w}, resp.Body)
	if err != nil && honest {
		panic(http.ErrAbortHandler)
	}
	return err == nil
}

// flushing sends each write at once.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	return n, errors.Join(err, http.NewResponseController(f.ResponseWriter).Flush())
}

// plain shows what the primary says, come what may.
func plain(l *lab) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		resp, err := sendTo(r.Context(), l.primary, body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		show(w, resp, true)
	}
}

// stubborn goes to the fallback after so many attempts at the primary, of which
// only a status of 200 is good. change may spoil the body.
func stubborn(attempts int, change func([]byte) []byte) func(*lab) http.HandlerFunc {
	return func(l *lab) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			for range attempts {
				if held, ok := hold(sendTo(r.Context(), l.primary, body)); ok {
					_, _ = held.WriteTo(w)
					return
				}
			}
			held, _ := hold(sendTo(r.Context(), l.fallback, change(body)))
			_, _ = held.WriteTo(w)
		}
	}
}

func asIs(b []byte) []byte { return b }

// hold reads an answer to its end; false where it is not good.
func hold(resp *http.Response, err error) (*bytes.Buffer, bool) {
	var held bytes.Buffer
	if err != nil {
		return &held, false
	}
	defer resp.Body.Close()
	_, err = held.ReadFrom(resp.Body)
	return &held, err == nil && resp.StatusCode == http.StatusOK
}

// splice goes on with the fallback's answer where the primary's breaks off, after
// change has made it fit.
func splice(change func(string) string) func(*lab) http.HandlerFunc {
	return func(l *lab) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			resp, err := sendTo(r.Context(), l.primary, body)
			if err != nil || show(w, resp, false) {
				return
			}
			held, _ := hold(sendTo(r.Context(), l.fallback, body))
			_, _ = io.WriteString(w, change(held.String()))
		}
	}
}

// forge ends what broke off with frames of its own.
func forge(end string) func(*lab) http.HandlerFunc {
	return func(l *lab) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			resp, err := sendTo(r.Context(), l.primary, body)
			if err != nil || show(w, resp, false) {
				return
			}
			_, _ = io.WriteString(w, end)
		}
	}
}

// deltasOnly leaves out how an answer begins, so that it reads on.
func deltasOnly(answer string) string {
	_, rest, _ := strings.Cut(answer, "content_block_start")
	_, rest, _ = strings.Cut(rest, "\n\n")
	return rest
}

// rewrite encodes the body anew.
func rewrite(body []byte) []byte {
	var v map[string]any
	if json.Unmarshal(body, &v) != nil {
		return body
	}
	body, _ = json.Marshal(v)
	return body
}

func TestWrongRelaysFail(t *testing.T) {
	for name, tt := range map[string]struct {
		id       string
		streamed bool
		relay    func(*lab) http.HandlerFunc
		want     string
	}{
		"no failover":                 {"S03", true, plain, "attempts: primary 1, fallback 0, want 1 and 1; status 500"},
		"no failover of a cut body":   {"S08", false, plain, "no whole answer: "},
		"a clean end":                 {"S11", true, plain, "it ended cleanly, without an error event"},
		"an answer nobody gave":       {"S11", false, plain, "not one JSON object"},
		"no patience":                 {"O07b", false, plain, "no answer: "},
		"the same provider again":     {"S03", false, stubborn(2, asIs), "attempts: primary 2, fallback 0"},
		"the same provider too often": {"S13b", false, stubborn(2, asIs), "attempts: primary 2, fallback 0, want 1 and 0"},
		"elsewhere with a 400":        {"S12", true, stubborn(1, asIs), "attempts: primary 1, fallback 1, want 1 and 0; status 200"},
		"no cool-down":                {"S01", false, stubborn(1, asIs), "want at least 2s"},
		"no cool-down of its own":     {"S02", true, stubborn(1, asIs), "want at least 1s"},
		"no breaker":                  {"O02", false, stubborn(1, asIs), "asked 20 times"},
		"another body":                {"S14", false, stubborn(1, rewrite), "the fallback got another body"},
		"two answers":                 {"S08", true, splice(asText), "a second message_start"},
		"two answers made one":        {"S08", true, splice(deltasOnly), "as if it were whole"},
		"two answers before content":  {"S16", true, splice(asText), "a second message_start"},
		"a forged end":                {"S08", true, forge(blockStop + closing + stop), "as if it were whole"},
		"a forged end after an error": {"S08", true, forge(failure + stop), "message_stop after the end"},
		"a quiet end":                 {"S08", true, forge(""), "ended cleanly"},
		"an invented delta":           {"S08", true, forge(delta + failure), "the primary sent others"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := against(t, tt.id, tt.streamed, tt.relay)
			require.Error(t, r.err)
			assert.Contains(t, r.reason(), tt.want)
		})
	}
}

func asText(s string) string { return s }

func TestRightRelaysPass(t *testing.T) {
	for name, tt := range map[string]struct {
		id       string
		streamed bool
		relay    func(*lab) http.HandlerFunc
		cost     cost
	}{
		"a 400 is passed on":       {"S12", true, plain, cost{1, 0}},
		"a refusal is passed on":   {"S13", false, plain, cost{1, 0}},
		"failover":                 {"S03", true, stubborn(1, asIs), cost{1, 1}},
		"failover of a body":       {"S08", false, stubborn(1, asIs), cost{1, 1}},
		"whose answer":             {"S16", false, stubborn(1, asIs), cost{1, 1}},
		"a broken connection":      {"S08", true, plain, cost{1, 0}},
		"a broken one, mid-frame":  {"S08b", true, plain, cost{1, 0}},
		"an error event":           {"S08", true, forge(failure), cost{1, 0}},
		"an error event after all": {"S11", true, cleanEnd, cost{1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := against(t, tt.id, tt.streamed, tt.relay)
			require.NoError(t, r.err)
			assert.Equal(t, tt.cost, r.cost)
		})
	}
}

// cleanEnd tells a client that a stream ended too early.
func cleanEnd(l *lab) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		held, ok := hold(sendTo(r.Context(), l.primary, body))
		_, _ = w.Write(held.Bytes())
		if m, _ := rig.ReadStream(held.Bytes()); ok && !m.Complete {
			_, _ = io.WriteString(w, failure)
		}
	}
}

func TestSpaced(t *testing.T) {
	at := func(seconds ...float64) []call {
		var calls []call
		for _, s := range seconds {
			calls = append(calls, call{at: time.Unix(0, int64(s*1e9))})
		}
		return calls
	}
	assert.NoError(t, spaced(nil, time.Second))
	assert.NoError(t, spaced(at(0, 1, 3, 7), time.Second))
	assert.ErrorContains(t, spaced(at(0, 0.5), time.Second), "request 2 came 0.50 s")
	assert.ErrorContains(t, spaced(at(0, 1, 2), time.Second), "request 3 came 1.00 s after the one before, want at least 2s")
}
