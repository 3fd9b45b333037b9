package keypool

import (
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"cc-relay/internal/ratelimit"
	"cc-relay/internal/secret"
)

// Priorities of a key. Keys of a higher priority are used while any of them can
// serve; an omitted priority is PriorityNormal.
const (
	PriorityLow    = 0
	PriorityNormal = 1
	PriorityHigh   = 2
)

// DefaultMaxWait is the wait of a pool that is not told another, and LongestMaxWait
// the longest it may be told: clients give up on what is silent for longer.
const (
	DefaultMaxWait = 3 * time.Second
	LongestMaxWait = time.Minute
)

// DefaultMaxWaiting is the length of the queue of a pool that is not told another.
const DefaultMaxWaiting = 1_000

// Values of PoolConfig.Affinity.
const (
	AffinityOn  = "on"
	AffinityOff = "off"
)

// PoolConfig describes the keys of one provider and how to choose among them.
type PoolConfig struct {
	// Strategy names the selector: least_loaded, round_robin, random or weighted.
	// Empty means least_loaded.
	Strategy string `yaml:"strategy,omitempty"`
	// MaxWait is how long a request may wait for a key to refill, in all, before
	// it is refused: 0 to 60 s. nil means DefaultMaxWait, and 0 never to wait.
	MaxWait *time.Duration `yaml:"max_wait,omitempty"`
	// MaxWaiting is how many requests may wait for a key at once, all others being
	// refused at once: 1 or more. nil means DefaultMaxWaiting.
	MaxWaiting *int `yaml:"max_waiting,omitempty"`
	// Affinity is on or off: whether a conversation goes back to the key whose
	// prompt cache holds its beginning. Empty means on.
	Affinity string `yaml:"affinity,omitempty"`
	// Keys are the provider's credentials, in the order written. An empty list is
	// a pool of one key that needs no credential and has no limits (local servers).
	Keys []KeyConfig `yaml:"-"`
	// Logger receives choices (debug) and exhaustion, cool-downs and dead keys
	// (warn). The zero Logger is silent.
	Logger zerolog.Logger `yaml:"-"`
	// OnDead, where set, is told of each key that is taken out, once per outage. It is
	// called without a lock and must not block. As the Logger, the first one stays.
	OnDead func(keyID string, why Reason) `yaml:"-" json:"-"`
}

// KeyConfig is one credential with what its operator knows of its limits.
type KeyConfig struct {
	// Key is the provider's API key. The same key twice is an error.
	Key secret.Value `yaml:"key"`
	// RPMLimit, ITPMLimit and OTPMLimit are requests, uncached input tokens and
	// output tokens a minute, for every model class until response headers say
	// otherwise. 0 means unknown: learned from the first answer.
	RPMLimit  int `yaml:"rpm_limit,omitempty"`
	ITPMLimit int `yaml:"itpm_limit,omitempty"`
	OTPMLimit int `yaml:"otpm_limit,omitempty"`
	// Organization is the operator's name for whom the provider counts limits for.
	// Keys that share it share one set of limits from the start; those that say a
	// limit must say the same.
	// Empty: learned from the answers.
	Organization string `yaml:"organization,omitempty"`
	// Priority is PriorityLow, PriorityNormal or PriorityHigh; nil means PriorityNormal.
	Priority *int `yaml:"priority,omitempty"`
	// Weight is the key's share under the weighted strategy, 1 to 1000; nil means 1.
	Weight *int `yaml:"weight,omitempty"`
}

// wait is MaxWait, or its default. Error: out of range.
func (c PoolConfig) wait() (time.Duration, error) {
	if c.MaxWait == nil {
		return DefaultMaxWait, nil
	}
	if *c.MaxWait < 0 || *c.MaxWait > LongestMaxWait {
		return 0, fmt.Errorf("max_wait %s is not within 0 and %s", *c.MaxWait, LongestMaxWait)
	}
	return *c.MaxWait, nil
}

// waiting is MaxWaiting, or its default. Error: out of range.
func (c PoolConfig) waiting() (int, error) {
	if c.MaxWaiting == nil {
		return DefaultMaxWaiting, nil
	}
	if *c.MaxWaiting < 1 {
		return 0, fmt.Errorf("max_waiting %d is not above 0", *c.MaxWaiting)
	}
	return *c.MaxWaiting, nil
}

// affine is whether Affinity is on. Error: neither on nor off.
func (c PoolConfig) affine() (bool, error) {
	switch c.Affinity {
	case "", AffinityOn:
		return true, nil
	case AffinityOff:
		return false, nil
	}
	return false, fmt.Errorf("affinity %q is neither %s nor %s", c.Affinity, AffinityOn, AffinityOff)
}

// ID is the key's public name: the first 12 hexadecimal digits of its SHA-256.
func (k KeyConfig) ID() string { return k.Key.Fingerprint() }

// State says whether a key can serve a class now.
type State string

// States of a key for one model class.
const (
	StateAvailable State = "available" // can serve one request now
	StateExhausted State = "exhausted" // a bucket is empty and refilling
	StateCooling   State = "cooling"   // told to wait by the provider
	StateOff       State = "off"       // taken out by the operator, see KeyPool.Disable
	StateDead      State = "dead"      // refused as a credential, out of credit, or not granted; probed now and then
)

// Reason says why a key is dead for all classes or for one.
type Reason string

// Reasons for taking a key out, and when a live request tries it again.
const (
	ReasonUnauthorized Reason = "unauthorized" // the provider refused the credential: after 5 min, doubling to 1 h
	ReasonSpent        Reason = "spent"        // no credit, or a spend limit is reached: hourly
	ReasonForbidden    Reason = "forbidden"    // the account may not do this (one class): after 5 min, doubling to 1 h
)

// KeyMetadata is what may be known of a key without its secret, for one model
// class. Selectors read it; Keys and GetStats return copies.
type KeyMetadata struct {
	ID       string // first 12 hex digits of the key's SHA-256
	Class    string // model class; "" for the class-less methods
	Index    int    // position in the configuration, from 0
	Priority int    // 0 low, 1 normal, 2 high
	Weight   int    // share under the weighted strategy, at least 1

	Limits    ratelimit.Limits // per minute; 0 = no limit known
	Remaining ratelimit.Limits // levels now, rounded down, negative while in debt; 0 where no limit is known
	InFlight  int              // requests acquired with this key and not settled
	Reserved  ratelimit.Tokens // what they hold: input of their prompts, output that they are expected to produce yet or have reserved
	Headroom  float64          // smallest (level − demand)/limit over the buckets; of unknown limits 0.5 − 0.2 for each request its organization has in flight

	// When the provider's buckets are full again, by their last headers; zero where unknown.
	RequestsReset, InputReset, OutputReset time.Time

	State  State
	Until  time.Time // when State is expected to end; zero while available
	Reason Reason    // why the key is dead; "" otherwise
}
