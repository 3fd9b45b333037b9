package main

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

var twoSmall = Pool{Name: "two", Keys: []simulator.Limits{small, small}}

// playEvent plays a trace of which the event happens at a time.
func playEvent(t *testing.T, tr Trace, pool Pool, sc scenario, at time.Duration, p Policy) (*replay, []outcome) {
	t.Helper()
	tr.link()
	from, err := newProvider(pool, sc, at, 1)
	require.NoError(t, err)
	x := newReplay(tr, from, p, time.Hour)
	x.restarted = func(time.Time, Policy) Policy { return p }
	got, err := x.run()
	require.NoError(t, err)
	return x, got
}

// untried takes the first key that has not refused the request.
func untried(_ time.Time, r *Request) Decision {
	for k := range 2 {
		if !r.tried(k) {
			return serve(k)
		}
	}
	return refuse(time.Second)
}

func turnAt(at time.Duration, input, output int) Turn {
	return Turn{Start: at, Input: input, Output: output, Parent: -1, Bytes: 4}
}

func TestADeadKeyAnswers401(t *testing.T) {
	p := &script{pick: untried}
	x, got := playEvent(t, Trace{
		turnAt(time.Second, 100, 600), // 11 s: an answer under way goes on
		turnAt(5*time.Second, 100, 10),
		turnAt(5*time.Second, 100, 10),
		turnAt(6*time.Second, 100, 10),
	}, twoSmall, scenario{dies: 1}, 4*time.Second, p)
	for i, o := range got {
		assert.Equal(t, completed, o.status, "turn %d", i)
	}
	assert.Equal(t, tally{Denied: 3, InFlight: 1, Late: 1}, x.provider.tally, "the last request need not have been sent")
}

func TestLimitsAreCut(t *testing.T) {
	p := &script{pick: func(_ time.Time, r *Request) Decision {
		if r.tried(0) {
			return serve(1)
		}
		return serve(0)
	}}
	x, got := playEvent(t, Trace{
		turnAt(time.Second, 24_000, 1200), // leaves 6,000 of 30,000, and is under way until 24.4 s
		turnAt(5*time.Second, 7_000, 10),  // 7,500 are the new limit, of which 7,500 are there
		turnAt(20*time.Second, 7_000, 10),
	}, twoSmall, scenario{cuts: 1}, 4*time.Second, p)
	require.Equal(t, completed, got[0].status)
	assert.Equal(t, 0, got[1].refusals)
	assert.Equal(t, 1, got[2].refusals)
	assert.Equal(t, tally{Refusals: 1, InFlight: 1, Late: 1}, x.provider.tally)
	head := p.heads[1]
	assert.Equal(t, Reading{Limit: 7_500, Remaining: 1_000, Reset: head.Input.Reset}, head.Input)
	assert.Equal(t, 12, head.Requests.Limit)
	assert.Equal(t, 2_000, head.Output.Limit)
}

func TestWhatIsLeftIsCarriedOverACut(t *testing.T) {
	p := &script{pick: func(_ time.Time, r *Request) Decision {
		if r.tried(0) {
			return serve(1)
		}
		return serve(0)
	}}
	_, got := playEvent(t, Trace{
		turnAt(time.Second, 29_000, 6_000),       // under way until 105 s
		turnAt(2100*time.Millisecond, 3_000, 10), // about 1,500 are left
		turnAt(20*time.Second, 10, 10),
		turnAt(105*time.Second, 10, 10), // 6,000 are more than 2,000 and 100 s of refill
	}, twoSmall, scenario{cuts: 1}, 2*time.Second, p)
	assert.Equal(t, 1, got[1].refusals, "a cut does not fill a bucket")
	assert.Equal(t, []int{0, 1}, []int{got[2].refusals, got[3].refusals}, "output begun before counts in the new bucket")
}

func TestAnOverloadedProviderIsAskedOnceMore(t *testing.T) {
	var keys []int
	p := &script{pick: func(now time.Time, r *Request) Decision {
		d := untried(now, r)
		keys = append(keys, d.Key)
		return d
	}}
	_, got := playEvent(t, Trace{turnAt(0, 100, 10)}, twoSmall, scenario{overloaded: 1}, time.Hour, p)
	assert.Equal(t, failed, got[0].status)
	assert.Equal(t, []int{0, 1, 0, 1, 0, 1}, keys, "two keys for each of three tries")
	for _, h := range p.heads {
		assert.Equal(t, 529, h.Status)
		assert.Zero(t, h.Input.Limit, "no headers")
	}
}

func TestOneKeyIsAskedOnceMoreToo(t *testing.T) {
	one := &script{pick: func(now time.Time, r *Request) Decision {
		if r.tried(0) {
			return refuse(time.Minute)
		}
		return serve(0)
	}}
	_, got := playEvent(t, Trace{turnAt(0, 100, 10)}, oneSmall, scenario{overloaded: 1}, time.Hour, one)
	assert.Equal(t, failed, got[0].status)
	assert.Len(t, one.heads, 6)
}

// No event costs anything.
func TestScenarios(t *testing.T) {
	for _, name := range scenarioNames() {
		t.Run(name, func(t *testing.T) {
			s := suite{
				policies: []string{"ours", "reference"}, workloads: []string{"agent"}, scenarios: []string{name},
				seeds: 1, fewSeeds: 1, large: 1, firstSeed: 1, window: Window{From: 30 * time.Second, To: lastMinutes + 90*time.Second},
			}
			results, err := s.run(io.Discard)
			require.NoError(t, err)
			require.Len(t, results, 2)
			for _, r := range results {
				assert.GreaterOrEqual(t, r.Goodput, 0.99, r.Policy)
				assert.Empty(t, check(r.Policy, results))
			}
		})
	}
}

func TestRequestsStayWithThePolicyThatGotThem(t *testing.T) {
	var made []*script
	of := strategy{make: func(Pool, uint64) Policy {
		made = append(made, &script{pick: always(0)})
		return made[len(made)-1]
	}}
	tr := Trace{
		{Input: 100, Output: 600, Parent: -1, Bytes: 4}, // takes 11 s
		{Start: 6 * time.Second, Input: 100, Output: 60, Parent: -1, Bytes: 4},
	}
	tr.link()
	_, err := suite{window: Window{To: lastMinutes + 5*time.Second}}.replay(tr, oneSmall, scenario{restarts: true}, of, 1)
	require.NoError(t, err)
	require.Len(t, made, 2, "a policy without state starts from nothing")
	assert.Equal(t, []int{600, 60}, []int{made[0].made, made[1].made})
	assert.Equal(t, []int{1, 1}, []int{len(made[0].ends), len(made[1].ends)})
}
