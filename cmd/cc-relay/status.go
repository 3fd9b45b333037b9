package main

import (
	"bytes"
	"context"
	"fmt"
	"image/color"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cc-relay/internal/admin"
)

// exitCode is an error that has been printed already, and what the process ends with.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Exit codes of status. 1 and 2 are for errors.
const (
	exitDegraded exitCode = 3
	exitDown     exitCode = 4
)

func statusCommand() *cobra.Command {
	var flags adminFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show a running relay: its providers, keys, limits and requests",
		Long: "Show a running relay. Bars are what is left of the limits a minute. The exit code is 0 if the\n" +
			"relay is healthy, 3 if it is degraded (it serves, and something is out), 4 if it is down (no\n" +
			"provider can serve), 1 if it cannot be asked.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			return c.status(cmd, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the relay answers, as JSON")
	return cmd
}

func (c *adminClient) status(cmd *cobra.Command, asJSON bool) error {
	stats, data, err := c.stats(cmd.Context())
	if err != nil {
		return err
	}
	if asJSON {
		err = writeJSON(cmd.OutOrStdout(), data)
	} else {
		v := statusView{screen: screenOf(cmd.OutOrStdout()), stats: stats, address: c.shown}
		_, err = cmd.OutOrStdout().Write(v.render())
	}
	if err != nil {
		return err
	}
	switch stats.Status.Status {
	case admin.Healthy:
		return nil
	case admin.Degraded:
		return exitDegraded
	}
	return exitDown
}

func (c *adminClient) stats(ctx context.Context) (stats admin.Stats, data []byte, err error) {
	data, err = c.get(ctx, "/api/v1/stats", &stats)
	if err == nil && stats.Status.Status == "" {
		err = c.stranger(200)
	}
	return stats, data, err
}

// statusView lays a relay's numbers out.
type statusView struct {
	screen
	stats   admin.Stats
	address string
	out     bytes.Buffer
}

// Columns of a key's line: what is before the bars, and the widths of its parts.
const (
	keyIndent = 4
	keyWidth  = 12
	wordWidth = 23 // dead 1h0m unauthorized
)

// listing is the class that pools give keys for lists of models by.
const listing = "models"

func (v *statusView) render() []byte {
	v.head()
	for _, r := range v.stats.Reasons {
		mark := v.paint(fair, "!")
		if r.Code == "no_provider" || r.Code == "stopping" {
			mark = v.paint(bad, "!")
		}
		text := inCommands(r.Message)
		if r.Provider != "" && !strings.Contains(text, r.Provider) {
			text = r.Provider + ": " + text
		}
		v.line("%s %s", mark, v.within(2).wrap(text, "  "))
	}
	for i := range v.stats.Providers {
		v.provider(&v.stats.Providers[i])
	}
	return v.out.Bytes()
}

func (v *statusView) line(format string, args ...any) {
	v.out.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " "))
	v.out.WriteByte('\n')
}

func (v *statusView) head() {
	s := &v.stats
	v.line("%s", v.within(2).flow([]string{v.bold("cc-relay") + " " + cut(s.Version, 20), v.overall(),
		"up " + short(time.Duration(s.UptimeSeconds)*time.Second), fmt.Sprintf("%d in flight", s.InFlight), v.paint(faint, v.address)}, "  ", "  "))
	t := s.Totals
	v.line("%s", v.within(2).flow([]string{plural(t.Requests, "request"), count(t.Succeeded) + " ok", count(t.Failed) + " failed",
		count(t.Refused) + " refused", count(t.Failovers) + " moved to another key or provider"}, ", ", "  "))
	v.line("tokens: %s", v.within(8).flow([]string{count(t.InputTokens) + " in", count(t.CacheReadTokens) + " from the cache",
		count(t.CacheWriteTokens) + " into it", count(t.OutputTokens) + " out"}, ", ", "  "))
}

func (v *statusView) overall() string {
	switch word := v.stats.Status.Status; word {
	case admin.Healthy:
		return v.paint(good, word)
	case admin.Degraded:
		return v.paint(fair, word)
	default:
		return v.paint(bad, word)
	}
}

func (v *statusView) provider(p *admin.Provider) {
	v.line("")
	head := []string{v.bold(cut(p.Name, v.width/2)), v.keys(p.Keys), fmt.Sprintf("%d in flight", p.InFlight)}
	if p.Draining {
		head = append(head, v.paint(fair, "draining"))
	}
	v.line("%s", v.within(2).flow(head, "  ", "  "))
	if troubles := v.breakers(p.Breakers); len(troubles) > 0 {
		v.line("  breaker: %s", v.within(11).flow(troubles, ", ", strings.Repeat(" ", 11)))
	}
	bars, wide := v.bars()
	titles := false
	asked := slices.ContainsFunc(p.Classes, func(c admin.Class) bool { return c.Class != "" && c.Class != listing })
	for i := range p.Classes {
		c := &p.Classes[i]
		if c.InFlight == 0 && (c.Class == listing || c.Class == "" && asked) {
			continue // lists have no limits, and what belongs to no class was not asked for
		}
		if !titles {
			v.line("%s%s", strings.Repeat(" ", keyIndent+keyWidth+v.words()+4), v.paint(faint, v.titles(bars, wide)))
			titles = true
		}
		v.class(c, bars, wide)
	}
}

