package admin_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"cc-relay/internal/admin"
)

// filled gives a route's path something to stand for its braces.
func filledPath(path string) string {
	path = strings.Replace(path, "requests/{id}", "requests/r1", 1)
	return strings.NewReplacer("{id}", idOf(keyA), "{name}", "one", "{profile}", "goroutine").Replace(path)
}

// asked sends a request to a route, whose client leaves at once where it streams.
func (w *world) asked(r admin.RouteInfo, change func(*http.Request)) int {
	body := ""
	switch r.Path {
	case "/api/v1/explain":
		body = `{"model":"m"}`
	case "/api/v1/breakers/force":
		body = `{"provider":"one","state":"auto"}`
	}
	req := request(r.Method, filledPath(r.Path), "", body)
	change(req)
	if r.Path == "/api/v1/events" {
		ctx, cancel := context.WithCancel(req.Context())
		cancel()
		req = req.WithContext(ctx)
	}
	return w.send(req).Code
}

func TestSecurity_S03_S06_EachRouteWithEachCredential(t *testing.T) {
	w := newWorld(t)
	codes := map[string]map[string]int{
		"none":       {"open": 200, "reader": 401, "actor": 401},
		"wrong":      {"open": 200, "reader": 401, "actor": 401},
		"data token": {"open": 200, "reader": 401, "actor": 401},
		"key":        {"open": 200, "reader": 401, "actor": 401},
		"x-api-key":  {"open": 200, "reader": 401, "actor": 401},
		"query":      {"open": 200, "reader": 401, "actor": 401},
		"twice":      {"open": 200, "reader": 401, "actor": 401},
		"viewer":     {"open": 200, "reader": 200, "actor": 403},
		"admin":      {"open": 200, "reader": 200, "actor": 200},
	}
	bearer := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	}
	credentials := map[string]func(*http.Request){
		"none":       func(*http.Request) {},
		"wrong":      bearer(strings.Repeat("0", 64)),
		"data token": bearer(dataToken),
		"key":        bearer(keyA),
		"x-api-key":  func(r *http.Request) { r.Header.Set("X-Api-Key", w.admin) },
		"query":      func(r *http.Request) { r.URL.RawQuery = "token=" + w.admin },
		"twice":      func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer " + w.admin, "Bearer " + w.admin} },
		"viewer":     bearer(w.viewer),
		"admin":      bearer(w.admin),
	}
	n := 0
	for _, r := range admin.Routes() {
		for name, set := range credentials {
			n++
			got := w.asked(r, func(req *http.Request) {
				req.RemoteAddr = fmt.Sprintf("10.0.%d.%d:1", n/250, n%250) // no throttle
				set(req)
			})
			assert.Equal(t, codes[name][r.Access], got, "%s %s with %s", r.Method, r.Path, name)
		}
	}
	open := 0
	for _, r := range admin.Routes() {
		assert.NotEmpty(t, r.Access, "%s %s says no access", r.Method, r.Path)
		if r.Access == "open" {
			open++
			assert.Equal(t, "/livez", r.Path)
		}
		assert.Equal(t, r.Access == "actor" && r.Method == "POST", r.Action != "", "%s %s", r.Method, r.Path)
	}
	assert.Equal(t, 1, open)
}

func TestSecurity_S02_TokensAreKeptAsKeyedHashes(t *testing.T) {
	w := newWorld(t)
	again, err := admin.New(admin.Config{Dir: w.dir, Relay: w.parts()})
	require.NoError(t, err)
	t.Cleanup(again.Close)
	kept, elsewhere := reflect.ValueOf(w.KeptTokens()), reflect.ValueOf(again.KeptTokens())
	hash := reflect.TypeFor[[sha256.Size]byte]()
	for i := range kept.NumField() {
		name := kept.Type().Field(i).Name
		require.Equal(t, hash, kept.Field(i).Type(), "%s is no whole hash", name)
		assert.False(t, kept.Field(i).Equal(elsewhere.Field(i)), "%s has no key of its own", name)
	}
}

