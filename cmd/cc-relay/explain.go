package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cc-relay/internal/admin"
)

// account is what a relay tells of one request. What is missing is not shown, and what
// this command does not know is left out. A dry run has no ID, time or outcome, and its
// attempts are the providers in the order that they would be tried, with what each
// pool would do now.
type account struct {
	ID         string        `json:"id"`
	At         time.Time     `json:"at"` // when it came
	Client     string        `json:"client"`
	Model      string        `json:"model"`
	Class      string        `json:"class"`
	Outcome    string        `json:"outcome"`
	Status     int           `json:"status"`
	DurationMS float64       `json:"duration_ms"`
	TTFTMS     float64       `json:"ttft_ms"`     // until the first content
	OverheadMS float64       `json:"overhead_ms"` // the relay's own time
	WaitMS     float64       `json:"wait_ms"`     // for a key
	Rule       string        `json:"rule"`
	Strategy   string        `json:"strategy"`
	Home       bool          `json:"home"`    // the provider that has the conversation's cache came first
	Partial    bool          `json:"partial"` // the answer did not end
	Tokens     accountTokens `json:"tokens"`
	Skipped    []skipped     `json:"skipped"`
	Attempts   []tried       `json:"attempts"`
	Further    int           `json:"further_attempts"` // that are not told of
}

type accountTokens struct {
	Input      int `json:"input"`
	CacheWrite int `json:"cache_write"`
	CacheRead  int `json:"cache_read"`
	Output     int `json:"output"`
}

// skipped is a provider that was no candidate.
type skipped struct {
	Provider string    `json:"provider"`
	Model    string    `json:"model"`
	Why      string    `json:"why"`
	Until    time.Time `json:"until"`
}

// tried is one attempt. Choice is how its key was chosen; nil if no key was asked for.
type tried struct {
	Provider   string  `json:"provider"`
	Model      string  `json:"model"`
	Class      string  `json:"class"`
	Key        string  `json:"key"`
	Verdict    string  `json:"verdict"`
	Status     int     `json:"status"`
	DurationMS float64 `json:"duration_ms"`
	Choice     *choice `json:"choice"`
}

// choice is keypool's Account as JSON.
type choice struct {
	Strategy   string      `json:"strategy"`
	Outcome    string      `json:"outcome"` // served, wait or refused
	Key        string      `json:"key"`
	HomeKey    string      `json:"home_key"`
	Home       bool        `json:"home"`
	Probe      bool        `json:"probe"`
	WaitMS     float64     `json:"wait_ms"`
	WaitedMS   float64     `json:"waited_ms"`
	BudgetMS   float64     `json:"budget_ms"`
	Estimate   estimate    `json:"estimate"`
	Considered int         `json:"considered"`
	Keys       []keyChoice `json:"keys"`
}

type estimate struct {
	Input  int `json:"input"`
	Cached int `json:"cached"`
	Output int `json:"output"`
}

type keyChoice struct {
	ID       string    `json:"id"`
	Why      string    `json:"why"`
	Reason   string    `json:"reason"`
	Until    time.Time `json:"until"`
	Requests keyRoom   `json:"requests"`
	Input    keyRoom   `json:"input"`
	Output   keyRoom   `json:"output"`
	InFlight int       `json:"in_flight"`
	Ahead    int       `json:"ahead"`
	Cached   int       `json:"cached"`
	WaitMS   float64   `json:"wait_ms"`
}

type keyRoom struct {
	Limit int `json:"limit"`
	Level int `json:"level"`
}

func explainCommand() *cobra.Command {
	var e explaining
	cmd := &cobra.Command{
		Use:   "explain [ID]",
		Short: "Say why a request went where it went, or where one would go now",
		Long: "Say how a running relay served a request: which providers and keys it tried, why those, and\n" +
			"what came of it. ID is the request's x-cc-relay-request-id; --last is the latest request.\n" +
			"With --dry-run, say where a request would go now; nothing is sent and nothing changes.",
		Example: "  cc-relay explain --last\n  cc-relay explain --dry-run --model claude-sonnet-4-5 --tokens 30000",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := e.check(cmd, args); err != nil {
				return err
			}
			return e.run(cmd, args)
		},
	}
	e.flags.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&e.last, "last", false, "the latest request")
	f.BoolVar(&e.dry, "dry-run", false, "a request that is not sent")
	f.StringVar(&e.call.Model, "model", "", "of a dry run: the model that is asked for")
	f.IntVar(&e.call.Tokens, "tokens", 0, "of a dry run: tokens of the prompt")
	f.IntVar(&e.call.MaxTokens, "max-tokens", 0, "of a dry run: the request's max_tokens")
	f.StringVar(&e.call.Client, "client", "", "of a dry run: name of the client that asks")
	f.BoolVar(&e.json, "json", false, "print what the relay answers, as JSON")
	return cmd
}

