package router_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/health"
	"cc-relay/internal/router"
)

// Model names come from clients: only so many are remembered.
func TestMissingModelsAreBounded(t *testing.T) {
	now := time.Now()
	u := &router.Upstream{}
	assert.False(t, u.Lacks("model-0", now))
	for n := range 1001 {
		u.Miss("model-"+strconv.Itoa(n), now)
	}
	assert.False(t, u.Lacks("model-0", now), "the oldest is forgotten")
	assert.True(t, u.Lacks("model-1", now))
	assert.True(t, u.Lacks("model-1000", now))
	u.Miss("model-1", now.Add(time.Minute))
	assert.True(t, u.Lacks("model-1", now.Add(10*time.Minute)), "the last refusal counts")
}

// So do names of classes.
func TestLanesAreBounded(t *testing.T) {
	u := &router.Upstream{}
	assert.Empty(t, u.Lanes())
	first := u.Lane("0")
	assert.Same(t, first, u.Lane("0"))
	for n := range 256 {
		u.Lane(strconv.Itoa(n + 1))
	}
	assert.Len(t, u.Lanes(), 256)
	assert.NotSame(t, first, u.Lane("0"), "the oldest is forgotten")
	assert.Equal(t, "7", u.Lane("7").Class)
}

func TestHealthIsTold(t *testing.T) {
	var told []string
	u := &router.Upstream{OnHealth: func(class string, from, to health.State) {
		told = append(told, class+": "+from.String()+" → "+to.String())
	}}
	fail(u, "x")
	fail(&router.Upstream{}, "x") // nobody to tell
	assert.Equal(t, []string{"x: closed → open"}, told)
	assert.Equal(t, health.Closed, u.Lane("y").Status().State, "another class is well")
}

func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &router.Upstream{}
		u.Probe(func() (bool, bool) { panic("nothing to ask") })
		u.Lane("well")
		u.Probe(func() (bool, bool) { panic("nothing to ask: all is well") })

		fail(u, "x")
		fail(u, "y")
		asked := 0
		probe := func(well bool) {
			u.Probe(func() (bool, bool) { asked++; return well, true })
		}
		time.Sleep(4 * time.Second)
		probe(false) // the 5 s begin again
		assert.Equal(t, 1, asked, "one call for all classes")
		time.Sleep(4 * time.Second)
		for _, class := range []string{"x", "y"} {
			_, ok := u.Lane(class).Allow()
			require.False(t, ok)
		}
		probe(true)
		for _, class := range []string{"x", "y"} {
			done, ok := u.Lane(class).Allow()
			require.True(t, ok, "the next request tries")
			done(health.Success)
		}
		probe(true)
		assert.Equal(t, 2, asked, "all get their requests back by themselves")
	})
}

// Who could not ask has found out nothing: the breaker goes on as if nobody had tried.
func TestAProbeThatKnowsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &router.Upstream{}
		fail(u, "x")
		asked := 0
		for range 4 {
			time.Sleep(time.Second)
			u.Probe(func() (bool, bool) { asked++; return asked%2 == 0, false })
			_, ok := u.Lane("x").Allow()
			require.False(t, ok)
		}
		require.Equal(t, 4, asked)
		time.Sleep(2 * time.Second)
		_, ok := u.Lane("x").Allow()
		assert.True(t, ok, "its own time is over")
	})
}

func TestInFlight(t *testing.T) {
	u := &router.Upstream{}
	u.Begin()
	u.Begin()
	assert.EqualValues(t, 2, u.InFlight())
	u.End()
	u.End()
	assert.Zero(t, u.InFlight())
}
