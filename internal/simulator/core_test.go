package simulator_test

import (
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/simulator"
)

var epoch = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// naive is a token bucket in exact fractions, written from the definition.
type naive struct {
	limit, level *big.Rat
	at           time.Time
}

func newNaive(limit int) *naive {
	n := big.NewRat(int64(limit), 1)
	return &naive{limit: n, level: new(big.Rat).Set(n), at: epoch}
}

func (n *naive) move(now time.Time) {
	minutes := big.NewRat(int64(now.Sub(n.at)), int64(time.Minute))
	n.level.Add(n.level, minutes.Mul(minutes, n.limit))
	n.at = now
	n.clamp()
}

func (n *naive) clamp() {
	if n.level.Cmp(n.limit) > 0 {
		n.level.Set(n.limit)
	}
}

func (n *naive) take(k int) {
	n.level.Sub(n.level, big.NewRat(int64(k), 1))
	n.clamp()
}

// can tells whether the bucket admits k tokens, d from its time on.
func (n *naive) can(k int, d time.Duration) bool {
	c := naive{limit: n.limit, level: new(big.Rat).Set(n.level), at: n.at}
	c.move(n.at.Add(d))
	want := big.NewRat(int64(k), 1)
	if want.Cmp(c.limit) > 0 {
		want = c.limit
	}
	return c.level.Cmp(want) >= 0 && c.level.Sign() > 0
}

func (n *naive) whole() int {
	f, _ := new(big.Float).SetPrec(200).SetRat(n.level).Int64()
	if f > 0 || big.NewRat(f, 1).Cmp(n.level) == 0 {
		return int(f)
	}
	if n.level.Sign() >= 0 {
		return 0
	}
	return int(f) - 1
}

type naiveCall struct {
	call             *simulator.Call
	produced, unused int
}

func TestBucketsAgreeWithANaiveModel(t *testing.T) {
	for _, mode := range []simulator.OutputMode{simulator.OutputProduced, simulator.OutputReserved} {
		t.Run(string(mode), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) { checkBuckets(t, mode) })
		})
	}
}

