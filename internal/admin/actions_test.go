package admin_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/admin"
	"cc-relay/internal/keypool"
)

func TestActions(t *testing.T) {
	a := idOf(keyA)
	for name, tc := range map[string]struct {
		path, body string
		want       admin.ActionResult
		did        string
		expires    time.Duration
	}{
		"key off": {"/api/v1/keys/" + a + "/off", "", admin.ActionResult{
			Action: "key.off", Target: "one/" + a,
			Message: "key " + a + " of one is off: it gets no new requests, those under way go on; a restart puts it on again",
		}, "off one " + a, 0},
		"key on": {"/api/v1/keys/" + idOf(keyBoth) + "/on", `{"provider":"two"}`, admin.ActionResult{
			Action: "key.on", Target: "two/" + idOf(keyBoth), SurvivesRestart: true,
			Message: "key " + idOf(keyBoth) + " of two is on; where the provider has refused it, release ends that",
		}, "on two " + idOf(keyBoth), 0},
		"breaker open": {"/api/v1/breakers/force", `{"provider":"two","class":"opus-5","state":"open"}`, admin.ActionResult{
			Action: "breaker.force", Target: "two/opus-5",
			Message: "the breaker of class opus-5, of which no request has come lately, at two: held open for 10m0s, at most until a restart; a request that nothing else can serve may still try it once, where draining the provider would keep it away",
		}, `force two "opus-5" open 10m0s`, 10 * time.Minute},
		"breaker of a class that is used": {"/api/v1/breakers/force", `{"provider":"one","class":"sonnet-5","state":"auto"}`, admin.ActionResult{
			Action: "breaker.force", Target: "one/sonnet-5", SurvivesRestart: true,
			Message: "the breaker of class sonnet-5 at one: what was said before is taken back",
		}, `force one "sonnet-5" closed 0s`, 0},
		"all breakers closed": {"/api/v1/breakers/force", `{"provider":"two","state":"closed","for":"24h"}`, admin.ActionResult{
			Action: "breaker.force", Target: "two",
			Message: "the breakers of every class at two: held closed for 24h0m0s, at most until a restart",
		}, `force two "" closed 24h0m0s`, 24 * time.Hour},
		"breaker auto": {"/api/v1/breakers/force", `{"provider":"two","state":"auto"}`, admin.ActionResult{
			Action: "breaker.force", Target: "two", SurvivesRestart: true,
			Message: "the breakers of every class at two: what was said before is taken back",
		}, `force two "" closed 0s`, 0},
		"reload": {"/api/v1/reload", "{}", admin.ActionResult{
			Action: "reload", SurvivesRestart: true,
			Message: "the configuration is in force; restart the relay for server.listen",
			Reload:  &admin.Reload{Changed: []string{"providers"}, NeedsRestart: []string{"server.listen"}},
		}, "reload", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.one.Lane("sonnet-5") // a request has come
				got := answered[admin.ActionResult](t, w.do("POST", tc.path, w.admin, tc.body))
				assert.Equal(t, []string{tc.did}, w.done())
				tc.want.RequestID = got.RequestID
				if tc.expires > 0 {
					tc.want.Expires = time.Now().Add(tc.expires).UTC()
				}
				assert.Equal(t, tc.want, got)

				audit := w.audit()
				require.Len(t, audit, 2)
				for i, phase := range []string{"asked", "done"} {
					r := audit[i]
					assert.Equal(t, admin.Record{
						Time: time.Now().UTC(), Phase: phase, Action: tc.want.Action, Target: tc.want.Target, Params: r.Params,
						Token: "admin", Source: "127.0.0.1", RequestID: got.RequestID,
					}, r)
				}
			})
		})
	}
}

func TestKeyRelease(t *testing.T) {
	w := newWorld(t)
	w.one.Pool.MarkKeyDead(idOf(keyA), keypool.ReasonUnauthorized)
	assert.Equal(t, 1, w.one.Pool.GetStats().Dead)
	got := answered[admin.ActionResult](t, w.do("POST", "/api/v1/keys/"+idOf(keyA)+"/release", w.admin, ""))
	assert.Equal(t, "key.release", got.Action)
	assert.Equal(t, 0, w.one.Pool.GetStats().Dead)
}

func TestProviderDrain(t *testing.T) {
	w := newWorld(t)
	got := answered[admin.ActionResult](t, w.do("POST", "/api/v1/providers/two/drain", w.admin, ""))
	assert.Equal(t, "two", got.Target)
	assert.False(t, got.SurvivesRestart)
	assert.True(t, w.draining[w.two])
	got = answered[admin.ActionResult](t, w.do("POST", "/api/v1/providers/two/on", w.admin, ""))
	assert.True(t, got.SurvivesRestart)
	assert.False(t, w.draining[w.two])
	refused(t, w.do("POST", "/api/v1/providers/three/on", w.admin, ""), http.StatusNotFound, "not_found")
}

func TestWhichKey(t *testing.T) {
	w := newWorld(t)
	refused(t, w.do("POST", "/api/v1/keys/"+idOf(keyBoth)+"/off", w.admin, ""), http.StatusConflict, "ambiguous")
	refused(t, w.do("POST", "/api/v1/keys/000000000000/off", w.admin, ""), http.StatusNotFound, "not_found")
	refused(t, w.do("POST", "/api/v1/keys/"+idOf(keyA)+"/off", w.admin, `{"provider":"two"}`), http.StatusNotFound, "not_found")
	assert.Empty(t, w.done())
	assert.Empty(t, w.audit())
	w.fail = keypool.ErrKeyNotFound // reloaded meanwhile
	refused(t, w.do("POST", "/api/v1/keys/"+idOf(keyA)+"/off", w.admin, ""), http.StatusNotFound, "not_found")
	assert.Equal(t, "failed", w.audit()[1].Phase)
}

