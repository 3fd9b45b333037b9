// Package simulator is a provider of the Anthropic Messages API as it really
// behaves: token buckets per organization and model class, prompt caches,
// streaming, errors, and scripted faults. It serves cc-relay simulate, the demo,
// tests and users' rehearsals. It is not a language model: its answers are filler
// text and, when asked for, tool calls.
//
// Its buckets and caches are written from the rules of the API and share no code
// with the limiter and the pool of the relay: a simulator built on the code under
// test would prove nothing. [Core] is the provider without HTTP, in which every
// step takes the time as an argument; [Simulator] puts HTTP in front of it.
//
// Tokens are counted from bytes, four to a token; see [CountTokens].
package simulator

import (
	"hash/maphash"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// Simulator is an http.Handler that answers as the API does. It is safe for
// concurrent use. The clock is read when a request arrives, is admitted, and
// produces output.
type Simulator struct {
	cfg    Config
	core   *Core
	keys   map[string]*credential
	models []string
	seed   maphash.Seed // of prompt hashes

	mu      sync.Mutex // guards what follows
	rng     *rand.Rand
	faults  []scripted
	dead    map[string]time.Time // by key; zero time: for good
	records []*Record            // ring of the newest cfg.MaxRecords
	next    int                  // where the next record goes once the ring is full
}

// credential is one API key and where it belongs.
type credential struct {
	key, name, org, workspace string
	position                  string // 1-based place in the configuration, in decimal
}

// New makes a simulator. A Config without organizations gets those of
// [DefaultConfig]; an invalid one is answered with every mistake at once.
func New(cfg Config) (*Simulator, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	core, err := NewCore(cfg, time.Now())
	if err != nil {
		return nil, err
	}
	s := &Simulator{
		cfg:    cfg,
		core:   core,
		keys:   make(map[string]*credential),
		models: cfg.Models,
		seed:   maphash.MakeSeed(),
		rng:    rand.New(rand.NewPCG(cfg.Answers.Seed, 1)),
	}
	if len(s.models) == 0 {
		s.models = knownModels()
	}
	for _, c := range cfg.credentials() {
		s.keys[c.key] = &c
	}
	return s, s.SetFaults(cfg.Faults)
}

// SetFaults replaces the script: every count starts anew and dead keys live
// again. nil heals the provider. Requests under way keep the fault they met.
func (s *Simulator) SetFaults(faults []Fault) error {
	if err := validateFaults(faults, s.cfg); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = make([]scripted, len(faults))
	for i, f := range faults {
		s.faults[i].Fault = f
	}
	s.dead = make(map[string]time.Time)
	return nil
}

// Snapshot is what the provider has done until now; see [Core.Snapshot].
func (s *Simulator) Snapshot(now time.Time) Snapshot { return s.core.Snapshot(now) }

// answerLength draws the length of one answer in tokens, at least 1.
func (s *Simulator) answerLength() int {
	s.mu.Lock()
	z := s.rng.NormFloat64()
	s.mu.Unlock()
	n := float64(s.cfg.Answers.MedianTokens) * math.Exp(s.cfg.Answers.Sigma*z)
	return int(min(max(n, 1), maxAnswer))
}

// maxAnswer is the longest answer drawn, the largest max output of any model:
// https://platform.claude.com/docs/en/about-claude/models/overview.
const maxAnswer = 128_000
