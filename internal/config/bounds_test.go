package config_test

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

var update = flag.Bool("update", false, "write docs/limits.md anew")

// defaultAt is the value of a setting that no file says, in the unit of its bound.
func defaultAt(t *testing.T, setting string) (any, bool) {
	t.Helper()
	s := schema(t)
	for name := range strings.SplitSeq(setting, ".") {
		name, list := strings.CutSuffix(name, "[]")
		next, ok := s["properties"].(object)[name].(object)
		if !ok {
			return nil, false
		}
		if s = next; list {
			s = s["items"].(object)
		}
	}
	value, ok := s["default"]
	if text, isTime := value.(string); isTime {
		d, err := time.ParseDuration(text)
		require.NoError(t, err)
		return float64(d), true
	}
	return value, ok
}

// Every bound has a default that is within its range and in force, every limit of the
// server has a row in the table, and the documentation is the table.
func testBounds(t *testing.T) {
	rows := map[string]bool{}
	var without []string
	for _, b := range config.Bounds() {
		assert.False(t, rows[b.Setting], "%s is there twice", b.Setting)
		rows[b.Setting] = true
		got, ok := defaultAt(t, b.Setting)
		if !ok || b.Default <= 0 || b.Default < b.Least || b.Default > b.Most {
			without = append(without, b.Setting)
			continue
		}
		assert.InDelta(t, float64(b.Default), got, 0, b.Setting)
		assert.NotEmpty(t, b.Does, b.Setting)
		assert.FileExists(t, "../../"+b.Where, b.Setting)
	}
	assert.Empty(t, without, "bounds without a default")
	limits := reflect.TypeFor[config.Limits]()
	for i := range limits.NumField() {
		assert.True(t, rows["server.limits."+limits.Field(i).Tag.Get("yaml")], "%s has no row", limits.Field(i).Name)
	}
	for _, must := range []string{ // what S27 and the project ask for, besides the limits
		"server.max_body_bytes", "providers[].first_token_timeout", "providers[].idle_timeout", "providers[].response_timeout",
		"providers[].dial_timeout", "providers[].pool.max_wait", "providers[].pool.max_waiting",
	} {
		assert.True(t, rows[must], must)
	}

	const page = "../../docs/limits.md"
	doc, err := os.ReadFile(page)
	require.NoError(t, err)
	before, _, ok := strings.Cut(string(doc), "| setting |")
	require.True(t, ok, "no table in docs/limits.md")
	_, after, ok := strings.Cut(string(doc), "<!-- end of the table -->")
	require.True(t, ok, "no end of the table in docs/limits.md")
	want := before + config.BoundsTable() + "<!-- end of the table -->" + after
	if *update {
		require.NoError(t, os.WriteFile(page, []byte(want), 0o600))
		return
	}
	assert.Equal(t, want, string(doc), "run: go test ./internal/config -run TestSecurity -update")
}

// What is beyond the range of a limit is refused with its place, and what is at its
// ends is not.
func TestRangesOfLimits(t *testing.T) {
	for _, b := range config.Bounds() {
		name, limit := strings.CutPrefix(b.Setting, "server.limits.")
		if !limit {
			continue
		}
		write := func(v int64) string {
			if b.Unit == "" {
				return time.Duration(v).String()
			}
			return fmt.Sprint(v)
		}
		for v, within := range map[int64]bool{b.Least: true, b.Most: true, b.Least - 1: false, b.Most + 1: false, 0: false, -1: false} {
			text := fmt.Sprintf("server: { limits: { %s: %s } }\n", name, write(v)) + ok
			_, err := config.Parse("c.yaml", []byte(text), environ())
			if within {
				assert.NoError(t, err, "%s", text)
				continue
			}
			require.Error(t, err, "%s", text)
			assert.True(t, strings.HasPrefix(err.Error(), fmt.Sprintf("c.yaml:1:%d: %s: ", 22+len(name)+1, b.Setting)), "%s", err)
			assert.Contains(t, err.Error(), write(v)+" is out of bounds; write ")
		}
	}
}
