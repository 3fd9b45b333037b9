package simulator_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

func replying(blocks ...simulator.ReplyBlock) simulator.Config {
	cfg := oneOrg(simulator.Limits{})
	cfg.Reply = func(simulator.Request) simulator.Reply { return simulator.Reply{Blocks: blocks} }
	return cfg
}

func TestStreamGrammar(t *testing.T) {
	text := "Zwölf Boxkämpfer jagen Viktor quer über den Deich. \U0001f680" + strings.Repeat("日本", 20)
	sim := newSim(t, replying(
		simulator.ReplyBlock{Type: simulator.ThinkingBlock, Text: "let me see", Signature: "c2ln"},
		simulator.ReplyBlock{Text: text},
		simulator.ReplyBlock{Text: ""},
		simulator.ReplyBlock{Type: simulator.ToolUseBlock, Name: "Bash", Input: []byte(`{"command":"echo \"hi\""}`)},
	))
	w := post(sim, "k1", say("hi", true, 1000))
	require.Equal(t, http.StatusOK, w.Code)
	assert.Equal(t, "text/event-stream; charset=utf-8", w.Header().Get("Content-Type"))
	list := events(t, w.Body.String())
	n := names(list)
	assert.Equal(t, []string{"message_start", "ping", "content_block_start"}, n[:3])
	assert.Equal(t, []string{"content_block_stop", "message_delta", "message_stop"}, n[len(n)-3:])

	said := make([]string, 4)
	open, deltas := -1, 0
	for _, e := range list[2 : len(list)-2] {
		i := int(e.data["index"].(float64))
		switch e.name {
		case "content_block_start":
			require.Equal(t, open+1, i, "blocks come one after the other")
			open = i
		case "content_block_delta":
			require.Equal(t, open, i)
			d := e.data["delta"].(map[string]any)
			for _, field := range []string{"text", "thinking", "partial_json"} {
				s, _ := d[field].(string)
				said[i] += s
			}
			deltas++
		case "content_block_stop":
			require.Equal(t, open, i)
		default:
			t.Errorf("%s inside the blocks", e.name)
		}
	}
	assert.Equal(t, []string{"let me see", text, "", `{"command":"echo \"hi\""}`}, said)
	assert.Equal(t, 3, open)
	assert.Greater(t, deltas, 6)

	start := list[0].data["message"].(map[string]any)
	assert.Equal(t, "claude-opus-5-5", start["model"])
	assert.Nil(t, start["stop_reason"])
	assert.EqualValues(t, 1, start["usage"].(map[string]any)["output_tokens"], "a small value to start with")
	assert.EqualValues(t, 3, start["usage"].(map[string]any)["input_tokens"], "10 bytes of values")
	end := list[len(list)-2].data
	assert.Equal(t, "tool_use", end["delta"].(map[string]any)["stop_reason"])
	assert.EqualValues(t, 3+simulator.CountTokens(len(text))+0+7, end["usage"].(map[string]any)["output_tokens"])
	assert.Equal(t, 3+simulator.CountTokens(len(text))+0+7, sim.Seen()[0].Usage.Output, "reported and counted are the same")
}

func TestJSONAnswerIsWhatTheStreamSays(t *testing.T) {
	sim := newSim(t, replying(
		simulator.ReplyBlock{Type: simulator.ThinkingBlock, Text: "hm", Signature: "c2ln"},
		simulator.ReplyBlock{Text: "<hello>"},
		simulator.ReplyBlock{Type: simulator.ToolUseBlock, Name: "Bash"},
	))
	w := post(sim, "k1", say("hi", false, 1000))
	assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
	m := decode(t, w.Body.String())
	assert.Equal(t, []string{"message", "assistant", "claude-opus-5-5", "tool_use"}, []string{m.Type, m.Role, m.Model, m.StopReason})
	require.Len(t, m.Content, 3)
	assert.Equal(t, "hm", m.Content[0].Thinking)
	assert.Equal(t, "c2ln", m.Content[0].Signature)
	assert.Equal(t, "<hello>", m.Content[1].Text)
	assert.Equal(t, "Bash", m.Content[2].Name)
	assert.JSONEq(t, `{}`, string(m.Content[2].Input))
	assert.Equal(t, 1+2+1, m.Usage.Output)
}

