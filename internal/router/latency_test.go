package router_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/router"
)

// fleet is upstreams that answer after a time of their own.
type fleet struct {
	r     *router.Router
	delay map[string]time.Duration
}

// run sends 10 requests a second for a time, each to the first of its plan, and
// returns the share of each upstream.
func (f *fleet) run(t *testing.T, d time.Duration) map[string]float64 {
	shares, n := map[string]float64{}, int(d/(100*time.Millisecond))
	for range n {
		c := plan(t, f.r, ask("m")).Candidates[0]
		shares[nameOf(c)] += 1 / float64(n)
		if took := f.delay[nameOf(c)]; took > 0 { // 0: it hangs
			time.AfterFunc(took, func() { c.Lane.Observe(took, time.Now()) })
		}
		time.Sleep(100 * time.Millisecond)
	}
	return shares
}

func newFleet(t *testing.T, delays ...time.Duration) *fleet {
	names := []string{"a", "b", "c"}[:len(delays)]
	f := &fleet{routeOver(t, router.Config{Strategy: "latency"}, upstreams(names...)), map[string]time.Duration{}}
	for i, d := range delays {
		f.delay[names[i]] = d
	}
	return f
}

func TestTheSlowerOfTwo(t *testing.T) {
	for _, fast := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, time.Second, 2 * time.Second} {
		for phase := range 5 { // it recovers at any time since it was looked at last
			t.Run(fmt.Sprintf("%s, phase %d", fast, phase), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, 3*fast, fast)
					assert.LessOrEqual(t, f.run(t, 30*time.Second)["a"], 0.15, "from the start")
					slow := f.run(t, time.Minute+time.Duration(phase)*2300*time.Millisecond)["a"]
					assert.LessOrEqual(t, slow, 0.15)
					assert.Positive(t, slow, "it is looked at now and then")

					f.delay["a"] = fast
					f.run(t, 25*time.Second)
					assert.InDelta(t, 0.5, f.run(t, 5*time.Second)["a"], 0.2, "it has its share again")

					f.delay["b"] = 3 * fast
					f.run(t, 15*time.Second)
					assert.LessOrEqual(t, f.run(t, 30*time.Second)["b"], 0.15, "now the other is slow")
				})
			})
		}
	}
}

func TestWhatWasNeverObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, time.Second, time.Second)
		r := f.r
		plan(t, r, ask("m")).Candidates[0].Lane.Observe(time.Millisecond, time.Now())
		assert.Equal(t, []string{"b", "a"}, way(t, r, ask("m")), "it is tried")
		assert.Equal(t, []string{"a", "b"}, way(t, r, ask("m")), "by one request")
	})
}

// One that hangs before it was ever observed must not get all requests.
func TestWhatHangsFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 100*time.Millisecond, 0)
		assert.LessOrEqual(t, f.run(t, time.Minute)["b"], 0.02)
		f.delay["b"] = 100 * time.Millisecond
		f.run(t, 25*time.Second)
		assert.InDelta(t, 0.5, f.run(t, 5*time.Second)["b"], 0.2)
	})
}

func TestTwoChoices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFleet(t, 1, 1, 1).r
		for i, u := range r.Upstreams() {
			u.Lane("m").Observe(time.Duration(3-i)*time.Second, time.Now())
		}
		count := map[string]int{}
		for range 3000 {
			p := way(t, r, ask("m"))
			count[p[0]]++
			want := []string{"c", "b", "a"}
			if p[0] == "b" {
				want = []string{"b", "c", "a"}
			}
			assert.Equal(t, want, p, "the others follow by speed")
		}
		assert.Zero(t, count["a"], "the slowest is faster than nobody")
		assert.InDelta(t, 2000, count["c"], 150, "the fastest is one of two in two of three draws")
	})
}

// Three of equal speed share alike, and the slow one of three gets little.
func TestThreeTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond)
		f.run(t, 10*time.Second)
		for name, share := range f.run(t, time.Minute) {
			assert.InDelta(t, 1.0/3, share, 0.1, name)
		}
		f.delay["b"] = 300 * time.Millisecond
		f.run(t, 10*time.Second)
		assert.LessOrEqual(t, f.run(t, time.Minute)["b"], 0.15)
	})
}
