package auth_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/auth"
	"cc-relay/internal/secret"
)

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func clients(t testing.TB) *auth.Clients {
	t.Helper()
	c, err := auth.NewClients([]auth.ClientConfig{
		{Name: "value", Token: secret.New("token-by-value")},
		{Name: "hash", TokenSHA256: hashOf("token-by-hash")},
		{Name: "upper", TokenSHA256: strings.ToUpper(hashOf("token-upper"))},
	})
	require.NoError(t, err)
	return c
}

func TestIdentify(t *testing.T) {
	for name, tt := range map[string]struct {
		header http.Header
		want   string
		err    error
	}{
		"by value, x-api-key":          {http.Header{"X-Api-Key": {"token-by-value"}}, "value", nil},
		"by value, bearer":             {http.Header{"Authorization": {"Bearer token-by-value"}}, "value", nil},
		"by hash":                      {http.Header{"X-Api-Key": {"token-by-hash"}}, "hash", nil},
		"by hash, written in capitals": {http.Header{"Authorization": {"BEARER token-upper"}}, "upper", nil},
		"several spaces":               {http.Header{"Authorization": {"Bearer   token-by-hash "}}, "hash", nil},
		"both the same":                {http.Header{"X-Api-Key": {"token-by-hash"}, "Authorization": {"Bearer token-by-hash"}}, "hash", nil},
		"a foreign one first":          {http.Header{"X-Api-Key": {"foreign"}, "Authorization": {"Bearer token-by-hash"}}, "hash", nil},
		"a foreign one second":         {http.Header{"X-Api-Key": {"token-by-hash"}, "Authorization": {"Bearer foreign"}}, "hash", nil},
		"two clients":                  {http.Header{"X-Api-Key": {"token-by-hash"}, "Authorization": {"Bearer token-by-value"}}, "", auth.ErrAmbiguous},
		"x-api-key twice":              {http.Header{"X-Api-Key": {"token-by-hash", "foreign"}}, "", auth.ErrAmbiguous},
		"authorization twice":          {http.Header{"Authorization": {"Bearer token-by-hash", "Bearer token-by-hash"}}, "", auth.ErrAmbiguous},
		"none":                         {nil, "", auth.ErrNoToken},
		"empty":                        {http.Header{"X-Api-Key": {""}}, "", auth.ErrNoToken},
		"other scheme":                 {http.Header{"Authorization": {"Basic token-by-value"}}, "", auth.ErrNoToken},
		"no scheme":                    {http.Header{"Authorization": {"token-by-value"}}, "", auth.ErrNoToken},
		"bearer alone":                 {http.Header{"Authorization": {"Bearer"}}, "", auth.ErrNoToken},
		"bearer and spaces":            {http.Header{"Authorization": {"Bearer  "}}, "", auth.ErrNoToken},
		"unknown":                      {http.Header{"X-Api-Key": {"foreign"}}, "", auth.ErrUnknownToken},
		"the hash itself":              {http.Header{"X-Api-Key": {hashOf("token-by-hash")}}, "", auth.ErrUnknownToken},
		"other case":                   {http.Header{"X-Api-Key": {"TOKEN-BY-VALUE"}}, "", auth.ErrUnknownToken},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := clients(t).Identify(tt.header)
			require.ErrorIs(t, err, tt.err)
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestWithoutClientsEveryRequestIsAccepted(t *testing.T) {
	c, err := auth.NewClients(nil)
	require.NoError(t, err)
	for _, h := range []http.Header{nil, {"X-Api-Key": {"a", "b"}}, {"Authorization": {"Bearer x"}}} {
		name, err := c.Identify(h)
		require.NoError(t, err)
		assert.Empty(t, name)
	}
}

func TestOwn(t *testing.T) {
	const key, token = "sk-ant-api03-x", "sk-ant-oat01-x"
	for name, tt := range map[string]struct {
		keys, auths []string
		want        bool
	}{
		"a key":                          {[]string{key}, nil, true},
		"a key as bearer":                {nil, []string{"Bearer " + key}, true},
		"a token":                        {nil, []string{"Bearer " + token}, true},
		"a token, oddly written":         {nil, []string{"bEARER   " + token + " "}, true},
		"both the same":                  {[]string{key}, []string{"Bearer " + key}, true},
		"both":                           {[]string{key}, []string{"Bearer " + token}, true},
		"none":                           {nil, nil, false},
		"empty ones":                     {[]string{""}, []string{""}, false},
		"a token as a key":               {[]string{token}, nil, false},
		"a token in both":                {[]string{token}, []string{"Bearer " + token}, false},
		"no scheme":                      {nil, []string{token}, false},
		"another scheme":                 {nil, []string{"Basic " + token}, false},
		"a tab after the scheme":         {nil, []string{"Bearer\t" + token}, false},
		"in capitals":                    {[]string{"SK-ANT-API03-X"}, nil, false},
		"a part":                         {[]string{"sk-ant-"}, nil, false},
		"not at the beginning":           {[]string{" " + key}, nil, false},
		"an admin's":                     {[]string{"sk-ant-admin01-x"}, nil, false},
		"a key beside something else":    {[]string{key}, []string{"Bearer else"}, false},
		"a key beside another scheme":    {[]string{key}, []string{"Basic else"}, false},
		"a key beside nothing":           {[]string{key}, []string{""}, false},
		"something else beside a bearer": {[]string{"else"}, []string{"Bearer " + token}, false},
		"nothing beside a bearer":        {[]string{""}, []string{"Bearer " + token}, false},
		"two keys":                       {[]string{key, key}, nil, false},
		"two bearers":                    {nil, []string{"Bearer " + token, "Bearer " + token}, false},
		"two keys beside a bearer":       {[]string{key, key}, []string{"Bearer " + token}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			if tt.keys != nil {
				h["X-Api-Key"] = tt.keys
			}
			if tt.auths != nil {
				h["Authorization"] = tt.auths
			}
			assert.Equal(t, tt.want, auth.Own(h))
		})
	}
}

func TestNewClientsRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg  []auth.ClientConfig
		want string
	}{
		"no token":          {[]auth.ClientConfig{{Name: "a"}}, `client "a": token is empty`},
		"an empty token":    {[]auth.ClientConfig{{Name: "a", Token: secret.New("")}}, `client "a": token is empty`},
		"both":              {[]auth.ClientConfig{{Name: "a", Token: secret.New("x"), TokenSHA256: hashOf("x")}}, "not both"},
		"a hash too short":  {[]auth.ClientConfig{{Name: "a", TokenSHA256: "abcd"}}, "64 hexadecimal digits"},
		"a hash too long":   {[]auth.ClientConfig{{Name: "a", TokenSHA256: hashOf("x") + "00"}}, "64 hexadecimal digits"},
		"a hash of letters": {[]auth.ClientConfig{{Name: "a", TokenSHA256: strings.Repeat("z", 64)}}, "64 hexadecimal digits"},
		"one token twice": {[]auth.ClientConfig{{Name: "a", Token: secret.New("x")}, {Name: "b", TokenSHA256: hashOf("x")}},
			`clients "a" and "b" have the same token`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := auth.NewClients(tt.cfg)
			require.ErrorContains(t, err, tt.want)
			assert.Nil(t, c)
			assert.NotContains(t, err.Error(), "abcd", "a mistake is not quoted: it may be a token in the wrong place")
		})
	}
}

