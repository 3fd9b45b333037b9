package keypool_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// A snapshot of what was restored is the snapshot it was restored from.
func TestSnapshotsAreStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { rapid.SyncTest(t, snapshotsAreStable) })
}

func snapshotsAreStable(t *rapid.T) {
	keys, ids := keysOf(3, rapid.SampledFrom([]int{0, 50}).Draw(t, "rpm"), 0, 0)
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys})
	require.NoError(t, err)
	for range rapid.IntRange(0, 20).Draw(t, "steps") {
		id := rapid.SampledFrom(ids).Draw(t, "key")
		class := rapid.SampledFrom([]string{opus, "sonnet-5", keypool.ClassCountTokens}).Draw(t, "class")
		wait := time.Duration(rapid.IntRange(-1, 4000).Draw(t, "wait")) * time.Second
		switch rapid.IntRange(0, 4).Draw(t, "do") {
		case 0:
			d := turnOf(rapid.Uint64Range(1, 5).Draw(t, "conversation"))
			d.Class = class
			lease, wait, err := p.AcquireAt(time.Now(), d, new(keypool.Turn))
			if err != nil || wait > 0 {
				continue
			}
			h := rateHeaders(100, rapid.IntRange(0, 100).Draw(t, "requests"), 1_000_000, rapid.IntRange(0, 1_000_000).Draw(t, "input"))
			h.Set("Anthropic-Organization-Id", rapid.SampledFrom([]string{"", "org-1", "org-2"}).Draw(t, "organization"))
			lease.Answered(http.StatusOK, h)
			lease.Settle(keypool.Usage{Input: rapid.IntRange(0, 100_000).Draw(t, "used"), Output: 10})
		case 1:
			p.MarkKeyExhausted(id, wait)
		case 2:
			p.MarkClassExhausted(id, class, wait)
		case 3:
			p.MarkKeyDead(id, rapid.SampledFrom([]keypool.Reason{keypool.ReasonSpent, keypool.ReasonUnauthorized}).Draw(t, "why"))
		case 4:
			time.Sleep(wait)
		}
	}
	want := snapshotOf(t, p)
	next, err := keypool.NewKeyPool("test", keypool.PoolConfig{Keys: keys})
	require.NoError(t, err)
	next.Restore(want)
	require.Equal(t, want, snapshotOf(t, next))
}

// A file that says too much is believed as far as the pool itself would have gone.
func testRestoredIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(3, 50, 0, 0)
		now := time.Now().UnixMilli()
		day := (24 * time.Hour).Milliseconds()
		restored := func(s keypool.Snapshot) *keypool.KeyPool {
			p := newPool(t, "", keys...)
			p.Restore(s)
			return p
		}
		hour := time.Now().Add(time.Hour)
		bucket := func(b keypool.BucketSnapshot) *keypool.KeyPool {
			return restored(keypool.Snapshot{At: now, Classes: []keypool.ClassSnapshot{{Name: opus, Owners: []keypool.OwnerSnapshot{
				{Keys: []string{"gone", ids[0]}, Requests: b, Cool: &keypool.CoolSnapshot{Until: now + day}}}}}})
		}

		p := restored(keypool.Snapshot{At: now, Keys: []keypool.KeySnapshot{
			{ID: ids[0], Cool: &keypool.CoolSnapshot{Until: now + day}},
			{ID: ids[1], Dead: &keypool.OutageSnapshot{Reason: keypool.ReasonSpent, Next: now + day}},
			{ID: ids[2], Dead: &keypool.OutageSnapshot{Reason: "bored", Next: now + day}},
			{ID: "gone", Dead: &keypool.OutageSnapshot{Reason: keypool.ReasonSpent}},
		}})
		assert.Equal(t, hour, of(t, p, keypool.ClassAny, ids[0]).Until)
		assert.Equal(t, hour, of(t, p, keypool.ClassAny, ids[1]).Until)
		assert.Equal(t, keypool.StateAvailable, of(t, p, keypool.ClassAny, ids[2]).State, "for no reason that there is")

		p = bucket(keypool.BucketSnapshot{Limit: 1 << 40, Capacity: 1e300, Level: 1e300})
		assert.Equal(t, ratelimit.Limits{RPM: 1_000_000_000}, of(t, p, opus, ids[0]).Limits)
		assert.Equal(t, 1_000_000_000, of(t, p, opus, ids[0]).Remaining.RPM)
		assert.Equal(t, hour, of(t, p, opus, ids[0]).Until, "the class cools")
		assert.Equal(t, keypool.StateAvailable, of(t, p, opus, ids[1]).State)
		p = bucket(keypool.BucketSnapshot{Limit: 10, Capacity: 10, Level: -1e300})
		assert.Equal(t, -600, of(t, p, opus, ids[0]).Remaining.RPM, "a debt of an hour")
		p = bucket(keypool.BucketSnapshot{Limit: 10, Capacity: 10, Level: 11})
		assert.Equal(t, 10, of(t, p, opus, ids[0]).Remaining.RPM)

		many := keypool.Snapshot{At: now}
		for i := range 300 {
			many.Classes = append(many.Classes, keypool.ClassSnapshot{Name: strings.Repeat("x", i), Ratio: 1})
		}
		assert.Len(t, restored(many).GetStats().Classes, 129, "names of up to 128 bytes")
		for i := range many.Classes {
			many.Classes[i].Name = fmt.Sprint("class ", i)
		}
		assert.Len(t, restored(many).GetStats().Classes, 256)
	})
}

