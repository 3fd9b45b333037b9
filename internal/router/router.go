// Package router decides which upstreams a request may go to and in which order.
// It sends nothing; the pool of each upstream chooses the key.
package router

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/price"
)

// Target is a place where a request may be served: an upstream, and the model
// that it is asked for there.
type Target struct {
	Upstream *Upstream
	Model    string // "" = as the client asked
	Weight   int    // share under weighted strategies, at least 1
}

// Query is what the router must know of a request.
type Query struct {
	Model  string // as asked
	Class  string // of Model; for calls that are about no model's limits, theirs
	Client string
	// Conversation goes back to the upstream that served it last; 0: it need not.
	Conversation uint64
	// Demand is the request's, for strategies that look at its size.
	Demand keypool.Demand
	Now    time.Time
}

// Candidate is a target with what the request is there.
type Candidate struct {
	Target
	Class string // of the model at the target
	Lane  *Lane  // the upstream's state for that class
	home  bool   // the conversation's
	lacks bool   // the upstream does not know the model
	at    int    // place among the configured targets
}

// Plan is the way of one request.
type Plan struct {
	// Candidates are the targets to try, in order: those that the breakers let be.
	// None of them, and no Resort, is a rule whose targets all drain.
	Candidates []Candidate
	// Resort is the least bad of the others, for a request that nothing else can
	// serve; nil if there are no others.
	Resort *Candidate
	// Skipped are the targets of the rule that are no candidates, and why; nil if all
	// of them are.
	Skipped []Skip
	// Rule is the rule that matched, as its place in the configuration: models[2], or
	// default.
	Rule string
	// Strategy is the name of the rule's strategy.
	Strategy string
	// Home: the first candidate is the conversation's home, and for that the first.
	Home bool
}

// Reason is why a target is no candidate.
type Reason string

// The reasons, of which the first that holds is told.
const (
	Draining      Reason = "draining"       // an operator lets it have no new requests
	LacksModel    Reason = "lacks_model"    // it said that it does not know the model
	BreakerOpen   Reason = "breaker_open"   // it failed too often, or one request tries whether it is back
	BreakerForced Reason = "breaker_forced" // an operator holds its breaker open
)

// Skip is a target that is no candidate.
type Skip struct {
	Provider string
	Model    string // asked for there
	Class    string // of Model, or that of the call
	Why      Reason
	Until    time.Time // when Why ends by itself; zero: not by itself
}

// UnreachableError says that no rule leads a model anywhere.
type UnreachableError struct {
	Model     string
	Reachable []string // what rules name for this client: names, patterns and classes, sorted
}

func (e *UnreachableError) Error() string {
	if len(e.Reachable) == 0 {
		return "model: no rule of the relay is for this client; ask its operator for one"
	}
	return "model: no rule of the relay leads this model anywhere; reachable are " + strings.Join(e.Reachable, ", ")
}

// Router plans the way of a request. It is safe for concurrent use.
type Router struct {
	upstreams []*Upstream
	rules     []*rule // the last may be for all
	aliases   map[string]string
	classOf   func(model string) string
	homes     *homes
	choice    bool // a rule has more than one target: there is something to come back to
	// RetryUnknown allows one move after a connection was lost.
	RetryUnknown bool
	// Budget is what repeats of failed requests are taken from.
	Budget *health.Budget
}

// rule is a Rule made ready; without match and class it is for all models. Its
// targets and patterns never change.
type rule struct {
	name     string // as Plan's Rule
	match    []keypool.Pattern
	class    string
	names    []string // match, as written
	clients  []string
	targets  []Target
	orders   string // the strategy's name
	strategy strategy
}

