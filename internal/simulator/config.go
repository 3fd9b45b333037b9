package simulator

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Config describes a provider. The zero Config is usable: the organizations of
// [DefaultConfig], full buckets, answers without any delay. Nothing of it can be
// changed later except the faults, see [Simulator.SetFaults].
type Config struct {
	// Organizations own the keys, the buckets and the prompt caches; empty means
	// those of DefaultConfig.
	Organizations []Organization `yaml:"organizations,omitempty"`
	// Models are the ids served, in the order GET /v1/models lists them; an id with
	// a date answers to its name without it, too. Empty means any id that begins
	// with claude-, and a list of known models.
	Models []string `yaml:"models,omitempty"`
	// StartLevel is the share of every bucket that is there at the start, above 0
	// and at most 1; 0 means 1.
	StartLevel float64 `yaml:"start_level,omitempty"`
	// Output says how output counts towards OTPM; empty means produced.
	Output OutputMode `yaml:"output,omitempty"`
	// Estimate is what a request's uncached input is first taken for, as a factor of
	// its true size; the difference is settled when its answer begins. 0 means 1.
	Estimate float64 `yaml:"estimate,omitempty"`
	// Speed paces answers; zero means at once.
	Speed Speed `yaml:"speed,omitempty"`
	// Answers shapes what is said when Reply is nil.
	Answers Answers `yaml:"answers,omitempty"`
	// Faults is the script of what goes wrong; the first fault due acts.
	Faults []Fault `yaml:"faults,omitempty"`
	// MaxRecords bounds what Seen keeps, the newest; 0 means 1,000.
	MaxRecords int `yaml:"max_records,omitempty"`
	// KeepBodies makes Seen keep request bodies.
	KeepBodies bool `yaml:"keep_bodies,omitempty"`
	// Reply, when set, makes every answer of POST /v1/messages. It is called from
	// many goroutines at once.
	Reply func(Request) Reply `yaml:"-"`
}

// OutputMode says how output counts: the documentation says as produced, public
// copies of it disagree.
type OutputMode string

// The ways of counting output.
const (
	OutputProduced OutputMode = "produced" // as it is made; a level above zero admits
	OutputReserved OutputMode = "reserved" // max_tokens up front, the unused given back
)

// Organization has one set of buckets per model class, shared by all its keys.
type Organization struct {
	// ID is sent as anthropic-organization-id; required, unique.
	ID string `yaml:"id"`
	// Limits hold for every class that Classes does not name.
	Limits Limits `yaml:"limits,omitempty"`
	// Classes are limits of single model classes by their ClassOf name.
	Classes map[string]Limits `yaml:"classes,omitempty"`
	// CountTokensRPM limits token counting, requests a minute; 0 means no limit.
	CountTokensRPM int `yaml:"count_tokens_rpm,omitempty"`
	// Keys are the organization's API keys; at least one.
	Keys []Key `yaml:"keys"`
}

func (o Organization) limits(class string) Limits {
	if class == ClassCountTokens {
		return Limits{RPM: o.CountTokensRPM}
	}
	if l, ok := o.Classes[class]; ok {
		return l
	}
	return o.Limits
}

// Limits of one model class, a minute; each 0 means no limit and no headers for it.
type Limits struct {
	RPM  int `yaml:"rpm,omitempty"`  // requests
	ITPM int `yaml:"itpm,omitempty"` // uncached input tokens
	OTPM int `yaml:"otpm,omitempty"` // output tokens
}

func (l Limits) of(k Kind) int {
	switch k {
	case InputTokens:
		return l.ITPM
	case OutputTokens:
		return l.OTPM
	}
	return l.RPM
}

// Key is one API key. It is a made-up string, not a secret.
type Key struct {
	// Key is what clients send; required, unique over all organizations.
	Key string `yaml:"key"`
	// Name is how records and faults call it; empty means key-N, N being its place
	// among all keys from 1. Unique.
	Name string `yaml:"name,omitempty"`
	// Workspace is sent as anthropic-workspace-id; prompt caches are apart per
	// workspace. Empty means wrkspc_ and the organization's ID.
	Workspace string `yaml:"workspace,omitempty"`
}

// Speed paces an answer, streamed or not.
type Speed struct {
	// FirstEvent is the time from the request to its first event.
	FirstEvent time.Duration `yaml:"first_event,omitempty"`
	// EventsPerSecond is the rate of deltas; 0 means without a pause.
	EventsPerSecond float64 `yaml:"events_per_second,omitempty"`
	// TokensPerEvent is the size of a delta; 0 means 4.
	TokensPerEvent int `yaml:"tokens_per_event,omitempty"`
}

// Answers are texts of log-normal length, at most max_tokens.
type Answers struct {
	// MedianTokens is the median length; 0 means 190, the median of coding agents.
	MedianTokens int `yaml:"median_tokens,omitempty"`
	// Sigma is the deviation of the logarithm; 0 means every answer is as long as
	// the median.
	Sigma float64 `yaml:"sigma,omitempty"`
	// Seed makes the sequence of lengths repeatable.
	Seed uint64 `yaml:"seed,omitempty"`
}

