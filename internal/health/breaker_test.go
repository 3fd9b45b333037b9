package health_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
)

const never = time.Duration(0) // of endsIn

// let has a request let in.
func let(tb testing.TB, b *health.Breaker) func(health.Outcome) {
	tb.Helper()
	done, ok := b.Allow()
	require.True(tb, ok, "refused while %v", b.Status())
	require.NotNil(tb, done)
	return done
}

func refused(tb testing.TB, b *health.Breaker) {
	tb.Helper()
	done, ok := b.Allow()
	require.False(tb, ok, "let in while %v", b.Status())
	require.Nil(tb, done)
}

// play sends requests one after the other: S, F and N are their outcomes, a dot is
// a second without one. They go through Try, which refuses nothing.
func play(b *health.Breaker, outcomes string) {
	for _, o := range outcomes {
		switch o {
		case 'S':
			b.Try()(health.Success)
		case 'F':
			b.Try()(health.Failure)
		case 'N':
			b.Try()(health.Neither)
		case '.':
			time.Sleep(time.Second)
		}
	}
}

// opened is a breaker that has just opened, and a moment later.
func opened(tb testing.TB) *health.Breaker {
	tb.Helper()
	b := health.NewBreaker(nil)
	play(b, "FFFFF")
	time.Sleep(time.Millisecond)
	require.Equal(tb, health.Open, b.Status().State)
	return b
}

// ramping is a breaker that a good probe has just closed.
func ramping(tb testing.TB) *health.Breaker {
	tb.Helper()
	b := opened(tb)
	time.Sleep(5 * time.Second)
	let(tb, b)(health.Success)
	require.Equal(tb, health.Ramping, b.Status().State)
	return b
}

// endsIn is how long the state lasts; never if nothing is to end.
func endsIn(b *health.Breaker) time.Duration {
	if until := b.Status().Until; !until.IsZero() {
		return time.Until(until)
	}
	return never
}

func TestWhatOpensIt(t *testing.T) {
	for name, tc := range map[string]struct {
		outcomes string
		want     health.State
	}{
		"nothing":                        {"", health.Closed},
		"4 in a row":                     {"FFFF", health.Closed},
		"5 in a row":                     {"FFFFF", health.Open},
		"in a row after successes":       {strings.Repeat("S", 100) + "FFFFF", health.Open},
		"a success between":              {"FFFFSFFFF", health.Closed},
		"neither ends a row":             {"FFNFFNF", health.Open},
		"neither makes one":              {"NNNNNNNNFFFF", health.Closed},
		"a row counts however slow":      {"F...........F...........F...........F...........F", health.Open},
		"half of 20":                     {strings.Repeat("SF", 10), health.Open},
		"half of 18":                     {strings.Repeat("SF", 9), health.Closed},
		"half of 20 and neither":         {strings.Repeat("SF", 9) + "SNF", health.Open},
		"half of fewer and neithers":     {strings.Repeat("SNF", 9) + "NNNN", health.Closed},
		"a third of many":                {strings.Repeat("SSF", 100), health.Closed},
		"just under a half":              {strings.Repeat("S", 11) + "FFFSFFFSFFF", health.Closed},
		"at 20 a half is found by the F": {strings.Repeat("FS", 10) + "F", health.Open},
		"all within 10 s":                {"SFSFSFSFSF" + "........." + "SFSFSFSFSF", health.Open},
		"not within 10 s":                {"SFSFSFSFSF" + ".........." + "SFSFSFSFSF", health.Closed},
		"older ones leave one by one":    {strings.Repeat("SSF.", 30) + "F", health.Closed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := health.NewBreaker(nil)
				play(b, tc.outcomes)
				assert.Equal(t, tc.want, b.Status().State)
			})
		})
	}
}

// Failures that take long, timeouts before all, count like others.
func TestSlowFailuresOpenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := health.NewBreaker(nil)
		for range 5 {
			done := let(t, b)
			time.Sleep(2 * time.Minute)
			done(health.Failure)
		}
		refused(t, b)
	})
}

func TestAnUnknownOutcomeIsNeither(t *testing.T) {
	b := health.NewBreaker(nil)
	let(t, b)(7)
	assert.Zero(t, b.Status().Samples)
}

func TestTheOpenTimeDoubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := health.NewBreaker(nil)
		play(b, "FFFFF")
		for i, want := range []int{5, 10, 20, 40, 60, 60, 60} {
			want := time.Duration(want) * time.Second
			require.Equal(t, want, endsIn(b), "opening %d", i+1)
			time.Sleep(want - 1)
			refused(t, b)
			require.Equal(t, health.Open, b.Status().State)
			time.Sleep(time.Nanosecond)
			require.Equal(t, health.HalfOpen, b.Status().State)
			probe := let(t, b)
			time.Sleep(time.Second)
			probe(health.Failure)
			refused(t, b)
		}
	})
}

func TestWhenTheOpenTimeIsShortAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		closedFor time.Duration // ramp included
		want      time.Duration
	}{
		"in the ramp":             {0, 10 * time.Second},
		"fully closed":            {30 * time.Second, 10 * time.Second},
		"not yet for a minute":    {70*time.Second - 1, 10 * time.Second},
		"fully closed a minute":   {70 * time.Second, 5 * time.Second},
		"fully closed for a year": {365 * 24 * time.Hour, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ramping(t)
				time.Sleep(tc.closedFor)
				play(b, "FFFFF")
				require.Equal(t, health.Open, b.Status().State)
				assert.Equal(t, tc.want, endsIn(b))
			})
		})
	}
}

func TestOneProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		time.Sleep(5 * time.Second)
		require.Equal(t, never, endsIn(b))
		probe := let(t, b)
		for range 59 {
			refused(t, b)
			require.Equal(t, health.HalfOpen, b.Status().State)
			time.Sleep(time.Second)
		}
		require.Equal(t, time.Second, endsIn(b), "then the place is free")
		probe(health.Neither)
		require.Equal(t, health.HalfOpen, b.Status().State)
		second := let(t, b)
		refused(t, b)
		for _, o := range []health.Outcome{health.Neither, health.Success, health.Failure} {
			probe(o) // is spent
		}
		refused(t, b)
		require.Equal(t, health.HalfOpen, b.Status().State)
		second(health.Success)
		assert.Equal(t, health.Ramping, b.Status().State)
		second(health.Failure)
		second(health.Failure)
		assert.Zero(t, b.Status().Samples)
	})
}

func TestAProbeWithoutAnAnswerLosesItsPlace(t *testing.T) {
	for name, tc := range map[string]struct {
		late health.Outcome
		want health.State
	}{
		"its success is as good as the next one's": {health.Success, health.Ramping},
		"its failure is the next one's matter":     {health.Failure, health.HalfOpen},
		"neither":                                  {health.Neither, health.HalfOpen},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := opened(t)
				time.Sleep(5 * time.Second)
				first := let(t, b)
				time.Sleep(time.Minute - 1)
				refused(t, b)
				time.Sleep(time.Nanosecond)
				second := let(t, b)
				refused(t, b)
				first(tc.late)
				require.Equal(t, tc.want, b.Status().State)
				if tc.want == health.HalfOpen {
					refused(t, b)
					second(health.Failure)
					assert.Equal(t, 10*time.Second, endsIn(b))
				}
			})
		})
	}
}

func TestAnswersToWhatWasSentBeforeAChangeAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := health.NewBreaker(nil)
		var early []func(health.Outcome)
		for range 30 {
			early = append(early, let(t, b))
		}
		play(b, "FFFFF")
		until := b.Status().Until
		early[0](health.Success)
		early[1](health.Failure)
		early[2](health.Neither)
		assert.Equal(t, until, b.Status().Until)
		time.Sleep(5 * time.Second)
		early[3](health.Success)
		probe := let(t, b)
		early[4](health.Success)
		early[5](health.Failure)
		refused(t, b)
		whileOpen := b.Try()
		probe(health.Success)
		for _, done := range append(early[6:], whileOpen) {
			done(health.Failure)
		}
		assert.Equal(t, health.Ramping, b.Status().State)
		assert.Zero(t, b.Status().Samples)
	})
}

func TestDoneCountsOnce(t *testing.T) {
	b := health.NewBreaker(nil)
	done := let(t, b)
	for range 10 {
		done(health.Failure)
	}
	assert.Equal(t, health.Status{Failures: 1, Samples: 1}, b.Status())
}

func TestTheRamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const step = 10 * time.Second / 3
		b := ramping(t)
		began := time.Now()
		require.Equal(t, 10*time.Second, endsIn(b))
		for i, percent := range []int{10, 25, 50} {
			time.Sleep(time.Until(began.Add(time.Duration(i)*10*time.Second/3 + 1)))
			in := 0
			for n := 1; n <= 1000; n++ {
				if done, ok := b.Allow(); ok {
					in++
					done(health.Success)
				}
				require.InDelta(t, float64(n*percent)/100, in, 1, "step %d, %d requests", i+1, n)
				if i == 0 && n == 1 {
					require.Equal(t, 1, in, "the first is let in")
				}
				time.Sleep((step - 2) / 1000)
			}
		}
		time.Sleep(time.Until(began.Add(10*time.Second - 1)))
		require.Equal(t, health.Ramping, b.Status().State)
		time.Sleep(time.Nanosecond)
		require.Equal(t, health.Closed, b.Status().State)
		require.Equal(t, never, endsIn(b))
		for range 1000 {
			let(t, b)(health.Success)
		}
	})
}

func TestWhatEndsTheRamp(t *testing.T) {
	for name, tc := range map[string]struct {
		outcomes string
		want     health.State
	}{
		"one failure":            {"F", health.Ramping},
		"two in a row":           {"FF", health.Open},
		"two with neither":       {"FNF", health.Open},
		"a success between":      {"FSFSFS", health.Ramping},
		"half of 20":             {strings.Repeat("FS", 10) + "F", health.Open},
		"two, the ramp's over":   {"F..........F", health.Closed},
		"five, the ramp's over":  {"F..........FFFF", health.Open},
		"successes do not hurry": {strings.Repeat("S", 1000), health.Ramping},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := ramping(t)
				play(b, tc.outcomes)
				assert.Equal(t, tc.want, b.Status().State)
				if tc.want == health.Open {
					assert.Equal(t, 10*time.Second, endsIn(b))
				}
			})
		})
	}
}

func TestTry(t *testing.T) {
	for name, tc := range map[string]struct {
		outcome health.Outcome
		want    health.State
	}{
		"a success is a good probe":  {health.Success, health.Ramping},
		"a failure changes nothing":  {health.Failure, health.Open},
		"nor does what says nothing": {health.Neither, health.Open},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := opened(t)
				until := b.Status().Until
				for range 20 {
					b.Try()(tc.outcome)
					if tc.want == health.Ramping {
						break
					}
				}
				assert.Equal(t, tc.want, b.Status().State)
				if tc.want == health.Open {
					assert.Equal(t, until, b.Status().Until)
				}
			})
		})
		t.Run(name+", while a probe is out", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := opened(t)
				time.Sleep(5 * time.Second)
				probe := let(t, b)
				b.Try()(tc.outcome)
				if tc.want == health.Ramping {
					require.Equal(t, health.Ramping, b.Status().State)
					probe(health.Failure)
					assert.Zero(t, b.Status().Samples, "the probe is answered")
					return
				}
				require.Equal(t, health.HalfOpen, b.Status().State)
				refused(t, b)
				probe(health.Success)
				assert.Equal(t, health.Ramping, b.Status().State)
			})
		})
	}
	t.Run("closed and ramping it takes samples", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := ramping(t)
			for range 3 {
				b.Try()(health.Success)
			}
			b.Try()(health.Failure)
			assert.Equal(t, 4, b.Status().Samples)
			time.Sleep(10 * time.Second)
			b.Try()(health.Failure)
			assert.Equal(t, health.Status{Samples: 1, Failures: 1}, b.Status())
		})
	})
	t.Run("sent in an earlier opening its success still counts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t)
			early := b.Try()
			time.Sleep(5 * time.Second)
			let(t, b)(health.Failure)
			time.Sleep(time.Second)
			early(health.Success)
			assert.Equal(t, health.Ramping, b.Status().State)
		})
	})
}

// gobreaker is ready for a probe 2 ns after it opened, so nothing can be ready sooner.
func TestNothingProbesAtTheVeryMomentItOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := health.NewBreaker(nil)
		play(b, "FFFFF")
		b.Try()(health.Success)
		assert.Equal(t, 5*time.Second, endsIn(b))
		b.Probed(true)
		refused(t, b)
		time.Sleep(2 * time.Nanosecond)
		let(t, b)
	})
}

