// Package price says what a request costs: the list price of its model, built in
// or the operator's own, times the tokens that the provider reported. It knows no
// discounts and no surcharges (batches, fast mode, regions, server tools), and it
// keeps no accounts.
package price

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// Nanodollars is an amount of money: 1e-9 US$. Whole numbers add up exactly, in
// any order. An int64 holds 9 thousand million dollars.
type Nanodollars int64

// Dollars returns n in US$, for showing it and for metrics.
func (n Nanodollars) Dollars() float64 { return float64(n) / 1e9 }

// Price is one row of a price list. Prices are in US$ per million tokens, 0 is
// free, and they count to the millionth of a dollar.
type Price struct {
	// Model is a model's name as the provider knows it. * stands for any characters,
	// also none and also a slash; every other one stands for itself.
	Model string `yaml:"model"`
	// Provider is the name of a configured provider, with * as in Model. Empty: any.
	Provider string `yaml:"provider,omitempty"`
	// PromptOver is a number of tokens: the row is for larger prompts only, and then
	// for the whole request. 0: for every prompt.
	PromptOver int `yaml:"prompt_over,omitempty"`
	// Input is for the part of the prompt that is neither read from nor written to a
	// cache, Output for the answer.
	Input  float64 `yaml:"input"`
	Output float64 `yaml:"output"`
	// CacheWrite is for what is written to the cache for 5 minutes, CacheWriteLong
	// for 1 hour, CacheRead for what is read. nil: 1.25, 2 and 0.1 times Input, see
	// https://platform.claude.com/docs/en/build-with-claude/prompt-caching
	CacheWrite     *float64 `yaml:"cache_write,omitempty"`
	CacheWriteLong *float64 `yaml:"cache_write_1h,omitempty"`
	CacheRead      *float64 `yaml:"cache_read,omitempty"`
}

// Tokens are what a request used, each token counted once, as the API reports
// them: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
// Negative counts are taken for 0.
type Tokens struct {
	Input          int // neither read from nor written to a cache
	CacheRead      int
	CacheWrite     int // for 5 minutes; those of CacheWriteLong not included
	CacheWriteLong int // for 1 hour
	Output         int
}

// Prompt is the size of the whole prompt in tokens. Cached ones count.
func (t Tokens) Prompt() int {
	return max(0, t.Input) + max(0, t.CacheRead) + max(0, t.CacheWrite) + max(0, t.CacheWriteLong)
}

// Cost returns what t costs at p, whether or not p is for a prompt of that size.
// It is exact up to 9000 US$, then rounded to a nano-dollar, half away from zero.
// Prices of at most three decimals need no rounding. A larger cost has a relative
// error below 1e-15, and one that Nanodollars cannot hold is the largest it can.
// p must be a price that Check accepts.
func (p Price) Cost(t Tokens) Nanodollars {
	// A dollar per million tokens is a million pico-dollars per token. Those are
	// whole numbers, which a float64 adds exactly up to 2^53.
	pico := picodollars(t.Input, p.Input) + picodollars(t.Output, p.Output) +
		picodollars(t.CacheRead, or(p.CacheRead, 0.1*p.Input)) +
		picodollars(t.CacheWrite, or(p.CacheWrite, 1.25*p.Input)) +
		picodollars(t.CacheWriteLong, or(p.CacheWriteLong, 2*p.Input))
	nano := math.Round(pico / 1000)
	if nano >= math.MaxInt64 {
		return math.MaxInt64
	}
	return Nanodollars(nano)
}

func picodollars(tokens int, price float64) float64 {
	return float64(max(0, tokens)) * math.Round(price*1e6)
}

func or(price *float64, fallback float64) float64 {
	if price == nil {
		return fallback
	}
	return *price
}

// Bounds of a price that is not 0, inclusive. The least is above any price per
// token, which other price lists give; the most is a dollar per token.
const (
	least = 0.0001
	most  = 1_000_000
)

// Check calls mistake for everything that is wrong with p, with the yaml name of
// the field. It takes NaN for a price that was not given.
func (p Price) Check(mistake func(field string, err error)) {
	switch {
	case p.Model == "":
		mistake("model", errors.New("empty; write a model's name, or a part of it with *"))
	case strings.Contains(p.Model, "?"): // no name has one, and another kind of pattern means something by it
		mistake("model", errors.New("only * stands for other characters; write it for ?"))
	case strings.ContainsFunc(p.Model, func(c rune) bool { return c <= ' ' || c > '~' }):
		mistake("model", errors.New("not a model's name; write visible ASCII characters"))
	}
	if p.PromptOver < 0 {
		mistake("prompt_over", fmt.Errorf("%d is not a size; write a number of tokens, 0 for every prompt", p.PromptOver))
	}
	for _, f := range []struct {
		name  string
		price *float64
	}{
		{"input", &p.Input}, {"output", &p.Output},
		{"cache_write", p.CacheWrite}, {"cache_write_1h", p.CacheWriteLong}, {"cache_read", p.CacheRead},
	} {
		if f.price == nil {
			continue
		}
		if err := check(*f.price); err != nil {
			mistake(f.name, err)
		}
	}
}

func check(price float64) error {
	switch {
	case math.IsNaN(price):
		return errors.New("no price; write US$ per million tokens, 0 if they are free")
	case price < 0 || price > most:
		return fmt.Errorf("%v is not a price; write US$ per million tokens, at most %d", price, most)
	case price > 0 && price < least:
		return fmt.Errorf("%v looks like a price per token; write US$ per million tokens, at least %v", price, least)
	}
	return nil
}
