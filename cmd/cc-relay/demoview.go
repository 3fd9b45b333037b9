package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/simulator"
)

// demoView writes what happens while the load runs, each line under 80 columns.
type demoView struct {
	up   *demoUpstream
	pool *keypool.KeyPool

	mu  sync.Mutex
	out io.Writer // guarded by mu; io.Discard where nobody looks
}

// say writes a line of its own.
func (v *demoView) say(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, _ = fmt.Fprintf(v.out, format+"\n", args...) // a view that cannot be written stops nothing
}

const demoColumns = "%5s  %-7s %7s %11s %12s %11s  %s"

// watch writes a line a second for each key until ctx ends.
func (v *demoView) watch(ctx context.Context) {
	v.say("served is what a key's organization let in; requests, input and output are\n" +
		"what the pool believes is left of the limits a minute, which it has to learn")
	start := time.Now()
	for second := 1; sleepUntil(ctx, start.Add(time.Duration(second)*time.Second)); second++ {
		if second%10 == 1 {
			v.say(demoColumns, "", "key", "served", "requests", "input", "output", "state")
		}
		v.say("%s", strings.Join(v.lines(time.Duration(second)*time.Second), "\n"))
	}
	v.say("")
}

// lines says of each key how many requests its organization has let in, what the
// pool believes is left of its limits, and its state.
func (v *demoView) lines(elapsed time.Duration) []string {
	served := make(map[string]int)
	for _, a := range v.up.sim.Snapshot(time.Now()).Accounts {
		if a.Class == simulator.ClassOf(demoModel) {
			served[a.Org] = a.Admitted
		}
	}
	var lines []string
	orgs := demoOrganizations()
	for _, c := range v.pool.GetStats().Classes {
		if c.Class != keypool.ClassOf(demoModel) {
			continue
		}
		for _, k := range c.Keys {
			org := orgs[k.Index]
			lines = append(lines, fmt.Sprintf(demoColumns, elapsed, org.Keys[0].Name, fmt.Sprint(served[org.ID]),
				level(k.Remaining.RPM, k.Limits.RPM, 1), level(k.Remaining.ITPM, k.Limits.ITPM, 1000),
				level(k.Remaining.OTPM, k.Limits.OTPM, 1000), state(k)))
		}
	}
	return lines
}

// level is what is left of a limit, in thousands where unit is 1000.
func level(remaining, limit, unit int) string {
	switch {
	case limit == 0:
		return "not known"
	case unit == 1000:
		return fmt.Sprintf("%dk/%dk", remaining/unit, limit/unit)
	}
	return fmt.Sprintf("%d/%d", remaining, limit)
}

func state(k keypool.KeyMetadata) string {
	if k.Reason != "" {
		return fmt.Sprintf("%s: %s", k.State, k.Reason)
	}
	return string(k.State)
}

// write is the summary for people.
func (r demoResult) write(out io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-24s"+format+"\n", append([]any{name}, args...)...)
	}
	fmt.Fprintf(&b, "%d requests of %d sessions in %.1f s, at half of what the pool can give", r.Requests, r.Sessions, r.Seconds)
	if r.Policy != "" {
		fmt.Fprintf(&b, ",\nkeys chosen by %s alone", r.Policy)
	}
	b.WriteString(":\n")
	line("errors a client saw", "%5d", r.ClientErrors)
	line("upstream 429s", "%5d   (%d of them by the script)", r.Upstream429s, r.Scripted429s)
	line("other upstream failures", "%5d   (%s)", sum(r.UpstreamFailures), list(r.UpstreamFailures))
	line("failovers", "%5d", r.Failovers)
	line("pool capacity used", "%5.1f %% (the provider counted %.1f %%)", 100*r.CapacityUsed, 100*r.CapacityCounted)
	line("prompt tokens from cache", "%5.1f %%", 100*r.CacheHitShare)
	for _, e := range r.Errors {
		fmt.Fprintf(&b, "  error: %s\n", e)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func sum(counts map[string]int) int {
	n := 0
	for _, c := range counts {
		n += c
	}
	return n
}

// list is like "1 × 401, 1 × cut".
func list(counts map[string]int) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%d × %s", counts[name], name))
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}