type explaining struct {
	flags           adminFlags
	last, dry, json bool
	call            admin.DryRunRequest
}

func (e *explaining) check(cmd *cobra.Command, args []string) error {
	ways := len(args)
	for _, chosen := range []bool{e.last, e.dry} {
		if chosen {
			ways++
		}
	}
	if ways != 1 {
		return errors.New("which request? give its ID, or --last, or --dry-run with --model")
	}
	if e.dry && e.call.Model == "" {
		return errors.New("--dry-run needs a --model")
	}
	for _, name := range []string{"model", "tokens", "max-tokens", "client"} {
		if !e.dry && cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s is for --dry-run", name)
		}
	}
	if e.call.Tokens < 0 || e.call.MaxTokens < 0 {
		return errors.New("--tokens and --max-tokens cannot be negative")
	}
	return nil
}

func (e *explaining) run(cmd *cobra.Command, args []string) error {
	c, err := e.flags.client()
	if err != nil {
		return err
	}
	var data []byte
	switch {
	case e.dry:
		data, err = c.ask(cmd.Context(), http.MethodPost, "/api/v1/explain", e.call)
	case e.last:
		var id string
		if id, err = c.latest(cmd); err != nil {
			return err
		}
		args = []string{id}
		fallthrough
	default:
		data, err = c.ask(cmd.Context(), http.MethodGet, "/api/v1/requests/"+url.PathEscape(args[0]), nil)
	}
	if err != nil {
		return err
	}
	var a account
	if e.json || json.Unmarshal(data, &a) != nil { // of a form that is not known, everything is shown
		return writeJSON(cmd.OutOrStdout(), data)
	}
	v := accountView{screen: screenOf(cmd.OutOrStdout()), now: time.Now()}
	_, err = cmd.OutOrStdout().Write(v.render(&a))
	return err
}

func (c *adminClient) latest(cmd *cobra.Command) (string, error) {
	var some struct {
		Requests []account `json:"requests"`
	}
	if _, err := c.get(cmd.Context(), "/api/v1/requests?limit=1", &some); err != nil {
		return "", err
	}
	if len(some.Requests) == 0 {
		return "", errors.New("the relay has served no request yet")
	}
	return some.Requests[0].ID, nil
}

// accountView lays an account out.
type accountView struct {
	screen
	now time.Time
	out bytes.Buffer
}

func (v *accountView) render(a *account) []byte {
	attempts, dry := a.Attempts, a.ID == ""
	if dry {
		v.facts(0, v.bold("a request like this, now"))
	} else {
		v.facts(0, v.bold("request "+a.ID), dated(a.At))
	}
	v.facts(2, named("model", a.Model), named("class", a.Class), named("client", a.Client))
	v.facts(2, named("rule", a.Rule), named("strategy", a.Strategy), a.home())
	if !dry {
		v.outcome(a)
	}
	for i, s := range a.Skipped {
		if i == 0 {
			v.line("\nleft out")
		}
		v.facts(2, s.Provider, s.Model, said(whySkipped, s.Why), v.until(s.Until))
	}
	for i := range attempts {
		v.line("")
		v.attempt(i+1, &attempts[i], dry)
	}
	switch {
	case len(attempts) > 0 && a.Further > 0:
		v.line("\nand %s more", plural(a.Further, "attempt"))
	case len(attempts) == 0 && dry:
		v.line("\nno provider would be tried")
	case len(attempts) == 0:
		v.line("\nno provider was tried")
	}
	return v.out.Bytes()
}

func (v *accountView) line(format string, args ...any) {
	v.out.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " "))
	v.out.WriteByte('\n')
}

func (a *account) home() string {
	if a.Home {
		return "first the provider that has the conversation's cache"
	}
	return ""
}

// facts are what is not empty of them, on one line where they fit.
func (v *accountView) facts(indent int, all ...string) {
	lead := strings.Repeat(" ", indent)
	some := slices.DeleteFunc(all, func(fact string) bool { return fact == "" })
	if text := v.within(indent+2).wrap(strings.Join(some, ", "), lead+"  "); text != "" {
		v.line("%s%s", lead, text)
	}
}

