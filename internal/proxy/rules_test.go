package proxy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/router"
)

const sonnet = "claude-sonnet-5-5"

// The first rule that is for a request says where it goes and what is asked there,
// and counting tokens follows.
func TestRules(t *testing.T) {
	leakFree(t)
	names := []string{"a", "b", "c"}
	rule := func(targets string, r router.Rule) router.Rule {
		r.Targets = strings.Fields(targets)
		return r
	}
	for name, tt := range map[string]struct {
		routes router.Config
		model  string
		token  string
		at     string // provider/model; "" where nothing leads
	}{
		"no rules": {router.Config{}, opus, "", "a/" + opus},
		"by name": {router.Config{Rules: []router.Rule{
			rule("a", router.Rule{Match: []string{haiku}}), rule("b", router.Rule{Match: []string{opus}}),
		}}, opus, "", "b/" + opus},
		"by pattern": {router.Config{Rules: []router.Rule{
			rule("a", router.Rule{Match: []string{"claude-haiku-*"}}), rule("b", router.Rule{Match: []string{"gpt-*", "claude-*"}}),
		}}, opus, "", "b/" + opus},
		"the first that fits": {router.Config{Rules: []router.Rule{
			rule("c", router.Rule{Match: []string{"claude-*"}}), rule("b", router.Rule{Match: []string{opus}}),
		}}, opus, "", "c/" + opus},
		"by class": {router.Config{Rules: []router.Rule{
			rule("a", router.Rule{Class: "haiku-5-5"}), rule("b", router.Rule{Class: "opus-5-5"}),
		}}, opus + "-20260901", "", "b/" + opus + "-20260901"},
		"by class and pattern": {router.Config{Rules: []router.Rule{
			rule("a", router.Rule{Class: "opus-5-5", Match: []string{"*-1"}}), rule("b", router.Rule{Class: "opus-5-5", Match: []string{"*-2"}}),
		}}, opus + "-2", "", "b/" + opus + "-2"},
		"by client": {router.Config{Rules: []router.Rule{
			rule("a", router.Rule{Match: []string{"*"}, Clients: []string{"alice"}}), rule("b", router.Rule{Match: []string{"*"}, Clients: []string{"bob"}}),
		}}, opus, bobToken, "b/" + opus},
		"by client, who is another": {router.Config{Rules: []router.Rule{
			rule("b", router.Rule{Match: []string{"*"}, Clients: []string{"bob"}}),
		}, Default: []string{"c"}}, opus, "", "c/" + opus},
		"default":                  {router.Config{Rules: []router.Rule{rule("a", router.Rule{Match: []string{haiku}})}, Default: []string{"c", "a"}}, opus, "", "c/" + opus},
		"default without rules":    {router.Config{Default: []string{"b"}}, opus, "", "b/" + opus},
		"default, another model":   {router.Config{Default: []string{"b/" + sonnet}}, opus, "", "b/" + sonnet},
		"another model":            {router.Config{Rules: []router.Rule{rule("b/"+sonnet, router.Rule{Match: []string{opus}})}}, opus, "", "b/" + sonnet},
		"a model of nobody's":      {router.Config{Rules: []router.Rule{rule("b/"+sonnet, router.Rule{Match: []string{"gpt-*"}})}}, "gpt-9", "", "b/" + sonnet},
		"an alias":                 {router.Config{Aliases: map[string]string{"fast": haiku}}, "fast", "", "a/" + haiku},
		"an alias of an alias":     {router.Config{Aliases: map[string]string{"quick": "fast", "fast": haiku}}, "quick", "", "a/" + haiku},
		"an alias, rule by model":  {router.Config{Aliases: map[string]string{"fast": haiku}, Rules: []router.Rule{rule("b", router.Rule{Match: []string{haiku}})}}, "fast", "", "b/" + haiku},
		"an alias, rule by alias":  {router.Config{Aliases: map[string]string{"fast": haiku}, Rules: []router.Rule{rule("b", router.Rule{Match: []string{"fast"}})}}, "fast", "", "b/" + haiku},
		"an alias, rule by class":  {router.Config{Aliases: map[string]string{"fast": haiku}, Rules: []router.Rule{rule("b", router.Rule{Class: "haiku-5-5"})}}, "fast", "", "b/" + haiku},
		"an alias, another model":  {router.Config{Aliases: map[string]string{"fast": haiku}, Rules: []router.Rule{rule("b/"+sonnet, router.Rule{Match: []string{"fast"}})}}, "fast", "", "b/" + sonnet},
		"nothing leads there":      {router.Config{Rules: []router.Rule{rule("a", router.Rule{Match: []string{"claude-haiku-*"}}), rule("b", router.Rule{Class: "sonnet-5-5"})}, Aliases: map[string]string{"fast": haiku}}, opus, "", ""},
		"nothing leads her there":  {router.Config{Rules: []router.Rule{rule("a", router.Rule{Match: []string{"*"}, Clients: []string{"bob"}})}}, opus, "", ""},
		"an alias that leads away": {router.Config{Rules: []router.Rule{rule("a", router.Rule{Match: []string{"claude-haiku-*"}})}, Aliases: map[string]string{"best": opus}}, "best", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			sims := map[string]*sim{}
			s := setup{routes: tt.routes}
			for _, one := range names {
				sims[one] = newSim(t, one, 1)
				s.upstreams = append(s.upstreams, sims[one].upstream)
			}
			r, seen := newRelay(t, s), 0
			for _, way := range []string{"stream", "JSON", "count_tokens"} {
				c := call{token: tt.token, body: ask(tt.model, way == "stream")}
				if way == "count_tokens" {
					c.path = "/v1/messages/count_tokens"
				}
				got := r.do(c)
				if tt.at == "" {
					requireError(t, got, 404, "not_found_error")
					for _, s := range sims {
						assert.Empty(t, s.Seen(), "%s: asked", way)
					}
					continue
				}
				require.Equal(t, 200, got.status, "%s: %s", way, got.body)
				seen++
				at := []string{}
				for _, one := range names {
					for _, rec := range sims[one].Seen() {
						at = append(at, one+"/"+rec.Model)
					}
				}
				assert.Equal(t, slices.Repeat([]string{tt.at}, seen), at, way)
			}
		})
	}
}