func checkBuckets(t *rapid.T, mode simulator.OutputMode) {
	limits := simulator.Limits{
		RPM:  rapid.IntRange(1, 60).Draw(t, "rpm"),
		ITPM: rapid.IntRange(1, 50_000).Draw(t, "itpm"),
		OTPM: rapid.IntRange(1, 9_000).Draw(t, "otpm"),
	}
	cfg := oneOrg(limits)
	cfg.Output = mode
	core, err := simulator.NewCore(cfg, epoch)
	require.NoError(t, err)
	requests, input, output := newNaive(limits.RPM), newNaive(limits.ITPM), newNaive(limits.OTPM)
	now := epoch
	var calls []*naiveCall
	var last simulator.Levels
	pick := func(t *rapid.T) *naiveCall {
		if len(calls) == 0 {
			t.Skip("no calls")
		}
		return calls[rapid.IntRange(0, len(calls)-1).Draw(t, "call")]
	}
	t.Repeat(map[string]func(*rapid.T){
		"wait": func(t *rapid.T) {
			ns := rapid.OneOf(rapid.Int64Range(0, int64(time.Second)), rapid.Int64Range(0, int64(2*time.Minute))).Draw(t, "ns")
			now = now.Add(time.Duration(ns))
		},
		"admit": func(t *rapid.T) {
			prompt := rapid.IntRange(0, 60_000).Draw(t, "prompt")
			maxTokens := rapid.IntRange(0, 12_000).Draw(t, "max_tokens")
			reserved := 0
			if mode == simulator.OutputReserved {
				reserved = min(maxTokens, limits.OTPM)
			}
			for _, b := range []*naive{requests, input, output} {
				b.move(now)
			}
			can := func(d time.Duration) bool {
				return requests.can(1, d) && input.can(prompt, d) && output.can(reserved, d)
			}
			call, err := core.Admit(now, simulator.Demand{
				Org: "org-a", Model: "claude-opus-5-5", MaxTokens: maxTokens,
				Blocks: []simulator.Block{{Hash: 1, Tokens: prompt}},
			})
			if !can(0) {
				var refused *simulator.Refused
				require.ErrorAs(t, err, &refused)
				require.Zero(t, refused.RetryAfter%time.Second)
				require.True(t, can(refused.RetryAfter), "refused again after retry-after %v", refused.RetryAfter)
				if refused.RetryAfter > time.Second {
					require.False(t, can(refused.RetryAfter-time.Second), "retry-after %v is too long", refused.RetryAfter)
				}
				last = refused.Levels
			} else {
				require.NoError(t, err)
				requests.take(1)
				input.take(prompt)
				output.take(reserved)
				calls = append(calls, &naiveCall{call: call, unused: reserved})
				last = call.Levels()
			}
			require.Equal(t, requests.whole(), last.Requests.Remaining, "requests")
			require.Equal(t, input.whole(), last.Input.Remaining, "input")
			require.Equal(t, output.whole(), last.Output.Remaining, "output")
		},
		"produce": func(t *rapid.T) {
			c := pick(t)
			n := rapid.IntRange(0, 3_000).Draw(t, "n")
			c.call.Produce(now, n)
			output.move(now)
			output.take(max(n-c.unused, 0))
			c.unused = max(c.unused-n, 0)
			c.produced += n
			require.Equal(t, c.produced, c.call.Usage().Output)
		},
		"end": func(t *rapid.T) {
			c := pick(t)
			c.call.Begin(now)
			c.call.End(now)
			c.call.End(now)
			output.move(now)
			output.take(-c.unused)
			for i := range calls {
				if calls[i] == c {
					calls = append(calls[:i], calls[i+1:]...)
					return
				}
			}
		},
	})
}

func admit(core *simulator.Core, now time.Time, tokens int) (*simulator.Call, error) {
	return core.Admit(now, simulator.Demand{Org: "org-a", Model: "claude-opus-5-5", MaxTokens: 100, Blocks: []simulator.Block{{Hash: 1, Tokens: tokens}}})
}

func newCore(t *testing.T, cfg simulator.Config) *simulator.Core {
	t.Helper()
	core, err := simulator.NewCore(cfg, epoch)
	require.NoError(t, err)
	return core
}

func refusal(t *testing.T, err error) *simulator.Refused {
	t.Helper()
	var refused *simulator.Refused
	require.ErrorAs(t, err, &refused)
	return refused
}

func TestRetryAfterIsWhatThisRequestNeeds(t *testing.T) {
	core := newCore(t, oneOrg(simulator.Limits{RPM: 1000, ITPM: 30_000, OTPM: 8_000}))
	_, err := admit(core, epoch, 29_000)
	require.NoError(t, err)

	_, err = admit(core, epoch, 25_000)
	big := refusal(t, err)
	assert.Equal(t, simulator.InputTokens, big.Kind)
	assert.Equal(t, 30_000, big.Limit)
	assert.Equal(t, 48*time.Second, big.RetryAfter, "24,000 tokens at 500 a second")

	_, err = admit(core, epoch, 1_001)
	assert.Equal(t, time.Second, refusal(t, err).RetryAfter, "a small request waits less than a large one")
	_, err = admit(core, epoch, 1_000)
	assert.NoError(t, err, "what is left is enough")
}

func TestAPromptLargerThanTheCapacityNeedsAFullBucket(t *testing.T) {
	core := newCore(t, oneOrg(simulator.Limits{ITPM: 30_000}))
	call, err := admit(core, epoch, 90_000)
	require.NoError(t, err)
	assert.Equal(t, -60_000, call.Levels().Input.Remaining)

	_, err = admit(core, epoch, 1)
	assert.Equal(t, 121*time.Second, refusal(t, err).RetryAfter, "the debt of two minutes comes first, then the token")
	_, err = admit(core, epoch, 90_000)
	assert.Equal(t, 180*time.Second, refusal(t, err).RetryAfter, "again only when full")
	_, err = admit(core, epoch.Add(180*time.Second), 90_000)
	assert.NoError(t, err)
}

