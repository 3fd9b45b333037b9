package proxy_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/auth"
	"cc-relay/internal/health"
	"cc-relay/internal/keypool"
	"cc-relay/internal/proxy"
	"cc-relay/internal/router"
	"cc-relay/internal/secret"
	"cc-relay/internal/simulator"
)

// modelPage is a page of models as a client reads it.
type modelPage struct {
	Data    []json.RawMessage `json:"data"`
	HasMore *bool             `json:"has_more"`
	FirstID *string           `json:"first_id"`
	LastID  *string           `json:"last_id"`
}

// modelEntry is what clients look at of one model.
type modelEntry struct {
	Type        string `json:"type"`
	ID          string `json:"id"`
	DisplayName string `json:"display_name"`
	CreatedAt   string `json:"created_at"`
	Lifecycle   string `json:"lifecycle"`
}

func (p modelPage) ids(t testing.TB) []string {
	t.Helper()
	ids := []string{}
	for _, raw := range p.Data {
		ids = append(ids, entryOf(t, raw).ID)
	}
	return ids
}

func entryOf(t testing.TB, raw []byte) (e modelEntry) {
	t.Helper()
	require.NoError(t, json.Unmarshal(raw, &e), "entry: %s", raw)
	return e
}

// listModels is a call for the list.
func listModels(query string) call { return call{method: "GET", path: "/v1/models" + query} }

// readPage checks that the reply is a page in the API's shape and reads it.
func readPage(t testing.TB, got reply) (p modelPage) {
	t.Helper()
	require.NoError(t, got.err)
	require.Equal(t, 200, got.status, "body: %s", got.body)
	require.Equal(t, "application/json", got.header.Get("Content-Type"))
	require.Equal(t, "no-store", got.header.Get("Cache-Control"))
	fields := map[string]json.RawMessage{}
	require.NoError(t, json.Unmarshal([]byte(got.body), &fields), "body: %s", got.body)
	for _, name := range []string{"data", "has_more", "first_id", "last_id"} {
		require.Contains(t, fields, name)
	}
	require.Equal(t, byte('['), fields["data"][0], "data is a list, also an empty one")
	require.NoError(t, json.Unmarshal([]byte(got.body), &p))
	if len(p.Data) == 0 {
		require.Nil(t, p.FirstID)
		require.Nil(t, p.LastID)
		return p
	}
	ids := p.ids(t)
	require.Equal(t, ids[0], *p.FirstID)
	require.Equal(t, ids[len(ids)-1], *p.LastID)
	return p
}

// lists is a provider of these models.
func lists(t testing.TB, name string, models ...string) *sim {
	return startSim(t, name, 1, simulator.Config{Models: models})
}

// tells is a handler that lists models by a function, and serves nothing else.
func tells(list http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", list)
	return mux
}

// hangs answers nothing for as long as somebody listens.
func hangs(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// says is a list in these words.
func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	}
}

