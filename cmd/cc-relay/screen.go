package main

import (
	"fmt"
	"image/color"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/term"
)

// screen is what text is laid out for: a terminal, or something else with lines of 80
// columns and no colours.
type screen struct {
	width int // in columns
	color bool
}

const narrowest = 80

func screenOf(w io.Writer) screen {
	s := screen{width: narrowest}
	if !isTerminal(w) {
		return s
	}
	s.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	if width, _, err := term.GetSize(w.(*os.File).Fd()); err == nil && width > 0 {
		s.width = width
	}
	return s
}

// Colours say how well something is; without them the words do.
var (
	good  = lipgloss.Green
	fair  = lipgloss.Yellow
	bad   = lipgloss.Red
	faint = lipgloss.BrightBlack
)

func (s screen) paint(c color.Color, text string) string {
	if !s.color || c == nil {
		return text
	}
	return lipgloss.NewStyle().Foreground(c).Render(text)
}

func (s screen) bold(text string) string {
	if !s.color {
		return text
	}
	return lipgloss.NewStyle().Bold(true).Render(text)
}

// pad fills text with blanks up to width, and cuts what is longer.
func pad(text string, width int) string {
	if n := lipgloss.Width(text); n <= width {
		return text + strings.Repeat(" ", width-n)
	}
	return cut(text, width)
}

func cut(text string, width int) string {
	if lipgloss.Width(text) <= width {
		return text
	}
	runes := []rune(text)
	for len(runes) > 0 && lipgloss.Width(string(runes))+1 > width {
		runes = runes[:len(runes)-1]
	}
	return string(runes) + "…"
}

// wrap breaks text between words into lines of the screen's width. Each but the first
// begins with indent, which comes on top.
func (s screen) wrap(text, indent string) string { return s.flow(strings.Fields(text), " ", indent) }

// flow joins parts, and begins a new line, as wrap does, for one that does not fit.
func (s screen) flow(parts []string, sep, indent string) string {
	var out strings.Builder
	used, first := 0, true
	for _, part := range parts {
		if part == "" {
			continue
		}
		n := lipgloss.Width(part)
		switch {
		case first:
			first = false
		case used+len(sep)+n > s.width:
			out.WriteString(strings.TrimRight(sep, " ") + "\n" + indent)
			used = 0
		default:
			out.WriteString(sep)
			used += len(sep)
		}
		out.WriteString(part)
		used += n
	}
	return out.String()
}

// within is the screen without the columns of an indent.
func (s screen) within(indent int) screen {
	s.width = max(s.width-indent, 1)
	return s
}

// bar is how much of a limit is left, n columns wide and its percentage after it.
// Without a limit it is a dash, and what is in debt is empty.
func (s screen) bar(left, limit, n int) string {
	if limit <= 0 {
		return pad("-", n+5)
	}
	share := float64(min(max(left, 0), limit)) / float64(limit)
	full := int(share*float64(n) + 0.5)
	if full == 0 && left > 0 && n > 0 {
		full = 1
	}
	hue := good
	switch {
	case share < 0.1:
		hue = bad
	case share < 0.3:
		hue = fair
	}
	return s.paint(hue, strings.Repeat("█", full)) + s.paint(faint, strings.Repeat("░", n-full)) + fmt.Sprintf("%4.0f%%", 100*share)
}

// short is a length of time in two units at most, rounded up to seconds.
func short(d time.Duration) string {
	if d > 0 && d < time.Second {
		return "1s"
	}
	d = (d + time.Second - 1).Truncate(time.Second)
	days, h, m, sec := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60, int(d.Seconds())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, h)
	case h > 0:
		return fmt.Sprintf("%dh%dm", h, m)
	case m > 0 && sec > 0:
		return fmt.Sprintf("%dm%ds", m, sec)
	case m > 0:
		return fmt.Sprintf("%dm", m)
	}
	return fmt.Sprintf("%ds", max(sec, 0))
}

// millis is a length of time in milliseconds, for reading.
func millis(ms float64) string {
	switch {
	case ms < 10:
		return strconv.FormatFloat(ms, 'g', 2, 64) + "ms"
	case ms < 1000:
		return fmt.Sprintf("%.0fms", ms)
	case ms < 60_000:
		return fmt.Sprintf("%.1fs", ms/1000)
	}
	return short(time.Duration(ms) * time.Millisecond)
}

// count is a number in four figures at most.
func count[N int | int64](n N) string {
	v, sign := float64(n), ""
	if v < 0 {
		v, sign = -v, "-"
	}
	unit := ""
	for _, next := range []string{"k", "M", "G", "T"} {
		if v < 999.5 || (unit == "" && v < 1000) {
			break
		}
		v, unit = v/1000, next
	}
	if unit == "" || v >= 99.95 {
		return fmt.Sprintf("%s%.0f%s", sign, v, unit)
	}
	return sign + strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + unit
}

// plural is n and what it counts.
func plural[N int | int64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + one + "s"
}
