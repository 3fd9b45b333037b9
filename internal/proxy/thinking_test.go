package proxy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/router"
	"cc-relay/internal/simulator"
)

// signatureOf is what every answer of a provider is signed with.
func signatureOf(name string) string { return "EqQB/" + name + "+AbC=" }

// thinks answers with a thought, and then with a tool call where the request has tools.
func thinks(name string) func(simulator.Request) simulator.Reply {
	return func(req simulator.Request) simulator.Reply {
		blocks := []simulator.ReplyBlock{{Type: simulator.ThinkingBlock, Text: "a thought of " + name, Signature: signatureOf(name)}}
		if len(req.Tools) > 0 {
			return simulator.Reply{Blocks: append(blocks, simulator.ReplyBlock{Type: simulator.ToolUseBlock, Name: req.Tools[0]})}
		}
		return simulator.Reply{Blocks: append(blocks, simulator.ReplyBlock{Text: "an answer"})}
	}
}

// thinker is a provider whose models think, by its origin.
func thinker(t testing.TB, name, origin string, keys int, f ...simulator.Fault) *sim {
	s := startSim(t, name, keys, simulator.Config{Reply: thinks(name), Faults: f})
	s.Origin = origin
	return s
}

// thought is a block of a request with the signature of a provider, or any other.
func thought(signature string) string {
	return `{"type":"thinking","thinking":"what, it [thought] {\"of\"}","signature":"` + signature + `"}`
}

const someText = `{ "type" : "text", "text":"\u00e9" }`

