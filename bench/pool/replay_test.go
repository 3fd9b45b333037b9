package main

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/simulator"
)

// script decides by a function and notes what it is told.
type script struct {
	pick  func(now time.Time, r *Request) Decision
	heads []*Head
	made  int
	ends  []simulator.Usage
	gone  int
}

func (s *script) Pick(now time.Time, r *Request) Decision   { return s.pick(now, r) }
func (s *script) Answered(_ time.Time, _ *Request, h *Head) { s.heads = append(s.heads, h) }
func (s *script) Produced(_ time.Time, _ *Request, n int)   { s.made += n }
func (s *script) Ended(_ time.Time, _ *Request, u simulator.Usage, gone bool) {
	s.ends = append(s.ends, u)
	if gone {
		s.gone++
	}
}

func replayOn(t testing.TB, tr Trace, pool Pool, p Policy, horizon time.Duration) *replay {
	t.Helper()
	from, err := newProvider(pool, scenario{}, 0, 1)
	require.NoError(t, err)
	return newReplay(tr, from, p, horizon)
}

func play(t *testing.T, tr Trace, pool Pool, p Policy, change func(*replay)) []outcome {
	t.Helper()
	tr.link()
	x := replayOn(t, tr, pool, p, time.Hour)
	if change != nil {
		change(x)
	}
	got, err := x.run()
	require.NoError(t, err)
	return got
}

var oneSmall = Pool{Name: "one", Keys: []simulator.Limits{small}}

func always(key int) func(time.Time, *Request) Decision {
	return func(time.Time, *Request) Decision { return serve(key) }
}

func TestTurnsWaitForTheAnswerBefore(t *testing.T) {
	tr := Trace{
		{Start: time.Second, Input: 10_240, Output: 120, Parent: -1, Bytes: 4},
		{Input: 10_752, Output: 30, Parent: 0, Shared: 20, Gap: 5 * time.Second, Bytes: 4},
	}
	p := &script{pick: always(0)}
	got := play(t, tr, oneSmall, p, nil)
	// 1 s, then 1.024 s for the prompt and 2 s for 120 tokens, then the gap.
	second := time.Second + time.Second + 1024*time.Millisecond + 2*time.Second + 5*time.Second
	assert.Equal(t, outcome{status: completed, asked: time.Second, served: time.Second, uncached: 10_240}, got[0])
	assert.InDelta(t, second, got[1].asked, float64(time.Microsecond))
	assert.Equal(t, 10_240, got[1].read, "the first prompt is cached")
	assert.Equal(t, 512, got[1].uncached)
	assert.Equal(t, 150, p.made)
	assert.Equal(t, []int{120, 30}, []int{p.ends[0].Output, p.ends[1].Output})
}

func TestClientsComeBackAfterARefusal(t *testing.T) {
	tr := Trace{
		{Input: 20_000, Output: 60, Parent: -1, Bytes: 4},
		{Start: time.Second, Input: 20_000, Output: 60, Parent: -1, Bytes: 4},
	}
	p := &script{}
	p.pick = func(_ time.Time, r *Request) Decision {
		if len(r.Tried) > 0 {
			return refuse(20 * time.Second)
		}
		return serve(0)
	}
	got := play(t, tr, oneSmall, p, nil)
	assert.Equal(t, completed, got[1].status)
	assert.Equal(t, 1, got[1].refusals)
	assert.Equal(t, time.Second+refusalTime+20*time.Second, got[1].served, "a 429, then retry-after")
	require.Len(t, p.heads, 3)
	assert.Equal(t, []int{429, 19 * int(time.Second)}, []int{p.heads[0].Status, int(p.heads[0].RetryAfter)})
}

func TestClientsGiveUp(t *testing.T) {
	for name, tc := range map[string]struct {
		after time.Duration
		asked int
	}{
		"after two retries":           {time.Second, 3},
		"at once above three minutes": {181 * time.Second, 1},
		"not at three minutes":        {180 * time.Second, 3},
	} {
		t.Run(name, func(t *testing.T) {
			tr := Trace{{Input: 100, Output: 1, Parent: -1, Bytes: 4}, {Input: 100, Output: 1, Parent: 0, Bytes: 4}}
			asked := 0
			p := &script{pick: func(time.Time, *Request) Decision { asked++; return refuse(tc.after) }}
			got := play(t, tr, oneSmall, p, func(x *replay) { x.stop = true })
			assert.Equal(t, []status{failed, unasked}, []status{got[0].status, got[1].status})
			assert.Equal(t, tc.asked, asked)

			got = play(t, tr, oneSmall, p, nil)
			assert.Equal(t, []status{failed, failed}, []status{got[0].status, got[1].status}, "the session goes on")
		})
	}
}