func TestModelsAreThoseThatTheRulesReach(t *testing.T) {
	leakFree(t)
	rule := func(match string, targets ...string) router.Rule {
		return router.Rule{Match: strings.Fields(match), Targets: targets}
	}
	for name, tt := range map[string]struct {
		routes     router.Config
		alice, bob []string // nil: as alice
	}{
		"no rules":            {router.Config{}, []string{opus, haiku, "big-model", "small-model"}, nil},
		"default":             {router.Config{Default: []string{"b"}}, []string{"big-model", "small-model"}, nil},
		"a pattern":           {router.Config{Rules: []router.Rule{rule("claude-*", "a")}}, []string{opus, haiku}, nil},
		"a class":             {router.Config{Rules: []router.Rule{{Class: "opus-5-5", Targets: []string{"a"}}}}, []string{opus}, nil},
		"a pattern elsewhere": {router.Config{Rules: []router.Rule{rule("claude-*", "b")}}, nil, nil},
		"pattern and default": {router.Config{Rules: []router.Rule{rule("claude-opus*", "a")}, Default: []string{"b"}}, []string{opus, "big-model", "small-model"}, nil},
		"the first counts":    {router.Config{Rules: []router.Rule{rule("big-*", "a"), rule("*", "b")}}, []string{"small-model"}, nil},
		"one of two targets":  {router.Config{Rules: []router.Rule{rule("big-*", "a", "b")}}, []string{"big-model"}, nil},

		"a name":                    {router.Config{Rules: []router.Rule{rule("big-model", "b")}}, []string{"big-model"}, nil},
		"a name, asked otherwise":   {router.Config{Rules: []router.Rule{rule("fast", "b/small-model")}}, []string{"fast"}, nil},
		"a pattern, another name":   {router.Config{Rules: []router.Rule{rule("claude-*", "b/big-model")}}, []string{opus, haiku}, nil},
		"a name that nobody lists":  {router.Config{Rules: []router.Rule{rule("claude-opus-5", "a")}}, []string{"claude-opus-5"}, nil},
		"two names and a pattern":   {router.Config{Rules: []router.Rule{rule("one two th*", "b/big-model")}}, []string{"one", "two"}, nil},
		"an alias":                  {router.Config{Default: []string{"b"}, Aliases: map[string]string{"quick": "small-model"}}, []string{"big-model", "quick", "small-model"}, nil},
		"an alias of an alias":      {router.Config{Default: []string{"b"}, Aliases: map[string]string{"quick": "small-model", "fast": "quick"}}, []string{"big-model", "fast", "quick", "small-model"}, nil},
		"an alias of another's":     {router.Config{Rules: []router.Rule{rule("claude-*", "a")}, Aliases: map[string]string{"quick": "small-model"}}, []string{opus, haiku}, nil},
		"an alias that a rule says": {router.Config{Rules: []router.Rule{rule("quick", "b")}, Aliases: map[string]string{"quick": "small-model"}}, []string{"quick"}, nil},
		"an alias as a model":       {router.Config{Rules: []router.Rule{rule("*", "b")}, Aliases: map[string]string{"big-model": "small-model"}}, []string{"big-model", "small-model"}, nil},

		"for one client": {router.Config{Rules: []router.Rule{{Match: []string{"big-*", "fast"}, Clients: []string{"alice"}, Targets: []string{"b"}}}, Default: []string{"a"}},
			[]string{opus, haiku, "big-model", "fast"}, []string{opus, haiku}},
		"for another alone": {router.Config{Rules: []router.Rule{{Match: []string{"big-*"}, Clients: []string{"bob"}, Targets: []string{"b"}}}},
			nil, []string{"big-model"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := lists(t, "a", opus, haiku), lists(t, "b", "big-model", "small-model")
			r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}, routes: tt.routes})
			if tt.bob == nil {
				tt.bob = tt.alice
			}
			for token, want := range map[string][]string{aliceToken: tt.alice, bobToken: tt.bob} {
				c := listModels("?limit=1000")
				c.token = token
				p := readPage(t, r.do(c))
				assert.ElementsMatch(t, want, p.ids(t), token)
				assert.False(t, *p.HasMore)
				for _, raw := range p.Data { // and each of them can be asked for
					e := entryOf(t, raw)
					assert.Equal(t, "model", e.Type)
					assert.NotEmpty(t, e.DisplayName)
					_, err := time.Parse(time.RFC3339, e.CreatedAt)
					require.NoError(t, err)
					one := r.do(call{method: "GET", path: "/v1/models/" + e.ID, token: token})
					assert.Equal(t, 200, one.status, one.body)
					assert.JSONEq(t, string(raw), one.body)
				}
			}
			assert.Len(t, a.Seen(), 1, "one question is enough")
			assert.Len(t, b.Seen(), 1)
		})
	}
}

// What a provider says of a model passes as it is; of another name for it only the
// name is changed.
func TestEntriesOfModels(t *testing.T) {
	leakFree(t)
	const raw = `{"id":"big-1","type":"model","display_name":"Big \u00e9","created_at":"2026-01-02T00:00:00Z","future":{"a":[1.50,null]},"max_tokens":12345678901234567890}`
	up := upstream{keys: []string{keyOf("a", 1)}}
	up.Name, up.BaseURL = "a", serve(t, tells(says(`{"data":[`+raw+`,{"id":""},{"type":"model"},"junk",null,{"id":7}],"has_more":true}`)))
	r := newRelay(t, setup{upstreams: []upstream{up}, routes: router.Config{
		Default: []string{"a"}, Rules: []router.Rule{{Match: []string{"new"}, Targets: []string{"a/big-1"}}}, Aliases: map[string]string{"b": "big-1", "unheard-of": "big-2"},
	}})
	p := readPage(t, r.do(listModels("")))
	require.Equal(t, []string{"big-1", "b", "new", "unheard-of"}, p.ids(t))
	assert.Equal(t, raw, string(p.Data[0]))
	for i, name := range map[int]string{1: "b", 2: "new"} {
		assert.JSONEq(t, strings.Replace(raw, "big-1", name, 1), string(p.Data[i]))
		assert.Contains(t, string(p.Data[i]), "12345678901234567890", "numbers are not rounded")
	}
	assert.Equal(t, modelEntry{Type: "model", ID: "unheard-of", DisplayName: "unheard-of", CreatedAt: "1970-01-01T00:00:00Z"}, entryOf(t, p.Data[3]))
}

