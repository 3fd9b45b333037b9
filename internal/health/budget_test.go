package health_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"cc-relay/internal/health"
)

// takeAll takes what there is.
func takeAll(b *health.Budget) int {
	n := 0
	for b.Take() {
		n++
	}
	return n
}

func requests(b *health.Budget, n int) {
	for range n {
		b.Request()
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := health.NewBudget()
		assert.Equal(t, 3, takeAll(b), "at the start")
		requests(b, 9)
		assert.Equal(t, 0, takeAll(b))
		requests(b, 1)
		assert.Equal(t, 1, takeAll(b), "1 to 10 requests")
		time.Sleep(300 * time.Millisecond)
		assert.Equal(t, 0, takeAll(b))
		time.Sleep(40 * time.Millisecond)
		assert.Equal(t, 1, takeAll(b), "3 a second")
		requests(b, 1000)
		assert.Equal(t, 100, takeAll(b), "a burst may repeat as much as others")
		time.Sleep(time.Hour)
		assert.Equal(t, 3, takeAll(b), "an idle hour saves no more than a second")
		requests(b, 1000)
		time.Sleep(time.Hour)
		assert.Equal(t, 3, takeAll(b), "nor does what went before it")
	})
}

func TestNoBudgetAllowsAll(t *testing.T) {
	var b *health.Budget
	b.Request()
	for range 1000 {
		assert.True(t, b.Take())
	}
}

// Whatever the rate, all of its 10 % and of the 3 a second can be used.
func TestAConstantRateMayUseItsBudget(t *testing.T) {
	for _, perSecond := range []int{1, 8, 50, 1000} {
		for _, triesPerSecond := range []int{2, 100} {
			t.Run(fmt.Sprintf("%d a second, %d tries", perSecond, triesPerSecond), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const ticks, seconds = 1000, 60 // ticks a second
					b := health.NewBudget()
					got := 0
					for i := range ticks * seconds {
						time.Sleep(time.Second / ticks)
						if i%(ticks/perSecond) == 0 {
							b.Request()
						}
						if i%(ticks/triesPerSecond) == 0 {
							got += takeAll(b)
						}
					}
					want := 0.1*seconds*float64(perSecond) + 3*seconds
					assert.InDelta(t, want, got, 0.02*want)
				})
			})
		}
	}
}

// event is something that happened to a budget.
type event struct {
	at       time.Time
	requests int
	granted  int
}

// In any window of any run no more is granted than its requests and seconds earn,
// and what could be saved before it: 3 and 10 % of what was then recent. Who is
// refused is refused rightly: in some window that ends now it is used up.
func TestTheLawOfTheBudget(t *testing.T) {
	pauses := rapid.SampledFrom([]time.Duration{0, 0, 0, time.Millisecond, 100 * time.Millisecond, 333 * time.Millisecond, time.Second, 10 * time.Second, time.Hour})
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			b := health.NewBudget()
			began := time.Now()
			var run []event
			// left is what the window from start to now has left, in repeats.
			left := func(start time.Time) float64 {
				recent, got := 0., 0.
				for _, e := range run {
					if e.at.Before(start) {
						recent += float64(e.requests) * math.Exp(-start.Sub(e.at).Seconds()/10)
					} else {
						got += 0.1*float64(e.requests) - float64(e.granted)
					}
				}
				return 3 + 0.1*recent + got + 3*time.Since(start).Seconds()
			}
			least := func() float64 {
				m := left(began)
				for _, e := range run {
					m = min(m, left(e.at), left(e.at.Add(1))) // what was at that moment is before or within
				}
				return m
			}
			for range rapid.IntRange(1, 60).Draw(t, "steps") {
				time.Sleep(pauses.Draw(t, "pause"))
				e := event{requests: rapid.SampledFrom([]int{0, 0, 1, 5, 40}).Draw(t, "requests")}
				requests(b, e.requests)
				e.at = time.Now()
				run = append(run, e)
				tries := rapid.IntRange(0, 8).Draw(t, "tries")
				for range tries {
					before := least()
					if b.Take() {
						run[len(run)-1].granted++
						if least() < -1e-6 {
							t.Fatalf("granted with %f left", before)
						}
					} else if before > 1+1e-6 {
						t.Fatalf("refused with %f left", before)
					}
				}
			}
		})
	})
}