// conversation is a request whose messages of the user and of the model take turns.
func conversation(model string, stream bool, contents ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"model":%q, "max_tokens":64,"stream":%t,"messages":[ `, model, stream)
	for i, content := range contents {
		if i > 0 {
			b.WriteString(" , ")
		}
		fmt.Fprintf(&b, `{"role":%q,"content":[%s]}`, []string{"user", "assistant"}[i%2], content)
	}
	return b.String() + `]}`
}

// to is a rule that leads a model to these targets.
func to(model string, targets ...string) router.Rule {
	return router.Rule{Match: []string{model}, Targets: targets}
}

// last is the body of a provider's last request.
func (s *sim) last() string {
	seen := s.Seen()
	return string(seen[len(seen)-1].Body)
}

// remembers a signature of each of these models, by asking each for an answer.
func (r *relay) remembers(t testing.TB, stream bool, models ...string) {
	t.Helper()
	for _, model := range models {
		got := r.do(call{body: ask(model, stream)})
		requireServed(t, got, stream)
		require.Contains(t, got.body, "EqQB/")
	}
}

// Blocks that another vendor's model made are left out, and nothing else is touched.
func TestForeignThinkingIsLeftOut(t *testing.T) {
	leakFree(t)
	for _, stream := range []bool{true, false} {
		x, also, y := thinker(t, "x", "x", 1), thinker(t, "also", "x", 1), thinker(t, "y", "y", 1)
		r := newRelay(t, setup{upstreams: []upstream{x.upstream, also.upstream, y.upstream}, routes: router.Config{Rules: []router.Rule{
			to("claude-x", "x"), to("claude-also", "also"), to("claude-y", "y"),
		}}})
		r.remembers(t, stream, "claude-x", "claude-y")
		r.handler.Swap(r.live) // a reload forgets nothing
		ofX, ofY, unknown := thought(signatureOf("x")), thought(signatureOf("y")), thought("EqQB/nobody+AbC=")
		for name, tt := range map[string]struct {
			content  string            // of the model's message
			left     map[string]string // of it, by provider; "" the whole message goes
			stripped map[string]float64
		}{
			"none":            {someText, nil, nil},
			"unknown":         {unknown + `,` + someText, nil, nil},
			"without":         {`{"type":"thinking","thinking":"x"},{"type":"thinking","thinking":"x","signature":""},` + someText, nil, nil},
			"of x":            {ofX + ` , ` + someText, map[string]string{"y": ` ` + someText}, map[string]float64{"y": 1}},
			"of y":            {someText + ` ,` + ofY, map[string]string{"x": someText + ` `, "also": someText + ` `}, map[string]float64{"x": 1, "also": 1}},
			"of both":         {ofX + `,` + unknown + `,` + ofY + `,` + someText, map[string]string{"x": ofX + `,` + unknown + `,` + someText, "also": ofX + `,` + unknown + `,` + someText, "y": unknown + `,` + ofY + `,` + someText}, map[string]float64{"x": 1, "also": 1, "y": 1}},
			"twice":           {ofX + `,` + ofX + `,` + someText, map[string]string{"y": someText}, map[string]float64{"y": 2}},
			"escaped":         {strings.Replace(ofX, "EqQB/", `EqQB\/`, 1) + `,` + someText, map[string]string{"y": someText}, map[string]float64{"y": 1}},
			"redacted":        {`{"type":"redacted_thinking","data":"` + signatureOf("x") + `"},` + someText, map[string]string{"y": someText}, map[string]float64{"y": 1}},
			"nothing else":    {ofX, map[string]string{"y": ""}, map[string]float64{"y": 1}},
			"as the text":     {`{"type":"text","text":"` + signatureOf("x") + `","signature":"` + signatureOf("x") + `"}`, nil, nil},
			"as a user's tag": {`{"type":"text","text":"x","thinking":{"type":"thinking","signature":"` + signatureOf("x") + `"}}`, nil, nil},
		} {
			for at, s := range map[string]*sim{"x": x, "also": also, "y": y} {
				t.Run(fmt.Sprintf("%s, to %s, stream=%t", name, at, stream), func(t *testing.T) {
					body := conversation("claude-"+at, stream, someText, tt.content, someText)
					want := body
					if left, some := tt.left[at]; some && left == "" {
						want = conversation("claude-"+at, stream, someText, "", someText)
						want = strings.Replace(want, ` , {"role":"assistant","content":[]}`, " ", 1)
					} else if some {
						want = conversation("claude-"+at, stream, someText, left, someText)
					}
					for _, path := range []string{"/v1/messages", "/v1/messages/count_tokens"} {
						got := r.do(call{path: path, body: body})
						require.Equal(t, 200, got.status, got.body)
						assert.Equal(t, want, s.last())
						require.True(t, json.Valid([]byte(s.last())))
						if tt.stripped[at] > 0 {
							assert.InDelta(t, tt.stripped[at], got.record["thinking_stripped"], 0)
						} else {
							assert.NotContains(t, got.record, "thinking_stripped")
						}
					}
				})
			}
		}
	}
}

// Between two doors to the models of one maker a body is never edited, whoever made
// what is in it.
func TestThinkingIsKeptWithinAnOrigin(t *testing.T) {
	leakFree(t)
	a, b := thinker(t, "a", "anthropic", 1), thinker(t, "b", "anthropic", 1)
	r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}, routes: router.Config{Rules: []router.Rule{to("claude-a", "a"), to("claude-b", "b")}}})
	r.remembers(t, true, "claude-a", "claude-b")
	for at, s := range map[string]*sim{"a": a, "b": b} {
		body := conversation("claude-"+at, false, someText, thought(signatureOf("a"))+`,`+thought(signatureOf("b"))+`,`+thought("other"), someText)
		got := r.do(call{body: body})
		requireServed(t, got, false)
		assert.Equal(t, body, s.last())
		assert.NotContains(t, got.record, "thinking_stripped")
	}
}

// A request that moves is dressed anew for each provider that it is sent to.
func TestThinkingInARequestThatMoves(t *testing.T) {
	leakFree(t)
	once := status(529)
	once.Nth = 2 // after what is remembered of it
	ofX, ofY := thought(signatureOf("x")), thought(signatureOf("y"))
	body := conversation("claude-both", true, someText, ofX+`,`+ofY+`,`+someText, someText)
	atX := conversation("claude-both", true, someText, ofX+`,`+someText, someText)
	atY := conversation("claude-both", true, someText, ofY+`,`+someText, someText)
	start := func(t *testing.T, targets []string, fx, fy simulator.Fault) (r *relay, x, y *sim) {
		x, y = thinker(t, "x", "x", 1, fx), thinker(t, "y", "y", 1, fy)
		r = newRelay(t, setup{upstreams: []upstream{x.upstream, y.upstream}, routes: router.Config{Rules: []router.Rule{
			to("claude-x", "x"), to("claude-y", "y"), to("claude-both", targets...),
		}}})
		r.remembers(t, true, "claude-x", "claude-y")
		return r, x, y
	}
	bodies := func(s *sim) (all []string) {
		for _, rec := range s.Seen()[1:] {
			all = append(all, string(rec.Body))
		}
		return all
	}
	t.Run("from x to y", func(t *testing.T) {
		r, x, y := start(t, []string{"x", "y"}, once, simulator.Fault{Kind: simulator.FaultDelay, Delay: 1})
		got := r.do(call{body: body})
		requireServed(t, got, true)
		assert.Equal(t, []string{atX}, bodies(x))
		assert.Equal(t, []string{atY}, bodies(y))
		assert.InDelta(t, 1, got.record["thinking_stripped"], 0)
	})
	t.Run("and back to x", func(t *testing.T) {
		refuses := status(401)
		refuses.From = 2
		r, x, y := start(t, []string{"x", "y"}, once, refuses)
		plain := strings.Replace(body, ofY+`,`, "", 1)
		got := r.do(call{body: plain})
		requireServed(t, got, true)
		assert.Equal(t, []string{plain, plain}, bodies(x), "nothing is missing where it came from")
		assert.Equal(t, []string{conversation("claude-both", true, someText, someText, someText)}, bodies(y))
		assert.Equal(t, "3", got.header.Get("X-Cc-Relay-Attempts"))
		assert.NotContains(t, got.record, "thinking_stripped", "what served had all of it")
	})
	t.Run("to another model there", func(t *testing.T) {
		r, x, y := start(t, []string{"x", "y/claude-another-one"}, once, simulator.Fault{Kind: simulator.FaultDelay, Delay: 1})
		for _, want := range []string{strings.Replace(atY, "claude-both", "claude-another-one", 1), ""} {
			got := r.do(call{header: ofSession(want), body: body}) // the second goes to x at once
			requireServed(t, got, true)
			if want != "" {
				assert.Equal(t, want, y.last())
				assert.InDelta(t, 1, got.record["thinking_stripped"], 0)
			}
		}
		assert.Equal(t, []string{atX, atX}, bodies(x), "the client's own name for the model")
	})
}

// loop is a conversation in the middle of a tool loop, of n calls answered so far.
func loop(model string, n int) string {
	body := conversation(model, true, someText)
	tools := strings.Replace(body, `"messages"`, `"tools":[{"name":"Bash","input_schema":{"type":"object"}}],"messages"`, 1)
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,{"role":"assistant","content":[%s,{"type":"tool_use","id":"t%d","name":"Bash","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t%d","content":"ok"}]}`, thought(signatureOf("x")), i, i)
	}
	return strings.TrimSuffix(tools, "]}") + b.String() + "]}"
}

