package keypool_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/keypool"
)

var pauses = rapid.SampledFrom([]time.Duration{time.Nanosecond, 7 * time.Millisecond, 150 * time.Millisecond, time.Second, 3 * time.Second, 20 * time.Second, 6 * time.Minute})

// traffic are the actions of ordinary life.
func (m *machine) traffic() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"":         m.check,
		"ask":      m.ask,
		"ask2":     m.ask, // more often than the others
		"ask3":     m.ask,
		"answer":   m.answer,
		"answer2":  m.answer,
		"produce":  m.produce,
		"produce2": m.produce,
		"end":      m.end,
		"leave":    m.leave,
		"pause":    func(t *rapid.T) { m.pause(t, pauses.Draw(t, "pause")) },
		"pause2":   func(t *rapid.T) { m.pause(t, pauses.Draw(t, "pause")) },
	}
}

// A provider that does as it says, with limits that are known, never refuses what the
// pool admits, and the pool refuses nothing that a key could have served in time.
func TestHonestProvidersNeverRefuse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			m := newMachine(t, true)
			t.Repeat(m.traffic())
			m.finish(t)
		})
	})
}

// Whatever providers do, and whatever clocks and operators: what is held is held once,
// is given back, and no request waits longer than it may.
func TestThePoolKeepsItsLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			m := newMachine(t, false)
			actions := m.traffic()
			key := func(t *rapid.T) string { return rapid.SampledFrom(m.ids).Draw(t, "key") }
			wait := func(t *rapid.T) time.Duration {
				return rapid.SampledFrom([]time.Duration{-1, 0, time.Millisecond, 3 * time.Second, time.Minute, 2 * time.Hour}).Draw(t, "retry-after")
			}
			actions["cool key"] = func(t *rapid.T) { m.pool.MarkKeyExhausted(key(t), wait(t)) }
			actions["cool class"] = func(t *rapid.T) { m.pool.MarkClassExhausted(key(t), opus, wait(t)) }
			actions["kill"] = func(t *rapid.T) { m.pool.MarkKeyDead(key(t), keypool.ReasonUnauthorized) }
			actions["release"] = func(t *rapid.T) { require.NoError(t, m.pool.Release(key(t))) }
			actions["move"] = func(t *rapid.T) { m.of[key(t)] = m.of[key(t)] } // to the organization of another
			actions["found"] = func(t *rapid.T) {
				m.of[key(t)] = newProvider(rapid.SampledFrom([]string{"", "org-4", "org-5"}).Draw(t, "organization"), 60, 20_000, 5000, time.Now())
			}
			actions["change"] = func(t *rapid.T) {
				at := m.of[key(t)]
				at.rpm, at.itpm, at.otpm = rapid.Float64Range(5, 900).Draw(t, "RPM"), rapid.Float64Range(50, 90_000).Draw(t, "ITPM"), rapid.Float64Range(50, 90_000).Draw(t, "OTPM")
				at.reserves = rapid.Bool().Draw(t, "reserves")
			}
			actions["clock"] = func(t *rapid.T) {
				skew := rapid.SampledFrom([]time.Duration{0, -time.Second, -time.Hour, time.Hour}).Draw(t, "skew")
				for _, w := range m.waiting { // a clock that is set while a request waits does not move its start
					w.demand.Arrived = w.demand.Arrived.Add(time.Now().Add(skew).Sub(m.now()))
					w.due = w.due.Add(time.Now().Add(skew).Sub(m.now()))
				}
				m.now = func() time.Time { return time.Now().Add(skew) }
			}
			actions["headers"] = func(t *rapid.T) {
				id := key(t)
				require.NoError(t, m.pool.UpdateClassFromHeaders(id, opus, m.of[id].header(time.Now())))
			}
			t.Repeat(actions)
			m.finish(t)
		})
	})
}
