package simulator_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

const (
	short = 5 * time.Minute
	long  = time.Hour
)

// turn is one request of a cache scenario.
type turn struct {
	at        time.Duration // since the start
	workspace string
	org       string // "": org-a
	model     string // "": claude-opus-5-5, minimum 512
	blocks    []simulator.Block
	begin     time.Duration // from admission to the first byte; negative: never
	want      simulator.Usage
}

// block of a prompt whose blocks are told apart by hash alone.
func block(hash uint64, tokens int, ttl time.Duration) simulator.Block {
	return simulator.Block{Hash: hash, Tokens: tokens, TTL: ttl}
}

// row is n blocks of 100 tokens without a breakpoint, hashes from first.
func row(first uint64, n int) []simulator.Block {
	var list []simulator.Block
	for i := range n {
		list = append(list, block(first+uint64(i), 100, 0))
	}
	return list
}

func join(parts ...[]simulator.Block) []simulator.Block {
	var all []simulator.Block
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestPromptCache(t *testing.T) {
	prompt := []simulator.Block{block(1, 1000, short), block(2, 50, 0)}
	hourly := []simulator.Block{block(1, 1000, long), block(2, 50, 0)}
	written := simulator.Usage{Input: 50, Write5m: 1000}
	read := simulator.Usage{Input: 50, CacheRead: 1000}
	write1h := simulator.Usage{Input: 50, Write1h: 1000}

	tests := map[string][]turn{
		"written, then read": {
			{blocks: prompt, want: written},
			{at: time.Second, blocks: prompt, want: read},
		},
		"without a breakpoint nothing is cached": {
			{blocks: row(1, 20), want: simulator.Usage{Input: 2000}},
			{at: time.Second, blocks: row(1, 20), want: simulator.Usage{Input: 2000}},
		},
		"an entry exists only once the first answer has begun": {
			{blocks: prompt, begin: 3 * time.Second, want: written},
			{at: 2 * time.Second, blocks: prompt, begin: -1, want: written},
			{at: 3 * time.Second, blocks: prompt, want: read},
		},
		"an answer that never began leaves nothing": {
			{blocks: prompt, begin: -1, want: written},
			{at: time.Minute, blocks: prompt, want: written},
		},
		"dead after five minutes": {
			{blocks: prompt, want: written},
			{at: short, blocks: prompt, want: written},
		},
		"alive just before": {
			{blocks: prompt, want: written},
			{at: short - 1, blocks: prompt, want: read},
		},
		"its life counts from the start of the request, not of the answer": {
			{blocks: prompt, begin: time.Minute, want: written},
			{at: short, blocks: prompt, want: written},
		},
		"renewed by each read": {
			{blocks: prompt, want: written},
			{at: 4 * time.Minute, blocks: prompt, want: read},
			{at: 8 * time.Minute, blocks: prompt, want: read},
			{at: 13 * time.Minute, blocks: prompt, want: written},
		},
		"an hour": {
			{blocks: hourly, want: write1h},
			{at: 59 * time.Minute, blocks: hourly, want: read},
			{at: 118 * time.Minute, blocks: hourly, want: read},
			{at: 178 * time.Minute, blocks: hourly, want: write1h},
		},
		"a changed beginning misses": {
			{blocks: prompt, want: written},
			{at: time.Second, blocks: []simulator.Block{block(9, 1000, short), block(10, 50, 0)}, want: written},
		},
		"the longest prefix is read, the rest of the way written": {
			{blocks: []simulator.Block{block(1, 1000, short), block(2, 500, short)}, want: simulator.Usage{Write5m: 1500}},
			{at: time.Second, blocks: []simulator.Block{block(1, 1000, short), block(2, 500, 0), block(3, 70, short), block(4, 5, 0)}, want: simulator.Usage{Input: 5, CacheRead: 1500, Write5m: 70}},
		},
		"every breakpoint is a prefix of its own": {
			{blocks: []simulator.Block{block(1, 1000, short), block(2, 500, short)}, want: simulator.Usage{Write5m: 1500}},
			{at: time.Second, blocks: []simulator.Block{block(1, 1000, short), block(8, 500, short)}, want: simulator.Usage{CacheRead: 1000, Write5m: 500}},
		},
		"both lives in one prompt": {
			{blocks: []simulator.Block{block(1, 1000, long), block(2, 500, short), block(3, 7, 0)}, want: simulator.Usage{Input: 7, Write1h: 1000, Write5m: 500}},
			{at: 6 * time.Minute, blocks: []simulator.Block{block(1, 1000, long), block(2, 500, short), block(3, 7, 0)}, want: simulator.Usage{Input: 7, CacheRead: 1000, Write5m: 500}},
		},
		"20 positions back, the breakpoint itself the first": {
			{blocks: []simulator.Block{block(1, 1000, short)}, want: simulator.Usage{Write5m: 1000}},
			{at: time.Second, blocks: join([]simulator.Block{block(1, 1000, 0)}, row(2, 18), []simulator.Block{block(20, 100, short)}), want: simulator.Usage{CacheRead: 1000, Write5m: 1900}},
		},
		"21 are too many": {
			{blocks: []simulator.Block{block(1, 1000, short)}, want: simulator.Usage{Write5m: 1000}},
			{at: time.Second, blocks: join([]simulator.Block{block(1, 1000, 0)}, row(2, 19), []simulator.Block{block(21, 100, short)}), want: simulator.Usage{Write5m: 3000}},
		},
		"an earlier breakpoint reaches what the last one cannot": {
			{blocks: []simulator.Block{block(1, 1000, short)}, want: simulator.Usage{Write5m: 1000}},
			{at: time.Second, blocks: join([]simulator.Block{block(1, 1000, short)}, row(2, 30), []simulator.Block{block(32, 100, short)}), want: simulator.Usage{CacheRead: 1000, Write5m: 3100}},
		},
		"below the minimum silently not": {
			{blocks: []simulator.Block{block(1, 511, short)}, want: simulator.Usage{Input: 511}},
			{at: time.Second, blocks: []simulator.Block{block(1, 511, short)}, want: simulator.Usage{Input: 511}},
		},
		"at the minimum": {
			{blocks: []simulator.Block{block(1, 512, short)}, want: simulator.Usage{Write5m: 512}},
			{at: time.Second, blocks: []simulator.Block{block(1, 512, short)}, want: simulator.Usage{CacheRead: 512}},
		},
		"the minimum counts the whole prefix": {
			{blocks: []simulator.Block{block(1, 300, short), block(2, 300, short)}, want: simulator.Usage{Write5m: 600}},
			{at: time.Second, blocks: []simulator.Block{block(1, 300, short), block(9, 300, short)}, want: simulator.Usage{Write5m: 600}},
		},
		"another model, another minimum": {
			{model: "claude-opus-4-6", blocks: []simulator.Block{block(1, 4095, short)}, want: simulator.Usage{Input: 4095}},
			{model: "claude-opus-4-6", blocks: []simulator.Block{block(1, 4096, short)}, want: simulator.Usage{Write5m: 4096}},
		},
		"apart per model, even in one class": {
			{model: "claude-sonnet-4-6", blocks: []simulator.Block{block(1, 2000, short)}, want: simulator.Usage{Write5m: 2000}},
			{at: time.Second, model: "claude-sonnet-4-5", blocks: []simulator.Block{block(1, 2000, short)}, want: simulator.Usage{Write5m: 2000}},
		},
		"apart per workspace": {
			{workspace: "w1", blocks: prompt, want: written},
			{at: time.Second, workspace: "w2", blocks: prompt, want: written},
			{at: time.Second, workspace: "w1", blocks: prompt, want: read},
		},
		"apart per organization": {
			{blocks: prompt, want: written},
			{at: time.Second, org: "org-b", blocks: prompt, want: written},
		},
	}
	for name, turns := range tests {
		t.Run(name, func(t *testing.T) { playTurns(t, turns) })
	}
}

func playTurns(t *testing.T, turns []turn) {
	cfg := oneOrg(simulator.Limits{})
	cfg.Organizations = append(cfg.Organizations, simulator.Organization{ID: "org-b", Keys: []simulator.Key{{Key: "k2"}}})
	core := newCore(t, cfg)
	type begins struct {
		at   time.Time
		call *simulator.Call
	}
	var waiting []begins
	for i, u := range turns {
		now := epoch.Add(u.at)
		for _, b := range waiting {
			if !b.at.After(now) {
				b.call.Begin(b.at)
			}
		}
		d := simulator.Demand{Org: u.org, Workspace: u.workspace, Model: u.model, Blocks: u.blocks}
		if d.Org == "" {
			d.Org = "org-a"
		}
		if d.Model == "" {
			d.Model = "claude-opus-5-5"
		}
		call, err := core.Admit(now, d)
		require.NoError(t, err)
		assert.Equal(t, u.want, call.Usage(), "turn %d", i)
		if u.begin >= 0 {
			waiting = append(waiting, begins{now.Add(u.begin), call})
		}
	}
}

func TestCacheReadsCountTowardsNoLimit(t *testing.T) {
	core := newCore(t, oneOrg(simulator.Limits{ITPM: 30_000}))
	d := simulator.Demand{Org: "org-a", Model: "claude-opus-5-5", Blocks: []simulator.Block{block(1, 29_000, short), block(2, 100, 0)}}
	call, err := core.Admit(epoch, d)
	require.NoError(t, err)
	assert.Equal(t, 900, call.Levels().Input.Remaining, "a write counts in full")
	call.Begin(epoch)
	for range 9 {
		call, err = core.Admit(epoch, d)
		require.NoError(t, err)
	}
	assert.Equal(t, 0, call.Levels().Input.Remaining)
	_, err = core.Admit(epoch, d)
	assert.Error(t, err)
}

func TestARefusedRequestRenewsNothing(t *testing.T) {
	core := newCore(t, oneOrg(simulator.Limits{RPM: 1}))
	d := simulator.Demand{Org: "org-a", Model: "claude-opus-5-5", Blocks: []simulator.Block{block(1, 1000, short)}}
	call, err := core.Admit(epoch, d)
	require.NoError(t, err)
	call.Begin(epoch)
	_, err = core.Admit(epoch.Add(time.Second), d)
	require.Error(t, err)
	call, err = core.Admit(epoch.Add(short), d)
	require.NoError(t, err)
	assert.Equal(t, simulator.Usage{Write5m: 1000}, call.Usage())
}

func TestLivingEntriesSurviveThousandsOfDeadOnes(t *testing.T) {
	core := newCore(t, oneOrg(simulator.Limits{}))
	ask := func(at time.Duration, b simulator.Block) simulator.Usage {
		call, err := core.Admit(epoch.Add(at), simulator.Demand{Org: "org-a", Model: "claude-opus-5-5", Blocks: []simulator.Block{b}})
		require.NoError(t, err)
		call.Begin(epoch.Add(at))
		return call.Usage()
	}
	ask(0, block(1, 1000, long))
	for i := range 5000 {
		ask(time.Duration(i)*time.Second/2, block(uint64(i+2), 1000, short))
	}
	end := 2500 * time.Second
	assert.Equal(t, simulator.Usage{CacheRead: 1000}, ask(end, block(1, 1000, long)), "an hour is not over")
	assert.Equal(t, simulator.Usage{CacheRead: 1000}, ask(end, block(5000, 1000, short)))
	assert.Equal(t, simulator.Usage{Write5m: 1000}, ask(end, block(2, 1000, short)))
}

func TestCacheMinimum(t *testing.T) {
	want := map[string]int{
		"claude-fable-5-2": 512, "claude-mythos-5-1": 512, "claude-opus-5-5": 512, "claude-opus-5": 512,
		"claude-sonnet-5-5": 512, "claude-haiku-5-5": 512,
		"claude-opus-4-8": 1024, "claude-sonnet-5": 1024, "claude-sonnet-4-6": 1024, "claude-sonnet-4-5-20250929": 1024,
		"claude-opus-4-1-20250805": 1024, "claude-whatever": 1024,
		"claude-opus-4-7": 2048, "claude-mythos-preview": 2048, "claude-3-5-haiku-20241022": 2048,
		"claude-opus-4-6": 4096, "claude-opus-4-5-20251101": 4096, "claude-haiku-4-5-20251001": 4096,
	}
	for model, n := range want {
		assert.Equal(t, n, simulator.CacheMinimum(model), model)
	}
}