func (v *accountView) outcome(a *account) {
	var status, parts string
	if a.Status > 0 {
		status = "status " + strconv.Itoa(a.Status)
	}
	for _, p := range []struct {
		ms   float64
		what string
	}{{a.TTFTMS, "to the first content"}, {a.WaitMS, "waiting for a key"}, {a.OverheadMS, "in the relay itself"}} {
		if p.ms > 0 {
			if parts != "" {
				parts += ", "
			}
			parts += millis(p.ms) + " " + p.what
		}
	}
	if parts != "" {
		parts = "of it " + parts
	}
	took := ""
	if a.DurationMS > 0 {
		took = "took " + millis(a.DurationMS)
	}
	v.facts(2, named("outcome", a.Outcome), status, took, parts)
	t := a.Tokens
	if t != (accountTokens{}) {
		v.facts(2, fmt.Sprintf("tokens: %s in", count(t.Input)), count(t.CacheRead)+" from the cache", count(t.CacheWrite)+" into it", count(t.Output)+" out")
	}
}

func (v *accountView) attempt(n int, t *tried, dry bool) {
	var status, took string
	if t.Status > 0 {
		status = "status " + strconv.Itoa(t.Status)
	}
	if t.DurationMS > 0 {
		took = "after " + millis(t.DurationMS)
	}
	v.facts(0, fmt.Sprintf("%d. %s", n, v.bold(t.Provider)), t.Model, named("class", t.Class), named("key", t.Key), said(nil, t.Verdict), status, took)
	c := t.Choice
	if c == nil {
		return
	}
	v.facts(3, v.came(c, dry))
	if c.Estimate != (estimate{}) {
		v.facts(3, fmt.Sprintf("estimated %s in", count(c.Estimate.Input)), count(c.Estimate.Cached)+" of them cached", count(c.Estimate.Output)+" out")
	}
	if len(c.Keys) == 0 {
		return
	}
	v.line("     %s%s", strings.Repeat(" ", keyWidth+2), v.paint(faint, "requests    input       output      why"))
	for i := range c.Keys {
		v.key(&c.Keys[i], c.Key)
	}
	if more := c.Considered - len(c.Keys); more > 0 {
		v.line("     and %s more", plural(more, "key"))
	}
}

// came says what a choice came to.
func (v *accountView) came(c *choice, dry bool) string {
	by := ""
	if c.Strategy != "" {
		by = " by " + c.Strategy
	}
	where := ""
	switch {
	case c.Home:
		where = ", the conversation's home"
	case c.HomeKey != "":
		where = ", not " + c.HomeKey + ", the conversation's home"
	}
	if c.Probe {
		where += ", to see whether it works again"
	}
	waited := ""
	if c.WaitedMS > 0 {
		waited = ", " + millis(c.WaitedMS) + " after the request came"
	}
	switch c.Outcome {
	case "refused":
		text := "no key can serve it"
		if c.WaitMS > 0 {
			text += "; the first could in " + millis(c.WaitMS)
		}
		return text + fmt.Sprintf(", and it may wait %s", millis(c.BudgetMS))
	case "wait":
		return fmt.Sprintf("waits up to %s for key %s%s%s", millis(c.WaitMS), c.Key, by, where)
	}
	verb := "chosen"
	if dry {
		verb = "would be chosen"
	}
	return fmt.Sprintf("key %s %s%s of %s%s%s", c.Key, verb, by, plural(c.Considered, "key"), where, waited)
}

func (v *accountView) key(k *keyChoice, chosen string) {
	mark, why := " ", said(whyKey, k.Why)
	if k.ID == chosen && k.ID != "" {
		mark = v.paint(good, ">")
	}
	if k.Reason != "" {
		why += " (" + k.Reason + ")"
	}
	switch {
	case k.WaitMS > 0 && k.Why == "dead":
		why += ", tried again in " + millis(k.WaitMS)
	case k.WaitMS > 0:
		why += ", free in " + millis(k.WaitMS)
	}
	if k.InFlight > 0 {
		why += fmt.Sprintf(", %d in flight", k.InFlight)
	}
	if k.Ahead > 0 {
		why += fmt.Sprintf(", %d wait before it", k.Ahead)
	}
	if k.Cached > 0 {
		why += ", " + count(k.Cached) + " cached"
	}
	const before = 5 + keyWidth + 2 + 3*12
	shares := v.share(k.Requests) + v.share(k.Input) + v.share(k.Output)
	if v.width-before < 24 { // too narrow for words
		v.line("   %s %s  %s", mark, pad(k.ID, keyWidth), shares)
		v.line("       %s", v.within(7).wrap(why, "       "))
		return
	}
	v.line("   %s %s  %s%s", mark, pad(k.ID, keyWidth), shares, v.within(before).wrap(why, strings.Repeat(" ", before)))
}

