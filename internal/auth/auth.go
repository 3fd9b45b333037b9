// Package auth tells who a client is by its token. It stores only hashes of
// tokens and knows nothing of HTTP servers, budgets or providers' keys.
package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"cc-relay/internal/secret"
)

// ClientConfig names one client of the relay and its token, by value or by hash.
// Exactly one of Token and TokenSHA256 is set.
type ClientConfig struct {
	// Name identifies the client in logs; required, unique.
	Name string `yaml:"name"`
	// Token is what the client sends, in x-api-key or as Bearer.
	Token secret.Value `yaml:"token,omitempty"`
	// TokenSHA256 is the token's SHA-256 in hexadecimal, for files that hold no secrets.
	TokenSHA256 string `yaml:"token_sha256,omitempty"`
}

// Errors of Identify.
var (
	ErrNoToken      = errors.New("auth: no token")
	ErrUnknownToken = errors.New("auth: unknown token")
	ErrAmbiguous    = errors.New("auth: more than one credential")
)

// Clients is the set of configured clients. It is immutable and safe for concurrent use.
type Clients struct {
	key    [sha256.Size]byte            // random, of this set alone
	byHash map[[sha256.Size]byte]string // names by the keyed hash
}

// NewClients indexes the clients by the hash of their token. An empty list is
// valid and means that no token is asked: the caller must then listen on
// loopback only.
func NewClients(cfg []ClientConfig) (*Clients, error) {
	c := &Clients{byHash: make(map[[sha256.Size]byte]string, len(cfg))}
	_, _ = rand.Read(c.key[:]) // never fails
	for _, cc := range cfg {
		hash, err := cc.hash()
		if err != nil {
			return nil, fmt.Errorf("client %q: %w", cc.Name, err)
		}
		hash = c.keyed(hash)
		if other, dup := c.byHash[hash]; dup {
			return nil, fmt.Errorf("clients %q and %q have the same token", other, cc.Name)
		}
		c.byHash[hash] = cc.Name
	}
	return c, nil
}

// keyed is what a token with this SHA-256 is kept and looked up by. Nobody outside can
// choose or foresee it, so what a look-up compares, and how long that takes, tells
// nothing of a token. A key before a message of fixed length needs no HMAC.
func (c *Clients) keyed(hash [sha256.Size]byte) [sha256.Size]byte {
	var both [2 * sha256.Size]byte
	copy(both[:], c.key[:])
	copy(both[sha256.Size:], hash[:])
	return sha256.Sum256(both[:])
}

func (cc ClientConfig) hash() (sum [sha256.Size]byte, err error) {
	if cc.TokenSHA256 == "" {
		if cc.Token.IsZero() {
			return sum, errors.New("token is empty: set token or token_sha256")
		}
		return sha256.Sum256([]byte(cc.Token.Reveal())), nil
	}
	if !cc.Token.IsZero() {
		return sum, errors.New("set token or token_sha256, not both")
	}
	raw, err := hex.DecodeString(cc.TokenSHA256)
	if err != nil || len(raw) != sha256.Size {
		return sum, errors.New("token_sha256 must be 64 hexadecimal digits")
	}
	copy(sum[:], raw)
	return sum, nil
}

// Identify returns the name of the client whose token h carries in x-api-key or
// as Authorization: Bearer. Claude Code may send a foreign credential in one of
// the two headers, so a value that is no configured token is ignored while the
// other one is. Two different clients, or a repeated header, give ErrAmbiguous.
// Without configured clients the name is empty and every request is accepted.
//
// Tokens are looked up by a keyed hash of their full SHA-256, and each candidate is
// hashed whether or not another one has matched, so the time tells nothing of a token.
func (c *Clients) Identify(h http.Header) (name string, err error) {
	if len(c.byHash) == 0 {
		return "", nil
	}
	keys, auths := h["X-Api-Key"], h["Authorization"]
	if len(keys) > 1 || len(auths) > 1 {
		return "", ErrAmbiguous
	}
	found, sent := 0, 0
	for _, value := range [2]string{first(keys), bearer(first(auths))} {
		if value == "" {
			continue
		}
		sent++
		hash := c.keyed(sha256.Sum256([]byte(value)))
		if client, ok := c.byHash[hash]; ok && (found == 0 || client != name) {
			name = client
			found++
		}
	}
	switch {
	case found > 1:
		return "", ErrAmbiguous
	case found == 1:
		return name, nil
	case sent == 0:
		return "", ErrNoToken
	}
	return "", ErrUnknownToken
}

// Own reports whether h carries a credential that is the client's own at Anthropic: a
// subscription's token as Bearer (sk-ant-oat…), or an API key (sk-ant-api…) in either
// header, and nothing else that might be meant for the relay. Source of the forms:
// https://code.claude.com/docs/en/llm-gateway.
func Own(h http.Header) bool {
	keys, auths := h["X-Api-Key"], h["Authorization"]
	if len(keys) > 1 || len(auths) > 1 || len(keys)+len(auths) == 0 {
		return false
	}
	if key := first(keys); len(keys) > 0 && !strings.HasPrefix(key, ownKey) {
		return false
	}
	token := bearer(first(auths))
	return len(auths) == 0 || strings.HasPrefix(token, ownKey) || strings.HasPrefix(token, ownToken)
}

// The beginnings of credentials that Anthropic gives to users.
const (
	ownKey   = "sk-ant-api"
	ownToken = "sk-ant-oat"
)

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// bearer returns the token of an Authorization header, or "" for another scheme.
func bearer(value string) string {
	scheme, token, ok := strings.Cut(value, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
