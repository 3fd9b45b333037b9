package keypool_test

import (
	"errors"
	"slices"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
)

const machineWait = 5 * time.Second

// drawless are the strategies whose choice can be repeated.
var drawless = []string{keypool.StrategyLeastLoaded, keypool.StrategyRoundRobin}

// machine drives a pool and the providers behind its keys side by side. Its model is
// the providers: what they would admit is what the pool has to know.
type machine struct {
	pool *keypool.KeyPool
	ids  []string
	of   map[string]*provider // by key
	now  func() time.Time     // by the pool's clock

	honest  bool // providers do as they say, and the pool has been told their limits
	grouped bool // the pool knows from the start which keys are of one organization

	keys     []keypool.KeyConfig
	mayServe func(id string) bool // nil: every key may
	waiting  []*waiting
	flying   []*flight
}

// waiting is a request that the pool lets wait, until due.
type waiting struct {
	demand keypool.Demand
	turn   keypool.Turn
	due    time.Time
}

// flight is a request that the pool has sent.
type flight struct {
	keypool.Lease
	demand     keypool.Demand
	to         *provider // nil: it never gets there
	took       int       // tokens of input, at the provider
	status     int
	header     func() (status int, retryAfter time.Duration) // brings the answer's head, once
	answered   bool
	retryAfter time.Duration
	produced   int
}

// newMachine has some keys of some organizations. Only an honest one's limits and
// organizations are known from the start.
func newMachine(t *rapid.T, honest bool) *machine {
	m := &machine{honest: honest, of: map[string]*provider{}, now: time.Now}
	cfg := keypool.PoolConfig{MaxWait: new(time.Duration), Strategy: rapid.SampledFrom(drawless).Draw(t, "strategy")}
	*cfg.MaxWait = machineWait
	organizations := map[string]*provider{}
	for i := range rapid.IntRange(1, 4).Draw(t, "keys") {
		name := rapid.SampledFrom([]string{"org-1", "org-2", "org-3"}).Draw(t, "organization")
		at, ok := organizations[name]
		if !ok {
			at = newProvider(name, rapid.SampledFrom([]int{30, 600}).Draw(t, "RPM"), rapid.SampledFrom([]int{6000, 60_000}).Draw(t, "ITPM"), rapid.SampledFrom([]int{600, 20_000}).Draw(t, "OTPM"), time.Now())
			organizations[name] = at
		}
		k := keyOf(i, int(at.rpm), int(at.itpm), int(at.otpm))
		k.Organization = name
		if !honest && rapid.Bool().Draw(t, "unknown") {
			k = keyOf(i, 0, 0, 0)
		}
		if !honest {
			k.Organization = ""
		}
		cfg.Keys = append(cfg.Keys, k)
		m.keys = append(m.keys, k)
		m.ids = append(m.ids, k.ID())
		m.of[k.ID()] = at
	}
	p, err := keypool.NewKeyPool("test", cfg)
	require.NoError(t, err)
	m.pool = p
	return m
}

func (m *machine) ask(t *rapid.T) {
	tokens := rapid.IntRange(1, 5000).Draw(t, "tokens")
	d := keypool.Demand{Class: opus, Client: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "client"), Bytes: 4 * tokens,
		MaxTokens: rapid.SampledFrom([]int{0, 100, 5000, 128_000}).Draw(t, "max_tokens"), Arrived: m.now()}
	if n := rapid.IntRange(0, 3).Draw(t, "conversation"); n > 0 {
		marks := talk(uint64(n), max(4000, 4*tokens)/4000*4000)
		d.Conversation, d.Prefix, d.Bytes = marks.Conversation, marks.Prefix, marks.Bytes
	}
	if rapid.IntRange(0, 5).Draw(t, "exclude") == 0 {
		d.Exclude = []string{rapid.SampledFrom(m.ids).Draw(t, "excluded")}
	}
	m.step(t, &waiting{demand: d})
}