// While the client answers tool calls, the provider that made them goes on, however
// requests are spread.
func TestAToolLoopStaysWithItsProvider(t *testing.T) {
	leakFree(t)
	for _, strategy := range router.Strategies() {
		t.Run(strategy, func(t *testing.T) {
			x, y := thinker(t, "x", "x", 2), thinker(t, "y", "y", 2)
			r := newRelay(t, setup{upstreams: []upstream{x.upstream, y.upstream}, routes: router.Config{
				Strategy: strategy, Rules: []router.Rule{to("claude-x", "x"), to("claude-both", "x", "y")},
			}})
			r.remembers(t, true, "claude-x")
			begun := map[string]bool{}
			for n := range 40 { // until one began at each
				first := r.do(call{header: ofSession(itoa(n)), body: loop("claude-both", 0)})
				requireServed(t, first, true)
				home := first.header.Get("X-Cc-Relay-Provider")
				for turn := 1; turn <= 4; turn++ {
					requireServed(t, r.do(call{header: ofSession("another " + itoa(n) + itoa(turn)), body: ask("claude-both", true)}), true)
					body := loop("claude-both", turn)
					got := r.do(call{header: ofSession(itoa(n)), body: body})
					requireServed(t, got, true)
					require.Equal(t, home, got.header.Get("X-Cc-Relay-Provider"), "turn %d", turn)
					if home == "x" {
						require.Equal(t, body, x.last())
					}
				}
				if begun[home] = true; len(begun) == 2 || strategy == router.StrategyFailover || strategy == router.StrategyCost {
					break
				}
			}
			assert.Contains(t, begun, "x", "it proves little")
		})
	}
}