// Tokens are told apart by all that is in them.
func TestSecurity_S02_EqualPrefixes(t *testing.T) {
	w := newWorld(t)
	prefix := strings.Repeat("ab", 31)
	tokens := map[string]string{"admin.token": prefix + "ab", "viewer.token": prefix + "ac"}
	for name, token := range tokens {
		require.NoError(t, os.WriteFile(w.path(name), []byte(token), 0o600))
	}
	require.NoError(t, w.ReadTokens())
	n := 0
	code := func(token string) int {
		n++
		return w.send(from(fmt.Sprintf("10.2.0.%d", n), request("POST", "/api/v1/reload", token, ""))).Code // no throttle
	}
	for name, token := range tokens {
		want := map[string]int{"admin.token": http.StatusOK, "viewer.token": http.StatusForbidden}[name]
		assert.Equal(t, want, code(token), name)
		for i := range token {
			other := token[:i] + "f" + token[i+1:]
			assert.Equal(t, http.StatusUnauthorized, code(other), "%s with another digit %d", name, i)
		}
		hash := fmt.Sprintf("%x", sha256.Sum256([]byte(token)))
		for _, other := range []string{prefix, token[:16], token + "0", strings.ToUpper(token), hash} {
			assert.Equal(t, http.StatusUnauthorized, code(other), "%s: %s", name, other)
		}
	}
}

func TestSecurity_S03_WhatIsNotInTheTable(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/", "/api/v1", "/api/v1/", "/api/v1/stats/", "//api/v1/stats", "/api/v1/./stats", "/api/v2/stats", "/api/v1/%73tats", "/debug/pprof/", "/debug/vars", "/api/v1/keys//off", "/API/V1/STATS", "/livez/", "/api/v1/keys/a%2Fb/on/x"} {
		refused(t, w.do("GET", path, "", ""), http.StatusUnauthorized, "unauthorized", path)
		refused(t, w.send(from("10.1.1.1", request("GET", path, w.admin, ""))), http.StatusNotFound, "not_found", path)
		w = newWorld(t) // its throttle is fresh
	}
	for _, method := range []string{"HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "POST"} {
		rec := w.send(from("10.1.1.2", request(method, "/api/v1/stats", "", "")))
		refused(t, rec, http.StatusUnauthorized, "unauthorized", method)
		rec = w.do(method, "/api/v1/stats", w.admin, "")
		refused(t, rec, http.StatusMethodNotAllowed, "method_not_allowed", method)
		assert.Equal(t, "GET", rec.Header().Get("Allow"))
	}
}

func from(addr string, r *http.Request) *http.Request {
	r.RemoteAddr = net.JoinHostPort(addr, "1")
	return r
}

// What a failure tells is the same whatever was wrong.
func TestSecurity_S05_FailuresAreUniform(t *testing.T) {
	w := newWorld(t)
	var bodies []string
	for i, auth := range []string{"", "Bearer", "Bearer x", "Basic eDp5", "Bearer " + w.admin[:63], "Bearer " + w.admin + "0", "bearer  " + strings.ToUpper(w.admin)[:63] + "x", w.admin} {
		r := from(fmt.Sprintf("10.0.0.%d", i), request("GET", "/api/v1/stats", "", "", "Authorization", auth))
		if auth == "" {
			r.Header.Del("Authorization")
		}
		rec := w.send(r)
		assert.Equal(t, http.StatusUnauthorized, rec.Code, auth)
		assert.Equal(t, `Bearer realm="cc-relay admin"`, rec.Header().Get("WWW-Authenticate"))
		bodies = append(bodies, rec.Body.String())
	}
	for _, b := range bodies {
		assert.Equal(t, bodies[0], b)
	}
	assert.Equal(t, http.StatusOK, w.do("GET", "/api/v1/stats", "", "", "Authorization", "bearer  "+w.admin).Code)
}

// unread fails the test when it is read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, http.ErrBodyNotAllowed
}
func (u unread) Close() error { return nil }

func TestSecurity_S05_NoBodyIsReadBeforeTheToken(t *testing.T) {
	w := newWorld(t)
	for _, r := range admin.Routes() {
		if r.Method != "POST" {
			continue
		}
		for _, token := range []string{"", "wrong"} {
			req := request("POST", filledPath(r.Path), token, "{}")
			req.Body = unread{t}
			w.send(req)
		}
	}
	w.send(request("POST", "/api/v1/reload", w.viewer, ""))
	assert.Empty(t, w.done())
	assert.Empty(t, w.audit())
}