func TestUsageAHookClaims(t *testing.T) {
	cfg := oneOrg(simulator.Limits{})
	cfg.Reply = func(simulator.Request) simulator.Reply {
		return simulator.Reply{Blocks: []simulator.ReplyBlock{{Text: "1234"}}, StopReason: "refusal", Usage: &simulator.Usage{Input: -7, CacheRead: 5, Output: 99}}
	}
	sim := newSim(t, cfg)
	m := decode(t, post(sim, "k1", say("hi", false, 10)).Body.String())
	assert.Equal(t, "refusal", m.StopReason)
	assert.Equal(t, usage{Input: -7, Read: 5, Output: 99}, m.Usage)
	assert.Equal(t, simulator.Usage{Input: 3, Output: 1}, sim.Seen()[0].Usage, "the record has the truth")
}

// clock is a ResponseWriter that notes when each flush came, and what by then.
type clock struct {
	*httptest.ResponseRecorder
	start   time.Time
	flushes []time.Duration
	sizes   []int // of the body by then
}

func (c *clock) Flush() {
	c.flushes = append(c.flushes, time.Since(c.start))
	c.sizes = append(c.sizes, c.Body.Len())
	c.ResponseRecorder.Flush()
}

func newClock() *clock {
	return &clock{ResponseRecorder: httptest.NewRecorder(), start: time.Now()}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := replying(simulator.ReplyBlock{Text: strings.Repeat("abcd", 30)})
		cfg.Speed = simulator.Speed{FirstEvent: 2 * time.Second, EventsPerSecond: 4, TokensPerEvent: 10}
		sim := newSim(t, cfg)
		w := newClock()
		sim.ServeHTTP(w, request(http.MethodPost, "/v1/messages", "k1", say("hi", true, 100)))
		ms := time.Millisecond
		assert.Equal(t, []time.Duration{
			2000 * ms, 2000 * ms, 2000 * ms, // message_start, ping, content_block_start
			2000 * ms, 2250 * ms, 2500 * ms, // three deltas of 10 tokens
			2500 * ms, 2500 * ms, 2500 * ms,
		}, w.flushes, "one flush an event")

		before := time.Now()
		post(sim, "k1", say("hi", false, 100))
		assert.Equal(t, 2500*ms, time.Since(before), "an answer that is not a stream takes as long")
	})
}

func TestGenerationStopsWhenTheClientLeaves(t *testing.T) {
	for name, stream := range map[string]bool{"stream": true, "json": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := replying(simulator.ReplyBlock{Text: strings.Repeat("abcd", 1000)})
				cfg.Organizations[0].Limits.OTPM = 60_000
				cfg.Speed = simulator.Speed{EventsPerSecond: 10, TokensPerEvent: 10}
				sim := newSim(t, cfg)
				ctx, cancel := context.WithTimeout(t.Context(), 2050*time.Millisecond)
				defer cancel()
				r := request(http.MethodPost, "/v1/messages", "k1", say("hi", stream, 1000)).WithContext(ctx)
				start := time.Now()
				sim.ServeHTTP(httptest.NewRecorder(), r)
				assert.Equal(t, 2050*time.Millisecond, time.Since(start))
				rec := sim.Seen()[0]
				assert.True(t, rec.ClientLeft)
				assert.True(t, rec.Done)
				assert.Equal(t, 210, rec.Usage.Output, "21 deltas were made by then")
				assert.Equal(t, 210, sim.Snapshot(time.Now()).Accounts[0].Output)
			})
		})
	}
}

func TestAClientThatLeavesBeforeTheFirstEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := replying(simulator.ReplyBlock{Text: "abcd"})
		cfg.Speed.FirstEvent = time.Minute
		sim := newSim(t, cfg)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		sim.ServeHTTP(httptest.NewRecorder(), request(http.MethodPost, "/v1/messages", "k1", say("hi", true, 9)).WithContext(ctx))
		rec := sim.Seen()[0]
		assert.True(t, rec.ClientLeft)
		assert.Zero(t, rec.Status, "no status was sent")
		assert.Equal(t, simulator.Usage{Input: 3}, rec.Usage)
	})
}

func TestParallelIdenticalRequestsAllMissTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := replying(simulator.ReplyBlock{Text: "abcd"})
		cfg.Speed.FirstEvent = time.Second
		sim := newSim(t, cfg)
		b := body(`"messages":[{"role":"user","content":[` + blockJSON(bigText, mark) + `]}]`)
		for range 5 {
			go post(sim, "k1", b)
		}
		time.Sleep(2 * time.Second)
		post(sim, "k1", b)
		seen := sim.Seen()
		require.Len(t, seen, 6)
		for _, rec := range seen[:5] {
			assert.Equal(t, simulator.Usage{Write5m: 1002, Output: 1}, rec.Usage)
		}
		assert.Equal(t, simulator.Usage{CacheRead: 1002, Output: 1}, seen[5].Usage)
	})
}