// A client whose model leads nowhere is told what does, and nothing of others' rules.
func TestWhatIsReachable(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := newRelay(t, setup{upstreams: []upstream{a.upstream}, routes: router.Config{
		Rules: []router.Rule{
			{Match: []string{"claude-haiku-*", haiku}, Targets: []string{"a"}},
			{Class: "sonnet-5-5", Targets: []string{"a"}},
			{Match: []string{"secret-model"}, Clients: []string{"bob"}, Targets: []string{"a/" + haiku}},
		},
		Aliases: map[string]string{"fast": haiku},
	}})
	for token, bobs := range map[string]bool{aliceToken: false, bobToken: true} {
		e := requireError(t, r.do(call{token: token, body: ask(opus, false)}), 404, "not_found_error")
		for _, name := range []string{"claude-haiku-*", haiku, "class sonnet-5-5", "fast"} {
			assert.Contains(t, e.Error.Message, name)
		}
		assert.Equal(t, bobs, strings.Contains(e.Error.Message, "secret-model"), e.Error.Message)
		assert.True(t, strings.HasPrefix(e.Error.Message, "model: "), "as the API begins it: %s", e.Error.Message)
	}
	assert.Empty(t, a.Seen(), "the provider was asked")
}

// Where a target has another model, the provider gets the client's bytes with
// nothing but the model's name changed, and its answer passes as it is.
func TestAnotherModelIsASplice(t *testing.T) {
	leakFree(t)
	for name, body := range map[string]string{
		"odd spaces":    "{ \"stream\":false ,\n\t\"model\" :  \"NAME\" , \"messages\":[ {\"role\":\"user\",\"content\":\"claude-opus-5-5 \\u00e4 ü \\/\"} ],\"max_tokens\":60}\n",
		"at the end":    `{"max_tokens":60,"messages":[{"role":"user","content":"\"model\":\"NAME\""}],"stream":true,"model":"NAME"}`,
		"nested before": `{"metadata":{"model":"other","user_id":"x"},"messages":[{"role":"user","content":[{"type":"text","text":"hi","model":"other"}]}],"max_tokens":60,"model":"NAME"}`,
		"unknown parts": `{"model":"NAME","future":{"a":[1.50,1e3,null]},"max_tokens":60,"messages":[{"role":"user","content":"hi"}]}`,
	} {
		for _, written := range []string{opus, `claude\u002dopus-5-5`} {
			for target, want := range map[string]string{sonnet: sonnet, "claude-x": "claude-x", "claude-a/b:c@d": "claude-a/b:c@d"} {
				t.Run(fmt.Sprintf("%s, %s as %s", name, written, target), func(t *testing.T) {
					a := newSim(t, "a", 1)
					r := newRelay(t, setup{upstreams: []upstream{a.upstream}, routes: router.Config{Rules: []router.Rule{{Match: []string{opus}, Targets: []string{"a/" + target}}}}})
					body := strings.Replace(body, `"NAME"`, `"`+written+`"`, 1)
					for _, path := range []string{"/v1/messages", "/v1/messages/count_tokens"} {
						got := r.do(call{path: path, body: body})
						require.Equal(t, 200, got.status, got.body)
						seen := a.Seen()[len(a.Seen())-1]
						wants := strings.Replace(body, `"`+written+`"`, `"`+want+`"`, 1)
						assert.Equal(t, wants, string(seen.Body))
						assert.Equal(t, itoa(len(wants)), seen.Header.Get("Content-Length"))
						assert.Equal(t, seen.RequestID, got.header.Get("Request-Id"))
					}
				})
			}
		}
	}
	t.Run("the answer names the model that made it", func(t *testing.T) {
		a := newSim(t, "a", 1)
		r := newRelay(t, setup{upstreams: []upstream{a.upstream}, routes: router.Config{Default: []string{"a/" + sonnet}}})
		for _, stream := range []bool{true, false} {
			got := r.do(call{body: ask(opus, stream)})
			requireServed(t, got, stream)
			assert.Contains(t, got.body, `"model":"`+sonnet+`"`)
			assert.NotContains(t, got.body, opus)
			assert.Equal(t, opus, got.record["model"], "as it was asked for")
		}
	})
	t.Run("and where nothing else serves, the next target's", func(t *testing.T) {
		a, b := newSim(t, "a", 1, status(529)), newSim(t, "b", 1)
		r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}, routes: router.Config{Default: []string{"a/" + sonnet, "b/" + haiku}}})
		requireServed(t, r.do(call{body: ask(opus, true)}), true)
		assert.Equal(t, ask(sonnet, true), string(a.Seen()[0].Body))
		assert.Equal(t, ask(haiku, true), string(b.Seen()[0].Body))
	})
}