// Clocks jump: what was saved in the future was saved now.
func testClockThatWasSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, ids := keysOf(2, 100, 0, 0)
		p := newPool(t, "", keys...)
		served(t, p, turnOf(1), rateHeaders(100, 40), ids[1])
		p.MarkKeyExhausted(ids[1], 10*time.Minute)
		s := snapshotOf(t, p)
		future := (48 * time.Hour).Milliseconds()
		s.At += future
		s.Keys[1].Cool.Until += future
		s.Homes[0].Used += future
		s.Prefixes[0].Expires += future
		next := newPool(t, "", keys...)
		next.Restore(s)
		assert.Equal(t, 40, of(t, next, opus, ids[0]).Remaining.RPM, "no time has passed")
		assert.Equal(t, time.Now().Add(10*time.Minute), of(t, next, opus, ids[1]).Until)
		want := snapshotOf(t, p)
		assert.Equal(t, want.Homes, snapshotOf(t, next).Homes)
		assert.Equal(t, want.Prefixes, snapshotOf(t, next).Prefixes)

		s.Homes[0].Used += future // and one entry later still
		s.Prefixes[0].Expires += future
		next = newPool(t, "", keys...)
		next.Restore(s)
		assert.Equal(t, want.Homes, snapshotOf(t, next).Homes)
		assert.Equal(t, want.Prefixes, snapshotOf(t, next).Prefixes)
	})
}