// pagesOf reads all pages as the SDKs do, and returns the ids in the order of the list.
func pagesOf(t *testing.T, r *relay, query url.Values) (ids []string, pages int) {
	t.Helper()
	ids = []string{}
	for pages = 1; ; pages++ {
		require.Less(t, pages, 1000, "the pages do not end")
		p := readPage(t, r.do(listModels("?"+query.Encode())))
		if query.Has("before_id") {
			ids = append(p.ids(t), ids...)
		} else {
			ids = append(ids, p.ids(t)...)
		}
		if len(p.Data) == 0 || !*p.HasMore {
			return ids, pages
		}
		if query.Has("before_id") {
			query.Set("before_id", *p.FirstID)
		} else {
			query.Set("after_id", *p.LastID)
		}
	}
}

func TestPagesOfModels(t *testing.T) {
	leakFree(t)
	var all []string
	for n := range 25 {
		all = append(all, fmt.Sprintf("model-%02d", n))
	}
	r := relayOf(t, lists(t, "a", all...))
	for name, tt := range map[string]struct {
		query string
		pages int
		want  []string
	}{
		"20 at a time":      {"", 2, all},
		"one at a time":     {"limit=1", 25, all},
		"seven at a time":   {"limit=7", 4, all},
		"five at a time":    {"limit=5", 5, all},
		"just all":          {"limit=25", 1, all},
		"the most":          {"limit=1000", 1, all},
		"after":             {"after_id=model-03", 2, all[4:]},
		"after, by four":    {"after_id=model-03&limit=4", 6, all[4:]},
		"after the last":    {"after_id=model-24", 1, []string{}},
		"after one unknown": {"after_id=unheard-of", 1, []string{}},
		"before":            {"before_id=model-24&limit=10", 3, all[:24]},
		"before the first":  {"before_id=model-00", 1, []string{}},
		"before unknown":    {"before_id=unheard-of", 1, []string{}},
		"other parameters":  {"beta=true&limit=1000", 1, all},
		"no limit":          {"limit=&after_id=", 2, all},
	} {
		t.Run(name, func(t *testing.T) {
			query, err := url.ParseQuery(tt.query)
			require.NoError(t, err)
			got, pages := pagesOf(t, r, query)
			assert.Equal(t, tt.want, got)
			assert.Equal(t, tt.pages, pages)
		})
	}
	for _, limit := range []string{"0", "-1", "1001", "x", "1.5", "1e2", "99999999999999999999"} {
		requireError(t, r.do(listModels("?limit="+limit)), 400, "invalid_request_error")
	}
	t.Run("before is the page next to it", func(t *testing.T) {
		p := readPage(t, r.do(listModels("?before_id=model-10&limit=3")))
		assert.Equal(t, all[7:10], p.ids(t))
		assert.True(t, *p.HasMore)
	})
}

// The SDKs write a list of stages with brackets. Retired models are told of only to
// those who ask for them.
func TestModelsByLifecycle(t *testing.T) {
	leakFree(t)
	entry := func(id, stage string) string {
		return `{"type":"model","id":"` + id + `","display_name":"x","created_at":"2026-01-02T00:00:00Z"` + stage + `}`
	}
	up := upstream{keys: []string{keyOf("a", 1)}}
	up.Name, up.BaseURL = "a", serve(t, tells(says(`{"data":[`+strings.Join([]string{
		entry("new", `,"lifecycle":"active"`), entry("old", `,"lifecycle":"deprecated"`), entry("gone", `,"lifecycle":"retired"`), entry("vendor", ""),
	}, ",")+`]}`)))
	r := newRelay(t, setup{upstreams: []upstream{up}, routes: router.Config{Default: []string{"a"}, Aliases: map[string]string{"older": "old"}}})
	for query, want := range map[string][]string{
		"":                            {"new", "old", "vendor", "older"},
		"?lifecycle[]=active":         {"new", "vendor"},
		"?lifecycle=active":           {"new", "vendor"},
		"?lifecycle%5B%5D=deprecated": {"old", "older"},
		"?lifecycle[]=retired":        {"gone"},
		"?lifecycle[]=deprecated&lifecycle[]=active":   {"new", "old", "vendor", "older"},
		"?lifecycle[]=active&lifecycle[]=retired":      {"new", "gone", "vendor"},
		"?lifecycle[]=imagined":                        {},
		"?lifecycle[]=deprecated&limit=1&after_id=old": {"older"},
	} {
		t.Run(query, func(t *testing.T) {
			assert.Equal(t, want, readPage(t, r.do(listModels(query))).ids(t))
		})
	}
}

