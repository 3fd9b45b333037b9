package keypool_test

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// The tests of rows of the catalogue of faults, by the rows' names.

func TestFault(t *testing.T) {
	t.Run("T01", func(t *testing.T) {
		t.Run("jumps", testClocksThatJump)
		t.Run("set back over a restart", testClockThatWasSetBack)
		t.Run("no time of the wall", testDurationsAreOfOneClock)
	})
	t.Run("T02", testNoCalendar)
	t.Run("T03", testRestoredIsBounded)
	t.Run("L01", func(t *testing.T) {
		t.Run("one probe", testOneProbeAtATime)
		t.Run("a thousand at once", testRecoveryUnderLoad)
	})
	t.Run("L02", testWalkOverDeadKeys)
	t.Run("L03", func(t *testing.T) {
		t.Run("tokens", testConcurrentAcquires)
		t.Run("requests", testNeverOverTheLimit)
		t.Run("everything", testStressAddsUp)
	})
	t.Run("L04", func(t *testing.T) {
		t.Run("once", testSettleOnlyOnce)
		t.Run("more, less and none", testSettlement)
		t.Run("absurd", testAbsurdUsage)
		t.Run("property", testSettlementProperty)
	})
	t.Run("L05", testHomeThatCannotServe)
	t.Run("L06", func(t *testing.T) {
		t.Run("turns", testClientsTakeTurns)
		t.Run("one client still", testOneClientStill)
		t.Run("turns are not saved up", testTurnsAreNotSaved)
	})
}

// testRecoveryUnderLoad has a thousand requests arrive at the moment a key's cool-down
// ends: one tries, and from its answer on they go out as fast as the limit refills.
func testRecoveryUnderLoad(t *testing.T) {
	for name, answers := range map[string]bool{"it serves again": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const answerTime = 100 * time.Millisecond
				k := keyOf(0, 600, 0, 0) // ten a second
				p := patient(t, "", k)
				lease := acquire(t, p, of1000Class())
				lease.Answered(200, rateHeaders(600, 0))
				lease.Settle(keypool.Usage{Input: 1000})
				require.Equal(t, 20*time.Second, refusal(t, p, k.ID(), 1000, 20*time.Second, 600, 0))
				time.Sleep(20 * time.Second)
				from := time.Now()
				var mu sync.Mutex
				var sent []time.Duration
				refused := 0
				for range 1000 {
					go func() {
						lease, err := p.Acquire(context.Background(), of1000Class())
						mu.Lock()
						if err == nil {
							sent = append(sent, time.Since(from))
						} else {
							refused++
							assert.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
						}
						mu.Unlock()
						if err != nil {
							return
						}
						time.Sleep(answerTime)
						if answers {
							lease.Answered(200, nil)
							lease.Succeeded()
						} else {
							lease.Answered(429, rateHeaders(600, 0))
							lease.Limited(20 * time.Second)
						}
						lease.Settle(keypool.Usage{Input: 1000})
					}()
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				require.NotEmpty(t, sent)
				within := func(d time.Duration) (n int) {
					for _, at := range sent {
						if at < d {
							n++
						}
					}
					return n
				}
				assert.Equal(t, 1, within(answerTime), "before the first answer")
				assert.Equal(t, 1000, len(sent)+refused)
				if !answers {
					assert.Equal(t, 1, within(20*time.Second), "nobody else meets the refusal")
					return
				}
				level := 600 * 20 / 60 // what has flowed in meanwhile
				for d := time.Second; d < 30*time.Second; d += time.Second {
					assert.LessOrEqual(t, within(d), level+10*int(d.Seconds()), "within %s", d)
				}
				assert.Greater(t, within(5*time.Second), 100, "it is used again")
				assert.Zero(t, of(t, p, opus, k.ID()).InFlight)
			})
		})
	}
}

// testWalkOverDeadKeys: one live key among any number of dead ones is found at once.
func testWalkOverDeadKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(11, 60, plenty, plenty)
		p := newPool(t, "", keys...)
		var tried []string
		for range 10 {
			lease := acquire(t, p, keypool.Demand{Class: opus, Bytes: 400, Exclude: tried})
			p.MarkKeyDead(lease.KeyID(), keypool.ReasonUnauthorized)
			lease.Settle(keypool.Usage{})
			tried = append(tried, lease.KeyID())
		}
		live := acquire(t, p, keypool.Demand{Class: opus, Bytes: 400, Exclude: tried})
		assert.NotContains(t, tried, live.KeyID())
		assert.ElementsMatch(t, ids, append(tried, live.KeyID()))
		for range 20 {
			assert.Equal(t, live.KeyID(), acquire(t, p, keypool.Demand{Class: opus, Bytes: 400}).KeyID())
		}
	})
}

// testSettlementProperty: whatever was used and however often it is settled, what counts
// is the first time, levels stay within the limits, and nothing is left held.
func testSettlementProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { rapid.SyncTest(t, settlesOnce) })
}