func TestRequestsWaitUntilAskedAgain(t *testing.T) {
	at := epoch.Add(2500 * time.Millisecond)
	p := &script{pick: func(now time.Time, _ *Request) Decision {
		if now.Before(at) {
			return waitUntil(at)
		}
		return serve(0)
	}}
	got := play(t, Trace{{Input: 100, Output: 1, Parent: -1, Bytes: 4}}, oneSmall, p, nil)
	assert.Equal(t, at.Sub(epoch), got[0].served)
}

func TestAPolicyThatWaitsInPlaceIsAnError(t *testing.T) {
	p := &script{pick: func(now time.Time, _ *Request) Decision { return waitUntil(now) }}
	tr := Trace{{Input: 100, Output: 1, Parent: -1, Bytes: 4}}
	tr.link()
	_, err := replayOn(t, tr, oneSmall, p, time.Hour).run()
	assert.ErrorIs(t, err, errStuck)
}

func TestAtMostFourDispatches(t *testing.T) {
	pool := Pool{Name: "six", Keys: make([]simulator.Limits, 6)}
	for i := range pool.Keys {
		pool.Keys[i] = simulator.Limits{RPM: 1}
	}
	var tr Trace
	for range 7 { // the first six use up all keys
		tr = append(tr, Turn{Input: 100, Output: 1, Parent: -1, Bytes: 4})
	}
	n := 0
	p := &script{pick: func(_ time.Time, r *Request) Decision {
		n++
		return serve((n - 1) % 6)
	}}
	got := play(t, tr, pool, p, nil)
	assert.Equal(t, 4, got[6].refusals)
	assert.Equal(t, 60*time.Second+4*refusalTime, got[6].served, "the client comes back")
}

func TestAClientThatLeaves(t *testing.T) {
	p := &script{pick: always(0)}
	got := play(t, Trace{{Input: 100, Output: 70, Gone: true, Parent: -1, Bytes: 4}}, oneSmall, p, nil)
	assert.Equal(t, gone, got[0].status)
	assert.Equal(t, 1, p.gone)
	assert.Equal(t, []simulator.Usage{{}}, p.ends, "the provider does not say what it cost")
}

func TestHeadSaysWhatTheHeadersSay(t *testing.T) {
	at := epoch.Add(90*time.Second + 400*time.Millisecond)
	h := newHead(at, 429, simulator.Levels{
		Requests: simulator.Level{Limit: 50, Remaining: 7, Full: at.Add(51 * time.Second)},
		Input:    simulator.Level{Limit: 30_000, Remaining: 1_499, Full: at.Add(58300 * time.Millisecond)},
		Output:   simulator.Level{Limit: 8_000, Remaining: -300, Full: at.Add(time.Minute)},
	})
	h.RetryAfter = 1200 * time.Millisecond
	header := h.Header()
	assert.Equal(t, "2", header.Get("Retry-After"))
	date, err := http.ParseTime(header.Get("Date"))
	require.NoError(t, err)
	assert.True(t, date.Equal(h.Date), "got %v, want %v", date, h.Date)
	for name, r := range map[string]Reading{"requests": h.Requests, "input-tokens": h.Input, "output-tokens": h.Output} {
		get := func(field string) string { return header.Get("Anthropic-Ratelimit-" + name + "-" + field) }
		assert.Equal(t, get("limit"), strconv.Itoa(r.Limit), name)
		assert.Equal(t, get("remaining"), strconv.Itoa(r.Remaining), name)
		reset, err := time.Parse(time.RFC3339, get("reset"))
		require.NoError(t, err)
		assert.Equal(t, reset.Sub(date), r.Reset, name)
	}
	assert.Equal(t, Reading{}, newHead(at, 200, simulator.Levels{}).Input, "no limit, no headers")
}

func BenchmarkReplay(b *testing.B) {
	tr := workloads["agent"].generate(1, 10, 5*time.Minute)
	turns := 0
	for b.Loop() {
		got, err := replayOn(b, tr, pools["8eq"], newReference(pools["8eq"], 1), 5*time.Minute).run()
		require.NoError(b, err)
		turns = len(got)
	}
	b.ReportMetric(float64(turns), "turns")
	b.ReportAllocs()
}