func TestSecurity_S05_FailuresAreThrottledBySource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		fails := func(addr string) *httptest.ResponseRecorder {
			return w.send(from(addr, request("GET", "/api/v1/stats", "wrong", "")))
		}
		for range 10 {
			assert.Equal(t, http.StatusUnauthorized, fails("192.0.2.1").Code)
		}
		rec := fails("192.0.2.1")
		refused(t, rec, http.StatusTooManyRequests, "throttled")
		assert.Equal(t, "6", rec.Header().Get("Retry-After"))
		assert.Empty(t, rec.Header().Get("WWW-Authenticate"))
		assert.Equal(t, http.StatusUnauthorized, fails("192.0.2.2").Code, "another address")
		assert.Equal(t, http.StatusOK, w.send(from("192.0.2.1", request("GET", "/api/v1/stats", w.viewer, ""))).Code, "nobody is locked out")
		time.Sleep(6 * time.Second)
		assert.Equal(t, http.StatusUnauthorized, fails("192.0.2.1").Code)
		assert.Equal(t, http.StatusTooManyRequests, fails("192.0.2.1").Code)
		time.Sleep(time.Hour)
		assert.Equal(t, http.StatusUnauthorized, fails("192.0.2.1").Code)

		for i := range 10 { // one party has a whole /64
			assert.Equal(t, http.StatusUnauthorized, fails(fmt.Sprintf("2001:db8::%x", i)).Code)
		}
		assert.Equal(t, http.StatusTooManyRequests, fails("2001:db8::ffff").Code)
		assert.Equal(t, http.StatusUnauthorized, fails("2001:db8:0:1::1").Code)

		for i := range 5000 { // the table is bounded: the oldest is forgotten
			fails(fmt.Sprintf("10.%d.%d.1", i/250, i%250))
		}
		assert.Equal(t, http.StatusUnauthorized, fails("2001:db8::1").Code)
	})
}

func TestSecurity_S07_Hosts(t *testing.T) {
	w := newWorld(t)
	for host, ok := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:8788": true, "[::1]:8788": true, "[::1]": true, "::1": true, "localhost": true, "LOCALHOST:8788": true,
		"localhost.": true, "relay.example": true, "Relay.Example:443": true, "10.2.3.4:1": true,
		"": false, "evil.example": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false, "relay.example.evil": false,
		"notrelay.example": false, "127.1": false, "2130706433": false, "0x7f000001": false, ":8788": false, "[relay.example]:1": false, "[localhost]": false,
	} {
		code := w.do("GET", "/api/v1/status", w.admin, "", "Host", host).Code
		assert.Equal(t, ok, code == http.StatusOK, "%q: %d", host, code)
		assert.Equal(t, ok, w.do("GET", "/livez", "", "", "Host", host).Code == http.StatusOK, "%q", host)
	}
	refused(t, w.do("GET", "/api/v1/status", w.admin, "", "Host", "evil.example"), http.StatusForbidden, "host_refused")
	w.SetAllowedHosts([]string{"other.example"})
	assert.Equal(t, http.StatusOK, w.do("GET", "/livez", "", "", "Host", "other.example").Code)
	assert.Equal(t, http.StatusForbidden, w.do("GET", "/livez", "", "", "Host", "relay.example").Code)

	r := request("GET", "/api/v1/status", w.admin, "", "Host", "whatever")
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Name: "/run/x", Net: "unix"})))
	assert.Equal(t, http.StatusOK, w.send(r).Code, "a page cannot reach a unix socket")
}

