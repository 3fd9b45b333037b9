package keypool_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

// reloads is a machine whose pool is reconfigured while it runs. Its model of that
// is a list of keys, and which are off, those that are away included.
type reloads struct {
	*machine
	all        []keypool.KeyConfig // ever configured
	configured []string            // IDs, in order
	off        map[string]bool
}

// newReloads has a pool of all of a machine's keys.
func newReloads(t *rapid.T) *reloads {
	m := newMachine(t, true)
	m.honest = false
	r := &reloads{machine: m, all: m.keys, configured: slices.Clone(m.ids), off: map[string]bool{}}
	m.mayServe = func(id string) bool { return slices.Contains(r.configured, id) && !r.off[id] }
	return r
}

// lookAgain has all that wait ask at once, as Apply and the switch wake them.
func (r *reloads) lookAgain(t *rapid.T) {
	waiting := r.waiting
	r.waiting = nil
	for _, w := range waiting {
		r.step(t, w)
	}
}

// some draws some of the keys, in any order.
func (r *reloads) some(t *rapid.T) []keypool.KeyConfig {
	keys := rapid.Permutation(r.all).Draw(t, "order")
	return slices.Clone(keys[:rapid.IntRange(0, len(keys)).Draw(t, "how many")])
}

func (r *reloads) apply(t *rapid.T, keys []keypool.KeyConfig) error {
	for i := range keys {
		keys[i].Priority = ptr(rapid.IntRange(0, 2).Draw(t, "priority"))
	}
	cfg := keypool.PoolConfig{Strategy: rapid.SampledFrom(drawless).Draw(t, "strategy"), Keys: keys,
		MaxWait:  ptr(rapid.SampledFrom([]time.Duration{0, time.Second, machineWait}).Draw(t, "max_wait")),
		Affinity: rapid.SampledFrom([]string{"on", "off"}).Draw(t, "affinity")}
	before := r.pool.GetStats()
	if err := r.pool.Apply(cfg); err != nil {
		require.Equal(t, before, r.pool.GetStats(), "nothing has changed")
		return err
	}
	r.configured = nil
	for _, k := range keys {
		r.configured = append(r.configured, k.ID())
	}
	if len(keys) == 0 {
		r.configured = []string{"keyless"}
		r.of["keyless"] = newProvider("", 60, 20_000, 5000, time.Now())
	}
	r.lookAgain(t)
	return nil
}

// reload changes which keys there are, and nothing that could change what is known
// of those that stay.
func (r *reloads) reload(t *rapid.T) {
	keys := r.some(t)
	before := r.known()
	waiting := len(r.waiting)
	require.NoError(t, r.apply(t, keys))
	if waiting > 0 { // served meanwhile
		return
	}
	for at, is := range r.known() {
		if was, ok := before[at]; ok {
			require.Equal(t, was, is, "key and class %s", at)
		}
	}
}

// known is what the pool knows of each key and class, but for what the
// configuration says.
func (r *reloads) known() map[string]keypool.KeyMetadata {
	known := map[string]keypool.KeyMetadata{}
	for _, c := range r.pool.GetStats().Classes {
		for _, k := range c.Keys {
			k.Index, k.Priority, k.Weight = 0, 0, 0
			known[k.ID+" "+c.Class] = k
		}
	}
	return known
}

func (r *reloads) flip(t *rapid.T) {
	id := rapid.SampledFrom(r.ids).Draw(t, "key")
	to, do := true, r.pool.Disable
	if rapid.Bool().Draw(t, "on") {
		to, do = false, r.pool.Enable
	}
	if !slices.Contains(r.configured, id) {
		require.ErrorIs(t, do(id), keypool.ErrKeyNotFound)
		return
	}
	require.NoError(t, do(id))
	r.off[id] = to
	r.lookAgain(t)
}

// check holds after every step, besides the machine's own.
func (r *reloads) check(t *rapid.T) {
	r.machine.check(t)
	require.Equal(t, r.configured, idsOf(r.pool))
	for _, c := range r.pool.GetStats().Classes {
		var sum ratelimit.Limits
		counted := map[string]bool{}
		inFlight := 0
		for _, k := range c.Keys {
			require.Equal(t, r.off[k.ID], k.State == keypool.StateOff, "key %s is %s", k.ID, k.State)
			inFlight += k.InFlight
			if owner := r.of[k.ID].organization; k.State != keypool.StateOff && k.State != keypool.StateDead && !counted[owner] {
				counted[owner] = true
				sum.RPM, sum.ITPM, sum.OTPM = sum.RPM+k.Limits.RPM, sum.ITPM+k.Limits.ITPM, sum.OTPM+k.Limits.OTPM
			}
		}
		require.LessOrEqual(t, inFlight, c.InFlight)
		if r.grouped {
			require.Equal(t, sum, c.Limits, "limits of class %q", c.Class)
		}
	}
}

func (r *reloads) actions() map[string]func(*rapid.T) {
	actions := r.traffic()
	key := func(t *rapid.T) string { return rapid.SampledFrom(r.ids).Draw(t, "key") }
	actions[""] = r.check
	actions["reload"], actions["switch"] = r.reload, r.flip
	actions["cool key"] = func(t *rapid.T) { r.pool.MarkKeyExhausted(key(t), time.Minute) }
	actions["cool class"] = func(t *rapid.T) { r.pool.MarkClassExhausted(key(t), opus, 3*time.Second) }
	actions["kill"] = func(t *rapid.T) { r.pool.MarkKeyDead(key(t), keypool.ReasonUnauthorized) }
	actions["forbid"] = func(t *rapid.T) { r.pool.MarkKeyForbidden(key(t), opus, "a", true) }
	actions["release"] = func(t *rapid.T) { _ = r.pool.Release(key(t)) }
	actions["preview"] = func(t *rapid.T) {
		a := r.pool.Preview(time.Now(), keypool.Demand{Class: opus, Bytes: 4000})
		if a.Outcome != keypool.OutcomeRefused && !r.mayServe(a.Key) {
			t.Fatalf("a preview chooses key %s", a.Key)
		}
	}
	return actions
}

// What was learned of keys that stay outlives reloads, removed keys and those that
// are off serve nothing, and nothing is left over.
func TestReloadsKeepWhatIsKnown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			r := newReloads(t)
			r.grouped = true
			t.Repeat(r.actions())
			r.finish(t)
		})
	})
}

// The laws hold, too, where limits and organizations change: of the operator's and
// of the provider's own accord.
func TestReloadsKeepThePoolsLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			r := newReloads(t)
			actions := r.actions()
			actions["reload"] = func(t *rapid.T) {
				keys := r.some(t)
				for i := range keys {
					k := &keys[i]
					k.Organization = rapid.SampledFrom([]string{"", "org-1", "org-2"}).Draw(t, "organization")
					k.RPMLimit = rapid.SampledFrom([]int{0, 30, 600}).Draw(t, "RPM")
					k.ITPMLimit = rapid.SampledFrom([]int{0, 6000, 60_000}).Draw(t, "ITPM")
				}
				_ = r.apply(t, keys)
			}
			actions["found"] = func(t *rapid.T) {
				r.of[rapid.SampledFrom(r.ids).Draw(t, "key")] = newProvider(fmt.Sprint("org-", rapid.IntRange(1, 5).Draw(t, "organization")), 60, 20_000, 5000, time.Now())
			}
			t.Repeat(actions)
			r.finish(t)
		})
	})
}
