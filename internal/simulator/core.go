package simulator

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
)

// ErrUnknownOrganization is answered to a Demand that names none of the Config.
var ErrUnknownOrganization = errors.New("simulator: no such organization")

// Core is the provider without HTTP: the buckets and prompt caches of all its
// organizations. Every step takes the time, so a bench can drive it in virtual
// time; times must not run back by much, or refill waits for them. Safe for
// concurrent use.
type Core struct {
	start      time.Time
	startLevel float64
	estimate   float64
	reserve    bool
	order      []*organization
	orgs       map[string]*organization

	mu sync.Mutex // guards accounts and caches of every organization
}

type organization struct {
	Organization
	accounts map[string]*account
	cache    promptCache
}

// account is what one organization has for one model class.
type account struct {
	limits                  Limits
	fast                    bool
	requests, input, output bucket
	totals                  Totals
}

// NewCore makes the provider that cfg describes; its buckets start at start.
// Faults, keys and speed belong to HTTP and are not looked at.
func NewCore(cfg Config, start time.Time) (*Core, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Core{
		start:      start,
		startLevel: cfg.StartLevel,
		estimate:   cfg.Estimate,
		reserve:    cfg.Output == OutputReserved,
		orgs:       make(map[string]*organization),
	}
	for _, o := range cfg.Organizations {
		org := &organization{Organization: o, accounts: make(map[string]*account)}
		c.order = append(c.order, org)
		c.orgs[o.ID] = org
	}
	return c, nil
}

// Demand is one request as the provider weighs it.
type Demand struct {
	Org, Workspace, Model string
	Blocks                []Block // the whole prompt in order
	MaxTokens             int
	Fast                  bool // in fast mode
}

// Refused is the error of a request over a limit: a genuine 429.
type Refused struct {
	Kind       Kind          // the limit this request waits for longest
	Limit      int           // that limit, a minute
	RetryAfter time.Duration // whole seconds this request needs, rounded up, at least 1
	Levels     Levels
}

func (r *Refused) Error() string {
	return fmt.Sprintf("this request would exceed the rate limit of %d %s per minute of your organization; retry in %d s",
		r.Limit, r.Kind, int(r.RetryAfter/time.Second))
}

// Admit takes one request in, or answers *[Refused] or [ErrUnknownOrganization].
//
// A request needs one request, its uncached input, and for output a level above
// zero; a bucket in debt admits nothing. A prompt larger than the whole input
// capacity is admitted only by a full bucket, which it leaves in debt: refusing it
// for ever would make retry-after a lie. With Output reserved it needs max_tokens,
// at most the capacity, which are given back at the end as far as unused.
func (c *Core) Admit(now time.Time, d Demand) (*Call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	org := c.orgs[d.Org]
	if org == nil {
		return nil, ErrUnknownOrganization
	}
	class := ClassOf(d.Model)
	if d.Fast {
		class = FastClass(class)
	}
	a := c.account(org, class)
	p := org.cache.look(now, d)
	held := int(math.Ceil(c.estimate * float64(p.usage.Uncached())))
	reserved := 0
	if c.reserve {
		reserved = min(d.MaxTokens, a.limits.OTPM)
	}
	a.totals.Offered++
	if err := a.refuse(now, held, reserved); err != nil {
		return nil, err
	}
	a.requests.take(now, 1)
	a.input.take(now, held)
	a.output.take(now, reserved)
	a.totals.admit(p.usage)
	org.cache.renew(now, p.reads)
	return &Call{core: c, org: org, account: a, start: now, plan: p, held: held, reserved: reserved, levels: a.levels(now)}, nil
}

// Count takes in one token-counting request: it costs one request of the class
// [ClassCountTokens] and nothing else.
func (c *Core) Count(now time.Time, org string) (Levels, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.orgs[org]
	if o == nil {
		return Levels{}, ErrUnknownOrganization
	}
	a := c.account(o, ClassCountTokens)
	a.totals.Offered++
	if err := a.refuse(now, 0, 0); err != nil {
		return Levels{}, err
	}
	a.totals.Admitted++
	a.requests.take(now, 1)
	return a.levels(now), nil
}

// account finds or makes the buckets of a class, which have refilled since the start.
func (c *Core) account(org *organization, class string) *account {
	if a := org.accounts[class]; a != nil {
		return a
	}
	l := org.limits(class)
	a := &account{
		limits:   l,
		fast:     strings.HasSuffix(class, FastClass("")),
		requests: newBucket(l.RPM, c.startLevel, c.start),
		input:    newBucket(l.ITPM, c.startLevel, c.start),
		output:   newBucket(l.OTPM, c.startLevel, c.start),
	}
	org.accounts[class] = a
	return a
}

func (a *account) levels(now time.Time) Levels {
	return Levels{Requests: a.requests.read(now), Input: a.input.read(now), Output: a.output.read(now), Fast: a.fast}
}

// refuse answers nil when all three buckets can serve now.
func (a *account) refuse(now time.Time, input, output int) error {
	kind, limit := Requests, a.limits.RPM
	longest := a.requests.wait(now, 1)
	if d := a.input.wait(now, input); d > longest {
		kind, limit, longest = InputTokens, a.limits.ITPM, d
	}
	if d := a.output.wait(now, output); d > longest {
		kind, limit, longest = OutputTokens, a.limits.OTPM, d
	}
	if longest == 0 {
		return nil
	}
	a.totals.Refused++
	return &Refused{Kind: kind, Limit: limit, RetryAfter: ceilSeconds(longest), Levels: a.levels(now)}
}
