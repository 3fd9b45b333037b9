package main

import (
	"fmt"
	"io"
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
		w.Took += r.Took
	}
	return w
}

// row names the runs whose worst is printed together.
type tableRow struct {
	workload, pool string
	load           float64
	policy         string
}

// table writes Markdown, a row for each policy, load, pool and workload.
func (s suite) table(out io.Writer, results []Result) error {
	rows := make(map[tableRow][]Result)
	for _, r := range results {
		at := tableRow{r.Workload, r.Pool, r.Load, r.Policy}
		rows[at] = append(rows[at], r)
	}
	fmt.Fprintf(out, "Worst of %d seeds, of %d for strategies to compare with; %v simulated, the first %v dropped.\n\n",
		s.seeds, min(s.seeds, s.peerSeeds), s.window.To, s.window.From)
	fmt.Fprintln(out, "| traffic | pool | load | policy | goodput | 429s per 1,000 | failed per 1,000 | delay p50 | p99 | cache hits | cost | used |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, w := range s.workloads {
		for _, p := range s.pools {
			for _, load := range s.loads {
				for _, name := range s.policies {
					r := worst(rows[tableRow{w, p, load, name}])
					_, err := fmt.Fprintf(out, "| %s | %s | %.4g | %s | %.3f | %.1f | %.1f | %.2f s | %.2f s | %.3f | %.2f | %.2f |\n",
						w, p, load, name, r.Goodput, r.Refused, r.Failed, r.P50, r.P99, r.Hits, r.Cost, r.Used)
					if err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}