func TestHold(t *testing.T) {
	t.Run("open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := health.NewBreaker(nil)
			early := let(t, b)
			b.Hold(health.Open, time.Hour)
			assert.Equal(t, health.Status{State: health.Open, Forced: true, Until: time.Now().Add(time.Hour)}, b.Status())
			early(health.Success)
			b.Try()(health.Success)
			b.Probed(true)
			time.Sleep(time.Hour - 1)
			refused(t, b)
			time.Sleep(time.Nanosecond)
			assert.Equal(t, health.Status{}, b.Status(), "as it was")
			let(t, b)
		})
	})
	t.Run("open, over open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t)
			b.Hold(health.Open, time.Hour)
			time.Sleep(time.Hour)
			assert.Equal(t, health.HalfOpen, b.Status().State)
			let(t, b)
			refused(t, b)
		})
	})
	t.Run("closed, over open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t)
			was := b.Status()
			b.Hold(health.Closed, time.Hour)
			assert.Equal(t, health.Status{State: health.Closed, Forced: true, Until: time.Now().Add(time.Hour)}, b.Status(), "what opened it is over")
			for range 100 {
				let(t, b)(health.Failure)
			}
			let(t, b)(health.Neither)
			assert.Equal(t, 100, b.Status().Samples)
			assert.InDelta(t, 1, b.Share(), 0)
			b.Hold(health.Closed, 0)
			assert.Equal(t, was, b.Status(), "failures change nothing")
			b.Hold(health.Closed, time.Hour)
			let(t, b)(health.Success)
			for range 10 {
				let(t, b) // all, though below it ramps
			}
			b.Hold(health.Closed, -1)
			assert.Equal(t, health.Ramping, b.Status().State, "a success does")
		})
	})
	t.Run("what it lets through is seen, and forgotten after 10 s", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t)
			b.Hold(health.Closed, time.Hour)
			for second := range 30 {
				let(t, b)(health.Failure)
				assert.Equal(t, min(second+1, 10), b.Status().Samples)
				time.Sleep(time.Second)
			}
			time.Sleep(8 * time.Second)
			assert.Equal(t, 1, b.Status().Samples)
			time.Sleep(time.Second)
			assert.Zero(t, b.Status().Samples)
			let(t, b)(health.Success)
			let(t, b)(health.Success)
			assert.Equal(t, 1, b.Status().Samples, "the first closed it")
		})
	})
	t.Run("closed, over closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := health.NewBreaker(nil)
			b.Hold(health.Closed, 3*time.Second)
			for range 10 {
				let(t, b)(health.Failure)
			}
			assert.Equal(t, health.Closed, b.Status().State)
			time.Sleep(3 * time.Second)
			assert.Equal(t, health.Open, b.Status().State, "it opened at the fifth")
			assert.Equal(t, 2*time.Second, endsIn(b))
		})
	})
	t.Run("other states mean closed, and the last word counts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := health.NewBreaker(nil)
			b.Hold(health.Open, time.Hour)
			b.Hold(health.Ramping, time.Minute)
			assert.Equal(t, health.Status{State: health.Closed, Forced: true, Until: time.Now().Add(time.Minute)}, b.Status())
			time.Sleep(time.Minute)
			assert.Equal(t, health.Status{}, b.Status())
		})
	})
}

func TestProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := opened(t)
		time.Sleep(4 * time.Second)
		b.Probed(false)
		require.Equal(t, 5*time.Second, endsIn(b), "again, no longer")
		time.Sleep(time.Second)
		refused(t, b)
		b.Probed(true)
		require.Equal(t, health.HalfOpen, b.Status().State)
		probe := let(t, b)
		for _, good := range []bool{true, false} {
			b.Probed(good) // the probe will tell
			refused(t, b)
			require.Equal(t, health.HalfOpen, b.Status().State)
		}
		probe(health.Failure)
		time.Sleep(10 * time.Second)
		require.Equal(t, health.HalfOpen, b.Status().State)
		b.Probed(false)
		require.Equal(t, 10*time.Second, endsIn(b), "nobody has probed yet")
		b.Probed(true)
		let(t, b)(health.Neither)
		b.Probed(false)
		require.Equal(t, health.Open, b.Status().State)
		time.Sleep(10 * time.Second)
		let(t, b)(health.Success)

		was := b.Status()
		b.Probed(false)
		b.Probed(true)
		require.Equal(t, was, b.Status(), "not when closed")
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := health.NewBreaker(nil)
		require.Equal(t, health.Status{}, b.Status())
		require.Zero(t, b.Share())
		play(b, "...F......")
		time.Sleep(4*time.Second - 1)
		assert.Equal(t, 1, b.Status().Samples)
		time.Sleep(time.Nanosecond)
		assert.Zero(t, b.Status().Samples, "10 s later")
		play(b, "SSFSN")
		assert.Equal(t, health.Status{State: health.Closed, Samples: 4, Failures: 0.25}, b.Status())
		assert.InDelta(t, 0.25, b.Share(), 0)
		time.Sleep(9 * time.Second)
		assert.Equal(t, 4, b.Status().Samples)
		time.Sleep(time.Second)
		assert.Zero(t, b.Share(), "10 s without a request")
		assert.Equal(t, health.Status{}, b.Status())
		play(b, "SSFFFFF")
		assert.Equal(t, health.Status{State: health.Open, Samples: 7, Failures: 5. / 7, Until: time.Now().Add(5 * time.Second)}, b.Status())
		time.Sleep(5 * time.Second)
		probe := let(t, b)
		assert.Equal(t, health.Status{State: health.HalfOpen, Samples: 7, Failures: 5. / 7, Until: time.Now().Add(time.Minute)}, b.Status(), "what opened it")
		probe(health.Success)
		assert.Equal(t, health.Status{State: health.Ramping, Until: time.Now().Add(10 * time.Second)}, b.Status())
	})
}