// A provider that hangs holds up nobody: what others say is there within half a
// second, in whatever order they are, and what it says itself is in a later list.
func TestAProviderThatHangsIsNotWaitedFor(t *testing.T) {
	for name, order := range map[string][2]string{"first": {"hanging", "well"}, "last": {"well", "hanging"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				hanging := net.handler(t, "hanging", tells(hangs))
				hanging.keys = []string{keyOf("hanging", 1)}
				well := net.sim(t, "well", simulator.Config{Models: []string{opus}, Organizations: []simulator.Organization{owner("well", 1, simulator.Limits{})}})
				sims := map[string]*sim{"hanging": &hanging.sim, "well": well}
				r := net.relay(t, sims[order[0]], sims[order[1]])
				begin := time.Now()
				for range 100 { // over time, too: while it is asked and when it has failed
					start := time.Now()
					assert.Equal(t, []string{opus}, readPage(t, r.do(listModels(""))).ids(t))
					require.Less(t, time.Since(start), 500*time.Millisecond, "%s after the first", start.Sub(begin))
					start = time.Now()
					require.Equal(t, 200, r.do(call{method: "GET", path: "/v1/models/" + opus}).status)
					require.Less(t, time.Since(start), 500*time.Millisecond)
					time.Sleep(time.Second)
				}
				hanging.serve(tells(says(`{"data":[{"id":"late"}]}`)))
				time.Sleep(time.Minute)
				r.do(listModels(""))
				assert.ElementsMatch(t, []string{opus, "late"}, readPage(t, r.do(listModels(""))).ids(t))
			})
		})
	}
}

// A list is shown while a newer one is fetched, and stays while there is none.
func TestListsOfModelsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.handler(t, "a", tells(says(`{"data":[{"id":"old"}]}`)))
		b := net.handler(t, "b", tells(says(`{"data":[{"id":"other"}]}`)))
		a.keys, b.keys = []string{keyOf("a", 1)}, []string{keyOf("b", 1)}
		r := net.relay(t, &a.sim, &b.sim)
		r.handler.Refresh()
		synctest.Wait()
		list := func() []string {
			start := time.Now()
			ids := readPage(t, r.do(listModels(""))).ids(t)
			assert.Zero(t, time.Since(start), "what is known is shown at once")
			return ids
		}
		assert.Equal(t, []string{"old", "other"}, list())

		a.serve(tells(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(2 * time.Second)
			says(`{"data":[{"id":"new"}]}`)(w, nil)
		}))
		time.Sleep(4 * time.Minute)
		assert.Equal(t, []string{"old", "other"}, list(), "it is fresh")
		time.Sleep(time.Minute)
		assert.Equal(t, []string{"old", "other"}, list(), "the new one is on its way")
		time.Sleep(3 * time.Second)
		assert.Equal(t, []string{"new", "other"}, list())

		for _, trouble := range []http.HandlerFunc{
			hangs,
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) },
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			says("<html>"), says(""), says(`{"data":`),
		} {
			a.serve(tells(trouble))
			for range 20 {
				time.Sleep(time.Minute)
				assert.Equal(t, []string{"new", "other"}, list())
			}
		}
		assert.Equal(t, 1, strings.Count(r.log.String(), "does not tell its models"), "one warning for all of it")
		a.serve(tells(says(`{"data":[{"id":"newest"}]}`)))
		time.Sleep(time.Minute)
		list()
		synctest.Wait()
		assert.Equal(t, []string{"newest", "other"}, list())
	})
}

