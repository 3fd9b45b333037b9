package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cc-relay/internal/admin"
)

// group is a command that only has others. Cobra would take a mistyped one of them for a
// wish for help, and a script for success.
func group(use, short string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

func keyCommand() *cobra.Command {
	cmd := group("key", "Take a key of a running relay out, or put it back")
	for _, a := range []struct{ name, short string }{
		{"off", "Give a key no more requests, until it is switched on"},
		{"on", "Give a key requests again that was switched off"},
		{"release", "Forget that a provider told a key to wait, or refused it"},
	} {
		cmd.AddCommand(keyActionCommand(a.name, a.short))
	}
	return cmd
}

func keyActionCommand(name, short string) *cobra.Command {
	var flags adminFlags
	var provider string
	cmd := &cobra.Command{
		Use:   name + " ID",
		Short: short,
		Long:  short + ". ID is the key's, as status shows it.",
		Args:  exactly(1, "which key? give its ID, as `cc-relay status` shows it"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.act(cmd, "/api/v1/keys/"+url.PathEscape(args[0])+"/"+name, admin.KeyAction{Provider: provider})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&provider, "provider", "", "whose key, where two providers have the same one")
	return cmd
}

// exactly is cobra.ExactArgs that says what is missing.
func exactly(n int, ask string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return errors.New(ask)
		}
		return nil
	}
}

func providerCommand() *cobra.Command {
	cmd := group("provider", "Drain a provider of a running relay, or put it back")
	for _, a := range []struct{ name, short string }{
		{"drain", "Give a provider no new requests; open ones finish"},
		{"on", "Give a drained provider requests again"},
	} {
		var flags adminFlags
		sub := &cobra.Command{
			Use: a.name + " NAME", Short: a.short, Args: exactly(1, "which provider? give its name, as `cc-relay status` shows it"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return flags.act(cmd, "/api/v1/providers/"+url.PathEscape(args[0])+"/"+a.name, nil)
			},
		}
		flags.add(sub)
		cmd.AddCommand(sub)
	}
	return cmd
}

func breakerCommand() *cobra.Command {
	cmd := group("breaker", "Overrule what a running relay thinks of a provider's health")
	var flags adminFlags
	var force admin.BreakerForce
	var length time.Duration
	sub := &cobra.Command{
		Use:   "force PROVIDER open|closed|auto",
		Short: "Keep all requests from a provider, or let them through, for a while",
		Long: "Hold the breaker of a provider open (it gets no requests but those that nothing else can serve:\n" +
			"`provider drain` keeps those away, too) or closed (it gets them, whatever it answers) for a\n" +
			"while, or leave it to itself again (auto).",
		Args:      exactly(2, "give the name of a provider, as `cc-relay status` shows it, and one of open, closed, auto"),
		ValidArgs: []string{"open", "closed", "auto"},
		RunE: func(cmd *cobra.Command, args []string) error {
			force.Provider, force.State = args[0], args[1]
			if !slices.Contains([]string{"open", "closed", "auto"}, force.State) {
				return fmt.Errorf("%q is none of open, closed, auto", force.State)
			}
			if cmd.Flags().Changed("for") {
				force.For = length.String()
			}
			return flags.act(cmd, "/api/v1/breakers/force", force)
		},
	}
	flags.add(sub)
	sub.Flags().StringVar(&force.Class, "class", "", "model class; without it, every class")
	sub.Flags().DurationVar(&length, "for", 10*time.Minute, "for how long, at most 24h")
	cmd.AddCommand(sub)
	return cmd
}

// diffRunning prints what a reload would change now. Error: it would be refused.
func (f *adminFlags) diffRunning(cmd *cobra.Command) error {
	c, err := f.client()
	if err != nil {
		return err
	}
	data, err := c.ask(cmd.Context(), http.MethodPost, "/api/v1/config/diff", nil)
	if err != nil {
		return err
	}
	var diff admin.ConfigDiff
	if err := c.read(data, &diff); err != nil {
		return err
	}
	if diff.Error != "" {
		return fmt.Errorf("a reload would be refused: %s", diff.Error)
	}
	return writeChanges(cmd.OutOrStdout(), diff.Changed, diff.NeedsRestart)
}

func writeChanges(w io.Writer, changed, restart []string) error {
	var out bytes.Buffer
	for _, path := range changed {
		note := ""
		if slices.Contains(restart, path) {
			note = "  (needs a restart)"
		}
		fmt.Fprintf(&out, "%s%s\n", path, note)
	}
	for _, path := range restart {
		if !slices.Contains(changed, path) {
			fmt.Fprintf(&out, "%s  (needs a restart)\n", path)
		}
	}
	if out.Len() == 0 {
		out.WriteString("no change\n")
	}
	_, err := w.Write(out.Bytes())
	return err
}

