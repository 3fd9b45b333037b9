package keypool_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"cc-relay/internal/keypool"
)

// A request whose prompt is mostly cached keeps a session alive with a few tokens.
func TestWarmRequestsOvertakeColdOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10*time.Second)
		time.Sleep(time.Minute)
		turn(t, q.pool, talk(1, 80_000))
		q.start = time.Now()
		q.empty()
		q.ask(t.Context(), "cold", keypool.Demand{Bytes: 4 * 3400})
		time.Sleep(time.Second)
		q.ask(t.Context(), "warm", talk(1, 84_000))
		q.end("warm 1.6s", "cold 5s")
	})
}

func TestARequestOfWhichLittleIsCachedIsCold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10*time.Second)
		time.Sleep(time.Minute)
		turn(t, q.pool, talk(1, 4000))
		q.start = time.Now()
		q.empty()
		q.ask(t.Context(), "cold", keypool.Demand{Bytes: 4 * 3400})
		time.Sleep(time.Second)
		q.ask(t.Context(), "a third cached", talk(1, 12_000)) // which there is room for from 2.6 s on
		q.end("cold 4s", "a third cached 6s")
	})
}

// One client that asks without end must not keep the others out: whoever waits has
// at most one more request of each client before it.
func testClientsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 30*time.Second)
		for i := range 6 {
			time.Sleep(time.Millisecond)
			q.ask(t.Context(), fmt.Sprint("flood-", i), of1000("flood"))
		}
		time.Sleep(4 * time.Millisecond)
		q.ask(t.Context(), "b-0", of1000("b"))
		q.ask(t.Context(), "c-0", of1000("c"))
		q.ask(t.Context(), "b-1", of1000("b"))
		time.Sleep(5 * time.Second)
		q.ask(t.Context(), "b-2", of1000("b"))
		q.ask(t.Context(), "d-0", of1000("d"))
		var order []string
		for _, s := range q.order() {
			name, _, _ := strings.Cut(s, " ")
			order = append(order, name)
		}
		assert.Equal(t, []string{"flood-0", "b-0", "c-0", "flood-1", "b-1", "d-0", "flood-2", "b-2", "flood-3", "flood-4", "flood-5"}, order)
	})
}

// Turns that were not taken are not saved up.
func testTurnsAreNotSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 30*time.Second)
		for i := range 6 {
			q.ask(t.Context(), fmt.Sprint("flood-", i), of1000("flood"))
		}
		q.ask(t.Context(), "b-0", of1000("b"))
		time.Sleep(5 * time.Second) // four are served
		q.ask(t.Context(), "b-1", of1000("b"))
		q.ask(t.Context(), "b-2", of1000("b"))
		q.end("flood-0 1.6s", "b-0 2.6s", "flood-1 3.6s", "flood-2 4.6s", "b-1 5.6s", "flood-3 6.6s", "b-2 7.6s", "flood-4 8.6s", "flood-5 9.6s")
	})
}

// Nor does who left lose turns.
func TestRequestsThatLeftTakeNoTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 30*time.Second)
		q.ask(t.Context(), "a-0", of1000("a"))
		ctx, leave := context.WithCancel(t.Context())
		for range 4 {
			q.ask(ctx, "left", of1000("a"))
		}
		q.ask(t.Context(), "a-1", of1000("a"))
		leave()
		synctest.Wait()
		q.ask(t.Context(), "a-2", of1000("a"))
		for i := range 3 {
			q.ask(t.Context(), fmt.Sprint("b-", i), of1000("b"))
		}
		q.end("left refused 0s", "left refused 0s", "left refused 0s", "left refused 0s",
			"a-0 1.6s", "b-0 2.6s", "a-1 3.6s", "b-1 4.6s", "a-2 5.6s", "b-2 6.6s")
	})
}

// A client that comes back as soon as it was served is one client still.
func testOneClientStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 50*time.Second)
		for i := range 5 {
			q.ask(t.Context(), fmt.Sprint("flood-", i), of1000("flood"))
		}
		for i := range 20 {
			client := fmt.Sprint("c", i%2)
			go func() {
				for range 3 {
					d := of1000(client)
					d.Class = opus
					lease, err := q.pool.Acquire(t.Context(), d)
					if err == nil {
						lease.Settle(keypool.Usage{Input: 1000})
					}
				}
			}()
			synctest.Wait()
		}
		time.Sleep(17 * time.Second)
		synctest.Wait()
		assert.Zero(t, len(q.order())-5, "all of the flood: %v", q.served)
		for _, s := range q.served {
			assert.Less(t, s, "flood-4 17s", "of three clients each has a third")
		}
	})
}

func TestAClientThatLeavesFreesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, 10*time.Second)
		ctx, leave := context.WithCancel(t.Context())
		q.ask(ctx, "first", keypool.Demand{Bytes: 4 * 3000})
		q.ask(t.Context(), "second", of1000(""))
		q.ask(t.Context(), "third", of1000(""))
		time.Sleep(500 * time.Millisecond)
		leave()
		q.end("first refused 500ms", "second 1.6s", "third 2.6s")
	})
}