func TestOutputCountsAsProduced(t *testing.T) {
	core := newCore(t, oneOrg(simulator.Limits{OTPM: 600}))
	call, err := core.Admit(epoch, simulator.Demand{Org: "org-a", Model: "claude-opus-5-5", MaxTokens: 1_000_000})
	require.NoError(t, err, "max_tokens costs nothing")
	assert.Equal(t, 600, call.Levels().Output.Remaining)

	call.Produce(epoch, 700)
	_, err = admit(core, epoch, 1)
	r := refusal(t, err)
	assert.Equal(t, simulator.OutputTokens, r.Kind)
	assert.Equal(t, -100, r.Levels.Output.Remaining, "an answer under way is not cut short")
	assert.Equal(t, 11*time.Second, r.RetryAfter, "after 10 s the level is zero, not above it")
	_, err = admit(core, epoch.Add(11*time.Second), 1)
	assert.NoError(t, err)
}

func TestOutputReserved(t *testing.T) {
	cfg := oneOrg(simulator.Limits{OTPM: 600})
	cfg.Output = simulator.OutputReserved
	core := newCore(t, cfg)
	d := simulator.Demand{Org: "org-a", Model: "claude-opus-5-5", MaxTokens: 400}
	call, err := core.Admit(epoch, d)
	require.NoError(t, err)
	_, err = core.Admit(epoch, d)
	assert.Equal(t, 20*time.Second, refusal(t, err).RetryAfter, "200 of 400 are there, 10 come a second")

	call.Produce(epoch, 50)
	call.End(epoch)
	second, err := core.Admit(epoch, d)
	require.NoError(t, err, "350 unused tokens were given back")
	assert.Equal(t, 150, second.Levels().Output.Remaining)

	d.MaxTokens = 128_000
	_, err = core.Admit(epoch.Add(time.Minute), d)
	assert.NoError(t, err, "more than the capacity needs a full bucket only")
}

func TestTheEstimateIsCorrectedWhenTheAnswerBegins(t *testing.T) {
	cfg := oneOrg(simulator.Limits{ITPM: 30_000})
	cfg.Estimate = 1.5
	core := newCore(t, cfg)
	call, err := admit(core, epoch, 10_000)
	require.NoError(t, err)
	assert.Equal(t, 15_000, call.Levels().Input.Remaining)
	_, err = admit(core, epoch, 12_000)
	require.Error(t, err, "18,000 by estimate")

	call.Begin(epoch)
	call.Begin(epoch)
	next, err := admit(core, epoch, 12_000)
	require.NoError(t, err)
	assert.Equal(t, 2_000, next.Levels().Input.Remaining, "20,000 less the estimate")
	next.End(epoch)
	assert.Equal(t, 8_000, core.Snapshot(epoch).Accounts[0].Levels.Input.Remaining, "an answer that never began costs its true input")
}

