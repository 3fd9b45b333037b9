package main

import (
	"fmt"
	"strings"
	"time"

	"cc-relay/bench/rig"
)

// report is what came of a run.
type report struct {
	options
	load    *load
	account account
	changer *changer
	log     *relayLog
	samples []sample
	before  sample
	after   sample
	took    time.Duration
	late    []string // keys that came after they were removed
	broken  int      // connections that the network broke off
	stopped error    // how the relay ended
}

// long tells runs after which memory and idle connections are waited for: in a shorter
// one hardly any garbage is collected.
func (o options) long() bool { return o.length >= time.Minute }

// Growth that is still flat.
const (
	flatShare = 10 // percent
	flatBytes = 8 << 20
	// rememberedBytes is what the relay may remember of conversations, prompts and
	// requests; before the load there was nothing to remember.
	rememberedBytes = 16 << 20
)

func flat(from, to int64) bool { return to <= from+from*flatShare/100+flatBytes }

// mean is the mean RSS of the samples between two shares of the run, in bytes; 0
// without any.
func (r *report) mean(from, to float64) int64 {
	var sum, n int64
	for _, s := range r.samples {
		if share := float64(s.at) / float64(r.length); share > from && share <= to {
			sum, n = sum+s.rss, n+1
		}
	}
	if n == 0 {
		return 0
	}
	return sum / n
}

// memory is the RSS after warming up and at the end of the load.
func (r *report) memory() (early, late int64) { return r.mean(0.1, 0.2), r.mean(0.9, 1) }

// wrong is everything that must not be.
func (r *report) wrong() []string {
	var all []string
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	list := func(what string, p problems) {
		bad(p.n > 0, "%d %s, such as:\n  %s", p.n, what, strings.Join(p.first, "\n  "))
	}
	list("requests failed", r.load.bad)
	list("streams were cut", r.load.cutStreams)
	list("accounts do not agree", r.account.problems)
	list("changes had no effect", r.changer.missed)
	bad(len(r.late) > 0, "%d requests with a removed key, such as: %s", len(r.late), strings.Join(r.late[:min(3, len(r.late))], "; "))
	bad(r.log.lost > 0, "the relay dropped %d records of its log", r.log.lost)
	bad(r.log.refused < r.changer.broken, "the relay refused %d reloads, want at least %d", r.log.refused, r.changer.broken)
	bad(r.long() && r.changer.done < r.reloads, "there was time for %d changes of the configuration only, want %d", r.changer.done, r.reloads)
	bad(r.stopped != nil, "%v", r.stopped)
	bad(r.after.fds > r.before.fds+slackFds, "%d file descriptors after the load, %d before", r.after.fds, r.before.fds)
	bad(r.long() && r.after.idle > 0, "%d connections that providers had closed were still open minutes after the load", r.after.idle)
	bad(r.after.inFlight != 0 || r.after.held != 0, "%d requests and %d tokens are still held at keys after the load", r.after.inFlight, r.after.held)
	bad(r.after.told && r.after.tokens != r.log.tokens, "the metrics count %d tokens, the log %d", r.after.tokens, r.log.tokens)
	bad(r.after.goroutines > r.before.goroutines+slackGoroutines, "%d goroutines after the load, %d before", r.after.goroutines, r.before.goroutines)
	if r.long() {
		early, late := r.memory()
		bad(!r.mixed && !flat(early, late), "memory grew from %s to %s", mib(early), mib(late))
		bad(!flat(r.before.heap+rememberedBytes, r.after.heap), "the heap is %s after the load, %s before", mib(r.after.heap), mib(r.before.heap))
	}
	if r.mixed {
		// Each broken connection carried one answer at most.
		bad(r.load.ends[cut] > r.broken, "%d answers were cut, though only %d connections broke", r.load.ends[cut], r.broken)
		bad(r.load.ends[refused]*100 > r.sent(), "%d of %d requests were refused", r.load.ends[refused], r.sent())
	}
	return all
}

func (r *report) sent() int { return int(r.load.requests.Load() + r.load.streams.Load()) }