// New returns a router over upstreams in configured order. classOf tells the model
// class of a model that a target names; prices are for strategy cost, nil: the
// built-in ones. Errors: what Config's fields must not be.
func New(cfg Config, upstreams []*Upstream, classOf func(string) string, prices *price.Table) (*Router, error) {
	r := &Router{
		upstreams: upstreams, aliases: map[string]string{}, classOf: classOf, homes: newHomes(),
		RetryUnknown: cfg.RetryUnknown == nil || *cfg.RetryUnknown,
		Budget:       health.NewBudget(),
	}
	for name := range cfg.Aliases {
		model, cycle := ResolveAlias(cfg.Aliases, name)
		if cycle != nil {
			return nil, fmt.Errorf("router: aliases: a cycle: %s", strings.Join(cycle, " → "))
		}
		r.aliases[name] = model
	}
	rules := slices.Clone(cfg.Rules)
	if len(cfg.Default) > 0 || len(rules) == 0 {
		rules = append(rules, Rule{Targets: cfg.Default, Weights: cfg.Weights})
	}
	for i := range rules {
		where, fallback := fmt.Sprintf("models[%d]", i), i == len(cfg.Rules)
		if fallback {
			where = "default"
		}
		one, err := r.rule(&rules[i], fallback, cfg.Strategy, prices)
		if err != nil {
			return nil, fmt.Errorf("router: %s: %w", where, err)
		}
		one.name = where
		r.rules = append(r.rules, one)
		r.choice = r.choice || len(one.targets) > 1
	}
	return r, nil
}

// rule makes a rule ready. The fallback is for all models, and without targets leads
// to all upstreams.
func (r *Router) rule(cfg *Rule, fallback bool, strategy string, prices *price.Table) (*rule, error) {
	name := cmp.Or(cfg.Strategy, strategy, StrategyFailover)
	build, ok := strategies[name]
	if !ok {
		return nil, fmt.Errorf("strategy %q is unknown; write one of %s", name, strings.Join(Strategies(), ", "))
	}
	one := &rule{class: cfg.Class, names: cfg.Match, clients: cfg.Clients, orders: name}
	if !fallback && one.class == "" && len(one.names) == 0 {
		return nil, errors.New("for no model")
	}
	for _, m := range cfg.Match {
		if err := keypool.CheckModelPattern(m); err != nil {
			return nil, fmt.Errorf("match: %w", err)
		}
		one.match = append(one.match, keypool.NewPattern(m))
	}
	for i, text := range cfg.Targets {
		if slices.Contains(cfg.Targets[:i], text) {
			return nil, fmt.Errorf("target %q is there twice", text)
		}
		t, err := r.target(text)
		if err != nil {
			return nil, fmt.Errorf("target %q: %w", text, err)
		}
		one.targets = append(one.targets, t)
	}
	if len(cfg.Targets) == 0 {
		if !fallback {
			return nil, errors.New("no targets")
		}
		for _, u := range r.upstreams {
			one.targets = append(one.targets, Target{Upstream: u})
		}
	}
	if len(cfg.Weights) > 0 && len(cfg.Weights) != len(one.targets) {
		return nil, fmt.Errorf("%d weights for %d targets", len(cfg.Weights), len(one.targets))
	}
	for i := range one.targets {
		one.targets[i].Weight = 1
		if len(cfg.Weights) > 0 {
			one.targets[i].Weight = cfg.Weights[i]
		}
		if w := one.targets[i].Weight; w < 1 || w > MaxWeight {
			return nil, fmt.Errorf("weight %d; write 1 to %d", w, MaxWeight)
		}
	}
	one.strategy = build(len(one.targets), prices)
	return one, nil
}

func (r *Router) target(text string) (Target, error) {
	name, model, err := SplitTarget(text)
	if err != nil {
		return Target{}, err
	}
	for _, u := range r.upstreams {
		if u.Provider.Name() == name {
			return Target{Upstream: u, Model: model}, nil
		}
	}
	return Target{}, fmt.Errorf("there is no provider %q", name)
}

// Upstreams returns all upstreams in configured order; the slice must not be changed.
func (r *Router) Upstreams() []*Upstream { return r.upstreams }

// Origins reports whether models of more than one maker are to be had here: only
// then can a conversation move between makers.
func (r *Router) Origins() bool {
	for _, u := range r.upstreams {
		if u.Origin != r.upstreams[0].Origin {
			return true
		}
	}
	return false
}

// Alias is the model that a name stands for, the name itself if it is no alias.
func (r *Router) Alias(name string) string {
	if model, ok := r.aliases[name]; ok {
		return model
	}
	return name
}