func (v *statusView) keys(k admin.KeyCounts) string {
	var parts []string
	for _, s := range []struct {
		n    int
		word string
	}{{k.Available, "available"}, {k.Exhausted, "exhausted"}, {k.Cooling, "cooling"}, {k.Dead, "dead"}, {k.Off, "off"}} {
		if s.n > 0 {
			parts = append(parts, v.paint(hueOf(s.word), fmt.Sprintf("%d %s", s.n, s.word)))
		}
	}
	if len(parts) == 0 {
		return "no keys"
	}
	return plural(k.Total, "key") + ": " + strings.Join(parts, ", ")
}

// breakers names those that are not simply closed.
func (v *statusView) breakers(all []admin.Breaker) (parts []string) {
	for _, b := range all {
		if b.State == "closed" && !b.Forced {
			continue
		}
		text := strings.TrimSpace(b.Class+" ") + " " + v.paint(hueOf(b.State), strings.ReplaceAll(b.State, "_", " ")) + v.left(b.Until, time.Second)
		if b.Forced {
			text += " (forced)"
		}
		parts = append(parts, strings.TrimSpace(text))
	}
	return parts
}

func hueOf(word string) color.Color {
	switch word {
	case "available", "closed":
		return good
	case "dead", "open":
		return bad
	case "off":
		return faint
	}
	return fair
}

// left is how long until a time: " 43s", or nothing; rounded up to a unit where it is
// longer than that.
func (v *statusView) left(until time.Time, unit time.Duration) string {
	if until.IsZero() || !until.After(v.stats.At) {
		return ""
	}
	left := until.Sub(v.stats.At)
	if left > unit {
		left = (left + unit - 1).Truncate(unit)
	}
	return " " + short(left)
}

// words is the width of a key's state: less where not even the shares have room beside it.
func (v *statusView) words() int {
	return max(min(wordWidth, v.width-keyIndent-keyWidth-4-3*len(" 100% ")-len(" 100")), 9)
}

// bars is the width of one, and whether the numbers have room beside it.
func (v *statusView) bars() (columns int, numbers bool) {
	room := (v.width-keyIndent-keyWidth-wordWidth-4-len(" 100"))/3 - len(" 100% ")
	if room >= 4+numbersWidth {
		return min(room-numbersWidth, 12), true
	}
	return min(max(room, 0), 12), false
}

const numbersWidth = len(" 99.9M/99.9M")

func (v *statusView) titles(bars int, numbers bool) string {
	var out strings.Builder
	names := []string{"requests", "input", "output"}
	if bars < 2 {
		names = []string{"req", "in", "out"}
	}
	for _, title := range names {
		n := bars + len(" 100% ")
		if numbers {
			n += numbersWidth
		}
		out.WriteString(pad(title, n-1) + " ")
	}
	return out.String() + "open"
}

func (v *statusView) class(c *admin.Class, bars int, numbers bool) {
	name := c.Class
	if name == "" {
		name = "any class"
	}
	if len(c.Keys) == 1 {
		v.line("  %s", v.bold(name))
	} else {
		v.line("  %s  %s", pad(v.bold(cut(name, keyIndent+keyWidth+v.words())), keyIndent+keyWidth+v.words()), v.room(c.Limits, c.Remaining, c.InFlight, bars, numbers))
	}
	for i := range c.Keys {
		k := &c.Keys[i]
		word := v.paint(hueOf(k.State), k.State)
		if k.Reason == "" {
			word += v.left(k.Until, time.Second)
		} else { // which leaves no room for seconds
			word += v.left(k.Until, time.Minute) + " " + k.Reason
		}
		limits := k.Limits
		if k.State == "dead" || k.State == "off" {
			limits = admin.Amounts{} // nothing of them is to be had
		}
		v.line("%s%s  %s  %s", strings.Repeat(" ", keyIndent), pad(k.ID, keyWidth), pad(word, v.words()), v.room(limits, k.Remaining, k.InFlight, bars, numbers))
	}
}

func (v *statusView) room(limits, left admin.Amounts, open, bars int, numbers bool) string {
	var out strings.Builder
	for _, a := range [][2]int{{left.RPM, limits.RPM}, {left.ITPM, limits.ITPM}, {left.OTPM, limits.OTPM}} {
		out.WriteString(v.bar(a[0], a[1], bars) + " ")
		if numbers {
			text := ""
			if a[1] > 0 {
				text = count(a[0]) + "/" + count(a[1])
			}
			out.WriteString(pad(text, numbersWidth))
		}
	}
	if open > 0 {
		out.WriteString(fmt.Sprintf("%4d", open))
	}
	return out.String()
}
