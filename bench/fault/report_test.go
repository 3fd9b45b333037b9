package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	good := &result{cost: cost{1, 1}, took: 1260 * time.Millisecond}
	rows := []row{
		{scenario{id: "S01", name: "one"}, good, good},
		{scenario{id: "S02", name: "two"}, good, nil},
		{scenario{id: "S03", name: "three"}, &result{err: errors.Join(errors.New("a | b"), errors.New("c")), cost: cost{2, 0}, took: time.Minute}, good},
	}
	var b strings.Builder
	assert.Equal(t, 1, writeTable(&b, rows))
	assert.Equal(t, `| id | scenario | streamed | not streamed | attempts | seconds |
|---|---|---|---|---|---|
| S01 | one | pass | pass | 1+1 | 1.3 |
| S02 | two | pass | – | 1+1 | 1.3 |
| S03 | three | **FAIL**: a \| b; c | pass | 2+0, 1+1 | 60.0, 1.3 |

4 passed, 1 failed
`, b.String())
}

func TestEveryScenarioHasItsLine(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range scenarios {
		assert.False(t, seen[s.id], "%s is there twice", s.id)
		assert.NotNil(t, s.streamed, s.id)
		seen[s.id] = true
	}
	for i := 1; i <= 16; i++ {
		assert.True(t, seen[fmt.Sprintf("S%02d", i)], "S%02d", i)
	}
	for i := 1; i <= 8; i++ {
		assert.True(t, seen[fmt.Sprintf("O%02d", i)], "O%02d", i)
	}
}

func TestPick(t *testing.T) {
	ids := func(only string) string {
		chosen, err := pick(only)
		require.NoError(t, err)
		var list []string
		for _, s := range chosen {
			list = append(list, s.id)
		}
		return strings.Join(list, " ")
	}
	assert.Equal(t, "S08 S08b O01", ids("O01,S08"))
	assert.Equal(t, "S08b", ids("S08b"))
	all, err := pick("")
	require.NoError(t, err)
	assert.Len(t, all, len(scenarios))
	_, err = pick("S99")
	assert.ErrorContains(t, err, `"S99"`)
	_, err = pick("S01,")
	assert.Error(t, err)
}

func TestFlags(t *testing.T) {
	assert.ErrorContains(t, run(t.Context(), []string{"-only", "S01", "-write", "x.md"}, io.Discard, io.Discard), "leave one of both out")
}

func TestSettings(t *testing.T) {
	s := settings{timeouts: "idle_timeout: 5s, response_timeout: 6s", routing: "retry_unknown: false", models: "{ match: [x] }", keys: 2}
	assert.Equal(t, `server: { listen: 127.0.0.1:0, state: "off" }
providers:
  - name: primary
    base_url: http://127.0.0.1:1
    keys: [ { key: primary-key-1 }, { key: primary-key-2 }, ]
    idle_timeout: 5s
    response_timeout: 6s
  - name: fallback
    base_url: http://127.0.0.1:2
    keys: [ { key: fallback-key-1 }, ]
    idle_timeout: 5s
    response_timeout: 6s
routing: { retry_unknown: false }
models: [ { match: [x] } ]
`, s.yaml("127.0.0.1:1", "127.0.0.1:2"))
	assert.NotContains(t, settings{alone: true}.yaml("127.0.0.1:1", "127.0.0.1:2"), "fallback")
}