// Where nobody can tell of any model the client learns why, and in time.
func TestWhenNoModelIsKnown(t *testing.T) {
	for name, tt := range map[string]struct {
		list   http.HandlerFunc
		status int    // of the first answer, and from then on
		kind   string // "": an empty list
		then   int
	}{
		"hangs":       {hangs, 504, "timeout_error", 502},
		"500":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, 502, "api_error", 502},
		"403":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, 502, "api_error", 502},
		"401":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, 502, "api_error", 502},
		"hangs up":    {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, "api_error", 502},
		"no JSON":     {says("<html>"), 502, "api_error", 502},
		"has no list": {http.NotFound, 200, "", 200},
		"has no one":  {says(`{"data":[]}`), 200, "", 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				a := net.handler(t, "a", tells(tt.list))
				a.keys = []string{keyOf("a", 1)}
				r := net.relay(t, &a.sim)
				for _, status := range []int{tt.status, tt.then, tt.then} {
					start := time.Now()
					got := r.do(listModels(""))
					assert.Less(t, time.Since(start), 500*time.Millisecond)
					if tt.kind == "" {
						assert.Empty(t, readPage(t, got).Data)
					} else if status == 504 {
						requireError(t, got, 504, "timeout_error")
					} else {
						requireError(t, got, status, "api_error")
						assert.Equal(t, "failed", got.record["outcome"])
					}
					time.Sleep(12 * time.Second)
				}
			})
		})
	}
	t.Run("names of rules are known anyhow", func(t *testing.T) {
		leakFree(t)
		up := upstream{keys: []string{keyOf("a", 1)}}
		up.Name, up.BaseURL = "a", nowhereURL(t)
		r := newRelay(t, setup{upstreams: []upstream{up}, routes: router.Config{Rules: []router.Rule{{Match: []string{"fast", "claude-*"}, Targets: []string{"a"}}}}})
		assert.Equal(t, []string{"fast"}, readPage(t, r.do(listModels(""))).ids(t))
	})
	t.Run("no usable key", func(t *testing.T) {
		leakFree(t)
		r := relayOf(t, newSim(t, "a", 1, status(402)))
		requireError(t, r.do(call{body: ask(opus, false)}), 429, "billing_error")
		got := r.do(listModels(""))
		requireError(t, got, 429, "billing_error")
		assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
	})
	t.Run("no rule for this client", func(t *testing.T) {
		leakFree(t)
		a := newSim(t, "a", 1)
		r := newRelay(t, setup{upstreams: []upstream{a.upstream}, routes: router.Config{Rules: []router.Rule{{Match: []string{"*"}, Clients: []string{"alice"}, Targets: []string{"a"}}}}})
		c := listModels("")
		c.token = bobToken
		assert.Empty(t, readPage(t, r.do(c)).Data)
	})
}

// However many ask, a provider is asked once at a time, and no longer than the relay runs.
func TestListsAreFetchedOnceAtATime(t *testing.T) {
	leakFree(t)
	var running, most, total atomic.Int64
	free := make(chan struct{})
	up := upstream{keys: []string{keyOf("a", 1)}}
	up.Name, up.BaseURL = "a", serve(t, tells(func(w http.ResponseWriter, r *http.Request) {
		total.Add(1)
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		select {
		case <-free:
		case <-r.Context().Done():
		}
		says(`{"data":[{"id":"one"}]}`)(w, r)
	}))
	r := newRelay(t, setup{upstreams: []upstream{up}})
	ask := func() {
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { r.send(listModels("")) })
			wg.Go(r.handler.Refresh)
		}
		wg.Wait()
	}
	ask() // all give up waiting
	ask()
	assert.EqualValues(t, 1, total.Load())
	close(free)
	require.Eventually(t, func() bool { return r.send(listModels("")).status == 200 }, patient, 10*time.Millisecond)
	ask()
	assert.EqualValues(t, 1, total.Load(), "the list is fresh")
	assert.EqualValues(t, 1, most.Load())
}

// A fetch ends with the relay: leakFree sees to it that nothing of it is left.
func TestFetchesEndWithTheRelay(t *testing.T) {
	leakFree(t)
	up := upstream{keys: []string{keyOf("a", 1)}}
	asked := make(chan struct{}, 1)
	gone := make(chan struct{})
	up.Name, up.BaseURL = "a", serve(t, tells(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
		close(gone)
	}))
	r := newRelay(t, setup{upstreams: []upstream{up}})
	r.handler.Refresh()
	<-asked
	r.handler.Stop()
	select {
	case <-gone:
	case <-time.After(patient):
		assert.Fail(t, "the fetch goes on")
	}
	require.Eventually(t, func() bool { return len(r.inFlight()) == 0 }, patient, time.Millisecond)
	assert.NotContains(t, r.log.String(), "does not tell", "it is the relay that ended it")
}

