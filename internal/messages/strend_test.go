package messages

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

// This test is inside the package: two ways to find the same are compared, and from
// outside the slower one cannot be asked.

// naiveEnd walks byte by byte.
func naiveEnd(text []byte) int {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

func TestStringEnd(t *testing.T) {
	for _, run := range []int{0, 1, 2, 3, 62, 63, 64, 65, 127, 128, 129} { // of backslashes, across the edges of blocks
		for at := range 200 {
			text := []byte(strings.Repeat("x", at) + strings.Repeat(`\`, run) + `"` + strings.Repeat(`y\"`, 50) + `"` + strings.Repeat("z", 70))
			want := naiveEnd(text)
			assert.Equal(t, want, stringEnd(text), "%d backslashes at %d", run, at)
			assert.Equal(t, want, nextQuote(text), "%d backslashes at %d", run, at)
			open := bytes.ReplaceAll(text, []byte(`"`), []byte(`'`))
			assert.Equal(t, -1, stringEnd(open))
		}
	}
}

func TestStringEndOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOfN(rapid.SampledFrom([]byte(`\\\\\"ab`+"\x00\xff")), 0, 400).Draw(t, "text")
		want := naiveEnd(text)
		assert.Equal(t, want, stringEnd(text))
		assert.Equal(t, want, nextQuote(text))
	})
}
