package keypool_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
)

// canary is in every test key, so that one search finds a key that leaked.
const canary = "sk-canary"

// keyOf is the nth key with these limits a minute.
func keyOf(n, rpm, itpm, otpm int) keypool.KeyConfig {
	return keypool.KeyConfig{Key: secret.New(fmt.Sprintf("%s-%d", canary, n)), RPMLimit: rpm, ITPMLimit: itpm, OTPMLimit: otpm}
}

func newPool(tb testing.TB, strategy string, keys ...keypool.KeyConfig) *keypool.KeyPool {
	tb.Helper()
	p, err := keypool.NewKeyPool("test", keypool.PoolConfig{Strategy: strategy, Keys: keys})
	require.NoError(tb, err)
	return p
}

// rateHeaders are an answer's headers of limit and remaining for requests, input and output.
func rateHeaders(values ...int) http.Header {
	h := http.Header{}
	for i, v := range values {
		kind := []string{"requests", "input-tokens", "output-tokens"}[i/2]
		h.Set("anthropic-ratelimit-"+kind+[]string{"-limit", "-remaining"}[i%2], strconv.Itoa(v))
	}
	return h
}
