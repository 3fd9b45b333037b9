package price_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/price"
)

func TestTheBuiltInListIsSound(t *testing.T) {
	list := price.BuiltIn()
	_, err := time.Parse(time.DateOnly, list.AsOf)
	require.NoError(t, err)
	type key struct {
		model string
		over  int
	}
	seen := map[key]bool{}
	for _, p := range list.Prices {
		p.Check(func(field string, err error) { t.Errorf("%s: %s: %v", p.Model, field, err) })
		assert.Empty(t, p.Provider, p.Model)
		k := key{p.Model, p.PromptOver}
		assert.False(t, seen[k], "%+v is there twice", k)
		seen[k] = true
	}
}

// What a cache costs follows from the input price: a slip of the pen in the list
// shows. https://platform.claude.com/docs/en/build-with-claude/prompt-caching
func TestTheBuiltInListKeepsTheMultipliers(t *testing.T) {
	read := map[string]float64{
		"claude-opus-5-5": 0.05, "claude-sonnet-5-5": 0.05,
		"claude-fable-5-1": 0.025, "claude-mythos-5-1": 0.025, "claude-fable-5-2": 0.025, "claude-mythos-5-2": 0.025,
	}
	for _, p := range price.BuiltIn().Prices {
		times, ok := read[p.Model]
		if !ok {
			times = 0.1
		}
		assert.InDelta(t, times*p.Input, *p.CacheRead, 1e-9, p.Model)
		assert.InDelta(t, 1.25*p.Input, *p.CacheWrite, 1e-9, p.Model)
		assert.InDelta(t, 2*p.Input, *p.CacheWriteLong, 1e-9, p.Model)
		assert.InDelta(t, 5*p.Input, p.Output, 1e-9, "%s: every model so far answers at five times its input", p.Model)
	}
}

func TestTheBuiltInListBelongsToTheCaller(t *testing.T) {
	list := price.BuiltIn()
	for i := range list.Prices {
		list.Prices[i].Input, *list.Prices[i].CacheRead = 99, 99
	}
	var none *price.Table
	p, ok := none.Of("", list.Prices[0].Model, 0)
	require.True(t, ok)
	assert.NotEqual(t, 99.0, p.Input)
	assert.NotEqual(t, 99.0, *p.CacheRead)
}