// Whatever stands in a file: nothing panics, no bucket is more than full, and no
// key is out for longer than an hour.
func FuzzRestore(f *testing.F) {
	keys, ids := keysOf(2, 50, 0, 0)
	k0, k1 := `{"id":"`+ids[0]+`"`, `{"id":"`+ids[1]+`"`
	for _, seed := range []string{
		`{"at":946684800000,"keys":[` + k0 + `,"organization":"o"},` + k1 + `,"organization":"o","workspace":"w"}]}`,
		`{"at":946684800000,"keys":[` + k0 + `,"cool":{"until":9000000000000000000,"strikes":-9}},` + k1 + `,"dead":{"reason":"spent","next":9000000000000000,"pause":-1}}]}`,
		`{"at":4000000000000,"keys":[` + k0 + `,"dead":{"reason":"bored"}}],"homes":[{"c":1,"k":0,"u":5000000000000,"l":9e9},{"c":2,"k":-1},{"c":3,"k":9}]}`,
		`{"at":1,"classes":[{"name":"opus-5","ratio":1e300,"output":-1,"owners":[{"keys":["` + ids[0] + `","x"],"requests":{"limit":9000000000000000000,"capacity":1e308,"level":-1e308},"input":{"absent":true},"output":{"limit":-1,"capacity":-1}}]}]}`,
		`{"at":946684800000,"keys":[` + k0 + `,"scope":7}],"prefixes":[{"h":1,"s":7,"e":946684900000,"l":300000},{"h":1,"s":8,"e":-9000000000000000000}]}`,
		`{"at":946684800000,"classes":[{"name":"count_tokens","owners":[{"keys":["` + ids[1] + `"],"input":{"limit":1,"capacity":1}}],"blocked":{"` + ids[1] + `":{"reason":"forbidden","next":946684900000}}},{"name":"models","owners":[{"keys":["` + ids[1] + `"],"requests":{"limit":1}}]}]}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s keypool.Snapshot
		if json.Unmarshal([]byte(text), &s) != nil {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			p := newPool(t, "", keys...)
			p.Restore(s)
			hour := time.Now().Add(time.Hour)
			for _, c := range p.GetStats().Classes {
				for _, k := range c.Keys {
					require.LessOrEqual(t, k.Remaining.RPM, k.Limits.RPM)
					require.LessOrEqual(t, k.Remaining.ITPM, k.Limits.ITPM)
					require.LessOrEqual(t, k.Remaining.OTPM, k.Limits.OTPM)
					require.False(t, k.State != keypool.StateExhausted && k.Until.After(hour), "%s until %s", k.State, k.Until)
					require.LessOrEqual(t, k.Until.Sub(hour), time.Minute, "an empty bucket")
				}
			}
			for _, class := range []string{keypool.ClassCountTokens, keypool.ClassModels} {
				d := turnOf(1)
				d.Class = class
				if lease, wait, err := p.AcquireAt(time.Now(), d, new(keypool.Turn)); err == nil && wait == 0 {
					lease.Settle(keypool.Usage{})
				}
			}
			for id := uint64(1); id < 4; id++ {
				if lease, wait, err := p.AcquireAt(time.Now(), turnOf(id), new(keypool.Turn)); err == nil && wait == 0 {
					lease.Answered(http.StatusOK, rateHeaders(10, 5))
					lease.Settle(keypool.Usage{Input: 1})
				}
			}
			_, err := json.Marshal(p.Snapshot())
			require.NoError(t, err)
		})
	})
}

// fillTables gives a pool as much to remember as it ever does.
func fillTables(tb testing.TB, p *keypool.KeyPool) {
	for i := range uint64(100_000) {
		d := keypool.Demand{Class: opus, Bytes: 200_000, Conversation: i + 1}
		for j := range uint64(4) {
			d.Prefix = append(d.Prefix, keypool.Mark{Hash: 4*i + j + 1, Bytes: 200_000 - int(j), Life: time.Hour})
		}
		lease, err := p.Acquire(context.Background(), d)
		require.NoError(tb, err)
		lease.Answered(http.StatusOK, nil)
		lease.Settle(keypool.Usage{})
	}
}

func TestTablesAreRestoredWithinTheirBounds(t *testing.T) {
	keys, _ := keysOf(2, 0, 0, 0)
	p := newPool(t, "", keys...)
	fillTables(t, p)
	s := snapshotOf(t, p)
	require.Equal(t, 100_000, len(s.Homes))
	require.Equal(t, 100_000, len(s.Prefixes))
	oldest := s.Homes[0]
	s.Homes = append([]keypool.HomeSnapshot{{Conversation: 1 << 40, Used: oldest.Used, Life: oldest.Life}}, s.Homes...)
	s.Prefixes = append([]keypool.PrefixSnapshot{{Hash: 1 << 40, Expires: s.Prefixes[0].Expires, Life: 300_000}}, s.Prefixes...)
	next := newPool(t, "", keys...)
	next.Restore(s)
	again := next.Snapshot()
	assert.Equal(t, oldest.Conversation, again.Homes[0].Conversation, "the newest are kept")
	assert.Equal(t, 100_000, len(again.Homes))
	assert.Equal(t, 100_000, len(again.Prefixes))
}

func BenchmarkSnapshot(b *testing.B) {
	keys, _ := keysOf(8, 0, 0, 0)
	p := newPool(b, "", keys...)
	fillTables(b, p)
	b.ReportAllocs()
	for b.Loop() {
		p.Snapshot()
	}
}
