package config

import (
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"time"

	"cc-relay/internal/price"
)

// LoadPrices reads the price list at path with the process environment; see
// ParsePrices. What Load says of files holds here, but for secrets: there are none.
func LoadPrices(path string) ([]price.Price, error) {
	data, _, err := readFile(path, maxFileBytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ParsePrices(path, data, os.LookupEnv)
}

// ParsePrices reads a price list, a price.File, from data, in the order of the
// file; price.NewTable takes every list it returns. name and env are as in Parse.
// The error joins one *Mistake for everything that is wrong, in the order of the
// file: an unknown field, a price that is missing or that no row can have, two
// rows for the same, no rows. Safe for concurrent use.
func ParsePrices(name string, data []byte, env func(string) (string, bool)) ([]price.Price, error) {
	d := &decoder{report: newReport(name), env: env}
	var file struct {
		AsOf   string     `yaml:"as_of"`
		Prices []priceRow `yaml:"prices"`
	}
	if body := d.document(data, minimalPrices); body != nil {
		d.value("", body, reflect.ValueOf(&file).Elem())
		if !d.failed[""] {
			checkDate(d.report, "as_of", file.AsOf)
			checkPrices(d.report, file.Prices)
		}
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	prices := make([]price.Price, len(file.Prices))
	for i, row := range file.Prices {
		prices[i] = row.Price
	}
	return prices, nil
}

// checkPriceFile reads the file now, as caFileError does. Each of its mistakes is one
// of the configuration, with both places.
func checkPriceFile(r *report, path string) {
	data, _, err := readFile(path, maxFileBytes)
	if err != nil {
		r.add("prices", err)
		return
	}
	_, err = ParsePrices(path, data, os.LookupEnv)
	var all interface{ Unwrap() []error }
	if errors.As(err, &all) {
		for _, mistake := range all.Unwrap() {
			r.addAt(r.place("prices"), "prices", mistake)
		}
	}
}

type priceRow struct {
	price.Price `yaml:",inline"`
}

// setDefaults marks the two prices that have no default as not given: a model must
// not be free because a line was forgotten.
func (p *priceRow) setDefaults() { p.Input, p.Output = math.NaN(), math.NaN() }

func checkDate(r *report, path, date string) {
	if _, err := time.Parse(time.DateOnly, date); date != "" && err != nil {
		r.addf(path, "not a date; write YYYY-MM-DD")
	}
}

// checkPrices also reports a row that could never count, because an earlier one is
// for the same model, provider and prompts.
func checkPrices(r *report, rows []priceRow) {
	if len(rows) == 0 {
		r.addf("prices", "none; %s", minimalPrices.in(r.file))
	}
	type key struct {
		model, provider string
		over            int
	}
	first := map[key]int{}
	for i, row := range rows {
		path := fmt.Sprintf("prices[%d]", i)
		if r.failed[path] {
			continue
		}
		row.Check(func(field string, err error) { r.add(path+"."+field, err) })
		if row.Provider != "" && !providerName.MatchString(strings.ReplaceAll(row.Provider, "*", "x")) {
			r.addf(path+".provider", "not a provider's name; write lower-case letters, digits, - and _, with * for any of them")
		}
		if r.failed[path+".model"] || r.failed[path+".provider"] || r.failed[path+".prompt_over"] {
			continue
		}
		k := key{row.Model, row.Provider, row.PromptOver}
		if other, dup := first[k]; dup {
			r.addf(path, "for the same model, provider and prompt_over as prices[%d], which comes first; remove one", other)
			continue
		}
		first[k] = i
	}
}
