package keypool_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
	"cc-relay/internal/ratelimit"
)

func (m *machine) lease(t *rapid.T) *modelLease {
	if len(m.leases) == 0 {
		t.Skip("nothing was acquired")
	}
	return m.leases[len(m.leases)-1-rapid.IntRange(0, len(m.leases)-1).Draw(t, "lease")]
}

// settle settles any lease, also one that is settled already.
func (m *machine) settle(t *rapid.T) {
	m.settleOne(m.lease(t), ratelimit.Tokens{Input: rapid.IntRange(-1, 9000).Draw(t, "used input"), Output: rapid.IntRange(-1, 1000).Draw(t, "used output")})
}

func (m *machine) settleOne(l *modelLease, used ratelimit.Tokens) {
	l.Settle(used)
	if l.settled {
		return
	}
	l.settled = true
	s := l.key.slot(l.class, time.Now())
	s.input.took(time.Now(), max(0, used.Input)-l.held.Input)
	s.output.took(time.Now(), max(0, used.Output)-l.held.Output)
	s.flying--
	s.held.Input -= l.held.Input
	s.held.Output -= l.held.Output
}

func (m *machine) succeed(t *rapid.T) {
	l := m.lease(t)
	l.Succeeded()
	if l.settled {
		return
	}
	s := l.key.slot(l.class, time.Now())
	l.key.dead.forgive(l.at)
	s.blocked.forgive(l.at)
	l.key.cool.forgive(time.Now())
	s.cool.forgive(time.Now())
	s.met = nil
}

func (m *machine) headers(t *rapid.T) {
	k, class, now := m.key(t), m.class(t), time.Now()
	s, h := k.slot(class, now), http.Header{}
	for _, b := range []struct {
		kind   string
		bucket *modelBucket
		held   int
		counts bool
	}{
		{"requests", &s.requests, s.flying, class != keypool.ClassModels},
		{"input-tokens", &s.input, s.held.Input, class != keypool.ClassModels && class != keypool.ClassCountTokens},
		{"output-tokens", &s.output, s.held.Output, class != keypool.ClassModels && class != keypool.ClassCountTokens},
	} {
		limit, remaining := rapid.SampledFrom([]int{-1, 0, 1, 40, 3000}).Draw(t, "limit"), rapid.IntRange(-1, 4000).Draw(t, "remaining")
		for name, v := range rateHeaders(limit, remaining) {
			h["Anthropic-Ratelimit-"+http.CanonicalHeaderKey(b.kind)+name[len("Anthropic-Ratelimit-Requests"):]] = v
		}
		if b.counts && limit > 0 {
			b.bucket.limited(now, limit, b.held)
		}
		if in, _ := b.bucket.replay(now); b.counts && in > 0 {
			b.bucket.saw(now, remaining)
		}
	}
	if err := m.pool.UpdateClassFromHeaders(k.id, class, h); err != nil {
		t.Fatal(err)
	}
}

var retryAfters = rapid.SampledFrom([]time.Duration{-1, 0, time.Millisecond, 3 * time.Second, 30 * time.Second, 2 * time.Hour})

func (m *machine) coolKey(t *rapid.T) {
	k, d := m.key(t), retryAfters.Draw(t, "retry-after")
	m.pool.MarkKeyExhausted(k.id, d)
	k.cool.start(time.Now(), d)
}

func (m *machine) coolClass(t *rapid.T) {
	k, class, d, now := m.key(t), m.class(t), retryAfters.Draw(t, "retry-after"), time.Now()
	m.pool.MarkClassExhausted(k.id, class, d)
	s, known := k.slot(class, now), false
	for _, b := range []*modelBucket{&s.requests, &s.input, &s.output} {
		limit, _ := b.replay(now)
		known = known || limit > 0
	}
	if known && !s.cool.again(now) {
		d = min(d, time.Second)
	}
	s.cool.start(now, d)
}

func (m *machine) kill(t *rapid.T) {
	k, why := m.key(t), rapid.SampledFrom([]keypool.Reason{keypool.ReasonUnauthorized, keypool.ReasonSpent}).Draw(t, "reason")
	m.pool.MarkKeyDead(k.id, why)
	k.dead.strike(time.Now(), why)
}

func (m *machine) forbid(t *rapid.T) {
	k, class, client := m.key(t), m.class(t), rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "client")
	account := rapid.IntRange(0, 3).Draw(t, "account") == 0
	m.pool.MarkKeyForbidden(k.id, class, client, account)
	s := k.slot(class, time.Now())
	other := slices.ContainsFunc(s.met, func(met string) bool { return met != client })
	s.met = append(s.met, client)
	if account || other || s.blocked.reason != "" {
		s.blocked.strike(time.Now(), keypool.ReasonForbidden)
	}
}

func (m *machine) check(t *rapid.T) {
	now := time.Now()
	for _, c := range m.pool.GetStats().Classes {
		for i, got := range c.Keys {
			s := m.keys[i].slot(c.Class, now)
			if got.InFlight != s.flying {
				t.Fatalf("key %s, class %q: %d in flight, want %d", got.ID, c.Class, got.InFlight, s.flying)
			}
			for _, b := range []struct {
				name             string
				limit, remaining int
				bucket           *modelBucket
			}{
				{"requests", got.Limits.RPM, got.Remaining.RPM, &s.requests},
				{"input", got.Limits.ITPM, got.Remaining.ITPM, &s.input},
				{"output", got.Limits.OTPM, got.Remaining.OTPM, &s.output},
			} {
				limit, _ := b.bucket.replay(now)
				left := b.bucket.whole(now)
				if b.limit != limit || b.remaining-left < 0 && b.remaining != left || b.remaining-left > 1 {
					t.Fatalf("key %s, class %q, %s: %d of %d, want %d of %d", got.ID, c.Class, b.name, b.remaining, b.limit, left, limit)
				}
			}
		}
	}
	var live, probes []time.Duration
	for _, k := range m.keys {
		if wait, _ := k.wait(keypool.ClassAny, now); wait > 0 && k.isDead(keypool.ClassAny, now) {
			probes = append(probes, wait)
		} else {
			live = append(live, wait)
		}
	}
	earliest := shortestOf(live, probes)
	if got := m.pool.GetEarliestResetTime(); (got - earliest).Abs() > time.Microsecond {
		t.Fatalf("earliest reset in %s, want %s", got, earliest)
	}
}

var pauses = rapid.SampledFrom([]time.Duration{time.Nanosecond, 20 * time.Millisecond, time.Second, 7 * time.Second, 31 * time.Second, 5 * time.Minute, 61 * time.Minute})

func TestPoolAgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			m := newMachine(t)
			t.Repeat(map[string]func(*rapid.T){
				"":           m.check,
				"getKey":     m.getKey,
				"acquire":    m.acquire,
				"acquire2":   m.acquire, // more often than the others
				"acquire3":   m.acquire,
				"settle":     m.settle,
				"settle2":    m.settle,
				"succeed":    m.succeed,
				"headers":    m.headers,
				"cool key":   m.coolKey,
				"cool class": m.coolClass,
				"kill":       m.kill,
				"forbid":     m.forbid,
				"wait":       func(t *rapid.T) { time.Sleep(pauses.Draw(t, "pause")) },
			})
			for _, l := range m.leases {
				m.settleOne(l, ratelimit.Tokens{Input: 10, Output: 10})
			}
			m.check(t)
			for _, c := range m.pool.GetStats().Classes {
				if c.InFlight != 0 {
					t.Fatalf("class %q: %d in flight after all is settled, want 0", c.Class, c.InFlight)
				}
			}
		})
	})
}
