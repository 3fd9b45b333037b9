package proxy

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/messages"
	"cc-relay/internal/router"
)

// Account is how one request went and why: what it could choose from and what it
// chose, at each place of its plan. It holds nothing of what the request or an answer
// said, no header, and of who asked in which session only a keyed hash. Times are in
// milliseconds.
type Account struct {
	ID               string    `json:"id"` // the relay's own, x-cc-relay-request-id
	At               time.Time `json:"at"`
	Client           string    `json:"client,omitempty"` // as configured
	Path             string    `json:"path"`
	Model            string    `json:"model"`
	Class            string    `json:"class"`
	Stream           bool      `json:"stream"`
	Conversation     string    `json:"conversation,omitempty"` // keyed hash, valid within one state directory
	Rule             string    `json:"rule,omitempty"`         // models[N] or default
	Strategy         string    `json:"strategy,omitempty"`
	Home             bool      `json:"home"` // the provider that served the conversation last came first
	Outcome          string    `json:"outcome,omitempty"`
	Verdict          string    `json:"verdict,omitempty"` // of the last attempt
	Status           int       `json:"status,omitempty"`  // what the client got
	Duration         float64   `json:"duration_ms"`
	TTFT             float64   `json:"ttft_ms"`     // until the status and the first content were sent
	Overhead         float64   `json:"overhead_ms"` // the relay's own part of ttft_ms
	Wait             float64   `json:"wait_ms"`     // for a key
	Tokens           Tokens    `json:"tokens"`
	Partial          bool      `json:"partial,omitempty"` // the answer did not end, so its tokens are what was seen
	OwnCredential    bool      `json:"own_credential,omitempty"`
	ThinkingStripped int       `json:"thinking_stripped,omitempty"`
	Skipped          []Skipped `json:"skipped,omitempty"` // targets that were not asked at all
	Steps            []Step    `json:"attempts"`
	Further          int       `json:"further_attempts,omitempty"` // beyond the 16 that are kept
}

// Tokens are counts of tokens by kind; Input excludes what the cache gave or took.
type Tokens struct {
	Input      int `json:"input"`
	CacheWrite int `json:"cache_write"`
	CacheRead  int `json:"cache_read"`
	Output     int `json:"output"`
}

// Skipped is a target that was not asked at all: Why is draining, breaker_open or
// lacks_model.
type Skipped struct {
	Provider string    `json:"provider"`
	Model    string    `json:"model"`
	Class    string    `json:"class"`
	Why      string    `json:"why"`
	Until    time.Time `json:"until,omitzero"` // when Why ends by itself
}

// Step is one place of a plan. Verdict of a place where nothing was sent is
// breaker_open or no_key; of a dry run serves, waits, no_key or breaker_open.
type Step struct {
	Provider string           `json:"provider"`
	Model    string           `json:"model"`
	Class    string           `json:"class"`
	Key      string           `json:"key,omitempty"`
	Verdict  string           `json:"verdict"`
	Status   int              `json:"status,omitempty"`
	Duration float64          `json:"duration_ms"`
	Choice   *keypool.Account `json:"choice,omitempty"`
}

// Verdicts of steps without an attempt.
const (
	stepClosed = "breaker_open"
	stepNoKey  = "no_key"
)

// foreseen are those of a dry run.
var foreseen = map[keypool.Outcome]string{
	keypool.OutcomeServed:  "serves",
	keypool.OutcomeWait:    "waits",
	keypool.OutcomeRefused: stepNoKey,
}

// keptAccounts is how many requests are remembered.
const keptAccounts = 1000

// accounts remembers the last requests. It is safe for concurrent use.
type accounts struct {
	mu   sync.Mutex
	ring [keptAccounts]Account
	next int
}

// choices are accounts of choices to fill: what the ring forgets is used again.
var choices = sync.Pool{New: func() any { return &keypool.Account{Keys: []keypool.KeyAccount{}} }}

// takeAccount returns an empty one: who leaves before the choice leaves it so.
func takeAccount() *keypool.Account {
	c := choices.Get().(*keypool.Account)
	*c = keypool.Account{Keys: c.Keys[:0]}
	return c
}

func giveBack(c *keypool.Account) {
	if c != nil {
		choices.Put(c)
	}
}

// keep remembers the request in place of the oldest.
func (s *accounts) keep(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := &s.ring[s.next]
	s.next = (s.next + 1) % len(s.ring)
	for i := range slot.Steps {
		giveBack(slot.Steps[i].Choice)
	}
	steps := slot.Steps[:0]
	for i := range x.steps {
		steps = append(steps, x.shown(&x.steps[i]))
	}
	*slot = x.account()
	slot.Steps = steps
}

