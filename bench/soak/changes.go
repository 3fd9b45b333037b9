package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"cc-relay/bench/rig"
)

// changer rewrites the relay's configuration and looks whether that has its effect.
type changer struct {
	settings settings
	relay    *rig.Relay
	log      *relayLog
	http     *http.Client
	ask      func(context.Context, question) answer // counted in the ledger, not in the load
	provider *provider                              // that of main's keys
	within   time.Duration                          // in which a change must take effect
	late     time.Duration                          // for which requests from before a change may still come

	keys    int // added so far
	written time.Time
	refused int // reloads before the newest change

	done, broken int      // changes made, those of them that the relay must refuse
	missed       problems // changes without effect
	slowest      time.Duration
}

// change is one thing that an operator does to the file.
type change struct {
	name string
	edit func(*changer)               // nil: none
	text func(string) string          // breaks what is written; nil: nothing does
	took func(*changer, *asker) error // whether it is in force; nil: it cannot be asked for
}

// asker asks questions of a check.
type asker struct {
	ctx context.Context
	*changer
}

// changes are made in this order, over and over. One round ends where it began.
var changes = []change{
	{name: "add a key", edit: (*changer).addKey, took: keyComes},
	{name: "add a client", edit: func(c *changer) { c.settings.tokens = append(c.settings.tokens, guestToken) }, took: guestIs(http.StatusOK)},
	{name: "change limits", edit: func(c *changer) { c.settings.limit = 3000 - c.settings.limit }, took: limitIsShown},
	{name: "add an alias", edit: func(c *changer) { c.settings.alias = true }, took: modelIs(aliasName)},
	{name: "write what is no YAML", text: func(s string) string { return s + "\nclients: [\n" }, took: refusedOnce},
	{name: "rotate a key", edit: func(c *changer) { c.dropKey(); c.addKey() }, took: keyComes},
	{name: "add a rule", edit: func(c *changer) { c.settings.rule = true }, took: modelIs(ruleName)},
	{name: "log more", edit: func(c *changer) { c.settings.level = "debug" }, took: probesAreLogged},
	{name: "add a provider", edit: func(c *changer) { c.settings.extra = true }, took: extraIs(extraName)},
	{name: "remove a client", edit: func(c *changer) { c.settings.tokens = slices.DeleteFunc(c.settings.tokens, isGuest) }, took: guestIs(http.StatusUnauthorized)},
	{name: "remove an alias", edit: func(c *changer) { c.settings.alias = false }, took: modelIsGone(aliasName)},
	{name: "remove a key", edit: (*changer).dropKey}, // whether it still comes is seen at the provider
	{name: "log less", edit: func(c *changer) { c.settings.level = "info" }, took: probesAreNotLogged},
	{name: "write an unknown field", text: func(s string) string { return strings.Replace(s, "aliases:", "alias:", 1) + "unheard_of: 1\n" }, took: refusedOnce},
	{name: "remove a rule", edit: func(c *changer) { c.settings.rule = false }, took: modelIsGone(ruleName)},
	{name: "remove a provider", edit: func(c *changer) { c.settings.extra = false }, took: extraIs("")},
}

// guestToken is that of a client that comes and goes.
const guestToken = "token-of-a-guest"

func isGuest(token string) bool { return token == guestToken }

// ways of writing the file, in turn; one more or less than changes, so that each change
// is made in each way.
var ways = []struct {
	write  func(file, text string) error
	hangup bool
}{{replace, false}, {scribble, false}, {replace, true}, {replace, false}, {scribble, true}}

func (c *changer) addKey() {
	key := mainKey(c.keys)
	c.keys++
	c.provider.admit(key)
	c.settings.keys = append(c.settings.keys, key)
}

func (c *changer) dropKey() { c.settings.keys = c.settings.keys[:len(c.settings.keys)-1] }

// run makes n changes, one each interval, until ctx ends.
func (c *changer) run(ctx context.Context, n int, interval time.Duration) error {
	began := time.Now()
	for i := range n {
		select {
		case <-time.After(time.Until(began.Add(time.Duration(i) * interval))):
		case <-ctx.Done():
			return nil
		}
		if err := c.make(ctx, changes[i%len(changes)], i); err != nil {
			return err
		}
	}
	return nil
}

