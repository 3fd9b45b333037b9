package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cc-relay/internal/keypool"
	"cc-relay/internal/provider"
	"cc-relay/internal/secret"
)

var (
	providerName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	// headerName is a token of https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
	headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
)

// fixedHeaders belong to a connection or to how bodies are sent, which the relay
// decides; it could not read a compressed answer: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
var fixedHeaders = []string{
	"Accept-Encoding", "Connection", "Content-Length", "Host", "Keep-Alive", "Proxy-Authenticate",
	"Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

func checkProviders(r *report, providers []Provider) {
	if len(providers) == 0 {
		r.addf("providers", "none; %s", minimal.in(r.file))
	}
	names, keys := map[string]int{}, map[string]string{}
	for i, p := range providers {
		path := fmt.Sprintf("providers[%d]", i)
		if r.failed[path] {
			continue
		}
		if !providerName.MatchString(p.Name) {
			r.addf(path+".name", "not a name; write lower-case letters, digits, - and _, a letter or digit first")
		} else if other, dup := names[p.Name]; dup {
			r.addf(path+".name", "same name as providers[%d]; give each provider its own", other)
		} else {
			names[p.Name] = i
		}
		checkOneOf(r, path+".kind", p.Kind, provider.Kinds()...)
		checkOneOf(r, path+".auth", p.Auth, provider.AuthAPIKey, provider.AuthBearer)
		checkOneOf(r, path+".pool.strategy", p.Pool.Strategy, keypool.Strategies()...)
		if p.Pool.Affinity != "" {
			checkOneOf(r, path+".pool.affinity", p.Pool.Affinity, keypool.AffinityOn, keypool.AffinityOff)
		}
		if w := p.Pool.MaxWait; w != nil && (*w < 0 || *w > keypool.LongestMaxWait) {
			r.addf(path+".pool.max_wait", "%s is not a wait; write 0s (never wait) to %s", *w, keypool.LongestMaxWait)
		}
		if n := p.Pool.MaxWaiting; n != nil && (*n < 1 || *n > anyCount) {
			r.addf(path+".pool.max_waiting", "%d is not a number of requests; write 1 to %d", *n, anyCount)
		}
		checkDuration(r, path+".dial_timeout", p.DialTimeout)
		checkDuration(r, path+".first_token_timeout", p.FirstTokenTimeout)
		checkDuration(r, path+".response_timeout", p.ResponseTimeout)
		checkDuration(r, path+".idle_timeout", p.IdleTimeout)
		if p.HealthCheck < 0 || p.HealthCheck > 0 && p.HealthCheck < time.Second {
			r.addf(path+".health_check", "%s is too often; write 1s or more, or 0s for none", p.HealthCheck)
		}
		if p.Origin != "" && !providerName.MatchString(p.Origin) {
			r.addf(path+".origin", "not a name; write lower-case letters, digits, - and _, such as anthropic")
		}
		if err := baseURLError(p.BaseURL, p.AllowHTTP); err != nil {
			r.add(path+".base_url", err)
		}
		if err := caFileError(p.CAFile); err != nil {
			r.add(path+".ca_file", err)
		}
		auth := ""
		if len(p.Keys) > 0 {
			auth = authHeader(p.Auth)
		}
		checkHeaders(r, path+".headers.", p.Headers, auth)
		checkKeys(r, path, p, keys)
	}
}

func baseURLError(raw string, allowHTTP bool) error {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return errors.New("missing; write https://HOST, with a path prefix if the provider has one")
	case err != nil || u.Host == "" || u.Hostname() == "" || !isVisible(raw) || (u.Scheme != "http" && u.Scheme != "https"):
		return errors.New("not an absolute URL; write https://HOST, with a path prefix if the provider has one")
	case u.User != nil:
		return errors.New("must not hold a user name or password; credentials belong under keys or headers")
	case strings.ContainsAny(raw, "?#"):
		return errors.New("must not have a query or a fragment; end it before the ? or #")
	case strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/messages"):
		return errors.New("must end before /v1/messages, which the relay adds")
	case u.Scheme == "http" && !allowHTTP && !isLoopback(u.Hostname()):
		return errors.New("plain http would send keys and prompts unencrypted; write https://, or set allow_http: true")
	}
	if port := u.Port(); port != "" {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return errors.New("the port must be a number up to 65535")
		}
	}
	return nil
}

var errNoCertificate = errors.New("has no PEM certificate that can be read; name a file with BEGIN CERTIFICATE lines")