// DefaultConfig is a pool of three organizations of unlike limits with one key
// each, sim-key-1 to sim-key-3, answering at the pace of a real model.
func DefaultConfig() Config {
	return Config{
		Organizations: defaultOrganizations(),
		Speed:         Speed{FirstEvent: 500 * time.Millisecond, EventsPerSecond: 20, TokensPerEvent: 4},
		Answers:       Answers{Sigma: 0.9},
	}.withDefaults()
}

func defaultOrganizations() []Organization {
	return []Organization{
		{ID: "org-small", Limits: Limits{RPM: 50, ITPM: 30_000, OTPM: 8_000}, CountTokensRPM: 100, Keys: []Key{{Key: "sim-key-1"}}},
		{ID: "org-middle", Limits: Limits{RPM: 1_000, ITPM: 450_000, OTPM: 90_000}, CountTokensRPM: 2_000, Keys: []Key{{Key: "sim-key-2"}}},
		{ID: "org-large", Limits: Limits{RPM: 4_000, ITPM: 2_000_000, OTPM: 400_000}, CountTokensRPM: 8_000, Keys: []Key{{Key: "sim-key-3"}}},
	}
}

func (c Config) withDefaults() Config {
	if len(c.Organizations) == 0 {
		c.Organizations = defaultOrganizations()
	}
	c.StartLevel = cmp.Or(c.StartLevel, 1)
	c.Output = cmp.Or(c.Output, OutputProduced)
	c.Estimate = cmp.Or(c.Estimate, 1)
	c.Speed.TokensPerEvent = cmp.Or(c.Speed.TokensPerEvent, 4)
	c.Answers.MedianTokens = cmp.Or(c.Answers.MedianTokens, 190)
	c.MaxRecords = cmp.Or(c.MaxRecords, 1000)
	return c
}

// credentials are all keys in order, names and workspaces filled in.
func (c Config) credentials() []credential {
	var all []credential
	for _, o := range c.Organizations {
		for _, k := range o.Keys {
			n := strconv.Itoa(len(all) + 1)
			all = append(all, credential{
				key:       k.Key,
				name:      cmp.Or(k.Name, "key-"+n),
				org:       o.ID,
				workspace: cmp.Or(k.Workspace, "wrkspc_"+o.ID),
				position:  n,
			})
		}
	}
	return all
}

// Validate reports every mistake at once, each with its place; keys are never
// quoted. Zero values that stand for a default pass.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	var ids, keys []string
	for i, o := range c.Organizations {
		at := fmt.Sprintf("organizations[%d]", i)
		if o.ID == "" || slices.Contains(ids, o.ID) {
			bad("%s.id: give every organization an id of its own", at)
		}
		if len(o.Keys) == 0 {
			bad("%s.keys: at least one key is needed", at)
		}
		ids = append(ids, o.ID)
		for j, k := range o.Keys {
			if k.Key == "" || slices.Contains(keys, k.Key) {
				bad("%s.keys[%d].key: must be set, and used only once", at, j)
			}
			keys = append(keys, k.Key)
		}
		errs = append(errs, o.validateLimits(at)...)
	}
	var names []string
	for _, k := range c.credentials() {
		if slices.Contains(names, k.name) {
			bad("organizations: two keys are named %q; give each a name of its own", k.name)
		}
		names = append(names, k.name)
	}
	if c.StartLevel < 0 || c.StartLevel > 1 {
		bad("start_level: got %v, want above 0 and at most 1", c.StartLevel)
	}
	if c.Output != OutputProduced && c.Output != OutputReserved {
		bad("output: got %q, want %q or %q", c.Output, OutputProduced, OutputReserved)
	}
	if c.Estimate < 0 || c.Speed.EventsPerSecond < 0 || c.Speed.FirstEvent < 0 || c.Speed.TokensPerEvent < 0 ||
		c.Answers.MedianTokens < 0 || c.Answers.Sigma < 0 || c.MaxRecords < 0 {
		bad("estimate, speed, answers and max_records must not be negative")
	}
	return errors.Join(append(errs, validateFaults(c.Faults, c))...)
}

func (o Organization) validateLimits(at string) []error {
	var errs []error
	check := func(where string, n int) {
		if n < 0 || n > maxLimit {
			errs = append(errs, fmt.Errorf("%s.%s: got %d, want 0 (no limit) to %d", at, where, n, maxLimit))
		}
	}
	all := map[string]Limits{"limits": o.Limits}
	for class, l := range o.Classes {
		all["classes."+class] = l
	}
	for where, l := range all {
		check(where+".rpm", l.RPM)
		check(where+".itpm", l.ITPM)
		check(where+".otpm", l.OTPM)
	}
	check("count_tokens_rpm", o.CountTokensRPM)
	return errs
}