// FuzzIdentify checks that a name is only ever given for the very token, wherever
// it is and whatever is in the other header.
func FuzzIdentify(f *testing.F) {
	f.Add("token-by-value", "Bearer token-by-hash")
	f.Add("token-by-value ", "bearer\ttoken-by-hash")
	f.Add("", "Bearer Bearer token-by-hash")
	f.Add("token-by-hash", "Basic x")
	c := clients(f)
	tokens := map[string]string{"value": "token-by-value", "hash": "token-by-hash", "upper": "token-upper"}
	f.Fuzz(func(t *testing.T, key, authorization string) {
		name, err := c.Identify(http.Header{"X-Api-Key": {key}, "Authorization": {authorization}})
		if err != nil {
			require.Empty(t, name)
			return
		}
		token, ok := tokens[name]
		require.True(t, ok, "name %q", name)
		scheme, rest, _ := strings.Cut(authorization, " ")
		require.True(t, key == token || strings.EqualFold(scheme, "bearer") && strings.TrimSpace(rest) == token,
			"%q was given for %q and %q", name, key, authorization)
	})
}

func BenchmarkIdentify(b *testing.B) {
	c := clients(b)
	h := http.Header{"X-Api-Key": {"token-by-value"}, "Authorization": {"Bearer sk-ant-somebody-elses"}}
	b.ReportAllocs()
	for b.Loop() {
		if name, err := c.Identify(h); name != "value" || err != nil {
			b.Fatalf("got %q, %v", name, err)
		}
	}
}
