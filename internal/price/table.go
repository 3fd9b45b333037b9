package price

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cc-relay/internal/keypool"
)

// Table finds prices. nil is the built-in ones alone. It never changes: safe for
// concurrent use. A look-up scans neither the built-in rows nor those for other
// models; its time grows with the rows that have a * in their model. It keeps
// nothing about the names it is asked for.
type Table struct {
	layers []layer // the first that has a price counts
}

// layer is the rows of one file, those that go first in front.
type layer struct {
	exact map[string][]row // by model
	globs []row            // with a * in the model
}

type row struct {
	Price
	model, provider keypool.Pattern
}

// NewTable returns a table of own rows and, after all of them, the built-in ones.
// Among the rows of one file that match, those with an exact model go before
// those with a *; then those with an exact provider, with a * in it, and without
// one, in this order; then the first in the file. Rows of the same model and
// provider are one there, and the largest PromptOver that is below the prompt
// counts; if none is, the next row that matches does.
//
// The error joins one for each field that Price.Check refuses; it names the row by
// its place in own, from 0, and its model. The caller keeps own, but must not
// change what its pointers point to.
func NewTable(own []Price) (*Table, error) {
	var errs []error
	for i, p := range own {
		p.Check(func(field string, err error) {
			errs = append(errs, fmt.Errorf("price: prices[%d] (model %q): %s: %w", i, p.Model, field, err))
		})
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if len(own) == 0 {
		return builtIn(), nil
	}
	return &Table{append([]layer{newLayer(own)}, builtIn().layers...)}, nil
}

var builtIn = sync.OnceValue(func() *Table {
	return &Table{[]layer{newLayer(BuiltIn().Prices)}}
})

func newLayer(prices []Price) layer {
	type group struct{ model, provider string }
	first := map[group]int{}
	for i, p := range slices.Backward(prices) {
		first[group{p.Model, p.Provider}] = i
	}
	sorted := slices.Clone(prices)
	slices.SortStableFunc(sorted, func(a, b Price) int {
		return cmp.Or(
			cmp.Compare(vagueness(a.Provider), vagueness(b.Provider)),
			cmp.Compare(first[group{a.Model, a.Provider}], first[group{b.Model, b.Provider}]),
			cmp.Compare(b.PromptOver, a.PromptOver))
	})
	l := layer{exact: map[string][]row{}}
	for _, p := range sorted {
		r := row{p, keypool.NewPattern(p.Model), keypool.NewPattern(cmp.Or(p.Provider, "*"))}
		if len(r.model) > 1 {
			l.globs = append(l.globs, r)
		} else {
			l.exact[p.Model] = append(l.exact[p.Model], r)
		}
	}
	return l
}

// vagueness orders what a row says about the provider.
func vagueness(provider string) int {
	switch {
	case provider == "":
		return 2
	case strings.Contains(provider, "*"):
		return 1
	}
	return 0
}

// Of returns the price of a model at a provider, both by name, for a prompt of
// that many tokens; false if the table has none. The caller must not change what
// the pointers in it point to.
func (t *Table) Of(provider, model string, prompt int) (Price, bool) {
	if p := t.find(provider, model, prompt); p != nil {
		return *p, true
	}
	return Price{}, false
}

// Cost returns what a request costs, see Price.Cost; false if the table has no
// price for it. The size of the prompt is tokens.Prompt.
func (t *Table) Cost(provider, model string, tokens Tokens) (cost Nanodollars, ok bool) {
	if p := t.find(provider, model, tokens.Prompt()); p != nil {
		return p.Cost(tokens), true
	}
	return 0, false
}

func (t *Table) find(provider, model string, prompt int) *Price {
	if t == nil {
		t = builtIn()
	}
	for i := range t.layers {
		l := &t.layers[i]
		for _, rows := range [2][]row{l.exact[model], l.globs} {
			for j := range rows {
				if rows[j].isFor(provider, model, prompt) {
					return &rows[j].Price
				}
			}
		}
	}
	return nil
}

func (r *row) isFor(provider, model string, prompt int) bool {
	return (r.PromptOver == 0 || prompt > r.PromptOver) && r.model.Matches(model) && r.provider.Matches(provider)
}