func settlesOnce(t *rapid.T) {
	const limit = 1_000_000
	k := keyOf(0, 1000, limit, limit)
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: []keypool.KeyConfig{k}, MaxWait: new(time.Duration)})
	require.NoError(t, err)
	plain, wild := rapid.IntRange(0, 50_000), rapid.SampledFrom([]int{math.MinInt, -1, math.MaxInt32, math.MaxInt})
	left := func() ratelimit.Limits {
		for _, c := range p.GetStats().Classes {
			if c.Class == opus {
				return c.Keys[0].Remaining
			}
		}
		return ratelimit.Limits{}
	}
	want := ratelimit.Limits{RPM: 1000, ITPM: limit, OTPM: limit}
	exact := true // nothing absurd has been reported
	for range rapid.IntRange(1, 10).Draw(t, "requests") {
		lease, err := p.Acquire(context.Background(), keypool.Demand{Class: opus, Bytes: rapid.IntRange(0, 40_000).Draw(t, "bytes"), MaxTokens: 100})
		if err != nil {
			require.ErrorIs(t, err, keypool.ErrAllKeysExhausted)
			require.False(t, exact, "there is room")
			continue
		}
		used := keypool.Usage{Input: plain.Draw(t, "input"), Output: plain.Draw(t, "output")}
		if rapid.IntRange(0, 9).Draw(t, "absurd") == 0 {
			used, exact = keypool.Usage{Input: wild.Draw(t, "input"), Output: wild.Draw(t, "output")}, false
		}
		lease.Settle(used)
		once := left()
		if used != (keypool.Usage{}) { // else nothing came of it, and the request is given back, too
			want.RPM--
		}
		want.ITPM -= used.Input
		want.OTPM -= used.Output
		if exact {
			require.Equal(t, want, once)
		}
		for range rapid.IntRange(0, 2).Draw(t, "times more") {
			lease.Settle(keypool.Usage{Input: plain.Draw(t, "input again"), Output: plain.Draw(t, "output again")})
			require.Equal(t, once, left())
		}
	}
	for _, c := range p.GetStats().Classes {
		for _, k := range c.Keys {
			require.Zero(t, k.InFlight)
			require.Zero(t, k.Reserved)
			require.LessOrEqual(t, k.Remaining.ITPM, limit)
			require.LessOrEqual(t, k.Remaining.OTPM, limit)
			require.LessOrEqual(t, k.Remaining.RPM, 1000)
		}
	}
}

// testDurationsAreOfOneClock reads the source of all that admits requests: a time that
// was written and read, or moved to another zone has lost its monotonic reading,
// and what is measured with it jumps with the clock on the wall.
func testDurationsAreOfOneClock(t *testing.T) {
	allowed := map[string]bool{
		"../keypool/snapshot.go": true, "../keypool/restore.go": true, // of what outlives a process, as no monotonic clock does
		"../proxy/headers.go": true, // tells clients when a limit is full again
	}
	wall := map[string]bool{"Unix": true, "UnixMilli": true, "UnixMicro": true, "UnixNano": true, "UTC": true, "Local": true, "In": true}
	read, found := 0, 0
	for _, dir := range []string{"../keypool", "../ratelimit", "../router", "../health", "../proxy"} {
		files, err := filepath.Glob(dir + "/*.go")
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			read++
			set := token.NewFileSet()
			parsed, err := parser.ParseFile(set, file, nil, 0)
			require.NoError(t, err)
			ast.Inspect(parsed, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok && wall[sel.Sel.Name] {
					found++
					assert.True(t, allowed[file], "%s: %s is a time of the wall; where it only leaves the process, allow it here", set.Position(call.Pos()), sel.Sel.Name)
				}
				return true
			})
		}
	}
	assert.Greater(t, read, 40)
	assert.Greater(t, found, 5, "the test finds nothing")
}

// testNoCalendar: limits are buckets that refill all the time, so no second, day or month
// is another one than the rest.
func testNoCalendar(t *testing.T) {
	for name, at := range map[string]time.Time{
		"a leap second": time.Date(2016, 12, 31, 23, 59, 59, 0, time.UTC),
		"a leap day":    time.Date(2028, 2, 29, 23, 59, 59, 0, time.UTC),
		"the month":     time.Date(2026, 11, 30, 23, 59, 59, 0, time.UTC),
		"summer time":   time.Date(2026, 3, 29, 0, 59, 59, 0, time.UTC),
		"the year":      time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, "", keyOf(0, 60, 0, 0))
			taken := func(at time.Time) (n int) {
				for {
					lease, wait, err := p.AcquireAt(at, keypool.Demand{Class: opus, Bytes: 400}, new(keypool.Turn))
					if wait > 0 || errors.Is(err, keypool.ErrAllKeysExhausted) {
						return n
					}
					require.NoError(t, err)
					lease.SettleAt(at, keypool.Usage{Input: 1})
					n++
				}
			}
			full := taken(at)
			assert.Positive(t, full)
			for range 5 { // over the turn
				at = at.Add(time.Second)
				assert.Equal(t, 1, taken(at), at)
			}
		})
	}
}