// Inherit takes over what an earlier router knows: the homes of conversations and the
// retry budget. It is called before the first Plan. A conversation finds its home at
// the Upstream that was made by Renew of the one it was settled at; where there is none,
// or no rule leads there any more, it is as if it had no home. Requests that are under
// way at the earlier router still settle their conversations for both.
func (r *Router) Inherit(old *Router) {
	r.homes, r.Budget = old.homes, old.Budget
}

// Plan returns the targets to try for a request, in order. One whose upstream
// lately said that it does not know the model is left out, unless all of them did:
// then asking again is better than refusing. Where a rule has one target that does not
// drain there is nothing to choose, and neither is looked at. Error: *UnreachableError.
func (r *Router) Plan(q *Query) (Plan, error) { return r.plan(q, false) }

// Preview is what Plan would return now. It changes nothing: no turn is taken, no home
// kept alive, no class of models remembered. Where a strategy draws, it is one draw of
// many. A candidate's Lane may be one that nobody else has.
func (r *Router) Preview(q *Query) (Plan, error) { return r.plan(q, true) }

func (r *Router) plan(q *Query, looking bool) (Plan, error) {
	rule, model, class := r.resolve(q.Model, q.Class, q.Client)
	if rule == nil {
		return Plan{}, &UnreachableError{Model: q.Model, Reachable: r.reachable(q.Client)}
	}
	plan := Plan{Rule: rule.name, Strategy: rule.orders}
	plan.Candidates = make([]Candidate, 0, len(rule.targets))
	for i := range rule.targets {
		c := r.candidate(rule, i, q, model, class)
		state := c.Upstream.live().memory
		if state.draining.Load() {
			plan.skip(q, &c, Draining, time.Time{})
			continue
		}
		if looking {
			c.Lane = state.look(c.Class)
		} else {
			c.Lane = state.lane(c.Class)
		}
		plan.Candidates = append(plan.Candidates, c)
	}
	if len(plan.Candidates) > 1 {
		r.order(rule, q, &plan, looking)
	}
	return plan, nil
}

func (p *Plan) skip(q *Query, c *Candidate, why Reason, until time.Time) {
	p.Skipped = append(p.Skipped, Skip{c.Upstream.Provider.Name(), c.Asks(q.Model), c.Class, why, until})
}

// resolve follows aliases to the model and finds the rule, nil if there is none. kind
// is a Query's Class. Rules look at the class of the model, also for a call that has
// another, such as one that counts tokens.
func (r *Router) resolve(asked, kind, client string) (rule *rule, model, class string) {
	model, class = r.Alias(asked), kind
	if model != asked || !ofModel(kind) {
		class = r.classOf(model)
	}
	rule = r.find(model, asked, class, client)
	if !ofModel(kind) {
		class = kind
	}
	return rule, model, class
}

// ofModel reports whether a class is a model's, and not that of calls of one kind.
func ofModel(class string) bool {
	return class != keypool.ClassCountTokens && class != keypool.ClassModels
}

func (r *Router) candidate(rule *rule, i int, q *Query, model, class string) Candidate {
	c := Candidate{Target: rule.targets[i], Class: class, at: i}
	if c.Model == "" && model != q.Model {
		c.Model = model
	} else if c.Model != "" && ofModel(class) {
		c.Class = r.classOf(c.Model)
	}
	return c
}

// Home reports whether the conversation was served there last.
func (c *Candidate) Home() bool { return c.home }

// Asks is the model that a candidate is asked for.
func (c *Candidate) Asks(asked string) string { return cmp.Or(c.Model, asked) }

// order leaves out what cannot serve and puts the rest in the strategy's order, the
// conversation's home first.
func (r *Router) order(rule *rule, q *Query, plan *Plan, looking bool) {
	plan.leaveLacking(q)
	plan.leaveOpen(q)
	if len(plan.Candidates) == 0 {
		return
	}
	home := r.homes.get(q.Conversation, q.Now, looking)
	if i := slices.IndexFunc(plan.Candidates, func(c Candidate) bool {
		return c.Upstream.live().memory == home.at && (home.model == "" || c.Asks(q.Model) == home.model)
	}); i >= 0 {
		rotate(plan.Candidates[:i+1], i)
		plan.Candidates[0].home, plan.Home = true, true
		return
	}
	rule.strategy.order(q, plan.Candidates, looking)
}

