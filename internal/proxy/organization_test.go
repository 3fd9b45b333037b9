package proxy_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/provider"
	"cc-relay/internal/simulator"
)

// Two keys of one organization and one of another. A limit is the organization's,
// so a 429 with one of its keys says that the other has no room either.
func TestALimitIsTheOrganizations(t *testing.T) {
	leakFree(t)
	first, second, other := keyOf("a", 1), keyOf("a", 2), keyOf("a", 3)
	core, err := simulator.New(simulator.Config{KeepBodies: true, Organizations: []simulator.Organization{
		{ID: "org-shared", Keys: []simulator.Key{{Key: first}, {Key: second}}},
		{ID: "org-other", Keys: []simulator.Key{{Key: other}}},
	}})
	require.NoError(t, err)
	a := &sim{Simulator: core, upstream: upstream{Config: provider.Config{Name: "a", BaseURL: serve(t, core)}, keys: []string{first, second, other}}}
	r := relayOf(t, a)
	for range 3 { // each key in turn, so that the pool learns whose they are
		requireServed(t, r.send(call{body: ask(opus, false)}), false)
	}
	require.ElementsMatch(t, []string{"key-1", "key-2", "key-3"}, a.keysSeen())
	for range 3 {
		r.log.next(t)
	}
	require.Contains(t, r.log.String(), "belong to one organization")

	require.NoError(t, a.SetFaults(faults(
		simulator.Fault{Org: "org-shared", Kind: simulator.FaultStatus, Status: 429, Headers: map[string]string{"Retry-After": "30"}})))
	seen := len(a.Seen())
	for range 6 {
		requireServed(t, r.send(call{body: ask(opus, true)}), true)
	}
	refused := 0
	for _, rec := range a.Seen()[seen:] {
		if rec.Status == 429 {
			refused++
		}
	}
	assert.Equal(t, 1, refused, "one refusal rests both keys of the organization")
}