// It is worth waiting for its key, as long as requests may wait at all; for others the
// next provider is there at once.
func TestAToolLoopWaitsForItsProvider(t *testing.T) {
	for name, tt := range map[string]struct {
		maxWait time.Duration
		waits   time.Duration // 0: it moves on
	}{"long enough": {3 * time.Second, 2 * time.Second}, "too long": {time.Second, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				limits, level := perSecond(2)
				x := net.sim(t, "x", simulator.Config{Organizations: []simulator.Organization{owner("x", 1, limits)}, StartLevel: level, Reply: thinks("x")})
				y := net.sim(t, "y", simulator.Config{Organizations: []simulator.Organization{owner("y", 1, simulator.Limits{})}, Reply: thinks("y")})
				x.Origin, y.Origin, x.maxWait = "x", "y", tt.maxWait
				r := net.relay(t, x, y)
				first := r.do(call{header: ofSession("one"), body: loop(opus, 0)})
				requireServed(t, first, true)
				require.Equal(t, "x", first.header.Get("X-Cc-Relay-Provider"))

				got := r.do(call{header: ofSession("two"), body: loop(opus, 0)})
				requireServed(t, got, true)
				assert.Equal(t, "y", got.header.Get("X-Cc-Relay-Provider"), "what has just begun does not wait")
				assert.Zero(t, waited(t, got))

				body := loop(opus, 1)
				start := time.Now()
				got = r.do(call{header: ofSession("one"), body: body})
				requireServed(t, got, true)
				assert.Equal(t, tt.waits, waited(t, got))
				assert.Equal(t, tt.waits, time.Since(start))
				if tt.waits > 0 {
					assert.Equal(t, "x", got.header.Get("X-Cc-Relay-Provider"))
					assert.Equal(t, body, x.last())
					assert.NotContains(t, got.record, "thinking_stripped")
					return
				}
				assert.Equal(t, "y", got.header.Get("X-Cc-Relay-Provider"))
				assert.NotContains(t, y.last(), signatureOf("x"))
				assert.InDelta(t, 1, got.record["thinking_stripped"], 0)
			})
		})
	}
}