func TestClassesHaveBucketsOfTheirOwn(t *testing.T) {
	tests := map[string]struct {
		first, second string
		shared        bool
	}{
		"opus 4.5 and 4.8":       {"claude-opus-4-5-20251101", "claude-opus-4-8", true},
		"sonnet 4.5 and 4.6":     {"claude-sonnet-4-5", "claude-sonnet-4-6", true},
		"fable 5 and 5.2":        {"claude-fable-5", "claude-fable-5-2", true},
		"dated and alias":        {"claude-haiku-4-5-20251001", "claude-haiku-4-5", true},
		"latest":                 {"claude-haiku-4-5-latest", "claude-haiku-4-5", true},
		"opus 5 and 5.5":         {"claude-opus-5", "claude-opus-5-5", false},
		"opus 4.1 and 4.5":       {"claude-opus-4-1-20250805", "claude-opus-4-5", false},
		"sonnet 5 and 4.6":       {"claude-sonnet-5", "claude-sonnet-4-6", false},
		"fable and mythos":       {"claude-fable-5", "claude-mythos-5", false},
		"unknown ones":           {"claude-x-1", "claude-x-2", false},
		"haiku 4.5 and opus 4.5": {"claude-haiku-4-5", "claude-opus-4-5", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			core := newCore(t, oneOrg(simulator.Limits{RPM: 1}))
			_, err := core.Admit(epoch, simulator.Demand{Org: "org-a", Model: tt.first})
			require.NoError(t, err)
			_, err = core.Admit(epoch, simulator.Demand{Org: "org-a", Model: tt.second})
			assert.Equal(t, tt.shared, err != nil, "second request: %v", err)
		})
	}
}

func TestOrganizationsAndTokenCountingAreApart(t *testing.T) {
	cfg := oneOrg(simulator.Limits{RPM: 1})
	cfg.Organizations[0].CountTokensRPM = 2
	cfg.Organizations[0].Classes = map[string]simulator.Limits{"opus-4": {RPM: 3}}
	cfg.Organizations = append(cfg.Organizations, simulator.Organization{ID: "org-b", Limits: simulator.Limits{RPM: 1}, Keys: []simulator.Key{{Key: "k2"}}})
	core := newCore(t, cfg)
	ask := func(org, model string) error {
		_, err := core.Admit(epoch, simulator.Demand{Org: org, Model: model})
		return err
	}
	require.NoError(t, ask("org-a", "claude-opus-5"))
	require.Error(t, ask("org-a", "claude-opus-5"))
	require.NoError(t, ask("org-b", "claude-opus-5"))
	for range 3 {
		require.NoError(t, ask("org-a", "claude-opus-4-6"), "a class with limits of its own")
	}
	require.Error(t, ask("org-a", "claude-opus-4-6"))
	for range 2 {
		_, err := core.Count(epoch, "org-a")
		require.NoError(t, err)
	}
	_, err := core.Count(epoch, "org-a")
	assert.Equal(t, 30*time.Second, refusal(t, err).RetryAfter)
	assert.True(t, errors.Is(ask("org-x", "claude-opus-5"), simulator.ErrUnknownOrganization))
	_, err = core.Count(epoch, "org-x")
	assert.ErrorIs(t, err, simulator.ErrUnknownOrganization)
}

func TestAClockThatRunsBackRefillsNothing(t *testing.T) {
	core := newCore(t, oneOrg(simulator.Limits{ITPM: 6_000}))
	_, err := admit(core, epoch, 6_000)
	require.NoError(t, err)
	_, err = admit(core, epoch.Add(-time.Hour), 100)
	require.Error(t, err)
	call, err := admit(core, epoch.Add(time.Second), 100)
	require.NoError(t, err)
	assert.Equal(t, 0, call.Levels().Input.Remaining)
}

func TestStartLevel(t *testing.T) {
	cfg := oneOrg(simulator.Limits{RPM: 60, ITPM: 30_000, OTPM: 9_000})
	cfg.StartLevel = 1.0 / 3
	core := newCore(t, cfg)
	call, err := admit(core, epoch, 0)
	require.NoError(t, err)
	got := call.Levels()
	assert.Equal(t, []int{19, 10_000, 3_000}, []int{got.Requests.Remaining, got.Input.Remaining, got.Output.Remaining})

	later, err := core.Admit(epoch.Add(20*time.Second), simulator.Demand{Org: "org-a", Model: "claude-sonnet-5"})
	require.NoError(t, err)
	assert.Equal(t, 20_000, later.Levels().Input.Remaining, "a class first asked for later has refilled since the start")
}