// step asks the pool once, and takes over what it answers.
func (m *machine) step(t *rapid.T, w *waiting) {
	now := m.now()
	alone := len(m.waiting) == 0
	lease, wait, err := m.pool.AcquireAt(now, w.demand, &w.turn)
	switch {
	case err != nil:
		m.refused(t, w, err, alone)
	case wait > 0:
		if late := now.Add(wait).Sub(w.demand.Arrived); late > machineWait {
			t.Fatalf("a request waits until %s after it came, at most %s is allowed", late, machineWait)
		}
		w.due = now.Add(wait)
		m.waiting = append(m.waiting, w)
	default:
		if m.mayServe != nil && !m.mayServe(lease.KeyID()) {
			t.Fatalf("key %s was chosen though it is removed or off", lease.KeyID())
		}
		if slices.Contains(w.demand.Exclude, lease.KeyID()) {
			t.Fatalf("key %s was chosen though it is excluded", lease.KeyID())
		}
		m.send(t, lease, w.demand)
	}
}

// refused checks that no key could have served the request within its budget, by what
// the provider has and says (in whole requests and tokens).
func (m *machine) refused(t *rapid.T, w *waiting, err error, alone bool) {
	var exhausted *keypool.ExhaustedError
	if !errors.As(err, &exhausted) || !errors.Is(err, keypool.ErrAllKeysExhausted) {
		t.Fatalf("got error %v, want an *ExhaustedError", err)
	}
	if !m.honest || !alone {
		return
	}
	budget := machineWait/3 - m.now().Sub(w.demand.Arrived) // a third in a crowd
	for id, at := range m.of {
		if slices.Contains(w.demand.Exclude, id) {
			continue
		}
		at.refill(m.now())
		requests, input, output := at.requests-2, at.input-1, at.output-1
		for _, f := range m.flying {
			if f.to == nil && m.of[f.KeyID()] == at {
				requests, input = requests-1, input-float64(f.demand.Bytes)/4
			}
		}
		need := min(float64(w.demand.Bytes)/4+min(600, 0.02*at.itpm), at.itpm)
		minutes := max(-requests/at.rpm, (need-input)/at.itpm, (min(500, 0.02*at.otpm)-output)/at.otpm)
		if minutes <= budget.Minutes() {
			t.Fatalf("refused for %s, but key %s can serve in %.3f s: the provider has %.1f, %.1f and %.1f, the pool believes in %+v", exhausted.RetryAfter, id, minutes*60, at.requests, at.input, at.output, m.pool.GetStats().Classes[1].Keys)
		}
	}
}

// send has the request arrive at its provider at once; what that answers comes later.
func (m *machine) send(t *rapid.T, lease keypool.Lease, d keypool.Demand) {
	f := &flight{Lease: lease, demand: d, to: m.of[lease.KeyID()], took: lease.Held().Input}
	m.flying = append(m.flying, f)
	if rapid.IntRange(0, 9).Draw(t, "connection") == 0 {
		f.to = nil
		return
	}
	status, h, retryAfter := f.to.admit(time.Now(), f.took, d.MaxTokens)
	f.status, f.retryAfter = status, retryAfter
	f.header = func() (int, time.Duration) {
		lease.AnsweredAt(m.now(), status, h)
		return status, retryAfter
	}
}

func (m *machine) flight(t *rapid.T) *flight {
	if len(m.flying) == 0 {
		t.Skip("nothing is under way")
	}
	return m.flying[rapid.IntRange(0, len(m.flying)-1).Draw(t, "flight")]
}

// answer brings the head of an answer.
func (m *machine) answer(t *rapid.T) {
	f := m.flight(t)
	if f.to == nil || f.answered {
		t.Skip("no answer comes")
	}
	f.answered = true
	status, retryAfter := f.header()
	if status == 200 {
		f.SucceededAt(m.now())
		return
	}
	f.LimitedAt(m.now(), retryAfter)
	m.settle(t, f, keypool.Usage{})
}

func (m *machine) produce(t *rapid.T) {
	f := m.flight(t)
	if !f.answered {
		t.Skip("it has not begun")
	}
	n := rapid.IntRange(1, 300).Draw(t, "output")
	f.produced += n
	f.to.produce(time.Now(), n)
	f.ProducedAt(m.now(), n)
}