func TestWhatARelayDoesNotOffer(t *testing.T) {
	w := newWorld(t, func(c *admin.Config) {
		c.Relay = admin.Relay{Upstreams: c.Relay.Upstreams}
	})
	for _, r := range admin.Routes() {
		code := w.asked(r, func(req *http.Request) { req.Header.Set("Authorization", "Bearer "+w.admin) })
		assert.Contains(t, []int{http.StatusOK, http.StatusNotFound}, code, r.Path)
	}
	refused(t, w.do("GET", "/metrics", w.viewer, ""), http.StatusNotFound, "not_found")
	for _, rec := range w.audit() {
		assert.Equal(t, "key.release", rec.Action)
	}
}

func TestAFailedReload(t *testing.T) {
	w := newWorld(t)
	w.fail = errors.New("config.yaml:3:1: unknown setting " + keyA)
	rec := w.do("POST", "/api/v1/reload", w.admin, "")
	refused(t, rec, http.StatusUnprocessableEntity, "failed")
	assert.Contains(t, rec.Body.String(), "the configuration in force stays as it was: config.yaml:3:1: unknown setting [redacted]")
	audit := w.audit()
	require.Len(t, audit, 2)
	assert.Equal(t, "failed", audit[1].Phase)
	assert.Contains(t, audit[1].Error, "config.yaml:3:1: unknown setting [redacted]")
}

// Whoever asked for a reload and left gets it all the same, and it is bounded.
func TestAReloadGoesOnWithoutItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *admin.Config) {
			c.Relay.Reload = func(ctx context.Context) (admin.Reload, error) {
				<-ctx.Done()
				return admin.Reload{}, ctx.Err()
			}
		})
		r := request("POST", "/api/v1/reload", w.admin, "")
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		start := time.Now()
		refused(t, w.send(r.WithContext(ctx)), http.StatusUnprocessableEntity, "failed")
		assert.Equal(t, 30*time.Second, time.Since(start))
	})
}

func TestPanics(t *testing.T) {
	w := newWorld(t, func(c *admin.Config) {
		c.Relay.Reload = func(context.Context) (admin.Reload, error) { panic(keyA) }
		c.Relay.Requests = func(int) any { panic(keyA) }
		c.Relay.Config = func() ([]byte, error) { panic(http.ErrAbortHandler) }
	})
	refused(t, w.do("POST", "/api/v1/reload", w.admin, ""), http.StatusUnprocessableEntity, "failed")
	assert.Equal(t, "failed", w.audit()[1].Phase)
	refused(t, w.do("GET", "/api/v1/requests", w.admin, ""), http.StatusInternalServerError, "failed")
	assert.PanicsWithValue(t, http.ErrAbortHandler, func() { w.do("GET", "/api/v1/config", w.admin, "") })
	assert.Contains(t, w.log.String(), "panicked")
	assert.NotContains(t, w.log.String(), keyA)
}

func TestAnswersThatAreNoJSON(t *testing.T) {
	w := newWorld(t, func(c *admin.Config) {
		c.Relay.Requests = func(int) any { return make(chan int) }
	})
	refused(t, w.do("GET", "/api/v1/requests", w.admin, ""), http.StatusInternalServerError, "failed")
}

func TestLooking(t *testing.T) {
	w := newWorld(t)
	assert.Equal(t, map[string][]int{"requests": {50}}, answered[map[string][]int](t, w.do("GET", "/api/v1/requests", w.viewer, "")))
	assert.Equal(t, map[string][]int{"requests": {7}}, answered[map[string][]int](t, w.do("GET", "/api/v1/requests?limit=7", w.viewer, "")))
	for _, limit := range []string{"0", "1001", "x", "-1", "1.5"} {
		refused(t, w.do("GET", "/api/v1/requests?limit="+limit, w.viewer, ""), http.StatusBadRequest, "invalid_request")
	}
	assert.Equal(t, "r1", answered[map[string]string](t, w.do("GET", "/api/v1/requests/r1", w.viewer, ""))["id"])
	refused(t, w.do("GET", "/api/v1/requests/r2", w.viewer, ""), http.StatusNotFound, "not_found")
	assert.Equal(t, admin.ConfigText{Format: "yaml", Text: "key: [redacted]\n"}, answered[admin.ConfigText](t, w.do("GET", "/api/v1/config", w.viewer, "")))
	assert.Equal(t, admin.ConfigDiff{Changed: []string{}, NeedsRestart: []string{}}, answered[admin.ConfigDiff](t, w.do("POST", "/api/v1/config/diff", w.viewer, "")))
	got := answered[map[string]any](t, w.do("POST", "/api/v1/explain", w.viewer, `{"model":"m","tokens":1,"max_tokens":2,"client":"c"}`))
	assert.Equal(t, map[string]any{"model": "m", "tokens": 1.0, "max_tokens": 2.0, "client": "c"}, got["asked"])
	refused(t, w.do("POST", "/api/v1/explain", w.viewer, `{"model":"nowhere"}`), http.StatusBadRequest, "invalid_request")
	for _, body := range []string{"", `{"tokens":1}`, `{"model":"m","tokens":-1}`, `{"model":"m","max_tokens":-1}`} {
		refused(t, w.do("POST", "/api/v1/explain", w.viewer, body), http.StatusBadRequest, "invalid_request", body)
	}
	assert.Empty(t, w.audit(), "who looks leaves no record")
}