// leaveLacking leaves out whom the model is not known to, unless that is all.
func (p *Plan) leaveLacking(q *Query) {
	lacking := 0
	for i := range p.Candidates {
		if c := &p.Candidates[i]; c.Upstream.Lacks(c.Asks(q.Model), q.Now) {
			c.lacks = true
			lacking++
		}
	}
	if lacking == 0 || lacking == len(p.Candidates) {
		return
	}
	p.Candidates = slices.DeleteFunc(p.Candidates, func(c Candidate) bool {
		if c.lacks {
			p.skip(q, &c, LacksModel, c.Upstream.live().lacks(c.Asks(q.Model)))
		}
		return c.lacks
	})
}

// leaveOpen leaves out whom the breakers keep requests from. The first whose breaker
// may let one in soonest is the last resort.
func (p *Plan) leaveOpen(q *Query) {
	var least time.Duration
	p.Candidates = slices.DeleteFunc(p.Candidates, func(c Candidate) bool {
		s := c.Lane.Status()
		wait := keepsAway(&s, q.Now)
		if wait == 0 {
			return false
		}
		if p.Resort == nil || wait < least {
			resort := c
			p.Resort, least = &resort, wait
		}
		why := BreakerOpen
		if s.Forced {
			why = BreakerForced
		}
		p.skip(q, &c, why, s.Until)
		return true
	})
}

// keepsAway is how long a breaker keeps requests away; 0: it lets one try.
func keepsAway(s *health.Status, now time.Time) time.Duration {
	if s.State != health.Open && s.State != health.HalfOpen {
		return 0
	}
	return max(0, s.Until.Sub(now))
}

// Settle makes the upstream, and the model that served there ("": any), the home of a
// conversation for life from now. 0 as the conversation settles nothing.
func (r *Router) Settle(conversation uint64, u *Upstream, model string, life time.Duration, now time.Time) {
	if r.choice {
		r.homes.put(conversation, home{u.live().memory, model, now.Add(life)})
	}
}

// find returns the first rule for the request, nil if there is none. A rule may
// name the model or its alias.
func (r *Router) find(model, asked, class, client string) *rule {
	for _, rule := range r.rules {
		if rule.isFor(client) && (rule.fits(model, class) || model != asked && rule.fits(asked, class)) {
			return rule
		}
	}
	return nil
}

func (r *rule) isFor(client string) bool {
	return len(r.clients) == 0 || slices.Contains(r.clients, client)
}

func (r *rule) fits(model, class string) bool {
	if r.class != "" && r.class != class {
		return false
	}
	if len(r.match) == 0 {
		return true
	}
	return slices.ContainsFunc(r.match, func(p keypool.Pattern) bool { return p.Matches(model) })
}

// Destination is where a request for a model may go.
type Destination struct {
	Upstream *Upstream
	Model    string // asked for there
	Named    bool   // by the rule, which may know better than the upstream's list
}

// Targets are the destinations of a model, none where no rule is for it. Health and
// what upstreams lack is not looked at.
func (r *Router) Targets(model, class, client string) []Destination {
	rule, resolved, _ := r.resolve(model, class, client)
	if rule == nil {
		return nil
	}
	list := make([]Destination, len(rule.targets))
	for i, t := range rule.targets {
		list[i] = Destination{Upstream: t.Upstream, Model: cmp.Or(t.Model, resolved), Named: t.Model != ""}
	}
	return list
}

// Names are the models that rules name in full for a client, and the aliases that
// lead it somewhere, sorted.
func (r *Router) Names(client string) []string {
	names := slices.Collect(maps.Keys(r.aliases))
	for _, rule := range r.rules {
		if rule.isFor(client) {
			names = append(names, rule.names...)
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		if strings.Contains(name, "*") {
			return true
		}
		rule, _, _ := r.resolve(name, r.classOf(name), client)
		return rule == nil
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// reachable is what the rules name for a client.
func (r *Router) reachable(client string) []string {
	names := r.Names(client)
	for _, rule := range r.rules {
		if !rule.isFor(client) {
			continue
		}
		for _, name := range rule.names {
			if strings.Contains(name, "*") {
				names = append(names, name)
			}
		}
		if len(rule.names) == 0 {
			names = append(names, "the models of class "+rule.class)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