// end finishes a request, whatever it has come to, and reports what it cost.
func (m *machine) end(t *rapid.T) {
	f := m.flight(t)
	switch {
	case f.to == nil || f.status != 200:
		if f.to != nil && !f.answered {
			t.Skip("its refusal is still to come")
		}
		m.settle(t, f, keypool.Usage{})
	default:
		u := keypool.Usage{Input: f.took, CacheRead: f.demand.Bytes/4 - f.took, Output: f.produced}
		if rapid.IntRange(0, 3).Draw(t, "broken") == 0 {
			u = keypool.Usage{Input: f.took, Output: f.produced / 2, Partial: true}
		}
		if rapid.IntRange(0, 5).Draw(t, "silent") == 0 {
			u = keypool.Usage{Unreported: true}
		}
		f.to.end(time.Now(), f.demand.MaxTokens, f.produced)
		m.settle(t, f, u)
	}
}

func (m *machine) settle(t *rapid.T, f *flight, u keypool.Usage) {
	f.SettleAt(m.now(), u)
	m.flying = slices.DeleteFunc(m.flying, func(o *flight) bool { return o == f })
	before := m.pool.GetStats()
	f.SettleAt(m.now(), keypool.Usage{Input: 1000, Output: 1000})
	f.ProducedAt(m.now(), 1000)
	f.LimitedAt(m.now(), time.Hour)
	require.Equal(t, before, m.pool.GetStats(), "settled twice")
}

// pause lets time pass; requests that wait ask again when they are told to. Where the
// provider is to be matched exactly, those that did not get there are known at once:
// what they held for long would have refilled before it is given back.
func (m *machine) pause(t *rapid.T, d time.Duration) {
	end := time.Now().Add(d)
	for {
		for _, f := range slices.Clone(m.flying) {
			if m.honest && f.to == nil {
				m.settle(t, f, keypool.Usage{})
			}
		}
		var next *waiting
		for _, w := range m.waiting {
			if next == nil || w.due.Before(next.due) {
				next = w
			}
		}
		if next == nil || next.due.Sub(m.now()) > time.Until(end) {
			time.Sleep(time.Until(end))
			return
		}
		time.Sleep(max(0, next.due.Sub(m.now())))
		m.waiting = slices.DeleteFunc(m.waiting, func(w *waiting) bool { return w == next })
		m.step(t, next)
	}
}

func (m *machine) leave(t *rapid.T) {
	if len(m.waiting) == 0 {
		t.Skip("nobody waits")
	}
	i := rapid.IntRange(0, len(m.waiting)-1).Draw(t, "who")
	m.pool.Leave(&m.waiting[i].turn)
	m.waiting = slices.Delete(m.waiting, i, i+1)
}

// check holds after every step.
func (m *machine) check(t *rapid.T) {
	inner := keypool.InnerOf(m.pool)
	if inner.InFlight != len(m.flying) || inner.Waiting != len(m.waiting) || inner.Queued != len(m.waiting) {
		t.Fatalf("got %+v, want %d in flight and %d waiting", inner, len(m.flying), len(m.waiting))
	}
	unacked := 0
	for _, f := range m.flying {
		if !f.answered {
			unacked++
		}
	}
	if inner.Unacked != unacked {
		t.Fatalf("%d are not answered yet, want %d", inner.Unacked, unacked)
	}
	for _, c := range m.pool.GetStats().Classes {
		for _, k := range c.Keys {
			for _, b := range [][2]int{{k.Remaining.RPM, k.Limits.RPM}, {k.Remaining.ITPM, k.Limits.ITPM}, {k.Remaining.OTPM, k.Limits.OTPM}} {
				assert.LessOrEqual(t, b[0], b[1], "level and limit of key %s", k.ID)
			}
		}
	}
	if m.honest {
		for id, at := range m.of {
			if at.refused > 0 {
				t.Fatalf("the provider of key %s has refused what the pool admitted, %d tokens over", id, at.overshoot)
			}
		}
	}
}

// finish ends all that is under way; then nothing may be left.
func (m *machine) finish(t *rapid.T) {
	for i := range m.waiting {
		m.pool.Leave(&m.waiting[i].turn)
	}
	for len(m.flying) > 0 {
		f := m.flying[0]
		u := keypool.Usage{}
		if f.answered {
			u = keypool.Usage{Input: f.took, Output: f.produced}
		}
		m.settle(t, f, u)
	}
	require.Zero(t, keypool.InnerOf(m.pool), "left over")
}