func (v *accountView) share(r keyRoom) string { return v.bar(r.Level, r.Limit, 5) + "  " }

// until is a time that something ends, and how far that is.
func (v *accountView) until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	if left := t.Sub(v.now); left > 0 {
		return "for " + short(left) + " more"
	}
	return "until " + clockOf(t)
}

func dated(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func named(what, value string) string {
	if value == "" {
		return ""
	}
	return what + " " + value
}

// said is a sentence for a word, or else the word.
func said(sentences map[string]string, word string) string {
	if s, ok := sentences[word]; ok {
		return s
	}
	return strings.ReplaceAll(word, "_", " ")
}

// whySkipped says why a provider was no candidate.
var whySkipped = map[string]string{
	"draining":       "an operator drains it",
	"lacks_model":    "it does not know the model",
	"breaker_open":   "it failed too often",
	"breaker_forced": "an operator holds its breaker open",
}

// whyKey says why a key was chosen or was not.
var whyKey = map[string]string{
	"excluded":       "tried already",
	"off":            "switched off",
	"too_large":      "the request is larger than its limit",
	"queue":          "others wait for it",
	"trying":         "others try what it admits",
	"no_requests":    "no requests left",
	"no_input":       "too little input left",
	"no_output":      "too little output left",
	"not_home":       "the conversation is at home elsewhere",
	"lower_priority": "lower priority",
	"not_drawn":      "not drawn",
	"less_room":      "less room",
	"not_its_turn":   "not its turn",
}

// line is an account in one line, without its time.
func (a *account) line() string { return strings.Join(a.parts(), "  ") }

func (a *account) parts() []string {
	where := ""
	if n := len(a.Attempts); n > 0 {
		last := a.Attempts[n-1]
		where = last.Provider
		if last.Key != "" {
			where += "/" + last.Key
		}
		if n > 1 {
			where += fmt.Sprintf(" (%d attempts)", n)
		}
	}
	result := a.Outcome
	if a.Status > 0 {
		result = strings.TrimSpace(strconv.Itoa(a.Status) + " " + a.Outcome)
	}
	parts := []string{a.ID, a.Client, a.Model, where, result, millis(math.Max(a.DurationMS, 0)),
		fmt.Sprintf("%s in, %s out", count(a.Tokens.Input+a.Tokens.CacheRead+a.Tokens.CacheWrite), count(a.Tokens.Output))}
	return slices.DeleteFunc(parts, func(p string) bool { return p == "" })
}

func requestsCommand() *cobra.Command {
	var flags adminFlags
	var limit int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "requests",
		Short: "List the latest requests of a running relay, the last one first",
		Long:  "List the latest requests of a running relay, the last one first. For more of one: cc-relay explain ID.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return errors.New("--limit is not within 1 and 1000")
			}
			c, err := flags.client()
			if err != nil {
				return err
			}
			var some struct {
				Requests []account `json:"requests"`
			}
			data, err := c.get(cmd.Context(), "/api/v1/requests?limit="+strconv.Itoa(limit), &some)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), data)
			}
			var out bytes.Buffer
			width := math.MaxInt // a line each, for other programs
			if isTerminal(cmd.OutOrStdout()) {
				width = screenOf(cmd.OutOrStdout()).width
			}
			for i := range some.Requests {
				const indent = "          " // the time's
				text := screen{width: width}.within(len(indent)).flow(some.Requests[i].parts(), "  ", indent)
				fmt.Fprintf(&out, "%s  %s\n", clockOf(some.Requests[i].At), text)
			}
			if out.Len() == 0 {
				out.WriteString("no requests yet\n")
			}
			_, err = cmd.OutOrStdout().Write(out.Bytes())
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().IntVar(&limit, "limit", 20, "how many, at most 1000")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the relay answers, as JSON")
	return cmd
}