// Where its provider cannot go on, another does, without what it cannot read. If it
// does not like that, the client is told: it knows how to mend its request.
func TestAToolLoopMovesWhereItMust(t *testing.T) {
	leakFree(t)
	broken := func(f simulator.Fault) simulator.Fault {
		f.From = 2
		return f
	}
	for name, f := range map[string]simulator.Fault{
		"overloaded": broken(status(529)), "broken": broken(status(500)), "refused": broken(status(401)), "limited": broken(limit429("60")),
		"spent": broken(status(402)), "forbidden": broken(status(403)), "lost": broken(simulator.Fault{Kind: simulator.FaultReset}),
	} {
		for _, mends := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, served=%t", name, mends), func(t *testing.T) {
				x, y := thinker(t, "x", "x", 1, f), thinker(t, "y", "y", 1)
				if !mends {
					require.NoError(t, y.SetFaults(faults(worded(400, "messages.1.content.0: `thinking` is missing"))))
				}
				r := newRelay(t, setup{upstreams: []upstream{x.upstream, y.upstream}})
				requireServed(t, r.do(call{header: ofSession("one"), body: loop(opus, 0)}), true)
				got := r.do(call{header: ofSession("one"), body: loop(opus, 2)})
				assert.Equal(t, strings.ReplaceAll(loop(opus, 2), thought(signatureOf("x"))+",", ""), y.last())
				assert.InDelta(t, 2, got.record["thinking_stripped"], 0)
				assert.Equal(t, "y", got.header.Get("X-Cc-Relay-Provider"))
				assert.Len(t, y.Seen(), 1)
				assert.Len(t, x.Seen(), 2)
				if !mends {
					e := requireErrorOf(t, got, 400, "invalid_request_error")
					assert.Equal(t, "messages.1.content.0: `thinking` is missing", e)
					return
				}
				requireServed(t, got, true)
				if f.Status == http.StatusInternalServerError || f.Kind == simulator.FaultReset {
					return
				}
				got = r.do(call{header: ofSession("one"), body: loop(opus, 3)})
				requireServed(t, got, true)
				assert.Equal(t, "y", got.header.Get("X-Cc-Relay-Provider"), "it has moved, and stays there")
			})
		}
	}
}

// requireErrorOf checks an error that a provider worded and returns its words.
func requireErrorOf(t testing.TB, got reply, status int, kind string) string {
	t.Helper()
	return requireError(t, got, status, kind).Error.Message
}

// What is remembered is bounded: beyond it the oldest is forgotten, and kept in
// bodies like all that is unknown.
func TestTheMemoryOfThinkingIsBounded(t *testing.T) {
	leakFree(t)
	const bound = 100_000
	var answer strings.Builder
	answer.WriteString(`{"type":"message","usage":{"input_tokens":1,"output_tokens":1},"content":[`)
	for n := range bound + 1 {
		fmt.Fprintf(&answer, `{"type":"thinking","signature":"s%d"},`, n)
	}
	answer.WriteString(`{"type":"text","text":""}]}`)
	x := upstream{keys: []string{keyOf("x", 1)}}
	x.Name, x.Origin, x.BaseURL = "x", "x", serve(t, says(answer.String()))
	y := thinker(t, "y", "y", 1)
	r := newRelay(t, setup{upstreams: []upstream{x, y.upstream}, routes: router.Config{Rules: []router.Rule{to("claude-x", "x"), to("claude-y", "y")}}})
	require.Equal(t, 200, r.do(call{body: ask("claude-x", false)}).status)
	body := func(blocks ...string) string {
		return conversation("claude-y", false, someText, strings.Join(append(blocks, someText), ","), someText)
	}
	first, second, last := thought("s0"), thought("s1"), thought("s"+itoa(bound))
	got := r.do(call{body: body(first, second, last)})
	requireServed(t, got, false)
	assert.Equal(t, body(first), y.last())
	assert.InDelta(t, 2, got.record["thinking_stripped"], 0)
}

// A client's own credential goes to the provider with the body as it is.
func TestOwnCredentialsKeepTheirThinking(t *testing.T) {
	leakFree(t)
	x := thinker(t, "x", "x", 1)
	a := startSim(t, "a", 1, simulator.Config{Organizations: []simulator.Organization{{ID: "own", Keys: []simulator.Key{{Key: ownKey}}}}})
	a.upstream = anthropics(a.upstream)
	r := newRelay(t, setup{own: true, upstreams: []upstream{x.upstream, a.upstream}, routes: router.Config{Rules: []router.Rule{to("claude-x", "x"), to("claude-a", "a")}}})
	r.remembers(t, true, "claude-x")
	body := conversation("claude-a", false, someText, thought(signatureOf("x"))+`,`+someText, someText)
	requireServed(t, r.do(call{body: body}), false)
	require.NotContains(t, a.last(), signatureOf("x"))
	got := r.do(asOwn(http.Header{"X-Api-Key": {ownKey}}, body))
	requireServed(t, got, false)
	assert.Equal(t, body, a.last())
	assert.NotContains(t, got.record, "thinking_stripped")
}
