package proxy_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/simulator"
)

// switchOff takes keys of the relay's first pool out, by their places.
func switchOff(t *testing.T, r *relay, places ...int) {
	t.Helper()
	pool := r.live.Router.Upstreams()[0].Pool
	keys := pool.Keys()
	for _, i := range places {
		require.NoError(t, pool.Disable(keys[i].ID))
	}
}

// A client whose keys an operator has switched off is not told to check them.
func TestKeysThatAreOffAreCalledSo(t *testing.T) {
	const off = "all keys of provider a that could serve this are switched off; the relay's operator puts them on again with `cc-relay key on`"
	const dead = "no usable credential for provider a: check the keys in the relay's configuration"
	for name, tt := range map[string]struct {
		off    []int
		faults []simulator.Fault
		want   string // "": it is served
	}{
		"all":                        {off: []int{0, 1}, want: off},
		"one":                        {off: []int{0}},
		"one, and the other refused": {off: []int{0}, faults: faults(simulator.Fault{Kind: simulator.FaultDeadKey, Duration: time.Hour}), want: off},
		"none, and both refused":     {faults: faults(simulator.Fault{Kind: simulator.FaultDeadKey, Duration: time.Hour}), want: dead},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.sim(t, "a", simulator.Config{
					Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{}), owner("a", 2, simulator.Limits{})},
					Faults:        tt.faults,
				})
				r := net.relay(t, a)
				switchOff(t, r, tt.off...)
				for _, one := range []call{{body: ask(opus, false)}, {body: ask(opus, true)}, {body: ask(opus, false)}} {
					got := r.do(one)
					if tt.want == "" {
						require.Equal(t, 200, got.status, got.body)
						continue
					}
					requireError(t, got, 502, "api_error")
					assert.Contains(t, got.body, tt.want)
					assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
				}
			})
		})
	}
}

// Another provider's failure is not hidden behind keys that are off, nor the other way
// round.
func TestKeysThatAreOffLeadToTheNextProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		of := func(name string) *sim {
			return net.sim(t, name, simulator.Config{Organizations: []simulator.Organization{owner(name, 1, simulator.Limits{})}})
		}
		a, b := of("a"), of("b")
		r := net.relay(t, a, b)
		switchOff(t, r, 0)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		assert.Empty(t, a.Seen())
		require.NoError(t, b.SetFaults(faults(status(529))))
		requireError(t, r.do(call{body: ask(opus, false)}), 529, "overloaded_error")
	})
}

// A key that is off cannot tell the models, so it does not keep a refused one from
// being tried where there is no other.
func TestListingMayBringTheOnlyKeyThatIsNotOffBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{
			Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{}), owner("a", 2, simulator.Limits{})},
			Faults:        faults(simulator.Fault{Kind: simulator.FaultDeadKey, Duration: time.Minute}),
		})
		r := net.relay(t, a)
		switchOff(t, r, 0)
		requireError(t, r.do(call{body: ask(opus, false)}), 502, "api_error")
		require.NoError(t, a.SetFaults(nil))
		time.Sleep(6 * time.Minute)
		assert.NotEmpty(t, readPage(t, r.do(listModels(""))).Data)
		synctest.Wait()
		assert.Equal(t, keypool.StateAvailable, r.live.Router.Upstreams()[0].Pool.Keys()[1].State)
		assert.False(t, slices.Contains(a.keysSeen(), "key-1"), "keys: %v", a.keysSeen())
	})
}

func TestListingWithoutAKeyThatIsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{})}})
		r := net.relay(t, a)
		switchOff(t, r, 0)
		got := r.do(listModels(""))
		requireError(t, got, 502, "api_error")
		assert.Contains(t, got.body, "all keys of provider a that could serve this are switched off")
		assert.Empty(t, a.Seen())
	})
}
