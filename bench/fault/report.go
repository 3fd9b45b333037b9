package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// row is what came of a scenario; a result is nil where it was not played.
type row struct {
	scenario
	streamed, whole *result
}

// writeTable writes a line a scenario, and how many plays passed and failed.
func writeTable(w io.Writer, rows []row) (failed int) {
	fmt.Fprint(w, "| id | scenario | streamed | not streamed | attempts | seconds |\n|---|---|---|---|---|---|\n")
	passed := 0
	for _, r := range rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", r.id, r.name, verdict(r.streamed), verdict(r.whole),
			r.both(result.attempts), r.both(result.seconds))
		for _, one := range []*result{r.streamed, r.whole} {
			switch {
			case one == nil:
			case one.err == nil:
				passed++
			default:
				failed++
			}
		}
	}
	fmt.Fprintf(w, "\n%d passed, %d failed\n", passed, failed)
	return failed
}

func verdict(r *result) string {
	switch {
	case r == nil:
		return "–"
	case r.err == nil:
		return "pass"
	}
	return "**FAIL**: " + strings.ReplaceAll(r.reason(), "|", `\|`)
}

// both shows a figure of both plays, once where they agree.
func (r row) both(show func(result) string) string {
	var all []string
	for _, one := range []*result{r.streamed, r.whole} {
		if one != nil && (len(all) == 0 || all[0] != show(*one)) {
			all = append(all, show(*one))
		}
	}
	return strings.Join(all, ", ")
}

func (r result) attempts() string { return fmt.Sprintf("%d+%d", r.cost.primary, r.cost.fallback) }
func (r result) seconds() string {
	return fmt.Sprintf("%.1f", r.took.Round(100*time.Millisecond).Seconds())
}

// introduction opens the page that -write makes.
const introduction = `# Failover, scenario by scenario

What the relay does when providers fail: the sixteen scenarios of the public
Failover Bench in the form of the Messages API (S01 to S16; S07b is a variant of
S07), and our own (O01 and on). This page is made by

` + "```sh\nmake faultbench     # go run ./bench/fault -write docs/faultbench.md\n```" + `

which builds the relay and plays each scenario against a process of its own, with a
primary and a fallback provider, once streamed and once not, with real delays and
outages, from a client that never retries. Where a name has two halves, the second
is what happens to an answer that is not streamed. Providers are simulators on this
machine; their logs, not the relay's, say how often they were asked and when. Only
refused connections, which nobody can log, are counted by x-cc-relay-attempts.

A scenario passes when all of this holds:

- The client got one whole answer, byte for byte what one provider sent: one
  message_start, one message_stop, the text, model and usage of that provider.
- Where content had been shown already, it got all of it, then an error event or a
  broken connection, in time, and no message_stop: never a second answer, nor an end
  that looks like one. Where an error is the request's own, it got that error
  unchanged. Where nobody could serve, it got an honest one in the API's shape.
- Each provider saw as many requests as it should, no sooner than it should. A
  provider that keeps failing is soon left alone, and gets its requests back.
- Plain requests before and after the fault are served, and the relay ends in time
  when it is told to: nothing is left open.

Attempts are the requests that the primary + the fallback saw while the fault
lasted; seconds are how long the scenario took. Two figures are streamed, not
streamed.

`