// act does one thing to a relay and prints what was done.
func (f *adminFlags) act(cmd *cobra.Command, path string, body any) error {
	c, err := f.client()
	if err != nil {
		return err
	}
	data, err := c.ask(cmd.Context(), http.MethodPost, path, body)
	if err != nil {
		return err
	}
	var done admin.ActionResult
	if err := c.read(data, &done); err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString(done.Message)
	if !done.Expires.IsZero() {
		fmt.Fprintf(&out, "; until %s", done.Expires.Local().Format("15:04:05"))
	}
	out.WriteByte('\n')
	if done.Warning != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", done.Warning)
	}
	if _, err := cmd.OutOrStdout().Write(out.Bytes()); err != nil || done.Reload == nil {
		return err
	}
	return writeChanges(cmd.OutOrStdout(), done.Reload.Changed, done.Reload.NeedsRestart)
}

func eventsCommand() *cobra.Command {
	var flags adminFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print what happens in a running relay, a line each, until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			opened := func() { fmt.Fprintf(cmd.ErrOrStderr(), "listening to %s until Ctrl-C\n", c.shown) }
			err = c.follow(ctx, opened, func(kind string, data []byte) error {
				line := eventLine(kind, data)
				if asJSON {
					line = fmt.Sprintf(`{"event":%q,"data":%s}`, kind, data)
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), line)
				return err
			})
			if ctx.Err() != nil {
				return nil
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print each event as a line of JSON")
	return cmd
}

// follow hands on each event until the stream ends, which is an error. It says so when
// the stream is open: there may be nothing to tell for long.
func (c *adminClient) follow(ctx context.Context, opened func(), each func(kind string, data []byte) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/api/v1/events?stats=off", nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	opened()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 4<<20)
	kind := ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "event":
			kind = strings.Map(printable, value)
		case "data":
			var compact bytes.Buffer
			if json.Compact(&compact, []byte(value)) != nil {
				return c.stranger(resp.StatusCode)
			}
			if err := each(kind, plain(compact.Bytes(), false)); err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("the stream of events broke off: %w", err)
	}
	return errors.New("the relay ended the stream of events: it stopped, or its tokens were changed")
}

func printable(r rune) rune {
	if steers(r) {
		return ' '
	}
	return r
}

// event is any of the admin's events: fields that one does not have are empty.
type event struct {
	At       time.Time `json:"at"`
	Provider string    `json:"provider"`
	Key      string    `json:"key"`
	Class    string    `json:"class"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Until    time.Time `json:"until"`
	Reason   string    `json:"reason"`
	Forced   bool      `json:"forced"`
	Kind     string    `json:"kind"`
	Error    string    `json:"error"`
	Count    int       `json:"count"`
}

// eventLine is one event for reading; a kind that it does not know is printed as it came.
func eventLine(kind string, data []byte) string {
	var e event
	err := json.Unmarshal(data, &e)
	when := clockOf(e.At)
	switch {
	case err != nil:
	case kind == admin.EventKey, kind == admin.EventBreaker, kind == admin.EventProvider:
		subject := strings.Join(slices.DeleteFunc([]string{e.Provider, e.Key, e.Class}, func(s string) bool { return s == "" }), "/")
		line := fmt.Sprintf("%s  %-8s  %s: %s -> %s", when, kind, subject, orNone(e.From), orNone(e.To))
		if e.Reason != "" {
			line += " (" + e.Reason + ")"
		}
		if e.Forced {
			line += " (forced)"
		}
		if !e.Until.IsZero() {
			line += " until " + clockOf(e.Until)
		}
		return line
	case kind == admin.EventReload && e.Error != "":
		return fmt.Sprintf("%s  %-8s  refused: %s", when, kind, e.Error)
	case kind == admin.EventReload:
		return fmt.Sprintf("%s  %-8s  in force", when, kind)
	case kind == admin.EventAlert:
		return fmt.Sprintf("%s  %-8s  %s: %s", when, kind, e.Provider, e.Kind)
	case kind == admin.EventLost:
		return fmt.Sprintf("%s  %-8s  %d events were missed here", when, kind, e.Count)
	case kind == admin.EventRequest:
		var a account
		if json.Unmarshal(data, &a) == nil && a.ID != "" {
			return fmt.Sprintf("%s  %-8s  %s", clockOf(a.At), kind, a.line())
		}
	}
	return fmt.Sprintf("%s  %-8s  %s", when, kind, data)
}

func orNone(state string) string {
	if state == "" {
		return "none"
	}
	return state
}

// clockOf is a time of day here; of no time, blanks.
func clockOf(t time.Time) string {
	if t.IsZero() {
		return strings.Repeat(" ", 8)
	}
	return t.Local().Format("15:04:05")
}
