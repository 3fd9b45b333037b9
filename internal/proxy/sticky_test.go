package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/router"
)

// turns makes the nth request of a conversation, from 0.
type turns func(n int) call

// talked is a body with n answered turns before the last message, and with what is
// put into the system prompt and into that message.
func talked(n int, system, last string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"model":%q,"max_tokens":64,"stream":%t,%s"messages":[{"role":"user","content":"begin"}`, opus, n%2 == 0, system)
	for i := range n {
		fmt.Fprintf(&b, `,{"role":"assistant","content":[{"type":"tool_use","id":"toolu_%d","name":"T","input":{}}]},{"role":"user","content":`, i)
		if i == n-1 && last != "" {
			b.WriteString(last + "}")
			continue
		}
		b.WriteString(`"go on"}`)
	}
	return b.String() + "]}"
}

// Ways to tell a conversation, and what is none.
var (
	sticky = map[string]turns{
		"a session":       func(n int) call { return call{header: ofSession("s"), body: talked(n, "", "")} },
		"a session of id": func(n int) call { return call{body: withUserID(talked(n, "", ""), `{"session_id":"s"}`)} },
		"a cached prompt": func(n int) call {
			return call{body: talked(n, `"system":[{"type":"text","text":"rules","cache_control":{"type":"ephemeral"}}],`, "")}
		},
		"a tool loop": func(n int) call {
			return call{body: talked(n+1, "", `[{"type":"tool_result","tool_use_id":"toolu_x","content":"ok"}]`)}
		},
	}
	loose turns = func(n int) call { return call{body: talked(n, `"system":"others",`, "")} }
)

// A conversation stays where it is served, moves when that fails, and stays there.
func TestAConversationStaysOnItsProvider(t *testing.T) {
	for name, turn := range sticky {
		for what, fail := range map[string]act{"529": answers(529), "500": answers(500), "429": answers(429), "hangs up": hangsUp} {
			t.Run(name+", "+what, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					net := newPipes()
					a, b, c := net.actor(t, "a", well), net.actor(t, "b", well), net.actor(t, "c", well)
					r := net.cast(t, router.Config{}, a, b, c)
					n := 0
					at := func() string {
						got := r.do(turn(n))
						n++
						require.Equal(t, 200, got.status, got.body)
						return got.header.Get("X-Cc-Relay-Provider")
					}
					assert.Equal(t, "a", at())
					assert.Equal(t, "a", at())
					a.fares(fail)
					assert.Equal(t, "b", at(), "it moves")
					a.fares(well)
					time.Sleep(2 * time.Minute) // whatever kept requests away from a is over
					for range 10 {
						assert.Equal(t, "b", at(), "it stays where it moved to")
					}
					assert.Equal(t, map[string]int{"a": 2}, tally(t, r, 2, call{body: ask(opus, true)}), "others go where they are to go")
					b.fares(answers(529))
					assert.Equal(t, "a", at(), "it moves again, in the rule's order")
					b.fares(well)
					assert.Equal(t, "a", at())
					assert.Empty(t, c.got())
				})
			})
		}
	}
}

// Requests that are no conversation's follow the strategy, whoever served the last.
func TestRequestsWithoutAConversationStayNowhere(t *testing.T) {
	t.Run("after one failure", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a, b := net.actor(t, "a", answers(529)), net.actor(t, "b", well)
			r := net.cast(t, router.Config{}, a, b)
			assert.Equal(t, map[string]int{"b": 1}, tally(t, r, 1, loose(0)))
			a.fares(well)
			for n := range 6 {
				assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, loose(n)))
			}
		})
	})
	t.Run("after an outage", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a, b := net.actor(t, "a", well), net.actor(t, "b", well)
			r := net.cast(t, router.Config{}, a, b)
			moved, began := call{header: ofSession("moved"), body: ask(opus, true)}, call{header: ofSession("began"), body: ask(opus, true)}
			assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, moved))
			a.fares(answers(529))
			assert.Equal(t, map[string]int{"b": 10}, tally(t, r, 10, loose(1)))
			assert.Equal(t, map[string]int{"b": 1}, tally(t, r, 1, moved))
			assert.Equal(t, map[string]int{"b": 1}, tally(t, r, 1, began))
			require.Equal(t, health.Open, r.lane("a", opus).Status().State)
			a.fares(well)
			time.Sleep(5 * time.Second) // open
			assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, loose(1)))
			time.Sleep(10 * time.Second) // the ramp
			assert.Equal(t, map[string]int{"a": 10}, tally(t, r, 10, loose(1)))
			assert.Equal(t, map[string]int{"b": 5}, tally(t, r, 5, moved), "conversations stay")
			assert.Equal(t, map[string]int{"b": 5}, tally(t, r, 5, began))
		})
	})
	t.Run("by turns", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			net := newPipes()
			a, b := net.actor(t, "a", well), net.actor(t, "b", well)
			r := net.cast(t, router.Config{Strategy: router.StrategyRoundRobin}, a, b)
			for name, turn := range sticky {
				first := ""
				for n := range 6 { // others come between
					got := r.do(turn(n))
					at := got.header.Get("X-Cc-Relay-Provider")
					if n == 0 {
						first = at
					}
					assert.Equal(t, first, at, "%s, turn %d", name, n)
					tally(t, r, 1, loose(n))
				}
			}
			assert.Equal(t, map[string]int{"a": 10, "b": 10}, tally(t, r, 20, loose(1)))
		})
	})
}

// A conversation has its home for as long as a cache would last, from its last turn.
func TestHowLongAConversationStays(t *testing.T) {
	kept := func(ttl string) call {
		return call{header: ofSession("s"), body: talked(0, `"system":[{"type":"text","text":"rules","cache_control":{"type":"ephemeral"`+ttl+`}}],`, "")}
	}
	for name, tt := range map[string]struct {
		call call
		life time.Duration
	}{
		"a session":              {sticky["a session"](0), 5 * time.Minute},
		"a prompt for 5 minutes": {kept(""), 5 * time.Minute},
		"a prompt for an hour":   {kept(`,"ttl":"1h"`), time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", answers(529)), net.actor(t, "b", well)
				r := net.cast(t, router.Config{}, a, b)
				assert.Equal(t, map[string]int{"b": 1}, tally(t, r, 1, tt.call))
				a.fares(well)
				for range 3 {
					time.Sleep(tt.life - time.Second)
					assert.Equal(t, map[string]int{"b": 1}, tally(t, r, 1, tt.call), "within its life")
				}
				time.Sleep(tt.life)
				assert.Equal(t, map[string]int{"a": 1}, tally(t, r, 1, tt.call), "after it")
			})
		})
	}
}

// What one conversation does moves no other: neither another client's of the same
// name, nor the same session's with another model or another prompt.
func TestConversationsMoveAlone(t *testing.T) {
	system := func(about string) string {
		return `"system":[{"type":"text","text":"` + about + `","cache_control":{"type":"ephemeral"}}],`
	}
	mine := call{header: ofSession("s"), body: talked(1, system("agent"), "")}
	for name, other := range map[string]call{
		"another client":         {header: ofSession("s"), body: mine.body, token: bobToken},
		"another session":        {header: ofSession("t"), body: mine.body},
		"a subagent":             {header: ofSession("s"), body: talked(1, system("subagent"), "")},
		"a request for a title":  {header: ofSession("s"), body: ask(haiku, false)},
		"no session, not cached": {body: talked(1, "", "")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a, b := net.actor(t, "a", well), net.actor(t, "b", well)
				r := net.cast(t, router.Config{}, a, b)
				a.fares(answers(529))
				assert.Equal(t, map[string]int{"b": 1}, tally(t, r, 1, mine))
				a.fares(well)
				assert.Equal(t, map[string]int{"a": 2}, tally(t, r, 2, other))
				assert.Equal(t, map[string]int{"b": 2}, tally(t, r, 2, mine))
			})
		})
	}
}
