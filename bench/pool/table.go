package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// worst is the worst of each figure over the seeds of one row.
func worst(rs []Result) Result {
	w := rs[0]
	for _, r := range rs[1:] {
		w.Goodput = min(w.Goodput, r.Goodput)
		w.Hits = min(w.Hits, r.Hits)
		w.Used = min(w.Used, r.Used)
		w.Refused = max(w.Refused, r.Refused)
		w.Failed = max(w.Failed, r.Failed)
		w.P50 = max(w.P50, r.P50)
		w.P99 = max(w.P99, r.P99)
		w.Cost = max(w.Cost, r.Cost)
		w.Denied = max(w.Denied, r.Denied)
		w.Refusals = max(w.Refusals, r.Refusals)
		w.InFlight = min(w.InFlight, r.InFlight)
		w.Late = max(w.Late, r.Late)
		w.Took += r.Took
	}
	return w
}

// worsts are the worst figures of each policy in each place, in the order in which
// the places and the policies first come.
func worsts(results []Result) []Result {
	type at struct{ place, policy string }
	runs := make(map[at][]Result)
	var places, names []string
	for _, r := range results {
		if !slices.Contains(places, r.place()) {
			places = append(places, r.place())
		}
		if !slices.Contains(names, r.Policy) {
			names = append(names, r.Policy)
		}
		runs[at{r.place(), r.Policy}] = append(runs[at{r.place(), r.Policy}], r)
	}
	var rows []Result
	for _, place := range places {
		for _, name := range names {
			if rs := runs[at{place, name}]; rs != nil {
				rows = append(rows, worst(rs))
			}
		}
	}
	return rows
}

// table writes Markdown: a row for each policy in each place, and all side by side
// where there are others to compare with.
func (s suite) table(to io.Writer, rows []Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Worst of %d seeds from %d, with 64mix of %d; %v simulated, the first %v dropped.\n\n", s.seeds, s.firstSeed, min(s.seeds, s.large), s.window.To, s.window.From)
	s.figures(&b, rows)
	if slices.ContainsFunc(rows, func(r Result) bool { return policies[r.Policy].few }) {
		fmt.Fprintf(&b, "\nGoodput / 429s per 1,000; of strategies to compare with the worst of %d seeds.\n\n", min(s.seeds, s.fewSeeds))
		s.sideBySide(&b, rows)
	}
	_, err := io.WriteString(to, b.String())
	return err
}

// figures are all of those that are not there to compare with.
func (s suite) figures(b *strings.Builder, rows []Result) {
	steady := s.scenarios[0] == ""
	head := "traffic | pool | load | policy | goodput | 429s per 1,000 | failed per 1,000 | delay p50 | p99 | cache hits | cost | used |"
	if !steady {
		head = "scenario | " + head + " 401s | 429s after the event | in flight at it | late |"
	}
	fmt.Fprintf(b, "| %s\n|%s\n", head, strings.Repeat("---|", strings.Count(head, "|")))
	for _, r := range rows {
		if policies[r.Policy].few {
			continue
		}
		if !steady {
			fmt.Fprintf(b, "| %s ", r.Scenario)
		}
		fmt.Fprintf(b, "| %s | %s | %.4g | %s | %.3f | %.1f | %.1f | %.2f s | %.2f s | %.3f | %.2f | %.2f |",
			r.Workload, r.Pool, r.Load, r.Policy, r.Goodput, r.Refused, r.Failed, r.P50, r.P99, r.Hits, r.Cost, r.Used)
		if !steady {
			fmt.Fprintf(b, " %d | %d | %d | %d |", r.Denied, r.Refusals, r.InFlight, r.Late)
		}
		b.WriteByte('\n')
	}
}

// sideBySide has a row for each place and a column for each policy.
func (s suite) sideBySide(b *strings.Builder, rows []Result) {
	fmt.Fprintf(b, "| | %s |\n|%s\n", strings.Join(s.policies, " | "), strings.Repeat("---|", 1+len(s.policies)))
	for len(rows) > 0 {
		place := rows[0].place()
		fmt.Fprintf(b, "| %s |", place)
		for _, name := range s.policies {
			if len(rows) == 0 || rows[0].Policy != name || rows[0].place() != place {
				b.WriteString(" |") // not played
				continue
			}
			fmt.Fprintf(b, " %.2f / %.0f |", rows[0].Goodput, rows[0].Refused)
			rows = rows[1:]
		}
		b.WriteByte('\n')
	}
}