// What another configuration does not have is forgotten, be it by the next list or by
// Refresh.
func TestListsOfDroppedProvidersAreForgotten(t *testing.T) {
	leakFree(t)
	for name, next := range map[string]func(*relay){
		"by the next list": func(r *relay) { readPage(t, r.do(listModels(""))) },
		"by Refresh":       func(r *relay) { r.handler.Refresh() },
	} {
		t.Run(name, func(t *testing.T) {
			kept, dropped := lists(t, "kept", opus), lists(t, "dropped", haiku)
			r := relayOf(t, kept, dropped)
			require.Len(t, readPage(t, r.do(listModels(""))).Data, 2)
			ups := r.live.Router.Upstreams()
			pointers := [2]weak.Pointer[router.Upstream]{weak.Make(ups[0]), weak.Make(ups[1])}
			routes, err := router.New(router.Config{}, slices.Clone(ups[:1]), func(string) string { return "any" }, nil)
			require.NoError(t, err)
			r.live = &proxy.Live{Clients: r.live.Clients, Router: routes, Hosts: r.live.Hosts}
			ups = nil
			r.handler.Swap(r.live)
			next(r)
			require.Eventually(t, func() bool {
				runtime.GC()
				return pointers[1].Value() == nil
			}, patient, 10*time.Millisecond, "the dropped provider is still in memory")
			assert.NotNil(t, pointers[0].Value())
			assert.Equal(t, []string{opus}, readPage(t, r.do(listModels(""))).ids(t))
			assert.Len(t, kept.Seen(), 1, "and what is kept is not fetched again")
		})
	}
}

func TestOneModel(t *testing.T) {
	leakFree(t)
	const dated = "claude-haiku-4-5-20251001"
	a, b := lists(t, "a", opus, dated), lists(t, "b", "big-model")
	r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}, routes: router.Config{Rules: []router.Rule{
		{Match: []string{"claude-*"}, Targets: []string{"a"}},
		{Match: []string{"gpt-*", "fast"}, Targets: []string{"b/big-model"}},
	}, Aliases: map[string]string{"small": dated}}})
	readPage(t, r.do(listModels("")))
	for name, tt := range map[string]struct {
		id     string
		status int
		asked  int // requests at a and b
		want   string
	}{
		"listed":                  {opus, 200, 0, `"id":"claude-opus-5-5"`},
		"an alias":                {"small", 200, 0, `"id":"small"`},
		"a name of a rule":        {"fast", 200, 0, `"id":"fast"`},
		"another name":            {"gpt-4o", 200, 0, `"id":"gpt-4o"`},
		"unlisted, but known":     {"claude-haiku-4-5", 200, 1, `"id":"claude-haiku-4-5-20251001"`},
		"unknown":                 {"claude-next", 404, 1, `"message":"model: claude-next"`},
		"out of reach":            {"big-model", 404, 0, `"no rule`},
		"longer than any":         {"claude-" + strings.Repeat("x", 506), 404, 0, "longer"},
		"as long as one may be":   {"claude-" + strings.Repeat("x", 505), 404, 1, "model: claude-xxx"},
		"a client's token":        {"claude-" + aliceToken, 404, 0, "key or token"},
		"with another's brackets": {"claude-opus-5-5[1m]", 404, 1, "model: claude-opus-5-5[1m]"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(a.Seen()) + len(b.Seen())
			got := r.do(call{method: "GET", path: "/v1/models/" + url.PathEscape(tt.id) + "?beta=true"})
			assert.Equal(t, tt.status, got.status, got.body)
			assert.Contains(t, got.body, strings.TrimPrefix(tt.want, `"no rule`))
			assert.Len(t, append(a.Seen(), b.Seen()...), before+tt.asked)
			if tt.status == 404 {
				requireError(t, got, 404, "not_found_error")
			}
			if tt.asked == 1 {
				seen := a.Seen()[len(a.Seen())-1]
				assert.Equal(t, "/v1/models/"+url.PathEscape(tt.id)+"?beta=true", seen.Target)
				assert.Equal(t, seen.RequestID, got.header.Get("Request-Id"), "the answer is the provider's")
			}
		})
	}
}

// To look for a name that is asked otherwise says nothing of the model behind it.
func TestLookingForANameDoesNotHideItsModel(t *testing.T) {
	leakFree(t)
	const unlisted, dated = "claude-haiku-4-5", "claude-haiku-4-5-20251001"
	a, b := lists(t, "a", dated), lists(t, "b", dated)
	r := newRelay(t, setup{upstreams: []upstream{a.upstream, b.upstream}, routes: router.Config{
		Rules:   []router.Rule{to("gpt-*", "a/"+unlisted, "b/"+unlisted), to("*", "a", "b")},
		Aliases: map[string]string{"tiny": unlisted},
	}})
	for _, name := range []string{"gpt-4o", "tiny"} {
		one := r.do(call{method: "GET", path: "/v1/models/" + name})
		require.Equal(t, 200, one.status, one.body)
		assert.Equal(t, name, entryOf(t, []byte(one.body)).ID)
		got := r.do(call{body: ask(name, false)})
		requireServed(t, got, false)
		assert.Equal(t, "a", got.header.Get("X-Cc-Relay-Provider"), "model %s", name)
	}
}