// make makes a change; its error is that the file could not be written.
func (c *changer) make(ctx context.Context, what change, i int) error {
	before := c.settings.keys
	if what.edit != nil {
		c.settings.keys = slices.Clone(before)
		what.edit(c)
	}
	text := c.settings.yaml()
	if what.text != nil {
		text = what.text(text)
		c.broken++
	}
	_, c.refused = c.log.reloads()
	way := ways[i%len(ways)]
	c.written = time.Now()
	if err := way.write(c.settings.file(), text); err != nil {
		return err
	}
	if way.hangup {
		if err := c.relay.Hangup(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	for _, key := range before {
		if !slices.Contains(c.settings.keys, key) {
			c.provider.retire(key, time.Now().Add(c.late))
		}
	}
	c.done++
	c.await(ctx, what)
	return nil
}

// await asks until the change is in force.
func (c *changer) await(ctx context.Context, what change) {
	if what.took == nil {
		return
	}
	written := time.Now()
	for {
		began := time.Now()
		err := what.took(c, &asker{ctx, c})
		switch {
		case err == nil:
			c.slowest = max(c.slowest, began.Sub(written))
			return
		case ctx.Err() != nil:
			return
		case began.Sub(written) > c.within:
			c.missed.add(fmt.Sprintf("change %d, %s: not in force after %v: %v", c.done, what.name, c.within, err))
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ask ends its question even when the load is over: one that is broken off would be
// partial in the relay's account.
func (a *asker) ask(q question) answer {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), time.Minute)
	defer cancel()
	return a.changer.ask(ctx, q)
}

func keyComes(c *changer, a *asker) error {
	a.ask(question{model: quickModel, deltas: 1})
	return c.provider.cameSince(c.settings.keys[len(c.settings.keys)-1], c.written)
}

func guestIs(status int) func(*changer, *asker) error {
	return func(_ *changer, a *asker) error {
		return hasStatus(a.ask(question{model: sideModel, deltas: 1, token: guestToken}), status)
	}
}

func modelIs(model string) func(*changer, *asker) error {
	return func(_ *changer, a *asker) error {
		return hasStatus(a.ask(question{model: model, deltas: 1}), http.StatusOK)
	}
}

// modelIsGone: then the default providers are asked for it, who do not know it, if
// their network lets them say so.
func modelIsGone(model string) func(*changer, *asker) error {
	return func(_ *changer, a *asker) error {
		got := a.ask(question{model: model, deltas: 1})
		if got.status >= http.StatusInternalServerError {
			return nil
		}
		return hasStatus(got, http.StatusNotFound)
	}
}

func hasStatus(got answer, want int) error {
	if got.status != want {
		return fmt.Errorf("status %d, want %d: %s", got.status, want, got.why)
	}
	return nil
}

func limitIsShown(c *changer, a *asker) error {
	got := a.ask(question{model: sideModel, deltas: 1})
	if shown := got.header.Get("Anthropic-Ratelimit-Requests-Limit"); shown != strconv.Itoa(c.settings.limit) {
		return fmt.Errorf("answers speak of %q requests a minute, want %d", shown, c.settings.limit)
	}
	return nil
}

// extraIs: without it, its model goes to the default providers.
func extraIs(name string) func(*changer, *asker) error {
	return func(_ *changer, a *asker) error {
		by := a.ask(question{model: extraRule, deltas: 1}).header.Get("X-Cc-Relay-Provider")
		if by == "" || (by == extraName) != (name == extraName) {
			return fmt.Errorf("provider %q serves %s", by, extraRule)
		}
		return nil
	}
}

func refusedOnce(c *changer, _ *asker) error {
	if _, now := c.log.reloads(); now == c.refused {
		return errors.New("the relay's log does not say that it was refused")
	}
	return nil
}

// logGather is how long records may wait for each other before they are written.
const logGather = 500 * time.Millisecond

func probesAreLogged(c *changer, a *asker) error {
	before := c.log.probesSeen()
	a.probe()
	for end := time.Now().Add(logGather); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c.log.probesSeen() > before {
			return nil
		}
	}
	return errors.New("requests of level debug are not in the log")
}

func probesAreNotLogged(c *changer, a *asker) error {
	if probesAreLogged(c, a) == nil {
		return errors.New("requests of level debug are in the log")
	}
	return nil
}

func (a *asker) probe() {
	req, err := http.NewRequestWithContext(a.ctx, http.MethodGet, a.relay.URL+"/livez", nil)
	if err != nil {
		return
	}
	if resp, err := a.http.Do(req); err == nil {
		_ = resp.Body.Close()
	}
}