// A rule's targets, strategy and weights are its own.
func TestRulesHaveTheirOwnStrategy(t *testing.T) {
	leakFree(t)
	a, b := newSim(t, "a", 1), newSim(t, "b", 1)
	r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}, routes: router.Config{
		Strategy: router.StrategyFailover,
		Rules: []router.Rule{
			{Match: []string{opus}, Targets: []string{"b", "a"}, Strategy: router.StrategyWeighted, Weights: []int{3, 1}},
			{Match: []string{haiku}, Targets: []string{"b", "a"}, Strategy: router.StrategyRoundRobin},
			{Match: []string{"*"}, Targets: []string{"b", "a"}},
		},
	}})
	for range 4 { // by turns: the rules do not share theirs
		for range 2 {
			requireServed(t, r.do(call{body: ask(opus, false)}), false)
		}
		requireServed(t, r.do(call{body: ask(haiku, false)}), false)
		requireServed(t, r.do(call{body: ask(sonnet, false)}), false)
	}
	count := func(s *sim, model string) (n int) {
		for _, rec := range s.Seen() {
			if rec.Model == model {
				n++
			}
		}
		return n
	}
	assert.Equal(t, []int{2, 6}, []int{count(a, opus), count(b, opus)}, "opus")
	assert.Equal(t, []int{2, 2}, []int{count(a, haiku), count(b, haiku)}, "haiku")
	assert.Equal(t, []int{0, 4}, []int{count(a, sonnet), count(b, sonnet)}, "the rest")
}
