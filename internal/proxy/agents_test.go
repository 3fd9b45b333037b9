package proxy_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

const ephemeral = `,"cache_control":{"type":"ephemeral"}`

// agent is one conversation of a coding agent: the main one of a session, or that
// of a subagent, which shares the session and has tools and a system of its own.
type agent struct {
	session, name string // name is "" for the main one
	invents       bool   // another session with each request
	head          string // tools and system
	messages      []string
	rng           *rand.Rand
}

func newAgent(session, name string, seed uint64) *agent {
	a := &agent{session: session, name: name, rng: rand.New(rand.NewPCG(seed, 7))}
	kind, tools, size := "main", 12, 2400
	if name != "" {
		kind, tools, size = "sub", 10, 1500
	}
	var b strings.Builder
	b.WriteString(`"tools":[`)
	for n := range tools {
		if n > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, `{"name":"%s-%d","description":%q,"input_schema":{"type":"object"}}`, kind, n, strings.Repeat("what it does ", size/13))
	}
	fmt.Fprintf(&b, `],"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1.330; cc_entrypoint=cli;"}`)
	fmt.Fprintf(&b, `,{"type":"text","text":"You are the %s agent."%s},{"type":"text","text":%q%s}]`, kind, ephemeral, strings.Repeat("rules ", 1200), ephemeral)
	a.head = b.String()
	a.hear(`{"type":"text","text":%q%s}`, "do "+session+name+strings.Repeat(" this", 100))
	return a
}

// hear adds a message of the user; %s at its end is where its breakpoint goes.
func (a *agent) hear(block, text string) {
	quoted, _ := json.Marshal(text)
	a.messages = append(a.messages, `{"role":"user","content":[`+strings.Replace(block, "%q", string(quoted), 1)+`]}`)
}

// call is the next request, with the breakpoint at the end of the last message.
func (a *agent) call() call {
	last, session := len(a.messages)-1, a.session
	if a.invents {
		session = fmt.Sprintf("%016x", a.rng.Uint64())
	}
	var b strings.Builder
	fmt.Fprintf(&b, `{"model":%q,"max_tokens":128000,"stream":true,"metadata":{"user_id":%q},`, opus, `{"device_id":"d","account_uuid":"","session_id":"`+session+`"}`)
	b.WriteString(a.head)
	b.WriteString(`,"messages":[`)
	for i, m := range a.messages {
		control := ""
		if i == last {
			control = ephemeral
		}
		b.WriteString(strings.Replace(m, "%s", control, 1))
		if i < last {
			b.WriteString(",")
		}
	}
	b.WriteString("]}")
	h := ofSession(session)
	if a.name != "" {
		h["X-Claude-Code-Agent-Id"] = []string{a.name}
	}
	return call{header: h, body: b.String()}
}

// goOn takes the answer into the conversation and the result of the tool it calls.
func (a *agent) goOn() {
	id := itoa(len(a.messages))
	a.messages = append(a.messages, `{"role":"assistant","content":[{"type":"tool_use","id":"toolu_`+id+`","name":"main-1","input":{"a":"`+strings.Repeat("x", 300)+`"}}]}`)
	a.hear(`{"type":"tool_result","tool_use_id":"toolu_`+id+`","content":%q%s}`, strings.Repeat("result ", 200+a.rng.IntN(600)))
}

// promptTokens adds up what the answers say of their prompts.
type promptTokens struct {
	mu            sync.Mutex
	read, all     int
	requests, bad int
}

func (p *promptTokens) add(t *testing.T, got reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	if got.status != 200 || got.err != nil {
		p.bad++
		return
	}
	_, data, _ := strings.Cut(got.body, "data: ")
	data, _, _ = strings.Cut(data, "\n")
	var start struct {
		Message struct {
			Usage struct {
				Input int `json:"input_tokens"`
				Write int `json:"cache_creation_input_tokens"`
				Read  int `json:"cache_read_input_tokens"`
			}
		}
	}
	assert.NoError(t, json.Unmarshal([]byte(data), &start), data)
	u := start.Message.Usage
	p.read += u.Read
	p.all += u.Read + u.Write + u.Input
}

func (p *promptTokens) share() float64 { return float64(p.read) / float64(p.all) }

// converse plays a conversation of so many turns. Its subagents run side by side.
func (a *agent) converse(t *testing.T, r *relay, turns int, got *promptTokens) {
	for turn := range turns {
		got.add(t, r.send(a.call()))
		if a.name == "" && turn%8 == 3 {
			var subs sync.WaitGroup
			for n := range 3 {
				sub := newAgent(a.session, fmt.Sprintf("agent-%d-%d", turn, n), a.rng.Uint64())
				sub.invents = a.invents
				subs.Go(func() { sub.converse(t, r, 4, got) })
			}
			subs.Wait()
		}
		a.goOn()
		time.Sleep(2*time.Second + time.Duration(a.rng.ExpFloat64()*float64(4*time.Second)))
	}
}

// agents plays some sessions against a provider and returns what came of it.
func agents(t *testing.T, net *pipes, invent bool, owners ...simulator.Organization) (*promptTokens, *sim) {
	a := net.sim(t, "a", simulator.Config{Organizations: owners, Speed: pace, Answers: simulator.Answers{MedianTokens: 60, Sigma: 0.5}})
	a.maxWait = 3 * time.Second
	r := net.relay(t, a)
	got := &promptTokens{}
	var wg sync.WaitGroup
	for n := range 10 {
		wg.Go(func() {
			time.Sleep(time.Duration(n) * 3 * time.Second)
			a := newAgent(fmt.Sprintf("session-%d", n), "", uint64(n))
			a.invents = invent
			a.converse(t, r, 24, got)
		})
	}
	wg.Wait()
	return got, a
}

// Sessions in the shape of Claude Code, spread over three organizations, read as
// much of their prompts from caches as with a single key that has room for all;
// also those of a client that names another session with each request.
func TestCachesAreUsedAsWithOneKey(t *testing.T) {
	t.Parallel()
	var one *promptTokens
	synctest.Test(t, func(t *testing.T) {
		one, _ = agents(t, newPipes(), false, owner("a", 1, simulator.Limits{RPM: 3000, ITPM: 180_000, OTPM: 150_000}))
	})
	require.Zero(t, one.bad)
	require.Greater(t, one.share(), 0.8, "the sessions are not such that caches matter")
	for name, invent := range map[string]bool{"sessions as they are": false, "invented sessions": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := simulator.Limits{RPM: 1000, ITPM: 60_000, OTPM: 50_000}
				three, a := agents(t, newPipes(), invent, owner("a", 1, limits), owner("a", 2, limits), owner("a", 3, limits))
				t.Logf("%d requests; cached with one key %.4f, with three organizations %.4f", three.requests, one.share(), three.share())
				assert.Zero(t, three.bad, "requests that were not served")
				assert.InDelta(t, one.share(), three.share(), 0.02)
				assert.Zero(t, a.sumOf(opus).Refused, "429s of the provider")
				for _, acc := range a.Snapshot(time.Now()).Accounts {
					assert.Greater(t, acc.Admitted, three.requests/10, "%s had its part of the sessions", acc.Org)
				}
			})
		})
	}
}