func TestSecurity_S07_ForeignPages(t *testing.T) {
	w := newWorld(t)
	for name, headers := range map[string][]string{
		"cross-site":     {"Sec-Fetch-Site", "cross-site"},
		"same-site":      {"Sec-Fetch-Site", "same-site"},
		"nonsense":       {"Sec-Fetch-Site", "x"},
		"foreign origin": {"Origin", "https://evil.example"},
		"null origin":    {"Origin", "null"},
		"other port":     {"Origin", "http://127.0.0.1:8080"},
		"mixed":          {"Sec-Fetch-Site", "same-origin", "Origin", "https://evil.example"},
	} {
		for _, r := range admin.Routes() {
			rec := w.do(r.Method, filledPath(r.Path), w.admin, "", headers...)
			refused(t, rec, http.StatusForbidden, "cross_site", "%s: %s %s", name, r.Method, r.Path)
		}
	}
	assert.Empty(t, w.done())
	for _, headers := range [][]string{{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:8788"}, {"Sec-Fetch-Site", "none"}, nil} {
		assert.Equal(t, http.StatusOK, w.do("GET", "/api/v1/status", w.admin, "", headers...).Code)
		assert.Equal(t, http.StatusOK, w.do("POST", "/api/v1/reload", w.admin, "", headers...).Code)
	}
	for _, rec := range []*httptest.ResponseRecorder{
		w.do("OPTIONS", "/api/v1/reload", "", "", "Origin", "https://evil.example", "Access-Control-Request-Method", "POST"),
		w.do("GET", "/api/v1/status", w.admin, ""), w.do("GET", "/livez", "", ""),
	} {
		for name := range rec.Header() {
			assert.NotContains(t, name, "Access-Control")
		}
		assert.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
		assert.Equal(t, "nosniff", rec.Header().Get("X-Content-Type-Options"))
	}
}

func TestSecurity_S07_Bodies(t *testing.T) {
	w := newWorld(t)
	const path = "/api/v1/breakers/force"
	good := `{"provider":"one","state":"open","class":"c"}`
	for name, tc := range map[string]struct {
		body, kind string
		status     int
		code       string
	}{
		"form":           {good, "application/x-www-form-urlencoded", 415, "unsupported_media_type"},
		"text":           {good, "text/plain", 415, "unsupported_media_type"},
		"none":           {good, "", 415, "unsupported_media_type"},
		"unknown field":  {`{"provider":"one","state":"open","forr":"1m"}`, "application/json", 400, "invalid_request"},
		"two values":     {good + good, "application/json", 400, "invalid_request"},
		"garbage after":  {good + "}", "application/json", 400, "invalid_request"},
		"broken":         {`{"provider":`, "application/json", 400, "invalid_request"},
		"other type":     {`{"provider":1}`, "application/json", 400, "invalid_request"},
		"too large":      {`{"provider":"` + strings.Repeat("x", 64<<10) + `"}`, "application/json", 413, "too_large"},
		"large tail":     {good + strings.Repeat(" ", 64<<10), "application/json", 413, "too_large"},
		"state":          {`{"provider":"one","state":"ajar"}`, "application/json", 400, "invalid_request"},
		"for":            {`{"provider":"one","state":"open","for":"soon"}`, "application/json", 400, "invalid_request"},
		"for too long":   {`{"provider":"one","state":"open","for":"25h"}`, "application/json", 400, "invalid_request"},
		"for negative":   {`{"provider":"one","state":"open","for":"-1m"}`, "application/json", 400, "invalid_request"},
		"auto with for":  {`{"provider":"one","state":"auto","for":"1m"}`, "application/json", 400, "invalid_request"},
		"class":          {`{"provider":"one","state":"open","class":"a\nb"}`, "application/json", 400, "invalid_request"},
		"other provider": {`{"provider":"three","state":"open"}`, "application/json", 404, "not_found"},
		"empty":          {"", "application/json", 400, "invalid_request"},
	} {
		rec := w.do("POST", path, w.admin, tc.body, "Content-Type", tc.kind)
		refused(t, rec, tc.status, tc.code, name)
	}
	assert.Empty(t, w.done())
	assert.Empty(t, w.audit())
	assert.Equal(t, http.StatusOK, w.do("POST", path, w.admin, good, "Content-Type", "application/json; charset=utf-8").Code)
	refused(t, w.do("POST", "/api/v1/reload", w.admin, `{"x":1}`), 400, "invalid_request")
}

func TestSecurity_S01_S04_WithoutATrustedTokenThereIsNoAdmin(t *testing.T) {
	for _, name := range []string{"admin.token", "viewer.token"} {
		w := newWorld(t)
		for what, spoil := range map[string]func() error{
			"empty":    func() error { return os.WriteFile(w.path(name), nil, 0o600) },
			"readable": func() error { return os.Chmod(w.path(name), 0o644) },
			"a directory": func() error {
				_ = os.Remove(w.path(name))
				return os.Mkdir(w.path(name), 0o700)
			},
		} {
			require.NoError(t, os.RemoveAll(w.path(name)))
			require.NoError(t, os.WriteFile(w.path(name), []byte(strings.Repeat("ab", 32)), 0o600))
			require.NoError(t, spoil())
			h, err := admin.New(admin.Config{Dir: w.dir, Relay: w.parts()})
			assert.ErrorContains(t, err, w.path(name), what)
			assert.Nil(t, h)
		}
	}
	for _, cfg := range []admin.Config{{}, {Relay: newWorld(t).parts()}, {Dir: newWorld(t).dir}} {
		_, err := admin.New(cfg)
		assert.Error(t, err)
	}
}

func TestSecurity_S01_TokensAreKeptOverRestarts(t *testing.T) {
	w := newWorld(t)
	assert.NotEqual(t, w.admin, w.viewer)
	again, err := admin.New(admin.Config{Dir: w.dir, Relay: w.parts()})
	require.NoError(t, err)
	rec := httptest.NewRecorder()
	again.ServeHTTP(rec, request("GET", "/api/v1/status", w.viewer, ""))
	assert.Equal(t, http.StatusOK, rec.Code)
}

func TestSecurity_S12_TokensCanBeChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := listen(t, w, "?stats=off")
		synctest.Wait()
		code := func(token string) int { return w.do("POST", "/api/v1/reload", token, "").Code }

		require.NoError(t, w.ReadTokens())
		synctest.Wait()
		assert.True(t, w.Listening(), "nothing has changed")
		require.NoError(t, os.Remove(w.path("admin.token")))
		require.NoError(t, w.ReadTokens())
		<-s.ended
		assert.Equal(t, http.StatusUnauthorized, code(w.admin))
		assert.Equal(t, http.StatusOK, code(w.file("admin.token")))

		require.NoError(t, os.Chmod(w.path("viewer.token"), 0o644))
		assert.ErrorContains(t, w.ReadTokens(), "nobody is let in: ")
		assert.Equal(t, http.StatusUnauthorized, code(w.file("admin.token")))
		assert.Equal(t, http.StatusUnauthorized, code(""))
		assert.Equal(t, http.StatusOK, w.do("GET", "/livez", "", "").Code)
		require.NoError(t, os.Chmod(w.path("viewer.token"), 0o600))
		require.NoError(t, w.ReadTokens())
		assert.Equal(t, http.StatusOK, code(w.file("admin.token")))
	})
}

