package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"cc-relay/internal/auth"
	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
)

// Bounds of numbers. A limit above a thousand million a minute is a slip.
const (
	maxWeight      = 1000
	maxLimit       = 1_000_000_000
	maxBody        = 1 << 30
	minTokenLength = 8
)

var (
	logLevels  = []string{"trace", "debug", "info", "warn", "error"}
	logFormats = []string{"json", "console"}
)

var clientName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// Validate checks a configuration that was changed or built by hand, as after a
// flag replaced a value. The error joins one *Mistake for everything that is
// wrong, without lines. It reads the certificates, CA files and prices that c names.
func (c *Config) Validate() error {
	r := newReport("configuration")
	c.validate(r)
	return r.err()
}

func (c *Config) validate(r *report) {
	c.checkListeners(r)
	checkDuration(r, "server.drain_timeout", c.Server.DrainTimeout)
	if c.Server.MaxBodyBytes < 1 || c.Server.MaxBodyBytes > maxBody {
		r.addf("server.max_body_bytes", "%d is not a size; write 1 to %d bytes", c.Server.MaxBodyBytes, maxBody)
	}
	c.checkBounds(r)
	checkOneOf(r, "server.state", c.Server.State, StateOn, StateOff)
	if dir := c.Server.StateDir; dir != "" && (!filepath.IsAbs(dir) || strings.ContainsRune(dir, 0)) {
		r.addf("server.state_dir", `not an absolute path; write one, such as /var/lib/cc-relay or "${HOME}/.cc-relay"`)
	}
	checkOneOf(r, "logging.level", c.Logging.Level, logLevels...)
	checkOneOf(r, "logging.format", c.Logging.Format, logFormats...)
	checkOneOf(r, "metrics", c.Metrics, MetricsOn, MetricsOff)
	checkTracing(r, c.Tracing)
	checkClients(r, c.Clients)
	checkClasses(r, c.Classes)
	checkProviders(r, c.Providers)
	c.checkRoutes(r)
	if c.Prices != "" {
		checkPriceFile(r, c.Prices)
	}
	if c.Passthrough && len(c.Providers) > 0 {
		c.checkPassthrough(r)
	}
}

// checkPassthrough sees to it that clients' own credentials have where to go.
func (c *Config) checkPassthrough(r *report) {
	if !slices.ContainsFunc(c.Providers, func(p Provider) bool { return p.WithDefaults().Origin == provider.OriginAnthropic }) {
		r.addf("passthrough", "no provider is Anthropic's, and a client's own credential goes to no other; add one, or set origin: anthropic on one that is")
	}
}

func checkClients(r *report, clients []auth.ClientConfig) {
	names, tokens := map[string]int{}, map[[sha256.Size]byte]int{}
	for i, c := range clients {
		path := fmt.Sprintf("clients[%d]", i)
		if r.failed[path] {
			continue
		}
		if !clientName.MatchString(c.Name) {
			r.addf(path+".name", "not a name; write up to 64 letters, digits, dots, - _ or @")
		} else if other, dup := names[c.Name]; dup {
			r.addf(path+".name", "same name as clients[%d]; give each client its own", other)
		} else {
			names[c.Name] = i
		}
		hash, ok := checkToken(r, path, c)
		if !ok {
			continue
		}
		if other, dup := tokens[hash]; dup {
			r.addf(path, "same token as clients[%d]; give each client its own", other)
			continue
		}
		tokens[hash] = i
	}
}

// checkToken returns the hash of a client's token if the client has a sound one.
func checkToken(r *report, path string, c auth.ClientConfig) (hash [sha256.Size]byte, ok bool) {
	switch {
	case r.failed[path+".token"] || r.failed[path+".token_sha256"]:
		return hash, false
	case !c.Token.IsZero() && c.TokenSHA256 != "":
		r.addf(path, "has a token and a token_sha256; write one of them")
		return hash, false
	case c.TokenSHA256 != "":
		raw, err := hex.DecodeString(c.TokenSHA256)
		if err != nil || len(raw) != sha256.Size {
			r.addf(path+".token_sha256", "not a SHA-256; write 64 hexadecimal digits")
			return hash, false
		}
		return [sha256.Size]byte(raw), true
	case c.Token.IsZero():
		r.addf(path+".token", "empty; write a token of at least %d characters, or a token_sha256", minTokenLength)
		return hash, false
	}
	token := c.Token.Reveal()
	if len(token) < minTokenLength {
		r.addf(path+".token", "shorter than %d characters; make one with: openssl rand -hex 24", minTokenLength)
		return hash, false
	}
	if !isVisible(token) {
		r.addf(path+".token", "has a space or a character that no header can carry; remove it")
		return hash, false
	}
	return sha256.Sum256([]byte(token)), true
}

// checkClasses also reports a pattern that an earlier rule has: the second would
// never match.
func checkClasses(r *report, rules []keypool.ClassRule) {
	first := map[string]int{}
	for i, rule := range rules {
		path := fmt.Sprintf("classes[%d]", i)
		if r.failed[path] {
			continue
		}
		if err := keypool.CheckClassName(rule.Class); err != nil {
			r.add(path+".class", err)
		}
		if len(rule.Models) == 0 {
			r.addf(path+".models", `none; write models: ["NAME"], with * for any characters`)
		}
		for j, pattern := range rule.Models {
			at := fmt.Sprintf("%s.models[%d]", path, j)
			if err := keypool.CheckModelPattern(pattern); err != nil {
				r.add(at, err)
			} else if other, dup := first[pattern]; dup {
				r.addf(at, "same as in classes[%d], which comes first; remove one", other)
			} else {
				first[pattern] = i
			}
		}
	}
}

// checkOneOf does not repeat the value, which may be a secret in the wrong place.
func checkOneOf(r *report, path, value string, known ...string) {
	if slices.Contains(known, value) {
		return
	}
	if near := nearest(value, known); near != "" {
		r.addf(path, "unknown; did you mean %s?", near)
		return
	}
	r.addf(path, "unknown; write %s", strings.Join(known, " or "))
}

func checkDuration(r *report, path string, v time.Duration) {
	if v <= 0 {
		r.addf(path, "%s is no time; write a duration above 0, such as 30s or 10m", v)
	}
}

// isVisible reports whether s is visible ASCII only, as credentials are: they
// travel as one word of a header.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}