// caFileError reads the file now: a CA that is found unreadable later would fail
// every request.
func caFileError(path string) error {
	if path == "" {
		return nil
	}
	data, _, err := readFile(path, 4*maxFileBytes)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		return errNoCertificate
	}
	return nil
}

// checkHeaders checks headers that are set on each request; auth is the one that
// carries a key, or "".
func checkHeaders(r *report, path string, headers map[string]secret.Value, auth string) {
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		at := path + name
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !headerName.MatchString(name):
			r.addf(at, "not a header name; write letters, digits and -")
		case slices.Contains(fixedHeaders, canonical):
			r.addf(at, "is set by the relay or the connection; remove it")
		case seen[canonical]:
			r.addf(at, "written twice, in upper and lower case; remove one")
		case canonical == auth:
			r.addf(at, "carries the key from keys; remove it, or remove keys")
		case !isHeaderValue(headers[name]):
			r.addf(at, "has a line break or a control character; remove it")
		}
		seen[canonical] = true
	}
}

func authHeader(auth string) string {
	if auth == provider.AuthBearer {
		return "Authorization"
	}
	return "X-Api-Key"
}

func isHeaderValue(v secret.Value) bool {
	return !strings.ContainsFunc(v.Reveal(), func(c rune) bool { return (c < ' ' && c != '\t') || c == 0x7f })
}

// checkKeys reports a key that an earlier provider at the same place has too:
// both pools would count its limits as their own. owners maps a place and a key
// to the path that had it first.
func checkKeys(r *report, path string, p Provider, owners map[string]string) {
	if len(p.Keys) == 0 && len(p.Headers) == 0 && p.BaseURL == anthropicURL {
		r.addf(path+".keys", `none, but %s asks for one; write keys: [{ key: "${ANTHROPIC_API_KEY}" }]`, anthropicURL)
	}
	origin := originOf(p.BaseURL)
	for i, k := range p.Keys {
		at := fmt.Sprintf("%s.keys[%d]", path, i)
		if r.failed[at] {
			continue
		}
		checkLimits(r, at, k)
		checkOrganization(r, at, k, p.Keys[:i])
		if k.Priority != nil && (*k.Priority < keypool.PriorityLow || *k.Priority > keypool.PriorityHigh) {
			r.add(at+".priority", &InvalidPriorityError{Provider: p.Name, Key: i, Value: *k.Priority})
		}
		if k.Weight != nil && (*k.Weight < 1 || *k.Weight > maxWeight) {
			r.add(at+".weight", &InvalidWeightError{Provider: p.Name, Key: i, Value: *k.Weight})
		}
		at += ".key"
		if k.Key.IsZero() {
			r.addf(at, `empty; write the key, or "${NAME}" to take it from the environment`)
			continue
		}
		if !isVisible(k.Key.Reveal()) {
			r.addf(at, "has a space, a line break or a character that no key has; remove it")
		}
		id := origin + " " + k.ID()
		if other, dup := owners[id]; dup {
			r.addf(at, "same key as %s; remove one", other)
			continue
		}
		owners[id] = at
	}
}

// checkOrganization reports a limit that an earlier key of the same organization
// gives otherwise: they share one.
func checkOrganization(r *report, path string, k keypool.KeyConfig, earlier []keypool.KeyConfig) {
	if k.Organization == "" {
		return
	}
	for i, e := range earlier {
		if e.Organization != k.Organization {
			continue
		}
		for _, limit := range []struct {
			name      string
			here, was int
		}{{"rpm_limit", k.RPMLimit, e.RPMLimit}, {"itpm_limit", k.ITPMLimit, e.ITPMLimit}, {"otpm_limit", k.OTPMLimit, e.OTPMLimit}} {
			if limit.here != 0 && limit.was != 0 && limit.here != limit.was {
				r.addf(path+"."+limit.name, "%d, but keys[%d] of the same organization says %d; an organization has one limit", limit.here, i, limit.was)
			}
		}
	}
}

func checkLimits(r *report, path string, k keypool.KeyConfig) {
	for _, limit := range []struct {
		name  string
		value int
	}{{"rpm_limit", k.RPMLimit}, {"itpm_limit", k.ITPMLimit}, {"otpm_limit", k.OTPMLimit}} {
		if limit.value < 0 || limit.value > maxLimit {
			r.addf(path+"."+limit.name, "%d is not a limit; write 0 (not known) to %d a minute", limit.value, maxLimit)
		}
	}
}

// originOf is a base URL in the one form under which equal upstreams are equal.
func originOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	prefix := strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/v1")
	return u.Scheme + "://" + net.JoinHostPort(host, port) + prefix
}
