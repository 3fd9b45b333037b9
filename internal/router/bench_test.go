package router_test

import (
	"fmt"
	"testing"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/router"
)

func BenchmarkPlan(b *testing.B) {
	for _, targets := range [][]string{{"a"}, {"a", "b/claude-opus-5", "c"}} {
		for _, strategy := range router.Strategies() {
			if len(targets) == 1 && strategy != router.StrategyFailover {
				continue // one target is never ordered
			}
			b.Run(fmt.Sprintf("%d/%s", len(targets), strategy), func(b *testing.B) {
				ups := pooled(b, "a", "b", "c")
				r := routeOver(b, router.Config{Strategy: strategy, Rules: []router.Rule{
					{Class: "haiku-5-5", Targets: []string{"c"}}, {Match: []string{"claude-opus-*"}, Targets: targets},
				}}, ups)
				q := planned(opus)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := r.Plan(q); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	b.Run("3/home", func(b *testing.B) {
		ups := pooled(b, "a", "b", "c")
		r := routeOver(b, router.Config{}, ups)
		q := planned(opus)
		q.Conversation = 7
		r.Settle(7, ups[1], "", time.Hour, q.Now)
		b.ReportAllocs()
		for b.Loop() {
			if p, _ := r.Plan(q); !p.Candidates[0].Home() {
				b.Fatal("not at home")
			}
		}
	})
}

func BenchmarkPlanParallel(b *testing.B) {
	r := routeOver(b, router.Config{Strategy: router.StrategyWeighted}, pooled(b, "a", "b", "c"))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		q := planned(opus)
		for pb.Next() {
			if _, err := r.Plan(q); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// planned is a request with a prompt that may be cached.
func planned(model string) *router.Query {
	q := ask(model)
	q.Demand = demand(40_000, 0, keypool.Mark{Bytes: 40_000, Life: five}, keypool.Mark{Bytes: 36_000})
	q.Demand.Class, q.Demand.Model = q.Class, model
	return q
}