// rows are the figures.
func (r *report) rows() [][2]string {
	early, late := r.memory()
	rows := [][2]string{
		{"load", fmt.Sprintf("%v, and until the last stream had ended: %v", r.length, r.took.Round(time.Second))},
		{"requests", fmt.Sprintf("%d: %d short, %.0f a second, and %d long streams, up to %d at once", r.sent(), r.load.requests.Load(),
			float64(r.load.requests.Load())/r.length.Seconds(), r.load.streams.Load(), r.load.busiest.Load())},
		{"failed requests", fmt.Sprint(r.load.bad.n)},
		{"cut streams", fmt.Sprint(r.load.cutStreams.n)},
		{"attempts beyond the first", fmt.Sprint(r.log.retries)},
	}
	if r.mixed {
		rows = append(rows[:2], [][2]string{
			{"answers", r.ends()},
			{"connections broken by the network", fmt.Sprint(r.broken)},
			{"connections that the kernel gave up", r.givenUp()},
			{"attempts beyond the first", fmt.Sprint(r.log.retries)},
		}...)
	}
	if r.reloads > 0 {
		rows = append(rows, [][2]string{
			{"changes of the configuration", fmt.Sprintf("%d, of them %d that must be refused", r.changer.done, r.changer.broken)},
			{"reloads", fmt.Sprintf("%d applied, %d refused", r.log.applied, r.log.refused)},
			{"changes without effect", fmt.Sprintf("%d; the slowest was in force after %.2f s", r.changer.missed.n, r.changer.slowest.Seconds())},
			{"requests with a key that was removed", fmt.Sprint(len(r.late))},
		}...)
	}
	return append(rows, [][2]string{
		{"tokens of complete answers: clients", tokens(r.account.client)},
		{"… providers", tokens(r.account.provider)},
		{"… the relay", tokens(r.account.relay)},
		{"requests whose account was compared", fmt.Sprintf("%d, %d records marked partial, %d that do not agree", r.compared(), r.account.partial, r.account.problems.n)},
		{"tokens of all attempts", fmt.Sprintf("%d in the log, %s in the metrics", r.log.tokens, r.known(count(r.after.tokens)))},
		{"held at keys after the load", r.known(fmt.Sprintf("%d requests, %d tokens", r.after.inFlight, r.after.held))},
		{"memory (RSS)", fmt.Sprintf("%s before, %s after warming up, %s at the end of the load (%+.1f %%), %s after it%s", mib(r.before.rss), mib(early), mib(late),
			percent(early, late), mib(r.after.rss), r.unjudged())},
		{"heap", fmt.Sprintf("%s before, %s after", r.known(mib(r.before.heap)), r.known(mib(r.after.heap)))},
		{"goroutines", fmt.Sprintf("%s before, %s after", r.known(count(r.before.goroutines)), r.known(count(r.after.goroutines)))},
		{"file descriptors", fmt.Sprintf("%d before, %d after, and %d and %d of connections that the provider has closed", r.before.fds, r.after.fds, r.before.idle, r.after.idle)},
		{"warnings of the relay", fmt.Sprint(r.log.warnings.n)},
	}...)
}

func (r *report) givenUp() string {
	if r.before.lost < 0 || r.after.lost < 0 {
		return "unknown"
	}
	return fmt.Sprint(r.after.lost - r.before.lost)
}

func (r *report) unjudged() string {
	if r.long() {
		return ""
	}
	return "; too short to judge"
}

func (r *report) ends() string {
	var all []string
	for _, e := range []end{complete, cut, left, refused, failed} {
		all = append(all, fmt.Sprintf("%d %s", r.load.ends[e], e))
	}
	return strings.Join(all, ", ")
}

func (r *report) compared() int {
	n := 0
	for _, m := range r.account.compared {
		n += m
	}
	return n
}

// text is for a terminal.
func (r *report) text() string {
	var b strings.Builder
	for _, row := range r.rows() {
		fmt.Fprintf(&b, "%-38s %s\n", row[0], row[1])
	}
	for _, line := range r.log.warnings.first {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	wrong := r.wrong()
	for _, w := range wrong {
		fmt.Fprintf(&b, "WRONG: %s\n", w)
	}
	if len(wrong) == 0 {
		fmt.Fprintln(&b, "passed")
	}
	return b.String()
}

// section is for a page.
func (r *report) section() string {
	var b strings.Builder
	title := fmt.Sprintf("%d reloads in %v under load", r.reloads, r.length)
	if r.mixed {
		title = fmt.Sprintf("%v of mixed traffic and faults", r.length)
	}
	fmt.Fprintf(&b, "\n## %s\n\n| | |\n|---|---|\n", title)
	for _, row := range r.rows() {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	verdict := "Passed."
	if wrong := r.wrong(); len(wrong) > 0 {
		verdict = "Failed:\n"
		for _, w := range wrong {
			what, _, _ := strings.Cut(w, ", such as:") // examples name addresses
			verdict += "\n- " + what
		}
	}
	fmt.Fprintf(&b, "\n%s\n", verdict)
	return b.String()
}

func tokens(u rig.Usage) string {
	return fmt.Sprintf("%d input, %d written to caches, %d read from them, %d output", u.Input, u.CacheWrite, u.CacheRead, u.Output)
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
func count(n int) string     { return fmt.Sprint(n) }

// known is for figures from the metrics.
func (r *report) known(figure string) string {
	if !r.before.told || !r.after.told {
		return "unknown"
	}
	return figure
}

func percent(from, to int64) float64 {
	if from == 0 {
		return 0
	}
	return float64(to-from) / float64(from) * 100
}