// Whatever is sent without a token, nothing but /livez answers, and nothing is done.
func TestSecurity_S03_WithoutATokenProperty(t *testing.T) {
	w := newWorld(t)
	parts := []string{"", "api", "v1", "keys", "off", "reload", "livez", "..", ".", "%2e%2e", "metrics", "debug", "pprof", "heap", "stats", idOf(keyA), "%00", "ü", "events"}
	rapid.Check(t, func(t *rapid.T) {
		raw := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(parts), 0, 7).Draw(t, "path"), "/")
		path, err := url.PathUnescape(raw)
		if err != nil {
			path, raw = raw, ""
		}
		auth := rapid.OneOf(rapid.StringN(0, 80, 80), rapid.SampledFrom([]string{"Bearer ", "Bearer " + w.admin[1:], "Basic Og==", "Basic " + w.admin})).Draw(t, "auth")
		r := &http.Request{
			Method: rapid.SampledFrom([]string{"GET", "POST", "HEAD", "", "get"}).Draw(t, "method"), URL: &url.URL{Path: path, RawPath: raw},
			Host:   rapid.SampledFrom([]string{"localhost", "127.0.0.1:1", "", "[::1", "evil", "@"}).Draw(t, "host"),
			Header: http.Header{"Authorization": {auth}}, Body: http.NoBody, RemoteAddr: rapid.StringN(0, 30, 30).Draw(t, "remote"),
		}
		rec := w.send(r)
		if rec.Code == http.StatusOK && raw != "/livez" {
			t.Fatalf("%s %s answered: %s", r.Method, raw, rec.Body)
		}
	})
	assert.Empty(t, w.done())
	assert.Empty(t, w.audit())
}

func TestScraping(t *testing.T) {
	w := newWorld(t)
	basic := func(path, password string) *httptest.ResponseRecorder {
		return w.do("GET", path, "", "", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("prometheus:"+password)))
	}
	rec := basic("/metrics", w.viewer)
	assert.Equal(t, http.StatusOK, rec.Code)
	assert.Equal(t, "up 1 ", rec.Body.String(), "the token goes no further")
	assert.Equal(t, http.StatusOK, basic("/metrics", w.admin).Code)
	assert.Equal(t, http.StatusUnauthorized, basic("/metrics", "wrong").Code)
	assert.Equal(t, http.StatusUnauthorized, basic("/api/v1/stats", w.viewer).Code, "browsers remember Basic")
	assert.Equal(t, http.StatusUnauthorized, w.do("GET", "/metrics", "", "", "Authorization", "Basic %%%").Code)
}