// account is what there is to tell of the request, but for its steps.
func (x *exchange) account() Account {
	return Account{
		ID: x.id, At: x.start, Client: x.client, Path: x.route, Model: x.printable(x.model), Class: x.demand.Class, Stream: x.stream,
		Conversation: hashed(x.demand.Conversation), Rule: x.rule, Strategy: x.strategy, Home: x.home,
		Outcome: x.outcome, Verdict: x.verdict.String(), Status: x.status,
		Duration: ms(x.took), TTFT: ms(x.firstToken()), Overhead: ms(x.overhead()), Wait: ms(x.waited),
		Tokens: tokensOf(x.usage), Partial: x.partial, OwnCredential: x.own, ThinkingStripped: x.stripped,
		Skipped: leftOut(x.skipped, x.printable), Further: x.further,
	}
}

func (x *exchange) shown(s *step) Step {
	one := Step{
		Provider: s.upstream, Model: x.printable(s.model), Class: s.class, Key: s.key, Verdict: s.verdict.String(),
		Status: s.status, Duration: ms(s.took), Choice: s.choice,
	}
	switch {
	case s.closed:
		one.Verdict = stepClosed
	case !s.sent:
		one.Verdict = stepNoKey
	}
	return one
}

// leftOut shows skips; printable is for the model, which a client wrote.
func leftOut(skips []router.Skip, printable func(string) string) []Skipped {
	var left []Skipped
	for _, s := range skips {
		left = append(left, Skipped{Provider: s.Provider, Model: printable(s.Model), Class: s.Class, Why: string(s.Why), Until: s.Until})
	}
	return left
}

// overhead is what the relay itself took of the time to the first byte: from the end
// of the body, without attempts and waits.
func (x *exchange) overhead() time.Duration {
	if x.firstByte == 0 {
		return 0
	}
	return max(0, x.firstByte-x.received-x.upstream-x.waited)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func hashed(h uint64) string {
	if h == 0 {
		return ""
	}
	return strconv.FormatUint(h, 16)
}

// clone is a copy that shares nothing with the ring.
func (a *Account) clone() Account {
	c := *a
	c.Steps = make([]Step, len(a.Steps))
	for i, s := range a.Steps {
		if s.Choice != nil {
			choice := *s.Choice
			choice.Keys = slices.Clone(choice.Keys)
			s.Choice = &choice
		}
		c.Steps[i] = s
	}
	return c
}

// Explain returns the account of one of the last 1,000 requests by its relay request
// id, or false.
func (h *Handler) Explain(id string) (Account, bool) {
	s := &h.accounts
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.ring {
		if id != "" && s.ring[i].ID == id {
			return s.ring[i].clone(), true
		}
	}
	return Account{}, false
}

// Recent returns the accounts of the last requests, the newest first, at most limit.
func (h *Handler) Recent(limit int) []Account {
	s := &h.accounts
	s.mu.Lock()
	defer s.mu.Unlock()
	var recent []Account
	for i := range s.ring {
		a := &s.ring[(s.next-1-i+2*len(s.ring))%len(s.ring)]
		if a.ID == "" || len(recent) == limit {
			break
		}
		recent = append(recent, a.clone())
	}
	return recent
}

// Trial is a request that is not made.
type Trial struct {
	Client    string // as configured; "": one without a name
	Model     string
	Tokens    int // of the prompt, none of it cached
	MaxTokens int
}

// DryRun tells what would become of a request now. It changes nothing: no limit, no
// turn, no conversation. Error: *router.UnreachableError.
func (h *Handler) DryRun(t Trial) (Account, error) {
	live, now := h.live.Load(), time.Now()
	class := live.Classes.Of(t.Model)
	demand := keypool.Demand{Class: class, Model: t.Model, Client: t.Client, Tokens: t.Tokens, MaxTokens: t.MaxTokens, Arrived: now}
	a := Account{At: now, Client: t.Client, Path: "/v1/messages", Model: t.Model, Class: class, Steps: []Step{}}
	plan, err := live.Router.Preview(&router.Query{Model: t.Model, Class: class, Client: t.Client, Demand: demand, Now: now})
	if err != nil {
		return a, err
	}
	a.Rule, a.Strategy, a.Skipped = plan.Rule, plan.Strategy, leftOut(plan.Skipped, func(s string) string { return legible(h.Scrub(s)) })
	for i := range plan.Candidates {
		c := &plan.Candidates[i]
		demand.Class, demand.Model = c.Class, c.Asks(t.Model)
		choice := c.Upstream.Pool.Preview(now, demand)
		step := Step{
			Provider: c.Upstream.Provider.Name(), Model: demand.Model, Class: c.Class, Key: choice.Key, Verdict: foreseen[choice.Outcome], Choice: &choice,
		}
		if !letsIn(*c) {
			step.Verdict = stepClosed
		}
		a.Steps = append(a.Steps, step)
	}
	return a, nil
}

// tokensOf gives the counts their names in an account.
func tokensOf(u messages.Usage) Tokens {
	return Tokens{Input: u.Input, CacheWrite: u.CacheWrite, CacheRead: u.CacheRead, Output: u.Output}
}

// Scrub takes the known secrets out of a text: of the configuration in force and of those
// before it.
func (h *Handler) Scrub(text string) string { return h.scrub.Load().clean(text) }