func TestDrainingRefusesModels(t *testing.T) {
	leakFree(t)
	a := newSim(t, "a", 1)
	r := relayOf(t, a)
	readPage(t, r.do(listModels("")))
	r.handler.Drain()
	for _, path := range []string{"/v1/models", "/v1/models/" + opus, "/v1/models/unheard-of"} {
		requireError(t, r.do(call{method: "GET", path: path}), 529, "overloaded_error")
	}
	assert.Len(t, a.Seen(), 1)
}

// A key that is out is tried by one request now and then. It must be one of those that
// it is there for, and not the listing, which proves nothing.
func TestListingTriesNoDeadKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{
			Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{}), owner("a", 2, simulator.Limits{})},
			Faults:        faults(key(1, simulator.Fault{Kind: simulator.FaultDeadKey, Duration: time.Minute, Nth: 1})),
		})
		r := net.relay(t, a)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
		require.Equal(t, []string{"key-1", "key-2"}, a.keysSeen())
		for range 10 {
			time.Sleep(6 * time.Minute)
			readPage(t, r.do(listModels("")))
			synctest.Wait()
		}
		require.Len(t, a.keysSeen(), 12)
		assert.Equal(t, slices.Repeat([]string{"key-2"}, 10), a.keysSeen()[2:])
		for range 2 {
			requireServed(t, r.do(call{body: ask(opus, false)}), false)
		}
		assert.ElementsMatch(t, []string{"key-1", "key-2"}, a.keysSeen()[12:], "the key serves again")
	})
}

// Where all keys are out there is nothing to lose, and a list shows that one works.
func TestListingMayBringTheOnlyKeyBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{
			Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{})},
			Faults:        faults(simulator.Fault{Kind: simulator.FaultDeadKey, Duration: time.Minute}),
		})
		r := net.relay(t, a)
		requireError(t, r.do(call{body: ask(opus, false)}), 502, "api_error")
		require.NoError(t, a.SetFaults(nil))
		got := r.do(listModels(""))
		requireError(t, got, 502, "api_error")
		assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
		assert.Len(t, a.Seen(), 1, "it is not due yet")
		time.Sleep(5 * time.Minute)
		assert.NotEmpty(t, readPage(t, r.do(listModels(""))).Data)
		requireServed(t, r.do(call{body: ask(opus, false)}), false)
	})
}

// A list costs nothing, so it does not show that there is something to spend.
func TestListingDoesNotTryWhatIsSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spent := status(402)
		spent.Path = "/v1/messages"
		net := newPipes()
		a := net.sim(t, "a", simulator.Config{
			Organizations: []simulator.Organization{owner("a", 1, simulator.Limits{}), owner("a", 2, simulator.Limits{})},
			Faults:        faults(key(1, spent), key(2, simulator.Fault{Kind: simulator.FaultDeadKey, Duration: time.Hour, Nth: 1})),
		})
		r := net.relay(t, a)
		requireError(t, r.do(call{body: ask(opus, false)}), 429, "billing_error")
		got := r.do(listModels(""))
		requireError(t, got, 429, "billing_error")
		assert.Equal(t, "false", got.header.Get("X-Should-Retry"))
		require.ElementsMatch(t, []string{"key-1", "key-2"}, a.keysSeen())
		time.Sleep(3 * time.Hour)
		assert.NotEmpty(t, readPage(t, r.do(listModels(""))).Data)
		assert.Equal(t, []string{"key-2"}, a.keysSeen()[2:])
		require.NoError(t, a.SetFaults(nil))
		for range 2 {
			requireServed(t, r.do(call{body: ask(opus, false)}), false)
		}
		assert.ElementsMatch(t, []string{"key-1", "key-2"}, a.keysSeen()[3:], "the key was still to be tried")
	})
}

