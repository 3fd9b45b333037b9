package auth_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/auth"
	"cc-relay/internal/secret"
)

// The tests of rows of the catalogue of faults, by the rows' names.

func TestSecurity(t *testing.T) {
	t.Run("S02", func(t *testing.T) {
		t.Run("kept", testTokensAreKeptAsKeyedHashes)
		t.Run("a planted one", testKeptFindsAPlantedToken)
		t.Run("tokens that begin alike", testTokensThatBeginAlike)
		t.Run("hashes that differ in one byte", testHashesThatDifferInOneByte)
	})
}

func testTokensAreKeptAsKeyedHashes(t *testing.T) {
	c := clients(t)
	got, dump := kept(c), bytes.Join(kept(c), nil)
	for name, token := range map[string]string{"value": "token-by-value", "hash": "token-by-hash", "upper": "token-upper"} {
		require.True(t, slices.ContainsFunc(got, func(b []byte) bool { return string(b) == name }), "kept is blind to %s", name)
		sum := sha256.Sum256([]byte(token))
		for what, parts := range map[string][]byte{
			"the token": []byte(token), "its hash without a key": sum[:], "its hash in digits": []byte(hex.EncodeToString(sum[:])),
		} {
			for part := range slices.Chunk(parts, 8) {
				assert.False(t, len(part) == 8 && bytes.Contains(dump, part), "%s: a part of %s is kept", name, what)
			}
		}
	}
	hashes := 0
	elsewhere := kept(clients(t))
	for _, b := range got {
		if len(b) != sha256.Size {
			continue
		}
		hashes++
		assert.False(t, slices.ContainsFunc(elsewhere, func(other []byte) bool { return bytes.Equal(b, other) }),
			"another set keeps the same: there is no key, or not one of its own")
	}
	assert.Equal(t, 1+3, hashes, "the key, and a whole hash for each client")
}

func testKeptFindsAPlantedToken(t *testing.T) {
	type holder struct {
		list []auth.ClientConfig
		any  any
	}
	dump := bytes.Join(kept(&holder{[]auth.ClientConfig{{Token: secret.New("planted-one")}}, map[[2]byte]string{{'t', 'w'}: "o"}}), nil)
	assert.Contains(t, string(dump), "planted-one")
	assert.Contains(t, string(dump), "two")
}

// kept returns every string and every run of bytes that v holds, also in unexported fields.
func kept(v any) (all [][]byte) {
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			all = append(all, []byte(v.String()))
		case reflect.Pointer, reflect.Interface:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i))
			}
		case reflect.Map:
			for entries := v.MapRange(); entries.Next(); {
				walk(entries.Key())
				walk(entries.Value())
			}
		case reflect.Slice, reflect.Array:
			var run []byte
			for i := range v.Len() {
				if e := v.Index(i); e.Kind() == reflect.Uint8 {
					run = append(run, byte(e.Uint()))
				} else {
					walk(e)
				}
			}
			all = append(all, run)
		default:
			panic(fmt.Sprintf("kept cannot look into a %s", v.Kind()))
		}
	}
	walk(reflect.ValueOf(v))
	return all
}

func testTokensThatBeginAlike(t *testing.T) {
	long := strings.Repeat("x", 1000)
	tokens := map[string]string{"a": long + "1", "b": long + "2", "c": long, "d": long + "1" + long}
	var cfg []auth.ClientConfig
	for name, token := range tokens {
		cfg = append(cfg, auth.ClientConfig{Name: name, Token: secret.New(token)})
	}
	c, err := auth.NewClients(cfg)
	require.NoError(t, err)
	for name, token := range tokens {
		got, err := c.Identify(http.Header{"X-Api-Key": {token}})
		require.NoError(t, err)
		assert.Equal(t, name, got)
	}
	for _, token := range []string{long[1:], long + "3", "2" + long, long + long} {
		_, err := c.Identify(http.Header{"X-Api-Key": {token}})
		require.ErrorIs(t, err, auth.ErrUnknownToken)
	}
}

// Of a token's hash every byte counts: one that differs in any is another client's.
func testHashesThatDifferInOneByte(t *testing.T) {
	const token = "token-by-hash"
	sum := sha256.Sum256([]byte(token))
	cfg := []auth.ClientConfig{{Name: "its own", TokenSHA256: hashOf(token)}}
	for i := range sum {
		near := sum
		near[i] ^= 1
		cfg = append(cfg, auth.ClientConfig{Name: fmt.Sprint("near ", i), TokenSHA256: hex.EncodeToString(near[:])})
	}
	h := http.Header{"X-Api-Key": {token}}
	all, err := auth.NewClients(cfg)
	require.NoError(t, err)
	name, err := all.Identify(h)
	require.NoError(t, err)
	assert.Equal(t, "its own", name)

	others, err := auth.NewClients(cfg[1:])
	require.NoError(t, err)
	_, err = others.Identify(h)
	require.ErrorIs(t, err, auth.ErrUnknownToken)
}
