package proxy

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"cc-relay/internal/keypool"
)

// shown are the response headers that pass besides the Anthropic- family.
var shown = map[string]bool{
	"Content-Type":   true,
	"Request-Id":     true,
	"Retry-After":    true,
	"X-Should-Retry": true,
}

// hidden are the members of the Anthropic- family that speak of one key or its
// organization; clients would take them for the pool's.
func hidden(name string) bool {
	return strings.HasPrefix(name, "Anthropic-Ratelimit-") ||
		strings.HasPrefix(name, "Anthropic-Priority-") ||
		strings.HasPrefix(name, "Anthropic-Fast-") ||
		name == "Anthropic-Organization-Id" || name == "Anthropic-Workspace-Id"
}

// showHeaders adds to dst what a client may see of an upstream's headers. A
// value that holds a known secret is left out.
func (x *exchange) showHeaders(dst, src http.Header) {
	for name, values := range src {
		if !shown[name] && (!strings.HasPrefix(name, "Anthropic-") || hidden(name) && !x.own) {
			continue
		}
		if name == "Retry-After" && !x.own { // clients read whole seconds only
			if d := keypool.ParseRetryAfter(src); d > 0 {
				dst[name] = []string{retryAfter(d)}
			}
			continue
		}
		clean := true
		for _, v := range values {
			clean = clean && x.live.scrub.Load().clean(v) == v
		}
		if clean {
			dst[name] = values
		}
	}
	dst["Cache-Control"] = noStore
	x.expose(dst)
}

// showLimits tells a client the limits of the whole pool in the headers in which a
// provider tells those of one organization, as far as all of them are known.
func (x *exchange) showLimits(dst http.Header, pool *keypool.KeyPool) {
	if x.demand.Class == keypool.ClassModels || x.own {
		return
	}
	limits := pool.ClassLimits(x.demand.Class)
	input, output := &inputLimitHeaders, &outputLimitHeaders
	if x.fast {
		input, output = &fastInputHeaders, &fastOutputHeaders
	}
	for _, l := range [...]struct {
		names *[3]string
		keypool.PoolLimit
	}{{&requestLimitHeaders, limits.Requests}, {input, limits.Input}, {output, limits.Output}} {
		if l.Limit == 0 {
			continue
		}
		dst[l.names[0]] = []string{strconv.Itoa(l.Limit)}
		dst[l.names[1]] = []string{strconv.Itoa(l.Remaining)}
		dst[l.names[2]] = []string{time.Now().Add(l.Full + time.Second - 1).UTC().Truncate(time.Second).Format(time.RFC3339)}
	}
}

// The names under which a provider tells limits: each kind's limit, what remains of it,
// and when it is full.
var (
	requestLimitHeaders = [3]string{"Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"}
	inputLimitHeaders   = [3]string{"Anthropic-Ratelimit-Input-Tokens-Limit", "Anthropic-Ratelimit-Input-Tokens-Remaining", "Anthropic-Ratelimit-Input-Tokens-Reset"}
	outputLimitHeaders  = [3]string{"Anthropic-Ratelimit-Output-Tokens-Limit", "Anthropic-Ratelimit-Output-Tokens-Remaining", "Anthropic-Ratelimit-Output-Tokens-Reset"}
	fastInputHeaders    = [3]string{"Anthropic-Fast-Input-Tokens-Limit", "Anthropic-Fast-Input-Tokens-Remaining", "Anthropic-Fast-Input-Tokens-Reset"}
	fastOutputHeaders   = [3]string{"Anthropic-Fast-Output-Tokens-Limit", "Anthropic-Fast-Output-Tokens-Remaining", "Anthropic-Fast-Output-Tokens-Reset"}
)

var noStore = []string{"no-store"}

// expose adds the relay's own headers.
func (x *exchange) expose(dst http.Header) {
	if x.live.Config.HideRelay {
		return
	}
	values := []string{x.id, strconv.Itoa(x.attempts), strconv.FormatInt(x.waited.Milliseconds(), 10), x.provider, x.keyID}
	dst["X-Cc-Relay-Request-Id"] = values[0:1:1]
	dst["X-Cc-Relay-Attempts"] = values[1:2:2]
	dst["X-Cc-Relay-Wait-Ms"] = values[2:3:3]
	if x.attempts > 0 {
		dst["X-Cc-Relay-Provider"] = values[3:4:4]
		dst["X-Cc-Relay-Key"] = values[4:5:5]
	}
}

// Claude Code waits for a retry-after of up to 60 s and gives up at once above
// it, and lasts about three minutes in all. So a pool that recovers within those
// is waited for in steps, and one that does not is named with its true time.
const (
	longestWait = 60 * time.Second
	patience    = 180 * time.Second
)

// retryAfter is the header for a pool that is dry for d: whole seconds, rounded
// up, at least 1.
func retryAfter(d time.Duration) string {
	if d <= patience {
		d = min(d, longestWait)
	}
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
