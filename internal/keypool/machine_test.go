package keypool_test

import (
	"context"
	"errors"
	"slices"
	"time"

	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

type modelLease struct {
	keypool.Lease
	key     *modelKey
	class   string
	at      time.Time
	held    ratelimit.Tokens
	settled bool
}

type modelHome struct {
	key    *modelKey
	prompt int
	used   time.Time
}

// machine drives a pool and the model side by side.
type machine struct {
	pool   *keypool.KeyPool
	keys   []*modelKey
	leases []*modelLease
	homes  map[uint64]modelHome
}

var machineClasses = []string{keypool.ClassAny, opus, "sonnet-5", keypool.ClassCountTokens, keypool.ClassModels}

func newMachine(t *rapid.T) *machine {
	m := &machine{homes: map[uint64]modelHome{}}
	cfg := keypool.PoolConfig{Strategy: rapid.SampledFrom(keypool.Strategies()).Draw(t, "strategy")}
	for i := range rapid.IntRange(1, 4).Draw(t, "keys") {
		k := keyOf(i, rapid.SampledFrom([]int{0, 2, 30}).Draw(t, "RPM"), rapid.SampledFrom([]int{0, 600, 5000}).Draw(t, "ITPM"), rapid.SampledFrom([]int{0, 900}).Draw(t, "OTPM"))
		k.Priority = rapid.SampledFrom([]*int{nil, new(0), new(1), new(2)}).Draw(t, "priority")
		cfg.Keys = append(cfg.Keys, k)
		mk := &modelKey{id: k.ID(), priority: keypool.PriorityNormal, classes: map[string]*modelSlot{},
			start: ratelimit.Limits{RPM: k.RPMLimit, ITPM: k.ITPMLimit, OTPM: k.OTPMLimit}}
		if k.Priority != nil {
			mk.priority = *k.Priority
		}
		m.keys = append(m.keys, mk)
	}
	p, err := keypool.NewKeyPool("test", cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.pool = p
	return m
}

func (m *machine) key(t *rapid.T) *modelKey { return rapid.SampledFrom(m.keys).Draw(t, "key") }
func (m *machine) class(t *rapid.T) string {
	return rapid.SampledFrom(machineClasses).Draw(t, "class")
}

// expect compares the pool's choice or refusal with what the model knows, and
// returns the model's key.
func (m *machine) expect(t *rapid.T, d keypool.Demand, id string, err error) *modelKey {
	now := time.Now()
	best := -1
	var live, probes []time.Duration // waits of keys that live, and of dead ones
	var chosen *modelKey
	sure := true
	for _, k := range m.keys {
		if slices.Contains(d.Exclude, k.id) {
			if k.id == id {
				t.Fatalf("key %s was granted though it is excluded", id)
			}
			continue
		}
		wait, blurred := k.wait(d.Class, now)
		sure = sure && !blurred
		if wait == 0 {
			best = max(best, k.priority)
		} else if k.isDead(d.Class, now) {
			probes = append(probes, wait)
		} else {
			live = append(live, wait)
		}
		if k.id == id {
			if chosen = k; wait > 0 && !blurred {
				t.Fatalf("key %s was granted for %q, but must wait %s", id, d.Class, wait)
			}
		}
	}
	if err != nil {
		m.expectRefusal(t, err, best >= 0 && sure, shortestOf(live, probes))
		return nil
	}
	if home, ok := m.homes[d.Conversation]; ok && d.Conversation != 0 && sure && now.Sub(home.used) <= 5*time.Minute && !slices.Contains(d.Exclude, home.key.id) {
		if wait, _ := home.key.wait(d.Class, now); wait == 0 {
			if home.key != chosen {
				t.Fatalf("conversation %d went to %s, want its home %s", d.Conversation, id, home.key.id)
			}
			return chosen
		}
	}
	if sure && chosen.priority != best {
		t.Fatalf("key %s of priority %d was granted, want one of priority %d", id, chosen.priority, best)
	}
	return chosen
}

// shortestOf is how soon a live key serves or, where none lives, a dead one is probed.
func shortestOf(live, probes []time.Duration) time.Duration {
	switch {
	case len(live) > 0:
		return slices.Min(live)
	case len(probes) > 0:
		return slices.Min(probes)
	}
	return 0
}

func (m *machine) expectRefusal(t *rapid.T, err error, canServe bool, wait time.Duration) {
	if !errors.Is(err, keypool.ErrAllKeysExhausted) {
		t.Fatalf("got error %v, want ErrAllKeysExhausted", err)
	}
	if canServe {
		t.Fatalf("refused, but a key can serve: %v", err)
	}
	var exhausted *keypool.ExhaustedError
	if errors.As(err, &exhausted) && (exhausted.RetryAfter-wait).Abs() > time.Microsecond {
		t.Fatalf("refused for %s, want %s", exhausted.RetryAfter, wait)
	}
}

func (m *machine) getKey(t *rapid.T) {
	id, _, err := m.pool.GetKey(context.Background())
	if k := m.expect(t, keypool.Demand{}, id, err); k != nil {
		k.grant(keypool.ClassAny, time.Now(), ratelimit.Tokens{}, false)
	}
}

func (m *machine) acquire(t *rapid.T) {
	d := keypool.Demand{
		Class:        m.class(t),
		Input:        rapid.IntRange(-1, 7000).Draw(t, "input"),
		MaxTokens:    rapid.SampledFrom([]int{0, 1, 100, 400, 128_000}).Draw(t, "max_tokens"),
		Conversation: uint64(rapid.IntRange(0, 3).Draw(t, "conversation")),
	}
	if rapid.IntRange(0, 4).Draw(t, "exclude") == 0 {
		d.Exclude = []string{m.key(t).id}
	}
	now := time.Now()
	lease, err := m.pool.Acquire(context.Background(), d)
	k := m.expect(t, d, lease.KeyID(), err)
	if k == nil {
		return
	}
	want := m.holdable(k, d, now)
	held := lease.Held()
	if near := func(a, b int) bool { return max(a-b, b-a) <= 1 }; !near(held.Input, want.Input) || !near(held.Output, want.Output) {
		t.Fatalf("key %s holds %+v, want %+v", k.id, held, want)
	}
	k.grant(d.Class, now, held, true)
	m.leases = append(m.leases, &modelLease{Lease: lease, key: k, class: d.Class, at: now, held: held})
	if d.Conversation != 0 {
		m.homes[d.Conversation] = modelHome{k, d.Input, now}
	}
}

func (m *machine) holdable(k *modelKey, d keypool.Demand, now time.Time) ratelimit.Tokens {
	s := k.slot(d.Class, now)
	want := ratelimit.Tokens{Input: d.Input, Output: 400}
	if home := m.homes[d.Conversation]; home.key == k && now.Sub(home.used) <= 5*time.Minute {
		want.Input -= home.prompt
	}
	if d.MaxTokens > 0 {
		want.Output = min(400, d.MaxTokens)
	}
	if limit, _ := s.input.replay(now); limit > 0 {
		want.Input = min(want.Input, s.input.whole(now))
	}
	if limit, _ := s.output.replay(now); limit > 0 {
		want.Output = min(want.Output, s.output.whole(now))
	}
	return ratelimit.Tokens{Input: max(0, want.Input), Output: max(0, want.Output)}
}
