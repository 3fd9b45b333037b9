package admin

import (
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// addressed refuses a request for a name that is not ours: a page whose name leads to
// our address could send it. A page cannot have an IP address for a name, nor reach a
// unix socket.
func (h *Handler) addressed(c *call) bool {
	if overUnix(c.r) || c.r.URL.Host == "" && h.ours(c.r.Host) {
		return true
	}
	h.refuse(c, http.StatusForbidden, "host_refused", "use the admin's IP address or localhost, or list this name in admin.allowed_hosts")
	return false
}

func (h *Handler) ours(hostport string) bool {
	host := hostport
	if name, _, err := net.SplitHostPort(hostport); err == nil {
		host = name
	}
	if _, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")); err == nil {
		return true
	}
	if strings.HasPrefix(hostport, "[") { // only an address may be written so
		return false
	}
	same := func(allowed string) bool { return strings.EqualFold(strings.TrimSuffix(host, "."), allowed) }
	return same("localhost") || slices.ContainsFunc(*h.hosts.Load(), same)
}

func overUnix(r *http.Request) bool {
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && addr.Network() == "unix"
}

// sameOrigin refuses what a page of another origin sent, whatever its method.
func (h *Handler) sameOrigin(c *call) bool {
	site := c.r.Header.Get("Sec-Fetch-Site")
	foreign := site != "" && site != "same-origin" && site != "none"
	for _, origin := range c.r.Header["Origin"] {
		u, err := url.Parse(origin)
		foreign = foreign || err != nil || u.Host == "" || u.Host != c.r.Host
	}
	if !foreign && h.cross.Check(c.r) == nil {
		return true
	}
	h.refuse(c, http.StatusForbidden, "cross_site", "requests from pages of another origin are refused")
	return false
}

// identify refuses a request without one of the two tokens. A right token is let in
// however many wrong ones its address has sent: nobody can guess 256 random bits, so
// the throttle is there to bound the work and the log, not to lock anybody out.
func (h *Handler) identify(c *call) bool {
	if c.token = h.tokens.Load().whose(presented(c.r.Header, c.route != nil && c.route.scrape)); c.token != "" {
		return true
	}
	wait := h.throttle.failed(c.source, time.Now())
	if wait > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		h.refuse(c, http.StatusTooManyRequests, "throttled", "too many requests without a valid token from this address; send one as Authorization: Bearer")
		return false
	}
	h.cfg.Log.Warn().Str("request_id", c.id).Str("source", c.source).Msg("admin request without a valid token")
	c.w.Header().Set("WWW-Authenticate", `Bearer realm="cc-relay admin"`)
	h.refuse(c, http.StatusUnauthorized, "unauthorized", "send the token in "+adminToken+" or "+viewerToken+" of the state directory as Authorization: Bearer")
	return false
}

// sourceOf is the address that a request came from, without the port.
func sourceOf(r *http.Request) string {
	if overUnix(r) {
		return "unix"
	}
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		return ap.Addr().Unmap().WithZone("").String()
	}
	return "unknown"
}

// How many failures an address may have at once, how long each takes to be forgiven,
// and how many addresses are remembered.
const (
	failureBurst = 10
	failureEvery = 6 * time.Second
	maxSources   = 4096
)

// throttle counts failures by source.
type throttle struct {
	mu      sync.Mutex
	sources *simplelru.LRU[string, time.Time] // until when all failures are forgiven
}

func newThrottle() *throttle {
	// The only error is a size that is not positive.
	sources, _ := simplelru.NewLRU[string, time.Time](maxSources, nil)
	return &throttle{sources: sources}
}

// failed counts a failure and returns 0, or how long until the source has one left;
// then it counts nothing, and the wait does not grow.
func (t *throttle) failed(source string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := network(source)
	until, _ := t.sources.Get(key)
	if until.Before(now) {
		until = now
	}
	until = until.Add(failureEvery)
	if wait := until.Sub(now) - failureBurst*failureEvery; wait > 0 {
		return wait
	}
	t.sources.Add(key, until)
	return 0
}

// network is what one party has at its disposal: an address, or of IPv6 a /64.
func network(source string) string {
	addr, err := netip.ParseAddr(source)
	if err != nil || addr.Is4() {
		return source
	}
	prefix, err := addr.Prefix(64)
	if err != nil {
		return source
	}
	return prefix.String()
}
