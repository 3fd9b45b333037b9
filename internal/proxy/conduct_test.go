package proxy_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

const (
	nowhere   next = iota // the answer is the client's
	otherKey              // another key at once, then another provider
	otherNext             // another provider at once, else the same once more after a moment
	elsewhere             // another provider only
)

func all(trouble) bool { return true }

// eachTrouble runs a test for these rows, streamed and not, side by side.
func eachTrouble(t *testing.T, these func(trouble) bool, test func(t *testing.T, tr trouble, stream bool)) {
	leakFree(t)
	t.Run("all", func(t *testing.T) {
		for name, tr := range troubles {
			if !these(tr) {
				continue
			}
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, stream=%t", name, stream), func(t *testing.T) {
					t.Parallel()
					test(t, tr, stream)
				})
			}
		}
	})
}

// With one key of one provider there is nothing else, and the client is told.
func TestTroubleWithTheOnlyKey(t *testing.T) {
	eachTrouble(t, all, func(t *testing.T, tr trouble, stream bool) {
		a := tr.start(t, 1, "")
		r := relayOf(t, a)
		got := r.do(call{body: ask(opus, stream)})

		asked := 1
		if tr.next == otherNext {
			asked = 2
		}
		assert.Len(t, a.Seen(), asked, "requests at the provider")
		assert.Equal(t, strconv.Itoa(asked), got.header.Get("X-Cc-Relay-Attempts"))
		if tr.head && stream {
			requireSilenced(t, got)
			return
		}
		tr.requireShown(t, got, a.Seen()[asked-1].RequestID)
		outcome := "failed"
		if tr.next == nowhere || tr.status == http.StatusNotFound { // the client's mistake
			outcome = "served"
		}
		assert.Equal(t, outcome, got.record["outcome"])
		assert.InDelta(t, tr.status, got.record["status"], 0)
	})
}

// requireSilenced checks the honest end of a stream that was shown because nobody
// else was left, and then stayed silent.
func requireSilenced(t *testing.T, got reply) {
	t.Helper()
	require.NoError(t, got.err)
	require.Equal(t, 200, got.status)
	assert.Contains(t, got.body, "fell silent")
	assert.Contains(t, got.body, "event: error\n")
	assert.NotContains(t, got.body, "message_stop")
	assert.Equal(t, "broken", got.record["outcome"])
}

// requirePause checks the moment before a provider is asked once more.
func requirePause(t *testing.T, got reply) {
	t.Helper()
	assert.GreaterOrEqual(t, waited(t, got), 250*time.Millisecond)
}

// A request pauses before the same provider is asked again, and goes on to another key
// or provider at once.
func TestOnlyTheSameProviderAgainIsWorthAPause(t *testing.T) {
	for _, tt := range []struct {
		name   string
		keys   int  // of the provider in trouble, with the first of them
		other  bool // there is another provider
		pauses next
	}{
		{"the only key", 1, false, otherNext},
		{"one key of a lone provider", 2, false, otherNext},
		{"one key of two providers", 2, true, -1},
		{"the first provider", 1, true, -1},
	} {
		for name, tr := range troubles {
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s, stream=%t", tt.name, name, stream), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						net := newPipes()
						fault := tr.fault
						fault.Key = "1"
						cfg := simulator.Config{Faults: []simulator.Fault{fault}}
						for n := range tt.keys {
							cfg.Organizations = append(cfg.Organizations, owner("a", n+1, simulator.Limits{}))
						}
						a := net.sim(t, "a", cfg)
						tr.hurry(a)
						sims := []*sim{a}
						if tt.other {
							sims = append(sims, net.sim(t, "b", simulator.Config{Organizations: []simulator.Organization{owner("b", 1, simulator.Limits{})}}))
						}
						got := net.relay(t, sims...).do(call{body: ask(opus, stream)})
						switch {
						case got.header.Get("X-Cc-Relay-Wait-Ms") == "" && tr.head && stream: // shown before there was anything to say
						case tr.next == tt.pauses:
							requirePause(t, got)
							assert.LessOrEqual(t, waited(t, got), 500*time.Millisecond)
						default:
							assert.Zero(t, waited(t, got))
						}
					})
				})
			}
		}
	}
}

// Another provider serves what the first cannot, and the client sees nothing of it.
func TestTroubleWithTheFirstProvider(t *testing.T) {
	eachTrouble(t, all, func(t *testing.T, tr trouble, stream bool) {
		a, b := tr.start(t, 1, ""), newSim(t, "b", 1)
		r := relayOf(t, a, b)
		got := r.do(call{body: ask(opus, stream)})
		assert.Len(t, a.Seen(), 1, "requests at the first provider")
		if tr.next == nowhere {
			tr.requireShown(t, got, a.Seen()[0].RequestID)
			assert.Empty(t, b.Seen(), "requests at the second provider")
			return
		}
		requireServed(t, got, stream)
		assert.Equal(t, "b", got.header.Get("X-Cc-Relay-Provider"))
		assert.Equal(t, "2", got.header.Get("X-Cc-Relay-Attempts"))
		assert.Equal(t, b.Seen()[0].RequestID, got.header.Get("Request-Id"))
		assert.Empty(t, got.header.Get("Retry-After"))
		assert.Empty(t, got.header.Get("X-Should-Retry"))
		assert.Equal(t, "b", got.record["upstream"])
	})
}

// What is wrong with one key is no reason to leave its provider.
func TestTroubleWithTheFirstKey(t *testing.T) {
	eachTrouble(t, all, func(t *testing.T, tr trouble, stream bool) {
		a, b := tr.start(t, 2, "1"), newSim(t, "b", 1)
		r := relayOf(t, a, b)
		got := r.do(call{body: ask(opus, stream)})
		switch tr.next {
		case nowhere:
			tr.requireShown(t, got, a.Seen()[0].RequestID)
			assert.Equal(t, []string{"key-1"}, a.keysSeen())
			assert.Empty(t, b.Seen(), "requests at the second provider")
		case otherKey:
			requireServed(t, got, stream)
			assert.Equal(t, []string{"key-1", "key-2"}, a.keysSeen())
			assert.Empty(t, b.Seen(), "requests at the second provider")
		default:
			requireServed(t, got, stream)
			assert.Equal(t, []string{"key-1"}, a.keysSeen())
			assert.Len(t, b.Seen(), 1, "requests at the second provider")
		}
	})
}

// A lone provider is asked once more after a moment, with a key of another owner.
func TestTroubleWithOneOwnerOfALoneProvider(t *testing.T) {
	eachTrouble(t, all, func(t *testing.T, tr trouble, stream bool) {
		a := tr.start(t, 2, "1")
		r := relayOf(t, a)
		got := r.do(call{body: ask(opus, stream)})
		if tr.next == nowhere || tr.next == elsewhere {
			tr.requireShown(t, got, a.Seen()[0].RequestID)
			assert.Equal(t, []string{"key-1"}, a.keysSeen())
			return
		}
		requireServed(t, got, stream)
		assert.Equal(t, []string{"key-1", "key-2"}, a.keysSeen())
		assert.Equal(t, "2", got.header.Get("X-Cc-Relay-Attempts"))
	})
}