func TestSecurity_S22_Pprof(t *testing.T) {
	off := newWorld(t, func(c *admin.Config) { c.Pprof = false })
	for _, profile := range []string{"heap", "goroutine", "profile", "trace", "cmdline"} {
		refused(t, off.do("GET", "/debug/pprof/"+profile, off.admin, ""), http.StatusNotFound, "not_found", profile)
		refused(t, off.do("GET", "/debug/pprof/"+profile, off.viewer, ""), http.StatusForbidden, "forbidden", profile)
	}
	w := newWorld(t)
	for _, profile := range []string{"heap", "goroutine", "allocs", "block", "mutex", "threadcreate", "profile?seconds=1", "trace?seconds=1"} {
		rec := w.do("GET", "/debug/pprof/"+profile, w.admin, "")
		assert.Equal(t, http.StatusOK, rec.Code, profile)
		assert.NotEmpty(t, rec.Body.Bytes(), profile)
		assert.Equal(t, "application/octet-stream", rec.Header().Get("Content-Type"))
	}
	assert.Contains(t, w.do("GET", "/debug/pprof/goroutine?debug=1", w.admin, "").Body.String(), "goroutine profile")
	refused(t, w.do("GET", "/debug/pprof/cmdline", w.admin, ""), http.StatusNotFound, "not_found")
	for _, seconds := range []string{"0", "121", "x", "-1"} {
		refused(t, w.do("GET", "/debug/pprof/profile?seconds="+seconds, w.admin, ""), http.StatusBadRequest, "invalid_request", seconds)
	}
	_, pattern := http.DefaultServeMux.Handler(httptest.NewRequest("GET", "/debug/pprof/heap", nil))
	assert.Empty(t, pattern, "nothing registers itself for other listeners")
}

// Nothing that is known of the providers' keys or the tokens comes out, whatever is asked.
func TestSecurity_S10_S14_Canary(t *testing.T) {
	w := newWorld(t)
	s := listen(t, w, "")
	var out strings.Builder
	for _, token := range []string{w.admin, w.viewer, "", keyA, dataToken} {
		for _, r := range admin.Routes() {
			if r.Path == "/api/v1/events" || r.Path == "/debug/pprof/{profile}" || r.Path == "/metrics" {
				continue
			}
			for _, path := range []string{filledPath(r.Path), strings.NewReplacer("{id}", keyA, "{name}", keyB).Replace(r.Path), strings.ReplaceAll(r.Path, "{id}", "r1")} {
				for _, body := range []string{
					"", "{}", `{"provider":"` + keyA + `"}`, `{"` + keyB + `":1}`, `{"model":"` + keyA + `"}`, `{"provider":"one"}`,
					`{"provider":"one","state":"open","class":"` + keyBoth + `"}`,
				} {
					rec := w.do(r.Method, path, token, body)
					fmt.Fprintln(&out, rec.Code, rec.Header(), rec.Body)
				}
			}
		}
	}
	w.Publish(admin.EventAlert, map[string]string{"text": keyA + dataToken})
	w.Close()
	<-s.ended
	out.WriteString(s.text())
	out.WriteString(w.log.String())
	out.WriteString(w.file("audit.log"))
	require.Contains(t, out.String(), idOf(keyA))
	require.Contains(t, out.String(), "[redacted]")
	for _, canary := range []string{keyA, keyB, keyBoth, dataToken, w.admin, w.viewer, "canary"} {
		for line := range strings.Lines(out.String()) {
			assert.False(t, strings.Contains(line, canary), "%s in %s", canary, line)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	w := newWorld(t)
	dir, err := os.MkdirTemp("", "admin") // short: the path of a socket is
	require.NoError(t, err)
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := net.Listen("unix", dir+"/s")
	require.NoError(t, err)
	srv := &http.Server{Handler: w}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", dir+"/s")
		},
	}}
	r, err := http.NewRequest("POST", "http://any.name/api/v1/reload", nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+w.admin)
	resp, err := client.Do(r)
	require.NoError(t, err)
	_ = resp.Body.Close()
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Equal(t, "unix", w.audit()[0].Source)
	require.NoError(t, srv.Close())
	assert.ErrorIs(t, <-served, http.ErrServerClosed)
}