func TestStateString(t *testing.T) {
	for s, want := range map[health.State]string{health.Closed: "closed", health.Open: "open", health.HalfOpen: "half-open", health.Ramping: "ramping", -1: "unknown", 4: "unknown"} {
		assert.Equal(t, want, s.String())
	}
}

// Each change is told once, by the call that meets it; reading meets none.
func TestOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *health.Breaker
		var told []string
		b = health.NewBreaker(func(from, to health.State) {
			_ = b.Status() // outside the lock
			told = append(told, from.String()+" "+to.String())
		})
		expect := func(want ...string) {
			t.Helper()
			_, _ = b.Status(), b.Share()
			require.Equal(t, want, told)
			told = nil
		}
		play(b, "FFFFFFF")
		expect("closed open")
		time.Sleep(5 * time.Second)
		expect()
		probe := let(t, b)
		expect("open half-open")
		probe(health.Failure)
		expect("half-open open")
		time.Sleep(time.Second)
		b.Try()(health.Success)
		expect("open ramping")
		time.Sleep(10 * time.Second)
		expect()
		let(t, b)(health.Success)
		expect("ramping closed")
		b.Hold(health.Closed, time.Hour)
		expect()
		b.Hold(health.Open, time.Hour)
		expect("closed open")
		time.Sleep(time.Hour)
		expect()
		let(t, b)
		expect("open closed")
	})
}

// A provider is down for a while, under load: nearly nothing reaches it meanwhile,
// the first request within one open time of its recovery probes, and 10 s later all
// are let in again.
func TestRecovery(t *testing.T) {
	for _, tc := range []struct {
		down, openTime time.Duration // the open time when it recovers
		most           int           // reach it while it is down
	}{
		{time.Second, 5 * time.Second, 5},
		{14 * time.Second, 10 * time.Second, 6},
		{2 * time.Minute, time.Minute, 9},
		{time.Hour, time.Minute, 67},
	} {
		t.Run(tc.down.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const pace = 10 * time.Millisecond
				b := health.NewBreaker(nil)
				began := time.Now()
				reached := 0
				for ; time.Since(began) < tc.down; time.Sleep(pace) {
					if done, ok := b.Allow(); ok {
						reached++
						done(health.Failure)
					}
				}
				assert.LessOrEqual(t, reached, tc.most)
				recovered := time.Now()
				for {
					if done, ok := b.Allow(); ok {
						done(health.Success)
						break
					}
					time.Sleep(pace)
				}
				require.LessOrEqual(t, time.Since(recovered), tc.openTime+pace)
				require.Greater(t, time.Since(recovered), time.Duration(0))
				probed := time.Now()
				in, all := 0, 0
				for ; time.Since(probed) < 10*time.Second; time.Sleep(pace) {
					all++
					if done, ok := b.Allow(); ok {
						in++
						done(health.Success)
					}
				}
				assert.InDelta(t, float64(all)*(10+25+50)/300, in, 3)
				for range 1000 {
					let(t, b)(health.Success)
				}
			})
		})
	}
}

func TestAllowAllocatesOnce(t *testing.T) {
	b := health.NewBreaker(nil)
	assert.LessOrEqual(t, testing.AllocsPerRun(1000, func() { _, _ = b.Allow() }), 1.0)
	b.Hold(health.Open, time.Hour)
	assert.Zero(t, testing.AllocsPerRun(1000, func() { _, _ = b.Allow() }))
}
