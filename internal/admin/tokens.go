package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"

	"cc-relay/internal/state"
)

// Files of the tokens in the state directory.
const (
	adminToken  = "admin.token"
	viewerToken = "viewer.token"
)

// Whose a token is.
const (
	tokenAdmin  = "admin"
	tokenViewer = "viewer"
)

// tokens are the keyed hashes of the two tokens: the tokens themselves are in their
// files alone.
type tokens struct {
	key           [sha256.Size]byte // random, of this handler
	admin, viewer [sha256.Size]byte
}

func loadTokens(dir *state.Dir, key [sha256.Size]byte) (*tokens, error) {
	admin, _, err := dir.Token(adminToken)
	if err != nil {
		return nil, err
	}
	viewer, _, err := dir.Token(viewerToken)
	if err != nil {
		return nil, err
	}
	t := &tokens{key: key}
	t.admin, t.viewer = t.keyed(admin), t.keyed(viewer)
	return t, nil
}

// keyed is the hash that a token is kept and compared by. A key before a message of
// fixed length needs no HMAC.
func (t *tokens) keyed(token string) [sha256.Size]byte {
	hash := sha256.Sum256([]byte(token))
	return sha256.Sum256(append(t.key[:], hash[:]...))
}

// whose returns tokenAdmin, tokenViewer, or "" for a token that is neither. It
// compares with both, and the time tells nothing of either. Of nil it is nobody's.
func (t *tokens) whose(presented string) string {
	if t == nil {
		return ""
	}
	hash := t.keyed(presented)
	admin := subtle.ConstantTimeCompare(hash[:], t.admin[:])
	viewer := subtle.ConstantTimeCompare(hash[:], t.viewer[:])
	switch {
	case admin == 1:
		return tokenAdmin
	case viewer == 1:
		return tokenViewer
	}
	return ""
}

// presented returns the token of the Authorization header: of Bearer, and for scraping
// the password of Basic, whatever the user's name. "" for anything else, also for a
// header that is there twice.
func presented(h http.Header, basic bool) string {
	values := h["Authorization"]
	if len(values) != 1 {
		return ""
	}
	scheme, rest, _ := strings.Cut(values[0], " ")
	rest = strings.TrimSpace(rest)
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return rest
	case basic && strings.EqualFold(scheme, "Basic"):
		decoded, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			return ""
		}
		_, password, _ := strings.Cut(string(decoded), ":")
		return password
	}
	return ""
}