// Models are checked on behalf of a provider's health. That it lists none, or not to
// this key, does not mean that it is not there.
func TestAProviderWithoutAListComesBack(t *testing.T) {
	for name, list := range map[string]http.HandlerFunc{
		"404": http.NotFound,
		"405": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(405) },
		"403": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) },
		"429": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newPipes()
				play := func(status int) http.Handler {
					mux := http.NewServeMux()
					mux.HandleFunc("GET /v1/models", list)
					mux.HandleFunc("POST /v1/messages", func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						w.Header().Set("Content-Type", "application/json")
						w.WriteHeader(status)
						_, _ = io.WriteString(w, `{"type":"message","usage":{"input_tokens":1,"output_tokens":1}}`)
					})
					return mux
				}
				a, b := net.handler(t, "a", play(500)), net.handler(t, "b", play(200))
				a.keys, b.keys = []string{keyOf("a", 1)}, []string{keyOf("b", 1)}
				a.HealthCheck = time.Second
				r := net.relay(t, &a.sim, &b.sim)
				for _, up := range r.live.Router.Upstreams() {
					go r.handler.Watch(r.handler.Context(), up)
				}
				for range 5 {
					requireServed(t, r.do(call{body: ask(opus, false)}), false)
				}
				a.serve(play(200))
				time.Sleep(10 * time.Second)
				got := r.do(call{body: ask(opus, false)})
				requireServed(t, got, false)
				assert.Equal(t, "a", got.header.Get("X-Cc-Relay-Provider"))
				r.handler.Stop() // lest a check is under way when the test ends
				synctest.Wait()
			})
		})
	}
}

// A check that had no key to ask with has not asked, and does not keep a breaker open.
func TestACheckWithoutAKeySaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newPipes()
		a, b := network.actor(t, "a", answers(500)), network.actor(t, "b", well)
		a.HealthCheck = time.Second
		r := network.cast(t, router.Config{}, a, b)
		up := r.live.Router.Upstreams()[0]
		up.Pool.MarkClassExhausted(up.Pool.Keys()[0].ID, keypool.ClassModels, time.Hour)
		go r.handler.Watch(r.handler.Context(), up)
		for range 5 {
			requireServed(t, r.do(call{body: ask(opus, false)}), false)
		}
		require.Equal(t, health.Open, r.lane("a", opus).Status().State)
		a.fares(well)
		asked := len(a.got())
		time.Sleep(6 * time.Second)
		assert.Len(t, a.got(), asked, "nothing was asked")
		got := r.do(call{body: ask(opus, false)})
		requireServed(t, got, false)
		assert.Equal(t, "a", got.header.Get("X-Cc-Relay-Provider"))
		r.handler.Stop()
		synctest.Wait()
	})
}

// A fetch that goes wrong inside the relay ends neither it nor what comes after.
func TestAFetchMayPanic(t *testing.T) {
	leakFree(t)
	var calls atomic.Int64
	r := newRelay(t, setup{upstreams: []upstream{memory(roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodGet && calls.Add(1) == 1 {
			panic(fmt.Sprint(r.Header))
		}
		return answering("application/json", func() io.Reader { return strings.NewReader(`{"type":"message"}`) })(r)
	}))}})
	requireError(t, r.do(listModels("")), 502, "api_error")
	assert.Equal(t, 200, r.do(call{body: ask(opus, false)}).status)
	assert.Contains(t, r.log.String(), `"panic":"string"`)
	assert.Empty(t, found(r.log.String()))
}

// Nothing that a provider or a network says of the key comes out of a fetch.
func TestFetchingModelsTellsNoSecret(t *testing.T) {
	leakFree(t)
	for name, rt := range map[string]roundTrip{
		"an error that quotes the request": func(r *http.Request) (*http.Response, error) {
			return nil, fmt.Errorf("cannot send %v to %s", r.Header, r.URL)
		},
		"an answer that quotes it": func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 500, Header: http.Header{"X-Said": r.Header["X-Api-Key"]}, Body: io.NopCloser(strings.NewReader(fmt.Sprint(r.Header)))}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, setup{upstreams: []upstream{memory(rt)}, clients: []auth.ClientConfig{{Name: "alice", Token: secret.New(aliceToken)}}})
			got := r.do(listModels(""))
			requireError(t, got, 502, "api_error")
			assert.Empty(t, found(got.body+fmt.Sprint(got.header)+r.log.String()))
			assert.Contains(t, r.log.String(), "does not tell its models")
		})
	}
}

// A list in the shape of another vendor's API becomes one that clients can read.
func TestListsOfOtherShapes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		a := net.handler(t, "a", tells(says(`{"object":"list","data":[{"id":"qwen3-coder","object":"model","created":1763900000,"owned_by":"vllm"}]}`)))
		r := net.relay(t, &a.sim)
		const want = `{"type":"model","id":"qwen3-coder","display_name":"qwen3-coder","created_at":"1970-01-01T00:00:00Z"}`
		got := r.do(listModels(""))
		assert.JSONEq(t, `{"data":[`+want+`],"has_more":false,"first_id":"qwen3-coder","last_id":"qwen3-coder"}`, got.body)
		assert.JSONEq(t, want, r.do(call{method: "GET", path: "/v1/models/qwen3-coder"}).body)
	})
}
